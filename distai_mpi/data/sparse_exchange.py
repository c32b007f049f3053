"""Sparse rows on their way between ranks; ``comm`` is a `comm.Communicator`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .sparse_rows import SparseRows, index_dtype, join

Array = Any


def exchange_rows(rows: SparseRows, sends: Sequence[int], takes: Sequence[int], plain: bool, comm: Any) -> SparseRows:
    """The rows that ranks send to this one, rank by rank; collective.

    Args:
        rows: this rank's, those for rank 0 first; of the same features and types on all ranks.
        sends, takes: rows for, and from, each rank.
        plain: whether the values of all ranks are 1, and not held.
    """
    lengths = np.diff(rows.starts)
    came = np.empty(sum(takes), np.int64)
    comm.alltoallv(lengths, list(sends), came, list(takes))
    give, take = (_sums(counts, parts) for counts, parts in ((lengths, sends), (came, takes)))
    starts = np.zeros(came.size + 1, np.int64)
    np.cumsum(came, out=starts[1:])
    own = slice(int(rows.starts[0]), int(rows.starts[-1]))
    with comm.agreed():
        indices = np.empty(starts[-1], index_dtype(rows.features))
        values = np.empty(0 if plain else starts[-1], rows.dtype)
    comm.alltoallv(rows.indices[own], give, indices, take)
    if not plain:
        held = rows.values[own] if rows.values.size else np.ones(rows.entries, rows.dtype)
        comm.alltoallv(held, give, values, take)
    return SparseRows(starts, indices, values, rows.features)


def gather_rows(rows: SparseRows, holders: Sequence[int], plain: bool, comm: Any, on_nodes: bool) -> SparseRows:
    """All ranks' rows, rank by rank, in memory of each of ``holders``; collective.

    Args:
        rows: this rank's; see `exchange_rows`.
        holders: of each rank the one whose memory it reads: the first of its node, or itself.
        plain: see `exchange_rows`.
        on_nodes: whether ranks of a node share that memory.

    Raises:
        MemoryError: on all ranks, where a node cannot share it.
    """
    counts = np.array(comm.allgather_object((len(rows), rows.entries)))
    before = np.cumsum(counts, axis=0) - counts  # rows and entries of the ranks before each
    (total, entries), mine = counts.sum(axis=0).tolist(), holders[comm.rank] == comm.rank

    def memory(size: int, dtype: Any) -> Array:
        if on_nodes:
            return comm.node_array((max(1, size),), dtype)[:size]
        with comm.agreed():
            return np.empty(size, dtype)

    starts, indices = memory(total + 1, np.int64), memory(entries, index_dtype(rows.features))
    values = np.empty(0, rows.dtype) if plain else memory(entries, rows.dtype)
    if mine:
        starts[0] = 0

    def write(part: SparseRows, rank: int) -> None:
        row, entry = before[rank].tolist()
        shift = entry - int(part.starts[0])
        np.add(part.starts[1:], shift, out=starts[row + 1 : row + 1 + len(part)])
        own = slice(int(part.starts[0]), int(part.starts[-1]))
        indices[entry : entry + part.entries] = part.indices[own]
        if not plain:
            values[entry : entry + part.entries] = part.values[own] if part.values.size else 1

    write(rows, comm.rank)
    others = sorted(set(holders) - {holders[comm.rank]})
    if len(set(holders)) > 1:
        sends = [len(rows) if rank in others else 0 for rank in range(comm.size)]
        takes = [int(counts[r, 0]) if mine and holders[r] != comm.rank else 0 for r in range(comm.size)]
        copies = join([rows] * len(others), rows.features, rows.dtype)
        came, at = exchange_rows(copies, sends, takes, plain, comm), 0
        for rank, count in enumerate(takes):
            if count:
                write(came.take(slice(at, at + count)), rank)
            at += count
    comm.barrier()
    return SparseRows(starts, indices, values, rows.features)


def _sums(lengths: Array, parts: Sequence[int]) -> list[int]:
    """Sums of the ``lengths`` of as many rows as each of ``parts`` says, one part after another."""
    ends = np.concatenate([[0], np.cumsum(lengths)])[np.cumsum([0, *parts])]
    return np.diff(ends).tolist()
