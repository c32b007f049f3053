"""A training run in progress: parameters, optimizer state and counters, and what it gives in the end.

w → loss_and_grad → reduce_scatter → optimizer on the owned slice → allgather → w
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..data import Batch
from ..models import Sums
from ..objective import Objective
from ..optim import SGD, FirstOrder

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
        seconds: time spent training, between barriers, without compilation and evaluation.
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

    def __init__(
        self, objective: Objective, optimizer: FirstOrder, epochs: int, start: Array, *, measures_norm: bool = False
    ) -> None:
        comm, model = objective.comm, objective.model
        self.objective, self.optimizer, self.loader, self.comm = objective, optimizer, objective.loader, comm
        self.epochs = epochs
        self._w = comm.empty(model.layout.size, model.dtype)
        self._w_next = comm.empty(model.layout.size, model.dtype)
        self._grad = comm.empty(model.layout.size, model.dtype)
        self._w[:] = start
        mine = objective.mine
        self.state = optimizer.init(self._w[mine], model.layout.decay_ranges(mine.start, mine.stop))
        self.epoch = self.iterations = self.rows = 0
        self.seconds = 0.0
        self.sums = Sums(0.0, 0.0)  # of this rank's losses in the current epoch
        self.gradient_norm = math.nan  # of the last step, where a tolerance asks for it
        self._measures_norm = measures_norm

    @property
    def w(self) -> Array:
        """The parameters, shape (layout.size,), replicated; read-only."""
        view = self._w.view()
        view.flags.writeable = False
        return view

    def step(self, rows: int, batches: Iterable[Batch]) -> None:
        """One update from a global batch of ``rows`` rows, of which ``batches`` are this rank's.

        The owned slice goes into a second buffer, and the two are swapped when it is whole: until
        the step after the next, whoever holds ``w`` sees no half-updated parameters.
        """
        objective, mine = self.objective, self.objective.mine
        sums = objective.sums_and_grad(self.w, batches, self._grad)
        owned = objective.reduce_grad(self._w, self._grad, rows)
        if self._measures_norm:
            self.gradient_norm = objective.norm(owned)
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

    def steps(self) -> Iterator[None]:
        """Take the steps of the current epoch, yielding after each (or after several that a model fused)."""
        if self.fuses():
            for batch in self.loader.blocks(self.epoch, FUSED_ROWS):
                self.fused_steps(batch)
                yield
        else:
            for rows, batches in self.loader.epoch(self.epoch):
                self.step(rows, batches)
                yield

    def fuses(self) -> bool:
        """Whether steps are one-sample SGD on one rank, which a model may fuse."""
        return (
            type(self.optimizer) is SGD
            and self.loader.global_batch_size == 1
            and self.comm.size == 1
            and hasattr(self.objective.model, "sgd_step")
        )

    def warm_up(self) -> None:
        """Compile and load everything that a step needs, without changing anything but scratch arrays.

        A row of zeros stands in for the model's rows: a rank whose first step is empty compiles too.
        """
        objective, loader, w = self.objective, self.loader, self._w_next
        for _, batches in loader.epoch(0):
            for _ in batches:
                break
            break
        x, y = np.zeros((1, loader.share.features), loader.dtype), np.zeros(1, loader.target_dtype)
        row = Batch(x, y, None, np.zeros(1, np.int64), 0, train=True)
        objective.sums_and_grad(self.w, [row], self._grad)
        if self.fuses():
            w[:] = self._w
            objective.model.sgd_step(w, row, self.optimizer.lr, objective.l2)  # type: ignore[attr-defined]
        self.optimizer.step(w[:0], self._grad[:0], self.optimizer.init(w[:0]), out=w[:0])
