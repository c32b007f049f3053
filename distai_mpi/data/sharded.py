"""A rank's shard of a data set, and what is known of the whole set."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, Literal

import numpy as np

from ..errors import DataError
from .checks import first_not_finite
from .dataset import Dataset
from .encoding import Encoding
from .labels import Label, LabelSummary, merge, summarize
from .partition import Partition
from .permutation import Permutation
from .sparse_exchange import exchange_rows
from .sparse_rows import SparseRows, empty_rows
from .wording import for_caller

Array = Any

Shuffle = Literal["global", "local"]
Transfer = Literal["read", "scatter", "node", "copy"]
ROW_ENTRIES = 4  # entries that take a pass as long as a row without any: 23 ns a row, 5.6 an entry


@dataclass(frozen=True)
class ShardedDataset:
    """One rank's shard of a training, validation or test set.

    The set is a range of the file's rows: those at positions ``first`` to ``first + rows - 1``
    of ``order``, which is the order of the file itself where ``order`` is None.

    Attributes:
        dataset: under the global shuffle the file's rows, all of them (also those outside the set) and in the file's
            order unless they are ``ordered``; under the local shuffle this rank's rows alone.
        counts: rows of each rank; under the global shuffle those that it evaluates.
        rank: the rank that holds this.
        shuffle: whether rows go to any rank in each epoch, or stay with theirs.
        labels: summary of the labels of the file's rows (`LabelSummary.rows` counts those of the set); replicated.
        order: the order of the file's rows that was drawn once, for a split or for shards.
        first: position in ``order`` of the set's first row.
        ordered: whether rows lie as ``order`` has them, as they always do under the local shuffle.
        transfer: how the rows came to this rank: ``read`` (mapped or read from the file), ``scatter`` (sent
            by rank 0), ``node`` (held once per node), ``copy`` (a copy on every rank).
        name: what the user calls the data, for messages.
        summed_weight: see `total_weight`; None where rows have no weights.
        partition: how rows are sharded: of the set and, under the global shuffle, of every global batch.
            None: evenly, or, under the local shuffle, as ``counts`` says.
        base: number that libsvm text gave the first feature, 0 or 1; None: the rows come from elsewhere.
        column_names: names of the columns that the features were read from, in this order; None where there are none.
        feature_names: names of the features, with those of indicators; None likewise.
        label_name: name of the column of the labels, likewise.
        date_orders: of columns of dates as 1/2/2020 the name, or number, and whether the day comes first.
        row_names: columns that are left out because their words name the rows.
        classes: the labels that the codes 0, 1, ... in the data stand for; None: labels stand for themselves.
        class_weights: of the codes 0, 1, ..., with which the rows' weights were multiplied; None: with nothing.
        encoded: of the columns that were encoded the name, or number, and the kind; see `readers.encoded`.
        encoding: what they have become; None: there are none.
        notes: for the user, on the data, one sentence each; replicated.
    """

    dataset: Dataset
    counts: tuple[int, ...]
    rank: int
    shuffle: Shuffle
    labels: LabelSummary
    order: Permutation | None = None
    first: int = 0
    transfer: Transfer = "copy"
    name: str = "data"
    summed_weight: float | None = None
    partition: Partition | None = None
    base: int | None = None
    column_names: tuple[str, ...] | None = None
    feature_names: tuple[str, ...] | None = None
    label_name: str | None = None
    date_orders: tuple[tuple[str, bool], ...] = ()
    row_names: tuple[str, ...] = ()
    classes: tuple[Label, ...] | None = None
    class_weights: tuple[float, ...] | None = None
    encoded: tuple[tuple[str, str], ...] = ()
    encoding: Encoding | None = None
    notes: tuple[str, ...] = ()
    ordered: bool = False

    def __post_init__(self) -> None:
        if (self.dataset.weight is None) != (self.summed_weight is None):
            raise ValueError("a shard of weighted rows, and no other, needs their summed weight")
        object.__setattr__(self, "notes", tuple(map(for_caller, self.notes)))

    def check_weight(self) -> None:
        """Raise `DataError` if all rows weigh 0, so that there is nothing to learn from; the same on every rank."""
        if self.summed_weight == 0 and self.rows:
            raise DataError(f"{self.name}: the weights of all training rows are 0; give some rows a weight")

    @property
    def total_weight(self) -> float:
        """Summed weight of the set's rows on all ranks (their number where they have no weights); replicated."""
        return float(self.rows) if self.summed_weight is None else self.summed_weight

    @property
    def rows(self) -> int:
        """Rows of the set on all ranks together."""
        return sum(self.counts)

    @property
    def features(self) -> int:
        """Features of a row."""
        return self.dataset.features

    def cuts(self, partition: Partition) -> tuple[int, ...]:
        """Ends of the ranges of rows, with a 0 in front, of ranks that go through all rows once; the global shuffle."""
        return cuts_of(self.dataset, self.order, self.first, self.rows, partition)

    def own_rows(self) -> slice | Array:
        """Which rows of ``dataset`` are those of the set that this rank goes through when all do so once."""
        if self.shuffle == "local":
            return slice(0, self.counts[self.rank])
        cuts = self.cuts(self.partition or Partition.even(len(self.counts)))
        start, stop = (self.first + end for end in cuts[self.rank : self.rank + 2])
        return slice(start, stop) if self.in_order else self.order.positions(start, stop)  # type: ignore[union-attr]

    @property
    def in_order(self) -> bool:
        """Whether positions in ``order`` are those in ``dataset``; under the local shuffle, of this rank's rows."""
        return self.shuffle == "local" or self.order is None or self.ordered

    def called(self, features: Sequence[int], most: int = 10) -> str:
        """These features, numbers from 0, in words: by their names where they have any; the first ``most`` of them."""
        names = self.feature_names
        known = [str(feature) if names is None else names[feature] for feature in features[:most]]
        known += ["..."] * (len(features) > most)
        return f"features {', '.join(known)}{' (counted from 0)' if names is None else ''}"

    @property
    def starts(self) -> tuple[int, ...]:
        """Position in the set of each rank's first row."""
        return (0, *accumulate(self.counts))[:-1]


