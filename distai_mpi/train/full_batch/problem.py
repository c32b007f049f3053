"""The objective over all rows as a `Problem`: a model, its rows and an exchange, bound together in few rounds."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from ...backend import HOST
from ...data import Batch
from ...data.batch import zeros_row
from ...models import Linearization, Sums
from ...models.curvature import HessianRows
from ...objective import Objective
from ...optim.solvers.preconditioner import Diagonal, Factored, Preconditioner, RankFactored
from ...optim.solvers.problem import SampledStart
from ...settings import worded
from ...trace import COMPUTE, REDUCE, UPDATE
from ..metrics import least_loss
from .exchanged import ExchangedProblem, ReplicatedProblem, ShardedProblem
from .sample import (
    MOST_DENSE,
    Estimate,
    by_parameter,
    diagonal_of_all,
    hessian_of_all,
    is_linear,
    null_space,
    precise,
    sample_size,
    solve_sample,
    symmetric,
    triangle_of,
    warm_up,
)
from .separable import without_optimum
from .units import Units, rounding_of

Array = Any
POOR = 1e-2  # of the diagonal: a sample's Hessian that needs more added to it says little


class RowsProblem(ExchangedProblem):
    """The objective over all rows; these are seen without dropout.

    Args:
        objective: what is minimised; on the host, in ``units``.
        start: see `ExchangedProblem`.
        linearizes: whether products with the curvature are wanted, or values along lines: for these the rows'
            linearizations are kept.
        columns: roots of the mean squares of features, see `spread_of`; None: the model is not linear.
        units: those of the parameters inside, of a linear model; None: they are those of the rows.

    Attributes:
        rows, trial_rows: linearizations there, one for each batch of this rank.
    """

    objective: Objective

    def __init__(
        self,
        objective: Objective,
        start: Array,
        linearizes: bool,
        columns: Array | None = None,
        units: Units | None = None,
    ) -> None:
        super().__init__(objective, start)
        model: Any = objective.model
        self.linearizes, self.units, self._columns = linearizes, units, columns
        self.rows: list[Any] = []
        self.trial_rows: list[Any] = []
        self.weight, self.terms = objective.loader.total_weight, objective.loader.shard.rows
        self.least_value = least_loss(objective.abilities.loss, objective.loader, objective.comm)
        self._outward: Array | None = None  # the current point in the units of the rows
        self.is_linear = is_linear(model)
        self.is_dense = self.is_linear and model.layout.size <= MOST_DENSE
        self.has_constant_hessian = self.is_linear and model.loss_function.quadratic
        abilities = objective.abilities
        self.has_products = abilities.curvature is not None or abilities.hessian is not None
        self.has_lines = linearizes and abilities.margins
        if self.is_dense and objective.whole:
            self.hessian_products = self.terms / objective.comm.size * model.layout.size**2

    @property
    def outward(self) -> Array:
        """See `ExchangedProblem.outward`: in the units of the rows."""
        if self.units is None:
            return self.point
        if self._outward is None:
            self._outward = self.units.outward(self.objective.model, self.point).astype(self.parameter_dtype)
        return self._outward

    @property
    def rounded(self) -> Array:
        """The current point as it is once it was rounded in the units of the rows, float64 where these are others."""
        return self.point if self.units is None else self.units.inward(self.objective.model, self.outward)

    @property
    def inside(self) -> Array:
        """As `rounded`, in the model's dtype, read-only."""
        return HOST.read_only(self.rounded.astype(self.parameter_dtype, copy=False))

    def value(self) -> float:
        """See `ExchangedProblem.value`."""
        return self.objective.value(self.inside)

    def restored(self) -> None:
        """See `ExchangedProblem.restored`."""
        super().restored()
        self._outward = None

    def without_optimum(self) -> str | None:
        """See `ExchangedProblem.without_optimum`."""
        return without_optimum(self.objective, self.inside)

    def _check(self, weight: float) -> None:
        """See `ExchangedProblem._check`."""
        self.objective.check_weight(weight)

    def accept(self, *, current: bool = False) -> None:
        """See `Problem.accept`."""
        super().accept(current=current)
        self.rows, self.trial_rows = self.trial_rows, self.rows
        self._outward = self._outward if current else None

    def warm_up(self, hessian: bool) -> None:
        """See `ExchangedProblem.warm_up`; on the first rows, or a row of zeros on a rank without any."""
        objective, w = self.objective, HOST.read_only(self.point)
        model, loader = objective.model, objective.loader
        if not objective.abilities.warm_up:
            return
        batch = next(iter(loader.sequential()), zeros_row(loader))
        if self.linearizes:
            _, kept = self._linearize(w, batch, self._grad_all, None)
            kept.product(w, batch, self._grad_all, self._grad_all.copy())
            if self.has_lines:
                kept.line(kept, 0.0)  # type: ignore[attr-defined]
        else:
            model.loss_and_grad(w, batch, self._grad_all)
        if hessian:
            row = batch.take(slice(1))._replace(weight=None)
            _, kept = self._linearize(w, row, np.empty_like(self.point), None)
            kept.add_matrix(row, np.zeros((w.size, w.size)), precise(objective))  # type: ignore[attr-defined]
        elif self.is_linear:
            warm_up(objective)

    def line(self, t: float, direction: Array, read: float) -> tuple[float, float]:
        """See `Problem.line`: from margins alone, one small sum."""
        objective = self.objective
        objective.mark(COMPUTE)
        loss, slope = 0.0, 0.0
        for here, there in zip(self.rows, self.trial_rows, strict=True):
            more, rise = here.line(there, t / read)
            loss, slope = loss + more, slope + rise / read
        squares = self._penalty_products(self.w, direction)
        objective.mark(REDUCE)
        (loss, slope), (ww, wd, dd) = objective.sums([loss, slope], squares)
        objective.mark(UPDATE)
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
        model, rows, w = objective.model, self.trial_rows, HOST.read_only(w)
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

    def _product(self, v: Array, out: Array) -> None:
        """This rank's part of the curvature's product with ``v``, both whole and in the model's dtype; local."""
        objective = self.objective
        objective.mark(COMPUTE)
        self.counts["products"] += 1
        kept, w = iter(self.rows), self.point

        def product(v: Array, batch: Batch, out: Array) -> Sums:
            next(kept).product(w, batch, v, out)
            return Sums(0.0, 0.0)

        objective.sums_and_grad(v, objective.loader.sequential(), out, product)

    def local_hessian(self) -> Array:
        """See `Problem.local_hessian`."""
        matrix, dtype = np.zeros((self.point.size, self.point.size)), precise(self.objective)
        self.objective.mark(COMPUTE)
        for batch, kept in zip(self.objective.loader.sequential(), self.trial_rows, strict=True):
            kept.add_matrix(batch, matrix, dtype)
        return triangle_of(matrix)

    def factor(self, triangle: Array) -> RankFactored:
        """See `Problem.factor`."""
        self.objective.mark(UPDATE)
        return self._factor(symmetric(triangle / self.weight, self.penalty))

    def factored_hessian(self, at: Array) -> RankFactored:
        """See `Problem.factored_hessian`."""
        return self._factor(hessian_of_all(self.objective, at, self.penalty, precise(self.objective)))

    def _factor(self, matrix: Array) -> RankFactored:
        """The Hessian ``matrix`` without parameters of features that depend on others, which are told; local."""
        model: Any = self.objective.model
        noise = by_parameter(model, rounding_of(self.objective.loader, self._columns, self.units), 0.0)
        biases = model.widths[-1] * model.bias
        made = RankFactored(matrix, noise, precise(self.objective), null_space(model, self.penalty), biases)
        if not made.finite:
            scale = worded("scale or standardize them", "scale them, or --standardize")
            self.warn(f"the Hessian is not finite: features or parameters are too large; {scale}")
        first, shard = self.collinear is None, self.objective.loader.shard
        columns = np.unique(np.flatnonzero(made.dropped) // model.widths[-1])
        self.collinear = [int(c) for c in columns if c < shard.features]
        if first and self.collinear:
            self.warn(
                f"{shard.called(self.collinear)} are constant, or combinations of the features before them, to the"
                f" precision of {self.parameter_dtype}: they add nothing, and their parameters stay as they are"
            )
        return made

    def has_sample(self, asked: int | None) -> bool:
        """See `Problem.has_sample`."""
        return sample_size(self.objective, asked) > 0

    def sampled(self, asked: int | None) -> SampledStart | None:
        """See `Problem.sampled`."""
        count = sample_size(self.objective, asked)
        self.objective.mark(UPDATE)
        if not (count and self.is_dense):
            return None
        found = solve_sample(self.objective, count, self._columns, self.penalty)
        return SampledStart(found.message(), lambda totals: self._read_sample(totals, found.everywhere))

    def _read_sample(self, totals: Array, everywhere: Array) -> tuple[Array | None, Preconditioner | None, Any]:
        """See `SampledStart.read`."""
        model: Any = self.objective.model
        estimate = Estimate.of(totals, everywhere)
        if estimate is None:
            self.warn("the sample of the rows has no solution: the method begins without it, and nothing preconditions")
            return None, None, Diagonal(model.loss_function.curvature_scale * everywhere + self.penalty)
        matrix = estimate.matrix
        matrix.flat[:: len(matrix) + 1] += self.penalty
        made = Factored(matrix, self.parameter_dtype, null_space(model, self.penalty))
        if made.added > POOR or not made.finite:
            self.warn("the Hessian of the sample is far from positive definite: it preconditions poorly")
        return estimate.w, made, made

    def local_diagonal(self) -> Array:
        """See `Problem.local_diagonal`."""
        return diagonal_of_all(self.objective)

    def diagonal_metric(self, totals: Array) -> Diagonal:
        """See `Problem.diagonal_metric`."""
        diagonal = totals[: self.point.size] / self.weight + self.penalty
        return Diagonal(diagonal, null_space(self.objective.model, self.penalty))

    def _local_curvature(self) -> Array:
        """This rank's part of the diagonal of the curvature at the current point, shape (layout.size,); local."""
        objective, total = self.objective, np.zeros(self.point.size)
        objective.mark(COMPUTE)
        for batch, kept in zip(objective.loader.sequential(), self.rows, strict=True):
            kept.add_diagonal(batch, total)
        return total

    def rounding(self) -> Array | None:
        """See `Problem.rounding`."""
        return None if self.units is None else (self.rounded - self.point)[self.objective.mine]


class ShardedRows(RowsProblem, ShardedProblem):
    """`RowsProblem` of slices."""

    def find_diagonal(self) -> None:
        """Let ``diagonal`` follow from the rows of all ranks, at parameters of 0; collective.

        Where the loss curves there alike for all targets, it follows from the mean squares of features.
        """
        objective, model = self.objective, cast(Any, self.objective.model)
        curvature = model.loss_function.curvature_at_zero(model.widths[-1])
        if curvature is None or self._columns is None:
            self.diagonal = self._summed_diagonal(self.local_diagonal())
            return
        mine = objective.mine
        found = by_parameter(model, curvature * np.square(self._columns), curvature)[mine]
        for low, high in objective.layout.decay_ranges(mine.start, mine.stop):
            strengths = 1.0 if objective.strengths is None else objective.strengths[mine][low:high]
            found[low:high] += objective.l2 * strengths
        self.diagonal = _positive(found)

    def diagonal_at_start(self) -> Diagonal | None:
        """See `Problem.diagonal_at_start`."""
        return None if self.diagonal is None else Diagonal(self.diagonal)  # alike for all classes at parameters of 0

    def diagonal_here(self) -> Diagonal | None:
        """See `Problem.diagonal_here`; ``diagonal`` stays that at the start, which a run that is resumed has, too."""
        if not self.is_linear:
            return None
        total = self._local_curvature()
        self._level(total)
        return Diagonal(self._summed_diagonal(total))

    def curvature_diagonal(self) -> Array:
        """See `Problem.curvature_diagonal`."""
        return self._summed_diagonal(self._local_curvature())

    def _level(self, diagonal: Array) -> None:
        """Make ``diagonal`` alike for parameters that may all grow alike: steps then leave their sum alone."""
        model: Any = self.objective.model
        if model.loss_function.several:
            weights, biases = model.layers_of(diagonal)
            for part in biases if self.objective.l2 else [*weights, *biases]:
                part[...] = part.mean(axis=-1, keepdims=True)

    def _summed_diagonal(self, local: Array) -> Array:
        """This rank's slice of the mean of the ranks' ``local`` sums, penalty added; collective."""
        objective = self.objective
        objective.mark(REDUCE)
        self._grad_all[:] = local
        objective.reduce_grad(np.ones_like(self.point), self._grad_all, self.weight)  # adds l2 times the ones
        found = self.trial_grad.astype(np.float64)
        objective.comm.barrier()  # others may still read this rank's sum
        return _positive(found)


class ReplicatedRows(RowsProblem, ReplicatedProblem):
    """`RowsProblem` of few parameters."""

    def curvature_diagonal(self) -> Array:
        """See `Problem.curvature_diagonal`."""
        local = self._local_curvature()
        self.objective.mark(REDUCE)
        return _positive(self.objective.comm.sum(local) / self.weight + self.penalty)


def _positive(diagonal: Array) -> Array:
    """``diagonal`` with 1 in the place of what is no positive number."""
    return np.where((diagonal > 0) & np.isfinite(diagonal), diagonal, 1.0)
