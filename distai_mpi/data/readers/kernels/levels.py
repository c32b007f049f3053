"""Numba kernels of categories: distinct fields of text, and hashes of them; importing this module loads Numba.

Levels (the distinct values of a column) stand one behind another in ``store``, uint8: level i ends at ``ends[i]``.
"""

from __future__ import annotations

import numba
import numpy as np

from ....jit import kernel
from ....vectors import address
from ...kernels import GOLDEN
from ..codes import HASH, MINUS, PLUS, POINT, QUOTE, SPACE, ZERO
from .tables import trimmed

SHORT = 8  # bytes of the longest word for a missing value, and of true and false
LONGEST_WHOLE = 15  # digits of whole numbers that float64 holds in any case
_FIRST = np.zeros(256, np.bool_)  # first bytes of short words that may stand for a missing or a truth value
_FIRST[list(b"#-1<?NnTtFf")] = True


@numba.njit(inline="always")
def rotated(value, bits):
    """uint32 ``value``, its bits rotated to the left."""
    return np.uint32((value << np.uint32(bits)) | (value >> np.uint32(32 - bits)))


@numba.njit
def murmur3(text, start, stop, seed):
    """MurmurHash3_x86_32 (Appleby 2011, public domain) of ``text[start:stop]``; uint32."""
    h, at = np.uint32(seed), start
    while at + 4 <= stop:
        k = np.uint32(
            np.uint32(text[at])
            | (np.uint32(text[at + 1]) << np.uint32(8))
            | (np.uint32(text[at + 2]) << np.uint32(16))
            | (np.uint32(text[at + 3]) << np.uint32(24))
        )
        k = np.uint32(rotated(np.uint32(k * np.uint32(0xCC9E2D51)), 15) * np.uint32(0x1B873593))
        h = np.uint32(rotated(np.uint32(h ^ k), 13) * np.uint32(5) + np.uint32(0xE6546B64))
        at += 4
    k = np.uint32(0)
    for byte in range(stop - at):
        k |= np.uint32(text[at + byte]) << np.uint32(8 * byte)
    h = np.uint32(h ^ np.uint32(rotated(np.uint32(k * np.uint32(0xCC9E2D51)), 15) * np.uint32(0x1B873593)))
    h = np.uint32(h ^ np.uint32(stop - start))
    h = np.uint32((h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B))
    h = np.uint32((h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35))
    return np.uint32(h ^ (h >> np.uint32(16)))


@numba.njit
def _eight(text, at):
    """Eight bytes from ``text[at]`` on as a uint64; ``text`` is a pointer, so that the compiler makes it one load."""
    value = np.uint64(0)
    for i in range(8):
        value |= np.uint64(text[at + i]) << np.uint64(8 * i)
    return value


@numba.njit
def _slot(text, start, stop, mask):
    """Where the bytes from ``start`` to ``stop`` - 1 of ``text``, a pointer, are first looked for in a hash table."""
    h, at = np.uint64(stop - start), start
    while at + 8 <= stop:
        h = (h ^ _eight(text, at)) * GOLDEN
        h ^= h >> np.uint64(32)
        at += 8
    rest = np.uint64(0)
    if stop - start >= 8:
        rest = _eight(text, stop - 8)
    else:
        for i in range(start, stop):
            rest = (rest << np.uint64(8)) | np.uint64(text[i])
    h = (h ^ rest) * GOLDEN
    return np.int64(h >> np.uint64(32)) & mask


@numba.njit
def _equal(a, i, b, j, length):
    """Whether ``length`` bytes from ``a[i]`` and ``b[j]`` on are the same; both are pointers."""
    at = 0
    while at + 8 <= length:
        if _eight(a, i + at) != _eight(b, j + at):
            return False
        at += 8
    while at < length:
        if a[i + at] != b[j + at]:
            return False
        at += 1
    return True


@numba.njit
def signed_feature(hashed, bits):
    """Feature and sign that a hash stands for, as in scikit-learn: |h| mod 2^bits, and the sign of h as an int32."""
    negative = hashed >= np.uint32(1 << 31)
    size = np.int64(~hashed) + 1 if negative else np.int64(hashed)
    return size & ((1 << bits) - 1), negative


