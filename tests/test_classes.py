"""Labels of any kind: codes of classes in training, the labels themselves in predictions and results."""

import json

import numpy as np
import pytest
from alone import Alone
from commands import run_here
from fits import fit
from problems import uneven

from distai_mpi import models, optim
from distai_mpi.data import Dataset, encode, encode_labels, from_local, load, load_sets, summarize, whole
from distai_mpi.data.classes import merge_words, recoded
from distai_mpi.data.labels import MOST_FRACTIONS, MOST_VALUES, distinct, keys, merge
from distai_mpi.errors import ConfigError, DataError
from distai_mpi.train import evaluate
from distai_mpi.train.evaluation import make_loader

mpi = pytest.mark.mpi
pytestmark = pytest.mark.ranks(2)
KINDS = {  # two classes as people write them, in the order of their codes
    "0/1": [0, 1],
    "-1/1": [-1, 1],
    "1/2": [1, 2],
    "2/4": [2.0, 4.0],
    "halves": [0.5, 1.5],
    "bool": [False, True],
    "words": ["bad", "good"],
    "far": [-(2**40), 2**40],
}


def rows(count=240, classes=2, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 4))
    score = x @ rng.normal(size=(4, classes)) + rng.gumbel(size=(count, classes))
    return x, score.argmax(1)


@pytest.mark.parametrize("y", [[3, 3, 1], [0.5, -2], [1e300, 7], np.arange(70000), np.arange(2000) / 2, [], [2**60]])
@pytest.mark.parametrize("parts", [1, 3])
def test_distinct_labels_are_listed_up_to_a_limit(y, parts):
    y = np.asarray(y, float)
    summary = merge(summarize(part, 4) for part in np.array_split(y, parts))
    values = np.unique(y)
    many = values.size > (MOST_VALUES if summary.integral else MOST_FRACTIONS)
    assert summary.values == (None if many else tuple(values))
    assert distinct(y, y.min(initial=0), y.max(initial=0), 10**9) == tuple(values)


def test_missing_labels_are_counted_apart():
    summary = summarize(np.array([1, np.nan, 0, np.nan]), 4)
    assert (summary.rows, summary.missing, summary.values, summary.zero_one) == (4, 2, (0.0, 1.0), True)
    nothing = summarize(np.full(3, np.nan), 4)
    assert (nothing.missing, nothing.values, nothing.classes, nothing.low) == (3, (), None, np.inf)


def test_labels_are_matched_by_what_they_spell():
    assert keys(["1", "2.50", "good", "nan", "1_0"]) == [1.0, 2.5, "good", "nan", "1_0"]
    assert keys(["False", "TRUE"]) == [0.0, 1.0]
    assert keys(["False", "maybe"]) == ["False", "maybe"]
    assert recoded(np.array([3.0, 9, 4, 5]), None, (3.0, 5.0, 9.0)).tolist() == [0, 2, -1, 1]
    assert recoded(np.array([1, 0, 2]), ("x", "5", "3.0"), (3.0, 5.0, 9.0)).tolist() == [1, -1, 0]
    assert recoded(np.array([0, 1, 7]), None, ("False", "True")).tolist() == [0, 1, -1]
    assert recoded(np.array([2, 1, 0]), ("a", "b", "c"), ("c", "b")).tolist() == [0, 1, -1]
    assert recoded(np.array([1, 0, 2]), ("01", "1", "2.0"), ("01", "1", "2")).tolist() == [1, 0, 2]
    many = recoded(np.arange(300), None, tuple(map(float, range(300))))
    assert np.array_equal(many, np.arange(300))


