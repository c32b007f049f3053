"""The objective over all rows, as methods that search ask for it: values, gradients and products, in few rounds."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ...backend import HOST
from ...data import Batch
from ...models import Abilities, Linearization, Sums
from ...models.curvature import HessianRows
from ...objective import Objective, inner, square
from ...optim.solvers.preconditioner import NO_NULL_SPACE
from ...trace import COMPUTE, PUBLISH, REDUCE, UPDATE

Array = Any
NOTHING = np.empty(0)


def has_curvature(model: Any) -> bool:
    """Whether ``model`` has ``linearize``, and from the class that has its ``loss_and_grad``: who overrides one alone
    means something else by it."""
    return Abilities.of(model).curvature is not None


def is_linear(model: Any) -> bool:
    """Whether the matrix of the curvature of ``model`` can be had, and is the Hessian."""
    return Abilities.of(model).linear is not None


def null_space(model: Any, penalty: Array) -> Array:
    """Places of parameters that may all grow alike without a change of the objective, shape (groups, members).

    Of softmax regression the parameters of all classes that belong to one column, where nothing penalises them; of
    other linear models none.

    Args:
        penalty: of all parameters, shape (layout.size,).
    """
    if not model.loss_function.several:
        return NO_NULL_SPACE
    columns = np.arange(model.layout.size).reshape(-1, model.widths[-1])
    return columns[penalty[columns[:, 0]] == 0]


class Evaluation(NamedTuple):
    """What is known of a point; the same on every rank but for ``sums``.

    Attributes:
        value: the objective.
        square: ‖gradient‖².
        sums: this rank's sums of losses and weights.
        auxiliary: sums over the ranks of what travelled beside the gradient.
        products: of the inner products that were asked for.
        scaled: gᵀ D⁻¹ g, g the gradient and D `ShardedProblem.diagonal`; nan where that is not known.
    """

    value: float
    square: float
    sums: Sums
    auxiliary: Array
    products: Array
    scaled: float = math.nan


class RowsProblem(ABC):
    """The objective over all rows at one point after another: the current one, and a trial point that may replace it.

    Vectors of the method lie in the owned slices (replicated: whole, on every rank).  Rows are seen without dropout.

    Args:
        objective: what is minimised; on the host.
        linearizes: whether products with the curvature are wanted, or values along lines: for these the rows'
            linearizations are kept.

    Attributes:
        dtype: of the method's vectors.
        grad, trial_grad: gradient at the current and at the trial point, this rank's slice.
        rows, trial_rows: linearizations there, one for each batch of this rank.
        weight: of all rows of all ranks.
        penalty: of whole vectors l2 where parameters decay, else 0; shape (layout.size,).
        counts: ``evaluations`` and ``products``, how many there were.
    """

    def __init__(self, objective: Objective, linearizes: bool, dtype: Any) -> None:
        self.objective, self.linearizes, self.dtype = objective, linearizes, np.dtype(dtype)
        owned = objective.mine.stop - objective.mine.start
        self.grad, self.trial_grad = np.zeros(owned, dtype), np.zeros(owned, dtype)
        self.penalty: Array = None
        self.rows: list[Any] = []
        self.trial_rows: list[Any] = []
        self._grad_all = objective.empty()
        self.weight = objective.loader.total_weight
        self.counts = {"evaluations": 0, "products": 0}

    def evaluate(
        self,
        w: Array,
        auxiliary: Array = NOTHING,
        products: Callable[[], Array] | None = None,
        more: Callable[[], Array] | None = None,
    ) -> Evaluation:
        """The objective at ``w``, whole, and its gradient into ``trial_grad``; collective.

        ``auxiliary`` are this rank's parts of sums that are wanted too, and after them what ``more`` gives once the
        rows are linearized.  ``products`` gives, once the gradient is known, this rank's parts of inner products of
        vectors.
        """
        local = self._sums(w)
        auxiliary = auxiliary if more is None else np.concatenate([auxiliary, more()])
        return self._combine(w, local, auxiliary, products or (lambda: NOTHING))

    @abstractmethod
    def _combine(self, w: Array, local: Sums, auxiliary: Array, products: Callable[[], Array]) -> Evaluation:
        """The part of `evaluate` in which the ranks put together what each has found."""

    @abstractmethod
    def product(self, w: Array, v: Array, out: Array) -> None:
        """out ← curvature at the current point ``w`` · ``v``, slices, penalty included; collective."""

    @abstractmethod
    def dots(self, *pairs: tuple[Array, Array]) -> list[float]:
        """Inner products of pairs of slices, over all ranks and the same on all of them; collective."""

    @abstractmethod
    def publish(self, w: Array) -> None:
        """Let all ranks have the slices of ``w`` that their owners have written; collective."""

    def accept(self) -> None:
        """Make the trial point the current one; local."""
        self.grad, self.trial_grad = self.trial_grad, self.grad
        self.rows, self.trial_rows = self.trial_rows, self.rows

    def warm_up(self, w: Array, batch: Batch) -> None:
        """Compile what `evaluate` and products need, on this rank's rows or on ``batch``; changes scratch alone."""
        model, loader = self.objective.model, self.objective.loader
        if not self.objective.abilities.warm_up:
            return
        batch = next(iter(loader.sequential()), batch)  # views, perhaps, where batches of steps are copies
        if not self.linearizes:
            model.loss_and_grad(w, batch, self._grad_all)
            return
        _, kept = self._linearize(w, batch, self._grad_all, None)
        kept.product(w, batch, self._grad_all, self._grad_all.copy())
        if self.has_lines:
            kept.line(kept, 0.0)  # type: ignore[attr-defined]

    @abstractmethod
    def settle(self, w: Array, scratch: Array) -> None:
        """Exchange vectors as `evaluate` does; changes ``scratch`` and arrays of its own; collective."""

    @property
    def has_lines(self) -> bool:
        """Whether `line` works: the model is linear with one output."""
        return self.linearizes and self.objective.abilities.margins

    def line(self, t: float, w: Array, direction: Array, whole: float) -> tuple[float, float]:
        """Value and slope at w + t · direction, from margins alone; collective, one small sum.

        The trial point is that of t = ``whole``; ``w`` and ``direction`` are owned slices.
        """
        objective = self.objective
        objective.mark(COMPUTE)
        loss, slope = 0.0, 0.0
        for here, there in zip(self.rows, self.trial_rows, strict=True):
            more, rise = here.line(there, t / whole)
            loss, slope = loss + more, slope + rise / whole
        squares = self._penalty_products(w, direction)
        objective.mark(REDUCE)
        totals = objective.comm.sum([loss, slope, *squares])
        objective.mark(UPDATE)
        loss, slope, ww, wd, dd = totals.tolist()
        value = loss / self.weight + 0.5 * (ww + 2 * t * wd + t * t * dd)
        return value, slope / self.weight + wd + t * dd

    def _penalty_products(self, w: Array, direction: Array) -> list[float]:
        """This rank's parts of l2 times w·w, w·direction and direction·direction over slots with decay."""
        objective, start = self.objective, self.objective.mine.start
        found = [0.0, 0.0, 0.0]
        if not (objective.l2 and objective.counts):
            return found
        for low, high in objective.model.layout.decay_ranges(start, objective.mine.stop):
            for i, (p, q) in enumerate(((w, w), (w, direction), (direction, direction))):
                found[i] += objective.l2 * objective.decay_product(p, q, low, high)
        return found

    def _sums(self, w: Array) -> Sums:
        """This rank's sums of losses at ``w``, and their gradient into ``_grad_all``; local."""
        objective = self.objective
        objective.mark(COMPUTE)
        model, rows, w = objective.model, self.trial_rows, HOST.read_only(w)
        self.counts["evaluations"] += 1
        turn = 0

        def linearize(w: Array, batch: Batch, grad: Array) -> Sums:
            nonlocal turn
            old = rows[turn] if turn < len(rows) else None
            sums, kept = self._linearize(w, batch, grad, old)
            rows[turn : turn + 1] = [kept]
            turn += 1
            return sums

        by = linearize if self.linearizes else model.loss_and_grad
        return objective.sums_and_grad(w, objective.loader.sequential(), self._grad_all, by)

    def _linearize(self, w: Array, batch: Batch, grad: Array, old: Any) -> tuple[Sums, Linearization]:
        """As `SupportsCurvature.linearize`, by what the model has for it."""
        model, curved = self.objective.model, self.objective.abilities.curvature
        if curved is not None:
            return curved.linearize(w, batch, grad, old)
        return model.loss_and_grad(w, batch, grad), old or HessianRows(model)

    def _product(self, w: Array, v: Array, out: Array) -> None:
        """This rank's part of the curvature's product with ``v``, both whole and in the model's dtype; local."""
        objective = self.objective
        objective.mark(COMPUTE)
        self.counts["products"] += 1
        kept = iter(self.rows)

        def product(v: Array, batch: Batch, out: Array) -> Sums:
            next(kept).product(w, batch, v, out)
            return Sums(0.0, 0.0)

        objective.sums_and_grad(v, objective.loader.sequential(), out, product)


