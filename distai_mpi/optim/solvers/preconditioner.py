"""Approximations of the Hessian that are cheap to solve with, of whole vectors; every rank comes to the same bits."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

Array = Any
SMALLEST_PIVOT, FIRST_ADDED = 10, 100  # as multiples of the rounding of what the matrix was summed from
MOST_ADDED = 1e9  # relative to the diagonal, beyond which nothing else counts
EPSILON = float(np.finfo(np.float64).eps)
LEAST_PIVOT = 1e-13  # of columns of length 1 in float64: what is left of one nearer to those before it is rounding
NOISE = 4.0  # up to so many times its rounding, what is left of a column beside those before it is rounding
MOST_NOISE = 1e-2  # likewise, of its square: a column that is mostly rounding is still one of the table
NO_NULL_SPACE = np.empty((0, 1), np.int64)
LEAST_ROUNDING = 1e-12  # so that steps along a null space, rounding over what is added, stay small


class Preconditioner(Protocol):
    """A positive definite matrix M in the place of the Hessian."""

    def solve(self, b: Array) -> None:
        """b ← M⁻¹ b, float64."""
        ...

    def inverse_square(self, g: Array) -> float:
        """gᵀ M⁻¹ g: the square of a gradient's norm that no scale of parameters changes."""
        ...

    def square(self, v: Array) -> float:
        """vᵀ M v."""
        ...


class Diagonal:
    """M is diagonal, and where parameters are ``free`` it leaves their sum alone.

    Args:
        diagonal: float64, shape (n,); what is not positive counts as the median of the rest, or 1.
        free: indices of parameters, shape (groups, members), that may all grow alike in each group without a change of
            the objective: there steps minimise the model among those that sum to 0.
    """

    def __init__(self, diagonal: Array, free: Array = NO_NULL_SPACE) -> None:
        good = (diagonal >= np.finfo(np.float64).tiny) & np.isfinite(diagonal)
        rest = float(np.median(diagonal[good])) if good.any() else 1.0  # the same bits on any processor
        self.diagonal, self.free = np.where(good, diagonal, rest), free
        inverse = 1.0 / self.diagonal
        self._parts = inverse[free] / self._sums(inverse)[:, None]  # of a group's sum, to be taken from each member

    def solve(self, b: Array) -> None:
        """See `Preconditioner`."""
        b /= self.diagonal
        if self.free.size:
            b[self.free] -= self._sums(b)[:, None] * self._parts

    def _sums(self, v: Array) -> Array:
        """The sums of v over each group that is `free`, one member after another: the same bits on every rank."""
        total = np.zeros(len(self.free))
        for members in self.free.T:
            total += v[members]
        return total

    def inverse_square(self, g: Array) -> float:
        """gᵀ M⁻¹ g; the same bits on every rank."""
        from .ordered import dot

        b = g.copy()
        self.solve(b)
        return float(dot(g, b))

    def square(self, v: Array) -> float:
        """vᵀ M v; the same bits on every rank."""
        from .ordered import dot

        return float(dot(v * self.diagonal, v))


class Factored:
    """M is dense, and kept as its Cholesky factor, of rows and columns scaled to a diagonal of ones.

    Where it is not positive definite to rounding (constant or duplicate columns without a penalty), fractions of its
    diagonal are added to it until it is (Marquardt 1963, "An algorithm for least-squares estimation of nonlinear
    parameters").

    Args:
        matrix: float64, shape (n, n), symmetric; is overwritten.
        dtype: in which it was summed from rows, which tells how much of it is rounding.
        free: see `Diagonal`.  The matrix has no curvature along there but rounding, by which a step could be of any
            length: it gets some.

    Attributes:
        added: which fraction.
        finite: whether the matrix was; one that is not counts as the identity.
    """

    def __init__(self, matrix: Array, dtype: Any = np.float64, free: Array = NO_NULL_SPACE) -> None:
        self.finite = bool(np.isfinite(matrix).all())
        if not self.finite:
            matrix[:] = np.eye(len(matrix))
        for group in free:
            matrix[np.ix_(group, group)] += (float(matrix[group, group].max()) or 1.0) / len(group)
        diagonal = matrix.diagonal().copy()
        self._root = np.where(diagonal > 0, np.sqrt(np.where(diagonal > 0, diagonal, 1.0)), 1.0)
        matrix /= self._root
        matrix /= self._root[:, None]
        self.factor, self.added = matrix, 0.0
        self._factorize(dtype)

    def _factorize(self, dtype: Any) -> None:
        """``factor`` ← that of the scaled matrix in its place; local."""
        from .ordered import cholesky

        rounding = max(LEAST_ROUNDING, float(np.finfo(dtype).eps))
        diagonal, fraction = self.factor.diagonal().copy(), FIRST_ADDED * rounding
        while not cholesky(self.factor, SMALLEST_PIVOT * rounding):
            self.added, fraction = fraction, fraction * 100
            lower = np.tril(self.factor, -1)  # which is as it was
            lower *= self.added < MOST_ADDED
            self.factor[:] = lower + lower.T
            self.factor.flat[:: len(diagonal) + 1] = np.maximum(diagonal * (1 + self.added), rounding)

    def solve(self, b: Array) -> None:
        """See `Preconditioner`."""
        from .ordered import solve, solve_transposed

        b /= self._root
        solve_transposed(self.factor, b)
        solve(self.factor, b)
        b /= self._root

    def inverse_square(self, g: Array) -> float:
        """gᵀ M⁻¹ g; the same bits on every rank."""
        from .ordered import dot, solve_transposed

        b = g / self._root
        solve_transposed(self.factor, b)
        return float(dot(b, b))

    def square(self, v: Array) -> float:
        """vᵀ M v; the same bits on every rank."""
        return self._square(v * self._root)

    def _square(self, b: Array) -> float:
        from .ordered import dot

        rows = np.array([dot(self.factor[i, i:], b[i:]) for i in range(b.size)])
        return float(dot(rows, rows))


