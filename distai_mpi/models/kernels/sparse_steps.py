"""Numba kernels of steps of linear models of one output on sparse rows; importing this module loads Numba.

A step touches the parameters of its rows' features alone.  All arguments are those of `_sgd_steps`, or of `_steps`:

    starts, indices, values: the rows of all steps, see `data.sparse_kernels`.
    y, weight: of the rows, shape (rows,); ``weight`` is empty where all are 1.
    ends: step k has the rows ends[k] to ends[k + 1] - 1, int64, shape (steps + 1,).
    scales, rates: of each step, what gradients are divided by, and the learning rate, float64, shape (steps,).
    w: the parameters, changed in place: those of the features, and last the bias where there is one.
    z: working space, shape (most rows of a step, 1), in the dtype of ``w``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from ...data.sparse_kernels import collect, dot, t_dot
from ...jit import specialise
from ..losses import PointLoss
from .arithmetic import point_of

LEAST = 1e-4  # of the factor: smaller, or negative, it is multiplied into the vector


def _sgd_steps(starts, indices, values, y, weight, ends, scales, w, features, rates, l2, z):
    """SGD; returns the sum of the rows' losses, each before its step.

    What the penalty takes from all parameters is kept in one factor (Bottou 2012, "Stochastic gradient descent tricks",
    section 5.1: w as the product of a number and a vector).
    """
    total, factor, number = 0.0, 1.0, w.dtype.type
    v, bias = w[:features], w[features:]
    for k in range(ends.size - 1):
        first, count, rate = ends[k], ends[k + 1] - ends[k], rates[k]
        part, margins = starts[first : first + count + 1], z[:count, 0]
        dot(part, indices, values, v, margins)
        offset = bias[0] if bias.size else number(0)
        slopes = 0.0
        shrunk = factor * (1.0 - rate * l2)
        if not shrunk > LEAST:
            for j in range(v.size):
                v[j] = number(shrunk * v[j])
        after = shrunk if shrunk > LEAST else 1.0
        for r in range(count):
            loss, slope, _ = point(factor * margins[r] + offset, y[first + r])  # type: ignore[name-defined]  # noqa: F821
            if weight.size:
                loss *= weight[first + r]
                slope *= weight[first + r]
            total += loss
            slopes += slope
            margins[r] = number(-rate * slope / (scales[k] * after))
        t_dot(part, indices, values, margins, v)
        if bias.size:
            bias[0] -= number(rate * slopes / scales[k])
        factor = after
    if factor != 1.0:
        for j in range(v.size):
            v[j] = number(factor * v[j])
    return total


def _steps(
    starts, indices, values, y, weight, ends, scales, w, features, rates, z, state, settings, columns, sums, slots
):
    """Another method, whose ``update`` is one of `optim.column_kernels`; returns the sum of losses as `_sgd_steps`.

    For ``state`` and ``settings`` see there, for ``columns`` and what follows `collect`.
    """
    total, number = 0.0, w.dtype.type
    v, bias = w[:features], w[features:]
    for k in range(ends.size - 1):
        first, count = ends[k], ends[k + 1] - ends[k]
        part = starts[first : first + count + 1]
        dot(part, indices, values, v, z[:count, 0])
        offset = bias[0] if bias.size else number(0)
        slopes = 0.0
        for r in range(count):
            loss, slope, _ = point(z[r, 0] + offset, y[first + r])  # type: ignore[name-defined]  # noqa: F821
            if weight.size:
                loss *= weight[first + r]
                slope *= weight[first + r]
            total += loss
            slopes += slope
            z[r, 0] = number(slope)
        found = collect(part, indices, values, z[:count], columns, sums, slots)
        if bias.size:
            columns[found] = features
            sums[found, 0] = number(slopes)
            found += 1
        rate, scale = number(rates[k]), number(1.0 / scales[k])
        update(columns[:found], sums[:found], scale, 0, features, w, state, rate, settings)  # type: ignore[name-defined]  # noqa: F821
    return total


@lru_cache
def sgd_steps_of(loss: PointLoss) -> Any:
    """`_sgd_steps` with this loss, compiled at its first call."""
    return specialise(_sgd_steps, loss.name, {"point": point_of(loss)}, error_model="numpy")


@lru_cache
def steps_of(loss: PointLoss, update: Any) -> Any:
    """`_steps` with this loss and this ``update``, compiled at its first call."""
    names = {"point": point_of(loss), "update": update}
    return specialise(_steps, f"{loss.name}_{update.__name__}", names, error_model="numpy")