class ShardedProblem(RowsProblem):
    """Slices over the ranks: three rounds an evaluation, of which one publishes the point.

    Vectors are in the model's dtype.

    Attributes:
        diagonal: approximate one of the Hessian, this rank's slice, float64, positive; None: it is not known.
    """

    diagonal: Array | None = None

    def __init__(self, objective: Objective, linearizes: bool) -> None:
        super().__init__(objective, linearizes, objective.model.dtype)
        self.trial_grad = self._grad_all[objective.mine]
        self._way: Array | None = None  # of a product, whole

    def find_diagonal(self, local: Array, scratch: Array) -> None:
        """Let ``diagonal`` follow from this rank's sum ``local``, shape (layout.size,), over all ranks; collective.

        ``scratch`` has the parameters' shape and memory.
        """
        objective = self.objective
        self._grad_all[:] = local
        objective.reduce_grad(np.ones_like(scratch), self._grad_all, self.weight)  # adds l2 times the ones
        found = self.trial_grad.astype(np.float64)
        self.diagonal = np.where((found > 0) & np.isfinite(found), found, 1.0)
        objective.comm.barrier()  # others may still read this rank's sum

    def accept(self) -> None:
        """See `RowsProblem.accept`."""
        self.grad[:] = self.trial_grad
        self.rows, self.trial_rows = self.trial_rows, self.rows

    def publish(self, w: Array) -> None:
        """See `RowsProblem.publish`."""
        self.objective.mark(PUBLISH)
        self.objective.exchange.publish(w, self.objective.owners)

    def settle(self, w: Array, scratch: Array) -> None:
        """See `RowsProblem.settle`."""
        self.objective.reduce_grad(w, self._grad_all, 1.0)
        self.publish(scratch)

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

    def product(self, w: Array, v: Array, out: Array) -> None:
        """See `RowsProblem.product`: three rounds with the product's use in an inner product."""
        objective, mine = self.objective, self.objective.mine
        if self._way is None:
            self._way, self._curved = objective.empty(one_copy=True), objective.empty()
        self._way[mine] = v
        self.publish(self._way)
        self._product(w, self._way, self._curved)
        objective.mark(REDUCE)
        objective.reduce_grad(self._way, self._curved, self.weight)
        objective.mark(UPDATE)
        out[:] = self._curved[mine]

    def dots(self, *pairs: tuple[Array, Array]) -> list[float]:
        """See `RowsProblem.dots`."""
        own = [inner(a, b) if self.objective.counts else 0.0 for a, b in pairs]
        return self.objective.comm.sum(own).tolist()


