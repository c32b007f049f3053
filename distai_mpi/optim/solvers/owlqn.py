"""Orthant-wise limited-memory quasi-Newton: L-BFGS with an l1 penalty (Andrew & Gao 2007).

"Scalable training of L1-regularized log-linear models", algorithm 1.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .history import ShardedHistory, history_of, warm_up
from .orthant import orthant, project
from .problem import NOTHING, Evaluation, Problem
from .state import State

Array = Any
DECREASE = 1e-4  # of what the pseudo-gradient promises, that a step has to bring
MOST_TRIALS = 40  # of a step, each half as long as the one before


class OWLQNState(State):
    """OWL-QN at a point: pairs are of plain gradients, directions of pseudo-gradients, and steps stay in an orthant.

    It ends where the norm of the pseudo-gradient is at most ``tol`` times that of the start.  There is no sample, and
    the solver's line search is not used: values along projected steps are no smooth function.

    Args:
        problem: see `State`; has ``l1``.
        solver: `LBFGS`.

    Attributes:
        history: see `history_of`.
    """

    def __init__(self, problem: Problem, solver: Any) -> None:
        super().__init__(problem, solver)
        self.history: Any = history_of(problem, solver.memory)
        self._threshold = solver.curvature_threshold
        self._step = np.zeros_like(self.direction)  # to the trial point

    def warm_up(self) -> None:
        """See `State.warm_up`."""
        super().warm_up()
        warm_up(type(self.history), self.problem)

    @property
    def arrays(self) -> dict[str, Any]:
        """See `State.arrays`."""
        return super().arrays | {"history": self.history.kept}

    def init(self) -> None:
        """See `State.init`."""
        found = self._evaluate(current=True)
        self.history.load(found.products)
        self._accept(found, current=True)
        if self.progress.first_norm is None:
            self.progress.first_norm = self.gradient_norm
            self.progress.first_value = found.value - self.problem.least_value

    def _advance(self) -> None:
        """Search along the direction of the history, or where that fails along the pseudo-gradient."""
        if self._from_here():
            return
        if self.history.slots["count"]:
            self.history.reset()
            if self._from_here():
                return
        self._stop()

    def _evaluate(self, auxiliary: Array = NOTHING, *, current: bool = False) -> Evaluation:
        """With the products of the pair that the trial point begins, or of the whole history at the start."""
        return self.problem.evaluate(auxiliary, self._local_products, current=current)

    def _from_here(self) -> bool:
        """Search along the next direction; collective."""
        assert self.at is not None
        problem, history, square = self.problem, self.history, self.at.square
        if square == 0:
            return False
        slope, l1 = problem.slope, problem.l1
        history.direction(slope, square, self.direction)
        self.direction[(l1 > 0) & (self.direction * slope >= 0)] = 0  # step 2: only what descends
        (gain,) = problem.dots((self.direction, slope))
        if not (gain < 0 and math.isfinite(gain)):
            return False
        return self._backtrack(1.0 if history.slots["count"] else min(1.0, 1.0 / math.sqrt(square)))

    def _backtrack(self, t: float) -> bool:
        """Go to the first of ever nearer points in the orthant (step 3) that is low enough; false: none is."""
        assert self.at is not None
        problem, before = self.problem, self.at
        signs, number = orthant(problem.w, problem.slope, problem.l1), self.direction.dtype.type
        precision = 10.0 * float(np.finfo(problem.parameter_dtype).eps)
        for _ in range(MOST_TRIALS):
            self._step[:] = project(problem.w + number(t) * self.direction, signs)
            self._step -= problem.w  # exactly to 0, where that is projected to
            problem.move(1.0, self._step)
            found = self._evaluate()
            finite = math.isfinite(found.value) and math.isfinite(found.square)
            self._lost |= not finite
            gain = float(found.products[0])
            low = found.value <= before.value + DECREASE * gain
            level = found.value <= before.value + precision * abs(before.value)  # values are rounding there
            if finite and (low or (level and found.square < before.square)):
                self.history.accept(np.asarray(found.products[1:]), self._threshold)
                self._accept(found)
                return True
            t *= 0.5
        return False

    def _local_products(self) -> Array:
        """Of the step with the pseudo-gradient where it began, and of the pair that it makes."""
        problem = self.problem
        if self.at is None:
            return self.history.products(problem.trial_slope)
        gain = problem.local_dot(self._step, problem.slope)
        found = self.history.propose(1.0, self._step, problem.trial_grad, problem.grad)
        if isinstance(self.history, ShardedHistory):  # the next direction is of the pseudo-gradient
            self.history.multiply(problem.trial_slope, problem.local_dot, found)
        return np.concatenate([[gain], found])

    def _terminate(self) -> None:
        """See `State._terminate`: by the norm of the pseudo-gradient, of linear models, too."""
        progress, tol = self.progress, self.solver.tol
        progress.met, progress.tol = None if tol is None else False, tol
        if tol is not None and not self.failed:
            assert progress.first_norm is not None
            progress.met = math.isfinite(self.gradient_norm) and self.gradient_norm <= tol * progress.first_norm
