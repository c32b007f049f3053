"""Numba kernels of the float16 messages; importing this module loads Numba.

A message is a uint16 vector: the exponents of its blocks, one word for each `BLOCK` elements, then as many float16
numbers, bit by bit, as there are elements.  A block holds its float32 numbers times a power of two that brings
the largest of them between 2**14 and 2**15: nothing overflows, and what is up to 2**28 times smaller than the
largest keeps all 11 bits.  ("Block floating point"; what loss scaling does for a whole gradient, Micikevicius et
al. 2018, "Mixed precision training", section 3.2, without a factor to be searched for.)

The conversions are bit arithmetic that LLVM vectorises on any processor.  LLVM's own, by an intrinsic, is no faster
from memory, and ends the process where it compiles for a processor without F16C.  Every operation is wrapped in
uint32 again: Numba widens to 64 bits, which halves the speed.
"""

from __future__ import annotations

import numba
import numpy as np

from ..jit import kernel

BLOCK = 4096  # elements under one exponent: 16 KiB of float32, which stay in the first cache between two passes

U = np.uint32
MAGNITUDE = U(0x7FFFFFFF)  # of the bits of a float32, all but the sign
INFINITY = U(0x7F800000)
LEAST_NORMAL = U((127 - 14) << 23)  # 2**-14, as float32: the least normal float16
OVERFLOW = U((127 + 16) << 23)  # 2**16: beyond the largest float16
REBIAS = U((127 - 15) << 23)  # from float32's exponents to float16's, at float32's position
ULP = U((127 + 23 - 24) << 23)  # 0.5: added to a number below 2**-14, it leaves multiples of 2**-24 in the last bits
HALF_ULP = np.float32(0.5)
UNBIAS = np.float32(2.0**112)
TOP, FLOOR = 254, 15  # biased exponents: the largest of a finite float32; below FLOOR the scale is float32's largest
LARGEST_FINITE = U(np.float32(32760).view(np.uint32) - 1)  # the last that is rounded to less than 2**15


@numba.njit(inline="always")
def _exponent(x):
    """The biased exponent of the largest magnitude in ``x``, at least FLOOR; 255 where any is infinite or NaN."""
    bits, largest = x.view(np.uint32), U(0)
    for i in range(bits.size):
        largest = max(largest, U(bits[i] & MAGNITUDE))
    return max(U(largest >> U(23)), U(FLOOR))


@numba.njit(inline="always")
def _scale(exponent):
    """The power of two that brings numbers of this exponent to 2**14."""
    return U((U(268) - exponent) << U(23)).view(np.float32)


@numba.njit(inline="always")
def _unscale(exponent):
    """1 / `_scale`, a normal float32 too."""
    return U((exponent - U(14)) << U(23)).view(np.float32)


@numba.njit(inline="always")
def _narrow(value, limit):
    """The bits of the float16 nearest to a float32, ties to even; magnitudes above ``limit``, as bits, count as that.

    Normal numbers: half a unit in the last place is added to the bits, less one where the last bit is even, and
    13 bits are dropped; a carry moves on into the exponent as it should.  Subnormal ones: the sum with 0.5 has
    float16's least number as its last place.
    """
    bits = np.float32(value).view(np.uint32)
    sign = U(U(bits >> U(16)) & U(0x8000))
    bits = U(min(U(bits & MAGNITUDE), limit))
    subnormal = U(np.float32(bits.view(np.float32) + HALF_ULP).view(np.uint32) - ULP)
    odd = U(U(bits >> U(13)) & U(1))
    normal = U(U(U(bits - REBIAS) + U(U(0x0FFF) + odd)) >> U(13))
    narrow = U(subnormal) if bits < LEAST_NORMAL else U(normal)
    narrow = U(U(0x7C00) | U(U(bits > INFINITY) << U(9))) if bits >= OVERFLOW else U(narrow)
    return np.uint16(sign | narrow)


@numba.njit(inline="always")
def _widen(word):
    """The float32 that equals a float16, given by its bits."""
    bits = U(word)
    sign = U(U(bits & U(0x8000)) << U(16))
    value = np.float32(U(U(bits & U(0x7FFF)) << U(13)).view(np.float32) * UNBIAS)
    magnitude = value.view(np.uint32)
    magnitude = U(magnitude | INFINITY) if magnitude >= OVERFLOW else U(magnitude)
    return U(sign | magnitude).view(np.float32)


@kernel()
def _pack_block(x, words):
    """Write a block; returns its exponent."""
    exponent = _exponent(x)
    scale = _scale(exponent)
    limit = LARGEST_FINITE if exponent == TOP else U(0xFFFFFFFF)  # float32's largest must not become infinite
    for i in range(x.size):
        words[i] = _narrow(x[i] * scale, limit)
    return exponent


@kernel()
def _shift_block(words, exponent, base, out):
    """out ← base + the block."""
    factor = _unscale(exponent)
    for i in range(out.size):
        out[i] = base[i] + _widen(words[i]) * factor


@kernel()
def pack(x, message):
    """Write the message that stands for ``x``, float32, shape (n,)."""
    blocks = -(-x.size // BLOCK)
    words = message[blocks:]
    for block in range(blocks):
        part = slice(block * BLOCK, min((block + 1) * BLOCK, x.size))
        message[block] = _pack_block(x[part], words[part])


@kernel()
def add(message, total):
    """total ← total + what ``message`` stands for; float32, shape (n,)."""
    blocks = -(-total.size // BLOCK)
    words = message[blocks:]
    for block in range(blocks):
        part = slice(block * BLOCK, min((block + 1) * BLOCK, total.size))
        block_words, block_total, factor = words[part], total[part], _unscale(U(message[block]))
        for i in range(block_total.size):
            block_total[i] += _widen(block_words[i]) * factor


@kernel()
def shift(message, base, out):
    """out ← base + what ``message`` stands for; float32, shape (n,).  Where the two overlap it is slow."""
    blocks = -(-out.size // BLOCK)
    words = message[blocks:]
    for block in range(blocks):
        part = slice(block * BLOCK, min((block + 1) * BLOCK, out.size))
        _shift_block(words[part], U(message[block]), base[part], out[part])


@kernel()
def pack_change(x, base, residual, message):
    """Write the message that stands for x + residual - base, and let ``x`` be what its receivers make of it.

    ``residual`` keeps what the message lacks; all float32, shape (n,), without overlap.
    """
    blocks = -(-x.size // BLOCK)
    words = message[blocks:]
    for block in range(blocks):
        part = slice(block * BLOCK, min((block + 1) * BLOCK, x.size))
        new, old, change = x[part], base[part], residual[part]
        for i in range(new.size):
            change[i] += new[i] - old[i]
        exponent = _pack_block(change, words[part])
        message[block] = exponent
        _shift_block(words[part], exponent, old, new)
        for i in range(new.size):
            change[i] -= new[i] - old[i]
