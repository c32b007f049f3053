"""Steps of methods that see all rows at once and branch on reduced numbers alone, so that all ranks go one way."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import numpy as np

from ...backend import HOST
from ...data import Batch
from ...errors import ConfigError
from ...models import Sums
from ...objective import Objective
from ...optim import LBFGS, FullBatchSolver, Newton
from ...optim.solvers.preconditioner import Diagonal, Factored, RankFactored
from ...trace import UPDATE
from .measured import AT_THE_END, AT_THE_START, MeasuredSteps
from .problem import NOTHING, Evaluation, null_space
from .sample import CHEAP_PRODUCTS, MOST_DENSE, Estimate, diagonal_of_all, sample_size, solve_sample, warm_up

Array = Any
STOPPED, LOST = "no further decrease", "loss or gradient is not finite near the last iterate"
POOR = 1e-2  # of the diagonal: a sample's Hessian that needs more added to it says little
MOST_STALE = 5  # iterations in a row that find neither a lower value nor a smaller gradient: these are rounding


class FullBatchSteps(MeasuredSteps):
    """An iteration a step: the first to the solution of a sample, where there is one, the others by the method.

    Args:
        objective, start, linearizes: see `MeasuredSteps`.
        optimizer: the method.
    """

    searches = True

    def __init__(self, objective: Objective, optimizer: FullBatchSolver, start: Array, linearizes: bool) -> None:
        if objective.loader.device is not HOST:
            raise ConfigError(f"--optimizer {optimizer.name} is for the CPU: choose --device cpu")
        super().__init__(objective, start, linearizes, optimizer.tol)
        self.optimizer = optimizer
        self._trial: Evaluation | None = None  # of the second buffer
        self._start: Array | None = None  # the sample's solution, until it is tried
        self._fresh = True
        self._lost = False  # whether a trial of this step was not finite
        self._direction = np.zeros_like(self.points.grad)

    @property
    def owned(self) -> dict[str, Any]:
        """See `Steps`."""
        more = {} if self._factored_at is None else {"factored_at": self._factored_at}
        return {"w": self._w[self.objective.mine], "done": self.done, **more}

    @property
    def private(self) -> dict[str, Any]:
        """See `Steps`."""
        return {}

    @property
    def value(self) -> float | None:
        """See `Steps`."""
        return None if self._at is None else self._at.value

    @property
    def counts(self) -> tuple[int, int]:  # type: ignore[override]
        """See `Steps`."""
        return self.done["evaluations"], self.done["products"]

    @property
    def first_norm(self) -> float | None:
        """See `Steps`."""
        return self.done["first_norm"]

    def step(self, rows: int, weight: float, batches: Iterable[Batch], factor: float) -> Sums:
        """See `Steps.step`; takes all rows in their own order, and no ``batches``."""
        if self._at is None:
            self._begin()
        before, self._lost = self.at.sums, False
        if not math.isfinite(self.at.value):
            return before
        if not math.isfinite(self.at.square):
            self._lost = True
            self._stop()
        elif not self._take_start():
            self._advance()
            self._stop_if_stale()
        if self.measures and not self.failed:
            self._judge()
        return before

    def _stop_if_stale(self) -> None:
        """Find no further step possible after many that led nowhere."""
        now, least = (self.at.value, self.at.square), self._least
        self._least = (min(now[0], least[0]), min(now[1], least[1]))
        self._stale = 0 if self._least != least else self._stale + 1
        if self._stale >= MOST_STALE and self.stop_reason is None:
            self._lost = False
            self._stop()

    def _stop(self) -> None:
        """Find no further step possible: because nothing is lower, or nothing that was tried is a number; local."""
        self.failed = self._lost
        self.stop_reason = LOST if self._lost else STOPPED

    @abstractmethod
    def _advance(self) -> None:
        """Make an iteration, or find a ``stop_reason``; collective."""

    def _local_products(self) -> Array:
        """This rank's parts of the inner products that the method wants at its first point."""
        return NOTHING

    def _begun(self, products: Array) -> None:
        """Take the sums of these over the ranks."""

    def _begin(self) -> None:
        """The objective at w, and the sample, or what stands for it; collective."""
        count = sample_size(self.objective, self.optimizer.sample)
        few = not count and self.optimizer.sample is None and self._products <= CHEAP_PRODUCTS and self._can_factor
        known = bool(self.done["factored"]) and self._can_factor  # not if it goes on under another exchange
        self.objective.mark(UPDATE)
        if count and self._w.size <= MOST_DENSE:
            sampled = solve_sample(self.objective, count, self._columns, self.points.penalty)
            found = self._evaluate(self._w, sampled.message())
            self._take_sample(found.auxiliary, sampled.everywhere)
        elif self.measures and self.objective.whole and not (self._factors or few or known):
            found = self._evaluate(self._w, diagonal_of_all(self.objective))
            diagonal = found.auxiliary[: self._w.size] / self.points.weight + self.points.penalty
            self._metric = Diagonal(diagonal, null_space(self.objective.model, self.points.penalty))
            self.preconditioner = self._metric if count else None
        else:
            found = self._evaluate(self._w)
        if known:
            self._factor_again()
            self._exact = self.done["factored"] == AT_THE_END
        elif few:  # all rows are the sample
            self._precondition_by_all(AT_THE_START)
        self._begun(found.products)
        self._accept_gradient(found)
        if self.first_norm is None:
            self.done.update(first_norm=self.gradient_norm, first_value=found.value - self.least_value)

    def _take_sample(self, totals: Array, everywhere: Array) -> None:
        """Make the preconditioner, and know the start, from what the ranks found on the sample; local."""
        estimate = Estimate.of(totals, everywhere)
        if estimate is None:
            self._warn(
                "the sample of the rows has no solution: the method begins without it, and nothing preconditions"
            )
            curvature = self.objective.model.loss_function.curvature_scale  # type: ignore[attr-defined]
            self._metric = Diagonal(curvature * everywhere + self.points.penalty)
            return
        matrix = estimate.matrix
        matrix.flat[:: len(matrix) + 1] += self.points.penalty
        made = Factored(matrix, self._w.dtype, null_space(self.objective.model, self.points.penalty))
        if made.added > POOR or not made.finite:
            self._warn("the Hessian of the sample is far from positive definite: it preconditions poorly")
        self.preconditioner, self._metric, self._exact = made, made, True
        self._start = estimate.w if self._fresh else None

    def _evaluate(self, w: Array, auxiliary: Array = NOTHING) -> Evaluation:
        return self.points.evaluate(w, auxiliary, self._local_products)

    def _take_start(self) -> bool:
        """Go to the sample's solution, if there is one and it is better; collective."""
        if self._start is None:
            return False
        self._w_next[:] = self._start
        self._start = None
        found = self._evaluate(self._w_next)
        if not found.value < self.at.value:
            return False
        self._accept(found)
        return True

    def _accept(self, found: Evaluation) -> None:
        """Make the second buffer, of which ``found`` tells, w; local."""
        self._accept_gradient(found)
        self._w, self._w_next = self._w_next, self._w
        self._outward = None

    def _accept_gradient(self, found: Evaluation) -> None:
        self.points.accept()
        self._at, self.gradient_norm = found, math.sqrt(found.square)

    def _move(self, t: float) -> None:
        """Second buffer ← w + t · direction, on all ranks; collective."""
        from ...optim.solvers.history_kernels import move

        mine = self.objective.mine
        self.objective.mark(UPDATE)
        move(self._w[mine], self._direction.dtype.type(t), self._direction, self._w_next[mine])
        self.points.publish(self._w_next)

    def close_epoch(self) -> None:
        """See `Steps`: ``w`` is up to date after every step."""

    def restored(self) -> None:
        """See `Steps`."""
        super().restored()
        self._at, self._fresh, self._outward = None, False, None

    def warm_up(self, batch: Batch) -> None:
        """See `Steps`."""
        from ...optim.solvers.history_kernels import move
        from ...optim.solvers.ordered import dot

        self.points.warm_up(HOST.read_only(self._w), batch)
        for made in (Factored(np.eye(2)), RankFactored(np.eye(2), np.zeros(2))):
            made.solve(np.ones(2))
        Diagonal(np.ones(2)).solve(np.ones(2))
        dot(np.ones(2), np.ones(2))
        if self.measures and not self._factors:
            warm_up(self.objective)
        move(self._w[:0], self._direction.dtype.type(0), self._direction[:0], self._w_next[:0])

    def settle(self, batch: Batch) -> None:
        """See `Steps`."""
        self.points.settle(self._w, self._w_next)


