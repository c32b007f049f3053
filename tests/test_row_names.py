"""Columns of words that name the rows are left out by themselves, in CSV and Parquet alike."""

import h5py
import numpy as np
import pyarrow as arrow
import pyarrow.parquet
import pytest
from alone import Alone
from commands import run_here

from distai_mpi.data import load
from distai_mpi.data.readers.row_names import FEWEST, LOOKED, are_names, rows_looked_at
from distai_mpi.errors import DataError

mpi = pytest.mark.mpi
pytestmark = pytest.mark.ranks(3)
ROWS = 60
A = np.random.default_rng(8).normal(size=(ROWS, 2))
Y = np.arange(ROWS) % 2
IDS = [f"AB-{i:04d}" for i in range(ROWS)]


def save(path, rows=slice(0, ROWS), header=True, **columns):
    columns = {name: list(values)[rows] for name, values in columns.items()}
    if path.suffix == ".npy":
        fields = [(name, "U9" if isinstance(values[0], str) else "f8") for name, values in columns.items()]
        np.save(path, np.array(list(zip(*columns.values(), strict=True)), fields))
        return
    if path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            for name, values in columns.items():
                file[name] = values
        return
    if path.suffix == ".parquet":
        arrow.parquet.write_table(arrow.table(columns), path, row_group_size=7)
        return
    lines = [",".join(columns)] * header
    lines += [",".join("" if v is None else str(v) for v in row) for row in zip(*columns.values(), strict=True)]
    path.write_text("\n".join(lines) + "\n")


def table(**first):
    return {**first, "a": A[:, 0], "b": A[:, 1], "y": Y}


def test_what_names_rows():
    assert are_names(IDS)
    assert are_names([*IDS[:FEWEST], "", "NA"])
    assert not are_names(IDS[: FEWEST - 1])
    assert not are_names([*IDS, IDS[7]])
    assert not are_names([str(i) for i in range(99)])
    assert not are_names([f"2024-01-{day:02d}" for day in range(1, 29)])
    assert (rows_looked_at(3), rows_looked_at(400), rows_looked_at(10**6)) == (LOOKED, 100, FEWEST)


@mpi
@pytest.mark.parametrize("end", ["csv", "parquet"])
def test_they_are_left_out_with_a_note(comm, shared_path, end):
    path = shared_path / f"t.{end}"
    if comm.rank == 0:
        save(path, **table(id=IDS))
    comm.barrier()
    train, _ = load(path, comm, test_fraction=0)
    assert (train.column_names, train.row_names, train.rows) == (("a", "b"), ("id",), ROWS)
    assert train.notes == (f"{path}: column id is left out: it holds another word in every row, as names of rows do",)
    assert load(path, comm, drop="id")[0].notes == ()
    for asked in ("id,a", "0-1"):
        train, _ = load(path, comm, columns=asked, test_fraction=0)
        assert train.column_names == ("a",)
        assert "column id is left out: it holds another word in nearly every row" in train.notes[0]


@mpi
@pytest.mark.parametrize("end", ["csv", "parquet"])
def test_words_that_nearly_all_differ_are_no_categories(comm, shared_path, end):
    for i, ids in enumerate(([*IDS[:-1], IDS[0]], [*IDS[: FEWEST - 1], *[None] * (ROWS - FEWEST + 1)])):
        path = shared_path / f"{i}.{end}"
        if comm.rank == 0:
            save(path, **table(id=ids))
        comm.barrier()
        train, _ = load(path, comm, missing="mean", test_fraction=0)
        assert (train.column_names, train.rows) == (("a", "b"), ROWS)
        assert "column id is left out: it holds another word in nearly every row" in train.notes[0]
        assert load(path, comm, categorical="id", test_fraction=0)[0].features == 2 + len(set(ids))


@mpi
@pytest.mark.parametrize("end", ["csv", "parquet"])
def test_a_label_by_default_is_none_of_them(comm, shared_path, end):
    path = shared_path / f"t.{end}"
    if comm.rank == 0:
        save(path, **table(), id=IDS)
    comm.barrier()
    with pytest.raises(DataError, match="column id, the last one, .* name the column of the label by label="):
        load(path, comm)
    train, _ = load(path, comm, label="y", test_fraction=0)
    assert (train.column_names, train.label_name) == (("a", "b"), "y")
    assert load(path, comm, label="id", test_fraction=0)[0].classes == tuple(IDS)


