"""Words, booleans and missing values in tables: one result from every format, and from train, evaluate and predict."""

import json

import h5py
import numpy as np
import pyarrow as arrow
import pyarrow.parquet
import pytest
from alone import Alone
from commands import run_here

from distai_mpi.data import classes, encode_labels, load, load_sets
from distai_mpi.errors import ConfigError, DataError

mpi = pytest.mark.mpi
pytestmark = pytest.mark.ranks(2)
ROWS = 120
RNG = np.random.default_rng(4)
X = RNG.normal(size=(ROWS, 3))
HOLED = X.copy()
HOLED[:, :2][RNG.random((ROWS, 2)) < 0.2] = np.nan
CODES = (X @ [2, -1, 0.5] + RNG.logistic(size=ROWS) > 0).astype(int)
LABELS = {
    "words": np.array(["bad", "good"])[CODES],
    "late": np.where(np.arange(ROWS) < ROWS - 2, CODES.astype(str), "unknown"),  # the first ranks see numbers alone
    "numbers": 2 * CODES + 2,
}


def save(path, x, labels, names=("a", "b", "c", "kind")):
    known = dict(zip(("a", "b", "c", "kind"), [*x.T, labels], strict=True))
    if path.suffix == ".parquet":
        columns = {
            name: known[name] if name == "kind" else arrow.array(known[name], from_pandas=True) for name in names
        }
        arrow.parquet.write_table(arrow.table(columns), path, row_group_size=17)
        return
    rows = ["" if value == "nan" else value for name in names for value in np.asarray(known[name]).astype(str)]
    columns = np.array(rows).reshape(len(names), -1).T
    path.write_text("\n".join(",".join(row) for row in [names, *columns.tolist()]) + "\n")


def command(*words, status=0, **kwargs):
    done = run_here(*words, **kwargs)
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


@mpi
@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("how", [("--missing", "mean"), ("--missing", "median", "--missing-indicator")])
def test_formats_and_commands_agree(comm, shared_path, kind, how):
    if comm.rank == 0:
        for end in ("csv", "parquet"):
            save(shared_path / f"train.{end}", HOLED, LABELS[kind])
            save(shared_path / f"new.{end}", HOLED, LABELS[kind], ("c", "kind", "a", "b"))
            save(shared_path / f"bare.{end}", HOLED, LABELS[kind], ("b", "c", "a"))
    comm.barrier()
    at, model = {"cwd": shared_path}, "softmax" if kind == "late" else "logistic"
    flags = ("-q", "--model", model, "--optimizer", "lbfgs", "--l2", 0.01, "--test-fraction", 0, *how)
    weights, answers, found = [], [], set()
    for end in ("csv", "parquet"):
        command("train", "--data", f"train.{end}", *flags, "--out", end, **at)
        result = json.loads((shared_path / end / "result.json").read_text())
        assert result["classes"] == np.unique(LABELS[kind]).tolist()
        with np.load(shared_path / end / "model.npz") as file:
            weights.append(b"".join(file[name].tobytes() for name in sorted(set(file.files) - {"config"})))
        for name in ("train.csv", "new.csv", "new.parquet"):
            told = json.loads(command("evaluate", end, "--data", name, "--json", **at))
            found.add((told["accuracy"], told["loss"]))
        for name in ("train.parquet", "bare.csv", "bare.parquet"):
            command("predict", end, "--data", name, "--out", "answers.npy", **at)
            answers.append(np.load(shared_path / "answers.npy"))
        names = json.loads(str(np.load(shared_path / end / "model.npz")["config"]))["extra"]["feature_names"]
        assert names == ["a", "b", "c", *["a.missing", "b.missing"] * ("median" in how)]
    assert weights[0] == weights[1]
    assert len(found) == 1
    assert all(np.array_equal(answers[0], each) for each in answers)
    assert answers[0].dtype.kind == ("i" if kind == "numbers" else "U")
    assert np.mean(answers[0] == LABELS[kind]) == pytest.approx(found.pop()[0])


