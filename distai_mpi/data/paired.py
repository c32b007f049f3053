"""Features in one table, or sparse matrix, and labels in another file, a table of one column: ``X.csv,Y.csv``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ..errors import DataError
from .readers.chunk import Chunk
from .readers.columns import Columns, Roles
from .readers.csv_text import CsvFile
from .readers.parquet import ParquetFile
from .readers.sparse import SparseFile


@dataclass(frozen=True)
class PairedTables:
    """Rows of two tables side by side; see `chunk.ChunkedFile`.

    Rows of text are found by counting them alone, so that one rank reads both files.

    Attributes:
        path: what the user calls the set.
        members: the table of the features, and perhaps of weights, or a sparse matrix; and the table of the labels.
    """

    path: str
    members: tuple[CsvFile | ParquetFile | SparseFile, CsvFile | ParquetFile]
    sequential = True

    @property
    def files(self) -> set[str]:
        """Paths of the files."""
        return self.members[0].files | self.members[1].files

    @property
    def features(self) -> int:
        """Features of a row."""
        return self.members[0].features

    @property
    def dtype(self) -> np.dtype:
        """Type in which features are held."""
        return self.members[0].dtype

    @property
    def target_dtype(self) -> np.dtype:
        """Type in which labels are held."""
        return self.members[1].target_dtype

    @property
    def scale(self) -> float:
        """What features are multiplied by."""
        return self.members[0].scale

    @property
    def feature_names(self) -> tuple[str, ...] | None:
        """Names of the features, where the table has any."""
        return self.members[0].feature_names

    @property
    def encodes(self) -> dict[int, tuple[str, str]]:
        """See `chunk.ChunkedFile`."""
        return getattr(self.members[0], "encodes", {})

    @property
    def encoded(self) -> tuple[tuple[str, str], ...]:
        """See `chunk.ChunkedFile`."""
        return tuple(self.encodes.values())

    @cached_property
    def roles(self) -> Roles:
        """Of the columns of the features; the label has its name alone."""
        return self.members[0].roles._replace(label_name=self.members[1].roles.label_name)

    @property
    def date_orders(self) -> tuple[tuple[str, bool], ...]:
        """Of columns of dates as 1/2/2020 the name, or number, and whether the day comes first, where it is known."""
        return getattr(self.members[0], "date_orders", ())

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user on how the files are read."""
        return tuple(note for member in self.members for note in member.notes)

    def empty(self) -> Chunk:
        """A chunk without rows."""
        return self._together(*(member.empty() for member in self.members))

    def read(self, part: int, parts: int) -> Chunk:
        """Rows of the ``part``-th of ``parts`` pieces, of which there is one.

        Raises:
            DataError: as of each of the files; or one of them has more rows.
        """
        x, y = (member.read(part, parts) for member in self.members)
        if x.rows != y.rows:
            raise DataError(
                f"{self.members[0].path}: has {x.rows} rows, but {self.members[1].path} has {y.rows} labels; every row"
                " needs one label, so check that the two belong together, and which have a header"
            )
        return self._together(x, y)

    @staticmethod
    def _together(x: Chunk, y: Chunk) -> Chunk:
        return x._replace(y=y.y, label_names=y.label_names)


def open_paired(
    name: str,
    x: str,
    y: str,
    open_one: Callable[[str, Columns], object],
    columns: Columns,
    open_matrix: Callable[[str, Columns], SparseFile | None],
) -> PairedTables | None:
    """The tables ``x`` and ``y``, each opened by ``open_one``; None where ``y`` is no table of one column.

    ``x`` may also be a sparse matrix, which ``open_matrix`` opens.

    Raises:
        DataError: there is something wrong with ``x``, or with what is beside a sparse matrix.
        ConfigError: a column of a sparse matrix is named as the weight.
    """
    try:
        labels = open_one(y, replace(columns, holds="labels", weight=None, format=columns.format or "csv"))
    except DataError:  # if it is none of these, the error comes when it is read as further rows
        if open_matrix(x, columns) is not None:
            raise
        return None
    if not isinstance(labels, CsvFile | ParquetFile):
        return None
    matrix = open_matrix(x, columns)
    if matrix is not None:
        replace(columns, label=None, columns=None, drop=None).refuse(x)
        return PairedTables(name, (matrix, labels))
    rows = open_one(x, replace(columns, holds="features", label=None, label_name=None))
    return PairedTables(name, (rows, labels)) if isinstance(rows, CsvFile | ParquetFile) else None
