"""What the methods that see all rows in every iteration have in common."""

from __future__ import annotations

from typing import ClassVar

from ..settings import setting, settings

MAX_ITER = "Iterations that full-batch methods make at most.  [default: 100, of gd as --epochs]"
TOL = (
    "Stop full-batch methods when the gradient is at most this share: for linear models in the norm of the inverse"
    " Hessian, of √(2 · objective), which leaves a gap to the optimum of about this squared; for nets and gd in the"
    " Euclidean norm, of the gradient at the start.  [default: 1e-5, of gd off]"
)
MIN_DECREASE = (
    "Stop full-batch methods when an iteration lowers the objective by less than this share of it.  [default: off]"
)


@settings
class Deterministic:
    """A method that sees all rows in every iteration, and finds the length of its steps.

    Attributes:
        max_iter: iterations at most.
        tol: linear models stop when Newton's decrement √(gᵀ H⁻¹ g) of the objective f is at most tol · √(2 f): the
            estimated gap to the optimum, half its square, is then at most tol² of f.  Where rounding ends a run before,
            its gap must be at most tol / 100 of f.  Neither shift nor scale of features or targets changes that.  Other
            models stop when the norm of the gradient is at most ``tol`` times that at the start.  None: never.
        min_decrease: stop when an iteration lowers the objective by less than this share of it; None: never.
        sample: linear models of few parameters begin at the solution of so many rows, over all ranks, and their
            Hessian preconditions: an iteration then gains as much as several.  None: as many as serve; 0: none.
    """

    max_iter: int = setting(default=100, low=1, kw_only=True, topic="solver", help=MAX_ITER)
    tol: float | None = setting(default=1e-5, above=0, kw_only=True, topic="solver", help=TOL)
    min_decrease: float | None = setting(default=None, above=0, kw_only=True, topic="solver", help=MIN_DECREASE)
    sample: int | None = setting(default=None, low=0, kw_only=True, topic="solver", shown=False)
    name: ClassVar[str]
    full_batch: ClassVar[bool] = True
    lr: ClassVar[None] = None
