"""Numba kernels of the models; importing this module loads Numba.

Each kernel passes once over its arrays and fuses what would otherwise be five
or more NumPy calls with a temporary each.  Matrix products stay with BLAS.
Rows are weighted by ``weight``, shape (rows,), or by 1 where it is empty.  Sums
of losses accumulate in float64, whatever the dtype of the arrays.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numba
import numpy as np

from ...data.kernels import GOLDEN, mix64
from ...jit import kernel, specialise
from ..losses import Loss
from .arithmetic import row_of

RELU, TANH, GELU = 0, 1, 2
GELU_SCALE = math.sqrt(2.0 / math.pi)
GELU_CUBIC = 0.044715


@numba.njit(inline="always")
def _keeps(key, index, threshold):
    """Whether dropout keeps unit number ``index`` of stream ``key`` (keep probability threshold / 2**32)."""
    return (mix64(key + GOLDEN * np.uint64(index)) >> np.uint64(32)) < threshold


@kernel()
def relu(z, bias, slope):
    """z ← max(z + bias, 0) and slope ← its derivative; all shape (rows, units) but bias, (units,)."""
    rows, units = z.shape
    for r in range(rows):
        for j in range(units):
            value = z[r, j] + bias[j]
            dead = value <= 0  # in this form NaN stays NaN, and is seen in the loss
            z[r, j] = z.dtype.type(0) if dead else value
            slope[r, j] = z.dtype.type(0) if dead else z.dtype.type(1)


@kernel()
def relu_dropout(z, bias, slope, key, first, width, threshold, scale):
    """As `relu` followed by `dropout`, in one pass."""
    rows, units = z.shape
    zero = z.dtype.type(0)
    for r in range(rows):
        index = (first + r) * width
        for j in range(units):
            value = z[r, j] + bias[j]
            factor = zero if value <= zero or not _keeps(key, index + j, threshold) else scale
            z[r, j] = value * factor
            slope[r, j] = factor


@kernel()
def dropout(a, slope, key, first, width, threshold, scale):
    """Drop units of ``a`` and of its ``slope``, scaling the kept ones up (inverted dropout).

    Row r holds the row number ``first + r`` of the epoch; unit j of it is kept when the
    number ``(first + r) * width + j`` of stream ``key`` falls below ``threshold`` / 2**32.  ``width`` are all units of
    the layer, of which ``a`` may have some: then the stream is that from the first of them on.
    """
    rows, units = a.shape
    zero = a.dtype.type(0)
    for r in range(rows):
        index = (first + r) * width
        for j in range(units):
            factor = scale if _keeps(key, index + j, threshold) else zero
            a[r, j] *= factor
            slope[r, j] *= factor


@kernel()
def add_bias(z, bias):
    """z ← z + bias."""
    for r in range(z.shape[0]):
        for j in range(z.shape[1]):
            z[r, j] += bias[j]


@kernel()
def tanh_slope(a, slope):
    """slope ← derivative of tanh at the point where it is ``a``."""
    one = a.dtype.type(1)
    for r in range(a.shape[0]):
        for j in range(a.shape[1]):
            slope[r, j] = one - a[r, j] * a[r, j]


@kernel()
def gelu_argument(z, bias, argument):
    """z ← z + bias and argument ← the argument of tanh in `gelu`."""
    scale, cubic = z.dtype.type(GELU_SCALE), z.dtype.type(GELU_CUBIC)
    for r in range(z.shape[0]):
        for j in range(z.shape[1]):
            value = z[r, j] + bias[j]
            z[r, j] = value
            argument[r, j] = scale * (value + cubic * value * value * value)


@kernel()
def gelu(z, slope):
    """z ← gelu(z) and slope ← its derivative, where slope holds the tanh on entry."""
    half, one, three = z.dtype.type(0.5), z.dtype.type(1), z.dtype.type(3)
    scale, cubic = z.dtype.type(GELU_SCALE), z.dtype.type(GELU_CUBIC)
    for r in range(z.shape[0]):
        for j in range(z.shape[1]):
            value, t = z[r, j], slope[r, j]
            inner = scale * (one + three * cubic * value * value)
            z[r, j] = half * value * (one + t)
            slope[r, j] = half * (one + t) + half * value * (one - t * t) * inner


@kernel()
def backpropagate(delta, slope, bias_grad):
    """delta ← delta · slope, and its sum over rows into bias_grad, shape (units,)."""
    for j in range(bias_grad.size):
        bias_grad[j] = 0
    for r in range(delta.shape[0]):
        for j in range(delta.shape[1]):
            value = delta[r, j] * slope[r, j]
            delta[r, j] = value
            bias_grad[j] += value


@lru_cache
def residual_of(loss: Loss) -> Any:
    """The kernel `_residual` of this loss."""
    return specialise(_residual, loss.name, {"row": row_of(loss)})


def _residual(z, bias, y, weight, bias_grad, curvature):
    """Weighted sum of losses (float64) at the outputs z + bias; z becomes its derivative.

    z has shape (rows, outputs), bias and bias_grad (outputs,), y (rows,).  bias_grad receives z's sum over rows, and
    ``curvature``, shape (rows,), unless it is empty, the weighted second derivatives of a loss of one output.
    """
    rows, outputs = z.shape
    loss = 0.0
    for j in range(bias_grad.size):
        bias_grad[j] = 0
    for r in range(rows):
        for j in range(outputs):
            z[r, j] += bias[j]
        row_weight = z.dtype.type(weight[r]) if weight.size else z.dtype.type(1)
        value, curved = row(z[r], y[r])  # type: ignore[name-defined]  # noqa: F821 - the loss's, see `residual_of`
        loss += row_weight * value
        if curvature.size:
            curvature[r] = row_weight * curved
        for j in range(outputs):
            z[r, j] *= row_weight
            bias_grad[j] += z[r, j]
    return loss
