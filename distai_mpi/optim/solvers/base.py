"""What full-batch solvers have in common."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ...errors import ConfigError

if TYPE_CHECKING:
    from .problem import Problem


@dataclass(frozen=True)
class FullBatchSolver:
    """A method that sees the whole objective in every iteration, and finds the length of its steps.

    Attributes:
        max_iter: iterations at most.
        tol: linear models end when Newton's decrement √(gᵀ H⁻¹ g) of the objective f is at most tol · √(2 f): the
            estimated gap to the optimum, half its square, is then at most tol² of f.  Where rounding ends a run before,
            its gap must be at most tol / 100 of f.  Neither shift nor scale of features or targets changes that.
            Everything else ends when the norm of the gradient is at most ``tol`` times that of the start.  None: there
            is no tolerance.
        sample: linear models of few parameters begin at the solution of so many rows, over all ranks, and their
            Hessian preconditions: an iteration then gains as much as several.  None: as many as serve; 0: none.
    """

    max_iter: int = field(default=100, kw_only=True)
    tol: float | None = field(default=1e-5, kw_only=True)
    sample: int | None = field(default=None, kw_only=True)
    name: ClassVar[str]
    full_batch: ClassVar[bool] = True
    lr: ClassVar[None] = None

    def __post_init__(self) -> None:
        if not isinstance(self.max_iter, int | np.integer) or self.max_iter < 1:
            raise ConfigError(f"max_iter must be a whole number from 1 on, got {self.max_iter!r}")
        if self.tol is not None and not 0 < self.tol < math.inf:
            raise ConfigError(f"the tolerance (tol) must be a positive number, got {self.tol}")
        if self.sample is not None and self.sample < 0:
            raise ConfigError(f"a sample needs 0 rows (none) or more, got {self.sample}")

    def start(self, problem: Problem) -> Any:
        """The solver's `State` at the start of ``problem``, of which nothing is evaluated yet."""
        raise NotImplementedError
