"""How rows get from files to ranks: mapped, read, scattered, or copied; ``comm`` is a `comm.Communicator`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .array_file import ArrayFile
from .dataset import Dataset
from .parsed import Parsed
from .partition import Partition
from .sharding_plan import ShardingPlan
from .sources import Source
from .sparse_rows import SparseRows, index_dtype
from .spread import join, spread, spread_sparse

Array = Any


def rows_per_chunk(array: ArrayFile, chunk_bytes: int) -> int:
    """Rows that take about ``chunk_bytes``, at least one."""
    return max(1, chunk_bytes // (array.width * array.dtype.itemsize))


def _dataset(source: Source | Parsed, x: Any, y: Array, weight: Array | None = None) -> Dataset:
    return Dataset(x, y.reshape(-1), None if weight is None else weight.reshape(-1), source.scale)


def map_whole(source: Source) -> Dataset:
    """All rows, mapped from the files; no collective."""
    return _dataset(source, *(array.map() for array in source.arrays))


def read_own(source: Source, plan: ShardingPlan, rank: int, chunk_bytes: int) -> Dataset:
    """The rows that ``rank`` keeps, read by itself; no collective."""
    rows = plan.rows_of(rank)
    parts = []
    for array in source.arrays:
        parts.append(np.empty((rows.size, array.width), array.dtype))
        array.take(rows, parts[-1], rows_per_chunk(array, chunk_bytes))
    return _dataset(source, *parts)


def from_root(source: Source, plan: ShardingPlan, comm: Any, chunk_bytes: int) -> Dataset:
    """The rows that this rank keeps, sent by rank 0, which reads the file once, chunk by chunk.

    Rank 0 never holds more of the data than its own rows and a few chunks.
    """
    return _dataset(source, *(_scatter_array(a, plan, comm, chunk_bytes) for a in source.arrays))


def _scatter_array(array: ArrayFile, plan: ShardingPlan, comm: Any, chunk_bytes: int) -> Array:
    chunk, width = rows_per_chunk(array, chunk_bytes), array.width
    own = sum(plan.counts(which)[comm.rank] for which in range(len(plan.sets)))
    with comm.agreed():
        kept = np.empty((own, width), array.dtype)
        arrived = np.empty((min(chunk, own), width), array.dtype)
    for start, values in _root_chunks(array, comm, chunk):
        rank, index = plan.destinations(start, min(start + chunk, array.rows))
        send = None if values is None else values[np.argsort(rank, kind="stable")].reshape(-1)
        index = index[rank == comm.rank]
        counts = np.bincount(rank, minlength=comm.size) * width
        comm.scatterv(send, counts.tolist(), arrived[: index.size].reshape(-1))
        kept[index] = arrived[: index.size]
    return kept


def _root_chunks(array: ArrayFile, comm: Any, chunk: int) -> Iterator[tuple[int, Array | None]]:
    """``(first row, values)`` of each chunk on rank 0, ``(first row, None)`` elsewhere; errors are agreed."""
    chunks = array.chunks(chunk) if comm.rank == 0 else iter(())
    for start in range(0, array.rows, chunk):
        with comm.agreed():
            values = next(chunks)[1] if comm.rank == 0 else None
        yield start, values


def send_own(source: Parsed, plan: ShardingPlan, comm: Any, chunk_bytes: int, spent: bool) -> Dataset:
    """The rows that this rank keeps, sent by the ranks that have read them; ``spent``: see `spread_sparse`."""
    arrays: list[Any] = spread(source, plan, comm, chunk_bytes)
    if source.entries is not None:
        arrays.insert(0, spread_sparse(source, plan, comm, chunk_bytes, None, spent))
    return _dataset(source, *arrays)


def hold_on_nodes(
    source: Source | Parsed, plan: ShardingPlan, comm: Any, visible: Sequence[bool], chunk_bytes: int, spent: bool
) -> Dataset:
    """All rows, held once per node in memory that its ranks share; sparse rows in the order of ``plan``.

    ``spent``: see `spread_sparse`.

    Raises:
        MemoryError: on all ranks, where any node cannot; the rows of ``source`` are then as they were.
    """
    if isinstance(source, Parsed):
        holders = comm.allgather_object(comm.node.ranks[0])
        if source.entries is not None:
            return _hold_sparse(source, plan, holders, comm, chunk_bytes, True, spent)
        arrays = [comm.node_array((source.rows, column.width), column.dtype) for column in source.columns]
        join(source, arrays, holders, comm, chunk_bytes)
        return _dataset(source, *arrays)
    arrays = [comm.node_array((array.rows, array.width), array.dtype) for array in source.arrays]
    return _filled(source, arrays, comm, comm.leaders, visible, chunk_bytes)


def hold_copies(
    source: Source | Parsed, plan: ShardingPlan, comm: Any, visible: Sequence[bool], chunk_bytes: int, spent: bool
) -> Dataset:
    """All rows, a copy on every rank; else as `hold_on_nodes`."""
    if isinstance(source, Parsed):
        if source.entries is not None:
            return _hold_sparse(source, plan, range(comm.size), comm, chunk_bytes, False, spent)
        with comm.agreed():
            arrays = [np.empty((source.rows, column.width), column.dtype) for column in source.columns]
        join(source, arrays, range(comm.size), comm, chunk_bytes)
        return _dataset(source, *arrays)
    with comm.agreed():
        arrays = [np.empty((array.rows, array.width), array.dtype) for array in source.arrays]
    return _filled(source, arrays, comm, range(comm.size), visible, chunk_bytes)


def _hold_sparse(
    source: Parsed,
    plan: ShardingPlan,
    holders: Sequence[int],
    comm: Any,
    chunk_bytes: int,
    on_nodes: bool,
    spent: bool,
) -> Dataset:
    """All rows, held sparse, in the order of ``plan``.

    The ranks that share memory, those with the same of ``holders``, are sent a range of them each, and write it there.
    ``on_nodes``: it is that of their node.
    """
    rows, entries = source.chunk.x, source.entries or 0
    plain = not any(comm.allgather_object(rows.values.size))
    sizes = [(source.rows + 1, np.int64), (entries, index_dtype(rows.features)), (0 if plain else entries, rows.dtype)]
    sizes += [(source.rows, column.dtype) for column in source.columns]
    if on_nodes:
        starts, indices, values, *columns = (
            comm.node_array((max(1, size),), dtype, touch=False)[:size] for size, dtype in sizes
        )
    else:
        with comm.agreed():
            starts, indices, values, *columns = (np.empty(size, dtype) for size, dtype in sizes)
    groups = sorted(set(holders))
    for group in groups:
        ranks = Partition(tuple(float(holder == group) for holder in holders))
        share = ShardingPlan(plan.order, (source.rows,), ranks)
        first, own = sum(share.counts(0)[: comm.rank]), share.counts(0)[comm.rank]
        for target, column in zip(columns, spread(source, share, comm, chunk_bytes), strict=True):
            if own:
                target[first : first + own] = column[:, 0]
        before: list[int] = []

        def room(count: int, before: list[int] = before) -> tuple[Array, Array]:
            before.append(sum(comm.allgather_object(count)[: comm.rank]))
            part = slice(before[0], before[0] + count) if count else slice(0, 0)
            return indices[part], values[part]

        part = spread_sparse(source, share, comm, chunk_bytes, room, spent and group == groups[-1])
        if own:
            np.add(part.starts[1:], before[0], out=starts[first + 1 : first + 1 + own])
    if holders[comm.rank] == comm.rank:
        starts[0] = 0
    comm.barrier()
    return _dataset(source, SparseRows(starts, indices, values, rows.features), *columns)


def _filled(
    source: Source,
    arrays: Sequence[Array],
    comm: Any,
    holders: Sequence[int],
    visible: Sequence[bool],
    chunk_bytes: int,
) -> Dataset:
    """Let ``holders`` fill their ``arrays`` from the files, by way of rank 0 if not all of them see these."""
    for array, target in zip(source.arrays, arrays, strict=True):
        chunk = rows_per_chunk(array, chunk_bytes)
        if all(visible[rank] for rank in holders):
            with comm.agreed():
                if comm.rank in holders:
                    for start, values in array.chunks(chunk):
                        target[start : start + len(values)] = values
            continue
        with comm.agreed():
            passing = None if comm.rank in holders else np.empty((min(chunk, array.rows), array.width), array.dtype)
        for start, values in _root_chunks(array, comm, chunk):
            stop = min(start + chunk, array.rows)
            part = target[start:stop] if passing is None else passing[: stop - start]
            if values is not None:
                part[:] = values
            comm.bcast(part.reshape(-1))
    comm.barrier()
    return _dataset(source, *arrays)
