"""Parquet: a table of columns in groups of rows; every rank reads whole groups."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import DataError
from ..checks import first_not_finite
from .columns import Columns
from .stretch import Stretch

Array = Any

SIGNATURE = b"PAR1"


def open_parquet(path: str, columns: Columns) -> ParquetFile:
    """The table at ``path``; what it holds is looked up in its footer.

    Raises:
        DataError: it is damaged, a column holds no numbers, or one that was asked for is not there.
    """
    with _opened(path) as file:
        fields = [field for field in file.schema_arrow if not field.name.startswith("__index_level_")]  # of pandas
        groups = tuple(file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups))
    names = tuple(field.name for field in fields)
    if len(set(names)) < len(names):
        raise DataError(f"{path}: several columns have the same name; rename them")
    if sum(groups) == 0:
        raise DataError(f"{path}: holds no rows")
    label, weight = columns.find(path, names, len(names))
    features = tuple(name for column, name in enumerate(names) if column not in (label, weight))
    if not columns.wanted:
        label = weight = None
    types = {
        field.name: _dtype(path, field)
        for field in fields
        if field.name in features or names.index(field.name) in (label, weight)
    }
    dtype = np.result_type(*(types[name] for name in features))
    if dtype == np.float16:
        dtype = np.dtype(np.float32)
    return ParquetFile(
        path,
        groups,
        features,
        None if label is None else names[label],
        None if weight is None else names[weight],
        dtype,
        np.dtype(np.int8) if label is None else types[names[label]],
    )


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    try:
        import pyarrow as arrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{path}: Parquet files need the package pyarrow: pip install 'distai-mpi[parquet]'") from None
    try:
        with arrow.parquet.ParquetFile(path) as file:
            yield file
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: damaged or unreadable Parquet file ({error}); copy it again") from None


def _dtype(path: str, field: Any) -> np.dtype:
    """The NumPy type of a column."""
    import pyarrow.types as kinds

    if kinds.is_boolean(field.type):
        return np.dtype(np.uint8)
    if not (kinds.is_integer(field.type) or kinds.is_floating(field.type)):
        raise DataError(
            f"{path}: column {field.name} is of type {field.type}, which is no number;"
            " store numbers, or leave the column out"
        )
    return np.dtype(field.type.to_pandas_dtype())


@dataclass(frozen=True)
class ParquetFile:
    """A table in a Parquet file; see `stretch.StretchFile`.

    Attributes:
        path: the file.
        groups: rows of each group.
        feature_names: columns of the features.
        label: column of the label, or None.
        weight: column of the weights, or None.
        dtype: in which features are held: the common type of their columns.
        target_dtype: in which labels are held.
    """

    path: str
    groups: tuple[int, ...]
    feature_names: tuple[str, ...]
    label: str | None
    weight: str | None
    dtype: np.dtype
    target_dtype: np.dtype
    sequential = False
    scale = 1.0

    @property
    def files(self) -> set[str]:
        """Paths of the files: one."""
        return {self.path}

    @property
    def features(self) -> int:
        """Features of a row."""
        return len(self.feature_names)

    def empty(self) -> Stretch:
        """A stretch without rows."""
        return self._allocate(0)

    def _allocate(self, rows: int) -> Stretch:
        weight = None if self.weight is None else np.empty(rows)
        return Stretch(np.empty((rows, self.features), self.dtype), np.zeros(rows, self.target_dtype), weight)

    def read(self, part: int, parts: int) -> Stretch:
        """Rows of the groups whose middle lies in the ``part``-th of ``parts`` stretches of all rows."""
        starts = np.concatenate(([0], np.cumsum(self.groups)))
        owner = (starts[:-1] + starts[1:]) * parts // (2 * max(1, int(starts[-1])))
        mine = np.flatnonzero(owner == part).tolist()
        out = self._allocate(sum(self.groups[group] for group in mine))
        with _opened(self.path) as file:
            at = 0
            for group in mine:
                end = at + self.groups[group]
                self._fill(file, group, int(starts[group]), Stretch(*(a if a is None else a[at:end] for a in out)))
                at = end
        return out

    def _fill(self, file: Any, group: int, first: int, out: Stretch) -> None:
        """Read one group, whose first row is row ``first`` of the file, into ``out``."""
        names = [*self.feature_names, *(name for name in (self.label, self.weight) if name is not None)]
        table = file.read_row_group(group, columns=names, use_threads=False)
        if table.num_rows != out.rows:
            raise DataError(
                f"{self.path}: a group has {table.num_rows} rows and not the {out.rows} of its footer; copy it again"
            )
        for name in names:
            target = out.y if name == self.label else out.weight
            if name in self.feature_names:
                target = out.x[:, self.feature_names.index(name)]  # type: ignore[call-overload]
            target[:] = self._values(table.column(name), name, first)  # type: ignore[index]

    def _values(self, column: Any, name: str, first: int) -> Array:
        """The checked values of a column, whose first row is row ``first`` of the file."""
        where, advice = f"{self.path}: column {name}", "(counted from 0); mend or remove that row"
        if column.null_count:
            row = first + int(np.flatnonzero(column.is_null().to_numpy())[0])
            raise DataError(f"{where} is empty (null) in row {row} {advice}")
        values = column.to_numpy()
        bad = first_not_finite(values.reshape(-1, 1))
        if bad is not None:
            raise DataError(f"{where} holds {bad[2]} in row {first + bad[0]} {advice}")
        if name == self.weight and values.size and values.min() < 0:
            row = first + int(values.argmin())
            raise DataError(f"{where} is {values.min()} in row {row} (counted from 0); weights are 0 or more")
        return values