@kernel()
def index_fields(text, spans, first, state, store, ends, slots, out):
    """The level of each field from row ``first`` on, in the order in which they are met; stops where there is no room.

    Args:
        text: uint8; spans: first byte and end of each field, int64, shape (rows, 2); blanks and quotes around it are
            left out.
        state: number of levels and bytes used of ``store``, int64, shape (2,); updated.
        store, ends: the levels so far, with room for more.
        slots: hash table of levels + 1, int32, as many as a power of two, more than twice the room of ``ends``.
        out: the levels, int64, shape (rows,); overwritten.

    Returns:
        The row that found no room, or the number of rows.
    """
    mask = slots.size - 1
    of_text, of_store = address(text), address(store)
    for row in range(first, spans.shape[0]):
        start, stop = trimmed(text, spans[row, 0], spans[row, 1])
        length, count, used = stop - start, state[0], state[1]
        at = _slot(of_text, start, stop, mask)
        level = np.int64(slots[at]) - 1
        while level >= 0:
            begin = ends[level - 1] if level else 0
            if ends[level] - begin == length and _equal(of_store, begin, of_text, start, length):
                break
            at = (at + 1) & mask
            level = np.int64(slots[at]) - 1
        if level < 0:
            if count == ends.size or used + length > store.size:
                return row
            for i in range(length):
                store[used + i] = text[start + i]
            level, ends[count], state[0], state[1] = count, used + length, count + 1, used + length
            slots[at] = count + 1
        out[row] = level
    return spans.shape[0]


@kernel()
def fill_slots(store, ends, count, slots):
    """Enter the first ``count`` levels into the hash table ``slots``, which is empty (0)."""
    mask = slots.size - 1
    for level in range(count):
        at = _slot(address(store), ends[level - 1] if level else 0, ends[level], mask)
        while slots[at]:
            at = (at + 1) & mask
        slots[at] = level + 1


@kernel()
def hash_levels(store, ends, first, second):
    """Write hashes of all levels by the seeds 0 and 1 into ``first`` and ``second``, uint32, shape (levels,)."""
    for level in range(ends.size):
        begin = ends[level - 1] if level else 0
        first[level] = murmur3(store, begin, ends[level], 0)
        second[level] = murmur3(store, begin, ends[level], 1)


@kernel()
def mark_unusual(store, ends, out):
    """Tell of each level in ``out``, bool, whether another spelling of it may be the same word, or a missing value.

    Those are numbers but plain whole ones, words with quotes or beyond ASCII, and short ones that may be missing or
    truth values.
    """
    for level in range(ends.size):
        begin, end = ends[level - 1] if level else 0, ends[level]
        if begin == end:
            out[level] = True
            continue
        byte, plain = store[begin], end - begin <= LONGEST_WHOLE
        unusual = end - begin <= SHORT and _FIRST[byte]
        for i in range(begin, end):
            plain = plain and ZERO <= store[i] < ZERO + 10
            unusual = unusual or store[i] == QUOTE or store[i] > 127  # which may be Latin-1
        number = ZERO <= byte < ZERO + 10 or byte == PLUS or byte == MINUS or byte == POINT or byte == HASH
        plain = plain and (byte != ZERO or end - begin == 1)
        out[level] = not plain and (unusual or number or store[end - 1] <= SPACE)


@kernel()
def count_entries(x, bases, starts, ends):
    """Write how many entries rows 0 to r have into ``ends``, int64, shape (rows,); see `encode_rows`."""
    total = 0
    for row in range(x.shape[0]):
        for column in range(x.shape[1]):
            if bases[column] < 0:
                total += x[row, column] != 0
            else:
                level = bases[column] + np.int64(x[row, column])
                total += starts[level + 1] - starts[level]
        ends[row] = total


@kernel()
def encode_rows(x, bases, firsts, starts, features, weights, indices, values):
    """Rows of numbers and levels as a CSR matrix.

    Args:
        x: shape (rows, columns), float64: numbers, of which those that are not 0 become entries, and levels.
        bases: int64, shape (columns,): of levels the row of (starts, features, weights) that level 0 has; -1: numbers.
        firsts: int64, shape (columns,): the first feature of each column.
        starts, features, weights: a CSR matrix with a row for every level; features count from the column's first.
        indices, values: uint32 and float64, of all entries; overwritten.
    """
    entry = 0
    for row in range(x.shape[0]):
        for column in range(x.shape[1]):
            if bases[column] < 0:
                if x[row, column] != 0:
                    indices[entry], values[entry] = firsts[column], x[row, column]
                    entry += 1
            else:
                level = bases[column] + np.int64(x[row, column])
                for each in range(starts[level], starts[level + 1]):
                    indices[entry], values[entry] = firsts[column] + features[each], weights[each]
                    entry += 1
