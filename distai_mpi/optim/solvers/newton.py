"""Newton's method with the Hessian itself, and a line search that begins with the whole step."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ...settings import setting, settings
from .base import FullBatchSolver
from .line_search import Armijo, Search
from .preconditioner import RankFactored
from .problem import NOTHING, Evaluation, Problem
from .state import LineSearchState

Array = Any


@settings
class Newton(FullBatchSolver):
    """Newton's method for linear models of few parameters: the Hessian of all rows, and its Cholesky factor.

    Attributes:
        search: the line search, which begins with the whole step.
        sample: see `FullBatchSolver`; the start alone counts.
    """

    search: Search = setting(factory=Armijo)
    name: ClassVar[str] = "newton"

    def start(self, problem: Problem) -> NewtonState:
        """See `FullBatchSolver.start`."""
        return NewtonState(problem, self)


@settings
class Auto(FullBatchSolver):
    """The one of `LBFGS`, `NewtonCG` and `Newton` that fits rows, columns and ranks; see `train.full_batch.choose`.

    Attributes:
        sample: of the method that is chosen.
    """

    name: ClassVar[str] = "auto"


class NewtonState(LineSearchState):
    """Newton's method at a point: the Hessian travels beside the gradient, and every rank factors it.

    Args:
        problem, solver: see `State`.
    """

    brings_hessian = True

    def __init__(self, problem: Problem, solver: Newton) -> None:
        super().__init__(problem, solver, solver.search)
        self._entries = problem.w.size * (problem.w.size + 1) // 2
        self._triangle: Array | None = None  # of the Hessian's sum over rows, at the current point
        self._factored: RankFactored | None = None  # the Hessian there

    def _advance(self) -> None:
        """Search along -H⁻¹ g."""
        assert self.at is not None
        if self.at.square == 0:
            self._stop()
            return
        np.negative(self.problem.grad, out=self.direction)
        self._hessian().solve(self.direction)
        slope = self.problem.dots((self.direction, self.problem.grad))[0]
        if not self._search(slope, 1.0):
            self._stop()

    def _hessian(self) -> RankFactored:
        """The Hessian at the current point, factored; local."""
        if self._factored is None:
            self._factored = self.problem.factor(self._triangle)
            self.decrement.metric, self.decrement.exact = self._factored, True
        return self._factored

    def _evaluate(self, auxiliary: Array = NOTHING, *, current: bool = False) -> Evaluation:
        """With the Hessian's triangle after ``auxiliary``, unless it is known."""
        known = self.problem.has_constant_hessian and self._triangle is not None
        return self.problem.evaluate(auxiliary, None, None if known else self.problem.local_hessian, current=current)

    def _accept(self, found: Evaluation, *, current: bool = False) -> None:
        super()._accept(found, current=current)
        if found.auxiliary.size >= self._entries:
            self._triangle, self._factored = found.auxiliary[-self._entries :], None

    def _measure(self) -> None:
        self._hessian()
        super()._measure()

    def _slope(self, trial: Evaluation) -> float:
        return self.problem.dots((self.direction, self.problem.trial_grad))[0]
