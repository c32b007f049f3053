"""Iterations of L-BFGS."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...data import Batch
from ...errors import ConfigError
from ...objective import Objective
from ...optim import LBFGS
from ...optim.solvers.lbfgs import ReplicatedHistory, ShardedHistory
from ...perf.machine import memory_left
from ...trace import UPDATE
from .problem import Evaluation
from .steps import LineSearchSteps

Array = Any


class LBFGSSteps(LineSearchSteps):
    """L-BFGS: the history lies where the parameters lie, in slices or, where these are few, whole on every rank.

    Args:
        objective, start: see `FullBatchSteps`.
        optimizer: the method.
    """

    def __init__(self, objective: Objective, optimizer: LBFGS, start: Array) -> None:
        margins = objective.abilities.margins
        super().__init__(objective, optimizer, start, margins)
        self._ready: float | None = None  # the slope along the next direction, where it is made
        self._check_memory(optimizer.memory)
        kind = ReplicatedHistory if objective.whole else ShardedHistory
        # in the model's dtype either way: a run may go on under another exchange
        self.history: Any = kind(optimizer.memory, self.points.grad.size, objective.model.dtype)
        self.curvature_threshold = optimizer.curvature_threshold

    def _check_memory(self, memory: int) -> None:
        """Raise `ConfigError` on all ranks where a node has too little room for the history; collective."""
        comm, model = self.objective.comm, self.objective.model
        needed = 2 * (memory + 1) * self.points.grad.size * model.dtype.itemsize * comm.node.size
        left = memory_left()
        with comm.agreed():
            if needed > left:
                raise ConfigError(
                    f"--memory {memory}: the pairs take {needed / 1e9:.3g} GB on a node, and {left / 1e9:.3g} are left;"
                    " lower it"
                )

    def warm_up(self, batch: Batch) -> None:
        """See `Steps`."""
        super().warm_up(batch)
        kind, grad = type(self.history), np.ones(1, self._direction.dtype)
        small, out = kind(1, 1, self.objective.model.dtype), np.ones_like(grad)
        small.keep(small.tell(1.0, out, grad, np.zeros_like(grad)), 0.0)
        small.renew(small.products(grad))
        small.direction(grad, 1.0, out)

    @property
    def owned(self) -> dict[str, Any]:
        """See `Steps`."""
        history = self.history
        history.remember()
        steps = {f"step{row}": vector for row, vector in enumerate(history.steps)}
        changes = {f"change{row}": vector for row, vector in enumerate(history.changes)}
        return super().owned | {"history": {**steps, **changes, "place": history.place}}

    def _local_products(self) -> Array:
        points = self.points
        if self._at is None:
            return self.history.products(points.trial_grad)
        return self.history.tell(self._trying, self._direction, points.trial_grad, points.grad)

    def _begun(self, products: Array) -> None:
        self.history.renew(products)
        if isinstance(self.history, ReplicatedHistory):
            self.history.preconditioner = self.preconditioner

    def _decrement_square(self) -> float:
        """As the metric says, and where they say more as the pairs do, of which the next direction is made."""
        known = super()._decrement_square()
        if math.isfinite(known) and self.history.place["count"] and self.at.square > 0:
            self._ready = self.history.direction(self.points.grad, self.at.square, self._direction)
            return max(known, -self._ready)
        return known

    def _precondition_by_all(self, when: int) -> None:
        super()._precondition_by_all(when)
        self.history.preconditioner = self.preconditioner
        self.history.forget()

    def _measure(self) -> None:
        self._ready = None
        super()._measure()

    def _take_start(self) -> bool:
        self._trying = 1.0
        return super()._take_start()

    def _advance(self) -> None:
        if self._from_here():
            return
        if self.history.place["count"]:
            self.history.forget()  # perhaps the estimate is to blame: try the gradient itself
            if self._from_here():
                self._warn("a search along L-BFGS's direction found nothing lower: its pairs were dropped to go on")
                return
        self._stop()

    def _from_here(self) -> bool:
        """Search along the next direction; collective."""
        history, points, square = self.history, self.points, self.at.square
        if square == 0:
            return False
        self.objective.mark(UPDATE)
        slope, self._ready = self._ready, None
        if slope is None:
            slope = history.direction(points.grad, square, self._direction)
        if not (slope < 0 and math.isfinite(slope)):
            history.forget()
            slope = history.direction(points.grad, square, self._direction)
        scaled = history.place["count"] or self.preconditioner is not None
        return self._search(slope, 1.0 if scaled else min(1.0, 1.0 / math.sqrt(square)))

    def _slope(self, trial: Evaluation) -> float:
        return float(trial.products[0]) / self._trying

    def _tell(self, t: float) -> None:
        assert self._trial is not None
        self.history.keep(np.asarray(self._trial.products), self.curvature_threshold)
