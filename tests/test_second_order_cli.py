"""Second-order methods by the command line: what is printed, what is refused, and what the help tells."""

import json
import re

import numpy as np
import pytest
from commands import run_here
from second_order import rows_for

from distai_mpi.cli.main import main
from distai_mpi.cli.settings import check_flags
from distai_mpi.cli.train import command

mpi = pytest.mark.mpi
pytestmark = pytest.mark.ranks(2)


@mpi
def test_what_the_command_prints_of_a_searching_method(comm, shared_path):
    x, y = rows_for("logistic")
    if comm.rank == 0:
        np.savez(shared_path / "rows.npz", x=x, y=y)
        np.savez(shared_path / "huge.npz", x=np.clip(1e38 * x, -3e38, 3e38), y=y)
    comm.barrier()
    words = ("train", "--data", shared_path / "rows.npz", "--model", "logistic", "--dtype", "float64")
    done = run_here(*words, "--l2", 0.01, "--optimizer", "auto", "--out", shared_path / "run")
    assert done.returncode == 0, done.stderr
    first, *lines, last = done.stdout.splitlines()
    result = json.loads((shared_path / "run" / "result.json").read_text())
    records = [json.loads(line) for line in (shared_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert first == f"optimizer auto: {result['optimizer']}"
    assert len(lines) == len(records) == result["iterations"]
    assert re.match(r"iteration 1/100  loss 0\.\d{7,}  gap about \d\.\de-\d\d  \d+ evaluation", lines[0])
    assert f"{result['train_loss']:#.8g}" in lines[-1]
    assert f"  gap about {result['relative_gap']:.1e} of the loss  ended by tolerance  → " in last
    assert 0 < result["relative_gap"] == records[-1]["relative_gap"] < 1e-9
    assert "samples/s" not in done.stdout
    assert records[-1]["gradient_norm"] == result["gradient_norm"]
    assert (records[-1]["evaluations"], records[-1]["products"]) == (result["evaluations"], result["products"])
    quiet = run_here(*words, "--optimizer", "auto", "-q")
    assert (quiet.returncode, quiet.stdout) == (0, "")
    assert "optimizer auto" not in run_here(*words, "--optimizer", "auto", "--json").stdout
    assert "optimizer auto" not in run_here(*words, "--optimizer", "lbfgs").stdout
    words = ("train", "--data", shared_path / "huge.npz", "--model", "mlp", "--dropout", 0, "--optimizer", "lbfgs")
    lost = run_here(*words)
    assert lost.returncode == 2
    assert re.search(r"training diverged in iteration \d+: the loss", lost.stderr)


def test_dropout_is_nothing_for_methods_that_search(capfd):
    for name in ("lbfgs", "auto"):
        assert main(["train", "--optimizer", name, "--dropout", "0.5"]) == 2
        text = capfd.readouterr().err
        assert text.count("distai-mpi: error: --dropout 0.5 is nothing for --optimizer " + name) == 1
        assert text.count("\n") == 1
    for words in (["--optimizer", "lbfgs"], ["--optimizer", "lbfgs", "--dropout", "0"], ["--dropout", "0.5"]):
        check_flags(command.make_context("train", words).params)


def test_the_help_tells_which_methods_are_full_batch(capfd):
    assert main(["train", "--help-all"]) == 0
    told = "".join(capfd.readouterr().out.split())  # lines may end within words
    for words in ("gd, lbfgs, newton-cg and newton are full-batch", "50 rows per parameter, at most 1/8 of the rows"):
        assert words.replace(" ", "") in told
    assert main(["plot", "--help"]) == 0
    assert "the smallest itself has no place" in " ".join(capfd.readouterr().out.split())
