"""Vectors that repeat a short pattern, by which sums over ranks are checked without a second vector."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any
PERIOD = 7  # of the pattern: numbers from 0 to 6, whose sums are exact in every type
BLOCK = PERIOD << 12  # elements that are written or compared at once


def write(x: Array, rank: int) -> None:
    """Fill ``x``, shape (n,), with the pattern of ``rank``: (i + rank) mod 7."""
    block = ((np.arange(BLOCK) + rank) % PERIOD).astype(x.dtype)
    for start in range(0, x.size, BLOCK):
        part = x[start : start + BLOCK]
        part[:] = block[: part.size]


def total(ranks: int, dtype: Any) -> Array:
    """The sum of the patterns of so many ranks, shape (PERIOD,)."""
    index = np.arange(PERIOD)
    return np.add.reduce([(index + rank) % PERIOD for rank in range(ranks)]).astype(dtype)


def repeats(x: Array, pattern: Array, tolerance: float = 0.0) -> bool:
    """Whether ``x``, shape (n,), repeats ``pattern``, shape (PERIOD,), to within ``tolerance``."""
    block = np.tile(pattern, BLOCK // PERIOD)
    parts = (x[start : start + BLOCK] for start in range(0, x.size, BLOCK))
    return all(np.allclose(part, block[: part.size], rtol=tolerance, atol=tolerance) for part in parts)
