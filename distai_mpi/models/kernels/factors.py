"""Numba kernels that make gradients of sufficient factors; importing this module loads Numba.

The factors of R rows are the flat vector [a_0 | d_0 | a_1 | d_1 | ...]: for each layer its inputs a, shape (R,
inputs), and the gradient of the loss by its outputs d, shape (R, units).  The gradient of the layer's matrix is
aᵀ d, of its bias the sum of d over rows.  A row of ``table``, shape (layers, 4), tells of a layer its inputs and
units, and where in the flat vector of parameters its matrix and its bias start (-1: none).
"""

from __future__ import annotations

import numba
import numpy as np

from ...jit import kernel

REORDER = {"contract", "nsz"}  # products may be fused into sums


@kernel()
def gather(source, rows, stack, height, at, table, start, stop):
    """Copy factors of ``rows`` rows to the rows from number ``at`` on of ``stack``, factors of ``height`` rows.

    Only what the elements ``start`` to ``stop - 1`` of the gradient depend on.
    """
    here, there = 0, 0
    for i in range(len(table)):
        inputs, units, matrix, bias = table[i, 0], table[i, 1], table[i, 2], table[i, 3]
        low, high = max(start - matrix, 0), min(stop - matrix, inputs * units)
        if low < high:
            first, size = low // units, (high - 1) // units + 1 - low // units
            for r in range(rows):
                x = source[here + r * inputs + first : here + r * inputs + first + size]
                y = stack[there + (at + r) * inputs + first : there + (at + r) * inputs + first + size]
                for k in range(size):
                    y[k] = x[k]
        here, there = here + rows * inputs, there + height * inputs
        if low < high or (bias >= 0 and start < bias + units and stop > bias):
            x, y = source[here : here + rows * units], stack[there + at * units : there + (at + rows) * units]
            for j in range(x.size):
                y[j] = x[j]
        here, there = here + rows * units, there + height * units


@numba.njit(inline="always")
def _one(a, d, first, low, out):
    high = low + out.shape[1]
    a0, d0 = a[0], d[0, low:high]
    for k in range(out.shape[0]):
        c0, o = a0[first + k], out[k]
        if c0 == 0:
            for j in range(o.size):
                o[j] = 0
        else:
            for j in range(o.size):
                o[j] = c0 * d0[j]


@numba.njit(inline="always")
def _two(a, d, first, low, out):
    high = low + out.shape[1]
    a0, d0 = a[0], d[0, low:high]
    a1, d1 = a[1], d[1, low:high]
    for k in range(out.shape[0]):
        c0, c1, o = a0[first + k], a1[first + k], out[k]
        if c0 == 0 and c1 == 0:
            for j in range(o.size):
                o[j] = 0
        else:
            for j in range(o.size):
                o[j] = c0 * d0[j] + c1 * d1[j]


@numba.njit(inline="always")
def _four(a, d, first, low, out):
    high = low + out.shape[1]
    a0, a1, a2, a3 = a[0], a[1], a[2], a[3]
    d0, d1, d2, d3 = d[0, low:high], d[1, low:high], d[2, low:high], d[3, low:high]
    for k in range(out.shape[0]):
        c0, c1, c2, c3, o = a0[first + k], a1[first + k], a2[first + k], a3[first + k], out[k]
        if c0 == 0 and c1 == 0 and c2 == 0 and c3 == 0:
            for j in range(o.size):
                o[j] = 0
        else:
            for j in range(o.size):
                o[j] = c0 * d0[j] + c1 * d1[j] + c2 * d2[j] + c3 * d3[j]


@numba.njit(inline="always")
def _eight(a, d, first, low, out):
    high = low + out.shape[1]
    a0, a1, a2, a3, a4, a5, a6, a7 = a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]
    d0, d1, d2, d3 = d[0, low:high], d[1, low:high], d[2, low:high], d[3, low:high]
    d4, d5, d6, d7 = d[4, low:high], d[5, low:high], d[6, low:high], d[7, low:high]
    for k in range(out.shape[0]):
        c0, c1, c2, c3, o = a0[first + k], a1[first + k], a2[first + k], a3[first + k], out[k]
        c4, c5, c6, c7 = a4[first + k], a5[first + k], a6[first + k], a7[first + k]
        if c0 == 0 and c1 == 0 and c2 == 0 and c3 == 0 and c4 == 0 and c5 == 0 and c6 == 0 and c7 == 0:
            for j in range(o.size):
                o[j] = 0
        else:
            for j in range(o.size):
                near = c0 * d0[j] + c1 * d1[j] + c2 * d2[j] + c3 * d3[j]
                o[j] = near + (c4 * d4[j] + c5 * d5[j] + c6 * d6[j] + c7 * d7[j])


@kernel(fastmath=REORDER)
def _outer(a, d, first, low, out):
    """out ← (aᵀ d)[first : first + len(out), low : low + width], for 1, 2, 4 or 8 rows of ``a`` and ``d``.

    Every element is stored once.  Rows of zeros are told apart, for they need no reading; the row is cut
    out before each inner loop, or it would not become vector code.
    """
    rows = a.shape[0]
    if rows == 1:
        _one(a, d, first, low, out)
    elif rows == 2:
        _two(a, d, first, low, out)
    elif rows == 4:
        _four(a, d, first, low, out)
    else:
        _eight(a, d, first, low, out)


@kernel(fastmath=REORDER)
def _product(a, d, low, high, out):
    """out ← elements ``low`` to ``high - 1`` of aᵀ d in C order: the end of a row, whole rows, a row's beginning."""
    units = d.shape[1]
    if units == 1:  # the long axis has to be the inner one
        # a literal 0 would be compiled for anew
        _outer(d, a, np.int64(0), low, out.reshape((1, out.size)))
        return
    at = 0
    while low < high:
        row, column = low // units, low % units
        rows = 1 if column else max(1, (high - low) // units)
        width = min(units - column, high - low)
        size = rows * width
        _outer(a, d, row, column, out[at : at + size].reshape((rows, width)))
        low, at = low + size, at + size


@kernel(fastmath=REORDER)
def sum_outer(stack, rows, table, start, stop, out):
    """out ← elements ``start`` to ``stop - 1`` of the gradient of ``stack``, factors of 1, 2, 4 or 8 ``rows``."""
    at = 0
    for i in range(len(table)):
        inputs, units, matrix, bias = table[i, 0], table[i, 1], table[i, 2], table[i, 3]
        a = stack[at : at + rows * inputs].reshape((rows, inputs))
        at += a.size
        d = stack[at : at + rows * units].reshape((rows, units))
        at += d.size
        low, high = max(start, matrix), min(stop, matrix + inputs * units)
        if low < high:
            _product(a, d, low - matrix, high - matrix, out[low - start : high - start])
        low, high = max(start, bias), min(stop, bias + units)
        if bias >= 0 and low < high:
            o = out[low - start : high - start]
            o[:] = 0
            for r in range(rows):
                x = d[r, low - bias : high - bias]
                for j in range(o.size):
                    o[j] += x[j]
