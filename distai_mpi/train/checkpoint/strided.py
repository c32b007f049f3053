"""Where the elements of a rank's array lie in a vector that many ranks hold, and which of them two arrays share.

A rank that holds columns of a matrix has a short range of every row: one `Strided` stands for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ...params import Layout

Array = Any


class Strided(NamedTuple):
    """``times`` ranges of ``length`` elements, the first from ``start`` on, each ``stride`` behind the one before."""

    start: int
    length: int
    stride: int = 0
    times: int = 1

    @property
    def size(self) -> int:
        """Elements of all of them."""
        return self.length * self.times


def strided_of(layout: Layout, pieces: Sequence[Any], whole: Layout, start: int, stop: int) -> list[Strided]:
    """Where the elements ``start`` to ``stop - 1`` of a part's flat vector lie in that of the whole model.

    Args:
        layout: of the part.
        pieces: of its slots, see `models.split.Piece`; cut along any axes.
        whole: layout of the whole model.
    """
    found: list[Strided] = []
    for slot, piece in zip(layout.slots, pieces, strict=True):
        low, high = max(start, slot.start) - slot.start, min(stop, slot.stop) - slot.start
        if low >= high:
            continue
        of = whole.slots[piece.slot]
        first, shape = _flattened(of.shape, piece.ranges)
        rows, columns, stride = shape
        found += _cut(Strided(of.start + first, columns, stride, rows), low, high)
    return found


def _flattened(shape: tuple[int, ...], ranges: tuple[slice, ...]) -> tuple[int, tuple[int, int, int]]:
    """First element of the ranges, and (rows, columns, stride from row to row) of an array of this ``shape``.

    The ranges may cut one axis beside the first.
    """
    inner = [i for i in range(1, len(shape)) if (ranges[i].start, ranges[i].stop) != (0, shape[i])]
    axis = inner[0] if inner else 0
    if len(inner) > 1 or (inner and any(ranges[i] != slice(0, shape[i]) for i in range(1, axis))):
        raise ValueError(f"ranges {ranges} of an array of shape {shape} cut several inner axes")
    below = int(np.prod(shape[axis + 1 :], dtype=np.int64))
    length = (ranges[axis].stop - ranges[axis].start) * below
    if not inner:
        return ranges[0].start * below, (1, length, 0)
    stride = shape[axis] * below
    outer = int(np.prod(shape[1:axis], dtype=np.int64))
    rows = (ranges[0].stop - ranges[0].start) * outer
    return ranges[0].start * outer * stride + ranges[axis].start * below, (rows, length, stride)


def _cut(each: Strided, low: int, high: int) -> list[Strided]:
    """Elements ``low`` to ``high - 1`` of those of ``each``: the end of one of its ranges, whole ones, a beginning."""
    found = []
    while low < high:
        row, column = divmod(low, each.length)
        rows = 1 if column else max(1, (high - low) // each.length)
        length = min(each.length - column, high - low)
        found.append(Strided(each.start + row * each.stride + column, length, each.stride if rows > 1 else 0, rows))
        low += length * rows
    return found


def expand(ranges: Sequence[Strided]) -> tuple[Array, Array, Array]:
    """(starts, stops, positions) of all ranges, ascending: positions[i] is where the array has starts[i]."""
    starts, lengths = (
        np.concatenate([np.empty(0, np.int64), *parts])
        for parts in (
            [each.start + each.stride * np.arange(each.times) for each in ranges],
            [np.full(each.times, each.length) for each in ranges],
        )
    )
    positions = np.cumsum(lengths) - lengths
    order = np.argsort(starts)
    return starts[order], (starts + lengths)[order], positions[order]


def shared(one: Sequence[Strided], other: Sequence[Strided]) -> Array:
    """What two arrays share: rows (position in the first, in the second, elements), shape (n, 3), in the first's order.

    Neighbours in both are one row.
    """
    starts, stops, positions = expand(one)
    starts_there, stops_there, positions_there = expand(other)
    first = np.searchsorted(stops_there, starts, "right")
    counts = np.maximum(np.searchsorted(starts_there, stops, "left") - first, 0)
    here = np.repeat(np.arange(starts.size), counts)
    there = np.arange(here.size) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(first, counts)
    low = np.maximum(starts[here], starts_there[there])
    high = np.minimum(stops[here], stops_there[there])
    rows = np.stack(
        [positions[here] + low - starts[here], positions_there[there] + low - starts_there[there], high - low], axis=1
    )
    rows = rows[rows[:, 2] > 0]
    rows = rows[np.argsort(rows[:, 0])]
    if not len(rows):
        return rows
    follows = (rows[1:, :2] == rows[:-1, :2] + rows[:-1, 2:]).all(axis=1)
    begins = np.flatnonzero(np.append(True, ~follows))
    rows[begins, 2] = np.add.reduceat(rows[:, 2], begins)
    return rows[begins]


def put(array: Array, ranges: Sequence[Strided], whole: Array) -> None:
    """Copy the elements of ``array`` to where they lie in ``whole``."""
    for view, part in _views(array, ranges, whole):
        view[...] = part


def take(array: Array, ranges: Sequence[Strided], whole: Array) -> None:
    """Fill ``array`` from where its elements lie in ``whole``."""
    for view, part in _views(array, ranges, whole):
        part[...] = view


def _views(array: Array, ranges: Sequence[Strided], whole: Array) -> list[tuple[Array, Array]]:
    found, at = [], 0
    for each in ranges:
        strides = (each.stride * whole.itemsize, whole.itemsize)
        view = np.lib.stride_tricks.as_strided(whole[each.start :], (each.times, each.length), strides)
        found.append((view, array[at : at + each.size].reshape(each.times, each.length)))
        at += each.size
    return found