@mpi
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["whole", "local"])
def test_two_classes_of_any_two_labels_train_as_0_and_1(comm, kind, way):
    x, codes = rows()
    ends = []
    for labels in (KINDS["0/1"], KINDS[kind]):
        y = np.array(labels)[codes]
        if way == "whole":
            shard = whole(Dataset(x, y), comm.rank, comm.size)
        else:
            counts = uneven(len(x), comm.size)
            start = sum(counts[: comm.rank])
            mine = slice(start, start + counts[comm.rank])
            shard = from_local(Dataset(x[mine], y[mine]), comm)
        (shard,) = encode_labels(shard, comm=comm)
        model = models.build("logistic", shard.labels, dtype=np.float64)
        w = fit(model, shard, comm, optimizer=optim.LBFGS(), l2=1e-2, tol=1e-8).w
        ends.append((w.tobytes(), evaluate(model, w, make_loader(model, shard, comm), comm)))
        assert list(shard.classes) == labels
        assert np.array_equal(np.array(shard.classes)[model.predict(w, x)], np.array(labels)[model.predict(w, x)])
    assert ends[0] == ends[1]


@mpi
@pytest.mark.parametrize("labels", [[3, 5, 9], [1, 2, 3], [-1, 0, 1], ["b", "a", "c"], [0, 1, 2], [0, 1, 3]])
def test_softmax_has_as_many_outputs_as_there_are_classes(comm, labels):
    x, codes = rows(classes=3)
    (shard,) = encode_labels(whole(Dataset(x, np.array(labels)[codes]), comm.rank, comm.size), comm=comm)
    assert list(shard.classes) == sorted(labels)
    assert models.build("softmax", shard.labels).widths == (4, 3)
    assert np.array_equal(np.array(shard.classes)[shard.dataset.y.astype(int)], np.array(labels)[codes])
    if labels == [0, 1, 2]:
        assert shard.dataset.y.dtype == np.int64, "labels that are codes already stay what they are"


@mpi
def test_ranks_that_see_other_words(comm):
    y = np.array([["good"], ["bad", "worse"], [], ["good", "bad"]][comm.rank % 4])
    shard = from_local(Dataset(np.zeros((len(y), 2)), y), comm)
    words = sorted({word for part in comm.allgather_object(y.tolist()) for word in part})
    assert shard.classes == tuple(words)
    assert [words[code] for code in shard.dataset.y] == y.tolist()
    if comm.size > 1:
        mixed = Dataset(np.zeros((1, 2)), [1.0] if comm.rank == 0 else ["good"])
        with pytest.raises(DataError, match="some ranks are words, and those of others numbers"):
            from_local(mixed, comm)
    read = [(["10", "x"], [1, 0, -1]), (None, [1.0, np.nan, 2.5]), (["x", "1.0"], [0, 1])][comm.rank % 3]
    codes, names = merge_words(read[0], np.array(read[1]), comm, "file")
    expected = {1: ["10", "x"], 2: ["1", "10", "2.5", "x"]}.get(comm.size, ["1", "10", "2.5", "x"])
    assert names == tuple(expected)
    ours = [["x", "10", None], ["1", None, "2.5"], ["x", "1"]][comm.rank % 3]
    assert [None if np.isnan(code) else names[int(code)] for code in codes] == ours
    assert merge_words(None, codes, comm, "file") == (codes, None)


