"""Numba kernels of small dense algebra that give the same bits on every processor; importing this module loads Numba.

Ranks that keep whole vectors each solve for themselves, and must come to the same numbers: from others they may take
other ways, and wait for each other.  A BLAS sums in the order that suits the processor, and so does compiled code that
may reorder sums or contract products.  Here no fast math is on, and vector code goes along rows that are summed
element by element.  All arrays are float64.
"""

from __future__ import annotations

import numba
import numpy as np

from ...jit import kernel


@numba.njit(inline="always")
def _dot(a, b):
    s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0
    whole = a.size - a.size % 4
    for i in range(0, whole, 4):
        s0 += a[i] * b[i]
        s1 += a[i + 1] * b[i + 1]
        s2 += a[i + 2] * b[i + 2]
        s3 += a[i + 3] * b[i + 3]
    for i in range(whole, a.size):
        s0 += a[i] * b[i]
    return (s0 + s1) + (s2 + s3)


@kernel(fastmath=False)
def dot(a, b):
    """Inner product of two vectors."""
    return _dot(a, b)


@kernel(fastmath=False)
def _eliminate(u, k, i):
    """Row i of u, from its diagonal on, minus four times rows k to k + 3 times the elements above that diagonal."""
    a, b, c, d = u[k, i], u[k + 1, i], u[k + 2, i], u[k + 3, i]
    r0, r1, r2, r3, row = u[k, i:], u[k + 1, i:], u[k + 2, i:], u[k + 3, i:], u[i, i:]
    for j in range(row.size):
        row[j] = (((row[j] - a * r0[j]) - b * r1[j]) - c * r2[j]) - d * r3[j]


@kernel(fastmath=False)
def _eliminate_one(u, k, i):
    a, above, row = u[k, i], u[k, i:], u[i, i:]
    for j in range(row.size):
        row[j] -= a * above[j]


def cholesky(u, smallest):
    """Overwrite the upper triangle of the symmetric ``u``, shape (n, n), with that of its factor U, u = UᵀU.

    Returns whether it was done: false, and ``u`` is spoilt, where a pivot is not above ``smallest`` times the diagonal
    element that it came from, or not a number.  (Golub & Van Loan 2013, algorithm 4.2.2, four rows at a time.)
    """
    return _cholesky(u, smallest * np.diagonal(u))


@kernel(fastmath=False)
def _cholesky(u, least):
    n = len(u)
    for start in range(0, n, 4):
        stop = min(start + 4, n)
        for k in range(start, stop):
            if not u[k, k] > least[k]:
                return False
            root = np.sqrt(u[k, k])
            row = u[k, k:]
            for j in range(row.size):
                row[j] = row[j] / root
            for i in range(k + 1, stop):
                _eliminate_one(u, k, i)
        if stop - start == 4:
            for i in range(stop, n):
                _eliminate(u, start, i)
    return True


def cholesky_of_independent(u, smallest, dropped):
    """As `cholesky` of the rows and columns that are independent of those before them.

    Of the others the pivot is at most ``smallest``, shape (n,), times the diagonal element that it came from, or that
    is not positive; ``dropped``, shape (n,), bool, becomes true there, and their rows of the factor become those of the
    identity.
    (R's lm goes by the same rule, with a QR factorization: LINPACK's dqrdc2.)
    """
    dropped[:] = False
    _cholesky_of_independent(u, smallest * np.diagonal(u), dropped)


@kernel(fastmath=False)
def _cholesky_of_independent(u, least, dropped):
    n = len(u)
    for k in range(n):
        row = u[k, k:]
        if not (u[k, k] > least[k] and u[k, k] > 0):
            dropped[k] = True
            row[0] = 1.0
            for j in range(1, row.size):
                row[j] = 0.0
            continue
        root = np.sqrt(u[k, k])
        for j in range(row.size):
            row[j] = row[j] / root
        for i in range(k + 1, n):
            _eliminate_one(u, k, i)


@kernel(fastmath=False)
def solve_transposed(u, b):
    """b ← U⁻ᵀ b, for the upper triangle U of ``u``, shape (n, n)."""
    for k in range(b.size):
        b[k] /= u[k, k]
        value, above, rest = b[k], u[k, k + 1 :], b[k + 1 :]
        for j in range(rest.size):
            rest[j] -= value * above[j]


@kernel(fastmath=False)
def solve(u, b):
    """b ← U⁻¹ b, for the upper triangle U of ``u``, shape (n, n)."""
    for back in range(b.size):
        k = b.size - 1 - back
        b[k] = (b[k] - _dot(u[k, k + 1 :], b[k + 1 :])) / u[k, k]
