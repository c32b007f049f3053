"""Iterations of a full-batch solver on a `Problem`: from the start, by the sample's solution, to where they end."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .base import FullBatchSolver
from .decrement import Decrement
from .line_search import Point, Search
from .preconditioner import Factored, Preconditioner, RankFactored
from .problem import NOTHING, Evaluation, Problem

Array = Any
STOPPED, LOST = "no further decrease", "loss or gradient is not finite near the last iterate"
ROUNDED = "rounding of the parameters"
MOST_STALE = 5  # iterations in a row that find neither a lower value nor a smaller gradient: these are rounding
CHEAP_PRODUCTS = 4e8  # of a Hessian on a rank: 30 ms in float64
MOST_PRODUCTS = 4e9  # of the Hessian on a rank, to be made at the end of a run: 0.2 s
AT_THE_START, AT_THE_END = 1, 2  # where the Hessian of all rows was made; 0: nowhere


@dataclass
class Progress:
    """Numbers of a solver that a checkpoint keeps; the same on every rank.

    Attributes:
        first_norm, first_value: ‖gradient‖, and objective above the least value, at the start of the first run.
        factored: where the Hessian of all rows was made.
        gap: of the current point to the optimum, as a fraction of the objective; None: nothing tells.
        met, tol: whether that tolerance was met there; None: nobody looked.
        values: the last objectives, the newest last, where the gap is told by them.
    """

    first_norm: float | None = None
    first_value: float | None = None
    factored: int = 0
    gap: float | None = None
    met: bool | None = None
    tol: float | None = None
    values: list[float] = field(default_factory=list)


class State(ABC):
    """A solver at a point of a problem: `init`, then `step` until `met` or a ``stop_reason``.

    Args:
        problem: what is minimised, at its start.
        solver: the method, with its limit and tolerance.

    Attributes:
        at: what is known of the current point; None before `init`.
        progress: see `Progress`.
        decrement: see `Decrement`.
        direction: of the last search or step, a slice.
        preconditioner: from the sample or from all rows; None without one.
        factored_at: the point where the Hessian of all rows was made, replicated; None where it never is.
        resumed: whether the point is not the first one.
        stop_reason: why no further step is possible; None: one is.
        failed: whether that is an error.
    """

    brings_hessian = False  # whether evaluations do

    def __init__(self, problem: Problem, solver: FullBatchSolver) -> None:
        self.problem, self.solver = problem, solver
        self.at: Evaluation | None = None
        self.progress, self.decrement = Progress(), Decrement(solver.tol)
        self.direction = np.zeros_like(problem.grad)
        self.preconditioner: Preconditioner | None = None
        self.factored_at = problem.w.copy() if problem.is_dense else None
        self.resumed = self.failed = False
        self.stop_reason: str | None = None
        self._start: Array | None = None  # the sample's solution, until it is tried
        self._lost = False  # whether a trial of this step was not finite
        self._least, self._stale = (math.inf, math.inf), 0  # value and ‖gradient‖², and iterations since

    @property
    def arrays(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the point: nested dictionaries of slices and numbers, to be written to."""
        more = {} if self.factored_at is None else {"factored_at": self.factored_at}
        return {"counts": self.problem.counts, "progress": vars(self.progress), **more}

    @property
    def met(self) -> bool | None:
        """Whether the tolerance is met at the current point; None without one, and where nobody looked."""
        return self.progress.met if self.progress.tol == self.solver.tol else None

    @property
    def gradient_norm(self) -> float:
        """‖gradient‖ at the current point."""
        return math.nan if self.at is None else math.sqrt(self.at.square)

    def init(self) -> None:
        """Evaluate the start, and take the sample, or what stands for it; collective."""
        problem, sample = self.problem, self.solver.sample
        sampled = problem.sampled(sample)
        cheap = problem.hessian_products <= CHEAP_PRODUCTS and self._may_factor
        few = sampled is None and sample is None and cheap  # all rows are the sample
        known = bool(self.progress.factored) and self._may_factor  # not if it goes on under another exchange
        if sampled is not None:
            found = self._evaluate(sampled.message, current=True)
            start, self.preconditioner, self.decrement.metric = sampled.read(found.auxiliary)
            self.decrement.exact = self.preconditioner is not None
            self._start = None if self.resumed else start
        elif problem.is_linear and problem.replicated and not (self.brings_hessian or few or known):
            found = self._evaluate(problem.local_diagonal(), current=True)
            self.decrement.metric = problem.diagonal_metric(found.auxiliary)
            self.preconditioner = self.decrement.metric if problem.has_sample(sample) else None
        else:
            found = self._evaluate(current=True)
        if known:
            self._factor_again()
            self.decrement.exact = self.progress.factored == AT_THE_END
        elif few:
            self._precondition_by_all(AT_THE_START)
        self._begin(found.products)
        self._accept(found, current=True)
        if self.progress.first_norm is None:
            self.progress.first_norm, self.progress.first_value = self.gradient_norm, found.value - problem.least_value

    def step(self) -> None:
        """Make an iteration, the first to the sample's solution where there is one, and see whether it ends."""
        if self.at is None:
            self.init()
        assert self.at is not None
        self._lost = False
        if not math.isfinite(self.at.value):
            return
        if not math.isfinite(self.at.square):
            self._lost = True
            self._stop()
        elif not self._take_start():
            self._advance()
            self._stop_if_stale()
        self._terminate()

    def warm_up(self) -> None:
        """Compile what iterations need; local."""
        from .history_kernels import move
        from .ordered import dot

        if self.problem.is_dense:  # else nothing is factored
            for made in (Factored(np.eye(2)), RankFactored(np.eye(2), np.zeros(2))):
                made.solve(np.ones(2))
        dot(np.ones(2), np.ones(2))
        nothing = np.empty(0, self.problem.parameter_dtype)
        move(nothing, self.direction.dtype.type(0), self.direction[:0], nothing.copy())

    @abstractmethod
    def _advance(self) -> None:
        """Make an iteration, or find a ``stop_reason``; collective."""

    def _begin(self, products: Array) -> None:
        """Take the sums over the ranks of the products that the first evaluation was asked for; local."""
        assert products.size == 0  # who asks for some takes them

    def _evaluate(self, auxiliary: Array = NOTHING, *, current: bool = False) -> Evaluation:
        return self.problem.evaluate(auxiliary, current=current)

    def _accept(self, found: Evaluation, *, current: bool = False) -> None:
        """Let the trial point, of which ``found`` tells, be the current one; local."""
        self.problem.accept(current=current)
        self.at = found

    def _take_start(self) -> bool:
        """Go to the sample's solution, if there is one and it is better; collective."""
        if self._start is None:
            return False
        assert self.at is not None
        self.problem.propose(self._start)
        self._start = None
        found = self._evaluate()
        if not found.value < self.at.value:
            return False
        self._accept(found)
        return True

    def _stop(self) -> None:
        """Find no further step possible: because nothing is lower, or nothing that was tried is a number; local."""
        self.failed = self._lost
        self.stop_reason = LOST if self._lost else STOPPED

    def _stop_if_stale(self) -> None:
        """Find no further step possible after many that led nowhere."""
        assert self.at is not None
        now, least = (self.at.value, self.at.square), self._least
        self._least = (min(now[0], least[0]), min(now[1], least[1]))
        self._stale = 0 if self._least != least else self._stale + 1
        if self._stale >= MOST_STALE and self.stop_reason is None:
            self._lost = False
            self._stop()

    def _terminate(self) -> None:
        """See whether the tolerance is met at the current point; collective."""
        progress, tol = self.progress, self.solver.tol
        progress.met, progress.tol = None if tol is None else False, tol
        if self.failed:
            return
        if self.problem.is_linear:
            self._judge()
        elif tol is not None:
            assert progress.first_norm is not None
            norms = (self.gradient_norm, progress.first_norm)
            progress.met = all(map(math.isfinite, norms)) and norms[0] <= tol * norms[1]

    def _judge(self) -> None:
        """Measure the decrement, and tell whether it meets the tolerance; collective.

        Where it was measured by less than the Hessian, that is made before the run may end: by it the decrement is
        measured again, and the method goes on from there preconditioned by it, if it has to.
        """
        self._measure()
        problem, decrement, at, first = self.problem, self.decrement, self.at, self.progress.first_value or 0.0
        assert at is not None
        stopped = self.stop_reason is not None
        if decrement.tol is None or not (stopped or decrement.meets_tol(problem, at, first)):
            return
        if not decrement.exact and self._may_factor:
            self._precondition_by_all(AT_THE_END)
            self._measure()
            if stopped and not decrement.is_small(problem, at):  # there is another way on
                self.stop_reason, self._stale, self._least = None, 0, (math.inf, math.inf)
                return
        if decrement.meets_tol(problem, at, first):
            self.stop_reason = None
        elif not (stopped and decrement.is_small(problem, at)):
            return
        rounded = decrement.of_rounding(problem)
        self.progress.gap = decrement.gap(problem, at, rounded)
        self.progress.met = rounded <= 2 * decrement.least_gap(problem, at)
        if not self.progress.met:
            self.stop_reason = ROUNDED

    def _measure(self) -> None:
        """The decrement, and the gap that follows, at the current point; collective."""
        assert self.at is not None
        self.decrement.root = math.sqrt(max(0.0, self._decrement_square()))
        self.progress.gap = self.decrement.gap(self.problem, self.at)

    def _decrement_square(self) -> float:
        assert self.at is not None
        return self.decrement.square(self.problem, self.at)

    @property
    def _may_factor(self) -> bool:
        """Whether the Hessian of all rows may be made once or twice in a run."""
        return not self.brings_hessian and self.problem.hessian_products <= MOST_PRODUCTS

    def _precondition_by_all(self, when: int) -> None:
        """Make the Hessian of all rows at the current point, and use it; collective."""
        assert self.factored_at is not None
        self.factored_at[:] = self.problem.w
        self.progress.factored = when
        self._factor_again()
        self.decrement.exact = when == AT_THE_END

    def _factor_again(self) -> None:
        """As `_precondition_by_all`, at the point where that was done."""
        self.preconditioner = self.decrement.metric = self.problem.factored_hessian(self.factored_at)


