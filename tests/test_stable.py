"""What other programs rely on (the design's stable list): imports, flags, and the keys of result.json, by hand."""

import json

import numpy as np
from commands import run_here

from distai_mpi.train import Result

FLAGS = """
    --data --test-data --model --hidden --activation --dropout --no-bias --optimizer --lr --global-batch-size
    --batch-size --epochs --max-iter --tol --l2 --dtype --seed --shuffle --allreduce --device --out --resume --config
""".split()
MODELS = {"linear", "logistic", "softmax", "mlp"}
OPTIMIZERS = {"gd", "sgd", "momentum", "nesterov", "adam", "average", "lbfgs", "newton-cg", "newton", "auto"}
ALGORITHMS = {"native", "ring", "rabenseifner", "shared", "hierarchical", "auto", "tree", "recursive_doubling"}
KEYS = """
    schema status stop_reason data model optimizer ranks nodes device dtype allreduce seed global_batch_size parameters
    train_loss test_loss test_accuracy metrics epochs iterations seconds samples_per_second rounds bytes_moved converged
""".split()
MOST_SHOWN = 40  # flags of train --help


def test_names_of_programs():
    from distai_mpi import Communicator, Objective, data, fit, models, optim

    assert callable(fit)
    assert {kind.__name__ for kind in (Communicator, Objective)} == {"Communicator", "Objective"}
    assert callable(data.load)
    assert {"Linear", "Logistic", "Softmax", "MLP"} <= set(dir(models))
    assert {"GradientDescent", "SGD", "Momentum", "Nesterov", "Adam", "LBFGS", "NewtonCG", "Newton"} <= set(dir(optim))
    assert Result(np.zeros(2)).w.tolist() == [0, 0]


def test_flags():
    from distai_mpi.cli.train import command

    flags = {word: param for param in command.params for word in (*param.opts, *param.secondary_opts)}
    assert set(FLAGS) <= set(flags)
    for flag, names in (("--model", MODELS), ("--optimizer", OPTIMIZERS), ("--allreduce", ALGORITHMS)):
        assert names <= set(flags[flag].type.choices)
    assert flags["--model"].default == "mlp"
    assert flags["--data"].default == "mnist"


def test_help_shows_what_most_need_and_help_all_the_rest():
    from distai_mpi.cli.train import command

    shown = run_here("train", "--help").stdout
    assert shown.count("\n  -") <= MOST_SHOWN
    everything = run_here("train", "--help-all").stdout
    assert all(f"{max(param.opts, key=len)}" in everything for param in command.params)
    assert run_here("train", "--help").stdout == shown


def test_keys_of_the_result(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 3)), rng.integers(0, 2, 60)
    np.savez(tmp_path / "rows.npz", x=x, y=y)
    done = run_here(
        "train", "--data", tmp_path / "rows.npz", "--model", "softmax", "--epochs", 1, "--out", tmp_path / "run"
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert set(KEYS) <= set(result)
    assert result["status"] == "completed"
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1
    with np.load(tmp_path / "run" / "model.npz", allow_pickle=False) as model:
        assert model.files
