"""How the ranks put together what each knows of the objective: vectors sharded, or replicated."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ...models import Sums
from ...objective import Objective, inner, square
from ...optim.solvers.problem import Evaluation
from ...trace import PUBLISH, REDUCE, UPDATE
from .problem import RowsProblem

Array = Any


class ShardedProblem(RowsProblem):
    """Slices over the ranks: three rounds an evaluation, of which one publishes the point.

    Vectors are in the model's dtype.

    Attributes:
        diagonal: approximate one of the Hessian, this rank's slice, float64, positive; None: it is not known.
    """

    diagonal: Array | None = None

    def __init__(self, objective: Objective, linearizes: bool, *given: Any) -> None:
        super().__init__(objective, linearizes, objective.model.dtype, *given)
        self.trial_grad = self._grad_all[objective.mine]
        self._direction: Array | None = None  # of a product, whole

    def find_diagonal(self) -> None:
        """Let ``diagonal`` follow from the rows of all ranks; collective."""
        objective = self.objective
        self._grad_all[:] = self.local_diagonal()
        objective.reduce_grad(np.ones_like(self.point), self._grad_all, self.weight)  # adds l2 times the ones
        found = self.trial_grad.astype(np.float64)
        self.diagonal = np.where((found > 0) & np.isfinite(found), found, 1.0)
        objective.comm.barrier()  # others may still read this rank's sum

    def _keep_gradient(self) -> None:
        self.grad[:] = self.trial_grad

    def _publish(self, w: Array) -> None:
        """See `RowsProblem._publish`."""
        self.objective.mark(PUBLISH)
        self.objective.exchange.publish(w, self.objective.owners)

    def settle(self) -> None:
        """See `RowsProblem.settle`."""
        self.objective.reduce_grad(self.point, self._grad_all, 1.0)
        self._publish(self.trial)

    def _combine(self, w: Array, local: Sums, auxiliary: Array, products: Callable[[], Array]) -> Evaluation:
        """See `RowsProblem._combine`."""
        objective = self.objective
        objective.mark(REDUCE)
        objective.reduce_grad(w, self._grad_all, self.weight)
        objective.mark(UPDATE)
        scaled = math.nan if self.diagonal is None else inner(self.trial_grad, self.trial_grad / self.diagonal)
        own = np.append([square(self.trial_grad), scaled], products())
        own = own if objective.counts else np.zeros_like(own)  # of replicated vectors one rank's products count
        few = np.concatenate([[*local, objective.owned_square(w)], own, auxiliary])
        totals = objective.comm.sum(few)
        loss, weight, penalised, norm, scaled = totals[:5].tolist()
        objective.check_weight(weight)
        value = loss / weight + 0.5 * objective.l2 * penalised
        return Evaluation(value, norm, local, totals[3 + own.size :], totals[5 : 3 + own.size], scaled)

    def product(self, v: Array, out: Array) -> None:
        """See `Problem.product`: three rounds with the product's use in an inner product."""
        objective, mine = self.objective, self.objective.mine
        if self._direction is None:
            self._direction, self._curved = objective.empty(one_copy=True), objective.empty()
        self._direction[mine] = v
        self._publish(self._direction)
        self._product(self._direction, self._curved)
        objective.mark(REDUCE)
        objective.reduce_grad(self._direction, self._curved, self.weight)
        objective.mark(UPDATE)
        out[:] = self._curved[mine]

    def dots(self, *pairs: tuple[Array, Array]) -> list[float]:
        """See `Problem.dots`."""
        own = [inner(a, b) if self.objective.counts else 0.0 for a, b in pairs]
        return self.objective.comm.sum(own).tolist()

    def scaled_product(self, v: Array) -> float:
        """See `Problem.scaled_product`."""
        return self.dots((v if self.diagonal is None else v * self.diagonal, v))[0]


class ReplicatedProblem(RowsProblem):
    """Few parameters: every rank has the whole of all vectors, and everything of an evaluation travels in one message.

    Vectors are float64.  What ranks make of them must come out alike, to the bit: see `optim.solvers.ordered`.
    """

    replicated = True

    def __init__(self, objective: Objective, linearizes: bool, *given: Any) -> None:
        from ...optim.solvers.ordered import dot  # loads Numba

        super().__init__(objective, linearizes, np.float64, *given)
        self._dot = dot
        layout = objective.model.layout
        self.penalty = np.zeros(layout.size)  # l2 where parameters decay
        for low, high in layout.decay_ranges(0, layout.size):
            self.penalty[low:high] = objective.l2
        if objective.strengths is not None:
            self.penalty *= objective.strengths
        self._direction = np.empty(layout.size, objective.model.dtype)

    def settle(self) -> None:
        """See `RowsProblem.settle`."""
        self.objective.comm.sum(self._grad_all)

    def _publish(self, w: Array) -> None:
        """See `RowsProblem._publish`: all have written all of it."""

    def _combine(self, w: Array, local: Sums, auxiliary: Array, products: Callable[[], Array]) -> Evaluation:
        """See `RowsProblem._combine`."""
        objective = self.objective
        objective.mark(REDUCE)
        totals = objective.comm.sum(np.concatenate([local, self._grad_all, auxiliary]))
        objective.mark(UPDATE)
        loss, weight = totals[:2].tolist()
        objective.check_weight(weight)
        wide = w.astype(np.float64)
        np.divide(totals[2 : 2 + w.size], weight, out=self.trial_grad)
        pull = self.penalty * wide
        self.trial_grad += pull
        value = loss / weight + 0.5 * self._dot(pull, wide)
        norm = self._dot(self.trial_grad, self.trial_grad)
        return Evaluation(value, norm, local, totals[2 + w.size :], products())

    def product(self, v: Array, out: Array) -> None:
        """See `Problem.product`."""
        objective = self.objective
        self._direction[:] = v
        self._product(self._direction, self._grad_all)
        objective.mark(REDUCE)
        totals = objective.comm.sum(self._grad_all)
        objective.mark(UPDATE)
        np.divide(totals, self.weight, out=out)
        out += self.penalty * v

    def dots(self, *pairs: tuple[Array, Array]) -> list[float]:
        """See `Problem.dots`."""
        return [self._dot(a, b) for a, b in pairs]
