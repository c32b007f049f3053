"""Features in one table, labels in another: X.csv,Y.csv."""

import gzip

import numpy as np
import pyarrow as arrow
import pyarrow.parquet
import pytest
from alone import Alone
from commands import run_here

from distai_mpi.data import load, load_sets
from distai_mpi.data.formats import find
from distai_mpi.errors import DataError

pytestmark = pytest.mark.ranks(3)

ROWS = 90
RNG = np.random.default_rng(6)
X = RNG.normal(size=(ROWS, 3))
T = X @ [1.0, 2.0, -1.0] + 0.1 * RNG.normal(size=ROWS)
WORDS = np.where(RNG.normal(size=ROWS) > T, "bad", "good")
NAMES = ("a", "b", "c")


def csv(columns, names, index=False, header=True):
    """CSV text, as pandas writes it."""
    first = [",".join(["", *names] if index else names)] if header else []
    lines = [
        ",".join([*([str(i)] if index else []), *map(str, row)]) for i, row in enumerate(zip(*columns, strict=True))
    ]
    return "\n".join([*first, *lines, ""])


def save(folder, y, name="y"):
    """Features and labels in all forms, by the ends of their names."""
    columns = X.T.tolist()
    for end, options in {"csv": {}, "index.csv": {"index": True}, "bare.csv": {"header": False}}.items():
        (folder / f"x.{end}").write_text(csv(columns, NAMES, **options))
        (folder / f"y.{end}").write_text(csv([y.tolist()], [name], **options))
    for part in "xy":
        (folder / f"{part}.gz").write_bytes(gzip.compress((folder / f"{part}.csv").read_bytes()))
    arrow.parquet.write_table(arrow.table(dict(zip(NAMES, X.T, strict=True))), folder / "x.parquet")
    arrow.parquet.write_table(arrow.table({name: y}), folder / "y.parquet")
    (folder / "all.csv").write_text(csv([*columns, y.tolist()], [*NAMES, name]))


PAIRS = ["x.csv,y.csv", "x.index.csv,y.index.csv", "x.bare.csv,y.bare.csv", "x.gz,y.gz", "x.parquet,y.parquet"]
PAIRS += ["x.csv,y.parquet", "x.index.csv,y.csv"]


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("y", [T, WORDS], ids=["numbers", "words"])
def test_pairs_are_one_table(folder, pair, y):
    save(folder, y)
    bare = {"header": False} if "bare" in pair else {}  # a column of words has none that can be told
    train, test = load(pair, Alone(), test_fraction=0, **bare)
    one, _ = load("all.csv", Alone(), test_fraction=0)
    assert test is None
    assert np.array_equal(train.dataset.x, one.dataset.x)
    assert np.array_equal(train.dataset.x, X)
    assert np.array_equal(train.dataset.y, one.dataset.y)
    assert train.classes == one.classes
    if "bare" not in pair:
        assert train.column_names == NAMES
        assert train.label_name == "y"


def test_columns_weights_and_missing_values(folder):
    (folder / "x").write_text("a,w,b,d\n1,1,x,12/31/2020\n2,2,y,1/1/2021\n,3,z,1/2/2021\n4,4,u,1/3/2021\n")
    (folder / "y").write_text("t\n5\n\n7\n8\n")  # of one column: a blank line is none
    (folder / "z").write_text("t\n5\n6\n7\nNA\n")
    options = {"drop": "b", "weight": "w", "dates": "seconds", "test_fraction": 0}
    with pytest.raises(DataError, match="x: has 4 rows, but y has 3 labels"):
        load("x,y", Alone(), missing="mean", **options)
    assert load("x,z", Alone(), missing="mean", **options)[0].dataset.y.tolist() == [5, 6, 7]
    train, _ = load("x,z", Alone(), missing="drop", **options)
    assert train.dataset.x.tolist() == [[1, 1609372800], [2, 1609459200]]
    assert train.dataset.y.tolist() == [5, 6]
    assert train.dataset.weight.tolist() == [1, 2]
    train, _ = load("x,z", Alone(), missing="drop", **options | {"drop": None})
    assert train.feature_names == ("a", *(f"b={word}" for word in "uxyz"), "d")
    assert train.dataset.x[:, 2:4].tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("pair", "told"),
    [
        ("x.csv,all.csv", r"all.csv: has also y, unlike x.csv"),
        ("y.csv,x.csv", "y.csv: has 1 column, and none is left for features"),
        ("x.csv,x.csv", "named twice"),
        ("y.csv", r"y.csv: has 1 column, .*X.csv,y.csv"),
    ],
)
def test_what_is_no_pair(folder, pair, told):
    save(folder, T)
    with pytest.raises(DataError, match=told):
        load(pair, Alone(), label=None if pair != "x.csv,all.csv" else "c")


def test_a_header_of_one_alone(folder):
    save(folder, T)
    assert load("x.csv,y.bare.csv", Alone(), test_fraction=0)[0].rows == ROWS
    save(folder, WORDS)
    with pytest.raises(DataError, match="has 90 rows, but y.bare.csv has 89 labels; .*header"):
        load("x.csv,y.bare.csv", Alone())


def test_the_label_may_be_named(folder):
    save(folder, T)
    assert load("x.csv,y.csv", Alone(), label="y", test_fraction=0)[0].labels.rows == ROWS
    with pytest.raises(DataError, match="--label q: there is no such column"):
        load("x.csv,y.csv", Alone(), label="q")


@pytest.mark.mpi
def test_on_ranks_and_by_the_commands(comm, shared_path):
    if comm.rank == 0:
        save(shared_path, WORDS)
    comm.barrier()
    x, y = (str(shared_path / name) for name in ("x.csv", "y.csv"))
    sets = load_sets(f"{x},{y}", comm, test=[x, y], shuffle="global")
    assert sets.train.rows == sets.test.rows == ROWS
    assert np.array_equal(sets.test.dataset.x[sets.test.own_rows()], X[sets.test.own_rows()])
    at = {"cwd": shared_path}
    flags = ("--model", "logistic", "--optimizer", "lbfgs", "--l2", 0.01, "--test-data", "all.csv", "-q")
    for data, out in (("x.csv,y.csv", "pair"), ("all.csv", "one")):
        assert run_here("train", "--data", data, "--out", out, *flags, **at).returncode == 0
    told = [run_here("evaluate", "pair", *words, **at).stdout for words in (("--data", "x.csv,y.csv"), ())]
    assert run_here("predict", "pair", "--data", "x.csv", "--out", "o.npy", **at).returncode == 0
    if comm.rank == 0:
        weights = [np.load(shared_path / out / "model.npz")["layer1.weight"] for out in ("pair", "one")]
        assert np.array_equal(*weights)
        assert told[0].split("accuracy")[1] == told[1].split("accuracy")[1]
        assert set(np.load(shared_path / "o.npy")) == {"bad", "good"}


def test_a_pair_says_which_files_it_is_made_of(folder):
    save(folder, T)
    found, _ = find("x.csv,y.csv", None, None)
    assert found.files == {"x.csv", "y.csv"}
