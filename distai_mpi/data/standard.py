"""Standardization of features by mean and deviation of the training rows on all ranks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import DataError
from .dataset import Standard
from .loader import Loader
from .sharded import ShardedDataset
from .sparse_rows import DENSE_ADVICE

Array = Any
LOOK = 2048  # rows, over all ranks
SPACING = 1e-4  # of a deviation
FAR = 10.0  # deviations that a feature of sparse rows may be off 0
ROUNDING = 1e-13  # of the mean of squares: a variance no larger is that of a constant
BLOCK_BYTES = 512 << 10  # of a block of rows in float64, which is gone through twice: what stays in cache


def standardize(train: ShardedDataset, *others: ShardedDataset | None, comm: Any) -> tuple[Any, ...]:
    """``train`` and ``others`` with features of mean 0 and deviation 1 on the rows of ``train``; collective.

    Features of sparse rows are scaled to a deviation of 1, and not centred, so that they stay sparse; a note says so.
    Nothing is copied: features are standardized when they are gathered.  Mean and standard deviation are those of
    the population (divided by the summed weight), over all ranks, and every set gets the same.  A feature that is
    constant keeps its scale: a deviation of 1.  Where `Dataset.scale` is set, it comes first.  Features are taken as
    they are held: what `load_sets` held in float32 was rounded before.

    Args:
        train: the rows that the numbers are taken from.
        others: further sets of the same features, such as test rows; None stays None.
        comm: the ranks, a `comm.Communicator`.

    Raises:
        DataError: values are so large that the square of their spread overflows, or all rows of ``train`` weigh 0;
            on all ranks.
    """
    train.check_weight()
    standard = measure(train, comm)
    if train.dataset.is_sparse:
        note = f"{train.name}: rows are sparse: features are scaled to deviation 1, and not centred"
        train = _with_far(replace(train, notes=(*train.notes, note)), standard)
        standard = replace(standard, mean=np.zeros_like(standard.mean))
    return tuple(shard and apply(shard, standard) for shard in (train, *others))


def centre_far(train: ShardedDataset, *others: ShardedDataset | None, comm: Any, dtype: Any) -> tuple[Any, ...]:
    """``train`` and ``others``, with features centred where rounding to ``dtype`` would lose too much; collective.

    A column of seconds since 1970 has a spacing of 128 in float32.  Where features lie so far from 0 that their spacing
    in ``dtype`` is the fraction `SPACING` of their deviation, and they are held in a wider type, their means on the
    rows of ``train`` are taken off when they are gathered, in float64, before they are rounded; their scale stays.
    Whether that is so is estimated from some rows.  Sparse rows are left as they are; a note names features that are
    more than `FAR` deviations off 0.

    Args:
        train, others, comm: see `standardize`.
        dtype: of the features that a model takes.

    Raises:
        DataError: see `standardize`.
    """
    if train.dataset.stays_sparse:
        return (_with_far(train, measure(train, comm)), *others)
    far = far_features(train, comm, dtype)
    if not far.any():
        return (train, *others)
    standard = measure(train, comm)
    standard = Standard(np.where(far, standard.mean, 0.0), np.ones_like(standard.deviation))
    return tuple(shard and apply(shard, standard) for shard in (train, *others))


def _with_far(train: ShardedDataset, standard: Standard) -> ShardedDataset:
    """``train``, of sparse rows, with a note on features that should be centred, and are not."""
    away, known = np.abs(standard.mean), standard.deviation
    far = np.flatnonzero(away > FAR * known).tolist()
    if not far:
        return train
    note = f"{train.name}: {train.called(far)} lie far from 0, and features of sparse rows are not centred"
    return replace(train, notes=(*train.notes, f"{note}: training may end far from the optimum; {DENSE_ADVICE}"))


def far_features(shard: ShardedDataset, comm: Any, dtype: Any) -> Array:
    """Which features `centre_far` would centre, by `LOOK` rows, bool, shape (features,); collective."""
    data, dtype = shard.dataset, np.dtype(dtype)
    holds = data.x.dtype.kind == "f" or data.x.dtype.itemsize > 2
    if data.standard is not None or not comm.sum([holds and data.x.dtype.itemsize >= dtype.itemsize])[0]:
        return np.zeros(shard.features, bool)
    loader = Loader(
        shard, rank=comm.rank, ranks=comm.size, global_batch_size=1, seed=0, dtype=np.float64, target_dtype=data.y.dtype
    )
    rows = loader.rows_of(comm.rank)
    x = loader.sample(min(rows, -(-LOOK * rows // max(1, shard.rows)))).x
    total = comm.sum([len(x)])[0] or 1.0
    with np.errstate(over="ignore", invalid="ignore"):
        first = comm.sum(x.sum(axis=0)) / total
        deviation = np.sqrt(comm.sum(np.square(x - first).sum(axis=0)) / total)
        far = np.abs(first) * float(np.finfo(dtype).eps) > SPACING * deviation
    return far & (deviation > 0)


def apply(shard: ShardedDataset, standard: Standard) -> ShardedDataset:
    """``shard`` with features standardized by ``standard``, whatever they were standardized by before."""
    return replace(shard, dataset=replace(shard.dataset, standard=standard))


def measure(shard: ShardedDataset, comm: Any) -> Standard:
    """Weighted mean and standard deviation of the features of ``shard``; collective, the same on every rank.

    See `mean_and_variance`.

    Raises:
        DataError: see `standardize`.
    """
    dataset = replace(shard.dataset, standard=None)
    plain = replace(shard, dataset=dataset)
    ranks = dict(rank=comm.rank, ranks=comm.size, global_batch_size=1, seed=0)
    block = max(1, BLOCK_BYTES // (8 * max(1, shard.features)))
    sparse = dataset.stays_sparse
    types = {"dtype": dataset.x.dtype if sparse else np.float64, "target_dtype": dataset.y.dtype}
    loader = Loader(plain, **ranks, **types, block_rows=None if sparse else block, sparse=sparse)
    mean, variance = mean_and_variance(loader, comm)
    return Standard(mean, np.sqrt(np.where(variance > 0, variance, 1.0)))


def mean_and_variance(loader: Loader, comm: Any) -> tuple[Array, Array]:
    """Weighted mean and variance of the features that ``loader`` hands out, float64, shape (features,); collective.

    Everything is summed in float64 about one row of the set, so that large means cost no digits and the sums of a
    constant feature are exactly 0.  Blocks of rows are merged by Chan, Golub & LeVeque 1983, "Algorithms for
    computing the sample variance", equations 2.1a and b; ranks too, in two sums of the features' length.  The same
    bits on every rank.

    Raises:
        DataError: the square of a feature's spread overflows; on all ranks.
    """
    total = loader.total_weight or 1.0
    if loader.sparse:
        mean, variance = _of_entries(loader, comm, total)
        return _checked(mean, variance, loader)
    origin = _origin(loader, comm)
    with np.errstate(over="ignore", invalid="ignore"):
        weight, mean, squares = _moments(loader, origin)
        middle = comm.sum(weight * mean) / total
        variance = comm.sum(squares + weight * (mean - middle) ** 2) / total
        mean = origin + middle
    return _checked(mean, variance, loader)


def _of_entries(loader: Loader, comm: Any, total: float) -> tuple[Array, Array]:
    """`mean_and_variance` of sparse rows, from the sums of their values and of squares.

    Most of what is squared is 0: the difference loses few digits, and where it is no more than rounding it is 0.
    """
    from .sparse_kernels import moments

    sums, ones = np.zeros((2, loader.shard.features)), np.empty(0)
    for batch in loader.sequential():
        moments(*batch.x.arrays, ones if batch.weight is None else batch.weight.astype(np.float64), sums)
    with np.errstate(over="ignore", invalid="ignore"):
        mean, square = comm.sum(sums.ravel()).reshape(sums.shape) / total
        variance = square - mean * mean
    return mean, np.where(variance > ROUNDING * square, variance, variance * 0)


def _checked(mean: Array, variance: Array, loader: Loader) -> tuple[Array, Array]:
    wild = np.flatnonzero(~np.isfinite(mean + variance))
    if wild.size:
        raise DataError(
            f"{loader.shard.name}: values of feature {wild[0]} (counted from 0) are too large: the square of their"
            " spread is beyond float64; scale them down"
        )
    return mean, variance


def _origin(loader: Loader, comm: Any) -> Array:
    """The features of one row of positive weight, float64, the same on every rank."""
    found = None
    for batch in loader.sequential():
        counting = np.flatnonzero(batch.weight) if batch.weight is not None else np.arange(len(batch.x))
        if counting.size:
            found = batch.x[counting[0]].astype(np.float64)
            break
    holders = [rank for rank, has in enumerate(comm.allgather_object(found is not None)) if has]
    origin = np.zeros(loader.shard.features) if found is None else found
    if holders:
        comm.bcast(origin, holders[0])
    return origin


def _moments(loader: Loader, origin: Array) -> tuple[float, Array, Array]:
    """Of this rank's rows less ``origin``: summed weight, mean, and weighted squares about the mean; float64."""
    from .kernels import moments

    weight, mean, squares = 0.0, np.zeros_like(origin), np.zeros_like(origin)
    block_mean, block_squares, ones = np.empty_like(origin), np.empty_like(origin), np.empty(0)
    for batch in loader.sequential():
        each = ones if batch.weight is None else batch.weight
        added = moments(batch.x, each, origin, block_mean, block_squares)
        if added > 0:
            step = block_mean - mean
            squares += block_squares + step * step * (weight * added / (weight + added))
            mean += step * (added / (weight + added))
            weight += added
    return weight, mean, squares
