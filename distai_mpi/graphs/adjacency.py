"""The neighbours of the nodes that a rank owns, as rows of a sparse matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .edges import EdgeList

Array = Any


@dataclass(frozen=True)
class NodeRows:
    """This rank's rows of an array with a row for each node; the ranks' rows follow each other in their order.

    Attributes:
        first: the node of the first row.
        values: shape (own nodes, columns).
    """

    first: int
    values: Array


def even_bounds(nodes: int, ranks: int) -> list[int]:
    """The first node of each rank, and the number of nodes, where all ranks own equally many."""
    return [nodes * rank // ranks for rank in range(ranks + 1)]


def adjacency(edges: EdgeList, bounds: Sequence[int], comm: Any, *, directed: bool = False) -> Any:
    """The rows of the adjacency matrix of the nodes that this rank owns; collective.

    Args:
        edges: this rank's edges.
        bounds: the first node of each rank, and the number of nodes.
        comm: the ranks, a `comm.Communicator`.
        directed: an edge is an entry in the row of its src alone; else the matrix is symmetric.

    Returns:
        A SciPy csr_array, shape (own nodes, nodes), float32: weights, those of repeated edges summed.
    """
    import scipy.sparse

    rows, columns, weight = edges.src, edges.dst, edges.weight
    if weight is None:
        weight = np.ones(len(edges), np.float32)
    if not directed:
        other = rows != columns
        rows, columns = np.concatenate([rows, columns[other]]), np.concatenate([columns, rows[other]])
        weight = np.concatenate([weight, weight[other]])
    if comm.size > 1:
        rows, columns, weight = _to_owners(rows, columns, weight, bounds, comm)
    first, stop = bounds[comm.rank], bounds[comm.rank + 1]
    index = np.int32 if max(edges.nodes, len(rows)) < 1 << 31 else np.int64
    where = ((rows - np.uint32(first)).astype(index), columns.astype(index))
    return scipy.sparse.coo_array((weight, where), shape=(stop - first, edges.nodes)).tocsr()


def _to_owners(rows: Array, columns: Array, weight: Array, bounds: Sequence[int], comm: Any) -> tuple[Array, ...]:
    """Entries of the rows that this rank owns, from all ranks."""
    owner = (np.searchsorted(np.asarray(bounds[1:-1]), rows, side="right")).astype(np.min_scalar_type(comm.size))
    order = np.argsort(owner, kind="stable")  # of small integers: a radix sort
    send = np.bincount(owner, minlength=comm.size)
    receive = [int(counts[comm.rank]) for counts in comm.allgather_object(send)]
    arrived = []
    for values in (rows, columns, weight):
        arrived.append(np.empty(sum(receive), values.dtype))
        comm.alltoallv(values[order], send.tolist(), arrived[-1], receive)
    return tuple(arrived)
