"""Numba kernels of shared memory: sums straight from the vectors of a node's ranks.

Vectors are told by address: row r of a set begins ``stride`` bytes · r after ``base``, in this process.  Kernels hold
no Python object, and entering one costs less than with arrays.  Importing this module loads Numba.
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
from ..shared_barrier import announce, wait_for

BLOCK = 2048  # elements summed at once: 8 or 16 KiB stay in the first-level cache


# --- what Numba lacks: addresses as arrays, stores past the cache


@intrinsic
def _fence(typing):
    """Order stores past the cache before later ones; release stores alone don't."""

    def generate(context, builder, signature, args):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def _pointer(typing, address):
    """``address`` as what `numba.carray` takes."""

    def generate(context, builder, signature, args):
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


@intrinsic
def _stream_sum(typing, out, first, second):
    """Store the sum of the 64 bytes of elements at the fronts of two arrays to that of ``out``, past the cache.

    ``out`` starts at a multiple of 64 bytes.  Saves reading the line that is overwritten.
    """
    dtype = out.dtype

    def generate(context, builder, signature, args):
        element = context.get_value_type(dtype)
        lanes = ir.VectorType(element, 64 // (dtype.bitwidth // 8))
        pointers = []
        for kind, value in zip(signature.args, args, strict=True):
            data = context.make_array(kind)(context, builder, value).data
            pointers.append(builder.bitcast(data, lanes.as_pointer()))
        a, b = (builder.load(pointer, align=dtype.bitwidth // 8) for pointer in pointers[1:])
        total = builder.fadd(a, b) if isinstance(dtype, types.Float) else builder.add(a, b)
        store = builder.store(total, pointers[0], align=64)
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.void(out, first, second), generate


@numba.njit(inline="always")
def _row(base, stride, row, start, stop, like):
    """Elements ``start`` to ``stop - 1`` of a row, of the type of the array ``like``."""
    at = base + stride * row + start * like.itemsize
    return numba.carray(_pointer(at), (stop - start,), like.dtype)


# --- sums


@kernel()
def sum_rows(base, stride, rows, start, stop, out, scale):
    """out ← scale · the sum of all rows' elements ``start`` to ``stop - 1``, in the order of rows.

    ``out``, shape (stop - start,), may be that range of one of the rows.
    """
    first = _row(base, stride, 0, start, stop, out)
    if rows == 1:
        for i in range(out.size):
            out[i] = scale * first[i]
    elif rows == 2:
        second = _row(base, stride, 1, start, stop, out)
        # one loop for each case of aliasing: the compiler makes vector code of what it can tell apart
        if second.ctypes.data == out.ctypes.data:
            for i in range(out.size):
                second[i] = scale * (first[i] + second[i])
        elif first.ctypes.data == out.ctypes.data:
            for i in range(out.size):
                first[i] = scale * (first[i] + second[i])
        else:
            for i in range(out.size):
                out[i] = scale * (first[i] + second[i])
    else:
        total = np.empty(BLOCK, out.dtype)
        for low in range(start, stop, BLOCK):
            high = min(low + BLOCK, stop)
            _sum_block(base, stride, rows, low, high, total)
            part = out[low - start : high - start]
            for i in range(part.size):
                part[i] = scale * total[i]


@numba.njit(inline="always")
def _sum_block(base, stride, rows, low, high, total):
    """Sum three rows or more into the front of ``total``, which is nobody's row."""
    a, b = _row(base, stride, 0, low, high, total), _row(base, stride, 1, low, high, total)
    for i in range(high - low):
        total[i] = a[i] + b[i]
    for row in range(2, rows):
        a = _row(base, stride, row, low, high, total)
        for i in range(high - low):
            total[i] += a[i]


@kernel()
def stream_rows(base, stride, rows, start, stop, out):
    """As `sum_rows` of two rows or more, stored past the cache: for results too long to stay there.

    ``out`` is no part of the rows, and starts at a multiple of 64 bytes.
    """
    lanes = 64 // out.itemsize
    total = np.empty(BLOCK, out.dtype)
    for low in range(start, stop, BLOCK):
        high = min(low + BLOCK, stop)
        last = _row(base, stride, rows - 1, low, high, out)
        before = _row(base, stride, 0, low, high, out)
        if rows > 2:
            _sum_block(base, stride, rows - 1, low, high, total)
            before = total[: high - low]
        part = out[low - start : high - start]
        whole = part.size - part.size % lanes
        for i in range(0, whole, lanes):
            _stream_sum(part[i:], before[i:], last[i:])
        for i in range(whole, part.size):
            part[i] = before[i] + last[i]
    _fence()


@kernel()
def sum_everywhere(base, stride, rows, start, stop, like):
    """Replace elements ``start`` to ``stop - 1`` of every row by their sum over the rows; ``like`` names the type."""
    total = np.empty(BLOCK, like.dtype)
    if rows == 2:
        first, second = _row(base, stride, 0, start, stop, like), _row(base, stride, 1, start, stop, like)
        for i in range(stop - start):
            value = first[i] + second[i]
            first[i] = value
            second[i] = value
        return
    for low in range(start, stop, BLOCK):
        high = min(low + BLOCK, stop)
        _sum_block(base, stride, rows, low, high, total)
        for row in range(rows):
            part = _row(base, stride, row, low, high, like)
            for i in range(high - low):
                part[i] = total[i]


SUM, STREAM, EVERYWHERE = 0, 1, 2  # `sum_rows`, `stream_rows` and `sum_everywhere`


@kernel()
def sum_between(flags, rank, ranks, turn, spins, yields, stage, way, base, stride, rows, start, stop, address, like):
    """One of the sums above into ``address``, between two barriers of the node's ranks; see `NodeBarrier.around`."""
    if stage == -1:
        announce(flags, rank, turn + 1)
    if stage < 1:
        if not wait_for(flags, ranks, turn + 1, spins, yields):
            return 0
        out = _row(address, 0, 0, 0, stop - start, like)
        if way == SUM:
            sum_rows(base, stride, rows, start, stop, out, like.dtype.type(1))
        elif way == STREAM:
            stream_rows(base, stride, rows, start, stop, out)
        else:
            sum_everywhere(base, stride, rows, start, stop, like)
        announce(flags, rank, turn + 2)
    return 2 if wait_for(flags, ranks, turn + 2, spins, yields) else 1
