"""Documents as hashed word n-grams (Weinberger et al. 2009, "Feature hashing for large scale multitask learning")."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from ..backend import HOST
from .readers.levels import Levels

Array = Any
BLOCK_BYTES = 4 << 20  # of documents hashed at a time
WORDS = re.compile(r"\b\w\w+\b")


def hash_documents(documents: Levels, ngrams: tuple[int, int], bits: int) -> tuple[Array, Array, Array]:
    """The n-grams of ``documents``, n from ngrams[0] to ngrams[1], as signed counts of 2^bits features.

    Words are what scikit-learn's default pattern finds in the text in lower case, and features and signs are those of
    its HashingVectorizer; each document has a Euclidean norm of 1.

    Returns:
        Starts, features and values of a CSR matrix with a row for each document: int64, uint32, float64.
    """
    from .readers.kernels.ngrams import hash_ngrams

    text, spans = _in_ascii(documents)
    lengths, shortest, longest = spans[:, 1] - spans[:, 0], *ngrams
    parts, starts, first = [], [np.zeros(1, np.int64)], 0
    cuts = np.flatnonzero(np.diff(np.cumsum(lengths) // BLOCK_BYTES)) + 1
    for block in np.split(spans, cuts):
        most = int((block[:, 1] - block[:, 0]).max(initial=0))
        words, total = most // 2 + 1, int((block[:, 1] - block[:, 0]).sum()) // 2 + len(block)
        room = (longest - shortest + 1) * total
        keys = np.empty((longest - shortest + 1) * words, np.int64)
        scratch = np.empty(most + 2, np.uint8), np.empty(words, np.int64), np.empty(words, np.int64), keys
        ends, features, values = np.empty(len(block) + 1, np.int64), np.empty(room, np.uint32), np.empty(room)
        hash_ngrams(
            HOST.read_only(text), HOST.read_only(block), shortest, longest, bits, *scratch, ends, features, values
        )
        parts.append((features[: ends[-1]].copy(), values[: ends[-1]].copy()))
        starts.append(ends[1:] + first)
        first += int(ends[-1])
    return np.concatenate(starts), np.concatenate([f for f, _ in parts]), np.concatenate([v for _, v in parts])


def _in_ascii(documents: Levels) -> tuple[Array, Array]:
    """Bytes and spans of ``documents``: of those with letters beyond ASCII the words, in lower case, with blanks."""
    store, spans = documents.store, documents.spans
    beyond = np.flatnonzero(store > 127)
    if not len(documents) or not beyond.size:
        return store, spans
    which = np.unique(np.searchsorted(documents.ends, beyond, side="right"))
    which = which[which < len(documents)]
    words = [" ".join(WORDS.findall(text.lower())) for text in documents.words(which)]
    appended = Levels.of(words)
    spans[which] = appended.spans + len(store)
    return np.concatenate([store, appended.store]), spans
