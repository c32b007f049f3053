"""Limited-memory BFGS (Nocedal & Wright 2006, algorithm 7.5), preconditioned where the problem offers something."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from ...options import OPTIONS
from ...settings import setting, settings
from .base import FullBatchSolver
from .decrement import APART
from .history import ReplicatedHistory, history_of, warm_up
from .line_search import Search, StrongWolfe
from .owlqn import OWLQNState
from .problem import NOTHING, Evaluation, Problem
from .state import LineSearchState

Array = Any


@settings
class LBFGS(FullBatchSolver):
    """Limited-memory BFGS (Nocedal & Wright 2006, algorithm 7.5) over all rows, with a line search.

    With an l1 penalty (``fit(l1=...)``) it is OWL-QN, see `owlqn`.

    Attributes:
        memory: pairs of steps and changes of the gradient that are kept.
        search: the line search.
        curvature_threshold: a pair is kept where the cosine of the angle between step and change of the gradient is
            larger, so that the estimate stays positive definite where the objective is not convex (cautious updates,
            Li & Fukushima 2001, "On the global convergence of the BFGS method for nonconvex unconstrained optimization
            problems"; theirs compare with the gradient's norm, which depends on the objective's scale).
        sample: see `FullBatchSolver`.
    """

    memory: int = setting(OPTIONS["history"], default=10)
    search: Search = setting(factory=StrongWolfe)
    curvature_threshold: float = setting(kind="float", default=1e-8, low=0)
    name: ClassVar[str] = "lbfgs"

    def start(self, problem: Problem) -> LBFGSState | OWLQNState:
        """See `FullBatchSolver.start`; with an l1 penalty it is OWL-QN."""
        if problem.l1 is not None:
            return OWLQNState(problem, self)
        return LBFGSState(problem, self)


class LBFGSState(LineSearchState):
    """L-BFGS at a point: the history lies where the parameters lie, in slices or replicated.

    Args:
        problem, solver: see `State`.

    Attributes:
        history: see `history_of`.
    """

    def __init__(self, problem: Problem, solver: LBFGS) -> None:
        super().__init__(problem, solver, solver.search)
        of_slices = None if problem.replicated else problem.diagonal_at_start()
        self.preconditioner = of_slices
        self.history: Any = history_of(problem, solver.memory, of_slices)
        self._threshold = solver.curvature_threshold
        self._ready: float | None = None  # the slope along the next direction, where that is made

    def warm_up(self) -> None:
        """See `State.warm_up`."""
        super().warm_up()
        warm_up(type(self.history), self.problem)

    @property
    def arrays(self) -> dict[str, Any]:
        """See `State.arrays`."""
        return super().arrays | {"history": self.history.kept}

    def _advance(self) -> None:
        """Search along L-BFGS's direction, or where that fails along the (preconditioned) gradient."""
        if self._from_here():
            return
        if self.history.slots["count"]:
            self.history.reset()  # perhaps the estimate is to blame: try the gradient itself
            if self._from_here():
                self.problem.warn(
                    "a search along L-BFGS's direction found nothing lower: its pairs were dropped to go on"
                )
                return
        self._stop()

    def _from_here(self) -> bool:
        """Search along the next direction; collective."""
        assert self.at is not None
        history, square = self.history, self.at.square
        if square == 0:
            return False
        slope, self._ready = self._ready, None
        if slope is None:
            slope = self._direct()
        if not (slope < 0 and math.isfinite(slope)):
            history.reset()
            slope = self._direct()
        scaled = history.slots["count"] or self.preconditioner is not None
        return self._search(slope, 1.0 if scaled else min(1.0, 1.0 / math.sqrt(square)))

    def _direct(self) -> float:
        """The next direction; returns the slope along it."""
        assert self.at is not None
        sharded = self.preconditioner is not None and not self.problem.replicated
        square = self.at.scaled if sharded else self.at.square
        return self.history.direction(self.problem.grad, square, self.direction)

    def _evaluate(self, auxiliary: Array = NOTHING, *, current: bool = False) -> Evaluation:
        """With the products of the pair that the trial point begins, or of the whole history at the start."""
        return self.problem.evaluate(auxiliary, self._local_products, current=current)

    def _local_products(self) -> Array:
        problem = self.problem
        if self.at is None:
            return self.history.products(problem.trial_grad)
        return self.history.propose(self._trial_step, self.direction, problem.trial_grad, problem.grad)

    def _accept(self, found: Evaluation, *, current: bool = False) -> None:
        """See `State._accept`; of sharded vectors the diagonal says little of the gap, and values say more."""
        super()._accept(found, current=current)
        values = self.progress.values
        if not (self.problem.replicated or (current and values)):  # of a run that goes on, it is there
            values[:] = [*values[-2 * APART :], found.value]

    def _begin(self, products: Array) -> None:
        self.history.load(products)
        self._precondition()

    def _precondition(self) -> None:
        if isinstance(self.history, ReplicatedHistory):
            self.history.preconditioner = self.preconditioner

    def _take_start(self) -> bool:
        self._trial_step = 1.0
        return super()._take_start()

    def _slope(self, trial: Evaluation) -> float:
        return float(trial.products[0]) / self._trial_step

    def _propose(self, trial: Evaluation) -> None:
        self.history.accept(np.asarray(trial.products), self._threshold)

    def _measure(self) -> None:
        self._ready = None
        super()._measure()

    def _decrement_square(self) -> float:
        """As the metric says, and where they say more as the pairs do, of which the next direction is made."""
        assert self.at is not None
        known = super()._decrement_square()
        if math.isfinite(known) and self.history.slots["count"] and self.at.square > 0:
            self._ready = self._direct()
            return max(known, -self._ready, self.decrement.square_by_values(self.progress.values))
        return known

    def _precondition_by_all(self, when: int) -> None:
        super()._precondition_by_all(when)
        self._precondition()
        self.history.reset()
