"""The map between one flat parameter vector and its named arrays."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Array = Any  # numpy.ndarray or cupy.ndarray; nothing here imports either


@dataclass(frozen=True)
class Slot:
    """One named array inside the flat vector: elements ``start`` to ``stop - 1``, in C order.

    ``decay`` says whether the l2 penalty and weight decay apply to it (biases: no).
    """

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int
    decay: bool


@dataclass(frozen=True)
class Layout:
    """Slots that lie one after another, without gaps, in a flat vector of ``size`` elements."""

    slots: tuple[Slot, ...]
    size: int

    @classmethod
    def of(cls, arrays: Iterable[tuple[str, tuple[int, ...], bool]]) -> Layout:
        """Lay ``(name, shape, decay)`` triples out one after another."""
        slots: list[Slot] = []
        start = 0
        for name, shape, decay in arrays:
            stop = start + math.prod(shape)
            slots.append(Slot(name, tuple(shape), start, stop, decay))
            start = stop
        if len({slot.name for slot in slots}) != len(slots):
            raise ValueError("slot names must differ")
        return cls(tuple(slots), start)

    def views(self, flat: Array) -> dict[str, Array]:
        """Name every part of ``flat``, shape (size,); the results are views and never copies."""
        if flat.shape != (self.size,):
            raise ValueError(f"expected a vector of {self.size} elements, got shape {flat.shape}")
        return {s.name: flat[s.start : s.stop].reshape(s.shape) for s in self.slots}

    def decay_ranges(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Ranges of the elements ``start`` to ``stop - 1`` under the l2 penalty, counted from ``start``."""
        ranges: list[tuple[int, int]] = []
        for slot in self.slots:
            low, high = max(slot.start, start) - start, min(slot.stop, stop) - start
            if not slot.decay or low >= high:
                continue
            if ranges and ranges[-1][1] == low:
                ranges[-1] = (ranges[-1][0], high)
            else:
                ranges.append((low, high))
        return ranges
