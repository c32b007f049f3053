"""``distai-mpi bench step``: from every rank's gradient to updated parameters that all ranks see."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import click

from ...comm import launch
from ...errors import ConfigError, DistaiError
from .allreduce import crowding, ranks_on_nodes
from .checkpoint import Count

REPLICA, KEPT, FLOOR = "native-replica", "native-replica-kept", "floor"
Parts = tuple[float, float, float]  # seconds of waiting, reducing, updating
FIELDS = ("waiting", "reducing", "updating")


@click.command()
@click.option("--parameters", type=Count(), default="1e7", show_default=True)
@click.option("--optimizer", "optimizer_name", default="momentum", show_default=True, metavar="NAME")
@click.option("--dtype", type=click.Choice(["float32", "float64"]), default="float32", show_default=True)
@click.option("--repeats", type=click.IntRange(min=1), default=15, show_default=True, help="Turns; medians are shown.")
@click.option("--json", "json_file", metavar="FILE", help="Write all figures here.")
def command(parameters: int, optimizer_name: str, dtype: str, repeats: int, json_file: str | None) -> None:
    """Seconds from gradients to updated parameters on all ranks: mpiexec -n N distai-mpi bench step.

    Training's own step, by sums in shared memory and by every algorithm whose slices travel by messages, beside
    what programs without slices do: the MPI library's Allreduce, then the whole update on every rank, by the same
    compiled update (native-replica; with a malloc that keeps what is freed: native-replica-kept).  These are spared
    the division by the batch's weight, which training's steps make.

    Before each step every rank writes its gradient anew; a step takes as long as on the slowest rank.  All take
    turns.  × native is the time as a multiple of the faster replica's.  On one node the floor is a step's reads and
    writes alone: all ranks at once, each in private memory, without waiting for others.  Waiting, reducing
    (publishing included) and updating are measured in as many further steps, by the phases of a trace.
    """
    from ...comm import Communicator
    from ...files import check_writable, write_json

    with Communicator(launch.world()) as comm:
        if comm.size == 1:
            raise ConfigError("one rank has nothing to exchange: start it with mpiexec -n N distai-mpi bench step")
        optimizer = make_optimizer(optimizer_name)
        with comm.agreed():
            if comm.rank == 0 and json_file:
                check_writable(json_file)
        report = run(comm, parameters, optimizer, dtype, repeats)
        with comm.agreed():
            if comm.rank == 0:
                show(report)
                if json_file:
                    write_json(json_file, report)


def make_optimizer(name: str) -> Any:
    """The method by name, with its default settings."""
    from ...optim import OPTIMIZERS

    if name not in OPTIMIZERS:
        raise ConfigError(f"--optimizer: there is no {name!r}; choose from {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[name]()


class Given:
    """A model whose gradient is already in ``grad``.  Before the first step that is the pattern of ``rank``."""

    def __init__(self, parameters: int, dtype: Any, rank: int) -> None:
        import numpy as np

        from ...params import Layout

        self.layout, self.dtype = Layout.of([("w", (parameters,), True)]), np.dtype(dtype)
        self.grad: Any = None
        self._rank = rank

    def loss_and_grad(self, w: Any, batch: Any, grad: Any) -> Any:
        """See `Model`: nothing is to be done after the first step, for ``grad`` is the same vector in all steps."""
        from ...models import Sums
        from ...perf import pattern

        if self.grad is None:
            self.grad = grad
            pattern.write(grad, self._rank)
        return Sums(0.0, 0.0)


class TrainingStep:
    """A step as training makes it, from parameters of 1; gradients travel by ``algorithm``.

    The first step is from the patterns of `perf.pattern`, the others from what ``grad`` holds.  Making one and calling
    it is collective.
    """

    def __init__(self, comm: Any, parameters: int, optimizer: Any, dtype: Any, algorithm: str) -> None:
        import numpy as np

        from ... import data
        from ...comm import Exchange
        from ...objective import Objective
        from ...train.evaluation import make_loader
        from ...train.steps import SynchronousSteps

        model: Any = Given(parameters, dtype, comm.rank)
        self._model, self._comm = model, comm
        shard = data.whole(data.Dataset(np.zeros((2, 1)), np.zeros(2)), comm.rank, comm.size)
        objective = Objective(model, make_loader(model, shard, comm), comm, asked=Exchange(algorithm))
        self._steps = SynchronousSteps(objective, optimizer, np.ones(1, dtype))

    @property
    def w(self) -> Any:
        """The parameters, shape (n,), as this rank sees them; read-only."""
        return self._steps.w

    @property
    def grad(self) -> Any:
        """Where the next step expects this rank's gradient, shape (n,); after the first step."""
        return self._model.grad

    def __call__(self) -> None:
        """Take a step; collective."""
        self._steps.step(1, 1.0, [None], 1.0)  # type: ignore[list-item]  # the model looks at no batch

    def parts(self, turns: int) -> Parts:
        """Mean parts of ``turns`` further steps, as a trace of training tells them; collective."""
        from ...trace import EXCHANGE, OTHER, PUBLISH, REDUCE, UPDATE, WAIT, Recorder

        recorder = Recorder()
        self._comm.trace(recorder)
        for _ in range(turns):
            self.grad.fill(1)
            self()
            recorder.mark(OTHER)
        self._comm.trace(None)
        recorder.close()
        sums = recorder.sums / turns
        return sums[WAIT], sums[REDUCE] + sums[EXCHANGE] + sums[PUBLISH], sums[UPDATE]


