"""Numba kernel of hashed word n-grams; importing this module loads Numba."""

from __future__ import annotations

import math

import numba
import numpy as np

from ....jit import kernel
from .levels import murmur3, signed_feature

_WORD = np.zeros(256, np.uint8)  # each byte of a word in lower case; 0: it is in none.  Bytes beyond ASCII are in words
_WORD[128:] = np.arange(128, 256)
for _byte in b"abcdefghijklmnopqrstuvwxyz0123456789_":
    _WORD[_byte] = _byte
    _WORD[ord(chr(_byte).upper())] = _byte


@numba.njit
def _sort(keys, count):
    """Sort the first ``count`` of ``keys``: Shell's method, with gaps that shrink by 2.2 (Ciura 2001)."""
    gap = 1
    while gap < count:
        gap = gap * 11 // 5 + 1
    while gap:
        for i in range(gap, count):
            key, at = keys[i], i
            while at >= gap and keys[at - gap] > key:
                keys[at] = keys[at - gap]
                at -= gap
            keys[at] = key
        gap = 0 if gap == 1 else max(1, gap * 5 // 11)


@numba.njit
def _words(text, start, stop, buffer, begins, ends):
    """Copy the words of ``text[start:stop]`` into ``buffer``, in lower case with blanks between them; their number."""
    count, at, used = 0, start, 0
    while at < stop:
        begin = used
        while at < stop and _WORD[text[at]]:
            buffer[used] = _WORD[text[at]]
            used += 1
            at += 1
        if used - begin >= 2:
            begins[count], ends[count], buffer[used] = begin, used, 32
            count, used = count + 1, used + 1
        else:
            used = begin
        at += 1
    return count


@kernel()
def hash_ngrams(text, spans, shortest, longest, bits, buffer, begins, ends, keys, starts, features, values):
    """Signed counts of the n-grams of words of each document, by their hashes, scaled to a Euclidean norm of 1.

    Words are runs of two or more letters, digits and _, in lower case.  An n-gram is n words with blanks between them;
    `murmur3` of it, by the seed 0, gives its feature and sign, see `signed_feature`.

    Args:
        text: uint8; spans: first byte and end of each document, int64, shape (documents, 2).
        shortest, longest: least and greatest n.
        bits: there are 2^bits features.
        buffer, begins, ends, keys: room for a document: its bytes + 1, and as many words and n-grams; overwritten.
        starts, features, values: CSR matrix, uint32 and float64, with room for all n-grams; overwritten.
    """
    entry, starts[0] = 0, 0
    for document in range(spans.shape[0]):
        words = _words(text, spans[document, 0], spans[document, 1], buffer, begins, ends)
        count = 0
        for n in range(shortest, longest + 1):
            for word in range(words - n + 1):
                feature, negative = signed_feature(murmur3(buffer, begins[word], ends[word + n - 1], 0), bits)
                keys[count] = 2 * feature + negative
                count += 1
        _sort(keys, count)
        first, at, squares = entry, 0, 0.0
        while at < count:
            feature, value = keys[at] >> 1, 0.0
            while at < count and keys[at] >> 1 == feature:
                value += 1.0 - 2.0 * (keys[at] & 1)
                at += 1
            features[entry], values[entry] = feature, value  # 0 too: the document has such words
            squares += value * value
            entry += 1
        for each in range(first, entry):
            values[each] /= max(1.0, math.sqrt(squares))  # of whole numbers: it is 0, or 1 at least
        starts[document + 1] = entry


@kernel()
def count_documents(indices, first, last, counts):
    """Add to ``counts``, int64, how often each of the features ``first`` to ``last - 1`` stands in ``indices``."""
    for index in indices:
        if first <= index < last:
            counts[index - first] += 1


@kernel()
def weigh_terms(starts, indices, values, first, weights):
    """Multiply the values of features ``first`` and on by ``weights``, and scale each row's to a norm of 1."""
    last = first + weights.size
    for row in range(starts.size - 1):
        squares = 0.0
        for entry in range(starts[row], starts[row + 1]):
            if first <= indices[entry] < last:
                values[entry] *= weights[indices[entry] - first]
                squares += np.float64(values[entry]) ** 2
        if squares > 0:
            for entry in range(starts[row], starts[row + 1]):
                if first <= indices[entry] < last:
                    values[entry] /= math.sqrt(squares)
