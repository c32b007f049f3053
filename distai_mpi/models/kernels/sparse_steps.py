"""A Numba kernel of plain SGD on linear models and sparse rows; importing this module loads Numba.

A step touches the parameters of its rows' features alone: what the penalty takes from all others is kept in one factor
(Bottou 2012, "Stochastic gradient descent tricks", section 5.1: w as the product of a number and a vector).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from ...data.sparse_kernels import dot, t_dot
from ...jit import specialise
from ..losses import PointLoss
from .arithmetic import point_of

LEAST = 1e-4  # of the factor: smaller, or negative, it is multiplied into the vector


def _steps(starts, indices, values, y, weight, v, bias, rate, l2, size, z):
    """SGD on global batches of ``size`` rows, one after another; returns the sum of their losses before each.

    Args:
        starts, indices, values: the rows of all steps, see `data.sparse_kernels`.
        y, weight: of the rows, shape (rows,); ``weight`` is empty where all are 1.
        v: parameters of the features, shape (features,), changed in place.
        bias: shape (1,), likewise, or empty.
        rate, l2: float64.
        z: working space, shape (size,), in the dtype of ``v``.
    """
    total, factor, number = 0.0, 1.0, values.dtype.type
    for first in range(0, starts.size - 1, size):
        part = starts[first : first + size + 1]
        dot(part, indices, values, v, z)
        offset = bias[0] if bias.size else number(0)
        slopes = 0.0
        shrunk = factor * (1.0 - rate * l2)
        if not shrunk > LEAST:
            for j in range(v.size):
                v[j] = number(shrunk * v[j])
        after = shrunk if shrunk > LEAST else 1.0
        for r in range(size):
            loss, slope, _ = point(factor * z[r] + offset, y[first + r])  # type: ignore[name-defined]  # noqa: F821
            if weight.size:
                loss *= weight[first + r]
                slope *= weight[first + r]
            total += loss
            slopes += slope
            z[r] = number(-rate * slope / (size * after))
        t_dot(part, indices, values, z, v)
        if bias.size:
            bias[0] -= number(rate * slopes / size)
        factor = after
    if factor != 1.0:
        for j in range(v.size):
            v[j] = number(factor * v[j])
    return total


@lru_cache
def steps_of(loss: PointLoss) -> Any:
    """`_steps` with this loss, compiled at its first call."""
    return specialise(_steps, loss.name, {"point": point_of(loss)}, error_model="numpy")