class ReplicatedProblem(RowsProblem):
    """Few parameters: every rank has the whole of all vectors, and everything of an evaluation travels in one message.

    Vectors are float64.  What ranks make of them must come out alike, to the bit: see `optim.solvers.ordered`.
    """

    def __init__(self, objective: Objective, linearizes: bool) -> None:
        from ...optim.solvers.ordered import dot  # loads Numba

        super().__init__(objective, linearizes, np.float64)
        self._dot = dot
        layout = objective.model.layout
        self.penalty = np.zeros(layout.size)  # l2 where parameters decay
        for low, high in layout.decay_ranges(0, layout.size):
            self.penalty[low:high] = objective.l2
        if objective.strengths is not None:
            self.penalty *= objective.strengths
        self._way = np.empty(layout.size, objective.model.dtype)

    def settle(self, w: Array, scratch: Array) -> None:
        """See `RowsProblem.settle`."""
        self.objective.comm.sum(self._grad_all)

    def publish(self, w: Array) -> None:
        """See `RowsProblem.publish`: all have written all of it."""

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

    def product(self, w: Array, v: Array, out: Array) -> None:
        """See `RowsProblem.product`."""
        objective = self.objective
        self._way[:] = v
        self._product(w, self._way, self._grad_all)
        objective.mark(REDUCE)
        totals = objective.comm.sum(self._grad_all)
        objective.mark(UPDATE)
        np.divide(totals, self.weight, out=out)
        out += self.penalty * v

    def dots(self, *pairs: tuple[Array, Array]) -> list[float]:
        """See `RowsProblem.dots`."""
        return [self._dot(a, b) for a, b in pairs]
