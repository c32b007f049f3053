"""One-hot graph encoder embedding: a row of class sums for each node, in one pass over the edges.

Shen, Wang & Priebe 2023, "One-Hot Graph Encoder Embedding", IEEE Transactions on Pattern Analysis and Machine
Intelligence 45(6).  Lubonja, Shen, Priebe & Burns 2024, "Edge-Parallel Graph Encoder Embedding", share the edges out to
threads, which add to one matrix; here ranks add to rows of their own, so that none has to wait and no sum of whole
matrices travels.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ..errors import DataError
from .adjacency import NodeRows
from .edges import EdgeList, check_labels, check_memory

Array = Any
BLOCK_BYTES = 256 << 10  # of the sums of a block of nodes: they stay in a core's cache
TILE_SHIFT = 18  # a tile's edges join 2^18 nodes to as many, so that their labels stay there too
MOST_ACROSS = 64  # tiles in a row: more streams would be slower than larger tiles
BLOCKS_OF_RANK = 16  # at least, so that ranks can be given about as much to do
LINE_BYTES = 64
COUNTED = 1 << 31  # so many updates of 1 and more are not summed in four bytes


@dataclass(frozen=True)
class _Plan:
    """How nodes are cut into blocks, and blocks shared out to ranks.

    Attributes:
        nodes, classes: how many there are.
        shift: a block has 2^shift nodes, but for the last.
        tile_shift: likewise of tiles.
    """

    nodes: int
    classes: int
    shift: int
    tile_shift: int

    @classmethod
    def of(cls, nodes: int, classes: int, ranks: int) -> _Plan:
        rows = max(1, min(BLOCK_BYTES // (4 * classes), nodes // (BLOCKS_OF_RANK * ranks)))
        tile_shift = max(TILE_SHIFT, (nodes - 1).bit_length() - MOST_ACROSS.bit_length() + 1)
        return cls(nodes, classes, min(TILE_SHIFT, rows.bit_length() - 1), tile_shift)

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return -(-self.nodes >> self.shift)

    @property
    def across(self) -> int:
        """Tiles in a row."""
        return -(-self.nodes >> self.tile_shift)


def encode_nodes(
    edges: EdgeList,
    labels: Array,
    comm: Any,
    *,
    classes: int | None = None,
    directed: bool = False,
    laplacian: bool = False,
    diagonal: bool = False,
    unit: bool = False,
) -> NodeRows:
    """Encoder embedding of all nodes, sharded by nodes; collective.

    Z = A W (Shen, Wang & Priebe 2023, section 2), where A is the matrix of the edges' weights and W[v, k] is 1 over the
    number of nodes of class k where v is of that class, and else 0.  A node without a label adds nothing to the rows of
    others, and has a row itself; a node without edges has a row of zeros.

    Args:
        edges: this rank's edges.
        labels: classes 0, 1, ... of all nodes, -1 where there is none; integers, shape (nodes,), replicated.
        comm: the ranks, a `comm.Communicator`.
        classes: how many there are; None: one more than the largest label.
        directed: an edge adds to the row of its src alone; else A is symmetric, and a loop counts once.
        laplacian: D^-1/2 A D^-1/2 in place of A, with the sums D of the rows of A.
        diagonal: A + 1 in place of A: every node is its own neighbour too.
        unit: rows are divided by their Euclidean norms.

    Returns:
        Rows of ``classes`` float32 values, of nodes that this rank owns.

    Raises:
        DataError: labels are no such codes, or there is none; on all ranks.
    """
    with comm.agreed():
        codes = check_labels(labels, edges.nodes, edges.name)
        largest = int(codes.max())
        classes = largest + 1 if classes is None else classes
        if largest < 0:
            raise DataError(f"{edges.name}: no node has a label, by which the features of its neighbours are made")
        if largest >= classes:
            raise DataError(f"{edges.name}: labels of nodes go up to {largest}, and there are {classes} classes")
    check_memory(edges.nodes, 4 + 8 * laplacian, 4 * classes, edges.name, comm)
    plan = _Plan.of(edges.nodes, classes, comm.size)
    counts = np.bincount(codes[codes >= 0], minlength=classes)
    small = np.dtype(np.uint8 if classes < 255 else np.int32)
    codes = np.where(codes < 0, classes, codes).astype(small) if codes.min() < 0 else codes.astype(small)
    factor = _factors(edges, directed, diagonal, comm) if laplacian else np.empty(0)
    column = 1.0 / np.maximum(counts, 1)
    binned = _binned(edges, codes, plan, not directed, factor.astype(np.float32), counts.sum() == edges.nodes)
    return _summed(binned, plan, codes, factor, column, comm, diagonal, unit)


def _factors(edges: EdgeList, directed: bool, diagonal: bool, comm: Any) -> Array:
    """D^-1/2, float64, shape (nodes,), replicated; 0 where a node has no edges."""
    weight = edges.weight
    degree = np.bincount(edges.src, weight, edges.nodes).astype(np.float64)
    if not directed:
        other = edges.src != edges.dst
        degree += np.bincount(edges.dst[other], None if weight is None else weight[other], edges.nodes)
    comm.allreduce(degree)
    degree += diagonal
    return np.divide(1.0, np.sqrt(degree), out=np.zeros_like(degree), where=degree > 0)


@dataclass(frozen=True)
class _Binned:
    """Updates of this rank's edges, sorted by blocks of nodes; see `kernels.scatter_updates`."""

    starts: Array
    counts: Array
    updates: Array
    values: Array
    valued: bool

    @property
    def room(self) -> int:
        """What the updates take, gaps included."""
        return len(self.updates)