class ReplicaStep:
    """The library's Allreduce, then the whole update, in place, on every rank; else as `TrainingStep`."""

    def __init__(self, comm: Any, parameters: int, optimizer: Any, dtype: Any) -> None:
        from ...perf import pattern

        self._comm, self._optimizer = comm, optimizer
        self.w, self.grad = (comm.empty(parameters, dtype, shared=False) for _ in range(2))
        self.w[:] = 1
        pattern.write(self.grad, comm.rank)
        self._state = optimizer.init(self.w, [(0, parameters)])

    def __call__(self) -> None:
        """Take a step; collective."""
        self._comm.allreduce(self.grad, "native")
        self._optimizer.step(self.w, self.grad, self._state)

    def parts(self, turns: int) -> Parts:
        """As `TrainingStep.parts`."""
        clock, sums = time.perf_counter, [0.0, 0.0, 0.0]
        for _ in range(turns):
            self.grad.fill(1)
            times = [clock()]
            for part in (
                self._comm.barrier,
                partial(self._comm.allreduce, self.grad, "native"),
                partial(self._optimizer.step, self.w, self.grad, self._state),
            ):
                part()
                times.append(clock())
            sums = [total + end - begin for total, begin, end in zip(sums, times, times[1:], strict=False)]
        waiting, reducing, updating = (total / turns for total in sums)
        return waiting, reducing, updating


