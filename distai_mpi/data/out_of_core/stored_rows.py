"""Rows of features on disk, as a `Dataset` holds them, and passes over their blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ...backend import HOST
from ..partition import even_range
from ..permutation import Permutation
from ..sparse_rows import SparseRows, join
from .cache_file import CacheFile, read_into
from .prefetch import Prefetcher

Array = Any


class StoredRows:
    """Rows in blocks of a file, of shape (rows, features), which passes bring into memory one after another.

    Args:
        cache: the file.
        most_bytes: that its blocks may take in memory, see `Prefetcher`.

    Attributes:
        starts: the first row of each block, and the number of rows, shape (blocks + 1,), int64.
        is_sparse: whether blocks are `SparseRows`, else arrays.
    """

    ndim = 2

    def __init__(self, cache: CacheFile, most_bytes: int) -> None:
        self.cache, self.is_sparse = cache, cache.kind.sparse
        self.starts = np.concatenate([[0], np.cumsum(cache.rows)])
        self.prefetcher = Prefetcher(cache, most_bytes)
        self._found: list[list[Any]] = [[] for _ in cache.rows]  # frequent features of blocks, looked for once

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, features)."""
        return len(self), self.cache.kind.features

    @property
    def dtype(self) -> np.dtype:
        """Of the features."""
        return self.cache.kind.dtype

    @property
    def features(self) -> int:
        """Of a row."""
        return self.cache.kind.features

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks on disk."""
        return int(self.cache.nbytes.sum())

    @property
    def row_bytes(self) -> int:
        """Bytes that a row takes on average, at least 1."""
        return max(1, self.nbytes // max(1, len(self)))

    @property
    def most_rows(self) -> int:
        """Rows of the longest block."""
        return int(self.cache.rows.max(initial=0))

    def in_order(self) -> Pass:
        """A pass over all rows in the order in which they lie in the file."""
        return Pass(self, np.arange(len(self.cache.rows)))

    def shuffled(self, *key: int | str) -> Pass:
        """A pass over blocks in random order, the rows of each in random order, both named by a key."""
        blocks = Permutation(len(self.cache.rows), *key, "blocks").positions(0, len(self.cache.rows))
        return Pass(self, blocks, key)

    def window(self, number: int, buffer: Any) -> Any:
        """The rows of block ``number`` in ``buffer``: `SparseRows`, or an array that cannot be written to."""
        rows = self.cache.kind.view(buffer, int(self.cache.rows[number]), int(self.cache.entries[number]))
        if isinstance(rows, SparseRows):
            rows._found = self._found[number]
            return rows
        return HOST.read_only(rows)

    def blocks(self) -> Iterator[tuple[int, Any]]:
        """Yield (first row, rows) of each block; they hold until the next is asked for."""
        for number, buffer in self.prefetcher.blocks(range(len(self.cache.rows))):
            yield int(self.starts[number]), self.window(number, buffer)

    def first_found(self, look: Callable[[Any], tuple[int, int, float] | None]) -> tuple[int, int, float] | None:
        """What ``look`` finds in the first block in which it finds something, (row, column, value), or None."""
        for first, rows in self.blocks():
            found = look(rows)
            if found is not None:
                return first + found[0], found[1], found[2]
        return None

    def gathered(self, rows: Array) -> Any:
        """A copy of these ``rows``, int64, ascending: each block that has any of them is read once."""
        cuts = np.searchsorted(rows, self.starts)
        numbers = np.flatnonzero(np.diff(cuts))
        parts = []
        for number, buffer in self.prefetcher.blocks(numbers.tolist()):
            wanted = rows[cuts[number] : cuts[number + 1]] - self.starts[number]
            window = self.window(number, buffer)
            parts.append(window.gathered(wanted, self.dtype) if self.is_sparse else window[wanted])
        if self.is_sparse:
            return join(parts, self.features, self.dtype)
        return HOST.read_only(np.concatenate([np.empty((0, self.features), self.dtype), *parts]))

    def row(self, row: int) -> Any:
        """One row: `SparseRows`, or an array of shape (1, features); its bytes alone are read."""
        number = int(np.searchsorted(self.starts, row, side="right")) - 1
        local, kind = row - int(self.starts[number]), self.cache.kind
        rows, entries = int(self.cache.rows[number]), int(self.cache.entries[number])
        found, _ = kind.arrays(rows, entries)
        if not self.is_sparse:
            return self._read(number, found[0], local * kind.features, kind.features).reshape(1, -1)
        first, last = self._read(number, found[0], local, 2).tolist()
        indices, values = (self._read(number, part, first, last - first if part[1] else 0) for part in found[1:])
        return SparseRows(np.array([0, last - first]), indices, values, kind.features)

    def _read(self, number: int, part: tuple[int, int, np.dtype], first: int, count: int) -> Array:
        """Elements of one array of a block."""
        at, _, dtype = part
        buffer = bytearray(count * dtype.itemsize)
        offset = int(self.cache.offsets[number]) + at + first * dtype.itemsize
        read_into(self.cache.file, memoryview(buffer), offset)
        return np.frombuffer(buffer, dtype)

    def __getitem__(self, rows: slice) -> StoredRows:
        """All of the rows: parts of them are not views."""
        if rows.indices(len(self)) != (0, len(self), 1):
            raise NotImplementedError("rows on disk are taken by passes")
        return self


class Pass:
    """All rows of a `StoredRows` once, block by block; positions count in its order, and are asked for ascending.

    Args:
        rows: whose they are.
        blocks: the order of the blocks.
        key: of the order of rows within each; none: that in which they lie.
    """

    def __init__(self, rows: StoredRows, blocks: Array, key: Sequence[int | str] = ()) -> None:
        self.rows, self._blocks, self._key = rows, blocks, key
        lengths = np.diff(rows.starts)[blocks]
        self._ends = np.concatenate([[0], np.cumsum(lengths)])
        self._at = -1  # place in ``blocks`` of the one in memory
        self._stream: Iterator[tuple[int, Any]] = iter(())
        self._window: Any = None
        self._order: Permutation | None = None

    def cuts(self, start: int, stop: int, most: int) -> list[int]:
        """Positions at which ``start`` to ``stop`` - 1 are cut, both ends among them: no part of more than ``most``
        rows, and each within one block.
        """
        inner = self._ends[np.searchsorted(self._ends, start, "right") : np.searchsorted(self._ends, stop, "left")]
        cuts = [start]
        for end in [*inner.tolist(), stop] * (stop > start):
            begin = cuts[-1]
            parts = -(-(end - begin) // most)
            cuts += [begin + even_range(end - begin, parts, part)[1] for part in range(parts)]
        return cuts

    def at(self, position: int) -> tuple[Any, int]:
        """The block in memory that ``position`` lies in, and its first row in the file."""
        place = int(np.searchsorted(self._ends, position, side="right")) - 1
        if self._window is None:
            self._stream, self._at = self.rows.prefetcher.blocks(self._blocks[place:].tolist()), place - 1
        while self._at < place:
            number, buffer = next(self._stream)
            self._at += 1
            self._window = self.rows.window(number, buffer)
            if self._key:
                self._order = Permutation(len(self._window), *self._key, number)
        return self._window, int(self.rows.starts[self._blocks[place]])

    def apply(self, positions: Array, out: Array, shift: int = 0) -> Array:
        """As `Permutation.apply`: the rows at ``positions + shift``, all of them in the block that is in memory."""
        begin, first = int(self._ends[self._at]), int(self.rows.starts[self._blocks[self._at]])
        if self._order is None:
            return np.add(positions, shift - begin + first, out=out)
        self._order.apply(positions, out, shift - begin)
        return np.add(out, first, out=out)
