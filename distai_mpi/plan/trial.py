"""Runs that are timed on some ranks: steps on batches of several sizes, and a solver on all and on fewer rows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from ..backend import HOST
from ..comm import Communicator, Mesh
from ..data import ShardedDataset, from_local
from ..data.sparse_rows import SparseRows
from ..models import Abilities, Model, Sums
from ..optim import Auto, FullBatchSolver, LocalSGD
from ..train.full_batch import choose
from ..train.gradient.factors import FactorGradients
from ..train.run import Run
from ..train.state import TrainState
from .workload import Shape, Timing

SMALLER = (4, 16)  # batches so many times smaller are measured too
FEWEST_ROWS = 16  # of a rank in a step: below, steps are of another kind
WINDOWS, WINDOW_SECONDS = 7, 0.12  # of a timing: long beside the slices of a scheduler
FEWEST_WINDOWS = 3


@dataclass(frozen=True)
class Job:
    """What is to be trained.

    Attributes:
        load: the training rows of a rank of the given ones; collective.
        model: for these rows.
        options: of `train.fit` for these rows on so many ranks: optimizer, epochs, global_batch_size, l2, l1, seed and
            exchange.
    """

    load: Callable[[Communicator], ShardedDataset]
    model: Callable[[ShardedDataset], Model]
    options: Callable[[ShardedDataset, int], dict[str, Any]]


@dataclass
class Trial:
    """Runs of ``job`` on the ranks ``part``, of which ``group`` share rows, as ``over`` says."""

    job: Job
    model: Model
    over: Communicator | Mesh
    part: Communicator
    group: Communicator
    threads: int
    last: Run | None = None

    def options(self, shard: ShardedDataset) -> dict[str, Any]:
        """Those of the job, with the method that `Auto` stands for here."""
        options = self.job.options(shard, self.part.size)
        optimizer = options["optimizer"]
        if isinstance(optimizer, Auto):
            given = (self.model, shard.rows, self.group, options["exchange"], options["l1"])
            return options | {"optimizer": choose(optimizer, *given)}
        return options

    def bind(self, shard: ShardedDataset, batch: int | None = None, factors: bool | None = None) -> Run:
        """A run that is warm; ``batch`` and ``factors`` in place of those of the job."""
        options = self.options(shard)
        exchange = options["exchange"]
        if exchange.overlap is None and not isinstance(options["optimizer"], FullBatchSolver):
            exchange = replace(exchange, overlap=False)  # what overlap saves is estimated
        if factors is not None:
            exchange = replace(exchange, factors=factors)
        optimizer = options["optimizer"]
        epochs = optimizer.max_iter if isinstance(optimizer, FullBatchSolver) else 1 << 20
        rows = batch or options["global_batch_size"]
        given = (options["l2"], options["seed"], HOST, exchange)
        self.last = None  # memory of the run before
        self.last = run = TrainState(self.model, optimizer, epochs, rows, *given, l1=options["l1"]).bind(
            self.over, shard
        )
        run.warm_up()
        run.count_from()
        return run

    def steps(self, shape: Shape, shard: ShardedDataset, allotted: float) -> Shape:
        """Time steps on the global batch and on smaller ones."""
        deadline = time.perf_counter() + allotted
        run = self.bind(shard)
        whole, copies = run.loader.global_batch_size, self.group.size
        seconds = self._windows(run, allotted * 0.55)
        timings = [Timing(whole / copies, seconds)]
        steps = max(run.rows / whole, 1.0)
        sent = sum(self.part.allgather_object(run.bytes_sent))
        shape = replace(shape, calls=run.rounds / steps, bytes=sent / steps)
        factors = None
        if Abilities.of(self.model).factors is not None and not run.loader.sparse and not _averages(run):
            factors = isinstance(run.training.gradients, FactorGradients)  # smaller batches travel alike
        for smaller in SMALLER[: 1 if self.part.size > 1 else None]:
            batch, left = whole // smaller, self.part.bcast_object(deadline - time.perf_counter())
            if batch < FEWEST_ROWS * copies or left <= 0:
                break
            run = self.bind(shard, batch, factors)
            timings.append(Timing(batch / copies, self._windows(run, left / 2)))
        return replace(shape, timings=tuple(sorted(timings, key=lambda timing: timing.rows)))

    def _windows(self, run: Run, allotted: float) -> tuple[float, ...]:
        """Seconds of a step, one for each window."""
        part, size = self.part, run.loader.global_batch_size
        deadline, going = time.perf_counter() + allotted, _endless(run)
        every = getattr(run.optimizer, "sync_every", 1)

        def window(turns: int) -> float:
            part.barrier()
            began, rows = time.perf_counter(), run.rows
            for _ in range(turns):
                next(going)
            part.barrier()
            return part.bcast_object((time.perf_counter() - began) * size / max(run.rows - rows, 1))

        window(every)
        pilot = window(every) * every
        length = min(WINDOW_SECONDS, allotted / WINDOWS)
        turns = every * max(1, part.bcast_object(round(length / max(pilot, 1e-9))))
        if run.fuses:
            turns = 1
        found: list[float] = []
        more = True
        while more:
            found.append(window(turns))
            more = len(found) < FEWEST_WINDOWS or (len(found) < WINDOWS and time.perf_counter() < deadline)
            more = part.bcast_object(more)
        return tuple(found)

    def solver(self, shape: Shape, shard: ShardedDataset, allotted: float) -> Shape:
        """Time a solver's passes on a part of the rows and on all, to its end where time allows.

        Where it does not allow that on all rows, the part tells the passes and iterations: they are about as many.
        """
        deadline, copies = time.perf_counter() + allotted, self.group.size
        fewer, timings, counts = _fewer_rows(shard, self.group, SMALLER[0]), [], None
        if fewer is not None:
            counts = self._solve(self.bind(fewer), allotted * 0.5)
            timings.append(Timing(fewer.rows / copies, counts.seconds))
        solved = [self._solve(self.bind(shard), allotted * 0.5)]
        first = solved[0]
        while self._all_agree(first.ended and len(solved) < WINDOWS and time.perf_counter() < deadline):
            solved.append(self._solve(self.bind(shard), allotted))
        each = first.seconds if len(solved) == 1 else tuple(statistics.median(one.seconds) for one in solved)
        counts = first if first.ended or counts is None or not counts.ended else counts
        return replace(
            shape,
            timings=(*timings, Timing(shard.rows / copies, each)),
            calls=first.calls,
            bytes=first.bytes,
            setup=statistics.median(one.setup for one in solved),
            setup_calls=first.setup_calls,
            setup_bytes=first.setup_bytes,
            passes=counts.passes,
            iterations=counts.iterations,
            ended=counts.ended,
        )

    def _all_agree(self, more: bool) -> bool:
        """What rank 0 decides; collective."""
        return self.part.bcast_object(more)

    def _solve(self, run: Any, allotted: float) -> _Solved:
        """Iterations until the solver ends or ``allotted`` seconds have passed; collective."""
        part, deadline = self.part, time.perf_counter() + allotted
        marks: list[tuple[float, float, float, float]] = []  # seconds, passes, calls, bytes so far
        going = True
        while going:
            with run.timed():
                for _ in run.steps():
                    pass
            run.epoch, run.epoch_steps = run.epoch + 1, 0
            sent = sum(part.allgather_object(run.bytes_sent))
            marks.append((run.seconds, sum(run.problem.counts.values()), run.rounds, sent))
            ended = bool(run.met) or run.failed or run.stop_reason is not None or run.epoch >= run.epochs
            going = self._all_agree(not ended and (len(marks) < FEWEST_WINDOWS or time.perf_counter() < deadline))
        return part.bcast_object(_Solved.of(marks, ended))


@dataclass(frozen=True)
class _Solved:
    """A run of a solver; see `Shape`."""

    seconds: tuple[float, ...]
    calls: float
    bytes: float
    setup: float
    setup_calls: float
    setup_bytes: float
    passes: float
    iterations: int
    ended: bool

    @classmethod
    def of(cls, marks: Sequence[tuple[float, float, float, float]], ended: bool) -> _Solved:
        """From what had been counted after each iteration: the first one holds the start."""
        first, last = np.array(marks[0]), np.array(marks[-1])
        many = last[1] > first[1]
        spent = last - first if many else last
        of_pass = spent / max(spent[1], 1.0)
        cuts = [marks[i] for i in sorted({*np.linspace(0, len(marks) - 1, WINDOWS + 1).astype(int).tolist()})]
        windows = [(b[0] - a[0]) / (b[1] - a[1]) for a, b in pairwise(cuts) if b[1] > a[1]]
        mean = float(of_pass[0])
        rest = last - of_pass * last[1]
        return cls(
            seconds=tuple(windows) if len(windows) > 1 else (mean,),
            calls=float(of_pass[2]),
            bytes=float(of_pass[3]),
            setup=max(0.0, float(rest[0])),
            setup_calls=max(0.0, float(rest[2])),
            setup_bytes=max(0.0, float(rest[3])),
            passes=float(last[1]),
            iterations=len(marks),
            ended=ended,
        )


def _endless(run: Run) -> Iterator[None]:
    """The steps of epoch after epoch."""
    while True:
        yield from run.steps()
        run.epoch, run.epoch_steps, run.sums = run.epoch + 1, 0, Sums(0.0, 0.0)


def _averages(run: Run) -> bool:
    return isinstance(run.optimizer, LocalSGD)


def _fewer_rows(shard: ShardedDataset, comm: Communicator, times: int) -> ShardedDataset | None:
    """About one in ``times`` of the rows, evenly over the ranks; None where there are too few, or they lie on disk."""
    held = shard.dataset
    if not isinstance(held.x, np.ndarray | SparseRows) or shard.rows < times * FEWEST_ROWS * comm.size:
        return None
    start, step = (comm.rank, times * comm.size) if shard.shuffle == "global" else (0, times)
    own = np.arange(start, len(held.y), step)
    x = held.x.take(own) if isinstance(held.x, SparseRows) else held.x[own]
    weight = None if held.weight is None else held.weight[own]
    return from_local(replace(held, x=x, y=held.y[own], weight=weight), comm, shard.name)