@mpi
@pytest.mark.parametrize("end", ["csv", "parquet"])
def test_labels_that_test_rows_lack_or_have_alone(comm, shared_path, end):
    nothing, other = np.full(ROWS, np.nan), LABELS["words"].copy()
    some = np.where(np.arange(ROWS) < ROWS - 9, 2.0, np.nan)
    other[:7] = "ugly"
    if comm.rank == 0:
        save(shared_path / f"words.{end}", X, LABELS["words"])
        save(shared_path / f"numbers.{end}", X, LABELS["numbers"])
        save(shared_path / f"other.{end}", X, other)
        if end == "csv":
            save(shared_path / "nothing.csv", X, nothing)
            save(shared_path / "some.csv", X, some)
        else:
            save(shared_path / "nothing.parquet", X, arrow.array(nothing, from_pandas=True))
            save(shared_path / "some.parquet", X, arrow.array(some, from_pandas=True))
    comm.barrier()
    paths = {name: shared_path / f"{name}.{end}" for name in ("words", "numbers", "other", "nothing", "some")}
    for name in ("words", "numbers"):
        _, test = encode_labels(*load(paths[name], comm, test=paths["nothing"]), comm=comm)
        assert test.labels.unlabelled
        assert "nothing" in test.notes[0]
    train, test = load(paths["words"], comm, test=paths["other"])
    assert (train.classes, test.classes, test.labels.unknown) == (("bad", "good"), ("bad", "good"), 7)
    assert "other" in test.notes[0]
    assert "7 rows hold the label ugly" in test.notes[0]
    train, test = encode_labels(*load(paths["words"], comm, test=paths["numbers"]), comm=comm)
    assert test.labels.unknown == ROWS
    with pytest.raises(DataError, match=rf"some.{end}: rows without a label \(9\)"):
        load(paths["numbers"], comm, test=paths["some"], missing="mean")
    assert load(paths["numbers"], comm, test=paths["some"], missing="drop")[1].rows == ROWS - 9
    with pytest.raises(DataError, match=f"nothing.{end}"):
        load_sets(paths["words"], comm, valid=str(paths["nothing"]))


@mpi
def test_flags_that_files_without_columns_cannot_follow(comm, shared_path):
    if comm.rank == 0:
        (shared_path / "a.svm").write_text("1 1:2\n0 2:3\n")
    comm.barrier()
    for flag in ("columns", "drop"):
        with pytest.raises(ConfigError, match=f"{flag}='1': .*a.svm is no table"):
            load(shared_path / "a.svm", comm, **{flag: "1"})
    load(shared_path / "a.svm", comm, drop="1", required=("a",))


def save_truths(folder):
    """The rows with the labels False and True in every format; returns what a user would name."""
    truths = CODES > 0
    save(folder / "as_pandas.csv", X, truths)
    save(folder / "as_r.csv", X, np.where(truths, "TRUE", "FALSE"))
    save(folder / "small.csv", X, np.where(truths, "true", "false"))
    save(folder / "t.parquet", X, truths)
    np.savez(folder / "t.npz", x=X, y=truths)
    np.savez_compressed(folder / "packed.npz", x=X, y=truths)
    np.save(folder / "x.npy", X)
    np.save(folder / "y.npy", truths)
    with h5py.File(folder / "t.h5", "w") as file:
        file["x"], file["y"] = X, truths
    for i, part in enumerate(np.array_split(np.arange(ROWS), 2)):
        np.savez(folder / f"part-{i}.npz", x=X[part], y=truths[part])
    pair = f"{folder / 'x.npy'},{folder / 'y.npy'}"
    files = ("as_pandas.csv", "as_r.csv", "small.csv", "t.parquet", "t.npz", "packed.npz", "t.h5", "part-?.npz")
    return [*(str(folder / name) for name in files), pair]


@mpi
@pytest.mark.parametrize("missing", ["refuse", "mean"])  # by which arrays are mapped or read in chunks
def test_truth_values_are_the_same_classes_in_every_format(comm, shared_path, missing):
    names = save_truths(shared_path) if comm.rank == 0 else None
    names = comm.allgather_object(names)[0]
    for name in names:
        train, test = load(name, comm, test_fraction=0.25, missing=missing)
        assert not train.labels.words
        train, test = encode_labels(train, test, comm=comm)
        assert (train.classes, test.classes) == ((False, True), (False, True)), name
        assert [type(label) for label in train.classes] == [bool, bool], name
        rows = np.concatenate(comm.allgather_object(train.dataset.y[train.own_rows()]))
        assert rows.sum() + test.labels.rows >= CODES.sum() >= rows.sum()
    train, test = load(names[0], comm, test=names[4])
    assert test.labels.unknown == 0


@mpi
def test_truth_values_are_predicted_as_such(comm, shared_path):
    names = save_truths(shared_path) if comm.rank == 0 else None
    names = comm.allgather_object(names)[0]
    at, told = {"cwd": shared_path}, set()
    for name in (names[1], names[3], names[4]):
        for model in ("logistic", "linear"):
            flags = ("-q", "--model", model, "--optimizer", "lbfgs", "--l2", 0.01, "--test-fraction", 0, "--out", model)
            command("train", "--data", name, *flags, **at)
            command("predict", model, "--data", "x.npy", "--out", f"{model}.npy", **at)
        assert json.loads((shared_path / "logistic/result.json").read_text())["classes"] == [False, True]
        assert json.loads((shared_path / "linear/result.json").read_text())["classes"] is None
        answers = np.load(shared_path / "logistic.npy")
        assert answers.dtype == bool
        assert np.load(shared_path / "linear.npy").dtype == np.float32
        for other in names:
            accuracy = json.loads(command("evaluate", "logistic", "--data", other, "--json", **at))["accuracy"]
            assert accuracy == pytest.approx(np.mean(answers == (CODES > 0)))
        told.add(answers.tobytes())
    assert len(told) == 1


