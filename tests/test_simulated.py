"""Collectives and training steps on a simulated network: as long as the closed forms say, and the traffic they say."""

import importlib.util
import os
import subprocess
import threading
from collections import deque
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from run import limit
from simulated import simulate

from distai_mpi.params import Ownership
from distai_mpi.perf import costs, simulated

ROOT = Path(__file__).parent.parent
PYTHON = "/usr/bin/python3"  # that Debian's SimGrid is for
LATENCY, BANDWIDTH = 2e-6, 1e9
MACHINE = simulated.Machine(flops=1e9, memory=1e8, reduce_rate=2e9)


class Clocks:
    """What ranks that are threads share: a clock each, and the sides of messages that wait for their other side."""

    def __init__(self, ranks, latency=LATENCY, bandwidth=BANDWIDTH):
        self.now = [0.0] * ranks
        self.traffic = [costs.Traffic()] * ranks
        self.latency, self.bandwidth = latency, bandwidth
        self.lock = threading.Lock()
        self.waiting = {}


class ClockNetwork:
    """One rank's network: a message begins when both sides are there, and takes its latency and its bytes' time."""

    def __init__(self, rank, clocks):
        self.rank, self.clocks = rank, clocks

    def send(self, source, dest, nbytes):
        assert source == self.rank != dest
        self.clocks.traffic[source] += costs.Traffic(1, nbytes)
        return self.meet((source, dest), nbytes)

    def receive(self, source, dest):
        assert dest == self.rank != source
        return self.meet((source, dest), None)

    def meet(self, pair, nbytes):
        clocks = self.clocks
        with clocks.lock:
            sides = clocks.waiting.setdefault(pair, deque())
            if sides and (sides[0].nbytes is None) != (nbytes is None):
                side = sides.popleft()
                length = side.nbytes if nbytes is None else nbytes
                start = max(side.posted, clocks.now[self.rank])
                side.arrived = start + clocks.latency + length / clocks.bandwidth
                side.done.set()
            else:
                side = Side(clocks.now[self.rank], nbytes)
                sides.append(side)
        return Waiting(side, self)

    def sleep(self, seconds):
        self.clocks.now[self.rank] += seconds


class Side:
    """A message of which one side is there."""

    def __init__(self, posted, nbytes):
        self.posted, self.nbytes, self.arrived, self.done = posted, nbytes, None, threading.Event()


class Waiting:
    def __init__(self, side, network):
        self.side, self.network = side, network

    def wait(self):
        assert self.side.done.wait(limit(20)), "nobody is at the other end"
        now = self.network.clocks.now
        now[self.network.rank] = max(now[self.network.rank], self.side.arrived)


def run(ranks, work, **options):
    """Run ``work(network, rank, ranks)`` on every rank; return the clocks."""
    clocks = Clocks(ranks, **options)
    simulate(ranks, lambda wire: work(ClockNetwork(wire.rank, clocks), wire.rank, ranks))
    assert not any(clocks.waiting.values()), "messages that nobody received"
    return clocks


@pytest.mark.parametrize("name", costs.ALGORITHMS)
def test_allreduces_take_as_long_and_send_as_much_as_the_closed_forms_say(name):
    nbytes = 64 * 7 * 48 * 64  # that all these numbers of ranks divide

    def work(network, rank, ranks):
        simulated.replay_allreduce(network, rank, ranks, name, nbytes, MACHINE.reduce_rate)

    for ranks in (1, 2, 3, 4, 6, 7, 16):
        clocks = run(ranks, work)
        expected = costs.seconds(name, ranks, nbytes, LATENCY, BANDWIDTH, MACHINE.reduce_rate)
        exact = name != "rabenseifner" or ranks & (ranks - 1) == 0
        assert max(clocks.now) == pytest.approx(expected, rel=1e-9 if exact else 0.1), ranks
        assert clocks.traffic == costs.sent("allreduce", name, ranks, nbytes)


def step(work, name, weak, network, rank, ranks):
    simulated.replay_step(network, rank, ranks, work, MACHINE, name, weak)


@pytest.mark.parametrize("work", simulated.WORKLOADS, ids=lambda work: work.name.split()[0])
def test_steps_take_as_long_as_the_closed_form_says(work):
    for weak in (False, True):
        for ranks, name in ((1, "ring"), (3, "ring"), (4, "rabenseifner"), (8, "rabenseifner"), (3, "tree")):
            clocks = run(ranks, partial(step, work, name, weak))
            expected = simulated.step_seconds(ranks, work, MACHINE, name, weak, LATENCY, BANDWIDTH)
            assert max(clocks.now) == pytest.approx(expected, rel=1e-4)


