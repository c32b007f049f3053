"""Numba kernels of the models; importing this module loads Numba.

Each kernel passes once over its arrays and fuses what would otherwise be five
or more NumPy calls with a temporary each.  Matrix products stay with BLAS.
Rows are weighted by ``weight``, shape (rows,), or by 1 where it is empty.  Sums
of losses accumulate in float64, whatever the dtype of the arrays.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from ...data.kernels import GOLDEN, mix64
from ...jit import kernel

RELU, TANH, GELU = 0, 1, 2
SQUARED, LOGISTIC, SOFTMAX = 0, 1, 2
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
def relu_dropout(z, bias, slope, key, first, threshold, scale):
    """As `relu` followed by `dropout`, in one pass."""
    rows, units = z.shape
    zero = z.dtype.type(0)
    for r in range(rows):
        index = (first + r) * units
        for j in range(units):
            value = z[r, j] + bias[j]
            factor = zero if value <= zero or not _keeps(key, index + j, threshold) else scale
            z[r, j] = value * factor
            slope[r, j] = factor


@kernel()
def dropout(a, slope, key, first, threshold, scale):
    """Drop units of ``a`` and of its ``slope``, scaling the kept ones up (inverted dropout).

    Row r holds the row number ``first + r`` of the epoch; unit j of it is kept when the
    number ``(first + r) * units + j`` of stream ``key`` falls below ``threshold`` / 2**32.
    """
    rows, units = a.shape
    zero = a.dtype.type(0)
    for r in range(rows):
        index = (first + r) * units
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
    bias_grad[:] = 0
    for r in range(delta.shape[0]):
        for j in range(delta.shape[1]):
            value = delta[r, j] * slope[r, j]
            delta[r, j] = value
            bias_grad[j] += value


@numba.njit(inline="always")
def _row_residual(kind, z, y):
    """Loss of one row with outputs ``z``, shape (outputs,); z becomes the loss's derivative."""
    if kind == SQUARED:
        residual = z[0] - y
        z[0] = residual
        return 0.5 * np.float64(residual) * np.float64(residual)
    if kind == LOGISTIC:
        sign = 1.0 if y > 0 else -1.0
        margin = sign * np.float64(z[0])
        tail = math.exp(-abs(margin))  # never overflows
        z[0] = -sign * (tail if margin >= 0 else 1.0) / (1.0 + tail)
        return math.log1p(tail) + max(-margin, 0.0)
    top = z[0]
    for j in range(1, z.size):
        top = max(top, z[j])
    label = np.int64(y)
    shifted = np.float64(z[label] - top)
    total = 0.0
    for j in range(z.size):
        power = math.exp(z[j] - top)
        z[j] = power
        total += power
    inverse = z.dtype.type(1.0 / total)
    for j in range(z.size):
        z[j] *= inverse
    z[label] -= z.dtype.type(1)
    return math.log(total) - shifted


@kernel()
def residual(kind, z, bias, y, weight, bias_grad):
    """Weighted sum of losses (float64) at the outputs z + bias; z becomes its derivative.

    z has shape (rows, outputs), bias and bias_grad (outputs,), y (rows,).  ``kind``
    names the loss: ½ (z - y)², log(1 + exp(-y z)) with y > 0 standing for +1, or the
    cross-entropy of softmax(z) with integer label y.  bias_grad receives z's sum over rows.
    """
    rows, outputs = z.shape
    loss = 0.0
    bias_grad[:] = 0
    for r in range(rows):
        for j in range(outputs):
            z[r, j] += bias[j]
        row_weight = z.dtype.type(weight[r]) if weight.size else z.dtype.type(1)
        loss += row_weight * _row_residual(kind, z[r], y[r])
        for j in range(outputs):
            z[r, j] *= row_weight
            bias_grad[j] += z[r, j]
    return loss


@numba.njit(inline="always")
def _activate_unit(kind, value):
    """(activation, derivative) of one unit."""
    if kind == RELU:
        return (value * 0, value * 0) if value <= 0 else (value, value * 0 + 1)
    if kind == TANH:
        t = math.tanh(value)
        return t, 1 - t * t
    t = math.tanh(GELU_SCALE * (value + GELU_CUBIC * value**3))
    inner = GELU_SCALE * (1 + 3 * GELU_CUBIC * value * value)
    return 0.5 * value * (1 + t), 0.5 * (1 + t) + 0.5 * value * (1 - t * t) * inner


REORDER = {"reassoc", "contract", "nsz"}  # sums may be reordered, so that they become vector code


@kernel(fastmath=REORDER)
def _nonzero(x, index, value):
    """Gather the entries of ``x`` that are not zero; returns how many.  Without a branch: a mispredicted one
    for each pixel took longer than all the rest of a step."""
    count = 0
    for k in range(x.size):
        index[count] = k
        value[count] = x[k]
        count += x[k] != 0
    return count


@kernel(fastmath=REORDER)
def _add_rows(matrix, index, value, count, z):
    """z ← z + Σ value[i] · matrix[index[i]], four rows at a time."""
    units = z.size
    whole = count - count % 4
    for i in range(0, whole, 4):
        k0, k1, k2, k3 = np.uintp(index[i]), np.uintp(index[i + 1]), np.uintp(index[i + 2]), np.uintp(index[i + 3])
        v0, v1, v2, v3 = value[i], value[i + 1], value[i + 2], value[i + 3]
        for j in range(units):
            z[j] += (v0 * matrix[k0, j] + v1 * matrix[k1, j]) + (v2 * matrix[k2, j] + v3 * matrix[k3, j])
    for i in range(whole, count):
        k0, v0 = np.uintp(index[i]), value[i]
        for j in range(units):
            z[j] += v0 * matrix[k0, j]


