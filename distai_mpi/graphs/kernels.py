"""Compiled loops over edges; importing this module loads Numba.

Edges come in any order, and each touches two nodes anywhere.  What a core's caches do not hold costs 10 to 20 ns a
touch, so that edges and what they add are first sorted into bins ("propagation blocking", Beamer, Asanović & Patterson
2017, "Reducing Pagerank Communication via Propagation Blocking"), 64 bytes at a time past the cache, and everything
else is done within a bin, in cache.
"""
# mypy: disable-error-code="call-arg"
# (Numba's intrinsics are called without the typing context that they are defined with)

from __future__ import annotations

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..jit import kernel
from ..vectors import LINE_BYTES, address, prefetch

LOW = np.uint64(0xFFFFFFFF)


@intrinsic
def _stream_line(typing, out, at, lines, start):
    """Store the 64 bytes of elements from ``lines[start]`` on to ``out[at]`` on, past the cache; both are aligned.

    ``out`` and ``lines`` are pointers, see `vectors.address`.
    """
    bits = out.dtype.bitwidth

    def generate(context, builder, signature, args):
        lanes = ir.VectorType(ir.IntType(bits), 512 // bits).as_pointer()
        to, source = (builder.bitcast(builder.gep(args[i], [args[i + 1]]), lanes) for i in (0, 2))
        store = builder.store(builder.load(source, align=64), to, align=64)
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.void(out, types.uint64, lines, types.uint64), generate


@intrinsic
def _fence(typing):
    """Order stores past the cache before later ones."""

    def generate(context, builder, signature, args):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@numba.njit(inline="always")
def _tile(u, v, shift, rows, both):
    """Two nodes, the greater first where ``both``, for an edge is there once then, and their tile."""
    first, second = (max(u, v), min(u, v)) if both else (u, v)
    return first, second, rows[first >> shift] + (second >> shift)


@kernel()
def count_tiles(src, dst, both, shift, rows, counts):
    """Add to ``counts``, int64, how many edges lie in each tile of 2^shift by 2^shift nodes; see `tile_edges`."""
    for i in range(src.size):
        counts[_tile(np.uint64(src[i]), np.uint64(dst[i]), shift, rows, both)[2]] += 1


@kernel()
def tile_edges(src, dst, weight, both, shift, rows, ends, lines, tiles, tile_weight):
    """Sort edges into tiles.

    Args:
        both: whether edges join both ways: src and dst may change places then, and half of the tiles will do.
        shift: uint64.
        rows: the first tile of each row of tiles, uint64.
        ends: where the next edge of each tile goes, uint64; on return where its edges end.
        lines: scratch, uint64, 8 for each tile, aligned to 64 bytes.
        tiles: the edges, node · 2^32 + node, uint64, aligned; tiles start at multiples of 8.
        tile_weight: their weights; unused where ``weight`` is empty.
    """
    for i in range(src.size):
        u, v, tile = _tile(np.uint64(src[i]), np.uint64(dst[i]), shift, rows, both)
        end = ends[tile]
        slot = end & np.uint64(7)
        lines[(tile << np.uint64(3)) + slot] = (u << np.uint64(32)) | v
        if weight.size:
            tile_weight[end] = weight[i]
        ends[tile] = end + np.uint64(1)
        if slot == np.uint64(7):
            _stream_line(address(tiles), end - slot, address(lines), tile << np.uint64(3))
    for tile in range(ends.size):
        end = np.int64(ends[tile])
        for slot in range(end & 7):
            tiles[end - (end & 7) + slot] = lines[(tile << 3) + slot]
    _fence()


@kernel()
def count_updates(starts, ends, tiles, labels, none, both, shift, counts):
    """Add to ``counts``, int64, the updates of each block of 2^shift nodes; see `scatter_updates`.

    ``none`` is negative where all nodes have labels.
    """
    for tile in range(starts.size):
        for i in range(starts[tile], ends[tile]):
            u, v = tiles[i] >> np.uint64(32), tiles[i] & LOW
            if none < 0 or labels[v] != none:
                counts[u >> shift] += 1
            if both and u != v and (none < 0 or labels[u] != none):
                counts[v >> shift] += 1


@numba.njit(inline="always")
def _append(block, update, at, lines, updates):
    """Append an update to those of a block; ``at``, ``lines`` and ``updates`` are pointers."""
    end = at[block]
    slot = end & np.uint64(15)
    lines[(block << np.uint64(4)) + slot] = update
    at[block] = end + np.uint64(1)
    if slot == np.uint64(15):
        _stream_line(updates, end - slot, lines, block << np.uint64(4))


@kernel()
def scatter_updates(
    starts, stops, tiles, tile_weight, tile_shift, labels, none, both, factor, classes, shift, at, lines, updates,
    values,
):  # fmt: skip
    """Sort what edges add to the rows of nodes into blocks of 2^shift nodes.

    Edge (u, v) adds to class ``labels[v]`` of node u and, where ``both`` is true and they differ, to class
    ``labels[u]`` of v; a node of label ``none`` adds nothing.

    Args:
        starts, stops: of each tile's edges in ``tiles``, with ``tile_weight``, which is empty where all are 1.
        tile_shift: a tile is of 2^tile_shift by as many nodes.
        factor: float32, what the weights of edges to each node are multiplied by; empty: nothing.
        none, classes, shift: uint64.
        at: where the next update of each block goes, uint64; on return where its updates end.
        lines: scratch, uint32, 16 for each block, aligned to 64 bytes.
        updates: number of the node in its block · classes + class, uint32, aligned; blocks start at multiples of 16.
        values: what is added, float32; empty where neither weights nor factors are given: then it is 1.
    """
    mask = (np.uint64(1) << shift) - np.uint64(1)
    of_labels, line = address(labels), LINE_BYTES // labels.itemsize
    ends, room, out = address(at), address(lines), address(updates)
    for tile in range(starts.size):
        start, stop = starts[tile], stops[tile]
        if (stop - start) * line > 1 << tile_shift:  # most of the labels will be needed: no edge then waits for one
            first = np.int64((tiles[start] & LOW) >> tile_shift << tile_shift)
            for k in range(first, min(labels.size, first + (1 << tile_shift)), line):
                prefetch(of_labels, k)
        for i in range(start, stop):
            u, v = tiles[i] >> np.uint64(32), tiles[i] & LOW
            of_u, of_v = np.uint64(labels[u]), np.uint64(labels[v])
            weight = tile_weight[i] if tile_weight.size else np.float32(1)
            if of_v != none:
                if values.size:
                    values[at[u >> shift]] = weight * factor[v] if factor.size else weight
                _append(u >> shift, np.uint32((u & mask) * classes + of_v), ends, room, out)
            if both and u != v and of_u != none:
                if values.size:
                    values[at[v >> shift]] = weight * factor[u] if factor.size else weight
                _append(v >> shift, np.uint32((v & mask) * classes + of_u), ends, room, out)
    for block in range(at.size):
        end = np.int64(at[block])
        for slot in range(end & 15):
            updates[end - (end & 15) + slot] = lines[(block << 4) + slot]
    _fence()


@numba.njit(inline="always")
def _add(updates, values, start, stop, sums):
    """Add updates ``start`` to ``stop`` - 1 to ``sums``; each counts 1 where there are no values."""
    if values.size:
        for i in range(start, stop):
            sums[updates[i]] += values[i]
    else:
        for i in range(start, stop):
            sums[updates[i]] += 1


@kernel()
def sum_blocks(
    starts, ends, own, own_values, received, received_values, sums, shift, factor, column, first, labels, diagonal,
    unit, out,
):  # fmt: skip
    """Write the rows of a rank's nodes, block by block; see `encoder.encode_nodes`.

    Args:
        starts, ends: of each block's updates, in ``own`` (row 0) and in ``received`` (a row for each rank), int64.
        own, own_values, received, received_values: the updates, see `scatter_updates`.
        sums: of a block, flat, zeros; int32 or float64.
        shift: a block has 2^shift nodes.
        factor: float64, what each node's row is multiplied by; empty: nothing.
        column: float64, what columns are multiplied by, shape (classes,).
        first: the first node.
        labels: of all nodes; as many as there are classes where there is none.
        diagonal: whether each node is its own neighbour too.
        unit: whether rows are divided by their Euclidean norm, where that is not 0.
        out: shape (nodes, classes), float32.
    """
    classes = column.size
    for block in range(starts.shape[1]):
        _add(own, own_values, starts[0, block], ends[0, block], sums)
        for source in range(1, starts.shape[0]):
            _add(received, received_values, starts[source, block], ends[source, block], sums)
        low = block << shift
        for r in range(low, min(out.shape[0], low + (1 << shift))):
            node, at = first + r, (r - low) * classes
            scale = factor[node] if factor.size else 1.0
            own_class = np.int64(labels[node]) if diagonal else classes
            own_sum = sums[at + own_class] + scale if own_class < classes else 0.0
            line, row = sums[at : at + classes], out[r]
            for k in range(classes):
                row[k] = line[k] * (column[k] * scale)
            line[:] = 0
            if own_class < classes:
                out[r, own_class] = own_sum * (column[own_class] * scale)
            if unit:
                square = 0.0
                for k in range(classes):
                    square += np.float64(out[r, k]) * out[r, k]
                norm = 1 / np.sqrt(square) if square > 0 else 0.0
                for k in range(classes):
                    out[r, k] *= norm
