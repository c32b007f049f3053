"""The table that says which rank owns which slice of a flat vector."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

ALIGNMENT = 64  # bytes: one cache line, so that two ranks never write to the same line


@dataclass(frozen=True)
class Ownership:
    """The slice of a vector of ``size`` elements that each rank owns.

    Either the slices cover the vector and don't overlap (*sharded*; mostly in the
    order of the ranks), or every rank owns the whole of it (*replicated*:
    the table of algorithms that know no slices).  A slice may be empty.
    """

    size: int
    slices: tuple[slice, ...]

    @classmethod
    def sharded(cls, size: int, ranks: int, itemsize: int) -> Ownership:
        """Share ``size`` elements of ``itemsize`` bytes out evenly, cut at multiples of 64 bytes."""
        unit = max(1, ALIGNMENT // itemsize)
        units = -(-size // unit)
        cuts = [min(size, units * rank // ranks * unit) for rank in range(ranks + 1)]
        return cls(size, tuple(slice(a, b) for a, b in pairwise(cuts)))

    @classmethod
    def replicate(cls, size: int, ranks: int) -> Ownership:
        """Let every rank own all ``size`` elements."""
        return cls(size, (slice(0, size),) * ranks)

    @property
    def in_order(self) -> bool:
        """Whether the slices lie one after another in the order of the ranks."""
        return all(a.stop == b.start for a, b in pairwise(self.slices))

    @property
    def replicated(self) -> bool:
        """Whether every rank owns the whole vector (always so on one rank)."""
        return all(s.start == 0 and s.stop == self.size for s in self.slices)
