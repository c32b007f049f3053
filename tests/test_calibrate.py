"""Speeds of ranks measured on a model, and the shards that follow; time is the model's own here."""

import contextlib
import json
import math
import sys

import click
import numpy as np
import pytest
from commands import run_here
from fits import fit
from problems import local_shard, make_rows, uneven, whole_shard

from distai_mpi import models
from distai_mpi.cli.flags import Shards
from distai_mpi.data import Dataset, Partition, from_local, repartition, whole
from distai_mpi.errors import ConfigError, DataError
from distai_mpi.train import calibrate

mpi = pytest.mark.mpi
pytestmark = pytest.mark.ranks(2)


class Clock:
    """Stands in for the module `time`: an hour of work passes in no time."""

    now = 0.0

    def perf_counter(self):
        return self.now


class Slow:
    """A softmax model of which every row takes ``seconds`` on the clock; notes the batches it got."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds, self.batches = clock, seconds, []
        self.model = models.Softmax(6, 3, dtype=np.float64)

    def __getattr__(self, name):
        return getattr(self.model, name)

    def _take(self, batch):
        self.clock.now += self.seconds * len(batch.x)
        self.batches.append(len(batch.x))

    def loss_and_grad(self, w, batch, grad, on_ready=None):
        self._take(batch)
        return self.model.loss_and_grad(w, batch, grad, on_ready)

    def loss_and_factors(self, w, batch, factors):
        self._take(batch)
        return self.model.loss_and_factors(w, batch, factors)


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(sys.modules["distai_mpi.train.calibrate"], "time", made)
    return made


def slow_model(comm, clock, seconds=1e-3):
    """The last rank is three times slower than the others."""
    return Slow(clock, seconds * (3 if comm.rank == comm.size - 1 else 1))


@mpi
@pytest.mark.parametrize("sharding", ["whole", "uneven", "weighted"])
@pytest.mark.parametrize("size", [1, 32, 1000])
def test_weights_are_the_speeds(comm, clock, sharding, size):
    x, y = make_rows()
    weight = np.arange(len(y)) + 1.0 if sharding == "weighted" else None
    counts = uneven(len(y), comm.size)
    shard = whole_shard(x, y, comm) if sharding == "whole" else local_shard(x, y, comm, counts, weight)
    model = slow_model(comm, clock)
    partition = calibrate(model, shard, comm, size)
    assert partition.weights == (1000.0,) * (comm.size - 1) + (333.0,)
    assert set(comm.allgather_object(partition)) == {partition}
    if sharding == "whole":
        assert math.isclose(model.batches[0], max(1, min(size, len(y)) // comm.size), abs_tol=1)
    assert clock.now < 1 or size == 1000, "a second is enough"


@mpi
def test_models_are_timed_with_the_threads_they_train_with(comm, clock, monkeypatch):
    told = []

    class Counting(Slow):
        def limit_threads(self, number):
            told.append((number, len(self.batches)))

    limits = contextlib.nullcontext(3)
    monkeypatch.setattr(sys.modules["distai_mpi.train.calibrate"], "limited_blas", lambda *_: limits)
    calibrate(Counting(clock, 1e-3), whole_shard(*make_rows(), comm), comm, 32)
    assert told == [(3, 0)], "once, before the first batch"


@mpi
def test_a_single_row_that_takes_long_ends_it(comm, clock):
    x, y = make_rows()
    partition = calibrate(slow_model(comm, clock, 20.0), whole_shard(x, y, comm), comm, 1)
    assert partition.weights == (0.05,) * (comm.size - 1) + (0.0167,)


@mpi(min_size=2)
def test_shards_by_speed_let_ranks_finish_together(comm, clock):
    x, y = make_rows(700)
    for shard in (whole_shard(x, y, comm), from_local(Dataset(x, y), comm)):
        partition = calibrate(slow_model(comm, clock), shard, comm, 70)
        model = slow_model(comm, clock)
        done = fit(model, repartition(shard, partition, comm), comm, epochs=1, global_batch_size=70)
        assert done.status == "completed"
        times = comm.allgather_object([n * model.seconds for n in model.batches[-10:]])  # those before warm up
        ideal = 70 / (comm.size - 1 + 1 / 3) * 1e-3
        assert max(map(max, times)) <= ideal + 3e-3, "no more than a row of the slowest too long"
        assert min(map(min, times)) >= ideal - 3e-3 - 1e-3


@mpi
def test_what_cannot_be_measured(comm):
    with pytest.raises(ConfigError, match="^shards speed: there are no rows"):
        calibrate(models.Softmax(6, 3), whole(Dataset(np.zeros((0, 6)), np.zeros(0)), comm.rank, comm.size), comm)
    x, y = make_rows()
    with pytest.raises(DataError, match="labels 0 to 1"):
        calibrate(models.Softmax(6, 2), whole_shard(x, y, comm), comm)


# --- the command line


@pytest.fixture(scope="module")
def rows(shared_folder):
    x, y = make_rows(300)
    return shared_folder(lambda folder: np.savez(folder / "good.npz", x=x, y=y))


@mpi
@pytest.mark.parametrize("shuffle", ["global", "local"])
def test_shards_are_measured_reported_and_kept(rows, shared_path, shuffle):
    flags = ("--data", "good.npz", "--epochs", 2, "--shuffle", shuffle, "--out", shared_path, "-v")
    done = run_here("train", *flags, "--shards", "speed", cwd=rows)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("speed: ")]
    kept = json.loads((shared_path / "result.json").read_text())["shards"]
    for rank, rate in enumerate(kept):
        assert f"rank {rank} {rate:,.0f}" in line
    counts = ", ".join(f"{count:,}" for count in Partition(tuple(kept)).counts(270))
    assert f"rows by rank: {counts}\n" in done.stdout
    assert run_here("train", *flags[:-1], "-q", cwd=rows).stdout == ""
    assert json.loads((shared_path / "result.json").read_text())["shards"] is None


@mpi
def test_given_shards_give_the_even_result(comm, rows):
    losses = []
    for weights in (None, [3, 1, 0, 2], [0.1, 0, 7e3, 0]):
        shards = ",".join(map(str, weights[: comm.size])) if weights else "even"
        flags = ("--data", "good.npz", "--dtype", "float64", "--epochs", 2, "--shards", shards, "--json", "-q")
        done = run_here("train", *flags, cwd=rows)
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout.splitlines()[-1])
        assert result["shards"] == (weights and weights[: comm.size])
        losses.append((result["train_loss"], result["test_loss"]))
    np.testing.assert_allclose(losses, [losses[0]] * 3, rtol=1e-10)


def test_many_speeds_are_told_in_one_line():
    from distai_mpi.cli.train import MOST_SPEEDS, speeds

    assert speeds(Partition((3000.0, 1000.0))) == "speed: rank 0 3,000, rank 1 1,000 rows/s, shards 75.0%, 25.0%"
    many = speeds(Partition(tuple(1000.0 + i for i in range(MOST_SPEEDS + 1))))
    assert many.startswith(f"speed: rank 0 1,000 to rank {MOST_SPEEDS} 1,016 rows/s")


@mpi
@pytest.mark.parametrize("kind", ["a word", "too many", "not a number"])
def test_shards_that_cannot_be(comm, rows, shared_path, kind):
    shards = {"a word": "fast", "too many": "3" + ",1" * comm.size, "not a number": "1," * (comm.size - 1) + "nan"}[
        kind
    ]
    done = run_here("train", "--data", "good.npz", "--shards", shards, "-q", "--out", shared_path / "run", cwd=rows)
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if "distai-mpi: error:" in line]
    assert len(errors) == 1, done.stderr
    assert "--shards" in errors[0]
    assert "Traceback" not in done.stderr
    assert not (shared_path / "run").exists()


def test_shards_are_read_as_words_or_weights():
    kind = Shards()
    assert kind.convert("speed", None, None) == "speed"
    assert kind.convert("3,0,1.5", None, None) == (3.0, 0.0, 1.5)
    for text in ("", "1,,1", "3;1"):
        with pytest.raises(click.BadParameter, match="such as 3,1,1"):
            kind.convert(text, None, None)


def test_bench_shards_compares_with_the_ideal(tmp_path):
    assert "--slow" in run_here("bench", "shards", "--help").stdout
    words = ["bench", "shards", "--ranks", 2, "--delay", 0.02, "--global-batch-size", 40, "--repeats", 1]
    done = run_here(*words, "--json", "report.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["ideal_seconds"] == pytest.approx(40 * 2e-5 / (1 + 1 / 3))
    assert report["speed_to_ideal"] == pytest.approx(report["speed_seconds"] / report["ideal_seconds"])
    (turn,) = report["turns"]
    assert report["even_to_speed"] == pytest.approx(turn["even"] / turn["speed"])
    assert len(turn["shards"]) == 2
    assert "ideal" in done.stdout
