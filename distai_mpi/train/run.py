"""A training run in progress, and what it gives in the end."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..data.batch import zeros_row
from ..models import Sums
from ..objective import DistributedSum
from ..optim import FirstOrder, FullBatchSolver, LocalSGD, Schedule
from ..optim.schedules import factors
from ..trace import OTHER, WAIT, during
from .early_stopping import BestParameters
from .steps import Steps

Array = Any
Optimizer = FirstOrder | LocalSGD | FullBatchSolver


@dataclass
class Result:
    """What training gave; the same on every rank.

    Attributes:
        params: parameters, shape (layout.size,), replicated, in host memory; ``w`` is another name of them.
        status: ``completed``, ``diverged`` or ``interrupted``.
        stop_reason: ``epochs``, ``iterations`` (the most that a full-batch solver may make), ``no further decrease``,
            ``rounding of the parameters`` (which in the model's dtype are too far off the optimum that was found),
            ``tolerance``, ``small decrease``, ``no improvement``, ``loss is not finite``, ``loss or gradient is not
            finite near the last iterate``, ``signal``, or ``signal, and the run could not be saved``.
        train_loss: the objective at ``params`` over all training rows, penalty included, no dropout.
        test_loss, test_accuracy: at ``params``; None without test rows, or where they have no meaning.
        metrics: what else has a meaning on the test rows at ``params``, by name; see `metrics`.
        best_epoch: the epoch that ``params`` is of, the best on the validation rows; None without these.
        converged: whether the tolerance was met, and there is an optimum as far as is known; None where no tolerance
            was set, or ``params`` is of an earlier iteration.
        without_optimum: of a full-batch solver, why no finite parameters minimise the objective, as ``params`` shows.
        epochs, iterations: epochs and optimizer steps made.
        seconds: time spent training, between barriers, without compilation and evaluation.
        samples_per_second: rows of all ranks trained on in a second of that time.
        evaluations, products: of a full-batch solver: gradients of all rows (trials on margins alone are none), and
            products with their curvature; None of others.
        gradient_norm: of a full-batch solver, at ``params``; None where that is of an earlier epoch.
        relative_gap: of a full-batch solver on a linear model, an estimate of how far the objective at ``params`` is
            above its optimum, as a fraction of it; None of others, and where ``params`` is of an earlier epoch.
        collinear: numbers from 0 of features that were found to be constant or combinations of those before them;
            None where nobody looked (only the Hessian of all rows tells).
        rounds: collective calls made while training.
        calls: ``rounds`` by kind.
        bytes_moved: bytes that all ranks together sent in them.
        peak_memory: most bytes that a rank has had resident, from its start to the end of training.
        bytes_read: of rows on disk, bytes that all ranks together have read of them since they were loaded; None of
            rows in memory.
        rebalanced: changes of the ranks' numbers of rows while the run went on, see `Balance`: after which ``step``,
            the new ``weights`` and ``why``; of rows that moved also the ``seconds``.  None where nobody watched.
        time: by name of `trace.PHASES`, the seconds that each rank spent in it; None where the run was not traced.
        pipeline: of a model in stages: ``cuts``, ``micro_batches``, the seconds of each stage for a micro-batch as they
            were expected and measured (medians), and beside the ``measured_latency`` of a micro-batch and the
            ``measured_step_seconds`` of gradients those that follow from the slowest stage, see `perf.laws`; else None.
        history: one record an epoch, as in ``metrics.jsonl``.
    """

    params: Array
    status: str = "completed"
    stop_reason: str = "epochs"
    train_loss: float | None = None
    test_loss: float | None = None
    test_accuracy: float | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)
    best_epoch: int | None = None
    converged: bool | None = None
    without_optimum: str | None = None
    epochs: int = 0
    iterations: int = 0
    seconds: float = 0.0
    samples_per_second: float | None = None
    evaluations: int | None = None
    products: int | None = None
    gradient_norm: float | None = None
    relative_gap: float | None = None
    collinear: list[int] | None = None
    rounds: int = 0
    calls: dict[str, int] = field(default_factory=dict)
    bytes_moved: int = 0
    peak_memory: int | None = None
    bytes_read: int | None = None
    rebalanced: list[dict[str, Any]] | None = None
    time: dict[str, list[float]] | None = None
    pipeline: dict[str, Any] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def w(self) -> Array:
        """``params``."""
        return self.params


class Run:
    """A run in progress, by steps on global batches: what it minimises, and how far it has come.

    Args:
        objective: what is minimised, on the ranks ``comm``, all of a mesh.
        training: what a step does; None: a subclass knows.
        optimizer: the method, as the user gave it.
        epochs: passes over the rows, or iterations of full-batch solvers.
        schedule: factor of the learning rate, by the number of steps taken.

    Attributes:
        loader: hands out the rows; None: there are none.
        searches: whether steps are iterations of a full-batch solver.
        epoch, iterations, rows: epochs, steps and rows of all ranks that are done.
        epoch_steps: steps of the current epoch that are done, of ``steps_per_epoch``.
        seconds: time spent in steps of the epochs that are done, between barriers.
        sums: of this rank's losses in the current epoch.
        gradient_norm: of the last step, where a tolerance or clipping asks for it; else nan.
        first_norm: norm of the gradient in the last step of the first epoch, or of full-batch solvers at the start,
            where a tolerance asks for it.
        progressive_loss: mean loss of all rows, each before a step had learned from it and without the penalty: of the
            first epoch, once it is done, where losses are those of predictions (no dropout).
        stop_reason: why no further step is possible; None: one is.
        failed: whether that is an error.
        stopping: early stopping, where there are validation rows.
        history: one record an epoch.
        rebalanced: see `Result`; ``rebalanced_at`` the times of this run's last ones, ns of `time.perf_counter_ns`.
        fixed: settings that must be the same where the run goes on from a checkpoint, see `settings.fixed`.
        origin: where and with what the run was made; empty where nobody tells of it.
    """

    searches = failed = False
    stop_reason: str | None = None
    stopping: BestParameters | None = None
    gradient_norm = math.nan

    def __init__(
        self, objective: DistributedSum, training: Steps | None, optimizer: Optimizer, epochs: int, schedule: Schedule
    ) -> None:
        self.objective: Any = objective
        self.loader: Any = getattr(objective, "loader", None)
        self.training: Any = training
        self.clip_norm = getattr(training, "clip_norm", None)
        self.comm, self.optimizer, self.epochs, self.schedule = objective.everyone, optimizer, epochs, schedule
        self.epoch = self.epoch_steps = self.iterations = self.rows = 0
        self.seconds = 0.0
        self._began: float | None = None  # when the steps of this epoch began
        self._calls: Counter[str] = Counter()  # those of the communicator before training
        self._sent = 0
        self.sums = Sums(0.0, 0.0)
        self.first_norm: float | None = None
        self.progressive_loss: float | None = None
        self.history: list[dict[str, Any]] = []
        self.rebalanced: list[dict[str, Any]] = []
        self.rebalanced_at: list[int] = []
        self.fixed: dict[str, Any] = {}
        self.origin: dict[str, Any] = {}

    @property
    def w(self) -> Array:
        """The parameters, shape (layout.size,), replicated; read-only."""
        return self.training.w

    @property
    def owned(self) -> dict[str, Any]:
        """See `Steps`: with `private` all that has to be kept to go on later; after a change of it call `restored`."""
        return self.training.owned

    @property
    def private(self) -> dict[str, Any]:
        """See `Steps`."""
        return {} if self.training is None else self.training.private

    def restored(self) -> None:
        """Make all follow from ``owned`` and ``private`` after they were written to; collective."""
        self.training.restored()

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch."""
        return self.loader.steps

    @property
    def tol(self) -> float | None:
        """The tolerance that ends a full-batch method; None: there is none."""
        return getattr(self.optimizer, "tol", None)

    @property
    def min_decrease(self) -> float | None:
        """The least decrease of the objective that a full-batch method goes on after; None: there is none."""
        return getattr(self.optimizer, "min_decrease", None)

    @property
    def elapsed(self) -> float:
        """``seconds``, and those of the current epoch; each rank by its own clock."""
        return self.seconds + (0.0 if self._began is None else time.perf_counter() - self._began)

    @property
    def rate_of_epoch(self) -> float:
        """Rows of all ranks that the last epoch trained on in a second; epochs are of as many rows each."""
        before = self.history[-1]["seconds"] if self.history else 0.0
        return self.rows / self.epoch / max(self.seconds - before, 1e-9)

    @property
    def rounds(self) -> int:
        """Collective calls made in training so far, also before it was interrupted."""
        return sum(self.calls.values())

    @property
    def calls(self) -> dict[str, int]:
        """`rounds` by kind."""
        made = self._made()
        made.subtract(self._calls)
        return {kind: count for kind, count in made.items() if count}

    @property
    def bytes_sent(self) -> int:
        """Bytes that this rank has sent in them."""
        return self.objective.bytes_moved - self._sent

    def _made(self) -> Counter[str]:
        """All collective calls of this rank, by kind."""
        return sum((comm.calls for comm in self.objective.comms), Counter())

    def count_from(self, calls: Mapping[str, int] | None = None, bytes_sent: int = 0) -> None:
        """Let `calls` and `bytes_sent` go on from these numbers."""
        self._calls = self._made()
        self._calls.subtract(calls or {})
        self._sent = self.objective.bytes_moved - bytes_sent

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Let what the ranks exchange in the block count in neither."""
        calls, sent = self._made(), self.objective.bytes_moved
        yield
        self._calls.update(self._made() - calls)
        self._sent += self.objective.bytes_moved - sent

    @property
    def met(self) -> bool | None:
        """Whether the tolerance is met; None: there is none, or it cannot be told yet."""
        if self.tol is None or self.first_norm is None:
            return None
        return math.isfinite(self.first_norm) and self.gradient_norm <= self.tol * self.first_norm

    def epoch_loss(self) -> float:
        """The mean of the losses that rows had when their steps were taken, and the penalty; collective."""
        running, weight = self.objective.mean(self.w, self.sums)
        self.objective.check_weight(weight)
        if self.epoch == 1 and not getattr(self.objective.model, "dropout", 0):
            with self.uncounted():
                self.progressive_loss = float(self.objective.comm.sum([self.sums.loss])[0]) / weight
        if self.tol is not None and self.first_norm is None and math.isfinite(running):
            self.first_norm = self.gradient_norm
        return running

    def figures(self) -> dict[str, Any]:
        """What a record tells of an iteration: at first the progressive loss (Blum, Kalai & Langford 1999)."""
        return {} if self.progressive_loss is None or self.epoch > 1 else {"progressive_loss": self.progressive_loss}

    def final_loss(self) -> float:
        """The objective at ``w`` over all rows, once no more steps are made; collective."""
        return self.objective.value(self.w)

    def without_optimum(self) -> str | None:
        """Why no finite parameters minimise the objective, as ``w`` shows; collective."""
        return None

    def finish(self, result: Result) -> None:
        """Give the result what this kind of run alone knows; collective."""

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the time of the block to ``seconds``, from barrier to barrier and by the clock of rank 0."""
        self._meet()
        self._began = time.perf_counter()
        yield
        self.loader.device.synchronize()
        self._meet()
        self.seconds += self.comm.bcast_object(time.perf_counter() - self._began)
        self._began = None

    def _meet(self) -> None:
        with during(self.comm.recorder, WAIT):
            self.comm.barrier()

    def steps(self) -> Iterator[None]:
        """Take the steps left of the current epoch, yielding after each, or after several that a model fused.

        Where ranks are recorded they fuse nothing, for they wait for each other inside of fused steps.
        """
        training, loader, size = self.training, self.loader, self.loader.global_batch_size
        row_weight = loader.total_weight / loader.shard.rows
        if self.fuses:
            for run in loader.runs(self.epoch, max(1, training.fused.run_rows // size), self.epoch_steps):
                self._begin_step()
                rates = factors(self.schedule, self.iterations, run.steps)
                self._count(int(run.rows.sum()), training.take(run, rates), run.steps)
                yield
        for rows, batches in loader.epoch(self.epoch, self.epoch_steps):
            self._begin_step()
            sums = training.step(rows, rows * row_weight, batches, self.schedule(self.iterations))
            self._count(rows, sums, 1)
            self.gradient_norm = training.gradient_norm
            yield
        self.training.close_epoch()
        self.objective.mark(OTHER)

    @property
    def fuses(self) -> bool:
        """Whether small steps are taken many at a time."""
        return self.training.fused is not None and (self.comm.size == 1 or self.comm.recorder is None)

    def _begin_step(self) -> None:
        if self.comm.recorder is not None:
            self.comm.recorder.step(self.iterations)

    def _count(self, rows: int, sums: Sums, steps: int) -> None:
        self.objective.mark(OTHER)
        self.sums += sums
        self.rows += rows
        self.iterations += steps
        self.epoch_steps += steps

    def warm_up(self) -> None:
        """Compile and load what a step needs, and choose what is faster; changes scratch alone; collective.

        A row of zeros stands in where a rank's first step is empty; there are models that compile for a length.
        """
        loader = self.loader
        for _, batches in loader.epoch(0):
            for batch in batches:
                self.training.warm_up(batch)
                break
            break
        row = loader.to_device(zeros_row(loader))
        self.training.warm_up(row)
        for _, batches in loader.epoch(0):
            self.training.settle(next(iter(batches), row))
            break
