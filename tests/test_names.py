"""Names belong to the model: features and labels are found by them, in any order."""

import json

import numpy as np
import pyarrow as arrow
import pyarrow.parquet
import pytest
from alone import Alone, load_features
from commands import run_here

from distai_mpi.data import load, load_sets
from distai_mpi.data.readers.columns import Columns
from distai_mpi.errors import DataError

mpi = pytest.mark.mpi
pytestmark = pytest.mark.ranks(2)
NAMES = ("age", "income", "debt", "y")
RNG = np.random.default_rng(20)
X = RNG.normal(size=(300, 3))
Y = (X @ [3, -2, 0.5] + RNG.logistic(size=300) > 0).astype(int)


def save(path, names, extra=0, header=True):
    """The table with its columns in the order of ``names``; what is not among them is random."""
    known = dict(zip(NAMES, [*X.T, Y], strict=True))
    columns = {name: known.get(name, np.random.default_rng(1).normal(size=300)) for name in names}
    if path.suffix == ".parquet":
        arrow.parquet.write_table(arrow.table(columns), path, row_group_size=50)
        return
    options = {"header": ",".join(names), "comments": ""} if header else {}
    np.savetxt(path, np.column_stack(list(columns.values())), delimiter=",", **options)


def roles(names, required=("a", "b"), **options):
    return Columns(required=required, **options).select("f", names, len(names))


def test_features_are_found_by_name():
    found = roles(["b", "y", "a"], label="y")
    assert (found.features, found.label, found.names) == ((2, 0), 1, ("a", "b"))
    assert (found.label_name, found.notes) == ("y", ())
    found = roles(["z", "b", "kind", "a", "id"], label_name="kind", drop="id")
    assert (found.features, found.label) == ((3, 1), 2)
    assert found.notes == ("f: z left out, which the model does not know",)
    assert roles(["b", "a"], wanted=False, label_name="kind").features == (1, 0)
    found = roles(["kind", "b", "a"], wanted=False, label_name="kind")
    assert (found.features, found.label, found.notes) == ((2, 1), None, ())
    assert roles(["a", "c", "b", "y"], columns="a,b,nowhere", drop="no*").notes == ()
    assert roles(["a", "y", "b", "a"], ("a", "a"), label="y").features == (0, 3)
    assert roles(None or ["0", "1", "2"], None, drop="1").names == ("0",)


@pytest.mark.parametrize(
    ("options", "features"),
    [
        ({}, (0, 1, 2, 3, 4)),
        ({"columns": "x?"}, (1, 2)),
        ({"columns": "3-4, x1"}, (1, 3, 4)),
        ({"columns": "id,x*", "drop": "x2"}, (0, 1)),
        ({"drop": '"a,b"'}, (0, 1, 2, 4)),
        ({"drop": "*", "columns": "x1", "label": "x2"}, None),
        ({"columns": "1", "label": "2", "weight": "5"}, (1,)),
        ({"drop": "x*,0", "label": "4"}, (3, 5)),
    ],
)
def test_columns_are_named_by_name_number_pattern_and_range(options, features):
    names = ["id", "x1", "x2", "a,b", "7", "y"]
    if features is None:
        with pytest.raises(DataError, match="column x2 cannot be both --label and left out"):
            Columns(**options).select("f", names, 6)
        return
    assert Columns(**options).select("f", names, 6).features == features
    for flag in ("columns", "drop"):
        for spec in ("z*", "6", "4-9", "X1"):
            with pytest.raises(DataError, match=f"--{flag} .*: there is no such column; there are id, x1, x2"):
                Columns(**{flag: spec}).select("f", names, 6)


@pytest.mark.parametrize(
    ("names", "options", "match"),
    [
        (["a", "c", "y"], {}, "f: the model takes b, which is not among the columns a, c, y"),
        (["c", "y"], {}, "takes a, b, which are not among"),
        (["a", "b", "a", "y"], {}, "2 columns are called a, and the model was trained on 1"),
        (["a", "b", "y"], {"label_name": "kind"}, "labels were in column kind in training.* by --label"),
        (["a", "b"], {"label": "b"}, "takes b"),
    ],
)
def test_a_column_that_is_missing_is_named(names, options, match):
    with pytest.raises(DataError, match=match):
        roles(names, **options)


@mpi
@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("shuffle", ["global", "local"])
def test_test_rows_follow_the_names_of_the_training_rows(comm, shared_path, kind, shuffle):
    train_path, test_path = shared_path / f"train.{kind}", shared_path / f"test.{kind}"
    if comm.rank == 0:
        save(train_path, NAMES)
        save(test_path, ("y", "debt", "color", "age", "income"))
    comm.barrier()
    sets = load_sets(train_path, comm, test=test_path, valid=str(test_path), shuffle=shuffle)
    for shard in (sets.test, sets.valid):
        assert (shard.column_names, shard.feature_names, shard.label_name) == (NAMES[:3], NAMES[:3], "y")
        own = shard.own_rows()
        ids = np.arange(300)[own] if shuffle == "global" else shard.starts[comm.rank] + np.arange(shard.dataset.rows)
        np.testing.assert_array_equal(shard.dataset.x[own], X[ids])
        np.testing.assert_array_equal(shard.dataset.y[own], Y[ids])
        assert shard.notes == (f"{test_path}: color left out, which the model does not know",)