def test_a_step_worked_out_by_hand():
    """2 ranks, 1600 float32: 3 rows of 1 µs, two messages of 3200 bytes, one sum of 1.6 µs, an update of 160 µs."""
    work = simulated.Workload("small", 1600, flops_per_row=1000, bytes_per_row=4, batch=5, batch_per_rank=1)
    clocks = run(2, partial(step, work, "ring", False))
    assert clocks.now == pytest.approx([3e-6 + 2 * (2e-6 + 3.2e-6) + 1.6e-6 + 5 * 3200 / 1e8] * 2)
    assert [work.rows(rank, 2, weak=False) for rank in range(2)] == [2, 3]
    mnist = simulated.WORKLOADS[0]
    assert (mnist.parameters, mnist.flops_per_row) == (101_770, 4 * 784 * 128 + 6 * 1280)


def test_size_only_vectors_have_sizes_only():
    sums = []
    x = simulated.SizeOnlyVector(100, np.dtype(np.float32), sums.append)
    for part in (slice(10, 30), slice(90, 200), slice(50, 40), slice(None)):
        assert x[part].size == np.empty(100)[part].size
        assert x[part].nbytes == 4 * x[part].size
    assert np.add(x[:7], x[7:14], out=x[:7]).size == 7
    assert sums == [28]
    for call in (
        lambda: np.add(x[:3], x[:4], out=x[:3]),
        lambda: np.add(x, x),
        lambda: np.multiply(x, x, out=x),
    ):
        with pytest.raises(TypeError):
            call()
    assert Ownership.sharded(x.size, 3, x.itemsize).slices[0] == slice(0, 32)


@pytest.fixture
def example():
    spec = importlib.util.spec_from_file_location("simulated_network", ROOT / "examples" / "simulated_network.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_without_simgrid(example, monkeypatch, capsys):
    def fake(network, jobs, config):
        options = {"latency": LATENCY, "bandwidth": example.BANDWIDTH}
        seconds = [work and max(run(ranks, work, **options).now) for ranks, work in jobs]
        return seconds, [LATENCY] * len(jobs), network

    monkeypatch.setattr(example, "simulate", fake)
    monkeypatch.setattr(example, "RING_LIMIT", 2)
    for words in (["collectives", "--bytes", "8e6"], ["scaling", "--algorithms", "ring,rabenseifner"]):
        options = example.parse([*words, "--ranks", "1,2,4"])
        rows, _ = getattr(example, words[0])(options)
        example.show(rows)
        for row in rows:
            if row["algorithm"] == "ring" and row["ranks"] > 2:
                assert row["simulated"] is None
            else:
                assert row["simulated"] == pytest.approx(row["closed_form"], rel=1e-3)
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 1 + len(rows)
        assert lines[0].split()[-2:] == ["off", "by"]
    for words, message in (
        (["--algorithms", "rings"], "no rings; there are ring, tree"),
        (["--ranks", "0"], "at least 1"),
    ):
        with pytest.raises(SystemExit):
            example.parse(["collectives", *words])
        assert message in capsys.readouterr().err


def test_the_example_in_simgrid():
    """On one switch the closed form is exact, on a fat tree for powers of two; a dragonfly's links are shared."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    here = {"env": environment, "capture_output": True, "text": True}
    if not Path(PYTHON).exists() or subprocess.run([PYTHON, "-c", "import simgrid, numpy"], **here).returncode:
        pytest.skip("not available: SimGrid (Debian's python3-simgrid and python3-numpy)")
    for network, ranks in (("switch", "13,16"), ("fat-tree", "16"), ("dragonfly", "16")):
        words = ["collectives", "--network", network, "--ranks", ranks, "--bytes", "4e6"]
        program = [PYTHON, ROOT / "examples" / "simulated_network.py", *words]
        done = subprocess.run(program, timeout=limit(60), **here)
        assert done.returncode == 0, done.stderr
        lines = [line.split() for line in done.stdout.splitlines()[2:]]
        assert [line[:2] for line in lines] == [[name, n] for n in ranks.split(",") for name in costs.ALGORITHMS]
        off = [float(line[-1].rstrip("%")) for line in lines]
        if network == "dragonfly":  # partners at a distance: four hosts of a router send over one link
            assert off[2] > 20, done.stdout
            assert off[3] > 20, done.stdout
        else:
            assert max(map(abs, off)) < 1, done.stdout
