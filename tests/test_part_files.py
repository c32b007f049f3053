"""A data set in several files: named by lists, patterns and folders, read alike on any number of ranks."""

import gzip
import itertools
import json
import os
import re
from pathlib import Path

import h5py
import numpy as np
import pyarrow as arrow
import pyarrow.parquet
import pytest
from alone import Alone, load_features
from commands import run_here

from distai_mpi.data import Columns, distribute, load, load_sets, several
from distai_mpi.data.formats import find
from distai_mpi.data.part_files import open_several
from distai_mpi.data.readers.chunk import Chunk, Csr
from distai_mpi.data.several import SeveralFiles, concatenate
from distai_mpi.data.spec import absolute, data_files, join_spec, split_spec
from distai_mpi.errors import DataError

pytestmark = pytest.mark.ranks(3)

RNG = np.random.default_rng(3)
ROWS, CUTS = 60, (0, 7, 7, 30, 31, 60)  # of files, one of them without rows
X, Y = RNG.normal(size=(ROWS, 3)), RNG.integers(0, 2, ROWS)
NAMES = ("a", "b", "c", "label")


def csv_of(rows, names=NAMES, order=None, header=True):
    """CSV text of the rows ``rows``, columns in the given ``order``."""
    order = order or range(len(names))
    lines = [",".join(names[i] for i in order)] * header
    for row in rows:
        values = [*map(repr, X[row].tolist()), str(Y[row])]
        lines.append(",".join(values[i] for i in order))
    return "".join(f"{line}\n" for line in lines)


def save_parquet(path, rows, **types):
    columns = {name: X[rows, i] for i, name in enumerate(NAMES[:3])} | {"label": Y[rows]}
    columns = {name: values.astype(types.get(name, values.dtype)) for name, values in columns.items()}
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    arrow.parquet.write_table(arrow.table(columns), path, row_group_size=5)


def parts():
    """Row numbers of each file."""
    return list(itertools.starmap(range, itertools.pairwise(CUTS)))


def write_csv_parts(folder, **options):
    os.makedirs(folder, exist_ok=True)
    for i, rows in enumerate(parts()):
        Path(folder, f"part-{i:05d}").write_text(csv_of(rows, **options))
    Path(folder, "_SUCCESS").touch()
    Path(folder, ".part-00000.crc").write_bytes(b"crc\0\0")


def rows_of(spec, **options):
    """Features, labels and weights of all rows, in their order."""
    train, test = load(spec, Alone(), test_fraction=0, **options)
    assert test is None
    return train.dataset.x, train.dataset.y, train.dataset.weight


def check(spec, x=X, y=Y, **options):
    got = rows_of(spec, **options)
    assert np.array_equal(got[0], x)
    assert np.array_equal(got[1], y)


def bad(match, spec, **options):
    with pytest.raises(DataError, match=match):
        load(spec, Alone(), **options)


# --- names


def test_specs_are_taken_apart_and_put_together(folder):
    assert split_spec("a.csv") == ["a.csv"]
    assert split_spec("a.csv, b.csv,c*.csv") == ["a.csv", "b.csv", "c*.csv"]
    assert split_spec('"a,1.csv",b.csv') == ["a,1.csv", "b.csv"]
    assert split_spec([Path("x,y"), "b"]) == ["x,y", "b"]
    Path("a,b.csv").touch()
    assert split_spec("a,b.csv") == ["a,b.csv"]
    for names in (["a"], ["a,1", "b c"], ['"q"', "r,"], ["x*", "y"]):
        assert split_spec(join_spec(names)) == names
    assert absolute("mnist") == "mnist"
    assert absolute(None) is None
    assert absolute("p-*.csv,q.csv") == f"{folder}/p-*.csv,{folder}/q.csv"
    os.makedirs("one,two")
    os.chdir("one,two")
    assert split_spec(absolute("p,q")) == [f"{folder}/one,two/p", f"{folder}/one,two/q"]


