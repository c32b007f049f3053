"""A trained model in a process without MPI: arrays, tables by name, and files in blocks."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

import distai_mpi
from distai_mpi import models
from distai_mpi.cli import main, predict
from distai_mpi.data.feature_blocks import feature_blocks
from distai_mpi.errors import ConfigError, DataError

RNG = np.random.default_rng(7)
X = RNG.normal(3.0, 2.0, (300, 4))
NAMES = ("a", "b", "c", "d")


def saved(path, model, w, **kept):
    models.save_model(str(path / "model.npz"), model, w, kept)
    return distai_mpi.load(path)


def logistic(path, dtype=np.float64, **kept):
    model = models.Logistic(4, dtype=dtype)
    w = np.array([0.5, -1.0, 0.25, 2.0, -0.5], dtype)
    return saved(path, model, w, **kept), w


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_two_classes_in_closed_form(tmp_path, dtype):
    mean, deviation = X.mean(axis=0), X.std(axis=0)
    p, w = logistic(tmp_path, dtype, mean=mean, deviation=deviation, classes=["no", "yes"])
    z = ((X - mean) / deviation).astype(dtype) @ w[:4] + w[4]
    assert p.decision_function(X).dtype == p.predict_proba(X).dtype == dtype
    tight = 1e-6 if dtype == np.float32 else 1e-14
    assert p.decision_function(X) == pytest.approx(z, abs=20 * tight)
    proba = p.predict_proba(X)
    assert proba[:, 1] == pytest.approx(1 / (1 + np.exp(-z)), rel=1e3 * tight)
    assert proba.sum(axis=1) == pytest.approx(1, rel=tight)
    assert p.predict(X).tolist() == np.where(z > 0, "yes", "no").tolist()
    assert p.classes.tolist() == ["no", "yes"]


def test_softmax_of_large_logits_and_labels_of_whole_numbers(tmp_path):
    model = models.Softmax(4, 3, bias=False, dtype=np.float64)
    w = 500 * RNG.normal(size=12)
    p = saved(tmp_path, model, w, classes=[2.0, 4.0, 7.0])
    z = X @ next(iter(model.layout.views(w).values()))
    z -= z.max(axis=1, keepdims=True)
    assert p.predict_proba(X) == pytest.approx(np.exp(z) / np.exp(z).sum(axis=1, keepdims=True), abs=1e-12)
    assert p.predict(X).tolist() == np.array([2, 4, 7])[z.argmax(axis=1)].tolist()
    assert p.decision_function(X).shape == (300, 3)


def test_values_have_no_probabilities(tmp_path):
    w = np.arange(5.0)
    p = saved(tmp_path, models.Linear(4, dtype=np.float64), w)
    assert p.predict(X) == pytest.approx(X @ w[:4] + 4)
    assert p.classes is None
    with pytest.raises(ConfigError, match="gives no probabilities; use decision_function"):
        p.predict_proba(X)


def test_tables_are_taken_by_name(tmp_path):
    p, _ = logistic(tmp_path, column_names=NAMES)
    wanted = p.decision_function(X)
    table = {name: X[:, i] for i, name in reversed(list(enumerate(NAMES)))} | {"other": ["w"] * 300}
    assert np.array_equal(p.decision_function(table), wanted)
    named = np.zeros(300, [(name, float) for name in reversed(NAMES)])
    for i, name in enumerate(NAMES):
        named[name] = X[:, i]
    assert np.array_equal(p.decision_function(named), wanted)
    with pytest.raises(DataError, match="x has no column 'd': did you mean 'dd'"):
        p.predict({"a": [1], "b": [1], "c": [1], "dd": [1]})
    with pytest.raises(DataError, match="column 'c' holds <U1, not numbers"):
        p.predict({"a": [1], "b": [1], "c": ["x"], "d": [1]})


def test_missing_values_are_filled_and_bytes_scaled(tmp_path):
    values = np.array([1.0, 2.0, 3.0])
    model = models.Linear(4, dtype=np.float64)
    w = np.array([1.0, 10.0, 100.0, 1000.0, 0.0])
    p = saved(tmp_path, model, w, fill=values, indicators=np.array([1]), missing="mean")
    assert p.predict(np.array([[np.nan, np.nan, 7.0], [4.0, 5.0, 6.0]])).tolist() == [1721.0, 654.0]
    with pytest.raises(DataError, match="x holds inf in row 0, column 2"):
        p.predict(np.array([[1.0, 1.0, np.inf]]))
    scaled = saved(tmp_path, model, w, byte_scale=0.5)
    assert scaled.predict(np.full((1, 4), 2, np.uint8)).tolist() == [1111.0]
    assert scaled.predict(np.full((1, 4), 2.0)).tolist() == [2222.0]


def test_rows_that_do_not_fit_are_refused(tmp_path):
    p, _ = logistic(tmp_path)
    with pytest.raises(DataError, match=r"shape \(300, 3\), but the model takes \(rows, 4\)"):
        p.predict(X[:, :3])
    with pytest.raises(DataError, match=r"one row: x.reshape\(1, -1\)"):
        p.predict(X[0])
    with pytest.raises(DataError, match="x holds nan in row 1, column 0"):
        p.predict(np.array([[1.0] * 4, [np.nan] + [1.0] * 3]))
    with pytest.raises(DataError, match="trained on columns without names"):
        p.predict({"a": [1.0]})
    assert p.predict(X[:0]).shape == (0,)
    assert p.predict_proba(X[:0]).shape == (0, 2)


class Own:
    """A model without a base class: one number for all rows."""

    layout, dtype = models.Linear(1, bias=False, dtype=np.float64).layout, np.dtype(np.float64)
    widths, target_dtype = (1, 1), np.dtype(np.float64)

    def predict(self, w, x):
        return x[:, 0] ** w[0]


def test_a_model_of_ones_own_is_handed_over(tmp_path):
    path = str(tmp_path / "model.npz")
    models.save_model(path, Own(), np.array([3.0]))
    with pytest.raises(DataError, match=r"holds a model of your own: build it .* distai_mpi.load\('.*', model\)"):
        distai_mpi.load(tmp_path)
    p = distai_mpi.load(tmp_path, Own())
    assert p.predict(np.array([[2.0], [3.0]])).tolist() == [8.0, 27.0]
    with pytest.raises(ConfigError, match="no method outputs"):
        p.predict_proba(np.array([[2.0]]))


@pytest.mark.parametrize("kind", ["npy", "npz", "csv", "svm"])
def test_blocks_are_the_rows_of_the_file(tmp_path, kind):
    path, x = tmp_path / f"x.{kind}", np.round(X, 3)
    if kind == "npy":
        np.save(path, x)
    elif kind == "npz":
        np.savez_compressed(path, x=x)
    elif kind == "csv":
        np.savetxt(path, x, delimiter=",", fmt="%.3f", header="a,b,c,d", comments="")
    else:
        path.write_text("".join("0 " + " ".join(f"{i + 1}:{v}" for i, v in enumerate(row)) + "\n" for row in x))
    blocks = list(feature_blocks(str(path), features=4, base=1, block_bytes=1000))
    assert len(blocks) > 3
    assert np.array_equal(np.concatenate([block.dataset.x for block in blocks]), x)
    assert max(block.dataset.x.nbytes for block in blocks) <= 4000


def test_a_value_that_is_no_number_is_told_by_its_row_in_the_file(tmp_path):
    x = X.copy()
    x[250, 2] = np.inf
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(DataError, match="x holds inf in row 250, column 2"):
        list(feature_blocks(str(tmp_path / "x.npy"), block_bytes=1000))


def run(*words):
    done = CliRunner().invoke(main.cli, [str(word) for word in words])
    return done


def test_the_command_writes_labels_probabilities_and_margins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    p, _ = logistic(tmp_path, classes=["no, never", "yes"])
    np.save("x.npy", X)
    assert run("predict", tmp_path, "x.npy", "--out", "l.npy").output == "300 predictions → l.npy\n"
    assert np.array_equal(np.load("l.npy"), p.predict(X))
    run("predict", tmp_path, "--data", "x.npy", "--proba", "--out", "p.npy")
    assert np.array_equal(np.load("p.npy"), p.predict_proba(X))
    for flag, method, head in (
        ("--proba", p.predict_proba, ["no, never", "yes"]),
        ("--decision", p.decision_function, ["value"]),
    ):
        assert run("predict", tmp_path, "x.npy", flag, "--out", "o.csv").exit_code == 0
        with open("o.csv", newline="") as file:
            first, *rows = csv.reader(file)
        assert first == head
        assert np.array_equal(np.array(rows, float).squeeze(), method(X)), "written so that the same number is read"
    run("predict", tmp_path, "x.npy", "--out", "l.csv")
    with open("l.csv", newline="") as file:
        assert [row[0] for row in csv.reader(file)] == ["label", *p.predict(X)]


def test_what_is_written_in_blocks_is_whole_or_not_there(tmp_path, monkeypatch):
    with open(tmp_path / "o.npy", "wb") as file:
        predict.write_npy(file, (X[i : i + 7] for i in range(0, 300, 7)))
    assert np.array_equal(np.load(tmp_path / "o.npy"), X)
    monkeypatch.chdir(tmp_path)
    logistic(tmp_path)
    x = X.copy()
    x[299, 0] = np.nan
    np.save("x.npy", x)
    assert isinstance(run("predict", tmp_path, "x.npy", "--out", "n.npy").exception, DataError)
    assert not (tmp_path / "n.npy").exists()
    assert not (tmp_path / "n.npy.tmp").exists()


def test_the_command_refuses_what_excludes_each_other(tmp_path):
    assert "name the rows once" in str(run("predict", tmp_path, "a", "--data", "b", "--out", "x.npy").output)
    assert "FILE.npy or FILE.csv" in str(run("predict", tmp_path, "a", "--out", "x.txt").exception)
    both = run("predict", tmp_path, "a", "--proba", "--decision", "--out", "x.npy")
    assert "--proba and --decision exclude each other" in str(both.exception)


PROGRAM = """
import json, sys
import distai_mpi
from distai_mpi.cli import main
p = distai_mpi.load(".")
p.predict_proba([[1.0, 2.0, 3.0, 4.0]])
status = [main.main(["predict", ".", "x.npy", "--out", "o.npy"]), main.main(["plot", "missing", "--out", "x.png"])]
def helps(group, words):
    import click
    with click.Context(group) as context:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            main.main([*words, name, "--help"])
            if isinstance(command, click.Group):
                helps(command, [*words, name])
helps(main.cli, [])
main.main(["--help"])
print(json.dumps([status, "mpi4py.MPI" in sys.modules]))
"""


def test_neither_predictions_nor_plots_nor_help_load_mpi(tmp_path):
    logistic(tmp_path)
    np.save(tmp_path / "x.npy", X)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [[0, 2], False], done.stderr
