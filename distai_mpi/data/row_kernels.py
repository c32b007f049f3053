"""Numba kernels of dense rows; importing this module loads Numba.

Working arrays of kernels are made by those who call them: with the first ``np.zeros`` or ``np.empty`` in a kernel a
process spends half a second more on compiling.
"""

from __future__ import annotations

import numpy as np

from ..jit import kernel
from ..vectors import LINE_BYTES, address, fma, increase, length, load, prefetch, spread

AHEAD_BYTES = 1 << 12  # how far after what is read memory is asked for
PART = 512  # rows whose gradient is summed in the dtype of X; there float32 sums are accurate enough


@kernel()
def copy(source, out):
    """out ← source, which may be shorter."""
    for r in range(source.size):
        out[r] = source[r]


@kernel()
def fold(grad, total):
    """total ← total + grad, and grad ← 0."""
    for j in range(total.size):
        total[j] += grad[j]
        grad[j] = 0


def reaches(x):
    """(features, filled up to whole vectors; rows of x at which vectors do not reach beyond its end)."""
    rows, features = x.shape
    filled = features + -features % (LINE_BYTES // x.itemsize)
    return filled, max(0, rows - (filled - 1) // max(1, features))


def squares(x, scale, out):
    """out ← Σ scale[i] · x[i]² over rows i, summed in the dtype of x within `PART` rows, and in float64."""
    filled, safe = reaches(x)
    totals = np.zeros(x.shape[1])
    _squares(x, scale, min(safe, len(x)), np.zeros(filled, x.dtype), totals)
    for factor, row in zip(scale[safe:], x[safe:], strict=True):
        totals += np.float64(factor) * row * row
    out[:] = totals


@kernel()
def _squares(x, scale, safe, sums, totals):
    """totals ← totals + the sums of `squares` over the first ``safe`` rows."""
    features = x.shape[1]
    flat, grad = address(x), address(sums)
    f, lanes, zero = np.uintp(features), length(flat), spread(x.dtype.type(0))
    for start in range(0, safe, PART):
        for r in range(start, min(start + PART, safe)):
            row, factor, j = np.uintp(r) * f, spread(x.dtype.type(scale[r])), np.uintp(0)
            while j < f:
                prefetch(flat, row + j + np.uintp(AHEAD_BYTES // x.itemsize))
                v = load(flat, row + j, lanes)
                increase(grad, j, fma(fma(v, factor, zero), v, zero))
                j += lanes
        fold(sums, totals)
