"""Arrays in files, of which each rank reads a chunk: parts of a larger set, or rows checked before they are sharded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .array_file import ArrayFile
from .checks import check_rows, check_weights
from .labels import TRUTH_WORDS
from .partition import even_range
from .readers.chunk import Chunk

TAKE_BYTES = 16 << 20  # at a time


@dataclass(frozen=True)
class ArrayRows:
    """Arrays in a file as one that is read in chunks; see `chunk.ChunkedFile`.

    Attributes:
        arrays: features, and perhaps labels, and perhaps weights.
        keeps_missing: whether NaN, which stands for a feature or a label that is missing, is handed out; else refused.
    """

    arrays: tuple[ArrayFile, ...]
    keeps_missing: bool = False

    @property
    def path(self) -> str:
        """The file of the features."""
        return self.arrays[0].path

    @property
    def files(self) -> set[str]:
        """Paths of the files."""
        return {array.path for array in self.arrays}

    @property
    def sequential(self) -> bool:
        """Whether it can only be read from beginning to end."""
        return not all(array.sliceable for array in self.arrays)

    @property
    def features(self) -> int:
        """Features of a row."""
        return self.arrays[0].width

    @property
    def dtype(self) -> np.dtype:
        """Type in which features are held."""
        return self.arrays[0].dtype

    @property
    def target_dtype(self) -> np.dtype:
        """Type in which labels are held."""
        return self.arrays[1].dtype if len(self.arrays) > 1 else np.dtype(np.int8)

    @property
    def scale(self) -> float:
        """What features are multiplied by."""
        return self.arrays[0].scale

    def empty(self) -> Chunk:
        """A chunk without rows."""
        weight = np.empty(0) if len(self.arrays) > 2 else None
        return Chunk(np.empty((0, self.features), self.dtype), np.empty(0, self.target_dtype), weight, self._words)

    @property
    def _words(self) -> tuple[str, ...] | None:
        """What the numbers stand for that are held for labels, where these are truth values."""
        return TRUTH_WORDS if len(self.arrays) > 1 and self.arrays[1].stored.kind == "b" else None

    def pieces(self, piece_bytes: int) -> Iterator[Chunk]:
        """All rows in chunks of about ``piece_bytes``, read once from beginning to end."""
        row_bytes = sum(array.width * array.dtype.itemsize for array in self.arrays)
        rows = max(1, piece_bytes // max(1, row_bytes))
        for parts in zip(*(array.chunks(rows) for array in self.arrays), strict=True):
            yield self._chunk(parts[0][0], [values for _, values in parts])

    def read(self, part: int, parts: int) -> Chunk:
        """Rows of the ``part``-th of ``parts`` ranges of rows."""
        start, stop = even_range(self.arrays[0].rows, parts, part)
        taken = []
        for array in self.arrays:
            taken.append(np.empty((stop - start, array.width), array.dtype))
            row_bytes = array.width * array.dtype.itemsize
            array.take(np.arange(start, stop), taken[-1], max(1, TAKE_BYTES // row_bytes))
        return self._chunk(start, taken)

    def _chunk(self, start: int, taken: Sequence[Any]) -> Chunk:
        """The rows from ``start`` on that were ``taken`` of each array, checked."""
        for array, values in zip(self.arrays[:2], taken, strict=False):
            check_rows(array, values, start, self.keeps_missing)
        y = taken[1].reshape(-1) if len(taken) > 1 else np.zeros(len(taken[0]), np.int8)
        weight = taken[2].reshape(-1).astype(np.float64) if len(taken) > 2 else None
        if weight is not None:
            check_weights(self.arrays[2], weight, start)
        return Chunk(taken[0], y, weight, self._words)
