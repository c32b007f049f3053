"""Imputation: replacements of missing values (NaN), from the training rows on all ranks.

The replacements depend neither on the number of ranks nor on the sharding.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import ConfigError, DataError
from .dataset import Fill
from .encoded_values import fill_numbers
from .loader import Loader
from .sharded import ShardedDataset
from .sparse_rows import DENSE_ADVICE
from .wording import worded_errors

Array = Any
WAYS = ("mean", "median")
BLOCK_BYTES = 64 << 20  # of columns that are sorted at a time
BITS = 62  # of the whole numbers that stand for weights: their sum fits into int64


@worded_errors()
def fill_missing(
    train: ShardedDataset, *others: ShardedDataset | None, comm: Any, by: str = "mean", indicator: bool = False
) -> tuple[Any, ...]:
    """``train`` and ``others`` with missing values replaced by the mean or median of ``train``; collective.

    A feature that is missing in all rows of ``train`` is 0 in all rows of all sets, which a note says.

    Nothing is copied: values are filled in when rows are gathered, after `Dataset.scale` and before
    `Dataset.standard`.  Every feature gets a value, also one that is nowhere missing in ``train``.

    Args:
        train: the rows that the numbers are taken from, each by its weight.
        others: further sets of the same features, such as test rows; None stays None.
        comm: the ranks, a `comm.Communicator`.
        by: ``mean`` or ``median`` (that of an even number of rows: the middle between the two in the middle).
        indicator: whether each feature that is missing in some row of ``train`` gets another one, behind all others,
            that is 1 where it is missing and else 0.

    Raises:
        ConfigError: there is no such way.
        DataError: rows are sparse, so that what they do not hold is 0; all features are missing in all rows of
            ``train`` (that weigh anything); on all ranks.
    """
    if by not in WAYS:
        raise ConfigError(f"missing values can be filled by {' or '.join(WAYS)}, not {by!r}")
    if train.dataset.is_sparse and train.encoding is not None and not indicator:
        return fill_numbers((train, *others), fill_missing, comm, by)
    if train.dataset.is_sparse:
        raise DataError(f"{train.name}: no values of sparse rows are filled; {DENSE_ADVICE}")
    train.check_weight()
    known, lost, means = _means(train, comm)
    empty = np.flatnonzero(known == 0)
    if empty.size:
        names = ", ".join(_name(train, column) for column in empty[:10].tolist()) + ", ..." * (empty.size > 10)
        told = f"{train.name}: {names} missing in all training rows that weigh anything"
        if empty.size == known.size:
            raise DataError(f"{told}; leave such columns out by --drop")
        train = replace(train, notes=(*train.notes, f"{told}: taken as 0 in all rows; --drop leaves columns out"))
    values = means if by == "mean" else _medians(train, comm)
    values[empty] = 0.0
    wild = np.flatnonzero(~np.isfinite(values)).tolist()
    if wild:
        raise DataError(f"{train.name}: values of {_name(train, wild[0])} are too large for a {by}; scale them down")
    values[empty] = np.nan
    fill = Fill(values, np.flatnonzero(lost) if indicator else np.empty(0, np.int64))
    return tuple(shard and apply_fill(shard, fill) for shard in (train, *others))


def apply_fill(shard: ShardedDataset, fill: Fill) -> ShardedDataset:
    """``shard`` with missing values replaced by ``fill``.

    Raises:
        DataError: they are those of rows with another number of columns.
    """
    if shard.dataset.x.shape[1] != fill.values.size:
        raise DataError(
            f"{shard.name}: rows have {shard.dataset.x.shape[1]} features, but the model takes {fill.values.size}"
        )
    dataset = replace(shard.dataset, fill=fill, standard=None)
    names = shard.feature_names
    if names is not None:
        names = (*names[: dataset.x.shape[1]], *(f"{names[column]}.missing" for column in fill.indicators))
    labels = replace(shard.labels, features=dataset.features)
    return replace(shard, dataset=dataset, labels=labels, feature_names=names)


def _name(shard: ShardedDataset, column: int) -> str:
    """A feature in words."""
    names = shard.feature_names
    return f"feature {column} (counted from 0)" if names is None else f"column {names[column]}"


def _means(shard: ShardedDataset, comm: Any) -> tuple[Array, Array, Array]:
    """Of each column: summed weight of its values, how many are missing, and their weighted mean; float64, replicated.

    Sums are kept in two float64 (Knuth's TwoSum, TAOCP 4.2.2), on each rank and over the ranks: rounded once, they
    are the same in whatever order their terms come, but where an exact sum lies within 2⁻¹⁰⁰ of a tie.
    """
    from .kernels import known_sums

    columns = shard.dataset.x.shape[1]
    sums = np.zeros((5, columns))  # of weight and weight · value, each with its rest; and rows that lack it
    ones = np.empty(0)
    for batch in _plain(shard, comm).sequential():
        known_sums(batch.x, ones if batch.weight is None else batch.weight, sums)
    parts = np.array(comm.allgather_object(sums))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        weight, total = _rounded(parts[:, 0:2]), _rounded(parts[:, 2:4])
        return weight, parts[:, 4].sum(axis=0), total / weight


def _rounded(parts: Array) -> Array:
    """The sum over the first two axes of ``parts``, shape (ranks, 2, columns), rounded once where it is finite."""
    if not np.isfinite(parts).all():
        return parts.sum(axis=(0, 1))
    return np.array([math.fsum(column) for column in parts.reshape(-1, parts.shape[2]).T.tolist()])


def _plain(shard: ShardedDataset, comm: Any) -> Loader:
    """The rows of ``shard`` as they are, in float64."""
    plain = replace(shard, dataset=replace(shard.dataset, standard=None, fill=None))
    options: dict[str, Any] = dict(rank=comm.rank, ranks=comm.size, global_batch_size=1, seed=0, dtype=np.float64)
    return Loader(plain, **options, target_dtype=shard.dataset.y.dtype)


def _medians(shard: ShardedDataset, comm: Any) -> Array:
    """The weighted median of each column's values, shape (columns,), float64, replicated; exact.

    It lies between the least value up to which half of the weight lies, and the least with more than half.  Both are
    found bit by bit: each rank has sorted its own values, and all count what lies below.
    """
    dataset = shard.dataset
    columns, rows = dataset.x.shape[1], shard.own_rows()
    weight = None if dataset.weight is None else _whole_weights(dataset.weight[rows], comm)
    count = max(comm.allgather_object(shard.counts[comm.rank]))
    block = max(1, min(columns, BLOCK_BYTES // (8 * max(1, count))))
    medians = np.empty(columns)
    for start in range(0, columns, block):
        part = dataset.x[rows, start : start + block].astype(np.float64) * dataset.scale
        medians[start : start + block] = _block_medians(part, weight, comm)
    return medians


def _whole_weights(weight: Array, comm: Any) -> Array:
    """Weights as whole numbers in proportion, whose sums are exact in any order; int64, shape (rows,).

    Rounded to 2⁻⁶⁰ of the weight of all rows; rows of whole numbers, and of such parts as halves, are not.
    """
    total = math.fsum(comm.allgather_object(math.fsum(weight.tolist())))
    bits = BITS - math.frexp(total)[1]
    exact = max(comm.allgather_object(_bits_behind(weight)))
    return np.rint(np.ldexp(weight, min(bits, exact))).astype(np.int64)


def _bits_behind(weight: Array) -> int:
    """Binary digits behind the point that write all of ``weight`` exactly, at most 1074."""
    for bits in (0, 1, 4, 16, 64, 256, 1074):
        scaled = np.ldexp(weight, bits)
        if (scaled == np.rint(scaled)).all():
            return bits
    return 1074


def _block_medians(values: Array, weight: Array | None, comm: Any) -> Array:
    """The medians of the columns of ``values``, float64, shape (rows of this rank, columns), NaN where missing."""
    columns = values.shape[1]
    ordered, below = [], []  # of each column: its values in ascending order, and the weight of the first k of them
    for column in values.T:
        known = np.flatnonzero(~np.isnan(column))
        order = known[np.argsort(column[known], kind="stable")]
        ordered.append(_ascending_bits(column[order]))
        weights = np.ones(order.size, np.int64) if weight is None else weight[order]
        below.append(np.concatenate(([0], np.cumsum(weights))))
    total = _summed(np.array([sums[-1] for sums in below]), comm)
    ends = []
    for wanted in ((total + 1) // 2, total // 2 + 1):  # half of the weight, and more than half
        low, high = np.zeros(columns, np.uint64), np.full(columns, np.iinfo(np.uint64).max)
        for _ in range(64):
            middle = low + (high - low) // np.uint64(2)
            reached = [
                sums[np.searchsorted(bits, limit, side="right")]
                for bits, sums, limit in zip(ordered, below, middle, strict=True)
            ]
            enough = _summed(np.array(reached), comm) >= wanted
            high = np.where(enough, middle, high)
            low = np.where(enough, low, np.minimum(middle, high - np.uint64(1)) + np.uint64(1))
        ends.append(_from_bits(low))
    return np.where(ends[0] == ends[1], ends[0], ends[0] / 2 + ends[1] / 2)


def _summed(counts: Array, comm: Any) -> Array:
    """The ranks' int64 ``counts`` added up, exactly."""
    return np.sum(comm.allgather_object(counts), axis=0, dtype=np.int64)


def _ascending_bits(values: Array) -> Array:
    """Whole numbers, uint64, in the order of the float64 ``values``, which are no NaN; -0 counts as 0."""
    bits = (values + 0.0).view(np.int64)
    return np.where(bits < 0, ~bits, bits | np.int64(-(1 << 63))).view(np.uint64)


def _from_bits(bits: Array) -> Array:
    """The float64 that `_ascending_bits` made into ``bits``."""
    signed = bits.view(np.int64)
    return np.where(signed < 0, signed & np.int64((1 << 63) - 1), ~signed).view(np.float64)