class LineSearchState(State):
    """Along a direction to a point that the line search is content with.

    Where the problem has lines, only the first trial of a direction evaluates it: others follow from the line, and the
    point that is found is looked at once more.  Of a trial so short that lines differ by rounding alone nothing
    follows: then that look finds a higher value.
    """

    def __init__(self, problem: Problem, solver: FullBatchSolver, search: Search) -> None:
        super().__init__(problem, solver)
        self.search = search
        self._trial: Evaluation | None = None  # of the trial point
        self._trial_step, self._read = 1.0, 0.0  # lengths: of the trial point, and of the one that `line` follows from

    def _search(self, slope: float, first: float) -> bool:
        """Find a point along the direction and go there; false where there is no better one; collective."""
        assert self.at is not None
        start = Point(0.0, self.at.value, slope)
        if not (slope < 0 and math.isfinite(slope)):
            return False
        self._read = 0.0
        precision = 10.0 * float(np.finfo(self.problem.parameter_dtype).eps)
        found = self.search.find(self._try, start, first, precision)
        if found.point.t == 0:
            return False
        if found.point.t != self._read:
            value, _ = self._look(found.point.t)
            assert self._trial is not None
            if not (value <= start.value + precision * abs(start.value) and math.isfinite(self._trial.square)):
                return False
        assert self._trial is not None
        self._propose(self._trial)
        self._accept(self._trial)
        return True

    def _try(self, t: float) -> tuple[float, float]:
        """Value and slope at t · direction from the current point; collective."""
        if self._read and self.problem.has_lines:
            return self.problem.line(t, self.direction, self._read)
        value, slope = self._look(t)
        assert self._trial is not None
        if not (math.isfinite(value) and math.isfinite(slope) and math.isfinite(self._trial.square)):
            self._lost, self._read = True, 0.0
            return math.inf, math.nan
        return value, slope

    def _look(self, t: float) -> tuple[float, float]:
        """As `_try` by an evaluation of the trial point."""
        self.problem.move(t, self.direction)
        self._read = self._trial_step = t
        self._trial = self._evaluate()
        return self._trial.value, self._slope(self._trial)

    @abstractmethod
    def _slope(self, trial: Evaluation) -> float:
        """The slope along the direction at the trial point."""

    def _propose(self, trial: Evaluation) -> None:
        """Hear that the trial point, of which ``trial`` tells, is about to be accepted; local."""
