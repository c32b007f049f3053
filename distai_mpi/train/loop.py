"""The training loop: gradient of the rank's rows, its owned slice summed, updated and handed round.

w → loss_and_grad → reduce_scatter → optimizer on the owned slice → allgather → w
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data import Batch, Loader, Share
from ..errors import ConfigError
from ..models import Model, Sums
from ..objective import Objective
from ..optim import SGD, FirstOrder, Momentum
from ..perf.machine import limited_blas
from .callbacks import Callback
from .evaluation import evaluate, make_loader

if TYPE_CHECKING:
    from ..comm import Communicator

Array = Any
FUSED_ROWS = 256  # one-sample steps taken in one call: long enough to hide Python, short enough to show progress


@dataclass
class Result:
    """What training gave; the same on every rank.

    Attributes:
        w: parameters, shape (layout.size,), replicated.
        status: ``completed`` or ``diverged``.
        stop_reason: ``epochs``, ``tolerance`` or ``loss is not finite``.
        train_loss: the objective at ``w`` over all training rows, penalty included, no dropout.
        test_loss, test_accuracy: at ``w``; None without test rows, or where they have no meaning.
        converged: whether the tolerance was met; None where none was set.
        epochs, iterations: epochs and optimizer steps made.
        seconds: time spent training, without compilation and evaluation, on the slowest rank.
        samples_per_second: rows of all ranks trained on in a second of that time.
        rounds: collective calls made while training.
        bytes_moved: bytes that all ranks together sent in them.
        history: one record an epoch, as in ``metrics.jsonl``.
    """

    w: Array
    status: str = "completed"
    stop_reason: str = "epochs"
    train_loss: float | None = None
    test_loss: float | None = None
    test_accuracy: float | None = None
    converged: bool | None = None
    epochs: int = 0
    iterations: int = 0
    seconds: float = 0.0
    samples_per_second: float | None = None
    rounds: int = 0
    bytes_moved: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


class Run:
    """A run in progress: parameters, optimizer state and counters."""

    def __init__(self, objective: Objective, optimizer: FirstOrder, loader: Loader, epochs: int, start: Array) -> None:
        comm, model = objective.comm, objective.model
        self.objective, self.optimizer, self.loader, self.comm = objective, optimizer, loader, comm
        self.epochs = epochs
        self._w = comm.empty(model.layout.size, model.dtype)
        self._w_next = comm.empty(model.layout.size, model.dtype)
        self._grad = comm.empty(model.layout.size, model.dtype)
        self._w[:] = start
        self.state = optimizer.init(self._w[objective.mine])
        self.epoch = self.iterations = self.rows = 0
        self.seconds = 0.0
        self.sums = Sums(0.0, 0.0)  # of this rank's losses in the current epoch
        self.gradient_norm = math.nan  # of the last step, where a tolerance asks for it
        self._measures_norm = False

    @property
    def w(self) -> Array:
        """The parameters, shape (layout.size,), replicated; read-only."""
        view = self._w.view()
        view.flags.writeable = False
        return view

    def step(self, rows: int, batches: Iterable[Batch]) -> None:
        """One update from a global batch of ``rows`` rows, of which ``batches`` are this rank's.

        The owned slice goes into a second buffer, and the two are swapped when it is whole:
        whoever holds ``w`` never sees a half of one step and a half of the next.
        """
        objective, mine = self.objective, self.objective.mine
        sums = objective.sums_and_grad(self._w, batches, self._grad)
        owned = objective.reduce_grad(self._w, self._grad, rows)
        if self._measures_norm:
            self.gradient_norm = self._norm(owned)
        self.optimizer.step(self._w[mine], owned, self.state, out=self._w_next[mine])
        self.comm.allgather(self._w_next, objective.owners, objective.algorithm)
        self._w, self._w_next = self._w_next, self._w
        self._count(rows, sums, 1)

    def fused_steps(self, batch: Batch) -> None:
        """One-sample steps over the rows of ``batch`` in turn, fused by the model."""
        sums = self.objective.model.sgd_step(self._w, batch, self.optimizer.lr, self.objective.l2)  # type: ignore[attr-defined]
        self._count(len(batch.x), sums, len(batch.x))

    def _count(self, rows: int, sums: Sums, steps: int) -> None:
        self.sums += sums
        self.rows += rows
        self.iterations += steps

    def _norm(self, owned: Array) -> float:
        """The gradient's norm; a replicated slice is every rank's own, so that it is not summed again."""
        square = float(np.sum(np.square(owned, dtype=np.float64)))
        return math.sqrt(square if self.objective.owners.replicated else self.comm.sum([square])[0])

    def fused(self) -> bool:
        """Whether steps are one-sample SGD on one rank, which a model may fuse."""
        return (
            type(self.optimizer) is SGD
            and self.loader.global_batch_size == 1
            and self.comm.size == 1
            and hasattr(self.objective.model, "sgd_step")
        )

    def warm_up(self) -> None:
        """Compile and load everything that a step needs, without changing anything but scratch arrays."""
        model, w = self.objective.model, self._w_next
        w[:] = self._w
        for _, batches in self.loader.epoch(0):
            self.objective.sums_and_grad(w, batches, self._grad)
            break
        if self.fused():
            for batch in self.loader.blocks(0, FUSED_ROWS):
                model.sgd_step(w, batch, self.optimizer.lr, self.objective.l2)  # type: ignore[attr-defined]
                break
        state = self.optimizer.init(w[:0])
        self.optimizer.step(w[:0], self._grad[:0], state, out=w[:0])

    def train_epoch(self, callbacks: Sequence[Callback], tolerance: float | None) -> None:
        """All steps of one epoch; ``seconds`` grows by their time."""
        self._measures_norm = tolerance is not None
        self.comm.barrier()
        began = time.perf_counter()
        if self.fused():
            for batch in self.loader.blocks(self.epoch, FUSED_ROWS):
                self.fused_steps(batch)
                for callback in callbacks:
                    callback.on_step(self)
        else:
            for rows, batches in self.loader.epoch(self.epoch):
                self.step(rows, batches)
                for callback in callbacks:
                    callback.on_step(self)
        self.comm.barrier()
        self.seconds += time.perf_counter() - began
        self.epoch += 1


def fit(
    model: Model,
    data: Share,
    comm: Communicator,
    *,
    test: Share | None = None,
    optimizer: FirstOrder | None = None,
    epochs: int = 5,
    global_batch_size: int = 256,
    l2: float = 0.0,
    seed: int = 0,
    allreduce: str | None = None,
    tol: float | None = None,
    callbacks: Sequence[Callback] = (),
) -> Result:
    """Train ``model`` on the rows of all ranks; collective.

    Args:
        model: built alike on every rank.
        data, test: this rank's share of the training and test rows, from `data.load`.
        comm: the ranks that train.
        optimizer: a first-order method; default momentum.
        epochs: passes over the training rows.
        global_batch_size: rows of a step, over all ranks together; a full-batch optimizer takes all rows.
        l2: strength of the penalty ½ l2 ‖w‖² over slots with decay.
        seed: of the start, the shuffling and dropout.  The result does not depend on the number
            of ranks (to rounding), unless rows were shuffled locally.
        allreduce: the algorithm that exchanges gradients, by name.
        tol: for full-batch optimizers, stop when the norm of the objective's gradient is at most ``tol``
            times that of the first step.
        callbacks: see `Callback`.

    Raises:
        ConfigError: a value that cannot work, on every rank.
    """
    optimizer = Momentum() if optimizer is None else optimizer
    _check(data, optimizer, epochs, global_batch_size, l2, tol)
    batch_size = data.rows if optimizer.full_batch else global_batch_size
    with limited_blas(comm.node.size), np.errstate(over="ignore", invalid="ignore"):  # the loss tells of both
        loader = make_loader(model, data, comm, batch_size, seed)
        test_loader = make_loader(model, test, comm) if test else None
        objective = Objective(model, loader, comm, l2=l2, algorithm=allreduce)
        run = Run(objective, optimizer, loader, epochs, model.init(np.random.default_rng(seed)))
        run.warm_up()
        for callback in callbacks:
            callback.on_start(run)
        result = Result(run.w)
        rounds, sent = comm.rounds, comm.bytes_sent
        first_norm = None
        while run.epoch < epochs and result.status == "completed" and not result.converged:
            run.sums = Sums(0.0, 0.0)
            run.train_epoch(callbacks, tol)
            first_norm = run.gradient_norm if first_norm is None else first_norm
            _close_epoch(run, result, test_loader, callbacks)
            if tol is not None and result.status == "completed":
                result.converged = run.gradient_norm <= tol * first_norm
        _finish(run, result, rounds, sent)
        for callback in callbacks:
            callback.on_end(run, result)
    return result


def _check(
    data: Share, optimizer: FirstOrder, epochs: int, global_batch_size: int, l2: float, tol: float | None
) -> None:
    if data.rows == 0:
        raise ConfigError("there are no rows to train on")
    if epochs < 1:
        raise ConfigError(f"epochs must be at least 1, got {epochs}")
    if global_batch_size < 1:
        raise ConfigError(f"the global batch size must be at least 1, got {global_batch_size}")
    if not (l2 >= 0 and math.isfinite(l2)):
        raise ConfigError(f"l2 must be a number from 0 up, got {l2}")
    if tol is not None and not optimizer.full_batch:
        raise ConfigError(f"a tolerance needs a full-batch optimizer such as gd, not {optimizer.name}")


def _close_epoch(run: Run, result: Result, test_loader: Loader | None, callbacks: Sequence[Callback]) -> None:
    """Sum the epoch's losses, evaluate, and tell the callbacks; every rank sees the same numbers."""
    loss, weight = run.comm.sum(run.sums).tolist()
    running = loss / weight + run.objective.penalty(run._w)
    record: dict[str, Any] = {"epoch": run.epoch, "iterations": run.iterations, "running_loss": running}
    if not math.isfinite(running):
        result.status, result.stop_reason = "diverged", "loss is not finite"
    if test_loader is not None:
        test = evaluate(run.objective.model, run._w, test_loader, run.comm)
        record |= {"test_loss": test.loss, "test_accuracy": test.accuracy}
        result.test_loss, result.test_accuracy = test.loss, test.accuracy
    record |= {"seconds": run.seconds, "samples_per_second": run.rows / run.seconds}
    result.history.append(record)
    for callback in callbacks:
        callback.on_epoch(run, record)


def _finish(run: Run, result: Result, rounds: int, sent: int) -> None:
    result.w = run.w
    if result.converged:
        result.stop_reason = "tolerance"
    result.epochs, result.iterations = run.epoch, run.iterations
    result.rounds = run.comm.rounds - rounds
    sent = run.comm.bytes_sent - sent
    result.bytes_moved = int(run.comm.sum([sent])[0])
    result.seconds = max(run.comm.allgather_object(run.seconds))
    result.samples_per_second = run.rows / result.seconds
    if result.status == "completed":
        result.train_loss = run.objective.value(run._w)