class RankFactored(Factored):
    """As `Factored`, but parameters are left out that depend on those before them, and never change.

    Args:
        matrix, dtype, free: see `Factored`.
        noise: how much of the rows is rounding: in the column that each parameter belongs to, as a fraction of the root
            of its mean square, shape (n,).
        biases: so many of the last parameters count as the first ones.

    Attributes:
        dropped: which parameters were left out, shape (n,), bool.
    """

    def __init__(
        self, matrix: Array, noise: Array, dtype: Any = np.float64, free: Array = NO_NULL_SPACE, biases: int = 0
    ) -> None:
        self._order, self._noise = np.roll(np.arange(len(matrix)), biases), np.roll(noise, biases)
        self.dropped = np.zeros(len(matrix), bool)
        super().__init__(matrix, dtype, free)

    def _factorize(self, dtype: Any) -> None:
        """See `Factored._factorize`; everything private is in the order of elimination."""
        from .ordered import cholesky_of_independent

        self.factor = np.ascontiguousarray(self.factor[np.ix_(self._order, self._order)])
        least = max(LEAST_PIVOT, len(self.factor) * 8 * EPSILON, SMALLEST_PIVOT * _rounding(dtype))
        self._least = np.maximum(least, np.minimum(MOST_NOISE, np.square(NOISE * self._noise)))
        self._gone = np.zeros(len(self.factor), bool)
        cholesky_of_independent(self.factor, self._least, self._gone)
        self._tells = np.array([not gone or self._noise_of(k) < least for k, gone in enumerate(self._gone)])
        self.dropped[self._order] = self._gone

    def _noise_of(self, k: int) -> float:
        """The square of what rounding in the rows leaves of column ``k`` beside those before it, `NOISE` times."""
        from .ordered import dot, solve

        of_others = np.where(self._gone[:k], 0.0, self.factor[:k, k])
        solve(np.ascontiguousarray(self.factor[:k, :k]), of_others)  # the combination that the column is
        rounded = np.where(self._gone[:k], 0.0, of_others * self._noise[:k])
        return NOISE**2 * (float(self._noise[k]) ** 2 + float(dot(rounded, rounded)))

    def solve(self, b: Array) -> None:
        """See `Preconditioner`."""
        from .ordered import solve, solve_transposed

        scaled = (b / self._root)[self._order]
        solve_transposed(self.factor, scaled)
        scaled[self._gone] = 0.0
        solve(self.factor, scaled)
        b[self._order] = scaled
        b /= self._root

    def inverse_square(self, g: Array) -> float:
        """gᵀ M⁻¹ g; the same bits on every rank.

        What of ``g`` belongs to parameters that were left out counts by the least curvature that is told from 0, unless
        that is so because of rounding in the rows.
        """
        from .ordered import dot, solve_transposed

        b = (g / self._root)[self._order]
        solve_transposed(self.factor, b)
        b = np.where(self._gone, np.where(self._tells, b / np.sqrt(self._least), 0.0), b)
        return float(dot(b, b))

    def square(self, v: Array) -> float:
        """vᵀ M v; the same bits on every rank."""
        return self._square(np.where(self.dropped, 0.0, v * self._root)[self._order])


def _rounding(dtype: Any) -> float:
    """How much of a matrix that was summed in ``dtype`` is rounding; of float64 see `LEAST_PIVOT`."""
    return 0.0 if np.dtype(dtype) == np.float64 else float(np.finfo(dtype).eps)
