"""Data files of every format on the command line: train, evaluate, predict, and bench read."""

import importlib.util
import json

import numpy as np
import pytest
from commands import run_here
from test_tables import TABLES, write_all

from distai_mpi.cli.main import main

ROWS = 200
X = np.random.default_rng(0).normal(size=(ROWS, 6))
Y = (X @ np.arange(6) > 0).astype(np.int64)


def run(folder, *words, status=0):
    done = run_here(*words, cwd=folder)
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of the same rows, and what training on the .npz gives."""
    path = tmp_path_factory.mktemp("data")
    write_all(path, X, Y, np.ones(ROWS))
    np.savez(path / "rows.npz", x=X, y=Y, weight=np.ones(ROWS))
    run(path, *TRAIN, "--data", "rows.npz", "--out", "npz")
    run(path, "predict", "npz", "--data", "rows.npz", "--out", "npz.npy")
    return path


TRAIN = ("train", "--model", "logistic", "--optimizer", "gd", "--epochs", "30", "--dtype", "float64", "-q")


@pytest.mark.parametrize("kind", ["csv.gz", "svm", "packed.h5", "parquet"])
def test_train_evaluate_and_predict(folder, kind):
    columns = ("--label", "y", "--weight", "w") if kind in TABLES else ()
    run(folder, *TRAIN, "--data", f"rows.{kind}", "--out", kind, *columns)
    ours, expected = (json.loads((folder / name / "result.json").read_text()) for name in (kind, "npz"))
    for field in ("train_loss", "test_loss", "test_accuracy"):
        assert ours[field] == pytest.approx(expected[field], rel=1e-12)
    assert ours["test_accuracy"] > 0.7
    again = json.loads(run(folder, "evaluate", kind, "--json"))
    assert again["loss"] == pytest.approx(expected["test_loss"], rel=1e-12)
    run(folder, "predict", kind, "--data", f"rows.{kind}", "--out", f"{kind}.npy", *columns)
    assert np.array_equal(np.load(folder / f"{kind}.npy"), np.load(folder / "npz.npy"))


def test_columns_that_were_trained_on_are_kept(folder):
    run(folder, *TRAIN, "--data", "rows.csv", "--out", "kept", "--label", "y")
    (folder / "other.csv").write_text((folder / "rows.csv").read_text())
    given = [
        json.loads(run(folder, "evaluate", "kept", "--data", f"{name}.csv", "--json")) for name in ("rows", "other")
    ]
    assert given[0]["loss"] == given[1]["loss"]
    assert "the model takes 7" in run(folder, "evaluate", "kept", "--data", "rows.npz", status=2)


def test_fewer_features_than_the_model_has(folder):
    run(folder, *TRAIN, "--data", "rows.svm", "--out", "wide")
    (folder / "narrow.svm").write_text("1 1:2.5\n0 2:1 3:4\n")
    assert json.loads(run(folder, "evaluate", "wide", "--data", "narrow.svm", "--json"))["count"] == 2
    run(folder, "predict", "wide", "--data", "narrow.svm", "--out", "narrow.npy")
    assert np.load(folder / "narrow.npy").shape == (2,)
    (folder / "broad.svm").write_text("1 9:2.5\n")
    for command in (("evaluate", "wide"), ("predict", "wide", "--out", "broad.npy")):
        message = run(folder, *command, "--data", "broad.svm", status=2)
        assert "features" in message
        assert "Traceback" not in message


def test_faults_are_told_once(folder, run_command):
    (folder / "bad.csv").write_text("1,2,0\n" * 50 + "1,x,0\n")
    done = run_command(3, *TRAIN, "--data", "bad.csv", cwd=folder)
    assert done.returncode != 0
    assert done.stderr.count("bad.csv: line 51, column 1") == 1
    message = run(folder, *TRAIN, "--data", "rows.npz", "--label", "z", status=2)
    assert "rows.npz: --label z: there is no such variable" in message
    message = run(folder, "predict", "npz", "--data", "rows.csv", "--weight", "w", "--out", "a.npy", status=2)
    assert "name the column of the labels with --label" in message


def test_bench_read(folder):
    for name in ("made.csv", "made.svm"):
        words = ("bench", "read", name, "--make", "50,3", "--ranks", "1", "--repeats", "1", "--json", "report.json")
        peer = ("--against", "numpy") if name == "made.csv" else ()
        assert "MB/s" in run(folder, *words, *peer, "--launcher", "env N={ranks}")
        report = json.loads((folder / "report.json").read_text())
        assert [row["command"] for row in report["rows"]] == ["distai-mpi, 1 rank", *peer[1:], "reading the bytes"]
        assert all(row["seconds"] > 0 and row["bytes_per_second"] > 0 for row in report["rows"])
    assert len((folder / "made.csv").read_text().splitlines()) == 50
    assert "is there already" in run(folder, "bench", "read", "made.csv", "--make", "5,3", status=2)
    assert "two numbers" in run(folder, "bench", "read", "new.csv", "--make", "5", status=2)
    assert "no such file" in run(folder, "bench", "read", "absent", status=2)
    assert "no CSV file" in run(folder, "bench", "read", "made.svm", "--against", "numpy", status=2)
    (folder / "hurt.csv").write_text("1,2\nx,1\n")
    told = run(folder, "bench", "read", "hurt.csv", "--ranks", "1", "--repeats", "1", status=2)
    assert "hurt.csv: line 2, column 0" in told
    assert "Traceback" not in told


def test_bench_read_names_a_peer_that_is_missing(folder, capfd, monkeypatch):
    (folder / "a.svm").write_text("1 1:2\n")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["bench", "read", str(folder / "a.svm"), "--against", "sklearn"]) == 2
    assert "--against sklearn: it is not installed" in capfd.readouterr().err


def test_features_of_libsvm_rows_count_as_they_did_in_training(folder):
    rows = "".join(f"{y} 0:{x[0]!r} 1:{x[1]!r} 2:{x[2]!r}\n" for x, y in zip(X.tolist(), Y, strict=True))
    (folder / "zero.svm").write_text(rows)
    run(folder, *TRAIN, "--data", "zero.svm", "--out", "zero")
    for name, first in (("with", "0 0:0 1:1 2:-3\n"), ("without", "0 1:1 2:-3\n")):
        (folder / f"{name}.svm").write_text(first + "1 1:-2 2:4\n")
        run(folder, "predict", "zero", "--data", f"{name}.svm", "--out", f"{name}.npy")
    assert np.array_equal(np.load(folder / "with.npy"), np.load(folder / "without.npy"))
    losses = [
        json.loads(run(folder, "evaluate", "zero", "--data", f"{name}.svm", "--json"))["loss"]
        for name in ("with", "without")
    ]
    assert losses[0] == losses[1]


def test_training_rows_are_those_without_the_validation_rows(folder):
    run(folder, *TRAIN, "--data", "rows.npz", "--valid", "0.25", "--out", "valid")
    told = json.loads(run(folder, "evaluate", "valid", "--rows", "train", "--json"))
    assert told["count"] == ROWS * (1 - 0.25 - 0.1)
    assert told["loss"] == pytest.approx(json.loads((folder / "valid" / "result.json").read_text())["train_loss"])


@pytest.mark.parametrize("ranks", [1, 2])
def test_standardized_features_are_the_same_from_every_format(folder, run_command, ranks):
    """Large numbers with small differences, which float32 cannot tell apart, give the same weights bit for bit."""
    rng = np.random.default_rng(1)
    x = np.column_stack([1.7e9 + rng.integers(0, 600, 300), rng.normal(size=300)])
    y = 0.05 * (x[:, 0] - 1.7e9) + x[:, 1]
    np.savez(folder / "far.npz", x=x, y=y)
    (folder / "far.csv").write_text(
        "".join(f"{a!r},{b!r},{c!r}\n" for (a, b), c in zip(x.tolist(), y.tolist(), strict=True))
    )
    (folder / "far.svm").write_text(
        "".join(f"{c!r} 1:{a!r} 2:{b!r}\n" for (a, b), c in zip(x.tolist(), y.tolist(), strict=True))
    )
    weights = []
    for kind in ("npz", "csv", "svm"):
        words = ("train", "-q", "--model", "linear", "--optimizer", "newton", "--standardize", "--test-fraction", "0")
        done = run_command(ranks, *words, "--data", f"far.{kind}", "--out", f"far-{kind}", cwd=folder)
        assert done.returncode == 0, done.stderr
        with np.load(folder / f"far-{kind}" / "model.npz") as file:
            weights.append([file[name].tobytes() for name in sorted(file.files) if name not in ("extra", "config")])
        told = json.loads(run(folder, "evaluate", f"far-{kind}", "--rows", "train", "--json"))
        assert told["metrics"]["r2"] > 0.9999
        run(
            folder,
            "predict",
            f"far-{kind}",
            "--data",
            f"far.{kind}",
            "--out",
            f"far-{kind}.npy",
            *(("--label", "2") if kind == "csv" else ()),
        )
        assert np.array_equal(np.load(folder / f"far-{kind}.npy"), np.load(folder / "far-npz.npy"))
    assert weights[0] == weights[1] == weights[2]
