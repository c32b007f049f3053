"""Features of nodes that need no labels: hashed neighbours, and the degree."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..data.sparse_rows import sparse_rows
from ..errors import ConfigError
from .adjacency import NodeRows, adjacency, even_bounds
from .edges import EdgeList

BITS = 16
MOST_BITS = 30
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # the odd number nearest to 2^64 over the golden ratio (Knuth, section 6.4)


def hash_neighbours(edges: EdgeList, comm: Any, *, bits: int = BITS, directed: bool = False) -> NodeRows:
    """A sparse row for each node, of its neighbours and its degree, sharded by nodes; collective.

    Column h, from 0 to 2^bits - 1, holds the summed weight of the edges to neighbours whose number has the hash h
    (Weinberger et al. 2009, "Feature Hashing for Large Scale Multitask Learning", without signs); the last column holds
    log(1 + the node's summed weight).  A hash depends on the neighbour's number and ``bits`` alone.

    Args:
        edges: this rank's edges.
        comm: the ranks, a `comm.Communicator`.
        bits: 1 to 30.
        directed: an edge makes its dst a neighbour of its src alone.

    Returns:
        `SparseRows` of 2^bits + 1 features; ranks own equally many nodes.
    """
    import scipy.sparse

    if not 1 <= bits <= MOST_BITS:
        raise ConfigError(f"bits must be 1 to {MOST_BITS}, not {bits}")
    bounds = even_bounds(edges.nodes, comm.size)
    matrix = adjacency(edges, bounds, comm, directed=directed)
    own = matrix.shape[0]
    degree = np.log1p(matrix.sum(axis=1, dtype=np.float64)).astype(np.float32)
    column = (matrix.indices.astype(np.uint64) * FACTOR >> np.uint64(64 - bits)).astype(np.int64)
    hashed = scipy.sparse.csr_array((matrix.data, column, matrix.indptr.astype(np.int64)), shape=(own, 1 << bits))
    hashed.sum_duplicates()  # in the matrix's own memory
    last = scipy.sparse.csr_array(degree.reshape(-1, 1))
    return NodeRows(bounds[comm.rank], sparse_rows(scipy.sparse.hstack([hashed, last], format="csr")))