def _binned(edges: EdgeList, labels: Array, plan: _Plan, both: bool, factor: Array, labelled: bool) -> _Binned:
    from . import kernels

    across, tile_shift, shift = (np.uint64(number) for number in (plan.across, plan.tile_shift, plan.shift))
    weight, none, counts = edges.weights, plan.classes, np.zeros(plan.across**2, np.int64)
    kernels.count_tiles(edges.src, edges.dst, tile_shift, across, counts)
    starts, room = _starts(counts, LINE_BYTES // 8)
    tiles, tile_weight = _aligned(room, np.uint64), np.empty(room if weight.size else 0, np.float32)
    lines, ends = _aligned(8 * counts.size, np.uint64), starts.astype(np.uint64)
    kernels.tile_edges(edges.src, edges.dst, weight, tile_shift, across, ends, lines, tiles, tile_weight)
    ends = starts + counts
    per_block = np.zeros(plan.blocks, np.int64)
    kernels.count_updates(starts, ends, tiles, labels, -1 if labelled else none, both, shift, per_block)
    block_starts, room = _starts(per_block, LINE_BYTES // 4)
    valued = edges.weight is not None or factor.size > 0
    updates, values = _aligned(room, np.uint32), np.empty(room if valued else 0, np.float32)
    lines, at = _aligned(16 * plan.blocks, np.uint32), block_starts.astype(np.uint64)
    classes = np.uint64(plan.classes)
    how = (labels, classes, both, factor, classes, shift)
    kernels.scatter_updates(starts, ends, tiles, tile_weight, *how, at, lines, updates, values)
    return _Binned(block_starts, per_block, updates, values, valued)


def _summed(
    mine: _Binned, plan: _Plan, labels: Array, factor: Array, column: Array, comm: Any, diagonal: bool, unit: bool
) -> NodeRows:
    """Sums of the blocks that this rank owns, from its own updates and those that the others send."""
    from . import kernels

    cuts = _cuts(mine.counts, plan, comm)
    low, high = cuts[comm.rank], cuts[comm.rank + 1]
    starts, counts = mine.starts[None, low:high], mine.counts[None, low:high]
    received, values = np.empty(0, np.uint32), np.empty(0, np.float32)
    if comm.size > 1:
        others, other_counts, received, values = _received(mine, cuts, comm)
        starts, counts = np.concatenate([starts, others]), np.concatenate([counts, other_counts])
    first, stop = min(plan.nodes, low << plan.shift), min(plan.nodes, high << plan.shift)
    out = np.empty((stop - first, plan.classes), np.float32)
    counting = not mine.valued and int(counts.sum()) < COUNTED
    sums = np.zeros(plan.classes << plan.shift, np.int32 if counting else np.float64)
    which = (mine.updates, mine.values, received, values, sums, plan.shift)
    kernels.sum_blocks(starts, starts + counts, *which, factor, column, first, labels, diagonal, unit, out)
    return NodeRows(first, out)


def _received(mine: _Binned, cuts: list[int], comm: Any) -> tuple[Array, Array, Array, Array]:
    """The other ranks' updates of this rank's blocks: starts and counts, shape (ranks, blocks), updates, values."""
    blocks = [high - low for low, high in pairwise(cuts)]
    own = blocks[comm.rank]
    counts = np.empty(comm.size * own, np.int64)
    comm.alltoallv(mine.counts, blocks, counts, [own] * comm.size)
    counts = counts.reshape(comm.size, own)
    counts[comm.rank] = 0  # these stay where they are
    starts, room = _starts(counts.reshape(-1), LINE_BYTES // 4)
    bounds = np.append(mine.starts, mine.room)[cuts]
    before, behind = int(bounds[comm.rank]), int(bounds[comm.rank + 1])
    send = np.diff(bounds).tolist()
    send[comm.rank] = 0
    receive = np.diff(np.append(starts, room)[np.arange(comm.size + 1) * own]).tolist()
    parts = []
    for array in (mine.updates, mine.values) if mine.valued else (mine.updates,):
        parts.append(np.empty(room, array.dtype))
        pieces = [piece for piece in (array[:before], array[behind:]) if piece.size]
        away = pieces[0] if len(pieces) == 1 else np.concatenate([array[:0], *pieces])
        comm.alltoallv(away, send, parts[-1], receive)
    return starts.reshape(comm.size, own), counts, parts[0], parts[1] if mine.valued else mine.values


def _cuts(counts: Array, plan: _Plan, comm: Any) -> list[int]:
    """The first block of each rank, and the number of blocks: cut so that all have about as much to do."""
    work = counts.astype(np.float64)
    comm.allreduce(work)
    work += plan.classes << plan.shift
    done = np.cumsum(work)
    wanted = done[-1] * np.arange(1, comm.size) / comm.size
    return [0, *np.searchsorted(done, wanted).tolist(), plan.blocks]


def _starts(counts: Array, multiple: int) -> tuple[Array, int]:
    """Where bins of ``counts`` entries start that each take a ``multiple`` of entries, and what they take together."""
    room = -(-counts // multiple) * multiple
    ends = np.cumsum(room)
    return ends - room, int(ends[-1]) if len(ends) else 0


def _aligned(size: int, dtype: Any) -> Array:
    """An uninitialised array that begins where a line of the cache does."""
    itemsize = np.dtype(dtype).itemsize
    raw = np.empty((size + LINE_BYTES // itemsize) * itemsize, np.uint8)
    start = -raw.ctypes.data % LINE_BYTES
    return raw[start : start + size * itemsize].view(dtype)
