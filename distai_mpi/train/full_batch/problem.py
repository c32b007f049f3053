"""The objective over all rows as a `Problem`: a model, its rows and an exchange, bound together in few rounds."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from ...backend import HOST
from ...data import Batch
from ...messages import tell
from ...models import Linearization, Sums
from ...models.curvature import HessianRows
from ...objective import Objective
from ...optim.solvers.preconditioner import Diagonal, Factored, Preconditioner, RankFactored
from ...optim.solvers.problem import NOTHING, Evaluation, Problem, SampledStart
from ...settings import worded
from ...trace import COMPUTE, REDUCE, UPDATE
from ..metrics import least_loss
from .abilities import is_linear, null_space
from .sample import (
    MOST_DENSE,
    Estimate,
    by_parameter,
    diagonal_of_all,
    hessian_of_all,
    precise,
    sample_size,
    solve_sample,
    symmetric,
    triangle_of,
)
from .units import Units, rounding_of

Array = Any
POOR = 1e-2  # of the diagonal: a sample's Hessian that needs more added to it says little


class RowsProblem(Problem):
    """The objective over all rows; these are seen without dropout.

    Args:
        objective: what is minimised; on the host, in ``units``.
        linearizes: whether products with the curvature are wanted, or values along lines: for these the rows'
            linearizations are kept.
        point, trial: buffers of the current and the trial point, shape (layout.size,), replicated.
        columns: roots of the mean squares of features, see `spread_of`; None: the model is not linear.
        units: those of the parameters inside, of a linear model; None: they are those of the rows.

    Attributes:
        rows, trial_rows: linearizations there, one for each batch of this rank.
        weight: of all rows of all ranks.
        penalty: l2 where parameters decay, else 0; shape (layout.size,), float64; None where it is not known.
        collinear: features that were found to depend on others, numbers from 0; None: nobody looked.
    """

    def __init__(
        self,
        objective: Objective,
        linearizes: bool,
        dtype: Any,
        point: Array,
        trial: Array,
        columns: Array | None = None,
        units: Units | None = None,
    ) -> None:
        model: Any = objective.model
        self.objective, self.linearizes, self.units, self._columns = objective, linearizes, units, columns
        self.dtype, self.parameter_dtype = np.dtype(dtype), np.dtype(model.dtype)
        self.point, self.trial = point, trial
        owned = objective.mine.stop - objective.mine.start
        self.grad, self.trial_grad = np.zeros(owned, dtype), np.zeros(owned, dtype)
        self.penalty: Array = None
        self.rows: list[Any] = []
        self.trial_rows: list[Any] = []
        self._grad_all = objective.empty()
        self.weight, self.terms = objective.loader.total_weight, objective.loader.share.rows
        self.least_value = least_loss(objective.abilities.loss, objective.loader, objective.comm)
        self.counts = {"evaluations": 0, "products": 0}
        self.collinear: list[int] | None = None
        self._told: set[str] = set()
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
    def w(self) -> Array:
        """See `Problem.w`."""
        return self.point[self.objective.mine]

    @property
    def outward(self) -> Array:
        """The current point in the units of the rows, shape (layout.size,), replicated."""
        if self.units is None:
            return self.point
        if self._outward is None:
            self._outward = self.units.outward(self.objective.model, self.point).astype(self.parameter_dtype)
        return self._outward

    @property
    def rounded(self) -> Array:
        """The current point as it is once it was rounded in the units of the rows, float64 where these are others."""
        return self.point if self.units is None else self.units.inward(self.objective.model, self.outward)

    def restored(self) -> None:
        """Take the point as it was written to; local."""
        self._outward = None

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
        local = self._sums(w)
        auxiliary = auxiliary if more is None else np.concatenate([auxiliary, more()])
        return self._combine(w, local, auxiliary, products or (lambda: NOTHING))

    @abstractmethod
    def _combine(self, w: Array, local: Sums, auxiliary: Array, products: Callable[[], Array]) -> Evaluation:
        """The part of `evaluate` in which the ranks put together what each has found."""

    def accept(self, *, current: bool = False) -> None:
        """See `Problem.accept`."""
        self._keep_gradient()
        self.rows, self.trial_rows = self.trial_rows, self.rows
        if not current:
            self.point, self.trial = self.trial, self.point
            self._outward = None

    def _keep_gradient(self) -> None:
        self.grad, self.trial_grad = self.trial_grad, self.grad

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

    def warm_up(self, batch: Batch) -> None:
        """Compile what `evaluate` and products need, on this rank's rows or on ``batch``; changes scratch alone."""
        model, loader, w = self.objective.model, self.objective.loader, HOST.read_only(self.point)
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

    def warm_up_hessian(self, batch: Batch) -> None:
        """Compile what `local_hessian` needs; local."""
        model: Any = self.objective.model
        row = Batch(batch.x[:1], batch.y[:1], None, batch.ids[:1], 0, train=True)
        _, kept = model.linearize(HOST.read_only(self.point), row, np.empty_like(self.point))
        kept.add_matrix(row, np.zeros((self.point.size, self.point.size)), precise(self.objective))

    @abstractmethod
    def settle(self) -> None:
        """Exchange vectors as `evaluate` does; changes the trial point and arrays of its own; collective."""

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
        first, share = self.collinear is None, self.objective.loader.share
        columns = np.unique(np.flatnonzero(made.dropped) // model.widths[-1])
        self.collinear = [int(c) for c in columns if c < share.features]
        if first and self.collinear:
            self.warn(
                f"{share.called(self.collinear)} are constant, or combinations of the features before them, to the"
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

    def rounding(self) -> Array | None:
        """See `Problem.rounding`."""
        return None if self.units is None else (self.rounded - self.point)[self.objective.mine]

    def warn(self, message: str) -> None:
        """See `Problem.warn`."""
        if self.objective.comm.rank == 0 and message not in self._told:
            tell(message, warning=True)
        self._told.add(message)
