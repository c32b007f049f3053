"""Numba kernels of the data layer; importing this module loads Numba."""

from __future__ import annotations

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from ..jit import kernel

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
ROUNDS = 8  # half-rounds of the network; from 6 on the counts of images and pairs were those of chance
CACHE_LINE = 64  # bytes
AHEAD = 4  # rows fetched ahead of the one that is copied; 2 to 8 measured alike, 16 slower


@numba.njit(forceinline=True)
def mix64(z):
    """SplitMix64's output function on a uint64; see `data.streams.mix`."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@intrinsic
def prefetch(typing, array, row, offset):  # the names are Numba's protocol: a typing context comes first
    """Ask for the cache line ``offset`` bytes into ``array[row]``; never faults.

    Into L2 only: L1 has few lines in flight, and fetching into it took 1.5 times as long.
    """

    def generate(context, builder, signature, arguments):
        view = context.make_array(signature.args[0])(context, builder, arguments[0])
        byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        start = builder.mul(arguments[1], builder.extract_value(view.strides, 0))
        address = builder.gep(builder.bitcast(view.data, byte), [builder.add(start, arguments[2])])
        kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        call = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(call, [address, flag(0), flag(2), flag(1)])  # to read, into L2, data
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64), generate


@numba.njit(forceinline=True)
def _forward(value, left_bits, right_bits, keys):
    one = np.uint64(1)
    left_mask, right_mask = (one << np.uint64(left_bits)) - one, (one << np.uint64(right_bits)) - one
    left, right = np.uint64(value) >> np.uint64(right_bits), np.uint64(value) & right_mask
    for i in range(0, ROUNDS, 2):
        left = (left ^ mix64(right + keys[i])) & left_mask
        right = (right ^ mix64(left + keys[i + 1])) & right_mask
    return np.int64((left << np.uint64(right_bits)) | right)


@numba.njit(forceinline=True)
def _backward(value, left_bits, right_bits, keys):
    one = np.uint64(1)
    left_mask, right_mask = (one << np.uint64(left_bits)) - one, (one << np.uint64(right_bits)) - one
    left, right = np.uint64(value) >> np.uint64(right_bits), np.uint64(value) & right_mask
    for i in range(ROUNDS - 2, -1, -2):
        right = (right ^ mix64(left + keys[i + 1])) & right_mask
        left = (left ^ mix64(right + keys[i])) & left_mask
    return np.int64((left << np.uint64(right_bits)) | right)


@kernel()
def permute(positions, shift, n, left_bits, right_bits, keys, out):
    """``out[i]`` = image of ``positions[i] + shift``; see `data.permutation.Permutation`.

    Two passes, so that the first, which nearly settles all, is vector code.
    """
    for i in range(positions.size):
        out[i] = _forward(positions[i] + shift, left_bits, right_bits, keys)
    for i in range(positions.size):
        while out[i] >= n:
            out[i] = _forward(out[i], left_bits, right_bits, keys)


@kernel()
def unpermute(images, n, left_bits, right_bits, keys, out):
    """``out[i]`` = the position whose image is ``images[i]``: the inverse of `permute`."""
    for i in range(images.size):
        out[i] = _backward(images[i], left_bits, right_bits, keys)
    for i in range(images.size):
        while out[i] >= n:
            out[i] = _backward(out[i], left_bits, right_bits, keys)


@numba.njit(inline="always")
def _fetch_ahead(x, rows, i):
    """Ask for the row of ``x`` that is copied `AHEAD` rows after the one at ``rows[i]``."""
    if i + AHEAD < rows.size:
        for offset in range(0, x.shape[1] * x.itemsize, CACHE_LINE):
            prefetch(x, rows[i + AHEAD], offset)  # type: ignore[call-arg]


@kernel()
def gather(x, rows, scale, out):
    """Copy rows ``x[rows]``, times ``scale``, converted to the type of the output.

    Rows come from all over the memory: fetching them ahead halves the time.
    """
    for i in range(rows.size):
        _fetch_ahead(x, rows, i)
        row = rows[i]
        for j in range(x.shape[1]):
            out[i, j] = out.dtype.type(x[row, j]) * scale


@kernel()
def gather_standardized(x, rows, scale, mean, factor, out):
    """As `gather`, with features (x · scale - mean) · factor, in float64: the mean may be large.

    ``mean`` and ``factor`` have shape (features,), float64.
    """
    for i in range(rows.size):
        _fetch_ahead(x, rows, i)
        row = rows[i]
        for j in range(x.shape[1]):
            out[i, j] = (np.float64(x[row, j]) * scale - mean[j]) * factor[j]


@kernel()
def gather_filled(x, rows, scale, fill, indicators, mean, factor, out):
    """As `gather_standardized`, with ``fill[j]`` where x · scale is NaN, and behind all others a feature per indicator.

    Where ``fill[j]`` is NaN the feature is 0 in all rows.
    ``indicators`` are columns of x, int64; ``fill`` has shape (columns of x,), the others (features,), float64.
    """
    width = x.shape[1]
    for i in range(rows.size):
        _fetch_ahead(x, rows, i)
        row = rows[i]
        for j in range(width):
            value = np.float64(x[row, j]) * scale
            if fill[j] != fill[j]:
                value = 0.0
            elif value != value:
                value = fill[j]
            out[i, j] = (value - mean[j]) * factor[j]
        for k in range(indicators.size):
            value = np.float64(x[row, indicators[k]])
            out[i, width + k] = ((1.0 if value != value else 0.0) - mean[width + k]) * factor[width + k]


@kernel(fastmath=False)
def known_sums(x, weight, sums):
    """Add the rows of ``x``, float64 with NaN where a value is missing, to ``sums``, shape (5, columns), float64.

    Those are, of the values that are there, the summed weight and its rest, and weight · value and its rest; and how
    many are missing.  ``weight`` has shape (rows,), or (0,) where all are 1.
    """
    for i in range(x.shape[0]):
        each = weight[i] if weight.size else 1.0
        for j in range(x.shape[1]):
            value = x[i, j]
            if value != value:
                sums[4, j] += 1.0
                continue
            _add(sums, 0, j, each)
            _add(sums, 2, j, each * value)


@numba.njit(inline="always")
def _add(sums, k, j, value):
    """Knuth's TwoSum (TAOCP volume 2, 4.2.2, theorem B): what the sum loses by rounding goes to its rest."""
    old = sums[k, j]
    new = old + value
    part = new - old
    sums[k, j] = new
    sums[k + 1, j] += (old - (new - part)) + (value - part)


@kernel()
def moments(x, weight, origin, mean, squares):
    """Summed weight of the rows of ``x`` less ``origin``; their mean, and weighted squares about it, into the others.

    Everything float64; ``weight`` has shape (rows,), or (0,) where all are 1, the rest (features,).
    """
    rows, width = x.shape
    mean[:] = 0.0
    squares[:] = 0.0
    total = 0.0
    for i in range(rows):
        each = weight[i] if weight.size else 1.0
        total += each
        for j in range(width):
            mean[j] += each * (x[i, j] - origin[j])
    if total == 0:
        return total
    for j in range(width):
        mean[j] /= total
    for i in range(rows):
        each = weight[i] if weight.size else 1.0
        for j in range(width):
            off = x[i, j] - origin[j] - mean[j]
            squares[j] += each * off * off
    return total
