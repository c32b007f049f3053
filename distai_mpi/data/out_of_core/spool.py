"""Rows as they were parsed, in a temporary file, until all are read: only then their types and sets are known."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from ...files import Unwritable
from ..readers.chunk import Chunk, Csr
from ..several import concatenate
from ..sparse_rows import compact

Array = Any
NO_ROWS = Csr(np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.float32))


def unwritable(folder: str, error: OSError) -> Unwritable:
    """The error about a cache that cannot be written."""
    return Unwritable(
        f"{folder}: the cache of rows cannot be written ({error.strerror}); make room, or name a folder on another disk"
        " (--cache-dir); nothing of it was kept"
    )


def bytes_of(array: Array) -> memoryview:
    """The memory of a contiguous ``array``."""
    return memoryview(array.reshape(-1)).cast("B") if array.size else memoryview(b"")


@dataclass
class Facts:
    """What is known of the rows of a spool.

    Attributes:
        rows: how many; dropped: and those that were left out before.
        sparse: whether they are in compressed form.
        low, high: the least and the greatest number of a feature (1 and 0 where there are no entries).
        entries: of sparse rows.
        wide: whether float32 loses something of the values; plain: all values are 1.
        largest: the largest absolute value of sparse rows.
    """

    rows: int = 0
    dropped: int = 0
    sparse: bool = False
    low: int = 1
    high: int = 0
    entries: int = 0
    wide: bool = False
    plain: bool = True
    largest: float = 0.0
    weighted: bool = False

    def merged(self, other: Facts) -> Facts:
        """Of the rows of both."""
        return Facts(
            self.rows + other.rows,
            self.dropped + other.dropped,
            self.sparse or other.sparse,
            min(self.low, other.low),
            max(self.high, other.high),
            self.entries + other.entries,
            self.wide or other.wide,
            self.plain and other.plain,
            max(self.largest, other.largest),
            self.weighted or other.weighted,
        )


@dataclass
class Spool:
    """Chunks of rows, their features in a file, their labels and weights in memory; local.

    Args:
        path: of the file, which is new, and is removed by `close`.
        dtype: in which values of sparse rows are kept, where it can hold them.
    """

    path: str
    dtype: Any = np.float64
    facts: Facts = field(default_factory=Facts)

    def __post_init__(self) -> None:
        self._file: BinaryIO = open(self.path, "wb+", buffering=0)
        self._labels: list[Chunk] = []
        self._firsts: list[int] = []
        self._arrays: list[list[tuple[np.dtype, tuple[int, ...]]]] = []

    def add(self, chunk: Chunk, first: int) -> None:
        """Append the rows of ``chunk``, the first of which has the number ``first`` in the file that they are from.

        Raises:
            Unwritable: the disk takes no more.
        """
        if not chunk.rows:
            return
        facts, x = Facts(chunk.rows, weighted=chunk.weight is not None), chunk.x
        arrays = [x]
        if isinstance(x, Csr):
            values = compact(x.values)
            facts.sparse, facts.entries, facts.plain = True, x.indices.size, values.size == 0
            if x.indices.size:
                facts.low, facts.high = int(x.indices.min()), int(x.indices.max())
                facts.largest = float(np.abs(x.values).max())
            if self.dtype == np.float32 and facts.largest <= np.finfo(np.float32).max:
                values = values.astype(np.float32, copy=False)
            facts.wide = values.dtype == np.float64
            arrays = [x.ends, x.indices, values]
        self._arrays.append([(array.dtype, array.shape) for array in arrays])
        try:
            for array in arrays:
                left = bytes_of(np.ascontiguousarray(array))
                while left:
                    left = left[self._file.write(left) :]
        except OSError as error:
            raise unwritable(os.path.dirname(self.path), error) from None
        self._labels.append(chunk._replace(x=NO_ROWS, y=chunk.y.copy()))
        self._firsts.append(first)
        self.facts = self.facts.merged(facts)

    def labels(self, none: Chunk) -> Chunk:
        """Labels and weights of all rows, without features; those of ``none`` where there are no rows."""
        found = concatenate(self._labels, none._replace(x=NO_ROWS))
        self._labels.clear()
        return found

    def chunks(self) -> Iterator[tuple[int, Any]]:
        """Yield (number of the first row, features) of each chunk: an array, or `Csr` whose values may not be held."""
        self._file.seek(0)
        for first, described in zip(self._firsts, self._arrays, strict=True):
            arrays = []
            for dtype, shape in described:
                array = np.empty(shape, dtype)
                left = bytes_of(array)
                while left:
                    left = left[self._file.readinto(left) :]  # type: ignore[attr-defined]
                arrays.append(array)
            yield first, Csr(*arrays) if len(arrays) == 3 else arrays[0]

    def close(self) -> None:
        """Remove the file."""
        self._file.close()
        if os.path.exists(self.path):
            os.remove(self.path)
