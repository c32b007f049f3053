"""Settings as TOML files, there and back, and what is refused in them."""

import json

import click
import numpy as np
import pytest
from commands import run_here

from distai_mpi.cli.config import flag_name
from distai_mpi.cli.main import main
from distai_mpi.cli.train import command

mpi = pytest.mark.mpi
pytestmark = pytest.mark.ranks(2)


def error_of(capfd, *words):
    assert main(["train", *map(str, words)]) == 2
    text = capfd.readouterr().err
    assert text.count("distai-mpi: error:") == 1
    return text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epochs = 3\nlearning-rate = 0.1\n", ["line 2", "learning-rate", "no flag"]),
        ("# a comment\n\nepoch = 3\n", ["line 3", "epoch", "did you mean epochs"]),
        ("epochs = 'many'\n", ["line 1", "epochs", "'many'"]),
        ("epochs = 2.5\n", ["line 1", "epochs", "2.5", "whole number"]),
        ("lr = 0.1\nepochs = 0\n", ["line 2", "epochs", "0"]),
        ("bias = 1\n", ["line 1", "bias", "true or false"]),
        ("lr = true\n", ["line 1", "lr", "true is not a number"]),
        ("lr = 'fast'\n", ["line 1", "lr", "'fast' is not a number"]),
        ("epochs = 2\nlr = nan\n", ["line 2", "lr", "nan is no finite number"]),
        ("epochs = true\n", ["line 1", "epochs", "true is not a whole number"]),
        ("out = false\n", ["line 1", "out", "false is not what this flag takes: give a text"]),
        ("seed = 1\nhidden = [128, 0]\n", ["line 2", "hidden", "128,0"]),
        ("model = 'forest'\n", ["line 1", "model", "forest", "mlp"]),
        ("[model]\nhidden = 3\n", ["line 1", "model", "tables"]),
        ("epochs = = 3\n", ["no TOML", "line 1"]),
        ("epochs = 1\nepochs = 2\n", ["no TOML", "line 2"]),
        ("batch-size = 3\nlr = 0.1\nbatch_size = 4\n", ["line 3", "line 1", "batch-size is the same flag"]),
        ("batch-size = 3\nglobal-batch-size = 4\n", ["exclude each other"]),
        ("patience = 3\n", ["--patience", "--valid"]),
        ("weight-decay = 0.1\n", ["--weight-decay", "adamw"]),
        ("optimizer = 'adagrad'\nl1 = 0.1\n", ["ftrl or lbfgs or newton-cg or auto, not adagrad"]),
        ("optimizer = 'ftrl'\nl1 = -0.1\n", ["line 2", "l1", "-0.1"]),
        ("config = 'other.toml'\n", ["line 1", "config", "no flag"]),
    ],
)
def test_what_is_refused(tmp_path, capfd, text, words):
    file = tmp_path / "run.toml"
    file.write_text(text)
    told = error_of(capfd, "--config", file)
    for word in words:
        assert word in told
    if "line" in words[0]:
        assert str(file) in told


def test_files_that_cannot_be_read(tmp_path, capfd):
    assert "cannot be read" in error_of(capfd, "--config", tmp_path / "none.toml")
    assert "cannot be read" in error_of(capfd, "--config", tmp_path)
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    assert "UTF-8" in error_of(capfd, "--config", tmp_path / "bytes.toml")


def test_a_byte_order_mark_is_no_setting(tmp_path, capfd):
    (tmp_path / "run.toml").write_text("epochs = 'many'\n", encoding="utf-8-sig")
    assert "line 1: epochs: 'many' is not a whole number" in error_of(capfd, "--config", tmp_path / "run.toml")


def test_every_flag_has_a_name_of_its_own():
    names = [flag_name(p) for p in command.params if isinstance(p, click.Option)]
    assert len(names) == len(set(names))
    assert all(len(name) > 1 for name in names)


@mpi
def test_a_run_can_be_repeated_from_its_settings(comm, shared_path):
    flags = ["--optimizer", "adamw", "--weight-decay", "0.02", "--schedule", "cosine", "--hidden", "16,8", "--no-bias"]
    flags += ["--batch-size", "300", "--epochs", "1", "--valid", "0.9", "--dtype", "float64", "-q"]
    first = run_here("train", *flags, "--out", shared_path / "a")
    assert first.returncode == 0, first.stderr
    again = run_here("train", "--config", shared_path / "a" / "settings.toml", "--out", shared_path / "b", ranks=1)
    assert again.returncode == 0, again.stderr
    one, other = (json.loads((shared_path / name / "result.json").read_text()) for name in "ab")
    assert other["train_loss"] == pytest.approx(one["train_loss"], rel=1e-10)
    assert one["global_batch_size"] == other["global_batch_size"] == 300 * comm.size
    a, b = ((shared_path / name / "settings.toml").read_text().replace(str(shared_path / name), "") for name in "ab")
    assert a == b


def test_flags_beat_the_file_also_where_they_exclude_each_other(tmp_path):
    np.savez(tmp_path / "rows.npz", x=np.random.default_rng(0).normal(size=(2000, 4)), y=np.arange(2000) % 3)
    file = tmp_path / "run.toml"
    text = "model = 'softmax'\noptimizer = 'sgd'\nglobal_batch_size = 500\nepochs = 2\nquiet = true\n"
    file.write_text(text + f"data = '{tmp_path / 'rows.npz'}'\n")
    done = run_here("train", "--config", file, "--batch-size", 1000, "--epochs", 1, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["global_batch_size"], result["epochs"], result["optimizer"]) == (1000, 1, "sgd")


@mpi
def test_l1_of_a_file_gives_zeros(shared_path, comm):
    if comm.rank == 0:
        rng = np.random.default_rng(0)
        x = rng.normal(size=(400, 20))
        np.savez(shared_path / "rows.npz", x=x, y=(x[:, 0] + 0.1 * rng.normal(size=400) > 0).astype(int))
        lines = ["data = 'rows.npz'", "model = 'logistic'", "optimizer = 'ftrl'", "l1 = 0.5", "lr = 1.0", "out = 'run'"]
        (shared_path / "run.toml").write_text("\n".join([*lines, "quiet = true", ""]))
    comm.barrier()
    done = run_here("train", "--config", "run.toml", cwd=shared_path)
    assert done.returncode == 0, done.stderr
    with np.load(shared_path / "run" / "model.npz") as file:
        weights = next(file[name] for name in file.files if name.endswith("weight")).ravel()
    assert 15 < np.count_nonzero(weights == 0) < 20
    assert abs(weights[0]) == np.abs(weights).max()
    assert "l1 = 0.5" in (shared_path / "run" / "settings.toml").read_text()


@mpi
def test_averaging_and_early_stopping_by_flags(shared_path):
    words = "--optimizer average --inner-optimizer momentum --lr 0.05 --inner-state reset --sync-every 20"
    words += " --outer-lr 0.9 --outer-momentum 0.3 --batch-size 100 --epochs 2"
    words += " --valid 0.2 --metric accuracy --patience 1 --hidden 32"
    done = run_here("train", *words.split(), "--out", shared_path / "run")
    assert done.returncode == 0, done.stderr
    result = json.loads((shared_path / "run" / "result.json").read_text())
    assert result["optimizer"] == "average"
    assert result["best_epoch"] in (1, 2)
    assert result["metrics"]["accuracy"] == result["test_accuracy"] > 0.85
    line = json.loads((shared_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert {"valid_loss", "valid_accuracy"} <= set(line)
