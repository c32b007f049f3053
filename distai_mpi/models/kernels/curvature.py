"""Numba kernels of second derivatives of the softmax; importing this module loads Numba."""

from __future__ import annotations

import numpy as np

from ...jit import kernel


@kernel()
def curve(delta, y, weight, u):
    """u ← (∂²loss/∂z²) u for each row of a softmax; ``u`` and ``delta`` have shape (rows, outputs).

    ``delta`` are the first derivatives of the losses by the outputs z, times the ``weight`` of the rows, shape (rows,),
    or 1 where it is empty.  They are p - (1 where the label is), so the probabilities p follow from them without a
    loss of figures.  Rows of weight 0 become 0.
    """
    rows, outputs = u.shape
    for r in range(rows):
        factor = np.float64(weight[r]) if weight.size else 1.0
        if factor == 0:
            for k in range(outputs):
                u[r, k] = 0
            continue
        label, mean = y[r], 0.0
        for k in range(outputs):
            p = np.float64(delta[r, k]) / factor + (1.0 if k == label else 0.0)
            mean += p * u[r, k]
        for k in range(outputs):
            p = np.float64(delta[r, k]) / factor + (1.0 if k == label else 0.0)
            u[r, k] = factor * p * (u[r, k] - mean)


@kernel()
def row_products(x, factors, out):
    """out[r, c · outputs + k] ← x[r, c] · factors[r, k], and ``factors`` in the place of one more column, if there is.

    ``x`` has shape (rows, features), ``factors`` (rows, outputs), ``out`` (rows, columns · outputs).
    """
    rows, features = x.shape
    outputs = factors.shape[1]
    for r in range(rows):
        for c in range(features):
            for k in range(outputs):
                out[r, c * outputs + k] = x[r, c] * factors[r, k]
        for i in range(features * outputs, out.shape[1]):
            out[r, i] = factors[r, i - features * outputs]
