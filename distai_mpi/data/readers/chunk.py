"""Chunks of rows, each parsed by one rank, and the files that are read so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np

from ...errors import DataError
from ..sparse_rows import SparseRows, compact, index_array
from .levels import Levels

Array = Any
NO_LEVELS: Mapping[int, Levels] = MappingProxyType({})


class NoRows(DataError):
    """A file that is no other than it should be, but without rows: nothing is wrong where others have some."""


class Csr(NamedTuple):
    """Rows of a sparse matrix.

    Attributes:
        ends: entries up to the last one of each row, shape (rows,), int64.
        indices: the features that the entries stand for, numbered as in the file, shape (entries,), int32, or uint32
            where there are more than 2³¹.
        values: shape (entries,).
    """

    ends: Array
    indices: Array
    values: Array

    def take(self, keep: Array) -> Csr:
        """The rows for which ``keep``, bool of shape (rows,), is true."""
        lengths = np.diff(self.ends, prepend=0)
        entries = np.repeat(keep, lengths)
        return Csr(np.cumsum(lengths[keep]), self.indices[entries], self.values[entries])

    def first_below(self, base: int) -> tuple[int, int] | None:
        """Row and number of the first entry whose feature is numbered below ``base``; None: there is none."""
        found = np.flatnonzero(self.indices < base)
        if not found.size:
            return None
        return int(np.searchsorted(self.ends, found[0], side="right")), int(self.indices[found[0]])


def held_sparse(x: Csr, features: int, base: int) -> SparseRows:
    """``x``, whose features are numbered from ``base``, as `SparseRows` of so many ``features``; overwrites it."""
    indices = np.subtract(x.indices, x.indices.dtype.type(base), out=x.indices) if base else x.indices
    return SparseRows(np.concatenate([[0], x.ends]), index_array(indices, features), compact(x.values), features)


class Chunk(NamedTuple):
    """Consecutive rows of a file; local to the rank.

    Attributes:
        x: features, shape (rows, features), or the same as `Csr`, or `SparseRows`.
        y: labels or targets, shape (rows,).
        weight: weights of the rows, shape (rows,), float64, or None where the file gives none.
        label_names: where labels are words, the words that occur here; y then holds indices in it, and -1 for a label
            that is missing.  None: y holds the labels' own numbers.
        levels: of each column of x that is encoded its `Levels`; x then holds their numbers there, and -1 where the
            value is missing.
    """

    x: Any
    y: Array
    weight: Array | None
    label_names: tuple[str, ...] | None = None
    levels: Mapping[int, Levels] = NO_LEVELS

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.y)

    def take(self, keep: Array) -> Chunk:
        """The rows for which ``keep``, bool of shape (rows,), is true."""
        x = self.x.take(keep) if isinstance(self.x, Csr) else self.x[keep]
        return self._replace(x=x, y=self.y[keep], weight=None if self.weight is None else self.weight[keep])


class ChunkedFile(Protocol):
    """A file that ranks read in chunks; picklable, holds nothing open.

    A table also has ``roles``, the `columns.Roles` of its columns, and perhaps ``feature_names``, where these are not
    ``roles.names``, and ``notes``, for the user, on how it is read; ``encodes``, where columns of its chunks hold
    levels: of each the name, or number, and the kind, see `encoded`; and ``encoded``, the same without the columns.

    Attributes:
        path: the file.
        files: paths of all files, here one.
        sequential: whether it can only be read from beginning to end, by one rank.
        features: features of a row; None where only reading tells.
        dtype: in which features are held; target_dtype: likewise labels.
        scale: what features are multiplied by; see `array_file.ArrayFile.scale`.
    """

    @property
    def path(self) -> str: ...
    @property
    def sequential(self) -> bool: ...
    @property
    def files(self) -> set[str]: ...
    @property
    def features(self) -> int | None: ...
    @property
    def dtype(self) -> np.dtype: ...
    @property
    def target_dtype(self) -> np.dtype: ...
    @property
    def scale(self) -> float: ...

    def read(self, part: int, parts: int) -> Chunk:
        """Rows of the ``part``-th of ``parts`` pieces of about equal size; all parts together are all rows.

        Raises:
            DataError: what is there is no such data; names line or row.
        """
        ...

    def empty(self) -> Chunk:
        """A chunk without rows, of the same types."""
        ...


@dataclass(frozen=True)
class Column:
    """One of the arrays x, y and weight of a `Chunk`, as rows of ``width`` values, densely.

    Attributes:
        name: for messages.
        values: shape (rows,) or (rows, width), or `Csr`.
        base: number of the first feature in a Csr.
    """

    name: str
    values: Array | Csr
    width: int
    dtype: np.dtype
    base: int = 0

    def copy(self, start: int, stop: int, out: Array) -> None:
        """Write rows ``start`` to ``stop - 1`` of the chunk into ``out``, shape (stop - start, width).

        The one place where sparse rows become dense.
        """
        if isinstance(self.values, Csr):
            from .kernels.tables import fill_rows

            fill_rows(*self.values, self.base, start, out)
        else:
            out[:] = self.values[start:stop].reshape(stop - start, self.width)
