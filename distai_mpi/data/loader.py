"""Batches for one rank, step by step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from ..backend import HOST, Device
from ..errors import ConfigError
from .batch import Batch, StepRows
from .dataset import Dataset
from .out_of_core.stored_rows import Pass, StoredRows
from .partition import Partition, even_range
from .permutation import Permutation
from .sharded import ShardedDataset
from .sparse_rows import join
from .streams import stream_key
from .upload import Upload

Array = Any
Order = Permutation | Pass  # of an epoch's rows

BLOCK_BYTES = 4 << 20  # features of a block: large enough for BLAS, small enough for the last-level cache
BLOCK_ROWS = 128  # at least
SPARSE_ROWS = 1 << 15  # of a block of sparse rows: the same on all ranks, whatever their rows hold
MEAN_WEIGHT = 2.0**20  # of rows, up to which, and from whose inverse on, weights are handed out as they are


class Loader:
    """Hands out the rows of a training set, or of a test set, that one rank works on.

    Under the global shuffle an epoch is one order of all rows, keyed by seed and epoch; a
    global batch is a range of it, which the ranks share out by `ShardedDataset.partition`.  Training so
    does not depend on the number of ranks.  Under the local shuffle every rank goes through its
    own rows in an order of its own, in as many steps as all others.  Either way an epoch
    covers every row once, and the last step may be short.

    Rows on disk are gone through block by block: in each epoch the blocks of a rank come in an order of its own, and
    so do the rows of each block.

    Nothing here communicates: what other ranks do follows from the counts.

    Args:
        shard: what this rank holds.
        rank, ranks: this rank and how many there are.
        global_batch_size: rows of a step on all ranks together.
        seed: names the orders.
        dtype: type of the features handed out, and of real targets.
        target_dtype: type of the labels or targets handed out; int64 for classes.
        block_rows: most rows of one Batch; a longer range comes as several of equal length.
        device: where Batches are handed out; the data stays on the host.
        sparse: whether rows that are held sparse may be handed out so; else they are handed out densely.

    Attributes:
        sparse: whether they are.
        stored: the rows, where they are on disk; else None.
        total_weight: summed weight of the set's rows on all ranks, as they are handed out; see `unit_of_weight`.
    """

    def __init__(
        self,
        shard: ShardedDataset,
        *,
        rank: int,
        ranks: int,
        global_batch_size: int,
        seed: int,
        dtype: Any,
        target_dtype: Any,
        block_rows: int | None = None,
        device: Device = HOST,
        sparse: bool = False,
    ) -> None:
        if global_batch_size < 1:
            raise ConfigError(f"a global batch needs at least 1 row, not {global_batch_size}")
        if shard.shuffle == "local" and (rank, ranks) != (shard.rank, len(shard.counts)):
            raise ValueError(f"rank {rank} of {ranks} cannot use rows of rank {shard.rank} of {len(shard.counts)}")
        self.shard, self.rank, self.ranks, self.seed = shard, rank, ranks, seed
        self.dtype, self.target_dtype = np.dtype(dtype), np.dtype(target_dtype)
        self.global_batch_size, self.device = global_batch_size, device
        self._upload = None if device is HOST else Upload(device)
        data = shard.dataset
        self.sparse = sparse and data.stays_sparse and device is HOST
        row_bytes = max(1, shard.features * self.dtype.itemsize)
        self.stored: StoredRows | None = data.x if isinstance(data.x, StoredRows) else None
        self.block_rows = block_rows or (SPARSE_ROWS if self.sparse else max(BLOCK_ROWS, BLOCK_BYTES // row_bytes))
        if self.stored is not None:
            self.block_rows = self.stored.most_rows if self.sparse else min(self.block_rows, self.stored.most_rows)
        self._local = shard.shuffle == "local"
        self._held: tuple[int, Array, Array] | None = None  # first position, x and y of the rows of `sequential`
        self.move(shard)
        self._reserve(min(self.block_rows, shard.rows))

    def _deal(self, shard: ShardedDataset) -> None:
        """Look up which rows each rank takes, as ``shard`` says."""
        self.shard = shard
        self._partition = shard.partition or Partition.even(self.ranks)
        self._partition.check_ranks(self.ranks)
        self._cuts = () if self._local else shard.cuts(self._partition)
        self._lengths, self._alike = np.unique(shard.counts, return_counts=True)
        self._of_full = (0, 0) if self._local else self.range_of(self.rank)  # looked up once, not every step

    def repartition(self, partition: Partition) -> None:
        """Let ranks take rows by ``partition`` from the next step on; every rank does so between the same two steps.

        Of the global shuffle, where any rank can take any row: the batches stay what they are.
        """
        if self._local or self._held is not None:
            raise ValueError("rows that belong to ranks, or are held for many passes, stay where they are")
        partition.check_ranks(self.ranks)
        cuts = self.shard.cuts(partition)
        counts = tuple(stop - start for start, stop in pairwise(cuts))
        self._deal(replace(self.shard, counts=counts, partition=partition))

    def move(self, shard: ShardedDataset) -> None:
        """Hand out ``shard`` from the next epoch on: the same set, of which rows may have come from other ranks."""
        data, unit = shard.dataset, unit_of_weight(shard)
        self._choose_kernels(data)
        self._choose_types(data)
        self._window: tuple[Any, int] = data.x, 0  # rows in memory, and the number of the first of them
        self.total_weight = shard.total_weight / unit
        self._all_weights: Any = data.weight if data.weight is None or unit == 1 else data.weight / unit
        self._start = shard.starts[self.rank] if self._local else 0
        self._first = shard.first if shard.ordered and not self._local else 0  # row of the data of the first position
        self._deal(shard)

    def _choose_kernels(self, data: Dataset) -> None:
        """What copies the features of rows into the buffer, and what it takes besides them."""
        from .kernels import gather, gather_filled, gather_standardized

        self._copy_rows: Any = gather
        self._conversion: tuple[Any, ...] = (self.dtype.type(data.scale),)
        if data.standard is not None:
            self._copy_rows = gather_standardized
            self._conversion = (float(data.scale), data.standard.mean, 1.0 / data.standard.deviation)
        if data.fill is not None:
            self._copy_rows = gather_filled
            standard = (np.zeros(data.features), np.ones(data.features))
            if data.standard is not None:
                standard = (data.standard.mean, 1.0 / data.standard.deviation)
            self._conversion = (float(data.scale), data.fill.values, data.fill.indicators, *standard)

    def _choose_types(self, data: Dataset) -> None:
        """Whether features and labels can be handed out as views of ``data``."""
        self._x_as_is = (
            data.scale == 1
            and data.standard is None
            and data.fill is None
            and data.x.dtype == self.dtype
            and (self.sparse or (not data.is_sparse and (self.stored is not None or data.x.flags.aligned)))
        )
        self._y_as_is = data.y.dtype == self.target_dtype and data.y.flags.aligned

    def _reserve(self, rows: int) -> None:
        """Allocate buffers for batches of up to ``rows`` rows, once."""
        self._capacity = rows
        self._counting = np.arange(rows)
        self._rows, self._ids = np.empty(rows, np.int64), np.empty(rows, np.int64)
        empty = self.device.host_empty
        self._x: Any = None if self.sparse else empty((rows, self.shard.features), self.dtype)
        self._y = empty(rows, self.target_dtype)
        self._weight = None if self.shard.dataset.weight is None else empty(rows, self.dtype)

    @property
    def steps(self) -> int:
        """Steps of an epoch, the same on every rank.

        Under the local shuffle no more than the largest shard has rows: no step is then without any.
        """
        return steps_per_epoch(self.shard, self.global_batch_size)

    def rows_of_step(self, rank: int) -> int:
        """Most rows that ``rank`` takes in a step."""
        if self._local:
            return -(-self.shard.counts[rank] // self.steps) if self.steps else 0
        low, high = self.range_of(rank)
        return high - low

    def range_of(self, rank: int) -> tuple[int, int]:
        """First row, and the one after the last, that ``rank`` takes of a global batch (not of the local shuffle)."""
        if self.global_batch_size >= self.shard.rows:
            return self._own(rank)
        return self._partition.range_of(self.global_batch_size, rank)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[tuple[int, Iterable[Batch]]]:
        """Yield for every step from ``first_step`` on its rows on all ranks, and this rank's Batches (maybe none).

        A Batch holds until the next one is asked for.
        """
        key, steps = stream_key(self.seed, "epoch", epoch), self.steps
        order = self._shuffle(epoch) if steps > 1 else None  # one step takes all rows, in any order
        total, size = self.shard.rows, self.global_batch_size
        for step in range(first_step, steps):
            if self._local:
                of_each = self._lengths * (step + 1) // steps - self._lengths * step // steps
                rows = int(of_each @ self._alike)
                start, stop = even_range(self.shard.counts[self.rank], steps, step)
            else:
                first = step * size
                rows = min(size, total - first)
                low, high = self._of_full if rows == size or steps == 1 else self._partition.range_of(rows, self.rank)
                start, stop = first + low, first + high
            yield rows, self._blocks(start, stop, order, True, key)

    def runs(self, epoch: int, most: int, first_step: int = 0) -> Iterator[StepRows]:
        """Yield this rank's rows of the steps from ``first_step`` on, of up to ``most`` steps at a time.

        For ranks that take many small steps in one call.  A short last step is left out.
        """
        size, full = self.global_batch_size, self.shard.rows // self.global_batch_size
        low, high = (0, 0) if self._local else self.range_of(self.rank)
        key, order = stream_key(self.seed, "epoch", epoch), self._shuffle(epoch) if self.steps > 1 else None
        own = self.shard.counts[self.rank] if self._local else 0
        if self._local:
            full = self.steps
        for step in range(first_step, full, most):
            steps = np.arange(step, min(most + step, full) + 1)
            if self._local:
                cuts = own * steps // full
                start, positions, ends = int(cuts[0]), np.arange(cuts[-1] - cuts[0]), cuts - cuts[0]
                rows = np.diff(self._lengths * steps[:, None] // full, axis=0) @ self._alike
            else:
                start, ends = step * size, (steps - step) * (high - low)
                positions = ((steps[:-1, None] - step) * size + np.arange(low, high)).reshape(-1)
                rows = np.full(len(steps) - 1, size)
            if positions.size > self._capacity:
                self._reserve(positions.size)
            found, ids = self._rows_at(start, positions, order)
            x, y = self._gather(found)
            first = self._start + start
            yield StepRows(self.to_device(Batch(x, y, self._weights(found), ids, first, True, key)), ends, rows)

    def sequential(self, *, train: bool = False, epoch: int = 0) -> Iterator[Batch]:
        """Yield this rank's rows, unshuffled: for evaluation, and for full-batch methods.

        Batches are views of the data where these have the right type and need no scale.
        """
        start, stop = self._own(self.rank)
        return self._blocks(start, stop, None, train, stream_key(self.seed, "epoch", epoch))

    def hold(self, most_bytes: int) -> None:
        """Keep the rows of `sequential` as they are handed out, where they take no more than ``most_bytes``.

        For those who go through them many times: rows that have to be converted or reordered are so once.  Rows on
        disk stay there.
        """
        if self.stored is not None:
            return
        start, stop = self._own(self.rank)
        rows, data = stop - start, self.shard.dataset
        as_is = self._x_as_is and self.shard.in_order
        row_bytes = data.x.row_bytes if self.sparse else self.shard.features * self.dtype.itemsize
        if (as_is and self._y_as_is) or self._upload is not None or (not as_is and rows * row_bytes > most_bytes):
            return
        y = np.empty(rows, self.target_dtype)
        if as_is:  # features stay where they are
            own = slice(self._first + start, self._first + stop)
            _convert(data.y, own, y)
            self._held = start, data.x[own], y
            return
        x: Any = None if self.sparse else np.empty((rows, self.shard.features), self.dtype)
        parts = []
        for batch in self.sequential():
            first = batch.position - self._start - start
            y[first : first + len(batch.y)] = batch.y
            if self.sparse:
                parts.append(batch.x)
            else:
                x[first : first + len(batch.y)] = batch.x
        self._held = start, join(parts, self.shard.features, self.dtype) if self.sparse else x, y

    def release(self) -> None:
        """Let go of the rows that `hold` has kept."""
        self._held = None

    def rows_of(self, rank: int) -> int:
        """Rows that `sequential` yields on ``rank``."""
        start, stop = self._own(rank)
        return stop - start

    def sample(self, count: int) -> Batch:
        """``count`` of the rows of `sequential`, one at random of each of so many ranges; the same every time.

        Holds as long as its arrays: they are its own.
        """
        if count > self._capacity:
            self._reserve(count)
        start, stop = self._own(self.rank)
        rng = np.random.default_rng(stream_key(self.seed, "sample", self.rank))
        positions = ((np.arange(count) + rng.random(count)) * ((stop - start) / max(1, count))).astype(np.int64)
        rows, _ = self._rows_at(start, positions, None)
        y = self.shard.dataset.y[rows].astype(self.target_dtype)
        held = rows
        if self.stored is not None:
            self._window, held = (self.stored.gathered(rows), 0), np.arange(count)
        x = self._features(held, None if self.sparse else np.empty((count, self.shard.features), self.dtype))
        weight = None if self._all_weights is None else self._all_weights[rows].astype(self.dtype)
        return Batch(x, y, weight, rows.copy(), 0, False)

    def _own(self, rank: int) -> tuple[int, int]:
        """First position, and the one after the last, of the rows of ``rank`` where all ranks take all rows at once."""
        if self._local:
            return 0, self.shard.counts[rank]
        return self._cuts[rank], self._cuts[rank + 1]

    def _shuffle(self, epoch: int) -> Order:
        """The order of this epoch: of all rows, or under the local shuffle of this rank's."""
        if self.stored is not None:
            return self.stored.shuffled(self.seed, "shuffle", epoch, self.rank)
        if self._local:
            return Permutation(self.shard.counts[self.rank], self.seed, "shuffle", epoch, self.rank)
        return Permutation(self.shard.rows, self.seed, "shuffle", epoch)

    def _blocks(self, start: int, stop: int, order: Order | None, train: bool, key: int) -> Iterator[Batch]:
        """Batches of positions ``start`` to ``stop - 1`` of the epoch's order.

        Of a pass in the rows' own order they end at fixed positions of all rows, whoever has them, so that sums over
        blocks do not depend on the number of ranks; of a shuffled one they are of nearly equal lengths.
        """
        if self.stored is not None:
            yield from self._stored_blocks(self.stored, start, stop, order, train, key)  # type: ignore[arg-type]
            return
        rows, size, first = stop - start, self.block_rows, self._start + start
        if order is None:
            ends = [*range(size - first % size, rows, size), rows][: rows and None]
        else:
            parts = -(-rows // size)
            ends = [even_range(rows, parts, part)[1] for part in range(parts)]
        for low, high in pairwise([0, *ends]):
            yield self._batch(start + low, start + high, order, train, key)

    def _stored_blocks(
        self, rows: StoredRows, start: int, stop: int, order: Pass | None, train: bool, key: int
    ) -> Iterator[Batch]:
        """As `_blocks`, of rows on disk: parts of the blocks that an epoch's ``order``, or one pass, brings."""
        passing = rows.in_order() if order is None else order
        for low, high in pairwise(passing.cuts(start, stop, self.block_rows)):
            self._window = passing.at(low)
            yield self._batch(low, high, order, train, key)

    def _batch(self, start: int, stop: int, order: Order | None, train: bool, key: int) -> Batch:
        """The Batch of positions ``start`` to ``stop - 1``, which must fit the buffers."""
        rows, ids = self._rows_at(start, self._counting[: stop - start], order)
        if self._held is not None and order is None:
            first, held_x, held_y = self._held
            part = slice(start - first, stop - first)
            weights = self._weights(rows)
            return self.to_device(Batch(held_x[part], held_y[part], weights, ids, self._start + start, train, key))
        in_a_row = order is None and self.shard.in_order
        x, y = self._stretch(self._first + start, self._first + stop) if in_a_row else self._gather(rows)
        return self.to_device(Batch(x, y, self._weights(rows), ids, self._start + start, train, key))

    def _rows_at(self, start: int, positions: Array, order: Order | None) -> tuple[Array, Array]:
        """Which rows of the data stand at start + ``positions`` of the epoch's order, and their ids."""
        shard, count = self.shard, positions.size
        rows, ids = self._rows[:count], self._ids[:count]
        if order is None:
            np.add(positions, start, out=rows)
        else:
            order.apply(positions, rows, start)
        if shard.order is None:
            ids = np.add(rows, self._start, out=ids) if self._start else rows
        else:
            shard.order.apply(rows, ids, shard.first + self._start)
        if not self.shard.in_order:
            return ids, ids
        if self._first:  # where ids are others: the set is a part of rows in another order
            np.add(rows, self._first, out=rows)
        return rows, ids

    def to_device(self, batch: Batch) -> Batch:
        """``batch``, which is on the host, where Batches are handed out; holds until the next one is."""
        return batch if self._upload is None else self._upload(batch)

    def _stretch(self, start: int, stop: int) -> tuple[Array, Array]:
        """Rows that lie together: views where nothing has to be converted."""
        data, (x, first) = self.shard.dataset, self._window
        if not self._x_as_is:
            return self._gather(self._rows[: stop - start])
        part = slice(start - first, stop - first)
        if self._y_as_is:
            return x[part], data.y[start:stop]
        y = self._y[: stop - start]
        np.copyto(y, data.y[start:stop], casting="unsafe")
        return x[part], y

    def _gather(self, rows: Array) -> tuple[Array, Array]:
        """Copy rows of the data, scaled and converted, into the buffers."""
        x, y = self._features(rows, None if self.sparse else self._x[: rows.size]), self._y[: rows.size]
        _convert(self.shard.dataset.y, rows, y)
        return x, y

    def _features(self, rows: Array, out: Array) -> Any:
        """Features of rows of the data, scaled and converted: in ``out``, or sparse ones where that is None."""
        data, (x, first) = self.shard.dataset, self._window
        rows = rows - first if first else rows
        if out is None:
            return x.gathered(rows, self.dtype, data.factors)
        if data.is_sparse:
            dense = np.empty((rows.size, x.features), x.dtype)
            x.fill_rows(rows, dense)
            x, rows = dense, np.arange(rows.size)
        self._copy_rows(x, rows, *self._conversion, out)
        return out

    def _weights(self, rows: Array) -> Array | None:
        """Weights of rows of the data, in the buffer; None where all are 1."""
        if self._weight is None:
            return None
        weight = self._weight[: rows.size]
        _convert(self._all_weights, rows, weight)
        return weight


def _convert(values: Array, rows: Array | slice, out: Array) -> None:
    """out ← ``values`` of the rows; those that its dtype cannot hold are told of elsewhere, see `train.checks`."""
    with np.errstate(over="ignore", invalid="ignore"):
        out[:] = values[rows]


def unit_of_weight(shard: ShardedDataset) -> float:
    """What the weights of the rows of ``shard`` are divided by, in float64, before they are handed out; replicated.

    1, unless weights are so small or large on average that float32 might not hold them or their sums: then the mean.
    The objective is a weighted mean, which no common factor changes.
    """
    mean = shard.total_weight / shard.rows if shard.rows else 1.0
    return 1.0 if 1.0 / MEAN_WEIGHT <= mean <= MEAN_WEIGHT or mean == 0 else mean


def steps_per_epoch(shard: ShardedDataset, global_batch_size: int) -> int:
    """Steps in which a `Loader` goes through ``shard``, the same on every rank."""
    steps = -(-shard.rows // global_batch_size)
    return min(steps, max(shard.counts)) if shard.shuffle == "local" else steps
