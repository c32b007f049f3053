"""``distai-mpi bench gradient``: loss and gradient of a linear model, beside a single reading of the rows."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import click

from ...comm import launch
from ...errors import ConfigError, DistaiError
from .allreduce import crowding, ranks_on_nodes
from .checkpoint import Count

TRAINING, ONE_PASS, NUMPY, FLOOR = "training", "one-pass", "numpy", "floor"
ALWAYS = 1  # threads of a rank that reads its rows once


@click.command()
@click.option("--rows", type=Count(), default="2e5", show_default=True, help="On all ranks together.")
@click.option("--features", type=Count(), default="200", show_default=True)
@click.option("--model", type=click.Choice(["linear", "logistic", "softmax"]), default="logistic", show_default=True)
@click.option("--classes", type=click.IntRange(min=2), default=10, show_default=True, help="Of softmax.")
@click.option("--dtype", type=click.Choice(["float32", "float64"]), default="float32", show_default=True)
@click.option("--repeats", type=click.IntRange(min=1), default=15, show_default=True, help="Turns; medians are shown.")
@click.option("--json", "json_file", metavar="FILE", help="Write all figures here.")
def command(
    rows: int, features: int, model: str, classes: int, dtype: str, repeats: int, json_file: str | None
) -> None:
    """Seconds of loss and gradient over all rows: mpiexec -n N distai-mpi bench gradient.

    As training makes them, beside plain NumPy (two matrix products and what lies between them, all rows at once) and
    beside the floor: a loop that sums all features, which reads every row once.  One-pass is the loop that
    training takes for one output where a rank has few threads; it runs on one, NumPy on all that the rank has.
    Times are medians over the turns; × floor is the median of the ratios of times in the same turn.

    Every rank works on its own rows, all at once; nothing is exchanged, and it is the slowest rank that counts.
    """
    from ...comm import Communicator
    from ...files import check_writable, write_json

    problem = Problem(rows, features, model, classes if model == "softmax" else 1, dtype)
    with Communicator(launch.world()) as comm:
        with comm.agreed():
            if comm.rank == 0 and json_file:
                check_writable(json_file)
        report = run(comm, problem, repeats)
        with comm.agreed():
            if comm.rank == 0:
                show(report)
                if json_file:
                    write_json(json_file, report)


@dataclass(frozen=True)
class Problem:
    """What is measured; ``outputs`` is 1 but for softmax."""

    rows: int
    features: int
    model: str
    outputs: int
    dtype: str

    def make_model(self) -> Any:
        """A model without a bias."""
        from ...models import MODELS

        classes = (self.outputs,) if self.model == "softmax" else ()
        return MODELS[self.model](self.features, *classes, bias=False, dtype=self.dtype)

    def make_shard(self, comm: Any) -> Any:
        """Random rows of this rank, normally distributed; collective."""
        import numpy as np

        from ...data import Dataset, from_local

        rng = np.random.default_rng(comm.rank)
        own = self.rows * (comm.rank + 1) // comm.size - self.rows * comm.rank // comm.size
        x = np.empty((own, self.features), self.dtype)
        rng.standard_normal(out=x, dtype=x.dtype)
        y = rng.standard_normal(own) if self.model == "linear" else rng.integers(max(2, self.outputs), size=own)
        return from_local(Dataset(x, y), comm)


class Training:
    """Loss and gradient as methods that see all rows take them, on so many threads."""

    def __init__(self, comm: Any, problem: Problem, shard: Any, w: Any, threads: int) -> None:
        import numpy as np

        from ...objective import Objective
        from ...train.evaluation import make_loader

        model = problem.make_model()
        model.limit_threads(threads)
        self._objective, self._w = Objective(model, make_loader(model, shard, comm), comm), w
        self.grad = np.empty(model.layout.size, problem.dtype)

    def __call__(self) -> float:
        """The sum of the losses of this rank's rows; their gradient is then in ``grad``."""
        return self._objective.sums_and_grad(self._w, self._objective.loader.sequential(), self.grad).loss


class Numpy:
    """The same in plain NumPy, all rows at once."""

    def __init__(self, problem: Problem, shard: Any, w: Any) -> None:
        self._x, self._y, self._model = shard.dataset.x, shard.dataset.y, problem.model
        self._w = w.reshape(problem.features, problem.outputs)
        self.grad: Any = None

    def __call__(self) -> float:
        """As `Training`."""
        loss, residual = getattr(self, f"_{self._model}")(self._x @ self._w)
        self.grad = (self._x.T @ residual).ravel()
        return loss

    def _linear(self, z: Any) -> tuple[float, Any]:
        residual = z - self._y[:, None].astype(z.dtype)
        return float(0.5 * (residual * residual).sum()), residual

    def _logistic(self, z: Any) -> tuple[float, Any]:
        import numpy as np

        y = self._y[:, None].astype(z.dtype)
        return float((np.logaddexp(0, z) - y * z).sum()), 1 / (1 + np.exp(-z)) - y

    def _softmax(self, z: Any) -> tuple[float, Any]:
        import numpy as np

        rows, y = np.arange(len(z)), self._y
        z = z - z.max(axis=1, keepdims=True)
        probabilities = np.exp(z)
        total = probabilities.sum(axis=1, keepdims=True)
        loss = float((np.log(total[:, 0]) - z[rows, y]).sum())
        probabilities /= total
        probabilities[rows, y] -= 1
        return loss, probabilities


