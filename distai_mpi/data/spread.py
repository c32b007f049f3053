"""Rows on their way from the ranks that have parsed them to those that keep them; ``comm`` is a `comm.Communicator`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .parsed import Parsed
from .sharding_plan import ShardingPlan
from .sparse_exchange import exchange_rows
from .sparse_rows import SparseRows
from .sparse_rows import join as join_rows

Array = Any
Room = Callable[[int], tuple[Array, Array]]  # indices and values of so many entries, to be written to


def spread_sparse(
    source: Parsed, plan: ShardingPlan, comm: Any, chunk_bytes: int, room: Room | None = None, spent: bool = False
) -> SparseRows:
    """As `spread`, the features of rows that are held sparse; collective.

    The rows arrive in chunks, and the chunks are merged into the shard, range by range.  What has been sent, and what
    has been merged, gives its memory back at once: a rank never holds much more than one copy of its rows.

    Args:
        room: makes the arrays of this rank's rows; collective.  None: in memory of its own.
        spent: nobody needs the rows of ``source`` again: their values are undefined afterwards.
    """
    rows = source.chunk.x
    plain = not any(comm.allgather_object(rows.values.size))
    try:
        came = _exchanged(source, plan, comm, chunk_bytes, plain, spent)
        own = sum(plan.counts(which)[comm.rank] for which in range(len(plan.sets)))
        return _merged(came, own, _rows_per_chunk(source, chunk_bytes), rows, room or _own_room(rows, plain, comm))
    except MemoryError:  # on all ranks
        if not spent:
            raise
        raise source.error("there is not enough memory to send its rows to the ranks that keep them") from None


def _exchanged(
    source: Parsed, plan: ShardingPlan, comm: Any, chunk_bytes: int, plain: bool, spent: bool
) -> list[tuple[Array, SparseRows]]:
    """The rows that come to this rank, in chunks, each with the places of its rows in the shard, ascending."""
    rows, first, mine = source.chunk.x, source.starts[comm.rank], source.counts[comm.rank]
    chunk, came = _rows_per_chunk(source, chunk_bytes // 4), []  # of which there are some copies on their way
    for begin in range(0, max(source.counts), chunk):
        start, stop = min(begin, mine), min(begin + chunk, mine)
        order, sends, takes, where = _addressed(plan, first + start, first + stop, comm)
        sent = rows.gathered(start + order, rows.dtype)
        if spent:
            rows.release(start, stop)
        arrived = exchange_rows(sent, sends.tolist(), takes.tolist(), plain, comm)
        ascending = np.argsort(where)
        came.append((where[ascending], arrived.gathered(ascending, rows.dtype)))
    return came


def _own_room(rows: SparseRows, plain: bool, comm: Any) -> Room:
    """Memory of this rank, for entries as those of ``rows``; collective."""

    def room(entries: int) -> tuple[Array, Array]:
        with comm.agreed():
            return np.empty(entries, rows.indices.dtype), np.empty(0 if plain else entries, rows.dtype)

    return room


def _merged(parts: list[tuple[Array, SparseRows]], own: int, chunk: int, like: SparseRows, room: Room) -> SparseRows:
    """The rows of ``parts``, each with the places of its rows, ascending; together the places 0 to ``own - 1``.

    They are taken ``chunk`` at a time, and then give their memory back.
    """
    starts, done = np.zeros(own + 1, np.int64), [0] * len(parts)
    for where, part in parts:
        starts[where + 1] = np.diff(part.starts)
    np.cumsum(starts, out=starts)
    indices, values = room(int(starts[-1]))
    for low in range(0, own, chunk):
        high = min(own, low + chunk)
        ends = [int(np.searchsorted(where, high)) for where, _ in parts]
        ranges = [(begin, end) for begin, end in zip(done, ends, strict=True)]
        of_rows = [part.take(slice(*each)) for (_, part), each in zip(parts, ranges, strict=True)]
        places = np.concatenate([where[slice(*each)] for (where, _), each in zip(parts, ranges, strict=True)])
        rows = join_rows(of_rows, like.features, like.dtype)
        order = np.empty(high - low, np.int64)
        order[places - low] = np.arange(high - low)
        rows.gather_into(order, starts[low : high + 1], indices, values)
        for (_, part), each in zip(parts, ranges, strict=True):
            part.release(*each)
        done = ends
    return SparseRows(starts, indices, values, like.features)


def _addressed(plan: Any, start: int, stop: int, comm: Any) -> tuple[Array, Array, Array, Array]:
    """Where rows ``start`` to ``stop - 1`` of the file go, those of this rank; collective.

    Returns the order that sorts them by rank, how many go to and come from each rank, and the indices here of those
    that come; all int64.
    """
    rank, index = plan.destinations(start, stop)
    order = np.argsort(rank, kind="stable")
    sends = np.bincount(rank, minlength=comm.size)
    takes = np.empty_like(sends)
    comm.alltoallv(sends, [1] * comm.size, takes, [1] * comm.size)
    where = np.empty(takes.sum(), np.int64)
    comm.alltoallv(index[order], sends.tolist(), where, takes.tolist())
    return order, sends, takes, where


def spread(source: Parsed, plan: Any, comm: Any, chunk_bytes: int) -> list[Array]:
    """The rows of this rank's shard by ``plan``, each sent by the rank that has parsed it.

    Returns x, y and perhaps weight, each of shape (rows, width).  No rank sends more than about ``chunk_bytes`` at a
    time; all take part until the longest chunk is sent.
    """
    columns, first, mine = source.columns, source.starts[comm.rank], source.counts[comm.rank]
    own = sum(plan.counts(which)[comm.rank] for which in range(len(plan.sets)))
    chunk = _rows_per_chunk(source, chunk_bytes)
    with comm.agreed():
        kept = [np.empty((own, column.width), column.dtype) for column in columns]
    for begin in range(0, max(source.counts), chunk):
        start, stop = min(begin, mine), min(begin + chunk, mine)
        order, sends, takes, where = _addressed(plan, first + start, first + stop, comm)
        for column, target in zip(columns, kept, strict=True):
            values = np.empty((stop - start, column.width), column.dtype)
            column.copy(start, stop, values)
            arrived = np.empty((where.size, column.width), column.dtype)
            counts = [(part * column.width).tolist() for part in (sends, takes)]
            comm.alltoallv(values[order].reshape(-1), counts[0], arrived.reshape(-1), counts[1])
            target[where] = arrived
    return kept


def join(source: Parsed, arrays: Sequence[Array], holders: Sequence[int], comm: Any, chunk_bytes: int) -> None:
    """Gather all rows into every holder's ``arrays``.

    ``holders[r]`` is the rank that holds what rank r reads and writes: the first of its node where ``arrays`` are
    shared by a node, itself where every rank has its own.  A rank writes its own rows there; each other holder is
    sent them once.
    """
    mine, first = source.counts[comm.rank], source.starts[comm.rank]
    chunk = _rows_per_chunk(source, chunk_bytes)
    others = sorted(set(holders) - {holders[comm.rank]})
    for begin in range(0, max(source.counts), chunk):
        start, stop = min(begin, mine), min(begin + chunk, mine)
        sends, takes = np.zeros(comm.size, np.int64), np.zeros(comm.size, np.int64)
        sends[others] = stop - start
        if holders[comm.rank] == comm.rank:
            for rank, count in enumerate(source.counts):
                if holders[rank] != comm.rank:
                    takes[rank] = min(begin + chunk, count) - min(begin, count)
        for column, target in zip(source.columns, arrays, strict=True):
            values = target[first + start : first + stop]
            column.copy(start, stop, values)
            if not others:
                continue
            arrived = np.empty((takes.sum(), column.width), column.dtype)
            counts = [(part * column.width).tolist() for part in (sends, takes)]
            comm.alltoallv(np.tile(values.reshape(-1), len(others)), counts[0], arrived.reshape(-1), counts[1])
            at = 0
            for rank in np.flatnonzero(takes).tolist():
                position = source.starts[rank] + begin
                target[position : position + takes[rank]] = arrived[at : at + takes[rank]]
                at += takes[rank]
    comm.barrier()


def _rows_per_chunk(source: Parsed, chunk_bytes: int) -> int:
    """Rows that take about ``chunk_bytes``, at least one."""
    return max(1, chunk_bytes * source.rows // source.nbytes)