def test_files_are_in_natural_order_and_only_data(folder):
    names = ["p-10.csv", "p-9.csv", "p-1.csv", "q=2/x.csv", "q=10/x.csv", "q=2/_SUCCESS", "_x.csv", ".y", "q=2/.x.crc"]
    for name in ["_log/z.csv", *names]:
        os.makedirs(os.path.dirname(f"s/{name}"), exist_ok=True)
        Path("s", name).touch()

    def paths(*spec):
        return [os.path.relpath(file.path, "s") for file in data_files(spec)]

    def folders(*spec):
        return [dict(file.folders) for file in data_files(spec)]

    assert paths("s") == ["p-1.csv", "p-9.csv", "p-10.csv", "q=2/x.csv", "q=10/x.csv"]
    assert folders("s")[2:] == [{}, {"q": "2"}, {"q": "10"}]
    assert paths("s/p-*.csv") == ["p-1.csv", "p-9.csv", "p-10.csv"]
    assert paths("s/*.csv") == ["p-1.csv", "p-9.csv", "p-10.csv"]
    assert paths("s/_*.csv") == ["_x.csv"]
    assert paths("s/q=*") == ["q=2/x.csv", "q=10/x.csv"]
    assert folders("s/q=*") == [{"q": "2"}, {"q": "10"}]
    assert folders("s/q=2/*.csv") == [{}]
    assert paths("s/**/*.csv") == ["p-1.csv", "p-9.csv", "p-10.csv", "q=2/x.csv", "q=10/x.csv"]
    assert paths("s/**") == paths("s")
    assert paths("s/p-9.csv", "s/p-1.csv") == ["p-9.csv", "p-1.csv"]
    Path("s/p-[1].csv").touch()
    assert paths("s/p-[1].csv") == ["p-[1].csv"]  # a file of that name goes before a pattern


def test_folders_that_are_no_part_files(folder):
    write_csv_parts("set")
    bad("absent: there is no such file", "absent,set/part-00000")
    bad("set/nothing-.*: no file matches this pattern", "set/nothing-*")
    bad("part-00001: is named twice", "set/part-00001,set/part*")
    os.makedirs("set/more")
    bad("set: holds the folder more, which may be another data set", "set")
    os.rmdir("set/more")
    for mark, name in (("_delta_log", "Delta"), (".hoodie", "Hudi"), (".zarray", "Zarr"), ("_temporary", "_temporary")):
        os.makedirs(f"set/{mark}")
        bad(f"set: .*{name}", "set")
        bad(f"set: .*{name}", "set/part-*")
        os.rmdir(f"set/{mark}")
    os.makedirs("ice/metadata")
    Path("ice/metadata/v1.metadata.json").touch()
    bad("ice: is an Iceberg table", "ice")
    os.rename("set/part-00000", "set/train.csv")
    os.rename("set/part-00004", "set/test.csv")
    bad("set: holds train.csv and test.csv, which by their names are different sets.*--test-data", "set")
    order = [*range(7, 60), *range(7)]  # test.csv, train.csv: whoever gives a pattern means all that match
    check("set/*", X[order], Y[order])
    for name in os.listdir("set"):
        Path("set", name).write_bytes(b"")
    bad("holds no rows in any of its 5 files", "set/*")


# --- tables


@pytest.mark.parametrize("header", [True, False])
def test_csv_parts(folder, header):
    write_csv_parts("set", header=header)
    for spec in ("set", "set/part-*", "set/*", ["set"], [f"set/part-0000{i}" for i in range(5)]):
        check(spec)
    check("set/part-00003,set/part-00000", X[[30, *range(7)]], Y[[30, *range(7)]])
    found, _ = find("set")
    assert isinstance(found, SeveralFiles)
    assert any("1 of 5 files have no rows" in note for note in found.notes)
    assert found.feature_names == (("a", "b", "c") if header else None)
    names = found.roles.names if header else None
    assert names == (("a", "b", "c") if header else None)


def test_columns_are_taken_by_the_names_of_the_first_file(folder):
    write_csv_parts("set")
    Path("set/part-00000").write_text(csv_of(range(7), order=(3, 0, 2, 1)))
    check("set", X[:, [0, 2, 1]], label="label")
    Path("set/part-00000").write_text(csv_of(range(7)))
    Path("set/part-00004").write_text(csv_of(range(31, 60), order=(3, 2, 1, 0)))
    check("set")  # the label is the last column of the first file, by its name
    check("set", label="3")
    check("set", X[:, [0, 2]], columns="a,c")
    assert np.array_equal(load_features("set", label="label").dataset.x, X)


