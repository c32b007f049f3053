"""Proximal Newton's method for linear models with an l1 penalty, by conjugate gradients on the free parameters.

Each iteration minimises a model of the objective, quadratic but for the penalty, to a fraction, and searches along the
step to that minimiser (Lee, Sun & Saunders 2014, "Proximal Newton-type methods for minimizing composite functions";
Yuan, Ho & Lin 2012, "An improved GLMNET for L1-regularized logistic regression").  The model is minimised orthant by
orthant: in the orthant of the point at hand it is a quadratic function of the free parameters, those that are not 0 or
ought not to be, whose minimiser conjugate gradients approach and which is projected to the orthant (Byrd, Chin, Nocedal
& Oztoprak 2016, "A family of second-order methods for convex l1-regularized optimization").
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .orthant import orthant, project, pseudo_gradient
from .problem import Problem
from .state import State

Array = Any
Dots = Callable[..., list[float]]
Product = Callable[[Array, Array], None]
FRACTION = 0.01  # of the square of the pseudo-gradient's norm, that the model's minimiser may keep, at most
CYCLE_FRACTION = 0.1  # likewise, of what conjugate gradients may leave in one orthant
MOST_CYCLES = 50  # orthants of an iteration
SPARE = 0.1  # of the gap that the tolerance asks for: the model's minimiser need not be nearer
DECREASE = 1e-4  # of the decrease of the model, that a step has to bring
MOST_TRIALS = 30  # of a step, each half as long as the one before
NEWTON_TRIALS = 6  # likewise, of one in an orthant: before the steepest descent is taken


class ProximalNewtonState(State):
    """The method at a point.

    It ends as other solvers of linear models do, by an estimate of the decrement: the pseudo-gradient in the norm of
    the inverse diagonal of the Hessian, times what the last minimiser of the model was further off than that said.

    Args:
        problem: see `State`; has ``l1``, and is that of a linear model.
        solver: `NewtonCG`.

    Attributes:
        metric: the diagonal of the Hessian where the last iteration began, a slice.
        factors: how much ``longer`` the pseudo-gradient is in the norm of the inverse Hessian than by the metric.
    """

    def __init__(self, problem: Problem, solver: Any) -> None:
        super().__init__(problem, solver)
        self._most = solver.most_products
        self.factors = {"longer": 1.0}
        self.metric = np.ones_like(problem.grad)
        self._plain = math.nan  # the square of the pseudo-gradient's norm, by the metric
        self._fresh = False  # whether the metric is that of the current point

    @property
    def arrays(self) -> dict[str, Any]:
        """See `State.arrays`."""
        return super().arrays | {"factors": self.factors}

    def init(self) -> None:
        """See `State.init`."""
        found = self._evaluate(current=True)
        self._accept(found, current=True)
        self._renew_metric()
        if self.progress.first_norm is None:
            self.progress.first_norm = self.gradient_norm
            self.progress.first_value = found.value - self.problem.least_value

    def _advance(self) -> None:
        """Minimise the model, and search along the step to there; collective."""
        assert self.at is not None
        problem, before = self.problem, self.at
        if before.square == 0:
            self._stop()
            return
        if not self._fresh:
            self._renew_metric()
        self._fresh = False
        model = Model(problem, self.metric)
        decrease = model.minimise(self._enough(), self._most, self.direction)
        if not 0 < decrease < math.inf:
            self._lost |= not math.isfinite(decrease)
            self._stop()
            return
        if self._plain > 0:
            self.factors["longer"] = max(1.0, 2 * decrease / self._plain)
        precision, t = 10.0 * float(np.finfo(problem.parameter_dtype).eps), 1.0
        for _ in range(MOST_TRIALS):
            problem.move(t, self.direction)
            found = self._evaluate()
            finite = math.isfinite(found.value) and math.isfinite(found.square)
            self._lost |= not finite
            level = decrease <= precision * abs(before.value) and found.square < before.square
            if finite and (level or found.value <= before.value - DECREASE * t * decrease):
                self._accept(found)
                return
            t *= 0.5
        self._stop()

    def _enough(self) -> float:
        """The square of the pseudo-gradient's norm, by the metric, that the model's minimiser may keep."""
        assert self.at is not None
        tol, first = self.solver.tol or 0.0, self.progress.first_value or 0.0
        progress = self.decrement.root**2 / (2 * first) if first > 0 else 1.0
        wanted = SPARE * 2 * tol * tol * self.problem.excess(self.at)
        return max(min(FRACTION, progress) * self._plain, wanted)

    def _measure(self) -> None:
        """See `State._measure`."""
        assert self.at is not None
        slope = self.problem.slope
        (self._plain,) = self.problem.dots((slope, slope / self.metric))
        self.decrement.root = math.sqrt(max(0.0, self._plain * self.factors["longer"]))
        self.progress.gap = self.decrement.gap(self.problem, self.at)

    def _renew_metric(self) -> None:
        """Make the metric that of the current point, and measure by it; collective."""
        self.metric[:] = self.problem.curvature_diagonal()
        self._fresh = True
        self._measure()

    def _judge(self) -> None:
        """See `State._judge`; there is no Hessian of all rows to measure by."""
        self._measure()
        problem, decrement, at = self.problem, self.decrement, self.at
        assert at is not None
        if decrement.tol is None:
            return
        if decrement.meets_tol(problem, at, self.progress.first_value or 0.0):
            self.progress.met, self.stop_reason = True, None
        elif self.stop_reason is not None:
            self.progress.met = decrement.is_small(problem, at)


class Model:
    """gᵀd + ½ dᵀHd + Σ l1 |w + d| of steps d from the current point w of a problem.

    Args:
        problem: has the products with H.
        metric: approximate diagonal of H, positive, a slice.
    """

    def __init__(self, problem: Problem, metric: Array) -> None:
        self.problem, self.metric = problem, metric
        self.dots: Dots = problem.dots
        self.products = 0

    def minimise(self, enough: float, most: int, out: Array) -> float:
        """out ← a step; returns by how much the model is lower there; collective.

        Args:
            enough: ends where the square of the pseudo-gradient's norm, by the metric, is at most this.
            most: products, but for those that end an orthant.
            out: overwritten.
        """
        problem, l1 = self.problem, self.problem.l1
        start = problem.w.astype(out.dtype)
        w, grad, decrease = start.copy(), problem.grad.copy(), 0.0
        for _ in range(MOST_CYCLES):
            slope = pseudo_gradient(w, grad, l1)
            square = self.dots((slope, slope / self.metric))[0]
            if not square > enough or self.products >= most:
                break
            signs = orthant(w, slope, l1)
            step, curved = self._newton_step(slope, ~np.isnan(signs), square, most)
            found = self._backtrack(w, grad, slope, signs, step, curved)
            if found is None:  # what is left of a step that was projected may lead up; the steepest descent does not
                found = self._backtrack(w, grad, slope, signs, -slope / self.metric)
            if found is None:
                break
            w, change, gain = found
            grad += change
            decrease += gain
        np.subtract(w, start, out=out)
        return decrease

    def _newton_step(self, slope: Array, free: Array, square: float, most: int) -> tuple[Array, Array]:
        """A step of the parameters that are ``free``, by conjugate gradients, and its product with H.

        ``square`` is that of the slope's norm by the metric.
        """
        number = slope.dtype.type
        step, along, curved = np.zeros_like(slope), np.zeros_like(slope), np.empty_like(slope)
        residual = -slope
        z = residual / self.metric
        p, rz = z.copy(), square
        while self.products < most:
            self._product(p, curved)
            curvature = self.dots((p, curved))[0]
            if not curvature > 0:
                break
            alpha = number(rz / curvature)
            step += alpha * p
            along += alpha * curved
            residual -= alpha * np.where(free, curved, 0)
            z = residual / self.metric
            before, rz = rz, self.dots((residual, z))[0]
            if not rz > CYCLE_FRACTION * square:
                break
            p *= number(rz / before)
            p += z
        return step, along

    def _backtrack(
        self, w: Array, grad: Array, slope: Array, signs: Array, step: Array, curved: Array = None
    ) -> tuple[Array, Array, float] | None:
        """The point that ``step``, or a part of it, leads to in the orthant, H times the way there, and the decrease.

        None where none is lower.  ``curved`` is H · ``step``; None: it is not known.
        """
        l1, t = self.problem.l1, 1.0
        for _ in range(MOST_TRIALS if curved is None else NEWTON_TRIALS):
            whole = w + step.dtype.type(t) * step
            point = project(whole, signs)
            way = point - w
            left = (point != whole).astype(step.dtype)
            if curved is None or self.dots((left, left))[0] > 0:
                change = np.empty_like(step)
                self._product(way, change)
            else:
                change = step.dtype.type(t) * curved
            rise, bend, penalty, old, promised = self.dots(
                (way, grad), (way, change), (l1, np.abs(point)), (l1, np.abs(w)), (way, slope)
            )
            found = rise + 0.5 * bend + (penalty - old)
            if found <= DECREASE * promised and found < 0:
                return point, change, -found
            t *= 0.5
        return None

    def _product(self, v: Array, out: Array) -> None:
        self.problem.product(v, out)
        self.products += 1
