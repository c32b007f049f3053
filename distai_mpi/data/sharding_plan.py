"""Which row of a file becomes which row of which set on which rank."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .partition import Partition
from .permutation import Permutation

Array = Any


@dataclass(frozen=True)
class ShardingPlan:
    """The rows of a file, permuted, cut into sets, each sharded over the ranks.

    A rank keeps its rows of all sets in one array, set after set.

    Attributes:
        order: the permutation of the file's rows; None: the file's own order.
        sets: rows of each set; together the rows of the file.
        partition: how many rows of each set a rank gets.
    """

    order: Permutation | None
    sets: tuple[int, ...]
    partition: Partition

    @property
    def rows(self) -> int:
        """Rows of the file."""
        return sum(self.sets)

    def counts(self, which: int) -> tuple[int, ...]:
        """Rows of each rank in set ``which``."""
        return self.partition.counts(self.sets[which])

    def first(self, which: int) -> int:
        """Position in the order of the first row of set ``which``."""
        return sum(self.sets[:which])

    def rows_of(self, rank: int) -> Array:
        """The file's rows that ``rank`` keeps, int64, in the order in which it keeps them."""
        starts = self._starts[:, rank]
        ranges = [np.arange(start, start + n) for start, n in zip(starts, self._counts[:, rank], strict=True)]
        positions = np.concatenate(ranges)
        return positions if self.order is None else self.order.apply(positions, out=positions)

    def destinations(self, start: int, stop: int) -> tuple[Array, Array]:
        """Of the file's rows ``start`` to ``stop - 1``: the rank that keeps it, and the index there (both int64)."""
        rows = np.arange(start, stop)
        positions = rows if self.order is None else self.order.inverse(rows)
        at = np.searchsorted(self._starts.ravel(), positions, side="right") - 1
        kept_before = np.cumsum(self._counts, axis=0) - self._counts  # rows of earlier sets on the same rank
        return at % self.partition.ranks, positions - self._starts.ravel()[at] + kept_before.ravel()[at]

    @cached_property
    def _counts(self) -> Array:
        """Rows by set and rank, shape (sets, ranks)."""
        return np.array([self.counts(which) for which in range(len(self.sets))], dtype=np.int64)

    @cached_property
    def _starts(self) -> Array:
        """Position of the first of these rows, shape (sets, ranks); ascending when flattened."""
        flat = self._counts.ravel()
        return (np.cumsum(flat) - flat).reshape(self._counts.shape)