def test_columns_that_are_not_alike(folder):
    write_csv_parts("set")
    text = csv_of(range(31, 60))
    Path("set/part-00004").write_text(text.replace("c", "z", 1))
    bad("part-00004: lacks c and has also z, unlike set/part-00000", "set")
    check("set", X[:, :2], columns="a,b")
    Path("set/part-00004").write_text("more," + "1,".join(text.splitlines(True)))
    bad("part-00004: has also more, unlike set/part-00000", "set")
    Path("set/part-00004").write_text(csv_of(range(31, 60), header=False))
    bad("part-00004: has no header, but set/part-00000 has one", "set")
    write_csv_parts("bare", header=False)
    Path("bare/part-00003").write_text("1,2,3,4,1\n")
    bad("bare/part-00003: has 4 features a row, but bare/part-00000 has 3", "bare")
    save_parquet("bare/part-00003", range(3))
    bad("bare/part-00003: is Parquet, but bare/part-00000 is CSV", "bare")
    Path("bare/part-00003").write_text("1 1:2 3:4\n")
    bad("bare/part-00003: is libsvm text, but", "bare")


def test_faults_name_the_file_and_its_line(folder):
    write_csv_parts("set")
    text = csv_of(range(7, 30)).splitlines()
    text[4] = "1,x,2,0"
    Path("set/part-00002").write_text("\n".join(text))
    bad("set/part-00002: line 5, column b", "set")
    save_parquet("p/0.parquet", range(6))
    save_parquet("p/1.parquet", range(6, 60))
    table = arrow.parquet.read_table("p/1.parquet").to_pydict()
    table["b"][20] = float("inf")
    arrow.parquet.write_table(arrow.table(table), "p/1.parquet")
    bad("p/1.parquet: column b holds inf in row 20", "p")


def test_parquet_parts_of_other_types(folder):
    for i, rows in enumerate(parts()):
        save_parquet(f"set/part-{i}.snappy.parquet", rows, a=np.float32 if i == 2 else float, label=float if i else int)
    x = X.copy()
    x[7:30, 0] = x[7:30, 0].astype(np.float32)
    check("set", x)
    train, _ = load("set", Alone(), test_fraction=0)
    assert train.dataset.x.dtype == train.dataset.y.dtype == np.float64
    Path("set/part-9.parquet").touch()
    bad("set/part-9.parquet: the file is empty", "set")


def test_libsvm_and_compressed_parts(folder):
    os.makedirs("set")
    lines = [f"{Y[i]} " + " ".join(f"{j}:{v!r}" for j, v in enumerate(X[i].tolist(), 1)) + "\n" for i in range(ROWS)]
    for i, rows in enumerate(parts()):
        text = "".join(lines[row] for row in rows).encode()
        Path(f"set/part-{i}").write_bytes(gzip.compress(text) if i % 2 else text)
    check("set")
    lines[59] = lines[59].replace(" 1:", ":2.5 1:")
    Path("set/part-4").write_text("".join(lines[31:]))
    assert rows_of("set")[2].tolist() == [1] * 59 + [2.5]


@pytest.mark.parametrize("kind", ["npz", "packed.npz", "h5", "packed.h5"])
def test_arrays_in_parts(folder, kind):
    weight = RNG.random(ROWS)
    for i, rows in enumerate(rows for rows in parts() if rows):
        arrays = {"x": X[rows], "y": Y[rows], "weight": weight[rows], "x_test": X[:2] + i, "y_test": Y[:2]}
        path = f"part-{i}.{kind}"
        if kind.endswith("npz"):
            (np.savez if kind == "npz" else np.savez_compressed)(path, **arrays)
        else:
            with h5py.File(path, "w") as file:
                for name, values in arrays.items():
                    file.create_dataset(name, data=values, compression="gzip" if "packed" in kind else None)
    train, test = load("part-*", Alone())
    assert np.array_equal(train.dataset.x, X)
    assert np.array_equal(train.dataset.y, Y)
    assert np.array_equal(train.dataset.weight, weight)
    assert np.array_equal(test.dataset.x, np.concatenate([X[:2] + i for i in range(4)]))
    np.save("x.npy", X)
    np.save("z.npy", X + 1)
    bad("x.npy: holds one array, but labels are needed too", "x.npy,part-0." + kind + ",z.npy")
    assert np.array_equal(load_features("x.npy,z.npy").dataset.x, np.concatenate((X, X + 1)))