def cuts_of(
    dataset: Dataset, order: Permutation | None, first: int, rows: int, partition: Partition
) -> tuple[int, ...]:
    """Ends, with a 0 in front, of the ranges of ``rows`` from position ``first`` of ``order`` that ranks go through.

    In proportion to the weights of the ``partition`` ranks get rows; of sparse rows in the file's own order entries, as
    which a row's own work counts too (`ROW_ENTRIES`), so that who has the long rows keeps nobody waiting.  In random
    order ranges of equally many rows have about as many entries.
    """
    if not dataset.is_sparse or order is not None or partition.ranks == 1:
        return (0, *accumulate(partition.counts(rows)))
    starts = dataset.x.starts[first : first + rows + 1]

    def work(row: int) -> float:
        """Of the rows before ``row``."""
        return float(starts[row] - starts[0]) + ROW_ENTRIES * row

    total, shares = sum(partition.weights), accumulate(partition.weights)
    ends = [bisect.bisect_left(range(rows), work(rows) * share / total, key=work) for share in shares]
    last = max(rank for rank, weight in enumerate(partition.weights) if weight)
    return (0, *(rows if rank >= last else end for rank, end in enumerate(ends)))


def whole(
    dataset: Dataset, rank: int = 0, ranks: int = 1, name: str = "data", partition: Partition | None = None
) -> ShardedDataset:
    """The set of a ``dataset`` that is replicated on every rank, under the global shuffle; no collective."""
    cuts = cuts_of(dataset, None, 0, dataset.rows, partition or Partition.even(ranks))
    counts = tuple(stop - start for start, stop in pairwise(cuts))
    labels = summarize(dataset.y, dataset.features)
    weight = None if dataset.weight is None else dataset.weight_sum
    words = dataset.label_names
    return ShardedDataset(
        dataset,
        counts,
        rank,
        "global",
        replace(labels, words=words is not None),
        name=name,
        summed_weight=weight,
        partition=partition,
        classes=words,
    )


