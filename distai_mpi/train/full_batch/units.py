"""Linear models in other units, in which features have mean 0 and deviation about 1, and targets mean 0.

Methods of second order do not depend on such units but for rounding, which where features or targets lie far from 0
may leave nothing of a result: the squares of a column of mean 1.7e9 and deviation 170 tell nothing of its deviation in
float64, nor the column itself in float32.  In the units of the rows and in these the objective is the same function:

    w · x + b - y  =  (s w) · ((x - m) / s) + (b + m · w - t) - (y - t)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...data import Batch, Loader
from ...data.standard import mean_and_variance
from ...objective import Objective
from ...perf.machine import memory_left

Array = Any
LOOK = 512  # rows, over all ranks, by which is told whether other units are needed
FAR, LARGE = 10.0, 1e4  # a mean of so many deviations is; a root mean square beyond that, or below its inverse
LARGEST = 4.0  # deviations that numbers are off their mean, or most of them
HELD = 4  # rows in these units are held where that takes this part of the memory left


@dataclass(frozen=True)
class Units:
    """The units of a linear model's features and targets; the same bits on every rank.

    Attributes:
        mean, scale: of the features, shape (features,), float64; scales are powers of two, so that dividing by them
            rounds nothing.
        target: what targets are counted from.
    """

    mean: Array
    scale: Array
    target: float

    def inward(self, model: Any, w: Array) -> Array:
        """The parameters in these units, float64, shape (layout.size,), that are ``w`` in those of the rows."""
        return self._moved(model, w, self.scale[:, None], 1.0, -self.target)

    def outward(self, model: Any, w: Array) -> Array:
        """The parameters in the units of the rows, float64, that are ``w`` in these."""
        return self._moved(model, w, 1.0 / self.scale[:, None], -1.0, self.target)

    def _moved(self, model: Any, w: Array, factor: Array, sign: float, offset: float) -> Array:
        from ...optim.solvers.ordered import dot

        out = np.asarray(w, np.float64).copy()
        (weights,), biases = model.layers_of(out)
        given = weights.copy()
        weights *= factor
        plain = given if sign > 0 else weights  # in the units of the rows
        for bias in biases:
            for k in range(bias.size):
                bias[k] += sign * dot(self.mean, np.ascontiguousarray(plain[:, k])) + offset
        return out


class OtherRows:
    """The rows of a loader in other units: computed in float64, handed out in the loader's dtype.

    Stands for the `Loader` where rows are gone through in their own order.

    Args:
        loader: whose rows they are, on the host.
        units: theirs.
        most_bytes: they are held where they take no more.
    """

    def __init__(self, loader: Loader, units: Units, most_bytes: int) -> None:
        self._loader, self.units = loader, units
        self.shard, self.device, self.dtype, self.sparse = loader.shard, loader.device, loader.dtype, loader.sparse
        self.total_weight, self.target_dtype = loader.total_weight, loader.target_dtype
        self._inverse = 1.0 / units.scale
        self._held: list[Batch] | None = None
        row_bytes = loader.shard.dataset.x.row_bytes if self.sparse else loader.shard.features * loader.dtype.itemsize
        if loader.stored is None and loader.rows_of(loader.rank) * row_bytes <= most_bytes:
            loader.release()
            self._held = [self._own(batch) for batch in loader.sequential()]

    def rows_of(self, rank: int) -> int:
        """See `Loader.rows_of`."""
        return self._loader.rows_of(rank)

    def sequential(self) -> Iterator[Batch]:
        """See `Loader.sequential`."""
        return map(self._moved, self._loader.sequential()) if self._held is None else iter(self._held)

    def sample(self, count: int) -> Batch:
        """See `Loader.sample`."""
        return self._moved(self._loader.sample(count))

    def _moved(self, batch: Batch) -> Batch:
        rows: Any = batch.rows
        if self.sparse:  # their means are 0
            x = rows.gathered(np.arange(len(batch.y)), self.dtype, self._inverse)
        else:
            x = np.empty(rows.shape, rows.dtype)
            rows.fill(x)
            np.multiply(np.subtract(x, self.units.mean, dtype=np.float64), self._inverse, out=x, casting="same_kind")
        y = batch.y
        if self.units.target:
            y = np.subtract(batch.y, self.units.target, dtype=np.float64).astype(batch.y.dtype)
        return batch._replace(x=x, y=y)

    def _own(self, batch: Batch) -> Batch:
        """The rows of ``batch`` in arrays that hold longer than it."""
        weight = None if batch.weight is None else batch.weight.copy()
        batch = self._moved(batch)
        return batch._replace(y=batch.y.copy(), weight=weight, ids=batch.ids.copy())


def in_other_units(objective: Objective, spread: Array) -> tuple[Objective, Units | None]:
    """The ``objective`` of a linear model in units that suit it, and which they are; None: those of the rows do.

    Whether they do is told by some rows alone, and by ``spread``, the roots of the mean squares of features over all
    rows, shape (features,), replicated.  Collective.

    Raises:
        DataError: a feature's values are too large, see `mean_and_variance`.
    """
    if np.isnan(spread).any():  # of features that are not numbers the loss tells
        return objective, None
    loader, comm = objective.loader, objective.comm
    model: Any = objective.model
    shifts = model.loss_function.of_difference and model.bias
    mean, deviation, target, target_deviation = _look(objective)
    away = np.where(deviation > 0, np.abs(mean) > FAR * deviation, np.abs(mean) > LARGE)  # else constant, as of ones
    far = model.bias and bool(away.any())  # of dense rows
    far |= shifts and abs(target) > FAR * target_deviation
    least = 1.0 / LARGE**2 if loader.sparse else 1.0 / LARGE  # sparse columns are rarely not 0, and no smaller for it
    large = not bool(((spread <= LARGE) & ((spread >= least) | (spread == 0))).all())
    if not (far or large):
        return objective, None
    mean, variance = mean_and_variance(loader, comm)
    if not model.bias or loader.sparse:
        mean, variance = np.zeros_like(mean), variance + mean * mean
    # so that the Hessian's diagonal becomes about that of the loss by the outputs, penalty included
    curvature = model.loss_function.curvature_scale
    scale = power_of_two(np.sqrt(variance + objective.l2 / curvature))
    units = Units(mean, scale, _mean_target(objective) if shifts else 0.0)
    inner = copy(objective)
    inner.loader = OtherRows(loader, units, memory_left() // (HELD * comm.node.size))  # type: ignore[assignment]
    inner.strengths = np.ones(model.layout.size)
    model.layers_of(inner.strengths)[0][0][:] = (1.0 / np.square(scale))[:, None]
    return inner, units


def rounding_of(loader: Any, spread: Array, units: Units | None) -> Array:
    """How much of the features is rounding, as a fraction of the roots of their mean squares; shape (features,); local.

    Args:
        loader: hands the rows out, in ``units`` if there are.
        spread: see `in_other_units`, of these rows.
        units: of the rows.
    """
    size, dtype = np.where(spread > 0, spread, 1.0), loader.dtype
    largest = LARGEST * size
    if units is not None:
        largest = largest + np.abs(units.mean) / units.scale
    found = 0.5 * np.finfo(dtype).eps * largest / size
    data = loader.shard.dataset
    if data.standard is not None and data.x.dtype.kind == "f":  # of what was there before
        away = np.abs(data.standard.mean) / data.standard.deviation / (1.0 if units is None else units.scale)
        found = found + 0.5 * np.finfo(data.x.dtype).eps * away / size
    return np.where(spread > 0, found, 0.0)


def power_of_two(values: Array) -> Array:
    """The powers of two next to positive ``values``, in float64; 1 for others."""
    good = (values > 0) & np.isfinite(values)
    return np.where(good, np.exp2(np.round(np.log2(np.where(good, values, 1.0)))), 1.0)


def _look(objective: Objective) -> tuple[Array, Array, float, float]:
    """Mean and deviation of features, shape (features,), and of targets, by `LOOK` rows; collective, one small sum.

    Of sparse rows those of no feature, shape (0,).

    Between ranks deviations are told to a fraction of 1e-8 of the mean, which is enough to tell what is far from 0.
    """
    loader, comm = objective.loader, objective.comm
    own, rows = loader.rows_of(comm.rank), loader.shard.rows
    batch = loader.sample(min(own, -(-LOOK * own // max(1, rows))))
    features = 0 if loader.sparse else loader.shard.features  # sparse rows are not centred: targets alone may be
    table = np.empty((len(batch.y), features + 1))
    if features:
        batch.rows.fill(table[:, :-1])
    table[:, -1] = batch.y
    if batch.weight is not None:
        table = table[batch.weight > 0]
    count, columns = table.shape
    told = np.zeros((3, columns))
    with np.errstate(over="ignore", invalid="ignore"):
        if count:
            mean = table.mean(axis=0)
            table -= mean
            told[0], told[1], told[2] = count, count * mean, np.einsum("ij,ij->j", table, table) + count * mean * mean
        total, first, second = comm.sum(told.ravel()).reshape(told.shape)
        mean = first / np.maximum(total, 1.0)
        variance = second / np.maximum(total, 1.0) - mean * mean
    # what is left of two equal numbers is rounding: of a constant column the deviation is 0
    deviation = np.sqrt(np.where(variance > 1e-15 * mean * mean, variance, 0.0))
    return mean[:-1], deviation[:-1], float(mean[-1]), float(deviation[-1])


def _mean_target(objective: Objective) -> float:
    """The weighted mean of the targets of all rows; collective, one small sum."""
    parts = []
    for batch in objective.loader.sequential():
        y = batch.y.astype(np.float64)
        parts.append(float(np.sum(y if batch.weight is None else y * batch.weight)))
    return float(objective.comm.sum([math.fsum(parts)])[0]) / objective.loader.total_weight
