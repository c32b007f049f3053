"""Linear models on sparse rows whose gradient is index-value pairs: the columns that the rows touch, and the bias."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend import HOST
from ..data import Batch
from ..data.sparse_rows import SparseRows
from .base import Sums
from .passes import read_only

Array = Any
DenseModel = Any  # of `dense`, which imports this module


def loss_and_pairs(
    model: DenseModel, w: Array, batch: Batch, columns: Array, sums: Array, slots: Array, factor: float
) -> tuple[Sums, int]:
    """See `DenseModel.loss_and_pairs`."""
    from ..data.sparse_kernels import collect

    space, rows = model._workspace(w), _sparse(batch)
    (weights,), (bias,) = model.layers_of(HOST.read_only(w), space.no_bias)
    z, of_bias = space.rows("a", 0, len(batch.y)), space.unused[0]
    rows.dot(weights, out=z)
    if factor != 1:
        z *= model.dtype.type(factor)
    losses = model._residual(space, z, bias, batch, of_bias)
    count = collect(*rows.arrays, z, columns, sums, slots)
    if model.bias:
        columns[count], sums[count] = model.widths[0], of_bias
        count += 1
    return losses, count


def column_steps(
    model: DenseModel,
    w: Array,
    batch: Batch,
    ends: Array,
    scales: Array,
    rates: Array,
    l2: float,
    update: tuple[Any, tuple[Array, ...], tuple[Any, ...]] | None,
    pairs: tuple[Array, Array, Array],
) -> Sums:
    """See `DenseModel.column_steps`."""
    from .kernels.sparse_steps import sgd_steps_of, steps_of

    space, rows, loss = model._workspace(w), _sparse(batch), model.loss_function
    y, weight = read_only(batch.y, space.no_weights if batch.weight is None else batch.weight)
    z = space.rows("a", 0, int(np.diff(ends).max(initial=0)))
    given = (*rows.arrays, y, weight, ends, scales, w, model.widths[0], rates)
    if update is None:
        value = sgd_steps_of(loss)(*given, float(l2), z)
    else:
        kernel, state, settings = update
        value = steps_of(loss, kernel)(*given, z, state, settings, *pairs)
    return Sums(value, space.total_weight(batch))


def _sparse(batch: Batch) -> SparseRows:
    assert isinstance(batch.x, SparseRows)
    return batch.x