def test_rows_without_names_are_taken_by_their_positions(tmp_path):
    save(tmp_path / "train.csv", NAMES)
    save(tmp_path / "test.csv", NAMES, header=False)
    _, test = load(tmp_path / "train.csv", Alone(), test=tmp_path / "test.csv")
    np.testing.assert_array_equal(test.dataset.x, X)
    assert test.notes == (
        f"{tmp_path / 'test.csv'}: its columns have no names, so that they are taken in the order of training",
    )
    _, test = load(tmp_path / "test.csv", Alone(), test=tmp_path / "train.csv")
    assert test.notes == ()
    shard = load_features(tmp_path / "train.csv", required=NAMES[2::-1], label_name="y")
    np.testing.assert_array_equal(shard.dataset.x, X[:, ::-1])


def command(*words, status=0, **kwargs):
    done = run_here(*words, **kwargs)
    assert done.returncode == status, done.stderr
    return done if status == 0 else done.stderr


@mpi
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_model_takes_its_features_by_name(comm, shared_path, kind):
    if comm.rank == 0:
        save(shared_path / f"train.{kind}", ("id", *NAMES))
        save(shared_path / f"new.{kind}", ("color", "debt", "y", "age", "income"))
        save(shared_path / f"bare.{kind}", ("income", "debt", "age"))
        save(shared_path / f"less.{kind}", ("income", "y", "age"))
        save(shared_path / "positions.csv", NAMES, header=False)
        np.savez(shared_path / "arrays.npz", x=X, y=Y)
    comm.barrier()
    at = {"cwd": shared_path}
    flags = ("--model", "logistic", "--optimizer", "lbfgs", "--l2", "1e-3", "--test-fraction", 0, "--drop", "id")
    command("train", "-q", "--data", f"train.{kind}", *flags, "--out", "run", **at)
    with np.load(shared_path / "run" / "model.npz") as file:
        kept = json.loads(str(file["config"]))["extra"]
    assert (kept["column_names"], kept["label_name"], kept["classes"]) == (list(NAMES[:3]), "y", [0, 1])

    ends = {}
    for name in (f"train.{kind}", f"new.{kind}", "positions.csv", "arrays.npz"):
        done = command("evaluate", "run", "--data", name, "--json", **at)
        ends[name] = json.loads(done.stdout)["loss"], done.stderr
    own = command("evaluate", "run", "--json", **at)
    assert {loss for loss, _ in ends.values()} == {json.loads(own.stdout)["loss"]}
    assert ends[f"train.{kind}"][1] == ""
    assert ends[f"new.{kind}"][1] == f"distai-mpi: new.{kind}: color left out, which the model does not know\n"
    for name in ("positions.csv", "arrays.npz"):
        assert "its columns have no names" in ends[name][1]

    answers = []
    for name in (f"train.{kind}", f"new.{kind}", f"bare.{kind}", "arrays.npz"):
        command("predict", "run", "--data", name, "--out", "answers.npy", **at)
        answers.append(np.load(shared_path / "answers.npy"))
    assert all(np.array_equal(answers[0], each) for each in answers)
    for words in (("evaluate",), ("predict", "--out", "no.npy")):
        told = command(words[0], "run", *words[1:], "--data", f"less.{kind}", status=2, **at)
        assert f"less.{kind}: the model takes debt" in told
    told = command("evaluate", "run", "--data", f"bare.{kind}", status=2, **at)
    assert "labels were in column y in training" in told
    told = command("predict", "run", "--data", "positions.csv", "--out", "no.npy", status=2, **at)
    assert "4 features, but the model takes 3" in told


@mpi
def test_numbers_of_features_are_the_models(comm, shared_path):
    if comm.rank == 0:
        rows = [f"{y} 1:{a!r} 2:{b!r} 3:{c!r}\n" for (a, b, c), y in zip(X.tolist(), Y, strict=True)]
        (shared_path / "train.svm").write_text("".join(rows))
        (shared_path / "new.svm").write_text("".join(rows[:5]) + "1 0:1 2:3\n")
    comm.barrier()
    at = {"cwd": shared_path}
    command("train", "-q", "--data", "train.svm", "--model", "logistic", "--epochs", 1, "--out", "run", **at)
    for words in (("evaluate",), ("predict", "--out", "no.npy")):
        told = command(words[0], "run", *words[1:], "--data", "new.svm", status=2, **at)
        assert "new.svm: has a feature with the index 0, but the model was trained" in told
        assert "row 5 (counted from 0)" in told