class LineSearchSteps(FullBatchSteps):
    """Along a direction to a point that the line search is content with.

    Where the model has margins, only the first trial of a direction reads the rows: others follow from the margins, and
    the point that is found is looked at once more.  Of a trial so short that margins differ by rounding alone nothing
    follows: then that look finds a higher value.
    """

    optimizer: LBFGS | Newton

    def _search(self, slope: float, first: float) -> bool:
        """Find a point along the direction and go there; false where there is no better one; collective."""
        from ...optim.solvers.line_search import Point

        start = Point(0.0, self.at.value, slope)
        if not (slope < 0 and math.isfinite(slope)):
            return False
        self._whole = 0.0  # the trial that read the rows
        precision = 10.0 * float(np.finfo(self._w.dtype).eps)
        found = self.optimizer.search.find(self._try, start, first, precision)
        if found.point.t == 0:
            return False
        if found.point.t != self._whole:
            value, _ = self._look(found.point.t)
            assert self._trial is not None
            if not (value <= start.value + precision * abs(start.value) and math.isfinite(self._trial.square)):
                return False
        self._tell(found.point.t)
        assert self._trial is not None
        self._accept(self._trial)
        return True

    def _try(self, t: float) -> tuple[float, float]:
        """Value and slope at w + t · direction; collective."""
        if self._whole and self.points.has_lines:
            return self.points.line(t, self._w[self.objective.mine], self._direction, self._whole)
        value, slope = self._look(t)
        assert self._trial is not None
        if not (math.isfinite(value) and math.isfinite(slope) and math.isfinite(self._trial.square)):
            self._lost, self._whole = True, 0.0
            return math.inf, math.nan
        return value, slope

    def _look(self, t: float) -> tuple[float, float]:
        """As `_try` by reading the rows; the second buffer is then that point."""
        self._move(t)
        self._whole = self._trying = t
        self._trial = self._evaluate(self._w_next)
        return self._trial.value, self._slope(self._trial)

    @abstractmethod
    def _slope(self, trial: Evaluation) -> float:
        """The slope along the direction at the trial point."""

    def _tell(self, t: float) -> None:
        """Hear that the trial point, t · direction from w, is about to become w; local."""