def test_a_pair_of_arrays_is_no_list(folder):
    np.save("x.npy", X)
    np.save("y.npy", Y)
    check("x.npy,y.npy")
    check(["x.npy", Path("y.npy")])
    Path("a.csv").write_text(csv_of(range(60)))
    with pytest.raises(DataError, match="x.npy,y.npy: y.npy has one value a row, as labels; for predictions give"):
        load_features("x.npy,y.npy")
    bad("a.csv: is neither a .npy nor an IDX file, as the two of a pair X,Y must be", "x.npy,a.csv")


# --- columns in the names of folders


def write_partitioned(folder, kind="csv"):
    """The rows by label and by the sign of ``a``, these two in the names of folders; returns the order of rows."""
    order = []
    for sign in (1, -1):  # as folders are sorted
        for label in (0, 1):
            rows = np.flatnonzero((np.sign(X[:, 0]) == sign) & (Y == label))
            order += rows.tolist()
            path = f"{folder}/sign={sign}/label={label}/part-0.{kind}"
            os.makedirs(os.path.dirname(path))
            if kind == "csv":
                Path(path).write_text("".join(line.rpartition(",")[0] + "\n" for line in csv_of(rows).splitlines()))
            else:
                arrow.parquet.write_table(arrow.table({name: X[rows, i] for i, name in enumerate("abc")}), path)
    return order


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_partitions(folder, kind):
    order = write_partitioned("set", kind)
    signs = np.sign(X[order, 0]).reshape(-1, 1)
    x, y, _ = rows_of("set", label="label")
    assert np.array_equal(x, np.hstack((X[order], signs)))
    assert np.array_equal(y, Y[order])
    assert y.dtype == np.int64
    check("set", X[order], Y[order], label="label", drop="sign")
    check("set/**/*." + kind, np.hstack((X[order], signs)), Y[order], label="label")
    check("set", np.hstack((X[order][:, :1], signs)), Y[order], label="label", columns="a,si*")
    check("set", np.hstack((X[order], Y[order].reshape(-1, 1))), signs[:, 0], label="sign")
    weights = rows_of("set", label="sign", weight="label")[2]
    assert np.array_equal(weights, Y[order])
    assert np.array_equal(rows_of("set", label="c", drop="sign")[0], np.column_stack((X[order][:, :2], Y[order])))
    bad("the label may be any of them: name it with --label", "set")
    bad("--label z: there is no such column; there are a, b, c, sign, label", "set", label="z")
    bad(
        "lies in the folder label=1, by whose name label is a column|column label is not in it",
        f"set/sign=1/label=1/part-0.{kind}",
    )
    found, _ = find("set", None, Columns(label="label"))
    assert found.feature_names == found.roles.names == ("a", "b", "c", "sign")
    assert found.roles.label_name == "label"
    asked = Columns(label="label", required=("sign", "c", "a", "b"))
    got = find("set", None, asked)[0]
    assert got.feature_names == ("sign", "c", "a", "b")
    assert np.array_equal(got.read(0, 1).x, np.hstack((signs, X[order][:, [2, 0, 1]])))
    features = load_features("set", required=("a", "b", "c", "sign")).dataset.x
    assert np.array_equal(features, np.hstack((X[order], signs)))


