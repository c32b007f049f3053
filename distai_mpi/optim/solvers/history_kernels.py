"""Numba kernels of L-BFGS: each vector of the history is read once a pass; importing this module loads Numba.

Products of blocks are made in the vectors' dtype and summed in float64.
"""

from __future__ import annotations

import numpy as np

from ...jit import kernel
from ...vectors import LINE_BYTES, address, prefetch

REORDER = {"reassoc", "contract", "nsz"}  # sums may be reordered, so that they become vector code
BLOCK = 4096  # elements: those of the vectors that all rows are multiplied with stay in the second-level cache
# Elements: of a piece, and how far after it memory is asked for, in this row or the next.  With pieces of 256, and a
# row ahead, 22 rows of 5 · 10⁶ float64 numbers took 43 ms in place of 33; two sums over 11 rows take 21.
PIECE, AHEAD = 64, 512


@kernel(fastmath=REORDER)
def _products(u, y, g, v, a, b, of_u, of_v):
    """Add the products of ``u`` with ``y`` and ``g``, and of ``v`` with ``a`` and ``b``, to two arrays, shape (2,)."""
    zero = u.dtype.type(0)
    uy, ug, va, vb = zero, zero, zero, zero
    for i in range(u.size):
        uy += u[i] * y[i]
        ug += u[i] * g[i]
        va += v[i] * a[i]
        vb += v[i] * b[i]
    of_u[0] += uy
    of_u[1] += ug
    of_v[0] += va
    of_v[1] += vb


@kernel(fastmath=REORDER)
def _square(a):
    total = a.dtype.type(0)
    for i in range(a.size):
        total += a[i] * a[i]
    return total


@kernel(fastmath=REORDER)
def begin_pair(steps, changes, row, filled, t, direction, grad, before, inverse, products):
    """steps[row] ← t · direction, changes[row] ← grad - before, and products of all rows with the new change and grad.

    ``products``, float64, shape (2, filled + 1, 2): of the first ``filled`` rows of steps and of changes with the new
    change and the gradient; [0, filled] are the squares of grad and of the new step.  It is overwritten.  Products of
    changes are weighted by the vector ``inverse``, where that is not empty.
    """
    products[:] = 0
    weighted = np.empty((2, min(BLOCK, inverse.size)), grad.dtype)
    size = grad.size
    flat_steps, flat_changes = address(steps), address(changes)
    line = LINE_BYTES // grad.itemsize
    for start in range(0, size, BLOCK):
        stop = min(start + BLOCK, size)
        s, y, g = steps[row, start:stop], changes[row, start:stop], grad[start:stop]
        d, old = direction[start:stop], before[start:stop]
        for i in range(g.size):
            s[i] = t * d[i]
            y[i] = g[i] - old[i]
        products[0, filled, 0] += _square(g)
        products[0, filled, 1] += _square(s)
        a, b = y, g
        if inverse.size:
            a, b = weighted[0, : g.size], weighted[1, : g.size]
            for i in range(g.size):
                a[i] = inverse[start + i] * y[i]
                b[i] = inverse[start + i] * g[i]
        for r in range(filled):
            following = (r + 1) * size + start if r + 1 < filled else stop
            for low in range(start, stop, PIECE):
                high = min(low + PIECE, stop)
                ahead = r * size + low + AHEAD if low + AHEAD < stop else following + low + AHEAD - stop
                for k in range(ahead, ahead + PIECE, line):
                    prefetch(flat_steps, k)
                    prefetch(flat_changes, k)
                part = slice(low - start, high - start)
                of_s, of_y, own = products[0, r], products[1, r], slice(low, high)
                _products(steps[r, own], y[part], g[part], changes[r, own], a[part], b[part], of_s, of_y)


@kernel(fastmath=REORDER)
def _add(coefficients, rows, start, out):
    """Add Σ coefficients[r] · rows[r], from element ``start`` on, to ``out``; coefficients of 0 cost nothing."""
    for r in range(coefficients.size):
        number = coefficients[r]
        if number != 0:
            row = rows[r, start : start + out.size]
            for i in range(out.size):
                out[i] += number * row[i]


@kernel(fastmath=REORDER)
def combine(steps, changes, grad, on_steps, on_changes, on_grad, inverse, out):
    """out ← inverse · (on_grad · grad + Σ on_changes[r] · changes[r]) + Σ on_steps[r] · steps[r].

    Coefficients of 0 cost nothing; an empty ``inverse`` is one of ones.
    """
    for start in range(0, grad.size, BLOCK):
        stop = min(start + BLOCK, grad.size)
        g, o = grad[start:stop], out[start:stop]
        for i in range(o.size):
            o[i] = on_grad * g[i]
        _add(on_changes, changes, start, o)
        if inverse.size:
            for i in range(o.size):
                o[i] *= inverse[start + i]
        _add(on_steps, steps, start, o)


@kernel()
def move(w, t, direction, out):
    """out ← w + t · direction."""
    for i in range(out.size):
        out[i] = w[i] + t * direction[i]


@kernel(fastmath=REORDER)
def gram(steps, changes, grad, products):
    """``products``, float64, shape (2, rows, 2 · rows + 1) ← those of steps, and changes, with steps, changes, grad."""
    rows = len(steps)
    products[:] = 0
    scratch = np.zeros((2, 2, 2))
    for start in range(0, grad.size, BLOCK):
        stop = min(start + BLOCK, grad.size)
        g = grad[start:stop]
        for r in range(rows):
            for c in range(rows):
                s, y = steps[c, start:stop], changes[c, start:stop]
                scratch[:] = 0
                a, b = steps[r, start:stop], changes[r, start:stop]
                _products(a, s, y, b, s, y, scratch[0, 0], scratch[0, 1])
                _products(a, g, g, b, g, g, scratch[1, 0], scratch[1, 1])
                for which in range(2):
                    products[which, r, c] += scratch[0, which, 0]
                    products[which, r, rows + c] += scratch[0, which, 1]
                    if c == 0:
                        products[which, r, 2 * rows] += scratch[1, which, 0]