def from_local(dataset: Dataset, comm: Any, name: str = "data", *, keeps_missing: bool = False) -> ShardedDataset:
    """The set whose shards the ranks already hold, this rank's as ``dataset``, under the local shuffle; collective.

    ``comm`` is a `comm.Communicator`.  Ranks may hold different numbers of rows, and none.  With ``keeps_missing``
    features may be NaN, which stands for a value that is missing: see `fill_missing`.

    Raises:
        DataError: ranks hold rows of different widths, with and without weights, of no weight at all, labels that are
            words and others that are numbers, or a value is not finite; on all ranks.
    """
    with comm.agreed():
        for label, values in (("x", dataset.x), ("y", dataset.y.reshape(-1, 1))):
            bad = first_not_finite(values, keeps_missing and label == "x")
            if bad is not None:
                raise DataError(f"{name}: {label} holds {bad[2]} in row {bad[0]}, column {bad[1]} (counted from 0)")
    dataset = _held_alike(_same_words(dataset, comm, name), comm, name)
    parts = comm.allgather_object(summarize(dataset.y, dataset.features))
    widths = sorted({part.features for part in parts})
    if len(widths) > 1:
        raise DataError(f"{name}: ranks hold rows of {widths[0]} and of {widths[-1]} features; give all the same")
    counts = tuple(part.rows for part in parts)
    weighted = comm.allgather_object(dataset.weight is not None)
    if any(weighted) and not all(has or not count for has, count in zip(weighted, counts, strict=True)):
        raise DataError(f"{name}: some ranks give their rows weights, and others do not; give all rows one")
    if any(weighted) and dataset.weight is None:
        dataset = replace(dataset, weight=np.empty(0))
    weight = sum_over_ranks(dataset.weight, comm)
    words = dataset.label_names
    labels = replace(merge(parts), words=words is not None)
    return ShardedDataset(dataset, counts, comm.rank, "local", labels, name=name, summed_weight=weight, classes=words)


def _held_alike(dataset: Dataset, comm: Any, name: str) -> Dataset:
    """``dataset``, whose rows all ranks hold sparse, in the same types, or none does; collective.

    A rank without rows follows the others.
    """
    x = dataset.x
    facts = comm.allgather_object((dataset.rows, dataset.is_sparse, x.dtype))
    kinds = {sparse for rows, sparse, _ in facts if rows}
    if len(kinds) > 1:
        raise DataError(f"{name}: some ranks hold sparse rows, and others dense ones; give all the same")
    if kinds != {True}:
        return replace(dataset, x=np.empty(x.shape)) if dataset.is_sparse else dataset
    dtype = np.result_type(*(dtype for rows, _, dtype in facts if rows))
    return replace(dataset, x=x.astype(dtype, copy=False) if dataset.rows else empty_rows(0, x.shape[1], dtype))


def _same_words(dataset: Dataset, comm: Any, name: str) -> Dataset:
    """``dataset`` whose labels, where they are words, are codes of the words of all ranks; collective."""
    facts = comm.allgather_object((dataset.rows, dataset.label_names))
    kinds = {names is None for rows, names in facts if rows}
    if kinds <= {True}:
        return replace(dataset, label_names=None)
    if len(kinds) > 1:
        raise DataError(f"{name}: the labels of some ranks are words, and those of others numbers; give all the same")
    words = tuple(sorted(set().union(*(names or () for _, names in facts))))
    code_of = {word: code for code, word in enumerate(words)}
    table = np.array([code_of[word] for word in dataset.label_names or ()], np.int64)
    y = table[dataset.y] if dataset.rows else np.empty(0, np.int64)
    return replace(dataset, y=y, label_names=words)