def test_values_in_names_of_folders(folder):
    def write(name):
        os.makedirs(f"set/{name}")
        Path(f"set/{name}/p.csv").write_text("a,y\n1.5,0\n2.5,1\n")

    write("k%3D=1%2e5")
    write("k%3D=-2e1")
    check("set", [[1.5, 1.5], [2.5, 1.5], [1.5, -20], [2.5, -20]], [0, 1, 0, 1], label="y")
    write("k%3D=__HIVE_DEFAULT_PARTITION__")
    bad("has no value of k=: its folder is k==__HIVE.*--drop", "set", label="y")
    check("set", [[1.5], [2.5]] * 3, [0, 1] * 3, label="y", drop="k=")
    found, _ = find("set", None, Columns(label="y", missing="mean"))
    values = found.read(0, 1).x[:, 1]
    assert np.isnan(values).sum() == 2
    bad("has no label", "set", label="k=")
    write("k%3D=word")
    bad("the value of k=, 'word' in the name of its folder, is no finite number", "set", label="y", missing="mean")
    write("j=3")
    bad("lies in folders key=value for", "set", label="y")
    os.makedirs("twice/y=1")
    Path("twice/y=1/p.csv").write_text("a,y\n1.5,0\n")
    bad("y is a column of the file and of its folder", "twice", label="y")


def test_dates_and_truth_in_names_of_folders(folder):
    for day, flag in (("2024-02-29", "true"), ("1969-12-31 23%3A59%3A58.5", "False")):
        os.makedirs(f"set/day={day}/flag={flag}")
        Path(f"set/day={day}/flag={flag}/p.csv").write_text("a,y\n1.5,0\n")
    seconds = (np.datetime64("2024-02-29") - np.datetime64("1970-01-01")).astype("m8[s]").astype(float)
    check("set", [[1.5, -1.5, 0], [1.5, seconds, 1]], [0, 0], label="y", dates="seconds")
    check("set", [[1.5, 0], [1.5, 1]], [0, 0], label="y", drop="day")
    bad("the value of day, '1969-.*' in the name of its folder, is a date; .*--dates seconds", "set", label="y")
    bad("is a date; .*--dates seconds", "set", label="y", dates="calendar")
    os.rename("set/day=2024-02-29", "set/day=2024-02-30")
    bad("the value of day, '2024-02-30' in the name of its folder, is no finite", "set", label="y", dates="seconds")


def test_words_of_folders_as_labels(folder):
    for i, word in enumerate(("good", "bad", "10")):
        os.makedirs(f"set/label={word}")
        Path(f"set/label={word}/p.csv").write_text(f"a,b\n{i},1\n{i},2\n")
    found, _ = find("set", None, Columns(label="label"))
    chunk = found.read(0, 1)
    assert [chunk.label_names[int(y)] for y in chunk.y] == ["10", "10", "bad", "bad", "good", "good"]
    for parts in (2, 3, 5):
        read = concatenate([found.read(part, parts) for part in range(parts)], found.empty())
        assert [read.label_names[int(y)] for y in read.y] == ["10", "10", "bad", "bad", "good", "good"]
        assert np.array_equal(read.x, chunk.x)


def test_one_vocabulary_of_files_with_words_and_numbers():
    x = np.zeros((2, 1))
    words = Chunk(x, np.array([1.0, 0.0]), None, ("b", "c"))
    numbers = Chunk(x, np.array([2.0, 0.5]), None, None)
    lacking = Chunk(x, np.array([-1.0, 0.0]), None, ("2.0",))
    without = Chunk(x, np.array([np.nan, 7.0]), None, None)
    joined = concatenate([words, numbers, lacking, without, words], words)
    found = [None if y < 0 else joined.label_names[int(y)] for y in joined.y]
    assert found == ["c", "b", "2", "0.5", None, "2", None, "7", "c", "b"]
    assert joined.label_names == ("0.5", "2", "7", "b", "c")


def test_sparse_rows_one_after_another():
    def rows(ends, indices, values):
        return Chunk(Csr(np.array(ends), np.array(indices, np.int32), np.array(values)), np.zeros(len(ends)), None)

    joined = concatenate([rows([1, 1], [4], [2.5]), rows([0, 2], [1, 3], [1.5, 0.5])], rows([], [], []))
    assert joined.x.ends.tolist() == [1, 1, 1, 3]
    assert joined.x.indices.tolist() == [4, 1, 3]
    assert joined.x.values.tolist() == [2.5, 1.5, 0.5]


# --- how ranks share the files out


@pytest.mark.parametrize("piece", [1, 200, 1 << 20])
@pytest.mark.parametrize("header", [True, False])
def test_all_parts_together_are_all_rows(folder, monkeypatch, piece, header):
    monkeypatch.setattr(several, "PIECE_BYTES", piece)
    write_csv_parts("set", header=header)
    found, _ = find("set")
    for count in (1, 2, 3, 7, 40):
        read = concatenate([found.read(part, count) for part in range(count)], found.empty())
        assert np.array_equal(read.x, X)
        assert np.array_equal(read.y, Y)


