"""Steps of methods that see all rows at once and search along a direction: quasi-Newton so far."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..backend import HOST
from ..data import Batch
from ..errors import ConfigError
from ..models import Sums
from ..objective import Objective, square
from ..optim import LBFGS
from ..optim.lbfgs import History
from ..optim.line_search import Found, Point
from ..trace import COMPUTE, REDUCE, UPDATE
from .steps import Steps

Array = Any


class QuasiNewtonSteps(Steps):
    """L-BFGS on the owned slices: direction → trial points until the search is content → the last of them is w.

    A trial costs three rounds: its slices are published, its gradient is reduced to slices, and one small sum tells the
    value, the slope and all inner products that the next direction needs.  Rows are seen without dropout.

    Args:
        objective, start: see `Steps`.
        optimizer: the method.
    """

    searches = True

    def __init__(self, objective: Objective, optimizer: LBFGS, start: Array) -> None:
        super().__init__(objective, start, None)
        if objective.loader.device is not HOST:
            raise ConfigError(f"--optimizer {optimizer.name} is for the CPU: choose --device cpu")
        if objective.half is not None:
            raise ConfigError(
                f"--wire float16 rounds gradients, from which {optimizer.name} takes differences: leave it out"
            )
        owned, dtype = objective.mine.stop - objective.mine.start, objective.model.dtype
        self.optimizer, self.history = optimizer, History(optimizer.memory, owned, dtype)
        self._grad_all = objective.empty()
        self._grad, self._direction = np.zeros(owned, dtype), np.zeros(owned, dtype)
        self._trial_grad = self._grad_all[objective.mine]
        self._at: Point | None = None  # value and squared norm of the gradient at w, once they are known
        self._sums = self._trial_sums = Sums(0.0, 0.0)
        self._totals: Array = None  # sums over ranks at the last trial point
        self.evaluations = 0

    @property
    def owned(self) -> dict[str, Any]:
        """See `Steps`."""
        history = self.history
        steps = {f"step{row}": vector for row, vector in enumerate(history.steps)}
        changes = {f"change{row}": vector for row, vector in enumerate(history.changes)}
        return {"w": self._w[self.objective.mine], "history": {**steps, **changes, "place": history.place}}

    @property
    def private(self) -> dict[str, Any]:
        """See `Steps`."""
        return {}

    @property
    def value(self) -> float | None:
        """See `Steps`."""
        return None if self._at is None else self._at.value

    def step(self, rows: int, weight: float, batches: Iterable[Batch], factor: float) -> Sums:
        """See `Steps.step`; takes all rows in their own order, and no ``batches``."""
        if self._at is None:
            self._begin(weight)
        before, found = self._sums, self._search(weight)
        if found.point.t == 0 and self.history.place["count"]:
            self.history.forget()  # perhaps the estimate is to blame: try the gradient itself
            found = self._search(weight)
        if found.point.t == 0:
            self.stop_reason = "no further decrease"
            return before
        if not found.last:
            self._evaluate(found.point.t, weight)
        self._accept()
        return before

    def _search(self, weight: float) -> Found:
        """Find a point along the next direction; collective."""
        history, at = self.history, self._at
        assert at is not None
        self.objective.mark(UPDATE)
        slope = history.slope(at.slope)
        if not (slope < 0 and math.isfinite(slope)):
            history.forget()
            slope = -at.slope
        history.direction(self._grad, self._direction)
        start = Point(0.0, at.value, slope)
        if not math.isfinite(at.value) or slope == 0:
            return Found(start, False, False, 0)
        first = 1.0 if history.place["count"] else min(1.0, 1.0 / math.sqrt(at.slope))
        precision = 10.0 * float(np.finfo(self._grad.dtype).eps)
        return self.optimizer.search.find(lambda t: self._evaluate(t, weight), start, first, precision)

    def _begin(self, weight: float) -> None:
        """Value and gradient at w, and the history's products; collective."""
        local = self._gradient(self._w, weight)
        self._grad[:] = self._trial_grad
        products = self._counted(np.append(square(self._grad), self.history.products(self._grad)))
        totals = self.objective.comm.sum(np.concatenate([self._numbers(self._w, local), products]))
        self.history.renew(totals[4:])
        self._sums, self._at = local, Point(0.0, self._value(totals), float(totals[3]))
        self.gradient_norm = math.sqrt(self._at.slope)
        if self.first_norm is None:
            self.first_norm = self.gradient_norm

    def _evaluate(self, t: float, weight: float) -> tuple[float, float]:
        """Value and slope at w + t · direction, which is left in the second buffer; collective."""
        objective, mine = self.objective, self.objective.mine
        objective.mark(UPDATE)
        self.history.move(self._w[mine], t, self._direction, self._w_next[mine])
        self._spread(self._w_next)
        local = self._gradient(self._w_next, weight)
        objective.mark(UPDATE)
        pair = self._counted(self.history.tell(t, self._direction, self._trial_grad, self._grad))
        self._totals = objective.comm.sum(np.concatenate([self._numbers(self._w_next, local), pair]))
        self._trial_sums = local
        return self._value(self._totals), float(self._totals[3]) / t

    def _gradient(self, w: Array, weight: float) -> Sums:
        """This rank's sums of losses at ``w``, all of it, and its slice of the gradient; collective."""
        objective = self.objective
        objective.mark(COMPUTE)
        sums = objective.sums_and_grad(w, objective.loader.sequential(), self._grad_all)
        objective.mark(REDUCE)
        objective.reduce_grad(w, self._grad_all, weight)
        self.evaluations += 1
        return sums

    def _counted(self, products: Array) -> Array:
        """``products``, this rank's part of a sum: of replicated vectors one rank's alone count."""
        return products if self.objective.counts else np.zeros_like(products)

    def _numbers(self, w: Array, local: Sums) -> Array:
        """This rank's part of: loss, weight, square of the penalised parameters."""
        return np.array([*local, self.objective.owned_square(w)])

    def _value(self, totals: Array) -> float:
        """The objective, from sums over the ranks that begin with `_numbers`."""
        loss, weight, penalised = totals[:3].tolist()
        return loss / weight + 0.5 * self.objective.l2 * penalised

    def _accept(self) -> None:
        """Make the last trial point w; local."""
        self.history.keep(self._totals[3:], self.optimizer.caution)
        self._grad[:] = self._trial_grad
        self._at, self._sums = Point(0.0, self._value(self._totals), float(self._totals[4])), self._trial_sums
        self.gradient_norm = math.sqrt(self._at.slope)
        self._w, self._w_next = self._w_next, self._w

    def close_epoch(self) -> None:
        """See `Steps`: ``w`` is up to date after every step."""

    def restored(self) -> None:
        """See `Steps`."""
        super().restored()
        self._at = None

    def warm_up(self, batch: Batch) -> None:
        """See `Steps`."""
        self.objective.sums_and_grad(self.w, [batch], self._grad_all)

    def settle(self, batch: Batch) -> None:
        """See `Steps`."""
        self.objective.reduce_grad(self._w, self._grad_all, 1.0)
        self._spread(self._w_next)