def test_truth_values_among_other_words():
    assert classes._codes(("False", "True"), ("TRUE", "false", "unknown")) == [1, 0]
    assert classes._codes((False, True), ("true", "unknown")) == [-1, 0]
    assert classes._codes(("TRUE", "maybe"), (False, True)) == [1, -1]
    assert classes._codes((0.0, 1.0, 2.0), (False, True)) == [0, 1, -1]
    assert classes._codes((False, True), (0.0, 5.0)) == [0, -1]
    assert classes._codes((False, True), (1.0, 2.0)) == [-1, 0]


@mpi
def test_days_that_one_format_holds_as_timestamps(comm, shared_path):
    days = np.datetime64("2024-02-27") + np.arange(ROWS) * 3
    if comm.rank == 0:
        table = {"a": X[:, 0], "kind": LABELS["words"]}
        for name, when in (("day", days), ("moment", days.astype("M8[ns]"))):
            arrow.parquet.write_table(arrow.table({"when": when, **table}), shared_path / f"{name}.parquet")
        rows = zip(days, X[:, 0].tolist(), LABELS["words"], strict=True)
        lines = ["when,a,kind", *(f"{day},{a!r},{kind}" for day, a, kind in rows)]
        (shared_path / "day.csv").write_text("\n".join(lines) + "\n")
    comm.barrier()
    at, flags = {"cwd": shared_path}, ("-q", "--model", "logistic", "--optimizer", "lbfgs", "--l2", 0.01)
    names, found, weights = ("day.csv", "day.parquet", "moment.parquet"), set(), set()
    for name in names:
        command("train", "--data", name, *flags, "--dates", "calendar", "--standardize", "--out", "run", **at)
        with np.load(shared_path / "run/model.npz") as file:
            weights.add(b"".join(file[key].tobytes() for key in sorted(set(file.files) - {"config"})))
        for other in names:
            found.add(json.loads(command("evaluate", "run", "--data", other, "--json", **at))["loss"])
    assert len(found) == len(weights) == 1


@mpi
@pytest.mark.parametrize("end", ["csv", "parquet"])
def test_flags_of_training_are_told_as_such(comm, shared_path, end):
    holed = X.copy()
    holed[7, 1] = np.nan
    if comm.rank == 0:
        save(shared_path / "t.csv", X, LABELS["words"])
        save(shared_path / f"holed.{end}", holed, LABELS["words"])
    comm.barrier()
    at, flags = {"cwd": shared_path}, ("-q", "--model", "logistic", "--optimizer", "lbfgs", "--l2", 0.01)
    told = command("train", "--data", f"holed.{end}", *flags, status=2, **at)
    assert "--missing mean" in told
    assert "flag of train" not in told
    command("train", "--data", "t.csv", *flags, "--out", "run", **at)
    for words in (("evaluate", "run"), ("predict", "run", "--out", "p.npy")):
        told = command(*words, "--data", f"holed.{end}", status=2, **at)
        assert "--missing mean, median or drop (--missing is a flag of train: what was said there is kept" in told


@pytest.mark.parametrize("end", ["csv", "parquet", "h5", "npz"])
def test_labels_that_stand_for_nothing_do_so_in_every_format(folder, end):
    words = np.array([" bad", "good", "None", "NA", "good ", ""])[np.arange(ROWS) % 6]
    if end == "h5":
        with h5py.File("a.h5", "w") as file:
            file["x"], file["y"] = X, words.astype("S")
    elif end == "npz":
        np.savez("a.npz", x=X, y=words)
    else:
        save(folder / f"a.{end}", X, words)
    with pytest.raises(DataError, match="(row 2|line 4).*'None' stands for a value .*--missing drop.*another name"):
        load(f"a.{end}", Alone())
    train, _ = load(f"a.{end}", Alone(), missing="drop", test_fraction=0)
    assert train.classes == ("bad", "good")
    assert train.dataset.y.tolist() == [0, 1, 1] * (ROWS // 6)
    assert np.array_equal(train.dataset.x, X[np.isin(np.arange(ROWS) % 6, [0, 1, 4])])
