"""Numba kernels of L-BFGS: each vector of the history is read once a pass; importing this module loads Numba.

Products of blocks are made in the vectors' dtype and summed in float64.
"""

from __future__ import annotations

import numba
import numpy as np

from ..jit import kernel

REORDER = {"reassoc", "contract", "nsz"}  # sums may be reordered, so that they become vector code
BLOCK = 4096  # elements: those of the vectors that all rows are multiplied with stay in the second-level cache


@numba.njit(inline="always")
def _products(u, v, a, b, c, of_u, of_v):
    """Add the products of ``u`` and of ``v`` with three vectors to two arrays, shape (3,)."""
    zero = u.dtype.type(0)
    ua, ub, uc, va, vb, vc = zero, zero, zero, zero, zero, zero
    for i in range(u.size):
        x, y = u[i], v[i]
        ua += x * a[i]
        ub += x * b[i]
        uc += x * c[i]
        va += y * a[i]
        vb += y * b[i]
        vc += y * c[i]
    of_u[0] += ua
    of_u[1] += ub
    of_u[2] += uc
    of_v[0] += va
    of_v[1] += vb
    of_v[2] += vc


@kernel(fastmath=REORDER)
def begin_pair(steps, changes, row, filled, t, direction, grad, before, products):
    """steps[row] ← t · direction, changes[row] ← grad - before, and the products of both and of grad with all rows.

    ``products``, float64, shape (2, filled + 1, 3): of the first ``filled`` rows of steps and of changes with the new
    step, the new change and the gradient; [0, filled, 0] is the square of grad.  It is overwritten.
    """
    products[:] = 0
    for start in range(0, grad.size, BLOCK):
        stop = min(start + BLOCK, grad.size)
        s, y, g = steps[row, start:stop], changes[row, start:stop], grad[start:stop]
        d, b = direction[start:stop], before[start:stop]
        for i in range(g.size):
            s[i] = t * d[i]
            y[i] = g[i] - b[i]
        for r in range(filled):
            _products(steps[r, start:stop], changes[r, start:stop], s, y, g, products[0, r], products[1, r])
        square = grad.dtype.type(0)
        for i in range(g.size):
            square += g[i] * g[i]
        products[0, filled, 0] += square


@kernel(fastmath=REORDER)
def combine(steps, changes, grad, on_steps, on_changes, on_grad, out):
    """out ← on_grad · grad + Σ on_steps[r] · steps[r] + on_changes[r] · changes[r]; coefficients of 0 cost nothing."""
    for start in range(0, grad.size, BLOCK):
        stop = min(start + BLOCK, grad.size)
        g, o = grad[start:stop], out[start:stop]
        for i in range(o.size):
            o[i] = on_grad * g[i]
        for r in range(len(on_steps)):
            a, b = on_steps[r], on_changes[r]
            if a != 0 or b != 0:
                s, y = steps[r, start:stop], changes[r, start:stop]
                for i in range(o.size):
                    o[i] += a * s[i] + b * y[i]


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
    scratch = np.zeros((2, 3))
    for start in range(0, grad.size, BLOCK):
        stop = min(start + BLOCK, grad.size)
        g = grad[start:stop]
        for r in range(rows):
            for c in range(rows):
                s, y = steps[c, start:stop], changes[c, start:stop]
                scratch[:] = 0
                _products(steps[r, start:stop], changes[r, start:stop], s, y, g, scratch[0], scratch[1])
                for which in range(2):
                    products[which, r, c] += scratch[which, 0]
                    products[which, r, rows + c] += scratch[which, 1]
                    if c == 0:
                        products[which, r, 2 * rows] += scratch[which, 2]
