"""Iterations of Newton's method: with the Hessian, or with products with it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...backend import HOST
from ...data import Batch
from ...errors import ConfigError
from ...objective import Objective
from ...optim import Newton, NewtonCG
from ...optim.solvers.newton import next_radius, steihaug
from ...optim.solvers.preconditioner import RankFactored
from ...trace import COMPUTE, UPDATE
from .problem import NOTHING, Evaluation, is_linear
from .sample import MOST_DENSE, precise, symmetric, triangle_of
from .steps import FullBatchSteps, LineSearchSteps

Array = Any
FIRST_SHARE = 0.1  # of the gradient, at most, where conjugate gradients end
SPARE = 0.3  # of what the tolerance asks for: the last step need not be better


class NewtonSteps(LineSearchSteps):
    """The Hessian of all rows travels beside the gradient, and every rank factors it.

    Args:
        objective, start: see `FullBatchSteps`.
        optimizer: the method.
    """

    _factors = True

    def __init__(self, objective: Objective, optimizer: Newton, start: Array) -> None:
        model: Any = objective.model
        if not is_linear(model):
            raise ConfigError("--optimizer newton is for linear, logistic and softmax models: newton-cg takes nets too")
        if model.layout.size > MOST_DENSE:
            found = f"up to {MOST_DENSE:,} parameters, not {model.layout.size:,}: newton-cg takes more"
            raise ConfigError(f"--optimizer newton is for {found}")
        if not objective.whole:
            found = f"--allreduce auto or native, not {objective.exchange.name}: newton-cg takes any"
            raise ConfigError(f"--optimizer newton is for {found}")
        super().__init__(objective, optimizer, start, True)
        self._quadratic = model.loss_function.quadratic  # the Hessian is the same everywhere
        self._dtype = precise(self.objective)
        self._entries = model.layout.size * (model.layout.size + 1) // 2
        self._triangle: Array | None = None  # of the Hessian's sum over rows, at w
        self._factored: RankFactored | None = None  # the Hessian at w

    def warm_up(self, batch: Batch) -> None:
        """See `Steps`."""
        super().warm_up(batch)
        model, size = self.objective.model, self._w.size
        row = Batch(batch.x[:1], batch.y[:1], None, batch.ids[:1], 0, train=True)
        _, kept = model.linearize(HOST.read_only(self._w), row, np.empty_like(self._w))  # type: ignore[attr-defined]
        kept.add_matrix(row, np.zeros((size, size)), self._dtype)

    def _evaluate(self, w: Array, auxiliary: Array = NOTHING) -> Evaluation:
        """With the Hessian's triangle after ``auxiliary``, unless it is known."""
        known = self._quadratic and self._triangle is not None
        return self.points.evaluate(w, auxiliary, None, None if known else self._local_triangle)

    def _local_triangle(self) -> Array:
        size, points = self.objective.model.layout.size, self.points
        matrix = np.zeros((size, size))
        self.objective.mark(COMPUTE)
        for batch, kept in zip(self.objective.loader.sequential(), points.trial_rows, strict=True):
            kept.add_matrix(batch, matrix, self._dtype)
        return triangle_of(matrix)

    def _accept_gradient(self, found: Evaluation) -> None:
        super()._accept_gradient(found)
        if found.auxiliary.size >= self._entries:
            self._triangle, self._factored = found.auxiliary[-self._entries :], None

    def _hessian(self) -> RankFactored:
        """The Hessian at w, factored; local."""
        if self._factored is None:
            assert self._triangle is not None
            self.objective.mark(UPDATE)
            matrix = symmetric(self._triangle / self.points.weight, self.points.penalty)
            self._factored = self._factored_by_rank(matrix, self._dtype)
            self._metric, self._exact = self._factored, True
        return self._factored

    def _measure(self) -> None:
        self._hessian()
        super()._measure()

    def _advance(self) -> None:
        points = self.points
        if self.at.square == 0:
            self._stop()
            return
        np.negative(points.grad, out=self._direction)
        self._hessian().solve(self._direction)
        slope = points.dots((self._direction, points.grad))[0]
        if not self._search(slope, 1.0):
            self._stop()

    def _slope(self, trial: Evaluation) -> float:
        return self.points.dots((self._direction, self.points.trial_grad))[0]


class NewtonCGSteps(FullBatchSteps):
    """Steps in a trust region, whose products with the curvature reuse the rows' forward pass.

    Args:
        objective, start: see `FullBatchSteps`.
        optimizer: the method.
    """

    def __init__(self, objective: Objective, optimizer: NewtonCG, start: Array) -> None:
        if objective.abilities.curvature is None and objective.abilities.hessian is None:
            raise ConfigError(
                "--optimizer newton-cg needs a model with Hessian products (curvature_at); lbfgs takes every model"
            )
        super().__init__(objective, optimizer, start, True)
        self._most = optimizer.most_products
        # the trust region, and how much longer a gradient is in the norm of the inverse Hessian than in that of the
        # preconditioner's, by the last step
        self.region = {"radius": math.inf, "longer": 1.0}

    @property
    def owned(self) -> dict[str, Any]:
        """See `Steps`."""
        return super().owned | {"region": self.region}

    def _decrement_square(self) -> float:
        return super()._decrement_square() * (1.0 if self._exact else self.region["longer"])

    def _precondition_by_all(self, when: int) -> None:
        super()._precondition_by_all(when)
        self.region["radius"] = math.inf  # lengths are others now

    def _advance(self) -> None:
        points, precision = self.points, 10.0 * float(np.finfo(self._w.dtype).eps)
        for _ in range(20):
            if self.at.square == 0:
                break
            step = steihaug(
                lambda v, out: points.product(self._w, v, out),
                points.grad,
                self.region["radius"],
                self._share(),
                self._most,
                points.dots,
                self.preconditioner,
                self._direction,
            )
            if not 0 < step.decrease < math.inf:
                self._lost |= not math.isfinite(step.decrease)
                break
            plain = super()._decrement_square()
            if plain > 0 and not step.at_edge:
                self.region["longer"] = max(1.0, 2 * step.decrease / plain)
            self._move(1.0)
            found = self._evaluate(self._w_next)
            finite = math.isfinite(found.value) and math.isfinite(found.square)
            self._lost |= not finite
            fall = self.at.value - found.value
            if not finite:
                ratio = math.nan
            elif step.decrease <= precision * abs(self.at.value):  # values are rounding there: gradients decide
                ratio = 1.0 if found.square < self.at.square else 0.0
            else:
                ratio = fall / step.decrease
            self.region["radius"] = next_radius(self.region["radius"], step.length, ratio)
            if ratio > 1e-4:
                self._accept(found)
                return
        self._stop()

    def _share(self) -> float:
        """The share of the gradient that conjugate gradients may leave (Nocedal & Wright 2006, equation 7.3)."""
        assert self.first_norm is not None
        tol, relative = self.tol or 0.0, self.gradient_norm / self.first_norm
        if self.decrement > 0:  # known, of linear models
            tol, relative = tol * math.sqrt(2 * self.excess), self.decrement
            return max(
                min(FIRST_SHARE, math.sqrt(relative / math.sqrt(2 * self.done["first_value"]))),
                min(FIRST_SHARE, SPARE * tol / relative),
            )
        return max(min(FIRST_SHARE, math.sqrt(relative)), min(FIRST_SHARE, SPARE * tol / relative))
