"""Predictions of ``distai-mpi plan`` beside what was predicted: by how much they are off, and whether bars hold.

    python tests/plan_errors.py [--only mnist,deep,dense,sparse,planted] [--turns 3] [--rates 1gbit,10gbit]

Each workload is probed once, on this machine by all of its cores (at most 2 ranks).  Predicted and then measured are 1
and 2 ranks of one node, and 2 nodes of 1 rank in a slow network (see slow_network.py), whose latency and bandwidth a
ring of messages has told: nodes are predicted from the probe on one node and the closed forms alone.  Ranks beyond the
cores are *planted*: a model that sleeps for each row is probed on 2 ranks, and predicted for 4 ranks and 4 nodes.

The machine must do nothing else; what it cannot do (shape a network) is left out with a word.  Prints a line a case,
and in the end the median and the worst error, how many bars held the truth, and how long probes took.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import slow_network
from run import mpi_environment, mpiexec_command

from distai_mpi.comm.mesh import MeshShape
from distai_mpi.perf.compare import find_number
from distai_mpi.plan import Candidate, Link, Machine, Planner, Probe

RANKS = 2  # of a probe
TIMEOUT = 400
DELAY = 1e-3  # seconds that a planted rank sleeps for a row
PLANTED_ROWS, PLANTED_BATCH = 4096, 128


class Case(NamedTuple):
    """What was predicted and measured, in seconds of the whole training."""

    workload: str
    ranks: int
    nodes: int
    rate: str
    low: float
    predicted: float
    high: float
    measured: float

    @property
    def error(self) -> float:
        """Relative, of the prediction."""
        return self.predicted / self.measured - 1

    @property
    def held(self) -> bool:
        """Whether the bar holds the truth."""
        return self.low <= self.measured <= self.high

    def __str__(self) -> str:
        where = f"{self.nodes} nodes, {self.rate}" if self.nodes > 1 else "1 node"
        bar = f"{self.predicted:8.3f} s ({self.low:.3f} to {self.high:.3f})"
        held = "" if self.held else "  outside of the bar"
        text = f"{self.workload:9} {self.ranks} ranks, {where:16} {bar}, measured {self.measured:.3f}"
        return f"{text}: {100 * self.error:+.1f} %{held}"


def workloads(folder: str) -> dict[str, list[str]]:
    """Flags of `train` by name; their data is written to ``folder``."""
    rng = np.random.default_rng(0)
    deep, dense, sparse = (os.path.join(folder, f"{name}.npz") for name in ("deep", "dense", "sparse"))
    np.savez(deep, x=rng.random((6144, 784), np.float32), y=rng.integers(0, 10, 6144))
    x = rng.normal(size=(200_000, 300)).astype(np.float32)
    np.savez(dense, x=x, y=(x[:, :20].sum(axis=1) + rng.normal(size=len(x)) > 0).astype(int))
    rows, features, entries = 200_000, 100_000, 50
    indices = np.sort(rng.integers(0, features, (rows, entries)), axis=1).astype(np.int32)
    of_rows = {"x_indices": indices.ravel(), "x_indptr": np.arange(rows + 1) * entries, "x_shape": (rows, features)}
    y = (indices[:, 0] % 2).astype(int)
    np.savez(sparse, x_data=np.ones(rows * entries, np.float32), y=y, **of_rows)
    none = ["--test-fraction", "0"]
    return {
        "mnist": ["--epochs", "2", "--no-early"],
        "deep": ["--data", deep, *none, "--hidden", "2048,2048,2048", "--epochs", "1", "--no-early"],
        "dense": ["--data", dense, *none, "--model", "logistic", "--optimizer", "lbfgs", "--l2", "1e-4"],
        "sparse": ["--data", sparse, *none, "--model", "logistic", "--optimizer", "sgd", "--epochs", "3", "--no-early"],
    }


def program(*words: str) -> list[str]:
    """``distai-mpi words...``"""
    return [sys.executable, "-m", "distai_mpi", *words]


def started(command: list[str], rate: str = "", ranks_of_node: int = 0) -> str:
    """Run ``command``, by the slow network where there is a ``rate``; its output."""
    env = mpi_environment()
    if ranks_of_node:
        env["DISTAI_NODES"] = str(ranks_of_node)
    if rate:
        command, env = slow_network.slowed(command, rate), {**env, **slow_network.OPEN_MPI}
    run = subprocess.run(
        command, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=TIMEOUT, check=False
    )
    if run.returncode:
        raise SystemExit(f"{' '.join(command)}: status {run.returncode}\n{run.stderr[-3000:]}")
    return run.stdout


def measured(ranks: int, flags: list[str], turns: int, rate: str = "") -> float:
    """Median seconds of a training."""
    words = [*mpiexec_command(ranks), *program("train", "--json", "-q", *flags)]
    found = []
    for _ in range(turns):
        seconds = find_number(started(words, rate, 1 if rate else 0), ("seconds",))
        assert seconds is not None
        found.append(seconds[0])
    return statistics.median(found)


def link(rate: str) -> Link:
    """What a ring of messages tells of the slow network."""
    words = [*mpiexec_command(RANKS), sys.executable, __file__, "--as", "link"]
    return Link(**json.loads(started(words, rate, 1)))


def of_workload(
    name: str, flags: list[str], links: dict[str, Link], turns: int, folder: str
) -> tuple[list[Case], float]:
    """The cases of a workload, and the seconds of its probe."""
    path = os.path.join(folder, f"{name}.json")
    words = ["bench", "probe", "--seconds", "25", "--json", path, "--", *flags]
    started([*mpiexec_command(RANKS), *program(*words)])
    probe = Probe.from_dict(json.loads(Path(path).read_text()))
    here, batch = Machine.from_dict(probe.machine), probe.workload.batch
    cases = []
    for ranks in (1, RANKS):
        predicted = Planner(probe, here).predict(Candidate(1, ranks, MeshShape(ranks, 1, 1), batch))
        cases.append(case(name, predicted, "", measured(ranks, flags, turns)))
    for rate, network in links.items():
        planner = Planner(probe, replace(here, network=network, emulated=True))
        predicted = planner.predict(Candidate(RANKS, 1, MeshShape(RANKS, 1, 1), batch))
        cases.append(case(name, predicted, rate, measured(RANKS, flags, turns, rate)))
    return cases, probe.seconds


def case(name: str, predicted: Any, rate: str, seconds: float) -> Case:
    """A case, which is printed."""
    candidate = predicted.candidate
    bar = (predicted.low, predicted.seconds, predicted.high)
    found = Case(name, candidate.ranks, candidate.nodes, rate, *bar, seconds)
    print(found, flush=True)
    return found


def planted(rates: list[str]) -> list[Case]:
    """Cases of ranks beyond the cores."""
    cases = []
    for rate in ["", *rates]:
        output = started([*mpiexec_command(4), sys.executable, __file__, "--as", "planted"], rate, 1 if rate else 0)
        values = json.loads(output.splitlines()[-1])
        cases.append(Case("planted", 4, 4 if rate else 1, rate, *values))
        print(cases[-1], flush=True)
    return cases


def be_planted() -> None:
    """One of the ranks of `planted`: probe 2 of them, predict all, and train."""
    from distai_mpi import Communicator, data, fit, models, world
    from distai_mpi.cli.bench.shards import Delayed
    from distai_mpi.comm import Exchange
    from distai_mpi.optim import Momentum
    from distai_mpi.plan import Job
    from distai_mpi.plan import probe as measure

    rng = np.random.default_rng(0)
    rows = data.Dataset(rng.normal(size=(PLANTED_ROWS, 784)).astype("f4"), rng.integers(0, 10, PLANTED_ROWS))
    model, exchange = Delayed(models.MLP(784, 10), DELAY), Exchange(overlap=False, factors=False)
    given = {"optimizer": Momentum(lr=0.01), "epochs": 2, "global_batch_size": PLANTED_BATCH, "exchange": exchange}
    job = Job(
        lambda comm: data.whole(rows, comm.rank, comm.size),
        lambda _: model,
        lambda *_: given | {"l2": 0.0, "l1": 0.0, "seed": 0},
    )
    mpi_comm = world()
    with Communicator(mpi_comm) as comm:
        probe = measure(comm, mpi_comm, job, 20, most=RANKS)
        machine = replace(Machine.from_dict(probe.machine), cores=1 if len(comm.leaders) > 1 else comm.size)
        nodes = len(comm.leaders)
        candidate = Candidate(nodes, comm.size // nodes, MeshShape(comm.size, 1, 1), PLANTED_BATCH)
        predicted = Planner(probe, machine).predict(candidate)
        result = fit(model, data.whole(rows, comm.rank, comm.size), comm, **given)
        if comm.rank == 0:
            print(json.dumps([predicted.low, predicted.seconds, predicted.high, result.seconds]))


def be_link() -> None:
    """One of the ranks of `link`."""
    from distai_mpi import Communicator, world
    from distai_mpi.plan.look import measure_messages

    with Communicator(world()) as comm:
        found = measure_messages(comm, shared=True)
        if comm.rank == 0:
            print(json.dumps(asdict(found)))


def main() -> None:
    """Run all cases and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="mnist,deep,dense,sparse,planted", help="which workloads")
    parser.add_argument("--turns", type=int, default=3, help="trainings whose median is the truth")
    parser.add_argument("--rates", default="1gbit,10gbit", help="of the network; empty: one node alone")
    parser.add_argument("--json", help="where all cases go")
    parser.add_argument("--as", dest="role", choices=("planted", "link"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        {"planted": be_planted, "link": be_link}[options.role]()
        return
    rates = [rate for rate in options.rates.split(",") if rate]
    if rates and (reason := slow_network.missing(rates[0])):
        print(f"no network: not available: {reason}")
        rates = []
    print(f"load before: {os.getloadavg()[0]:.1f}")
    links = {rate: link(rate) for rate in rates}
    for rate, network in links.items():
        print(f"network of {rate}: {1e6 * network.latency:.0f} µs, {network.bandwidth / 1e6:.0f} MB/s")
    cases, probes, chosen = [], [], options.only.split(",")
    with tempfile.TemporaryDirectory() as folder:
        for name, flags in workloads(folder).items():
            if name in chosen:
                found, seconds = of_workload(name, flags, links, options.turns, folder)
                cases, probes = cases + found, [*probes, seconds]
    if "planted" in chosen:
        cases += planted(rates)
    errors = sorted(abs(each.error) for each in cases)
    print(f"errors: median {100 * statistics.median(errors):.1f} %, worst {100 * errors[-1]:.1f} %")
    print(f"bars that hold the truth: {sum(each.held for each in cases)} of {len(cases)}")
    print(f"probes: {', '.join(f'{seconds:.0f} s' for seconds in probes)}")
    if options.json:
        Path(options.json).write_text(json.dumps([each._asdict() for each in cases], indent=2))


if __name__ == "__main__":
    main()