@kernel(fastmath=REORDER)
def _subtract_outer(matrix, index, value, count, rate, delta):
    """matrix[index[i]] ← matrix[index[i]] - rate · value[i] · delta."""
    for i in range(count):
        k, factor = np.uintp(index[i]), -rate * value[i]
        for j in range(delta.size):
            matrix[k, j] += factor * delta[j]


@kernel(fastmath=REORDER)
def _pull_back(matrix, delta, slope, out):
    """out ← (matrix · delta) · slope."""
    for k in range(out.size):
        total = matrix.dtype.type(0)
        for j in range(delta.size):
            total += matrix[k, j] * delta[j]
        out[k] = total * slope[k]


@kernel(fastmath=REORDER)
def _forward(x, place, w, places, activation, keys, threshold, scale, a, slope, index, value, count):
    """Outputs of one row, number ``place`` of the epoch, into the last row of ``a``; for the other arguments see
    `sgd_rows`.  The inputs of layer i that are not zero are left in ``index[i]`` and ``value[i]``, ``count[i]`` many.
    """
    layers = len(places)
    zero = w.dtype.type(0)
    for i in range(layers):
        inputs, units, start, bias = places[i, 0], places[i, 1], places[i, 2], places[i, 3]
        matrix = w[start : start + inputs * units].reshape((inputs, units))
        z = a[i, :units]
        for j in range(units):
            z[j] = w[bias + j] if bias >= 0 else zero
        count[i] = _nonzero(x if i == 0 else a[i - 1, :inputs], index[i], value[i])
        _add_rows(matrix, index[i], value[i], count[i], z)
        if i < layers - 1:
            for j in range(units):
                kept = threshold > np.uint64(0xFFFFFFFF) or _keeps(keys[i], place * units + j, threshold)
                act, der = _activate_unit(activation, z[j])
                z[j] = act * scale if kept else zero
                slope[i, j] = der * scale if kept else zero


@kernel(fastmath=REORDER)
def sgd_rows(w, x, y, weight, places, loss, activation, keys, first, threshold, scale, rate, l2, scratch, index):
    """One-sample SGD: for each row in turn, its gradient and the update w ← w - rate (gradient + l2 w).

    A row of ``places``, shape (layers, 4), tells of a layer its inputs and units, and where in ``w`` its matrix and
    its bias start (-1: none).  Inputs that are zero are skipped: neither do they reach the layer nor
    does their row of the matrix change.  ``scratch``, shape (4, layers, max width), and ``index``, int64, shape
    (layers, max width), are working space.  Returns the weighted sum of losses before each update.
    """
    layers = len(places)
    total = 0.0
    one, zero = w.dtype.type(1), w.dtype.type(0)
    a, slope, delta, value = scratch[0], scratch[1], scratch[2], scratch[3]
    count = np.zeros(layers, np.int64)
    for r in range(x.shape[0]):
        _forward(x[r], first + r, w, places, activation, keys, threshold, scale, a, slope, index, value, count)
        output = a[layers - 1, : places[layers - 1, 1]]
        row_weight = w.dtype.type(weight[r]) if weight.size else one
        total += row_weight * _row_residual(loss, output, y[r])
        for j in range(output.size):
            delta[layers - 1, j] = output[j] * row_weight
        for i in range(layers - 1, -1, -1):
            inputs, units, start, bias = places[i, 0], places[i, 1], places[i, 2], places[i, 3]
            matrix = w[start : start + inputs * units].reshape((inputs, units))
            d = delta[i, :units]
            if i > 0:
                _pull_back(matrix, d, slope[i - 1], delta[i - 1, :inputs])
            if l2 != zero:
                for k in range(inputs):
                    for j in range(units):
                        matrix[k, j] *= one - rate * l2
            _subtract_outer(matrix, index[i], value[i], count[i], rate, d)
            if bias >= 0:
                for j in range(units):
                    w[bias + j] -= rate * d[j]
    return total


@numba.njit(inline="always")
def _copy(source, out):
    for j in range(out.size):
        out[j] = source[j]


@kernel(fastmath=REORDER)
def factor_rows(w, x, y, weight, places, loss, activation, keys, first, threshold, scale, factors, scratch, index):
    """Sufficient factors of each row, see `kernels.factors`, into ``factors``; returns the weighted sum of losses.

    The other arguments are those of `sgd_rows`, and so is the way it goes, row by row without BLAS.
    """
    layers, rows = len(places), len(x)
    size = rows * (places[:, 0].sum() + places[:, 1].sum())
    total = 0.0
    a, slope, delta, value = scratch[0], scratch[1], scratch[2], scratch[3]
    count = np.zeros(layers, np.int64)
    for r in range(rows):
        _forward(x[r], first + r, w, places, activation, keys, threshold, scale, a, slope, index, value, count)
        output = a[layers - 1, : places[layers - 1, 1]]
        row_weight = w.dtype.type(weight[r]) if weight.size else w.dtype.type(1)
        total += row_weight * _row_residual(loss, output, y[r])
        for j in range(output.size):
            delta[layers - 1, j] = output[j] * row_weight
        at = size
        for i in range(layers - 1, -1, -1):
            inputs, units, start = places[i, 0], places[i, 1], places[i, 2]
            d = delta[i, :units]
            if i > 0:
                matrix = w[start : start + inputs * units].reshape((inputs, units))
                _pull_back(matrix, d, slope[i - 1], delta[i - 1, :inputs])
            at -= rows * units
            _copy(d, factors[at + r * units : at + (r + 1) * units])
            at -= rows * inputs
            _copy(x[r] if i == 0 else a[i - 1, :inputs], factors[at + r * inputs : at + (r + 1) * inputs])
    return total
