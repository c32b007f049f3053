"""A data set in several files: their rows one after another, read by all ranks as if they were one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .classes import as_words
from .folders import FolderValues
from .readers.chunk import Chunk, ChunkedFile, Csr
from .readers.columns import Roles
from .readers.csv_text import CsvFile
from .readers.levels import Levels, merged

Array = Any

PIECES = 32  # of a rank's part that files are cut into: a part is off by at most half a piece at either end, 3 %
PIECE_BYTES = 4 << 20  # smaller ones are not worth opening a file for


@dataclass(frozen=True)
class SeveralFiles:
    """The rows of ``members`` one after another; see `chunk.ChunkedFile`.

    The bytes of all files together are partitioned over the ranks, in the files' order: large files, and those across
    the border of two ranks, are cut into pieces; small ones are read whole.

    Attributes:
        path: what the user calls the set.
        members: the files, at least one, alike in their columns and in kind.
        sizes: bytes of each.
        folders: columns that stand in the names of folders; None: there are none.
        order: of the features: where each is among those of the files followed by those of the folders.
        feature_names: of the features, where the files have any.
        roles: of the columns that are features, those of folders included, and of the label; None: they are no tables.
        notes: for the user, on how the files are read.
    """

    path: str
    members: tuple[ChunkedFile, ...]
    sizes: tuple[int, ...]
    folders: FolderValues | None = None
    order: tuple[int, ...] | None = None
    feature_names: tuple[str, ...] | None = None
    roles: Roles | None = None
    notes: tuple[str, ...] = ()
    sequential = False

    @property
    def files(self) -> set[str]:
        """Paths of the files."""
        return set().union(*(member.files for member in self.members))

    @property
    def date_orders(self) -> tuple[tuple[str, bool], ...]:
        """Of columns of dates as 1/2/2020 the name, or number, and whether the day comes first, where it is known."""
        return getattr(self.members[0], "date_orders", ())

    @cached_property
    def encodes(self) -> dict[int, tuple[str, str]]:
        """See `chunk.ChunkedFile`."""
        return self._in_order(getattr(self.members[0], "encodes", {}))

    @property
    def encoded(self) -> tuple[tuple[str, str], ...]:
        """See `chunk.ChunkedFile`."""
        return tuple(self.encodes.values())

    def _in_order(self, of_columns: Mapping[int, Any]) -> dict[int, Any]:
        """What is known of columns of the files, by where these are among all features."""
        if self.order is None:
            return dict(of_columns)
        return {column: of_columns[index] for column, index in enumerate(self.order) if index in of_columns}

    @property
    def features(self) -> int | None:
        """Features of a row; None where only reading tells."""
        return self.members[0].features if self.order is None else len(self.order)

    @cached_property
    def dtype(self) -> np.dtype:
        """Type in which features are held: one that holds those of all files."""
        types = {member.dtype for member in self.members}
        if self.folders is not None and self.folders.features and not isinstance(self.members[0], CsvFile):
            types.add(self.folders.dtype)
        return np.result_type(*types)

    @cached_property
    def target_dtype(self) -> np.dtype:
        """Type in which labels are held, likewise."""
        if self.folders is not None and self.folders.labels is not None:
            return self.folders.labels.dtype
        return np.result_type(*{member.target_dtype for member in self.members})

    @property
    def scale(self) -> float:
        """What features are multiplied by."""
        return self.members[0].scale

    def empty(self) -> Chunk:
        """A chunk without rows."""
        return self._completed(0, self.members[0].empty())

    def read(self, part: int, parts: int) -> Chunk:
        """Rows of the pieces whose middle lies in the ``part``-th of ``parts`` ranges of all bytes."""
        read = [self._completed(i, self.members[i].read(k, n)) for i, k, n in self._pieces(part, parts)]
        return concatenate(read, self.empty())

    def _pieces(self, part: int, parts: int) -> list[tuple[int, int, int]]:
        """The pieces of one part: of file i the k-th of n."""
        total, start, pieces = sum(self.sizes), 0, []
        for i, (member, size) in enumerate(zip(self.members, self.sizes, strict=True)):
            whole = member.sequential or parts == 1
            n = 1 if whole else max(1, min(-(-PIECES * parts * size // total), size // PIECE_BYTES))
            for k in range(n):
                middle = 2 * n * start + (2 * k + 1) * size  # in units of 1 / (2 n) bytes: whole numbers are exact
                if middle * parts // (2 * n * total) == part:
                    pieces.append((i, k, n))
            start += size
        return pieces

    def _completed(self, i: int, rows: Chunk) -> Chunk:
        """``rows`` of file ``i`` with what the names of its folders say."""
        values = self.folders
        x, y = rows.x, rows.y
        if self.order is not None:
            assert values is not None
            full = np.empty((rows.rows, len(self.order)), self.dtype)
            given = self.members[0].features or 0
            for column, index in enumerate(self.order):
                full[:, column] = x[:, index] if index < given else values.values[i, index - given]
            x = full
        elif not isinstance(x, Csr):
            x = x.astype(self.dtype, copy=False)
        y = y.astype(self.target_dtype, copy=False)
        rows = rows._replace(x=x, y=y, levels=self._in_order(rows.levels))
        if values is not None and values.labels is not None:
            label = values.labels[i]
            if values.words is not None:
                rows = rows._replace(label_names=(values.words[int(label)],))
                label = 0
            rows = rows._replace(y=np.full(rows.rows, label, self.target_dtype))
        if values is not None and values.weights is not None:
            rows = rows._replace(weight=np.full(rows.rows, values.weights[i]))
        return rows


def concatenate(parts: Sequence[Chunk], none: Chunk) -> Chunk:
    """The rows of ``parts`` one after another; ``none`` where there are no parts."""
    parts = [part for part in parts if part.rows] or [none]
    if len(parts) == 1:
        return parts[0]
    weight = None
    if any(part.weight is not None for part in parts):
        weight = np.concatenate([np.ones(part.rows) if part.weight is None else part.weight for part in parts])
    names, labels = _one_vocabulary(parts)
    x, levels = _one_table([part.x for part in parts]), dict[int, Levels]()
    for column in parts[0].levels:
        levels[column], numbers = merged([(part.levels[column], part.x[:, column]) for part in parts])
        x[:, column] = np.concatenate(numbers)  # type: ignore[index]
    return Chunk(x, np.concatenate(labels), weight, names, levels)


def _one_table(tables: Sequence[Array | Csr]) -> Array | Csr:
    """Features of all rows."""
    if not isinstance(tables[0], Csr):
        return np.concatenate(tables)
    before = np.cumsum([0, *(table.values.size for table in tables)])
    ends = [table.ends + first for table, first in zip(tables, before[:-1], strict=True)]
    return Csr(np.concatenate(ends), *(np.concatenate([table[i] for table in tables]) for i in (1, 2)))


def _one_vocabulary(parts: Sequence[Chunk]) -> tuple[tuple[str, ...] | None, list[Array]]:
    """The words that are labels in any of ``parts``, and the labels of each as indices among them."""
    if all(part.label_names is None for part in parts):
        return None, [part.y for part in parts]
    own = [as_words(part.label_names, part.y) for part in parts]
    names = sorted(set().union(*(words for words, _ in own)))
    code_of = {name: code for code, name in enumerate(names)}
    labels = [np.array([*(code_of[word] for word in words), -1])[codes] for words, codes in own]
    return tuple(names), labels
