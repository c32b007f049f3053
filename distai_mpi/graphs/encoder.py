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
SAMPLE = 1 << 18  # edges of a rank that tell how much there is to do
LINE_BYTES = 64
COUNTED = 1 << 31  # so many updates of 1 and more are not summed in four bytes


@dataclass(frozen=True)
class _Plan:
    """How nodes are cut into blocks, and edges into tiles.

    Attributes:
        nodes, classes: how many there are.
        both: whether edges join both ways.
        shift: a block has 2^shift nodes, but for the last.
        tile_shift: likewise of tiles.
    """

    nodes: int
    classes: int
    both: bool
    shift: int
    tile_shift: int

    @classmethod
    def of(cls, nodes: int, classes: int, both: bool, ranks: int) -> _Plan:
        rows = max(1, min(BLOCK_BYTES // (4 * classes), nodes // (BLOCKS_OF_RANK * ranks)))
        tile_shift = max(TILE_SHIFT, (nodes - 1).bit_length() - MOST_ACROSS.bit_length() + 1)
        return cls(nodes, classes, both, min(TILE_SHIFT, rows.bit_length() - 1), tile_shift)

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return -(-self.nodes >> self.shift)

    @property
    def tile_rows(self) -> Array:
        """The first tile of each row of tiles, and the number of tiles: a triangle where edges join both ways."""
        across = -(-self.nodes >> self.tile_shift)
        return np.append(0, np.cumsum(1 + np.arange(across) if self.both else np.full(across, across)))

    def first_node(self, block: int) -> int:
        """Of a block, or the number of nodes."""
        return min(self.nodes, block << self.shift)


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
    plan = _Plan.of(edges.nodes, classes, not directed, comm.size)
    small = np.dtype(np.uint8 if classes < 255 else np.int32)
    labelled = int(codes.min()) >= 0
    codes = codes.astype(small) if labelled else np.where(codes < 0, classes, codes).astype(small)
    column = 1.0 / np.maximum(np.bincount(codes, minlength=classes)[:classes], 1)
    factor = _factors(edges, directed, diagonal, comm) if laplacian else np.empty(0)
    cuts = _cuts(edges, codes, plan, comm)
    first, stop = (plan.first_node(cuts[rank]) for rank in (comm.rank, comm.rank + 1))
    memory = _aligned(_padded((stop - first) * classes), np.uint32)
    own = range(cuts[comm.rank], cuts[comm.rank + 1])
    binned = _binned(edges, codes, plan, own, factor.astype(np.float32), labelled, memory)
    out = memory[: (stop - first) * classes].view(np.float32).reshape(-1, classes)
    _sum(binned, plan, cuts, codes, factor, column, comm, diagonal, unit, first, out)
    return NodeRows(first, out)


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
    """Updates of this rank's edges, sorted by blocks of nodes, its own blocks last; see `kernels.scatter_updates`."""

    starts: Array
    counts: Array
    updates: Array
    values: Array
    valued: bool


def _binned(
    edges: EdgeList, labels: Array, plan: _Plan, own: range, factor: Array, labelled: bool, memory: Array
) -> _Binned:
    """The updates; they and the tiles lie in ``memory``, uint32, of this rank's rows, if there is room.

    New memory is much of the cost: the system clears it first, and a virtual machine may have to ask for it.
    """
    from . import kernels

    tile_shift, shift, classes = (np.uint64(number) for number in (plan.tile_shift, plan.shift, plan.classes))
    weight, both, rows = edges.weights, plan.both, plan.tile_rows
    counts, tile_rows = np.zeros(rows[-1], np.int64), rows[:-1].astype(np.uint64)
    kernels.count_tiles(edges.src, edges.dst, both, tile_shift, tile_rows, counts)
    starts, room = _starts(counts, LINE_BYTES // 8)
    most = 2 * room + (2 if both else 1) * len(edges) + LINE_BYTES // 4 * plan.blocks
    fits = most <= len(memory)
    tiles = memory[: 2 * room].view(np.uint64) if fits else _aligned(room, np.uint64)
    tile_weight = np.empty(room if weight.size else 0, np.float32)
    lines, ends = _aligned(8 * counts.size, np.uint64), starts.astype(np.uint64)
    kernels.tile_edges(edges.src, edges.dst, weight, both, tile_shift, tile_rows, ends, lines, tiles, tile_weight)
    ends = starts + counts
    per_block = np.zeros(plan.blocks, np.int64)
    kernels.count_updates(starts, ends, tiles, labels, -1 if labelled else plan.classes, both, shift, per_block)
    order = np.r_[: own.start, own.stop : plan.blocks, own.start : own.stop]
    block_starts = np.empty(plan.blocks, np.int64)
    block_starts[order], room = _starts(per_block[order], LINE_BYTES // 4)
    valued = edges.weight is not None or factor.size > 0
    fits = fits and _stay_ahead(block_starts[own.start : own.stop], room, plan, own, len(memory))
    updates = memory[len(memory) - room :] if fits else _aligned(room, np.uint32)
    values = np.empty(room if valued else 0, np.float32)
    lines, at = _aligned(16 * plan.blocks, np.uint32), block_starts.astype(np.uint64)
    how = (labels, classes, both, factor, classes, shift)
    kernels.scatter_updates(starts, ends, tiles, tile_weight, tile_shift, *how, at, lines, updates, values)
    return _Binned(block_starts, per_block, updates, values, valued)


def _stay_ahead(starts: Array, room: int, plan: _Plan, own: range, size: int) -> bool:
    """Whether updates at the end of the memory of ``size`` entries lie behind the rows written when they are read."""
    written = (np.arange(1, len(own)) << plan.shift) * plan.classes
    return bool((written <= size - room + starts[1:]).all())


def _sum(
    mine: _Binned, plan: _Plan, cuts: list[int], labels: Array, factor: Array, column: Array, comm: Any,
    diagonal: bool, unit: bool, first: int, out: Array,
) -> None:  # fmt: skip
    """Write the rows of this rank's nodes: sums of its own updates and of those that the others send."""
    from . import kernels

    own = slice(cuts[comm.rank], cuts[comm.rank + 1])
    starts, counts = mine.starts[None, own], mine.counts[None, own]
    received, values = np.empty(0, np.uint32), np.empty(0, np.float32)
    if comm.size > 1:
        others, other_counts, received, values = _received(mine, cuts, comm)
        starts, counts = np.concatenate([starts, others]), np.concatenate([counts, other_counts])
    counting = not mine.valued and int(counts.sum()) < COUNTED
    sums = np.zeros(plan.classes << plan.shift, np.int32 if counting else np.float64)
    which = (mine.updates, mine.values, received, values, sums, plan.shift)
    kernels.sum_blocks(starts, starts + counts, *which, factor, column, first, labels, diagonal, unit, out)


def _received(mine: _Binned, cuts: list[int], comm: Any) -> tuple[Array, Array, Array, Array]:
    """The other ranks' updates of this rank's blocks: starts and counts, shape (ranks, blocks), updates, values."""
    blocks = [high - low for low, high in pairwise(cuts)]
    own = blocks[comm.rank]
    counts = np.empty(comm.size * own, np.int64)
    comm.alltoallv(mine.counts, blocks, counts, [own] * comm.size)
    counts = counts.reshape(comm.size, own)
    counts[comm.rank] = 0  # these stay where they are
    starts, room = _starts(counts.reshape(-1), LINE_BYTES // 4)
    receive = np.diff(np.append(starts, room)[np.arange(comm.size + 1) * own]).tolist()
    rooms = _padded(mine.counts)
    send = [int(rooms[low:high].sum()) for low, high in pairwise(cuts)]
    send[comm.rank] = 0
    parts = []
    for array in (mine.updates, mine.values) if mine.valued else (mine.updates,):
        parts.append(np.empty(room, array.dtype))
        comm.alltoallv(array[: sum(send)], send, parts[-1], receive)
    return starts.reshape(comm.size, own), counts, parts[0], parts[1] if mine.valued else mine.values


def _cuts(edges: EdgeList, labels: Array, plan: _Plan, comm: Any) -> list[int]:
    """The first block of each rank, and the number of blocks: cut so that all have about as much to do.

    A sample of the edges tells how many updates there are.
    """
    if comm.size == 1:
        return [0, plan.blocks]
    step = len(edges) // SAMPLE + 1
    u, v = edges.src[::step], edges.dst[::step]
    work = np.zeros(plan.blocks)
    for node, other in ((u, v), (v, u)) if plan.both else ((u, v),):
        work += step * np.bincount(node[labels[other] != plan.classes] >> plan.shift, minlength=plan.blocks)
    comm.allreduce(work)
    work += plan.classes << plan.shift
    done = np.cumsum(work)
    wanted = done[-1] * np.arange(1, comm.size) / comm.size
    return [0, *np.searchsorted(done, wanted).tolist(), plan.blocks]


def _starts(counts: Array, multiple: int) -> tuple[Array, int]:
    """Where bins of ``counts`` entries start that each take a ``multiple`` of entries, and what they take together."""
    room = _padded(counts, multiple)
    ends = np.cumsum(room)
    return ends - room, int(ends[-1]) if len(ends) else 0


def _padded(entries: Any, multiple: int = LINE_BYTES // 4) -> Any:
    """The least ``multiple`` that is not below ``entries``."""
    return -(-entries // multiple) * multiple


def _aligned(size: int, dtype: Any) -> Array:
    """An uninitialised array that begins where a line of the cache does."""
    itemsize = np.dtype(dtype).itemsize
    raw = np.empty((size + LINE_BYTES // itemsize) * itemsize, np.uint8)
    start = -raw.ctypes.data % LINE_BYTES
    return raw[start : start + size * itemsize].view(dtype)
