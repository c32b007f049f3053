"""How far a point is from the optimum, by a measure that neither shift nor scale of features or targets changes."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from ...backend import HOST
from ...messages import tell
from ...objective import Objective
from ...optim.solvers.preconditioner import Preconditioner, RankFactored
from ..metrics import least_loss
from ..steps import Steps
from .problem import Evaluation, ReplicatedProblem, RowsProblem, ShardedProblem, is_linear, null_space
from .sample import MOST_DENSE, by_parameter, compile_passes, diagonal_of_all, hessian_of_all, precise, spread_of
from .units import Units, in_other_units, rounding_of

Array = Any
ROUNDED = "rounding of the parameters"
MOST_PRODUCTS = 4e9  # of the Hessian on a rank, to be made at the end of a run: 0.2 s
AT_THE_START, AT_THE_END = 1, 2  # where the Hessian of all rows was made; 0: nowhere
ENOUGH = 1e-2  # of the tolerance: a gap that is as small as rounding lets it be


class MeasuredSteps(Steps):
    """Steps that know, of linear models, how far it is to the optimum.

    It is told by the gradient in the norm of the inverse Hessian, or of what stands for that: Newton's decrement,
    √(gᵀ H⁻¹ g) (Boyd & Vandenberghe 2004, "Convex optimization", section 9.5.1).  Half its square estimates the gap to
    the optimum.

    Args:
        objective, start: see `Steps`; ``objective.whole`` says how vectors lie.
        linearizes: see `RowsProblem`.
        tol: the tolerance, see `fit`; None: there is none.

    Attributes:
        measures: see `Steps`: whether the model is linear.
        points: the objective at the current and at a trial point.
        units: those of the parameters inside, of a linear model; None: they are those of the rows.
        preconditioner: from the sample or from all rows; None without one.
        decrement: Newton's at w, estimated; nan where nothing tells it.
        done: evaluations, products, what was known of the first point, and what of the last, also from before the
            run was interrupted.
        least_value: the mean of the least losses that any outputs give the rows: 0 but for losses of counts, which may
            be negative.
        prepared: seconds that were spent on ``units``, before the first step.
        collinear: features that were found to depend on others, numbers from 0; None: nobody looked.
    """

    _factors = False  # whether evaluations bring the Hessian

    def __init__(self, objective: Objective, start: Array, linearizes: bool, tol: float | None) -> None:
        self.measures, self.tol = is_linear(objective.model), tol
        if self.measures:
            compile_passes(objective)
            objective.comm.barrier()  # not to count what ranks wait for each other
        began = time.perf_counter()
        self.units: Units | None = None
        if self.measures:
            self._columns = spread_of(objective)
            objective, self.units = in_other_units(objective, self._columns)
            if self.units is not None:
                self._columns = spread_of(objective)
                if start.any():  # zeros are the best constant model in these units
                    start = self.units.inward(objective.model, start)
        super().__init__(objective, start, None)
        self.points: RowsProblem = (ReplicatedProblem if objective.whole else ShardedProblem)(objective, linearizes)
        if self.measures and isinstance(self.points, ShardedProblem):
            self.points.find_diagonal(diagonal_of_all(objective), self._w)
        self.least_value = least_loss(objective.abilities.loss, objective.loader, objective.comm)
        self.prepared = time.perf_counter() - began
        self.preconditioner: Preconditioner | None = None
        self._metric: Preconditioner | None = None  # what the decrement is measured by, of whole vectors
        self._exact = False  # whether that is the Hessian itself, or stands for it well
        self.decrement, self.collinear = math.nan, None
        self._told: set[str] = set()
        self._outward: Array | None = None  # w in the units of the rows
        self._at: Evaluation | None = None  # of w, once it is known
        self._least, self._stale = (math.inf, math.inf), 0  # value and ‖gradient‖², and iterations since
        self.done: dict[str, Any] = {**self.points.counts, "first_norm": None, "first_value": None, "factored": 0}
        self.done |= {"met": None, "gap": None}
        self.points.counts = self.done
        dense = self.measures and self._w.size <= MOST_DENSE
        self._factored_at = self._w[objective.mine].copy() if dense else None

    @property
    def w(self) -> Array:
        """See `Steps`; in the units of the rows."""
        if self.units is None:
            return HOST.read_only(self._w)
        if self._outward is None:
            self._outward = self.units.outward(self.objective.model, self._w).astype(self._w.dtype)
        return HOST.read_only(self._outward)

    @property
    def inside(self) -> tuple[Objective, Array]:
        """See `Steps`: in the units of the method, the parameters ``w`` as they are rounded in those of the rows."""
        w = self._w if self.units is None else self.units.inward(self.objective.model, self.w).astype(self._w.dtype)
        return self.objective, HOST.read_only(w)

    @property
    def relative_gap(self) -> float | None:
        """See `Steps`: half the square of the decrement, as a share of the objective, and what rounding adds."""
        return self.done["gap"]

    @property
    def met(self) -> bool | None:  # type: ignore[override]
        """See `Steps`."""
        return self.done["met"]

    @property
    def at(self) -> Evaluation:
        """What is known of the current point."""
        assert self._at is not None
        return self._at

    @property
    def excess(self) -> float:
        """The objective at w above `least_value`: what gaps and tolerances are shares of."""
        return max(0.0, self.at.value - self.least_value)

    def _judge(self) -> None:
        """Measure the decrement, and tell whether the tolerance is met; collective.

        Where it was measured by less than the Hessian, that is made before the run may end: by it the decrement is
        measured again, and the method goes on from there preconditioned by it, if it has to.
        """
        self._measure()
        stopped = self.stop_reason is not None
        self.done["met"] = None if self.tol is None else False
        if self.tol is None or not (stopped or self._meets(self.tol)):
            return
        if not self._exact and self._can_factor:
            self._precondition_by_all(AT_THE_END)
            self._measure()
            if stopped and not self._enough():
                self._go_on()
                return
        if self._meets(self.tol):
            self.stop_reason = None
        elif not (stopped and self._enough()):
            return
        rounded = self._rounding()
        self._know_gap(rounded)
        self.done["met"] = rounded <= 2 * self._least_gap()
        if not self.done["met"]:
            self.stop_reason = ROUNDED

    def _meets(self, tol: float) -> bool:
        """Whether the decrement is at most ``tol`` times √(2 f), the gap so at most tol² of the objective f.

        Where the model fits all rows, f is 0 in the end: there the tolerance is of the first f, and at most what
        rounding leaves.
        """
        first = self.done["first_value"] or 0.0
        floor = min(tol, max(4 * float(np.finfo(self._w.dtype).eps), 1e-14))
        return self.decrement**2 <= 2 * max(tol * tol * self.excess, floor * floor * first)

    def _enough(self) -> bool:
        """Whether the gap is small where a run ends because rounding hides all that is lower."""
        assert self.tol is not None
        return 0.5 * self.decrement**2 <= min(ENOUGH * self.tol * self.excess, self._least_gap())

    def _least_gap(self) -> float:
        """A gap that nobody can tell from chance: at most ``tol`` of f, and parameters a tenth of a standard error off.

        Of N rows the errors have the covariance σ² H⁻¹ / N, in which a gap of δᵀ H δ / 2 is √(2 N gap) / σ errors long;
        σ² is 2 f of least squares, and of classes 1, which is more.
        """
        assert self.tol is not None
        return self.excess * min(self.tol, 0.01 / self.objective.loader.share.rows)

    def _measure(self) -> None:
        """``decrement`` at w; collective."""
        self.decrement = math.sqrt(max(0.0, self._decrement_square()))
        self._know_gap(0.0)

    def _know_gap(self, more: float) -> None:
        """``relative_gap`` follows from the decrement and ``more``, a square like its own; local."""
        gap, value = 0.5 * (self.decrement**2 + more), self.excess
        self.done["gap"] = gap / value if math.isfinite(gap) and value > 0 else None

    def _decrement_square(self) -> float:
        if not self.objective.whole:
            return self.at.scaled
        return math.nan if self._metric is None else self._metric.inverse_square(self.points.grad)

    def _rounding(self) -> float:
        """As the square of the decrement, what rounding the parameters in the units of the rows costs; collective."""
        if self.units is None:
            return 0.0
        inner = self.units.inward(self.objective.model, self.w)
        off = (inner - self._w)[self.objective.mine]
        if self._metric is not None and self.objective.whole:
            return self._metric.square(off)
        diagonal = self.points.diagonal if isinstance(self.points, ShardedProblem) else None
        return self.points.dots((off if diagonal is None else off * diagonal, off))[0]

    @property
    def _can_factor(self) -> bool:
        """Whether the Hessian of all rows may be made once or twice in a run."""
        few = self.objective.whole and self._w.size <= MOST_DENSE
        return self.measures and not self._factors and few and self._products <= MOST_PRODUCTS

    @property
    def _products(self) -> float:
        """Of the Hessian, on a rank."""
        return self.objective.loader.share.rows / self.objective.comm.size * self._w.size**2

    def _precondition_by_all(self, when: int) -> None:
        """Make the Hessian of all rows at w, and use it; collective."""
        assert self._factored_at is not None
        self._factored_at[:] = self._w
        self.done["factored"] = when
        self._factor_again()
        self._exact = when == AT_THE_END

    def _factor_again(self) -> None:
        """As `_precondition_by_all`, at the point where that was done."""
        objective, dtype = self.objective, precise(self.objective)
        matrix = hessian_of_all(objective, self._factored_at, self.points.penalty, dtype)
        self.preconditioner = self._metric = self._factored_by_rank(matrix, dtype)

    def _factored_by_rank(self, matrix: Array, dtype: Any) -> RankFactored:
        """The Hessian ``matrix``, summed in ``dtype``, without parameters of features that depend on others; local."""
        model: Any = self.objective.model
        noise = by_parameter(model, rounding_of(self.objective.loader, self._columns, self.units), 0.0)
        free, biases = null_space(model, self.points.penalty), model.widths[-1] * model.bias
        made = RankFactored(matrix, noise, dtype, free, biases)
        self._tell_dropped(made)
        return made

    def _go_on(self) -> None:
        """Have no reason to stop any more: there is another way on; local."""
        self.stop_reason, self._stale, self._least = None, 0, (math.inf, math.inf)

    def _tell_dropped(self, made: RankFactored) -> None:
        """Say, once, which features depend on others; local."""
        if not made.finite:
            self._warn("the Hessian is not finite: features or parameters are too large; scale them, or --standardize")
        first, outputs = self.collinear is None, self.objective.model.widths[-1]  # type: ignore[attr-defined]
        columns = np.unique(np.flatnonzero(made.dropped) // outputs)
        share = self.objective.loader.share
        self.collinear = [int(c) for c in columns if c < share.features]
        if first and self.collinear:
            self._warn(
                f"{share.called(self.collinear)} are constant, or combinations of the features before them, to the"
                f" precision of {self._w.dtype}: they add nothing, and their parameters stay as they are"
            )

    def _warn(self, message: str) -> None:
        if self.objective.comm.rank == 0 and message not in self._told:
            tell(message, warning=True)
        self._told.add(message)