class FloorStep:
    """What a rank reads and writes in a step on one node, made in private memory; no rank waits."""

    def __init__(self, comm: Any, parameters: int, optimizer: Any, dtype: Any) -> None:
        from ...comm.exchange.node import PART_BYTES
        from ...perf import pattern

        self._optimizer, elements = optimizer, -(-parameters // comm.size)
        self.grad = comm.empty(comm.size * elements, dtype, shared=False)  # the ranks' slices, one after another
        self._rows = self.grad.reshape(comm.size, elements)
        self.w, self._w_next = (comm.empty(elements, dtype, shared=False) for _ in range(2))
        self.w[:] = 1
        for rank, row in enumerate(self._rows):
            pattern.write(row, rank)
        self._state, self._part = optimizer.init(self.w, [(0, elements)]), PART_BYTES // self.w.itemsize

    def __call__(self) -> None:
        """Sum the slices into the first of them and update, part by part; local."""
        from ...comm.kernels import sum_rows
        from ...comm.memory import address

        rows, one = self._rows, self.w.dtype.type(1)
        base, total = address(self.grad), rows[0]
        self._optimizer.advance(self._state)
        for start in range(0, total.size, self._part):
            part = slice(start, min(start + self._part, total.size))
            sum_rows(base, rows.strides[0], len(rows), part.start, part.stop, total[part], one)
            self._optimizer.update(self.w, total, self._state, self._w_next, 1.0, part)
        self.w, self._w_next = self._w_next, self.w

    def parts(self, turns: int) -> None:
        """None: reads and writes are not told apart."""


def run(comm: Any, parameters: int, optimizer: Any, dtype: str, repeats: int) -> dict[str, Any]:
    """Check and time all kinds of steps; collective."""
    from ...comm.mpi_library import library
    from ...perf import malloc
    from ...perf.machine import node_cpus
    from ...perf.turns import Candidate, in_turn

    report: dict[str, Any] = {"ranks": comm.size, "nodes": len(comm.leaders), "mpi": library().name}
    report |= {"load": os.getloadavg()[0], "cpus": node_cpus(comm)}
    check_memory(comm, parameters, dtype)
    steps = make_steps(comm, parameters, optimizer, dtype)
    for name, step in steps.items():
        check(comm, name, step, optimizer)
    reasons = [reason for reason in comm.allgather_object(malloc.why_not()) if reason]
    report["skipped"] = [{"algorithm": KEPT, "reason": reason} for reason in reasons[:1]]
    if not reasons:
        steps[KEPT] = steps[REPLICA]
    if FLOOR in steps:
        steps[FLOOR] = steps.pop(FLOOR)  # at the end
    candidates = [
        Candidate(name, step, partial(step.grad.fill, 1), malloc.keep if name == KEPT else malloc.give_back)
        for name, step in steps.items()
    ]
    in_turn(comm, candidates, 0.0, fewest=repeats, most=repeats)
    parts: list[Parts | None] = []
    for name, step in steps.items():
        (malloc.keep if name == KEPT else malloc.give_back)()
        parts.append(step.parts(repeats))
    malloc.give_back()
    parts = comm.allgather_object(parts)
    facts = {"ranks": comm.size, "nodes": len(comm.leaders), "parameters": parameters, "dtype": dtype}
    facts |= {"optimizer": optimizer.name}
    return report | {"rows": rows(candidates, list(zip(*parts, strict=True)), facts)}


def check_memory(comm: Any, parameters: int, dtype: str) -> None:
    """Raise `ConfigError` on all ranks where a node has too little memory; collective."""
    import numpy as np

    from ...perf.machine import memory_left

    # vectors of each rank: gradient and two buffers for three kinds of messages; the shared gradient; gradient,
    # parameters and state of the replica; two as the library's scratch; the floor's slices.  Those of a node: states
    # (the floor's too), shared buffers, and the floor's
    vectors = (3 * 3 + 1 + 5 + 2 + 1) * comm.node.size + 5 * 3 + 2 + 2
    needed, left = vectors * parameters * np.dtype(dtype).itemsize, memory_left()
    with comm.agreed():
        if needed > left:
            raise ConfigError(
                f"{needed / 1e9:.1f} GB are needed on a node, and {left / 1e9:.1f} left; lower --parameters"
            )


def make_steps(comm: Any, parameters: int, optimizer: Any, dtype: str) -> dict[str, Any]:
    """All kinds of steps by name; collective."""
    from ...comm import ALGORITHMS

    ours = comm.exchange("hierarchical").name
    sliced = [name for name, algorithm in ALGORITHMS.items() if algorithm.sliced]
    steps: dict[str, Any] = {n: TrainingStep(comm, parameters, optimizer, dtype, n) for n in (ours, *sliced)}
    steps[REPLICA] = ReplicaStep(comm, parameters, optimizer, dtype)
    return steps | ({FLOOR: FloorStep(comm, parameters, optimizer, dtype)} if len(comm.leaders) == 1 else {})


def check(comm: Any, name: str, step: Any, optimizer: Any) -> None:
    """Take the first step, and compare with the optimizer's own on one period of the pattern; collective.

    Raises:
        DistaiError: the parameters are wrong somewhere; on all ranks.
    """
    import numpy as np

    from ...perf import pattern

    w = np.ones(pattern.PERIOD, step.w.dtype)
    optimizer.step(w, pattern.total(comm.size, w.dtype), optimizer.init(w, [(0, w.size)]))
    step()
    with comm.agreed():
        if not pattern.repeats(step.w, w, tolerance=1e-6):
            raise DistaiError(f"{name}: the parameters are wrong after one step")


def rows(
    candidates: Sequence[Any], parts: Sequence[Sequence[Parts | None]], facts: dict[str, Any]
) -> list[dict[str, Any]]:
    """What was measured, a row for each candidate; ``parts`` has the parts of every rank for each."""
    native = min((one for one in candidates if one.name in (REPLICA, KEPT)), key=lambda one: one.median)
    found = []
    for one, of_ranks in zip(candidates, parts, strict=True):
        row = facts | {"algorithm": one.name, "seconds": one.median, "fastest": one.fastest}
        row |= {"turns": len(one.seconds), "ratio_to_native": one.ratio(native)}
        known = [ours for ours in of_ranks if ours is not None]
        means = [statistics.mean(values) for values in zip(*known, strict=True)] or [None] * len(FIELDS)
        found.append(row | dict(zip(FIELDS, means, strict=True)))
    return found


def show(report: dict[str, Any]) -> None:
    """Print the table."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    rows = report["rows"]
    what = f"{rows[0]['parameters']:,} parameters of {rows[0]['dtype']}, {rows[0]['optimizer']}"
    table = Table(title=f"steps of {what}, {ranks_on_nodes(report)}", title_justify="left", box=SIMPLE)
    for title in ("algorithm", "ms", "× native", *FIELDS):
        table.add_column(title, justify="left" if title == "algorithm" else "right")
    for row in rows:
        cells = [f"{1e3 * row['seconds']:.3f}", f"{row['ratio_to_native']:.2f}"]
        cells += ["" if row[field] is None else f"{1e3 * row[field]:.3f}" for field in FIELDS]
        table.add_row(row["algorithm"], *cells)
    watched = launch.on_terminal()  # mpiexec makes every output look like one
    console = Console(force_terminal=watched, width=None if watched else 100, highlight=False)
    console.print(table)
    for text in remarks(report):
        console.print(text)


def remarks(report: dict[str, Any]) -> list[str]:
    """What must be known to read the table."""
    lines = [f"{report['mpi']}; load before the run {report['load']:.1f}; parts in ms, means over the ranks"]
    return lines + crowding(report) + [f"left out: {one['algorithm']}: {one['reason']}" for one in report["skipped"]]