def test_targets_of_a_regression_are_no_classes():
    x, y = np.zeros((5000, 1)), np.random.default_rng(0).normal(size=5000)
    with pytest.raises(DataError, match="more than 1,000 different values .* take models.Linear"):
        encode_labels(whole(Dataset(x, y)), comm=Alone())
    (shard,) = encode_labels(whole(Dataset(x, (8 * y).round() / 16)), comm=Alone())
    assert len(shard.classes) == len(np.unique((8 * y).round()))
    (shard,) = encode_labels(whole(Dataset(np.zeros((600, 1)), np.arange(600) // 4)), comm=Alone())
    assert shard.notes == ("data: 150 classes of 600 rows: labels that are values take models.Linear",)
    words = whole(Dataset(np.zeros((2, 1)), ["a", "b"]))
    with pytest.raises(DataError, match="squared loss needs targets that are numbers, but the labels are words"):
        models.build("linear", words.labels)
    with pytest.raises(DataError, match="labels 0 and 1.*from -1 to 1, 3 classes; softmax takes more"):
        models.build("logistic", whole(Dataset(np.zeros((3, 1)), [-1, 0, 1])).labels)
    with pytest.raises(DataError, match="from 1 to 2; data.encode_labels makes codes of two classes"):
        models.build("logistic", whole(Dataset(np.zeros((2, 1)), [1, 2])).labels)


@mpi
@pytest.mark.parametrize("weighted", [False, True])
def test_classes_of_test_rows_alone_count_as_wrong(comm, shared_path, weighted):
    x, codes = rows()
    y = np.array([3, 7])[codes]
    other = y[:100].copy()
    other[[4, 50, 99]] = 8
    weight = np.arange(240.0) if weighted else np.ones(240)
    if comm.rank == 0:
        np.savez(shared_path / "train.npz", x=x, y=y, weight=weight)
        np.savez(shared_path / "test.npz", x=x[:100], y=other, weight=weight[:100])
    comm.barrier()
    train, test = load(shared_path / "train.npz", comm, test=shared_path / "test.npz")
    train, test = encode_labels(train, test, comm=comm)
    assert (test.labels.unknown, test.labels.zero_one) == (3, True)
    told = (
        f"{shared_path / 'test.npz'}: 3 rows hold the label 8, which the training rows of {shared_path / 'train.npz'}"
    )
    assert test.notes[0].startswith(told)
    for model in (models.Logistic(4), models.Softmax(4, 2)):
        result = fit(model, train, comm, test=test, optimizer=optim.LBFGS(), tol=1e-4)
        answers = np.array(train.classes)[model.predict(result.w, x[:100].astype(np.float32))]
        assert result.test_accuracy == pytest.approx(np.average(answers == other, weights=weight[:100]))
        assert result.test_loss is None
        assert result.metrics == {"accuracy": result.test_accuracy}
        assert encode(test, train.classes, comm, "") is test
    with pytest.raises(ConfigError, match="metric loss has no meaning .* choose accuracy"):
        fit(model, train, comm, valid=test, epochs=1)
    assert fit(model, train, comm, valid=test, epochs=1, metric="accuracy").best_epoch == 1


@mpi
@pytest.mark.parametrize("missing", [np.nan, -1.0])
def test_test_rows_without_labels_give_no_accuracy(comm, shared_path, missing):
    x, codes = rows()
    if comm.rank == 0:
        np.savez(shared_path / "train.npz", x=x, y=codes.astype(float))
        np.savez(shared_path / "none.npz", x=x[:50], y=np.full(50, missing))
        np.savez(shared_path / "some.npz", x=x[:50], y=np.where(np.arange(50) < 9, missing, codes[:50]))
    comm.barrier()
    for shuffle in ("global", "local"):
        train, test = load(shared_path / "train.npz", comm, test=shared_path / "none.npz", shuffle=shuffle)
        train, test = encode_labels(train, test, comm=comm)
        assert test.labels.unlabelled
        assert test.notes == (f"{test.name}: the rows have no labels, so there is no accuracy and no loss",)
        result = fit(models.Logistic(4), train, comm, test=test, epochs=1)
        assert (result.test_accuracy, result.test_loss, result.metrics) == (None, None, {})
    if np.isnan(missing):
        for options in ({"test": shared_path / "some.npz"}, {"valid": str(shared_path / "none.npz")}):
            with pytest.raises(DataError, match=r"(some|none).npz: y holds nan in row 0"):
                load_sets(shared_path / "train.npz", comm, **options)
        return
    train, test = load(shared_path / "train.npz", comm, test=shared_path / "some.npz")
    _, test = encode_labels(train, test, comm=comm)
    assert test.labels.unknown == 9
    assert "9 rows hold the label -1" in test.notes[0]
    assert "stands for a row without a label" in test.notes[0]


def command(*words, status=0, **kwargs):
    done = run_here(*words, **kwargs)
    assert done.returncode == status, done.stderr
    return done if status == 0 else done.stderr


@mpi
@pytest.mark.parametrize("model", ["logistic", "softmax", "mlp"])
def test_the_commands_speak_of_labels(comm, shared_path, model):
    x, codes = rows()
    labels = [2, 4] if model == "logistic" else [2, 4.5, 9]
    y = np.array(labels)[rows(classes=len(labels))[1]]
    if comm.rank == 0:
        np.savetxt(
            shared_path / "train.csv", np.column_stack([x, y]), delimiter=",", header="a,b,c,d,kind", comments=""
        )
        np.savetxt(shared_path / "new.csv", x[:, [2, 0, 3, 1]], delimiter=",", header="c,a,d,b", comments="")
        np.savez(shared_path / "test.npz", x=x, y=np.where(codes == 0, 77, y))
    comm.barrier()
    at = {"cwd": shared_path}
    flags = ("--model", model, "--optimizer", "lbfgs", "--l2", "0.01", "--test-fraction", 0)
    done = command("train", "--data", "train.csv", *flags, "--test-data", "test.npz", "--out", "run", "--json", **at)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["classes"] == labels
    assert (result["test_loss"], result["metrics"]) == (None, {"accuracy": result["test_accuracy"]})
    assert done.stderr.count("test.npz: its columns have no names") == 1
    assert done.stderr.count("test.npz: ") == 2
    command("predict", "run", "--data", "new.csv", "--out", "answers.npy", **at)
    answers = np.load(shared_path / "answers.npy")
    assert answers.dtype == (np.int64 if model == "logistic" else np.float64)
    done = command("evaluate", "run", "--data", "train.csv", "--json", **at)
    assert json.loads(done.stdout)["accuracy"] == np.mean(answers == y)
    assert np.mean(answers == np.where(codes == 0, 77, y)) == result["test_accuracy"]
    done = command("evaluate", "run", "--data", "test.npz", "--json", **at)
    assert json.loads(done.stdout)["accuracy"] == result["test_accuracy"]
    assert "hold the label 77, which the model was not trained on" in done.stderr


def test_logistic_regression_of_other_classes_than_two(tmp_path):
    flags = ("--model", "logistic", "--data", "a.npz", "--epochs", 1)
    for y, told in (
        ([-1, 0, 1], "the labels are -1, 0, 1: take --model softmax; -1 beside 0 and 1 often stands for rows without"),
        (
            [0.5, 2, 1],
            "a.npz: this model is of two classes, but the labels are 0.5, 1, 2: take --model softmax\n",
        ),
        ([5, 5, 5], "the labels are 5 alone; name the column of the labels by --label"),
    ):
        np.savez(tmp_path / "a.npz", x=np.zeros((3, 2)), y=y)
        assert told in command("train", *flags, cwd=tmp_path, status=2)


@mpi
def test_a_run_does_not_go_on_with_other_classes_or_names(comm, shared_path):
    x, codes = rows()

    def write(y, names):
        if comm.rank == 0:
            table = np.column_stack([x, y])
            np.savetxt(shared_path / "a.csv", table, delimiter=",", header=names, comments="")
        comm.barrier()

    def train(*more, status=0):
        flags = ("--data", "a.csv", "--model", "logistic", "--out", "run", "--checkpoint-every", 1, *more)
        return command("train", *flags, cwd=shared_path, status=status)

    write(2 * codes + 2, "a,b,c,d,y")
    train("--epochs", 1)
    write(3 * codes + 2, "a,b,c,d,y")
    assert "classes 2.0, 4.0, here 2.0, 5.0" in train("--epochs", 2, "--resume", status=2)
    write(2 * codes + 2, "a,c,b,d,y")
    assert "feature names a, b, c, d, here a, c, b, d" in train("--epochs", 2, "--resume", status=2)
    write(2 * codes + 2, "a,b,c,d,y")
    train("--epochs", 2, "--resume")
