"""Approximations of the Hessian that are cheap to solve with, of whole vectors; every rank comes to the same bits."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

Array = Any
SMALLEST_PIVOT, FIRST_ADDED = 10, 100  # as multiples of the rounding of what the matrix was summed from
MOST_ADDED = 1e9  # as a share of the diagonal, beyond which nothing else counts
NOTHING_FREE = np.empty((0, 1), np.int64)
LEAST_ROUNDING = 1e-12  # so that steps along a null space, rounding over what is added, stay small


class Preconditioner(Protocol):
    """A positive definite matrix M in the place of the Hessian."""

    def solve(self, b: Array) -> None:
        """b ← M⁻¹ b, float64."""
        ...


class Diagonal:
    """M is diagonal, and where parameters are ``free`` it leaves their sum alone.

    Args:
        diagonal: float64, shape (n,); what is not positive counts as the median of the rest, or 1.
        free: places of parameters, shape (groups, members), that may all grow alike in each group without a change of
            the objective: there steps minimise the model among those that sum to 0.
    """

    def __init__(self, diagonal: Array, free: Array = NOTHING_FREE) -> None:
        good = (diagonal > 0) & np.isfinite(diagonal)
        rest = float(np.median(diagonal[good])) if good.any() else 1.0  # the same bits on any processor
        self.diagonal, self.free = np.where(good, diagonal, rest), free

    def solve(self, b: Array) -> None:
        """See `Preconditioner`."""
        from .ordered import balance

        b /= self.diagonal
        balance(b, self.diagonal, self.free)


class Factored:
    """M is dense, and kept as its Cholesky factor.

    Args:
        matrix: float64, shape (n, n), symmetric; is overwritten.
        dtype: of the rows that it was summed from, which tells how much of it is rounding.
        free: see `Diagonal`.  The matrix has no curvature along there but rounding, by which a step could be of any
            length: it gets some.

    Where it is not positive definite to rounding (constant or duplicate columns without a penalty), shares of its
    diagonal are added to it until it is (Marquardt 1963, "An algorithm for least-squares estimation of nonlinear
    parameters").

    Attributes:
        added: which share.
    """

    def __init__(self, matrix: Array, dtype: Any = np.float64, free: Array = NOTHING_FREE) -> None:
        from .ordered import cholesky

        if not np.isfinite(matrix).all():
            matrix[:] = np.eye(len(matrix))
        for group in free:
            matrix[np.ix_(group, group)] += (float(matrix[group, group].max()) or 1.0) / len(group)
        rounding = max(LEAST_ROUNDING, float(np.finfo(dtype).eps))
        diagonal = matrix.diagonal().copy()
        floor = rounding * (max(float(diagonal.max()), 0.0) or 1.0)
        self.factor, self.added, share = matrix, 0.0, FIRST_ADDED * rounding
        while not cholesky(self.factor, SMALLEST_PIVOT * rounding):
            self.added, share = share, share * 100
            lower = np.tril(self.factor, -1)  # which is as it was
            lower *= self.added < MOST_ADDED
            self.factor[:] = lower + lower.T
            self.factor.flat[:: len(diagonal) + 1] = np.maximum(diagonal * (1 + self.added), floor)

    def solve(self, b: Array) -> None:
        """See `Preconditioner`."""
        from .ordered import solve, solve_transposed

        solve_transposed(self.factor, b)
        solve(self.factor, b)
