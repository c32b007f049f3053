"""Partitions of rows into contiguous ranges, one per rank."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise

from ..errors import ConfigError
from ..settings import called


def even_range(rows: int, parts: int, part: int) -> tuple[int, int]:
    """First row and end of range number ``part`` when ``rows`` are cut into even ranges.

    Lengths differ by one at most; with more parts than rows some are empty.
    """
    return rows * part // parts, rows * (part + 1) // parts


@dataclass(frozen=True)
class Partition:
    """Numbers of rows of each rank, in a set or a global batch, in proportion to weights; replicated.

    A rank needs the time rows / weight.  The counts are those that let the last rank finish soonest: D'Hondt's
    method of highest averages (Balinski & Young 2001, "Fair Representation", appendix A), which gives every row to
    the rank that would finish it first.  No rank gets less than its quota rounded down, and one of weight 0
    gets nothing.  Equal weights make even ranges, as `even_range` does.

    Args:
        weights: speed of each rank in any one unit, such as rows per second; finite, not negative, not all 0.

    Raises:
        ConfigError: the weights cannot be used.
    """

    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.weights or not all(0 <= w < math.inf for w in self.weights) or not any(self.weights):
            raise ConfigError(f"{called('shards')} {self}: give each rank a finite weight from 0 up, not all of them 0")
        object.__setattr__(self, "weights", tuple(float(w) for w in self.weights))

    def __str__(self) -> str:
        return ",".join(f"{w:g}" for w in self.weights)

    @classmethod
    def even(cls, ranks: int) -> Partition:
        """The same for each of ``ranks`` ranks."""
        return cls((1.0,) * ranks)

    @property
    def ranks(self) -> int:
        """Number of ranks."""
        return len(self.weights)

    def check_ranks(self, ranks: int) -> None:
        """Raise a ConfigError unless there is one weight for each of ``ranks`` ranks."""
        if self.ranks != ranks:
            raise ConfigError(f"{called('shards')} {self}: give one weight a rank, {ranks} in all, not {self.ranks}")

    def counts(self, rows: int) -> tuple[int, ...]:
        """Numbers of rows of all ranks when ``rows`` are partitioned."""
        return tuple(stop - start for start, stop in pairwise(_cuts(self.weights, rows)))

    def range_of(self, rows: int, rank: int) -> tuple[int, int]:
        """First row and end of the range of ``rank`` when ``rows`` are sharded."""
        cuts = _cuts(self.weights, rows)
        return cuts[rank], cuts[rank + 1]


def capped_counts(weights: Sequence[float], rows: int, caps: Sequence[int]) -> tuple[int, ...]:
    """Numbers of rows of all ranks, in proportion to ``weights`` as far as ranks have room for them; replicated.

    A rank gets min(cap, level · weight) rows, to whole numbers, with the one level at which these are all rows: ranks
    that are full leave the rest to the others, as in water-filling.  Without caps these are `Partition.counts`.

    Args:
        weights: see `Partition`.
        rows: of all ranks together.
        caps: most rows of each rank, one number a rank.

    Raises:
        ConfigError: the ranks together have no room for the rows, or the weights cannot be used.
    """
    Partition(tuple(weights))
    counts = [0] * len(weights)
    open_ranks = [rank for rank, weight in enumerate(weights) if weight]
    if sum(caps[rank] for rank in open_ranks) < rows:
        room = sum(caps[rank] for rank in open_ranks)
        raise ConfigError(f"ranks have memory for {room:,} rows of {rows:,}: take fewer rows or more ranks")
    left = rows
    while left:
        quotas = Partition(tuple(weights[rank] for rank in open_ranks)).counts(left)
        full = [rank for rank, quota in zip(open_ranks, quotas, strict=True) if quota >= caps[rank]]
        if not full:
            for rank, quota in zip(open_ranks, quotas, strict=True):
                counts[rank] = quota
            break
        for rank in full:
            counts[rank] = caps[rank]
        left -= sum(caps[rank] for rank in full)
        open_ranks = [rank for rank in open_ranks if rank not in full]
    return tuple(counts)


@lru_cache(maxsize=64)  # an epoch's global batches are of two lengths
def _cuts(weights: tuple[float, ...], rows: int) -> tuple[int, ...]:
    """Ends of the ranks' ranges of ``rows``, with a 0 in front; in exact integers, the same on any machine."""
    if len(set(weights)) == 1:
        return tuple(rows * rank // len(weights) for rank in range(len(weights) + 1))
    ratios = [w.as_integer_ratio() for w in weights]
    unit = max(bottom for _, bottom in ratios)  # a power of two, as all are
    parts = [top * (unit // bottom) for top, bottom in ratios]
    total = sum(parts)
    counts = [rows * part // total for part in parts]  # what D'Hondt's method gives at least
    queue = [(-w / (count + 1), rank) for rank, (w, count) in enumerate(zip(weights, counts, strict=True)) if w]
    heapq.heapify(queue)
    for _ in range(rows - sum(counts)):
        _, rank = queue[0]
        counts[rank] += 1
        heapq.heapreplace(queue, (-weights[rank] / (counts[rank] + 1), rank))
    return (0, *accumulate(counts))