class Sized:
    """A file of so many bytes."""

    features, dtype, target_dtype, scale = 1, np.dtype(float), np.dtype(float), 1.0

    def __init__(self, sequential=False):
        self.sequential = sequential


@pytest.mark.parametrize("ranks", [1, 2, 3, 16])
def test_small_and_large_files_are_balanced(ranks):
    gib = 1 << 30
    for sizes in (
        [gib] * 10_000,
        [1] * 5_000 + [gib] * 200,
        [100 * gib],
        [100 * gib, 1, 1, 1],
        [1, 2, 300 * gib, 7 * gib],
    ):
        set_of = SeveralFiles("s", tuple(Sized() for _ in sizes), tuple(sizes))
        own = [sum(sizes[i] / n for i, _, n in set_of._pieces(part, ranks)) for part in range(ranks)]
        assert sum(own) == pytest.approx(sum(sizes))
        assert max(own) <= 1.05 * sum(sizes) / ranks
    packed = SeveralFiles("s", tuple(Sized(sequential=True) for _ in range(48)), (5,) * 48)
    assert [len(packed._pieces(part, ranks)) for part in range(ranks)] == [48 // ranks] * ranks


def test_ten_thousand_files_are_compared_in_one_message(folder, monkeypatch):
    Path("f").write_text("1,2\n")
    opened = []
    monkeypatch.setattr(distribute, "_fingerprint", lambda path, ends=1: opened.append(ends) or (1, 2))

    class Counting(Alone):
        sent = 0

        def allgather_object(self, value):
            self.sent += len(repr(value))
            return [value]

    comm = Counting()
    assert distribute._see_alike(["f"] * 10_000, comm) == [True]
    assert comm.sent < 200
    assert len(opened) == 10_000
    assert sum(ends > 0 for ends in opened) <= 2 * distribute.MOST_COMPARED


def test_files_that_differ_are_noticed(folder):
    Path("a").write_text("1")
    Path("b").write_text("2")
    seen = []
    comm = Alone()
    comm.allgather_object = lambda value: seen.append(value) or [value]
    distribute._see_alike(["a", "b"], comm)
    Path("b").write_text("3")
    distribute._see_alike(["a", "b"], comm)
    assert seen[0] != seen[1]


def test_nothing_found_is_none():
    assert open_several("s", [*data_files([__file__])], lambda path, columns: None, Columns()) is None


# --- on ranks


@pytest.fixture(scope="module")
def sets(comm, shared_folder):
    """Folders of the same rows in several forms, and one file of them."""

    def fill(folder):
        write_csv_parts(folder / "csv")
        for i, rows in enumerate(parts()):
            save_parquet(str(folder / f"parquet/part-{i}.parquet"), rows)
            text = csv_of(rows).encode()
            (folder / "gz").mkdir(exist_ok=True)
            (folder / f"gz/part-{i}.csv.gz").write_bytes(gzip.compress(text))
            if rows:
                np.savez(folder / f"part-{i}.npz", x=X[rows], y=Y[rows])
        np.savez(folder / "whole.npz", x=X, y=Y)
        (folder / "whole.csv").write_text(csv_of(range(ROWS)))

    return shared_folder(fill)


@pytest.mark.mpi
@pytest.mark.parametrize("spec", ["csv", "parquet", "gz", "csv/part-*", "part-*.npz"])
@pytest.mark.parametrize("way", [{"shuffle": "global"}, {"shuffle": "local"}, {"distribute": "scatter"}])
def test_several_files_give_the_shards_of_one(comm, sets, spec, way, monkeypatch):
    monkeypatch.setattr(several, "PIECE_BYTES", 50)
    expected = load(sets / "whole.npz", comm, **way)
    for shard, other in zip(load(str(sets / spec), comm, **way), expected, strict=True):
        assert shard.counts == other.counts
        assert np.array_equal(shard.dataset.x, other.dataset.x)
        assert np.array_equal(shard.dataset.y, other.dataset.y)
        assert shard.labels == other.labels


@pytest.mark.mpi
def test_test_and_validation_rows_in_several_files(comm, sets):
    name = str(sets / "csv/part-0000[03]")
    got = load_sets(str(sets / "csv"), comm, test=name, valid=[sets / "csv/part-00004"])
    assert [shard.rows for shard in got] == [60, 8, 29]
    assert np.array_equal(load_features(str(sets / "csv"), label="label").dataset.x, X)


@pytest.mark.mpi
def test_faults_of_files_are_told_alike(comm, sets):
    cases = (("csv/part-00000,parquet/part-0.parquet", "is Parquet, but"), ("csv/none-*", "no file matches"))
    for spec, match in cases:
        spec = ",".join(str(sets / part) for part in spec.split(","))
        with pytest.raises(DataError, match=match) as caught:
            load(spec, comm)
        assert set(comm.allgather_object(str(caught.value))) == {str(caught.value)}


@pytest.mark.mpi
def test_words_over_lines_and_labels_of_two_kinds(comm, shared_folder, monkeypatch):
    """A file that must be read from its beginning, and labels that are numbers in one file and words in another."""
    monkeypatch.setattr(several, "PIECE_BYTES", 20)

    def fill(folder):
        for i, label in enumerate(("1", "good", "2")):
            note = '"over\n\ntwo, lines"' if i == 2 else "plain"
            rows = "".join(f"{row},{note},{label}\n" for row in range(10 * i, 10 * i + 10))
            (folder / f"{i}.csv").write_text("a,note,y\n" + rows)

    shard, _ = load(str(shared_folder(fill)), comm, drop="note", test_fraction=0)
    assert shard.dataset.x[:, 0].tolist() == list(range(30))
    assert shard.classes == ("1", "2", "good")
    assert shard.dataset.y.tolist() == [0] * 10 + [2] * 10 + [1] * 10


# --- commands

TRAIN = ("train", "--model", "logistic", "--optimizer", "gd", "--epochs", "20", "--dtype", "float64", "-q")


@pytest.mark.mpi
def test_commands_on_several_files(comm, sets, shared_path):
    run = dict(cwd=shared_path)
    kept = {}
    for name, spec in (("one", "whole.csv"), ("set", "csv"), ("list", "csv/part-000*"), ("pq", "parquet")):
        done = run_here(*TRAIN, "--data", f"{sets}/{spec}", "--out", name, **run)
        assert done.returncode == 0, done.stderr
        kept[name] = json.loads((shared_path / name / "result.json").read_text())["train_loss"]
    assert set(kept.values()) == {kept["one"]}
    other = shared_path / "elsewhere"
    if comm.rank == 0:
        other.mkdir()
        listed = [f"{sets}/csv/part-0000{i}" for i in range(5)]
        (shared_path / "list.toml").write_text(f"data = {json.dumps(listed)}\n")
    comm.barrier()
    done = run_here(*TRAIN, "--config", "list.toml", "--out", "toml", **run)
    assert done.returncode == 0, done.stderr
    assert json.loads((shared_path / "toml" / "result.json").read_text())["train_loss"] == kept["one"]
    relative = os.path.relpath(sets, shared_path)
    done = run_here(*TRAIN, "--data", f"{relative}/csv/part-*", "--test-data", f"{relative}/csv", "--out", "rel", **run)
    assert done.returncode == 0, done.stderr
    done = run_here("evaluate", "../rel", "--json", cwd=other)
    assert done.returncode == 0, done.stderr
    assert '"count": 60' in done.stdout
    again = run_here("train", "--config", "../rel/settings.toml", "-q", cwd=other)
    assert again.returncode == 0, again.stderr
    done = run_here("predict", "set", "--data", f"{sets}/csv", "--label", "label", "--out", "p.npy", **run)
    assert done.returncode == 0, done.stderr
    done = run_here("predict", "set", "--data", f"{sets}/whole.csv", "--label", "label", "--out", "q.npy", **run)
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(shared_path / "p.npy"), np.load(shared_path / "q.npy"))
    assert re.search(r'data = ".*csv/part-\*"', (shared_path / "rel" / "settings.toml").read_text())
