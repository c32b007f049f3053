"""Sparse rows on their way between ranks; ``comm`` is a `comm.Communicator`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .sparse_rows import SparseRows, index_dtype

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


def _sums(lengths: Array, parts: Sequence[int]) -> list[int]:
    """Sums of the ``lengths`` of as many rows as each of ``parts`` says, one part after another."""
    ends = np.concatenate([[0], np.cumsum(lengths)])[np.cumsum([0, *parts])]
    return np.diff(ends).tolist()
