"""Numba kernels of the updates that touch few parameters; importing this module loads Numba.

A gradient comes as index-value pairs: ``columns``, shape (n,), each once, in any order, and ``sums``, shape
(n, outputs).  Column j stands for the parameters j · outputs to (j + 1) · outputs - 1 of the whole vector, of which
``w`` is the slice that begins at ``start``; those outside it are left alone.  ``scale`` multiplies the sums.  The first
``decaying`` parameters of the slice are penalised, the others (biases) are not.
"""

from __future__ import annotations

import numpy as np

from ..jit import kernel
from .kernels import adagrad_of, ftrl_of


@kernel(error_model="numpy")
def sgd(columns, sums, scale, start, decaying, w, state, rate, settings):
    """w ← w - rate · gradient, times ``settings[0]`` where penalised (1 over the factor of `sparse.SparseSteps`)."""
    outputs, stretch = sums.shape[1], settings[0]
    for p in range(columns.size):
        first = np.int64(columns[p]) * outputs - start
        for k in range(outputs):
            i = first + k
            if 0 <= i < w.size:
                update = rate * (sums[p, k] * scale)
                w[i] -= update * stretch if i < decaying else update


@kernel(error_model="numpy")
def adagrad(columns, sums, scale, start, decaying, w, state, rate, settings):
    """As `kernels.adagrad`, with (squares, carry) and (initial, epsilon)."""
    squares, carry = state
    initial, epsilon = settings
    outputs = sums.shape[1]
    for p in range(columns.size):
        first = np.int64(columns[p]) * outputs - start
        for k in range(outputs):
            i = first + k
            if 0 <= i < w.size:
                w[i], squares[i], carry[i] = adagrad_of(
                    w[i], sums[p, k] * scale, squares[i], carry[i], rate, initial, epsilon
                )


@kernel(error_model="numpy")
def ftrl(columns, sums, scale, start, decaying, w, state, rate, settings):
    """As `kernels.ftrl`, with (dual, squares, carry) and (beta, l1, l2)."""
    dual, squares, carry = state
    beta, strength1, strength2 = settings
    zero, one = w.dtype.type(0), w.dtype.type(1)
    outputs = sums.shape[1]
    for p in range(columns.size):
        first = np.int64(columns[p]) * outputs - start
        for k in range(outputs):
            i = first + k
            if 0 <= i < w.size:
                l1, l2 = (strength1, strength2) if i < decaying else (zero, zero)
                w[i], dual[i], squares[i], carry[i] = ftrl_of(
                    w[i], sums[p, k] * scale, dual[i], squares[i], carry[i], rate, beta, l1, l2, zero, one
                )
