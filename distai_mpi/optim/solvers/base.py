"""What full-batch solvers have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ...options import OPTIONS
from ...settings import setting, settings

if TYPE_CHECKING:
    from .problem import Problem


@settings
class FullBatchSolver:
    """A method that sees the whole objective in every iteration, and finds the length of its steps.

    Attributes:
        max_iter: iterations at most.
        tol: linear models end when Newton's decrement √(gᵀ H⁻¹ g) of the objective f is at most tol · √(2 f): the
            estimated gap to the optimum, half its square, is then at most tol² of f.  Where rounding ends a run before,
            its gap must be at most tol / 100 of f.  Neither shift nor scale of features or targets changes that.
            Everything else ends when the norm of the gradient is at most ``tol`` times that of the start.  None: there
            is no tolerance.
        min_decrease: stop when an iteration lowers the objective by less than this fraction of it; None: never.
        sample: linear models of few parameters begin at the solution of so many rows, over all ranks, and their
            Hessian preconditions: an iteration then gains as much as several.  None: as many as serve; 0: none.
    """

    max_iter: int = setting(OPTIONS["max_iter"], default=100, kw_only=True)
    tol: float | None = setting(OPTIONS["tol"], default=1e-5, kw_only=True)
    min_decrease: float | None = setting(OPTIONS["min_decrease"], default=None, kw_only=True)
    sample: int | None = setting(OPTIONS["sample"], default=None, kw_only=True)
    name: ClassVar[str]
    full_batch: ClassVar[bool] = True
    lr: ClassVar[None] = None

    def start(self, problem: Problem) -> Any:
        """The solver's `State` at the start of ``problem``, of which nothing is evaluated yet."""
        raise NotImplementedError