def sum_over_ranks(weight: Array | None, comm: Any) -> float | None:
    """The ranks' ``weight`` of rows, local, summed; None where they have none; collective, the same on every rank."""
    return None if weight is None else math.fsum(comm.allgather_object(float(np.sum(weight))))


def repartition(shard: ShardedDataset, partition: Partition, comm: Any) -> ShardedDataset:
    """The same set sharded by ``partition``; collective.

    Under the global shuffle nothing is sent.  Under the local shuffle rows move to other ranks, which hold the old
    and the new shard at once while they do.  The set's rows keep their order.

    Raises:
        ConfigError: the partition has not one weight for each rank of ``comm``; on all ranks.
        DataError: rows would move between ranks that scale theirs differently; on all ranks.
    """
    partition.check_ranks(comm.size)
    counts = partition.counts(shard.rows)
    if shard.shuffle == "global":
        counts = tuple(stop - start for start, stop in pairwise(shard.cuts(partition)))
    if shard.shuffle == "local" and counts != shard.counts:
        starts = (0, *accumulate(counts))[:-1]
        dataset = _alike(shard, comm)
        dataset = _moved(dataset, shard.starts, shard.counts, starts, counts, comm)
        shard = replace(shard, dataset=dataset)
    return replace(shard, counts=counts, partition=partition)


def _alike(shard: ShardedDataset, comm: Any) -> Dataset:
    """This rank's rows in the types that hold all ranks' rows; one without rows takes over the others' scale."""
    dataset = shard.dataset
    facts = comm.allgather_object((dataset.x.dtype, dataset.y.dtype, dataset.scale) if dataset.rows else None)
    x_types, y_types, scales = zip(*(fact for fact in facts if fact is not None), strict=True)
    if len(set(scales)) > 1:
        raise DataError(f"{shard.name}: ranks scale their features by {sorted(set(scales))}; give all the same scale")
    x, y = (
        dataset.x.astype(np.result_type(*x_types), copy=False),
        dataset.y.astype(np.result_type(*y_types), copy=False),
    )
    return replace(dataset, x=x, y=y, scale=scales[0])


def _moved(
    dataset: Dataset,
    old_starts: Sequence[int],
    old_counts: Sequence[int],
    new_starts: Sequence[int],
    new_counts: Sequence[int],
    comm: Any,
) -> Dataset:
    """The rows of this rank's new range, each sent by the rank that held it."""
    old = (old_starts[comm.rank], old_counts[comm.rank])
    new = (new_starts[comm.rank], new_counts[comm.rank])
    sent = [_overlap(*old, start, count) for start, count in zip(new_starts, new_counts, strict=True)]
    taken = [_overlap(*new, start, count) for start, count in zip(old_starts, old_counts, strict=True)]

    def move(values: Array) -> Array:
        width = math.prod(values.shape[1:])
        with comm.agreed():
            arrived = np.empty((new[1], *values.shape[1:]), values.dtype)
        send_counts, counts = [rows * width for rows in sent], [rows * width for rows in taken]
        comm.alltoallv(values.reshape(-1), send_counts, arrived.reshape(-1), counts)
        return arrived

    weight = None if dataset.weight is None else move(dataset.weight)
    x = dataset.x
    if isinstance(x, SparseRows):
        plain = not any(comm.allgather_object(x.values.size > 0))
        x = exchange_rows(x, sent, taken, plain, comm)
    else:
        x = move(x)
    return replace(dataset, x=x, y=move(dataset.y), weight=weight)


def _overlap(start: int, count: int, other_start: int, other_count: int) -> int:
    """Rows that two ranges have in common."""
    return max(0, min(start + count, other_start + other_count) - max(start, other_start))
