"""Numba kernels that go row by row, without BLAS: what steps of few rows take; importing this module loads Numba.

The sufficient factors of a row are the flat vector [a_0 | d_0 | a_1 | d_1 | ...]: for each layer its inputs a and the
gradient d of the loss by its outputs.  The gradient of the layer's matrix is outer(a, d), that of its bias d.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numba
import numpy as np

from ...jit import kernel, specialise
from ...shared_barrier import announce, wait_for
from ..losses import Loss
from .arithmetic import row_of
from .cpu import GELU_CUBIC, GELU_SCALE, RELU, TANH, _keeps

REORDER = {"reassoc", "contract", "nsz"}  # sums may be reordered, so that they become vector code


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
def _pull_back(matrix, delta, slope, out):
    """out ← (matrix · delta) · slope."""
    for k in range(out.size):
        total = matrix.dtype.type(0)
        for j in range(delta.size):
            total += matrix[k, j] * delta[j]
        out[k] = total * slope[k]


@kernel(fastmath=REORDER)
def _forward(x, position, w, table, activation, keys, threshold, scale, a, slope, index, value):
    """Outputs of one row, at ``position`` in the epoch, into the last row of ``a``; for the other arguments see
    `_differentiate`.
    """
    layers = len(table)
    zero = w.dtype.type(0)
    for i in range(layers):
        inputs, units, start, bias = table[i, 0], table[i, 1], table[i, 2], table[i, 3]
        matrix = w[start : start + inputs * units].reshape((inputs, units))
        z = a[i, :units]
        for j in range(units):
            z[j] = w[bias + j] if bias >= 0 else zero
        count = _nonzero(x if i == 0 else a[i - 1, :inputs], index[i], value[i])
        index[i, -1] = count
        _add_rows(matrix, index[i], value[i], count, z)
        if i < layers - 1:
            for j in range(units):
                kept = threshold > np.uint64(0xFFFFFFFF) or _keeps(keys[i], position * units + j, threshold)
                act, der = _activate_unit(activation, z[j])
                z[j] = act * scale if kept else zero
                slope[i, j] = der * scale if kept else zero


def _differentiate(
    x, y, row_weight, position, w, table, activation, keys, threshold, scale, a, slope, index, value, delta
):
    """Forward and backward pass of one row; returns its weighted loss.

    A row of ``table``, shape (layers, 4), tells of a layer its inputs and units, and where in ``w`` its matrix and
    its bias start (-1: none).  Layer i's outputs are left in ``a[i]`` and the gradient by them in ``delta[i]``; of its
    inputs those that are not zero, ``index[i, -1]`` many, in ``value[i]``, and their numbers in ``index[i]``.
    All these arrays, and the working space ``slope``, have shape (layers, more than the widest layer has units).
    """
    last = len(table) - 1
    _forward(x, position, w, table, activation, keys, threshold, scale, a, slope, index, value)
    output = a[last, : table[last, 1]]
    total = row_weight * row(output, y)[0]  # type: ignore[name-defined]  # noqa: F821 - the loss's
    for j in range(output.size):
        delta[last, j] = output[j] * row_weight
    for i in range(last, 0, -1):
        inputs, units, start = table[i, 0], table[i, 1], table[i, 2]
        matrix = w[start : start + inputs * units].reshape((inputs, units))
        _pull_back(matrix, delta[i, :units], slope[i - 1], delta[i - 1, :inputs])
    return total


@numba.njit(inline="always")
def _copy(source, out):
    for j in range(out.size):
        out[j] = source[j]


def _factor_rows(w, x, y, weight, table, activation, keys, first, threshold, scale, scratch, index, factors):
    """Sufficient factors of each row, see `kernels.factors`, into ``factors``; returns the weighted sum of losses.

    ``first`` is the first row's number in the epoch.  ``scratch``, shape (4, layers, width), and ``index``, int32,
    shape (layers, width), are working space, wider than the widest layer.  For other arguments see `_differentiate`.
    """
    layers, rows, total = len(table), len(x), 0.0
    a, slope, value, delta = scratch[0], scratch[1], scratch[2], scratch[3]
    for r in range(rows):
        row_weight = w.dtype.type(weight[r]) if weight.size else w.dtype.type(1)
        total += _differentiate(
            x[r], y[r], row_weight, first + r, w, table, activation, keys, threshold, scale,
            a, slope, index, value, delta,
        )  # fmt: skip
        at = 0
        for i in range(layers):
            inputs, units = table[i, 0], table[i, 1]
            _copy(x[r] if i == 0 else a[i - 1, :inputs], factors[at + r * inputs : at + (r + 1) * inputs])
            at += rows * inputs
            _copy(delta[i], factors[at + r * units : at + (r + 1) * units])
            at += rows * units
    return total


@numba.njit(inline="always")
def _subtract(w, carry, factor, delta):
    """w ← w - factor · delta, with what rounding takes from it kept in ``carry``, as in `optim.kernels`."""
    for j in range(delta.size):
        update = carry[j] - factor * delta[j]
        total = w[j] + update
        carry[j] = update - (total - w[j])
        w[j] = total


@kernel(fastmath=REORDER)
def _subtract_outer(matrix, index, value, count, rate, delta):
    """matrix[index[i]] ← matrix[index[i]] - rate · value[i] · delta."""
    for i in range(count):
        k, factor = np.uintp(index[i]), -rate * value[i]
        for j in range(delta.size):
            matrix[k, j] += factor * delta[j]


@kernel(fastmath=REORDER)
def _descend_fast(w, table, rate, index, value, delta):
    """As `_descend`, but what rounding takes from w is lost: half the memory is read and written."""
    for i in range(len(table)):
        inputs, units, start, bias = table[i, 0], table[i, 1], table[i, 2], table[i, 3]
        matrix = w[start : start + inputs * units].reshape((inputs, units))
        d = delta[i, :units]
        _subtract_outer(matrix, index[i], value[i], index[i, -1], rate, d)
        if bias >= 0:
            for j in range(units):
                w[bias + j] -= rate * d[j]


@kernel(fastmath=False)  # said, or it is what the caller's is
def _descend(w, carry, table, rate, index, value, delta):
    """w ← w - rate · the gradient of one row, in place; inputs that are zero cost nothing.

    Sums keep their order here: compensation would be optimised away.
    """
    one = w.dtype.type(1)
    for i in range(len(table)):
        units, start, bias = table[i, 1], table[i, 2], table[i, 3]
        d = delta[i, :units]
        for k in range(index[i, -1]):
            at = start + np.int64(index[i, k]) * units
            _subtract(w[at : at + units], carry[at : at + units], rate * value[i, k], d)
        if bias >= 0:
            _subtract(w[bias : bias + units], carry[bias : bias + units], rate * one, d)


@kernel(fastmath=REORDER)
def _shrink(w, table, factor):
    """Multiply the matrices inside ``w`` by ``factor``."""
    for i in range(len(table)):
        start = table[i, 2]
        matrix = w[start : start + table[i, 0] * table[i, 1]]
        for j in range(matrix.size):
            matrix[j] *= factor


def _sgd_rows(
    w, x, y, weight, table, activation, keys, first, threshold, scale, scratch, carry, rate, l2,
    indices, factors, starts, flags, rank, turn, spins, yields, steps, begun, waits,
):  # fmt: skip
    """SGD on global batches of few rows, shared out to the ranks of a node: w ← w - rate (mean gradient + l2 w).

    Every rank makes the factors of its rows of a batch, shows them to the others, and when all have come takes
    the step from the factors of all rows, in their order: so ``w``, a rank's own, stays the same on all of them.

    Args:
        carry: what rounding has taken from w so far, as long, or None: it is lost.  Of several ranks a rank's own, and
            alike on all.
        x, y, weight: this rank's rows of all steps, one step after another.
        first: number in the epoch of the first row of the first global batch.
        indices, factors: the factors of the rows of two steps in turn, as `_differentiate` leaves them: shapes (2,
            rows of a global batch, layers, width), and (2, rows, 2, layers, width) for values and gradients.
            Several ranks have them in the same memory.
        starts: the rows of a global batch that each rank takes begin here, shape (ranks + 1,).
        flags, rank, turn, spins, yields: see `flags`; ``turn`` is the number of times that the ranks have met.
        steps: how many there are to take; ``begun``: those that are done.
        waits: whether this rank's factors of the next one are there to be seen.
        Others: see `_factor_rows`.

    Returns:
        Steps done, whether it gave up waiting for the others in the next one, and the weighted sum of this rank's
        losses, each before its step.
    """
    ranks, one = len(starts) - 1, w.dtype.type(1)
    size, mine = starts[ranks], starts[rank + 1] - starts[rank]
    mean, total = rate / w.dtype.type(size), 0.0
    for step in range(begun, steps):
        meeting = turn + step - begun + 1
        index, numbers = indices[meeting % 2], factors[meeting % 2]
        if not waits:
            for i in range(mine):
                r, row = step * mine + i, starts[rank] + i
                row_weight = w.dtype.type(weight[r]) if weight.size else one
                total += _differentiate(
                    x[r], y[r], row_weight, first + step * size + row, w, table, activation, keys, threshold,
                    scale, scratch[0], scratch[1], index[row], numbers[row, 0], numbers[row, 1],
                )  # fmt: skip
        if ranks > 1:
            if not waits:
                announce(flags, rank, meeting)
            if not wait_for(flags, ranks, meeting, spins, yields):
                return step, True, total
        waits = False
        if l2 != 0:
            _shrink(w, table, one - rate * l2)
        for r in range(size):
            if carry is None:  # compiled for either case
                _descend_fast(w, table, mean, index[r], numbers[r, 0], numbers[r, 1])
            else:
                _descend(w, carry, table, mean, index[r], numbers[r, 0], numbers[r, 1])
    return steps, False, total


@lru_cache
def _differentiated(loss: Loss) -> dict[str, Any]:
    return {"_differentiate": specialise(_differentiate, loss.name, {"row": row_of(loss)}, fastmath=REORDER)}


@lru_cache
def factor_rows(loss: Loss) -> Any:
    """The kernel `_factor_rows` of this loss."""
    return specialise(_factor_rows, loss.name, _differentiated(loss), fastmath=REORDER)


@lru_cache
def sgd_rows(loss: Loss) -> Any:
    """The kernel `_sgd_rows` of this loss."""
    return specialise(_sgd_rows, loss.name, _differentiated(loss), fastmath=REORDER)
