"""A sum over the ranks as a `Problem`: how they put together what each knows of it, vectors sharded or replicated."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from ...messages import tell
from ...models import Sums
from ...objective import DistributedSum, inner, square
from ...optim.solvers.orthant import pseudo_gradient
from ...optim.solvers.problem import NOTHING, Evaluation, Problem
from ...trace import COMPUTE, PUBLISH, REDUCE, UPDATE

Array = Any


class ExchangedProblem(Problem):
    """A sum to which every rank adds its part, `_sums`, bound to an exchange.

    Args:
        objective: what is summed and how vectors travel; on the host.
        start: the first point, shape (layout.size,), the same on every rank.

    Attributes:
        point, trial: buffers of the current and the trial point, shape (layout.size,), replicated.
        penalty: l2 where parameters decay, else 0; shape (layout.size,), float64; None where it is not known.
        weight: of the whole sum.
        collinear: features that were found to depend on others, numbers from 0; None: nobody looked.
    """

    collinear: list[int] | None = None
    penalty: Array = None
    weight = 1.0

    def __init__(self, objective: DistributedSum, start: Array) -> None:
        self.objective = objective
        self.parameter_dtype = objective.dtype
        self.dtype = np.dtype(np.float64) if self.replicated else objective.dtype
        self.point, self.trial = objective.empty(one_copy=True), objective.empty(one_copy=True)
        self.point[:] = start
        owned = objective.mine.stop - objective.mine.start
        self.grad, self.trial_grad = np.zeros(owned, self.dtype), np.zeros(owned, self.dtype)
        self.l1 = objective.thresholds().astype(self.dtype) if objective.l1 else None
        self._grad_all = objective.empty()
        self.counts = {"evaluations": 0, "products": 0}
        self._told: set[str] = set()

    @property
    def w(self) -> Array:
        """See `Problem.w`."""
        return self.point[self.objective.mine]

    @property
    def outward(self) -> Array:
        """The current point as the user sees it, shape (layout.size,), replicated."""
        return self.point

    def value(self) -> float:
        """The objective at the point as the user sees it; collective."""
        return self.evaluate(current=True).value

    def restored(self) -> None:
        """Take the owned slice of the point as it was written to; collective."""
        self._publish(self.point)

    def without_optimum(self) -> str | None:
        """Why no finite point is a minimum, where the current one shows it; collective."""
        return None

    def warm_up(self, hessian: bool) -> None:
        """Compile what evaluations and products need, and a ``hessian`` with them; changes scratch alone; local."""

    def evaluate(
        self,
        auxiliary: Array = NOTHING,
        products: Callable[[], Array] | None = None,
        more: Callable[[], Array] | None = None,
        *,
        current: bool = False,
    ) -> Evaluation:
        """See `Problem.evaluate`."""
        w = self.point if current else self.trial
        self.objective.mark(COMPUTE)
        self.counts["evaluations"] += 1
        local = self._sums(w)
        auxiliary = auxiliary if more is None else np.concatenate([auxiliary, more()])
        self.objective.mark(REDUCE)
        return self._combine(w, local, auxiliary, products or (lambda: NOTHING))

    @abstractmethod
    def _sums(self, w: Array) -> Sums:
        """This rank's sums at ``w``, and the gradient into ``_grad_all``; local."""

    @abstractmethod
    def _combine(self, w: Array, local: Sums, auxiliary: Array, products: Callable[[], Array]) -> Evaluation:
        """The part of `evaluate` in which the ranks put together what each has found."""

    def _check(self, weight: float) -> None:
        """Refuse a total ``weight`` that cannot be; local."""

    def accept(self, *, current: bool = False) -> None:
        """See `Problem.accept`."""
        self._keep_gradient()
        self.slope, self.trial_slope = self.trial_slope, self.slope
        if not current:
            self.point, self.trial = self.trial, self.point

    def _keep_gradient(self) -> None:
        self.grad, self.trial_grad = self.trial_grad, self.grad

    def _steepest(self, w: Array) -> Array:
        """The gradient at ``w``, or with an l1 penalty the pseudo-gradient, also into ``trial_slope``; a slice."""
        if self.l1 is None:
            return self.trial_grad
        self.trial_slope = pseudo_gradient(w[self.objective.mine], self.trial_grad, self.l1)
        return self.trial_slope

    def move(self, t: float, direction: Array) -> None:
        """See `Problem.move`."""
        from ...optim.solvers.history_kernels import move

        self.objective.mark(UPDATE)
        move(self.w, direction.dtype.type(t), direction, self.trial[self.objective.mine])
        self._publish(self.trial)

    @abstractmethod
    def _publish(self, w: Array) -> None:
        """Let all ranks have the slices of ``w`` that their owners have written; collective."""

    def propose(self, w: Array) -> None:
        """See `Problem.propose`."""
        self.trial[:] = w

    @abstractmethod
    def settle(self) -> None:
        """Exchange vectors as `evaluate` does; changes the trial point and arrays of its own; collective."""

    def _product(self, v: Array, out: Array) -> None:
        """This rank's part of the curvature's product with ``v``, both whole and in the model's dtype; local."""
        raise NotImplementedError

    def warn(self, message: str) -> None:
        """See `Problem.warn`."""
        if self.objective.comm.rank == 0 and message not in self._told:
            tell(message, warning=True)
        self._told.add(message)