def run(comm: Any, problem: Problem, repeats: int) -> dict[str, Any]:
    """Check and time all ways; collective."""
    import numpy as np

    from ...perf.floors import total
    from ...perf.machine import limited_blas, node_cpus
    from ...perf.turns import Candidate, in_turn, nothing

    check_memory(comm, problem)
    cpus = node_cpus(comm)
    with limited_blas(comm.node.size, cpus) as threads:
        shard = problem.make_shard(comm)
        w = np.random.default_rng(0).standard_normal(problem.features * problem.outputs) / problem.features
        w = w.astype(problem.dtype)
        w.flags.writeable = False
        ways: dict[str, Any] = {TRAINING: Training(comm, problem, shard, w, threads)}
        if problem.outputs == 1:
            ways[ONE_PASS] = Training(comm, problem, shard, w, ALWAYS)
        ways[NUMPY] = Numpy(problem, shard, w)
        check(comm, ways)
        calls: dict[str, Callable[[], object]] = {**ways, FLOOR: partial(total, shard.dataset.x.reshape(-1))}
        candidates = [Candidate(name, call, nothing) for name, call in calls.items()]
        in_turn(comm, candidates, 0.0, fewest=repeats, most=repeats)
    report: dict[str, Any] = {"ranks": comm.size, "nodes": len(comm.leaders), "load": os.getloadavg()[0]}
    report |= {"cpus": cpus, "threads": threads, **vars(problem)}
    size, floor = problem.rows * problem.features * np.dtype(problem.dtype).itemsize, candidates[-1]
    found = [
        {
            "way": one.name,
            "seconds": one.median,
            "fastest": one.fastest,
            "ratio_to_floor": one.ratio(floor),
            "bytes_per_second": size / one.median,
        }
        for one in candidates
    ]
    return report | {"ways": found}


def check_memory(comm: Any, problem: Problem) -> None:
    """Raise `ConfigError` on all ranks where a node has too little memory; collective."""
    import numpy as np

    from ...perf.machine import memory_left

    itemsize = np.dtype(problem.dtype).itemsize
    a_row = problem.features * itemsize + 5 * max(8, problem.outputs * itemsize)
    parameters = problem.features * problem.outputs * 8 * 8  # w, gradients, and the kernels' copies, up to float64
    needed, left = (problem.rows / comm.size * a_row + parameters) * comm.node.size, memory_left()
    with comm.agreed():
        if needed > left:
            found = f"{needed / 1e9:.1f} GB are needed on a node, and {left / 1e9:.1f} left"
            raise ConfigError(f"{found}; lower --rows, --features{' or --classes' if problem.outputs > 1 else ''}")


def check(comm: Any, ways: dict[str, Any]) -> None:
    """Compare the losses and gradients of all ways; collective.

    Raises:
        DistaiError: one is another than NumPy's; on all ranks.
    """
    import numpy as np

    expected = ways[NUMPY]()
    scale = float(np.abs(ways[NUMPY].grad).max(initial=0.0))
    with comm.agreed():
        for name, way in ways.items():
            near = np.isclose(way(), expected, rtol=1e-4) and np.allclose(way.grad, ways[NUMPY].grad, atol=1e-3 * scale)
            if not near:
                raise DistaiError(f"{name}: loss or gradient is another than NumPy's")


def show(report: dict[str, Any]) -> None:
    """Print the table."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    what = f"{report['model']}, {report['rows']:,} × {report['features']:,} {report['dtype']}, {ranks_on_nodes(report)}"
    table = Table(box=SIMPLE)
    for title in ("way", "ms", "× floor", "GB/s"):
        table.add_column(title, justify="left" if title == "way" else "right")
    for way in report["ways"]:
        figures = f"{1e3 * way['seconds']:.3f}", f"{way['ratio_to_floor']:.2f}", f"{way['bytes_per_second'] / 1e9:.1f}"
        table.add_row(way["way"], *figures)
    watched = launch.on_terminal()  # mpiexec makes every output look like one
    console = Console(force_terminal=watched, width=None if watched else 100, highlight=False)
    console.print(f"loss and gradient: {what}")
    console.print(table)
    threads = f"{report['threads']} BLAS thread{'' if report['threads'] == 1 else 's'} a rank"
    for text in (f"{threads}; load {report['load']:.1f}; GB/s: the features' bytes a second", *crowding(report)):
        console.print(text)
