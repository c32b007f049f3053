"""``bench gpu`` on the pretended device: its checks and its figures, for machines that have a GPU."""

import json
import sys

import numpy as np
import pytest
from commands import run_here
from fake_device import FakeDevice

from distai_mpi import backend
from distai_mpi.cli.bench import gpu, gpu_checks, gpu_speeds
from distai_mpi.cli.bench.gpu_speeds import Sizes
from distai_mpi.cli.main import main
from distai_mpi.comm import CHOICES
from distai_mpi.errors import ConfigError

pytestmark = [pytest.mark.mpi, pytest.mark.ranks(1, 2)]
SMALL = Sizes(1 << 12, 1 << 12, 50, 3, 100, (16, 32), (4,), (1 << 10,), 0.0)


@pytest.fixture
def device(monkeypatch):
    """The pretended device, where the command looks for a GPU."""
    device = FakeDevice()
    monkeypatch.setattr(backend, "count_gpus", lambda: 1)
    monkeypatch.setattr(backend, "choose", lambda name, rank: device)
    monkeypatch.setattr(gpu_speeds, "Sizes", lambda: SMALL)
    monkeypatch.setattr(
        gpu, "exchange_job", lambda: {"checks": [{"name": "a job", "passed": True}], "remarks": ["told"]}
    )
    return device


def test_a_sound_device_passes_every_check(comm, device, shared_path, monkeypatch):
    """A part of the cases, in which all models, optimizers and exchanges are."""
    path, cases = shared_path / "report.json", list(gpu_checks.cases(comm.size))
    assert len(cases) == len(set(cases)) >= 40
    cases = cases[:: 3 if comm.size == 1 else 13]
    assert [len(set(kind)) for kind in zip(*cases, strict=True)] == [6, 9, len(CHOICES) if comm.size > 1 else 1, 2]
    monkeypatch.setattr(gpu_checks, "cases", lambda ranks: cases)
    done = run_here("bench", "gpu", "--json", path)
    assert done.returncode == 0, done.stderr
    report = json.loads(path.read_text())
    assert all(check["passed"] and check["difference"] < check["tolerance"] for check in report["checks"])
    assert done.stdout.count("PASS") == len(report["checks"]) == len(cases)
    assert all(row["seconds"] > 0 for row in report["speeds"])
    named = {row["what"]: row for row in report["speeds"]}
    if comm.size == 1:
        copy = named["copy in the device"]
        assert copy["seconds"] * copy["bytes_per_second"] == pytest.approx(2 << 12)
        assert {"MNIST MLP step, batch 16, device", "MNIST MLP step, batch 32, CPU"} <= named.keys()
    else:
        assert list(named) == [f"allreduce, 1 KiB, {name}, 2 ranks" for name in ("native", "ring")]


@pytest.mark.ranks(2)
def test_a_wrong_device_fails_and_is_told(comm, device, monkeypatch):
    """A sum that is off by a millionth on one rank is seen, but not in single precision, where it may be rounding."""
    right = gpu_checks.train
    few = [(model, "adam", "ring", dtype) for model in ("linear", "mlp tanh") for dtype in ("float64", "float32")]
    monkeypatch.setattr(gpu_checks, "cases", lambda ranks: few)

    def train(comm, *words):
        return right(comm, *words) * (1 + 1e-6 * (words[-1] is device and comm.rank == 1))

    monkeypatch.setattr(gpu_checks, "train", train)
    done = run_here("bench", "gpu")
    assert done.returncode != 0
    assert (done.stdout.count("PASS"), done.stdout.count("FAIL")) == (2, 2)
    assert "2 of 4 checks failed: linear, adam, float64, ring, 2 ranks, mlp tanh" in done.stderr


@pytest.mark.ranks(1)
def test_differences_are_relative_to_the_largest_and_nan_is_one():
    theirs = np.array([1.0, -4.0, 0.0])
    assert gpu_checks.largest_difference(np.array([1.0, -4.0, 1e-3]), theirs) == 1e-3 / 4
    assert gpu_checks.largest_difference(np.array([np.nan, -4.0, 0.0]), theirs) == np.inf


@pytest.mark.ranks(1)
def test_what_the_job_of_two_ranks_found_is_added(monkeypatch):
    report = {"checks": [1], "speeds": [2], "remarks": [], "ranks": 1}

    def job(program):
        words = [sys.executable, "-c", program]
        monkeypatch.setattr(gpu, "ranks_command", lambda ranks, launcher, more, crowded: [*words, *more])
        return gpu.merged(report, gpu.exchange_job())

    found = job("""import sys; open(sys.argv[-1], "w").write('{"checks": [3], "speeds": [4], "remarks": [5]}')""")
    assert found == {"checks": [1, 3], "speeds": [2, 4], "remarks": [5], "ranks": 1}
    found = job("raise SystemExit('no memory')")
    assert found["checks"] == [1, {"name": "a job of 2 ranks", "passed": False}]
    assert found["remarks"] == ["the job of 2 ranks ended with status 1: no memory"]

    def missing(*words, **options):
        raise ConfigError("no mpiexec")

    monkeypatch.setattr(gpu, "ranks_command", missing)
    found = gpu.merged(report, gpu.exchange_job())
    assert (found["checks"], found["remarks"]) == ([1], ["the exchange was left out: no mpiexec"])


@pytest.mark.ranks(1)
def test_a_machine_without_a_gpu_is_told_so_in_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert main(["bench", "gpu"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "CuPy is not installed" in err
