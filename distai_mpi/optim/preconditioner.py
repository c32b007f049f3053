"""Approximations of the Hessian that are cheap to solve with, of whole vectors; every rank comes to the same bits."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

Array = Any
SMALLEST_PIVOT = 1e-11  # of a Cholesky factor, as a share of the diagonal: below it rounding decides

FIRST_ADDED = 1e-9  # to a singular matrix's diagonal: steps along its null space stay as small as rounding / 1e-9


class Preconditioner(Protocol):
    """A positive definite matrix M in the place of the Hessian."""

    def solve(self, b: Array) -> None:
        """b ← M⁻¹ b, float64."""
        ...


class Diagonal:
    """M is diagonal.

    Args:
        diagonal: float64, shape (n,); what is not positive counts as the median of the rest, or 1.
    """

    def __init__(self, diagonal: Array) -> None:
        good = (diagonal > 0) & np.isfinite(diagonal)
        rest = float(np.median(diagonal[good])) if good.any() else 1.0  # the same bits on any processor
        self.diagonal = np.where(good, diagonal, rest)

    def solve(self, b: Array) -> None:
        """See `Preconditioner`."""
        b /= self.diagonal


class Factored:
    """M is dense, and kept as its Cholesky factor.

    Args:
        matrix: float64, shape (n, n), symmetric; is overwritten.

    Where it is not positive definite to rounding (constant or duplicate columns without a penalty), multiples of
    its largest diagonal element are added to the diagonal until it is (Levenberg 1944, "A method for the solution of
    certain non-linear problems in least squares").

    Attributes:
        added: what was added to the diagonal.
    """

    def __init__(self, matrix: Array) -> None:
        from .ordered import cholesky

        if not np.isfinite(matrix).all():
            matrix[:] = np.eye(len(matrix))
        diagonal = matrix.diagonal().copy()
        most = float(diagonal.max()) or 1.0
        self.factor, self.added, share = matrix, 0.0, FIRST_ADDED
        while not cholesky(self.factor, SMALLEST_PIVOT):
            self.added, share = share * most, share * 100
            lower = np.tril(self.factor, -1)  # which is as it was
            self.factor[:] = lower + lower.T
            self.factor.flat[:: len(diagonal) + 1] = diagonal + self.added

    def solve(self, b: Array) -> None:
        """See `Preconditioner`."""
        from .ordered import solve, solve_transposed

        solve_transposed(self.factor, b)
        solve(self.factor, b)
