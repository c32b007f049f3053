"""``bench gradient``: all ways give one gradient, which is compared before anything is timed."""

import json

import numpy as np
import pytest

from distai_mpi.cli.bench import gradient
from distai_mpi.cli.bench.gradient import Numpy, Problem
from distai_mpi.data import Dataset, whole
from distai_mpi.errors import ConfigError, DistaiError
from distai_mpi.perf import floors

mpi = pytest.mark.mpi
pytestmark = pytest.mark.ranks(2)
KINDS = [("linear", 1), ("logistic", 1), ("softmax", 4)]


@pytest.mark.parametrize(("model", "outputs"), KINDS)
def test_numpy_gives_the_gradient_of_its_loss(model, outputs):
    rng = np.random.default_rng(2)
    x, w = rng.standard_normal((9, 5)), rng.standard_normal(5 * outputs)
    y = rng.standard_normal(9) if model == "linear" else rng.integers(max(2, outputs), size=9)
    shard = whole(Dataset(x, y), 0, 1)
    problem = Problem(9, 5, model, outputs, "float64")

    def loss(w):
        return Numpy(problem, shard, w)()

    way = Numpy(problem, shard, w)
    way()
    steps = 1e-5 * np.eye(w.size)
    slopes = [(loss(w + step) - loss(w - step)) / 2e-5 for step in steps]
    np.testing.assert_allclose(way.grad, slopes, rtol=1e-6, atol=1e-8)


def test_the_floor_is_the_sum():
    x = np.random.default_rng(0).standard_normal(1001).astype(np.float32)
    assert floors.total(x) == pytest.approx(float(x.astype(float).sum()), abs=1e-3)


@mpi
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("model", "outputs"), KINDS)
def test_all_ways_are_measured(comm, model, outputs, dtype):
    report = gradient.run(comm, Problem(1003, 7, model, outputs, dtype), 2)
    ways = {way["way"]: way for way in report["ways"]}
    assert list(ways) == ["training", *(["one-pass"] if outputs == 1 else []), "numpy", "floor"]
    assert ways["floor"]["ratio_to_floor"] == 1
    for way in ways.values():
        assert 0 < way["fastest"] <= way["seconds"]
        size = 1003 * 7 * np.dtype(dtype).itemsize
        assert way["bytes_per_second"] == pytest.approx(size / way["seconds"])
    assert (report["ranks"], report["rows"], report["features"]) == (comm.size, 1003, 7)
    assert report["threads"] >= 1


@mpi
def test_another_gradient_is_seen_on_all_ranks(comm, monkeypatch):
    right = gradient.Training.__call__

    def wrong(self):
        loss = right(self)
        if comm.rank == comm.size - 1:
            self.grad[2] += 100
        return loss

    monkeypatch.setattr(gradient.Training, "__call__", wrong)
    with pytest.raises(DistaiError, match="training: loss or gradient"):
        gradient.run(comm, Problem(400, 5, "logistic", 1, "float32"), 1)


@mpi
def test_too_many_rows(comm):
    with pytest.raises(ConfigError, match="lower --rows, --features"):
        gradient.run(comm, Problem(10**12, 100, "logistic", 1, "float32"), 1)


def test_the_command(run_command, tmp_path):
    file = tmp_path / "figures.json"
    words = ["--rows", "2e3", "--features", "6", "--model", "softmax", "--repeats", "1", "--json", str(file)]
    run = run_command(2, "bench", "gradient", *words)
    assert run.returncode == 0, run.stderr
    assert "softmax, 2,000 × 6 float32, 2 ranks on 1 node" in run.stdout
    report = json.loads(file.read_text())
    for way in report["ways"]:
        assert run.stdout.count(way["way"]) >= 1
    assert report["outputs"] == 10
