"""How far a point is from the optimum, by a measure that neither shift nor scale of features or targets changes.

Newton's decrement, √(gᵀ H⁻¹ g), is the gradient in the norm of the inverse Hessian, or of what stands for that (Boyd &
Vandenberghe 2004, "Convex optimization", section 9.5.1).  Half its square estimates the gap to the optimum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .preconditioner import Preconditioner
from .problem import Evaluation, Problem

APART, SLOWEST = 5, 0.99  # see `Decrement.square_by_values`
ENOUGH = 1e-2  # of the tolerance: a gap that is as small as rounding lets it be


@dataclass
class Decrement:
    """What is known of the distance to the optimum of a linear model.

    Attributes:
        tol: the tolerance, see `FullBatchSolver`; None: there is none.
        root: the decrement at the current point, estimated; nan where nothing tells it.
        metric: what it is measured by, of replicated vectors.
        exact: whether that is the Hessian itself, or stands for it well.
    """

    tol: float | None
    root: float = math.nan
    metric: Preconditioner | None = None
    exact: bool = False

    @staticmethod
    def square_by_values(values: Sequence[float]) -> float:
        """Its square by the last objectives, oldest first, of a method that converges linearly; 0 where they are few.

        The gap that is left where falls go on shrinking as they did (Aitken 1926, "On Bernoulli's numerical solution of
        algebraic equations": the Δ² process), by values `APART` iterations apart: single falls differ by factors.
        """
        if len(values) <= 2 * APART:
            return 0.0
        old, middle, new = values[-1 - 2 * APART], values[-1 - APART], values[-1]
        ratio = min((middle - new) / (old - middle), SLOWEST) if old > middle else SLOWEST
        return 2.0 * max(0.0, middle - new) * max(0.0, ratio) / (1.0 - ratio)

    def square(self, problem: Problem, at: Evaluation) -> float:
        """gᵀ M⁻¹ g by the metric M, at the point that ``at`` tells of."""
        if not problem.replicated:
            return at.scaled
        return math.nan if self.metric is None else self.metric.inverse_square(problem.grad)

    def gap(self, problem: Problem, at: Evaluation, more: float = 0.0) -> float | None:
        """The gap to the optimum as a fraction of the objective, ``more`` added to the decrement's square."""
        gap, excess = 0.5 * (self.root**2 + more), problem.excess(at)
        return gap / excess if math.isfinite(gap) and excess > 0 else None

    def meets_tol(self, problem: Problem, at: Evaluation, first: float) -> bool:
        """Whether the decrement is at most ``tol`` times √(2 f), the gap so at most tol² of the objective f.

        Where the model fits all rows, f is 0 in the end: there the tolerance is of the first f, and at most what
        rounding leaves.
        """
        assert self.tol is not None
        floor = min(self.tol, max(4 * float(np.finfo(problem.parameter_dtype).eps), 1e-14))
        return self.root**2 <= 2 * max(self.tol * self.tol * problem.excess(at), floor * floor * first)

    def is_small(self, problem: Problem, at: Evaluation) -> bool:
        """Whether the gap is small where a run ends because rounding hides all that is lower."""
        assert self.tol is not None
        return 0.5 * self.root**2 <= min(ENOUGH * self.tol * problem.excess(at), self.least_gap(problem, at))

    def least_gap(self, problem: Problem, at: Evaluation) -> float:
        """A gap that nobody can tell from chance: at most ``tol`` of f, and parameters a tenth of a standard error off.

        Of N rows the errors have the covariance σ² H⁻¹ / N, in which a gap of δᵀ H δ / 2 is √(2 N gap) / σ errors long;
        σ² is 2 f of least squares, and of classes 1, which is more.
        """
        assert self.tol is not None
        return problem.excess(at) * min(self.tol, 0.01 / problem.terms)

    def of_rounding(self, problem: Problem) -> float:
        """As the square of the decrement, what rounding the parameters for the user costs; collective."""
        off = problem.rounding()
        if off is None:
            return 0.0
        if self.metric is not None and problem.replicated:
            return self.metric.square(off)
        return problem.scaled_product(off)
