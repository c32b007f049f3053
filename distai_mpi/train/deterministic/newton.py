"""Iterations of Newton's method: with the Hessian, or with products with it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...data import Batch
from ...errors import ConfigError
from ...objective import Objective
from ...optim import Newton, NewtonCG
from ...optim.newton import next_radius, steihaug
from ...optim.preconditioner import Factored
from ...trace import COMPUTE, UPDATE
from .full_batch import NOTHING, Evaluation, free_groups, has_curvature, is_linear
from .sample import MOST_DENSE
from .steps import DeterministicSteps, SearchingSteps

Array = Any
FIRST_SHARE = 0.1  # of the gradient, at most, where conjugate gradients end
SPARE = 0.3  # of what the tolerance asks for: the last step need not be better


class NewtonSteps(SearchingSteps):
    """The Hessian of all rows travels beside the gradient, and every rank factors it.

    Args:
        objective, start: see `DeterministicSteps`.
        optimizer: the method.
    """

    def __init__(self, objective: Objective, optimizer: Newton, start: Array) -> None:
        model = objective.model
        if not is_linear(model):
            raise ConfigError("--optimizer newton is for linear, logistic and softmax models: newton-cg takes nets too")
        if model.layout.size > MOST_DENSE:
            found = f"up to {MOST_DENSE:,} parameters, not {model.layout.size:,}: newton-cg takes more"
            raise ConfigError(f"--optimizer newton is for {found}")
        if not objective.whole:
            found = f"--allreduce auto or native, not {objective.algorithm}: newton-cg takes any"
            raise ConfigError(f"--optimizer newton is for {found}")
        super().__init__(objective, optimizer, start, linearizes=True)
        self._triangle = np.tril_indices(model.layout.size)

    def warm_up(self, batch: Batch) -> None:
        """See `Steps`."""
        super().warm_up(batch)
        model = self.objective.model
        row = Batch(batch.x[:1], batch.y[:1], None, batch.ids[:1], 0, train=True)
        _, kept = model.linearize(self.w, row, np.empty_like(self.w))  # type: ignore[attr-defined]
        kept.add_matrix(row, np.zeros((self.w.size, self.w.size)))

    def _evaluate(self, w: Array, beside: Array = NOTHING) -> Evaluation:
        """With the Hessian's triangle after ``beside``."""
        return self.points.evaluate(w, beside, None, self._local_triangle)

    def _local_triangle(self) -> Array:
        size, points = self.objective.model.layout.size, self.points
        matrix = np.zeros((size, size))
        self.objective.mark(COMPUTE)
        for batch, kept in zip(self.objective.loader.sequential(), points.trial_rows, strict=True):
            kept.add_matrix(batch, matrix)
        return matrix[self._triangle]

    def _advance(self) -> None:
        size, points = self.objective.model.layout.size, self.points
        if self.at.square == 0:
            self._stop()
            return
        self.objective.mark(UPDATE)
        matrix = np.zeros((size, size))
        matrix[self._triangle] = self.at.beside[-self._triangle[0].size :] / points.weight
        matrix += np.tril(matrix, -1).T
        matrix.flat[:: size + 1] += points.penalty
        np.negative(points.grad, out=self._direction)
        Factored(matrix, self._w.dtype, free_groups(self.objective.model, points.penalty)).solve(self._direction)
        slope = points.dots((self._direction, points.grad))[0]
        if not self._search(slope, 1.0):
            self._stop()

    def _slope(self, trial: Evaluation) -> float:
        return self.points.dots((self._direction, self.points.trial_grad))[0]


class NewtonCGSteps(DeterministicSteps):
    """Steps in a trust region, whose products with the curvature reuse the rows' forward pass.

    Args:
        objective, start: see `DeterministicSteps`.
        optimizer: the method.
        tol: the relative gradient norm at which the run ends; None: there is none.
    """

    def __init__(self, objective: Objective, optimizer: NewtonCG, start: Array, tol: float | None) -> None:
        if not (has_curvature(objective.model) or hasattr(objective.model, "curvature_at")):
            raise ConfigError(
                "--optimizer newton-cg needs a model with Hessian products (curvature_at); lbfgs takes every model"
            )
        super().__init__(objective, optimizer, start, linearizes=True)
        self._most, self._tol = optimizer.most_products, tol or 0.0
        self.region = {"radius": math.inf}

    @property
    def owned(self) -> dict[str, Any]:
        """See `Steps`."""
        return super().owned | {"region": self.region}

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
        relative = self.gradient_norm / self.first_norm
        return max(min(FIRST_SHARE, math.sqrt(relative)), min(FIRST_SHARE, SPARE * self._tol / relative))