class ShardedProblem(ExchangedProblem):
    """Slices over the ranks: three rounds an evaluation, of which one publishes the point.

    Vectors are in the model's dtype.

    Attributes:
        diagonal: approximate one of the Hessian, this rank's slice, float64, positive; None: it is not known.
    """

    diagonal: Array | None = None

    def __init__(self, objective: DistributedSum, start: Array) -> None:
        super().__init__(objective, start)
        self.trial_grad = self._grad_all[objective.mine]
        self._direction: Array | None = None  # of a product, whole

    def _keep_gradient(self) -> None:
        self.grad[:] = self.trial_grad

    def _publish(self, w: Array) -> None:
        """See `ExchangedProblem._publish`."""
        self.objective.mark(PUBLISH)
        self.objective.exchange.publish(w, self.objective.owners)

    def settle(self) -> None:
        """See `ExchangedProblem.settle`."""
        self.objective.reduce_grad(self.point, self._grad_all, 1.0)
        self._publish(self.trial)

    def _combine(self, w: Array, local: Sums, auxiliary: Array, products: Callable[[], Array]) -> Evaluation:
        """See `ExchangedProblem._combine`."""
        objective = self.objective
        objective.reduce_grad(w, self._grad_all, self.weight)
        objective.mark(UPDATE)
        slope, norms = self._steepest(w), objective.owned_norms(w)
        scaled = math.nan if self.diagonal is None else inner(slope, slope / self.diagonal)
        own = np.append([square(slope), scaled], products())
        own = own if objective.counts else np.zeros_like(own)  # of replicated vectors one rank's products count
        (loss, weight, *auxiliary), totals = objective.sums(np.append(local, auxiliary), np.append(norms, own))
        self._check(weight)
        (norm, scaled, *found), norms = totals[len(norms) :], totals[: len(norms)]
        value = loss / weight + objective.penalty(norms)
        return Evaluation(value, norm, local, np.array(auxiliary), np.array(found), scaled)

    def product(self, v: Array, out: Array) -> None:
        """See `Problem.product`: three rounds with the product's use in an inner product."""
        objective, mine = self.objective, self.objective.mine
        if self._direction is None:
            self._direction, self._curved = objective.empty(one_copy=True), objective.empty()
        self._direction[mine] = v
        objective.mark(PUBLISH)
        objective.row_exchange.publish(self._direction, objective.owners)
        self._product(self._direction, self._curved)
        objective.mark(REDUCE)
        objective.reduce_grad(self._direction, self._curved, self.weight)
        objective.mark(UPDATE)
        out[:] = self._curved[mine]

    def dots(self, *pairs: tuple[Array, Array]) -> list[float]:
        """See `Problem.dots`."""
        own = [inner(a, b) if self.objective.counts else 0.0 for a, b in pairs]
        return self.objective.everyone.sum(own).tolist()

    def local_dot(self, a: Array, b: Array) -> float:
        """See `Problem.local_dot`."""
        return float(inner(a, b))

    def scaled_product(self, v: Array) -> float:
        """See `Problem.scaled_product`."""
        return self.dots((v if self.diagonal is None else v * self.diagonal, v))[0]


class ReplicatedProblem(ExchangedProblem):
    """Few parameters: every rank has the whole of all vectors, and everything of an evaluation travels in one message.

    Vectors are float64.  What ranks make of them must come out alike, to the bit: see `optim.solvers.ordered`.
    """

    replicated = True

    def __init__(self, objective: DistributedSum, start: Array) -> None:
        from ...optim.solvers.ordered import dot  # loads Numba

        super().__init__(objective, start)
        self._dot = dot
        layout = objective.layout
        self.penalty = np.zeros(layout.size)  # l2 where parameters decay
        for low, high in layout.decay_ranges(0, layout.size):
            self.penalty[low:high] = objective.l2
        if objective.strengths is not None:
            self.penalty *= objective.strengths
        self._direction = np.empty(layout.size, objective.dtype)

    def settle(self) -> None:
        """See `ExchangedProblem.settle`."""
        self.objective.comm.sum(self._grad_all)

    def _publish(self, w: Array) -> None:
        """See `ExchangedProblem._publish`: all have written all of it."""

    def _combine(self, w: Array, local: Sums, auxiliary: Array, products: Callable[[], Array]) -> Evaluation:
        """See `ExchangedProblem._combine`."""
        objective = self.objective
        totals = objective.comm.sum(np.concatenate([local, self._grad_all, auxiliary]))
        objective.mark(UPDATE)
        loss, weight = totals[:2].tolist()
        self._check(weight)
        wide = w.astype(np.float64)
        np.divide(totals[2 : 2 + w.size], weight, out=self.trial_grad)
        pull = self.penalty * wide
        self.trial_grad += pull
        value = loss / weight + 0.5 * self._dot(pull, wide)
        if self.l1 is not None:
            value += self._dot(self.l1, np.abs(wide))
        slope = self._steepest(wide)
        norm = self._dot(slope, slope)
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

    def local_dot(self, a: Array, b: Array) -> float:
        """See `Problem.local_dot`: of whole vectors it is the whole."""
        return self._dot(a, b)
