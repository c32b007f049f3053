"""Who gets which rows: contiguous stretches, one per rank."""

from __future__ import annotations

from itertools import pairwise


def stretch(rows: int, ranks: int, rank: int) -> tuple[int, int]:
    """First row and end of the stretch of ``rank`` when ``rows`` are shared out evenly.

    Lengths differ by one at most; with more ranks than rows some are empty.
    """
    return rows * rank // ranks, rows * (rank + 1) // ranks


def even(rows: int, ranks: int) -> tuple[int, ...]:
    """Rows of each rank when they are shared out evenly, remainders included."""
    cuts = [rows * rank // ranks for rank in range(ranks + 1)]
    return tuple(stop - start for start, stop in pairwise(cuts))