@mpi
@pytest.mark.parametrize("end", ["csv", "parquet"])
def test_small_parts_follow_the_first_one(comm, shared_path, end):
    if comm.rank == 0:
        for i, rows in enumerate((slice(0, 50), slice(50, 58), slice(58, 60))):
            save(shared_path / f"part-{i}.{end}", rows, **table(id=IDS))
    comm.barrier()
    train, _ = load(shared_path / f"part-*.{end}", comm, test_fraction=0)
    assert (train.rows, train.column_names, train.row_names) == (ROWS, ("a", "b"), ("id",))
    train, test = load(shared_path / f"part-0.{end}", comm, test=shared_path / f"part-2.{end}")
    assert (train.features, test.features, test.rows) == (2, 2, 2)


@mpi
def test_a_model_knows_them_where_columns_have_no_names(comm, shared_path):
    if comm.rank == 0:
        save(shared_path / "t.csv", header=False, **table(id=IDS))
        save(shared_path / "new.csv", slice(0, 3), header=False, id=IDS, a=A[:, 0], b=A[:, 1])
    comm.barrier()
    at = {"cwd": shared_path}
    flags = ("-q", "--model", "logistic", "--optimizer", "lbfgs", "--l2", 0.1, "--out", "run")
    assert run_here("train", "--data", "t.csv", *flags, **at).returncode == 0
    done = run_here("predict", "run", "--data", "new.csv", "--out", "p.npy", **at)
    assert done.returncode == 0, done.stderr
    assert np.load(shared_path / "p.npy").shape == (3,)


@mpi
def test_named_arrays_alike(comm, shared_path):
    if comm.rank == 0:
        save(shared_path / "t.npy", **table(id=IDS))
        save(shared_path / "last.npy", **table(), id=IDS)
        save(shared_path / "t.h5", **table(id=IDS))
    comm.barrier()
    for name, options in (("t.npy", {}), ("t.h5", {"variable": "*", "label": "y"})):
        train, _ = load(shared_path / name, comm, test_fraction=0, **options)
        assert set(train.column_names) == {"a", "b"}
        assert train.row_names == ("id",)
        assert "column id is left out: it holds another word in every row" in train.notes[0]
    with pytest.raises(DataError, match="column id, the last one, .* name the column of the label by label="):
        load(shared_path / "last.npy", comm)
    with pytest.raises(DataError, match="id holds words"):
        load(shared_path / "t.npy", comm, columns="id,a")


FORMS = ['"1,{:03d}"', "{}%", "{} %", "'{}'", "${}.5M", "({})", "{} kg", "1.5D{}", "{}°", "1_{:03d}", "{};5", "12:{}"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("at", [0, 1])
def test_numbers_that_are_not_read_are_no_names(folder, form, at):
    """Left out with a note a feature would be lost."""
    rows = [[form.format(i), str(i)][:: 1 - 2 * at] for i in range(ROWS)]
    text = "".join(",".join([*row, str(i % 2)]) + "\n" for i, row in enumerate(rows))
    (folder / "a.csv").write_text("p,q,y\n" + text)
    with pytest.raises(DataError, match=f"column {'pq'[at]}: words are no features"):
        load("a.csv", Alone())
    (folder / "a.csv").write_text("y,p\n" + "".join(f"{i % 2},{form.format(i)}\n" for i in range(ROWS)))
    with pytest.raises(DataError, match="column p, the last one, .* name the column of the label"):
        load("a.csv", Alone())


@pytest.mark.parametrize("name", ["r{}", "patient {}", "{}-AB-1", "3f{}b2a1", "2020Q{}", "chr{}:5"])
def test_names_with_numbers_in_them(folder, name):
    (folder / "a.csv").write_text("p,q,y\n" + "".join(f"{name.format(i)},{i},{i % 2}\n" for i in range(ROWS)))
    train, _ = load("a.csv", Alone(), test_fraction=0)
    assert train.dataset.x.tolist() == [[i] for i in range(ROWS)]
    assert train.row_names == ("p",)


def test_the_levels_of_an_index_without_names(folder):
    (folder / "a.csv").write_text(",,a,y\n" + "".join(f"{i // 2},{i % 2},{i}.5,{i % 2}\n" for i in range(ROWS)))
    train, _ = load("a.csv", Alone(), test_fraction=0)
    assert train.dataset.x.tolist() == [[i + 0.5] for i in range(ROWS)]
    assert train.notes[0].startswith("a.csv: columns 0 to 1, without names, are left out")
    asked, _ = load("a.csv", Alone(), test_fraction=0, columns="0-2")
    assert asked.features == 3
