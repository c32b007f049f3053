"""Sums of many sparse rows in float32: those of frequent features are carried over into float64 now and then."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend import HOST

Array = Any
LEVELS = 64


class Frequent:
    """The features whose sums over rows have so many terms that float32 would lose figures.

    Sums of all features in float64 take twice the room in the caches: passes over 200,000 rows of 100,000 features then
    took as long on a quiet machine, but up to half as long again beside other processes.  So float32 holds them, and
    after every `PART` rows some are added to float64 totals, and become 0: those of features that half of the rows and
    more have each time, of a quarter every second time, and so on.  A sum then has about `PART` terms, √(PART · rows)
    at most where rows with a feature lie together, and there are fewer such additions than terms / 256.

    Attributes:
        features: those with more than `PART` entries, by falling number of entries, shape (n,), int64.
        reach: how many of ``features``, from the first, turn ``t`` carries over: element k where 2ᵏ is the largest
            power of two that divides t; shape (LEVELS,), int64.
    """

    def __init__(self, features: Array, levels: Array) -> None:
        self.features = HOST.read_only(features)
        self.reach = HOST.read_only(np.searchsorted(levels, np.arange(LEVELS), side="right"))

    @classmethod
    def of(cls, indices: Array, features: int, rows: int) -> Frequent:
        """Of so many ``rows`` with these ``indices``."""
        from .row_kernels import PART
        from .sparse_kernels import count

        counts = np.zeros(features, np.int64)
        count(HOST.read_only(indices), counts)
        found = np.flatnonzero(counts > PART)
        found = found[np.argsort(-counts[found], kind="stable")]
        return cls(found, np.log2(np.maximum(rows / counts[found], 1)).astype(np.int64))


NONE = Frequent(np.empty(0, np.int64), np.empty(0, np.int64))
