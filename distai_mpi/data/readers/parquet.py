"""Parquet: a table of columns in groups of rows; every rank reads whole groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from ...errors import DataError
from . import arrow_columns, parquet_vectors
from .arrow_columns import ArrowColumn
from .chunk import Chunk, Csr, NoRows
from .columns import Columns, Roles
from .dates import note_of_calendar
from .encoded import encoded_columns, not_row_names
from .levels import Levels, LevelTable
from .parquet_vectors import VectorColumn
from .row_names import are_quantities, rows_looked_at, without_row_names

Array = Any

SIGNATURE, ENCRYPTED = b"PAR1", b"PARE"
UNNAMED_INDEX = "__index_level_"  # of pandas, with a number
SHOWN_COLUMNS = 5  # in a message
LARGEST_EXACT = 1 << 53  # beyond it float64 does not hold every integer


def open_parquet(path: str, columns: Columns, alone: bool = True) -> ParquetFile:
    """The table at ``path``; what it holds is looked up in its footer.

    Args:
        alone: whether the file is a data set by itself; else one of several, which together have more columns.

    Raises:
        DataError: it is damaged, a column holds no numbers, or one that was asked for is not there.
    """
    with opened(path) as file:
        fields = list(file.schema_arrow)
        pandas = file.schema_arrow.pandas_metadata or {}
        metadata = file.metadata
        groups = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
        width = partial(parquet_vectors.width_of, path, file) if sum(groups) else None
        found = [arrow_columns.describe(field, columns.dates_as, width) for field in fields]
    names = tuple(field.name for field in fields)
    if len(set(names)) < len(names):
        raise DataError(f"{path}: several columns have the same name; rename them")
    if sum(groups) == 0:
        raise NoRows(f"{path}: holds no rows")
    if alone:
        _refuse_part(path, names, pandas, columns)
    index = _index_of(names, pandas)
    roles, encoded = _roles(path, found, index, columns)
    for number, kind in encoded.items():
        found[number] = found[number].as_levels(kind)
    sizes = _statistics(metadata, {found[i].name for i in (*roles.features, roles.label) if i is not None})
    notes = roles.notes + tuple(
        f"{path}: column {name} holds integers beyond 2^53, of which float64 does not keep the last digits"
        for name, size in sizes.items()
        if max(-size.low, size.high) > LARGEST_EXACT
    )
    of_dates = [found[i].name for i in roles.features if found[i].kind == "dates"]
    notes += note_of_calendar(path, of_dates, columns)

    def chosen(number: int | None, keep: bool) -> ArrowColumn | None:
        """A column, in a type that holds NaN if values may be missing and are let through."""
        if number is None:
            return None
        column = found[number]
        gaps = keep and sizes[column.name].gaps
        return replace(column, dtype=np.dtype(np.float64)) if gaps and column.dtype.kind != "f" else column

    vector = _vector(path, [found[i] for i in roles.features])
    features = tuple(chosen(i, columns.keeps_missing) for i in roles.features if vector is None)
    types = [column.dtype for column in features if column is not None] or [np.dtype(np.float64)]  # of labels alone
    dtype = np.result_type(*types)
    return ParquetFile(
        path,
        groups,
        tuple(column for column in features if column is not None),
        chosen(roles.label, columns.keeps_missing_labels),
        None if roles.weight is None else found[roles.weight],
        np.dtype(np.float32) if dtype == np.float16 else dtype,
        columns,
        roles._replace(notes=notes),
        vector,
    )


def _vector(path: str, features: list[ArrowColumn]) -> VectorColumn | None:
    """The column of Spark's vectors that the ``features`` are; None: they are other columns."""
    vectors = [column.name for column in features if column.kind == "vector"]
    if not vectors:
        return None
    if len(features) > 1:
        others = [column.name for column in features if column.name != vectors[0]][:SHOWN_COLUMNS]
        raise DataError(
            f"{path}: column {vectors[0]} holds vectors, which are all features or none: take them alone by --columns"
            f" '{vectors[0]}', or leave them out by --drop '{','.join(vectors)}' (there are other columns:"
            f" {', '.join(others)})"
        )
    with opened(path) as file:
        return VectorColumn(vectors[0], parquet_vectors.width_of(path, file, vectors[0]))


def check_features(path: str, features: list[ArrowColumn]) -> None:
    """Raise a DataError about all columns that cannot be features."""
    faults = []
    for advice, group in groupby(sorted(features, key=ArrowColumn.advice), key=ArrowColumn.advice):
        wrong = list(group)
        if advice:
            named = " and ".join(f"column {column.name} is of type {column.type}" for column in wrong[:SHOWN_COLUMNS])
            more = f" (and {len(wrong) - SHOWN_COLUMNS} more)" if len(wrong) > SHOWN_COLUMNS else ""
            drop = ",".join(column.name for column in wrong)
            faults.append(f"{named}{more}, which is no number: {advice} by --drop '{drop}'")
    if faults:
        raise DataError(f"{path}: {'; '.join(faults)}")


def _roles(path: str, found: list[ArrowColumn], index: list[int], columns: Columns) -> tuple[Roles, dict[int, str]]:
    """What the columns are, checked to be able to be it, and those that are encoded; see `encoded_columns`."""
    names = [column.name for column in found]
    roles = columns.select(path, names, len(found), index=index)
    words = [i for i, column in enumerate(found) if column.kind == "words"]
    may_name = [i for i in words if i not in not_row_names(path, names, len(found), columns)]
    roles = without_row_names(path, roles, names, may_name, partial(_first_words, path, names), columns)
    guessed = [i for i in words if i in roles.features]
    looked = _first_words(path, names, guessed) if guessed and columns.required is None else {}
    plain = [i for i in guessed if not are_quantities(looked.get(i, ()))]
    encoded = encoded_columns(path, roles, names, len(found), plain, columns)
    for i in encoded:
        found[i].check_levels(path)
    check_features(path, [found[i] for i in roles.features if i not in encoded])
    if roles.label is not None:
        found[roles.label].check_label(path)
    if roles.weight is not None:
        found[roles.weight].check_weight(path)
    if columns.columns is not None or columns.required is not None:
        return roles, encoded
    left = [found[i].name for i in index if i not in (*roles.features, roles.label, roles.weight)]
    notes = tuple(
        f"{path}: column {name} is left out: it is the index of a pandas table; --columns can ask for it"
        for name in left
        if not name.startswith(UNNAMED_INDEX)
    )
    return roles._replace(notes=roles.notes + notes), encoded


def _first_words(path: str, names: Sequence[str], which: Sequence[int]) -> dict[int, list[str]]:
    """The first words of the columns ``which``, see `row_names.without_row_names`."""
    left, found = rows_looked_at(len(names)), {column: list[str]() for column in which}
    with opened(path) as file:
        for batch in file.iter_batches(left, columns=[names[column] for column in which]):
            for column in which:
                found[column] += map(arrow_columns.word, batch.column(names[column]).slice(0, left).to_pylist())
            left -= min(left, batch.num_rows)
            if left == 0:
                break
    return found


def _index_of(names: tuple[str, ...], pandas: dict[str, Any]) -> list[int]:
    """Columns that are the index of the pandas table that was stored."""
    kept = [entry for entry in pandas.get("index_columns", ()) if isinstance(entry, str)]
    return [i for i, name in enumerate(names) if name in kept or name.startswith(UNNAMED_INDEX)]


def _refuse_part(path: str, names: tuple[str, ...], pandas: dict[str, Any], columns: Columns) -> None:
    """Raise a DataError at a file of a partitioned table whose label may be in the names of folders alone."""
    if columns.label is not None or columns.label_name is not None or not columns.wanted:
        return
    stored = [entry.get("field_name") for entry in pandas.get("columns", ()) if isinstance(entry, dict)]
    lost = [name for name in stored if isinstance(name, str) and name not in names]
    if lost:
        raise DataError(
            f"{path}: is one part of a table whose column {lost[0]} is not in it, and could be the label: give the"
            " folder of all parts, or name the label with --label"
        )


class _Size(NamedTuple):
    """What a footer says of a column: least and greatest integer, 0 where not known; whether values may be missing."""

    low: int = 0
    high: int = 0
    gaps: bool = False


def _statistics(metadata: Any, names: set[str]) -> dict[str, _Size]:
    """Sizes of the columns ``names``."""
    found = dict.fromkeys(names, _Size())
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(number)
            name = chunk.path_in_schema
            if name not in names:
                name = name.split(".")[0]  # a list's
                if name not in names:
                    continue
            low, high, gaps = found[name]
            statistics = chunk.statistics
            if statistics is None or not statistics.has_null_count or statistics.null_count:
                gaps = True
            if (
                statistics is not None
                and statistics.has_min_max
                and type(statistics.min) is type(statistics.max) is int
            ):
                low, high = min(low, statistics.min), max(high, statistics.max)
            found[name] = _Size(low, high, gaps)
    return found


@contextmanager
def opened(path: str) -> Iterator[Any]:
    """The file at ``path`` as a pyarrow ParquetFile; errors on opening and while it is open become DataErrors."""
    try:
        import pyarrow as arrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{path}: Parquet files need the package pyarrow: pip install 'distai-mpi[parquet]'") from None
    try:
        with arrow.parquet.ParquetFile(path) as file:
            yield file
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        if "encrypt" in str(error).lower() or _starts_with(path, ENCRYPTED):
            raise DataError(f"{path}: is encrypted; store it without encryption ({error})") from None
        raise DataError(f"{path}: damaged or unreadable Parquet file ({error}); copy it again") from None


def _starts_with(path: str, mark: bytes) -> bool:
    with open(path, "rb") as file:
        return file.read(len(mark)) == mark


class _Found(NamedTuple):
    """What groups of rows hold beside numbers: words of labels, with numbers; levels of each column; and vectors."""

    words: dict[str, int]
    tables: dict[int, LevelTable]
    vectors: list[Csr]


@dataclass(frozen=True)
class ParquetFile:
    """A table in a Parquet file; see `chunk.ChunkedFile`.

    Attributes:
        path: the file.
        groups: rows of each group.
        columns: of the features; each makes one or more of them.
        label: column of the label, or None.
        weight: column of the weights, or None.
        dtype: in which features are held: the common type of their columns.
        options: what was said of the table.
        roles: what its columns are.
        vector: the column of vectors that the features are, in place of ``columns``; None: there is none.
    """

    path: str
    groups: tuple[int, ...]
    columns: tuple[ArrowColumn, ...]
    label: ArrowColumn | None
    weight: ArrowColumn | None
    dtype: np.dtype
    options: Columns
    roles: Roles
    vector: VectorColumn | None = None
    sequential = False
    scale = 1.0

    @property
    def files(self) -> set[str]:
        """Paths of the files: one."""
        return {self.path}

    @property
    def features(self) -> int:
        """Features of a row."""
        return len(self.feature_names or ()) if self.vector is None else self.vector.width

    @property
    def feature_names(self) -> tuple[str, ...] | None:
        """Names of the features; those of a vector have none."""
        return None if self.vector is not None else tuple(part for column in self.columns for part in column.parts)

    @cached_property
    def encodes(self) -> dict[int, tuple[str, str]]:
        """See `chunk.ChunkedFile`."""
        parts = [column for column in self.columns for _ in column.parts]
        return {i: (column.name, column.kind) for i, column in enumerate(parts) if column.has_levels}

    @property
    def encoded(self) -> tuple[tuple[str, str], ...]:
        """See `chunk.ChunkedFile`."""
        return tuple(self.encodes.values())

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user on how the file is read."""
        return self.roles.notes

    @property
    def target_dtype(self) -> np.dtype:
        """Type in which labels are held."""
        return np.dtype(np.int8) if self.label is None else self.label.dtype

    def empty(self) -> Chunk:
        """A chunk without rows."""
        none = self._allocate(0)
        return none if self.vector is None else none._replace(x=self.vector.empty())

    def _allocate(self, rows: int) -> Chunk:
        weight = None if self.weight is None else np.empty(rows)
        words = None if self.label is None else self.label.words
        width = self.features if self.vector is None else 0
        x, levels = np.empty((rows, width), self.dtype), dict.fromkeys(self.encodes, Levels.of([]))
        return Chunk(x, np.zeros(rows, self.target_dtype), weight, words, levels)

    def read(self, part: int, parts: int) -> Chunk:
        """Rows of the groups whose middle lies in the ``part``-th of ``parts`` ranges of all rows."""
        starts = np.concatenate(([0], np.cumsum(self.groups)))
        owner = (starts[:-1] + starts[1:]) * parts // (2 * max(1, int(starts[-1])))
        mine = np.flatnonzero(owner == part).tolist()
        out = self._allocate(sum(self.groups[group] for group in mine))
        found = _Found({}, {column: LevelTable() for column in self.encodes}, [])
        with opened(self.path) as file:
            at = 0
            for group in mine:
                end = at + self.groups[group]
                weight = None if out.weight is None else out.weight[at:end]
                piece = Chunk(out.x[at:end], out.y[at:end], weight)
                self._fill(file, group, int(starts[group]), piece, found)
                at = end
        if self.vector is not None:
            out = out._replace(x=parquet_vectors.join(found.vectors, self.vector.empty()))
        levels = {}
        for column, (_, kind) in self.encodes.items():
            levels[column], numbers = found.tables[column].finish(kind)
            out.x[:, column] = numbers[out.x[:, column].astype(np.int64)]
        out = out._replace(levels=levels)
        return out._replace(label_names=tuple(found.words)) if found.words else out

    def _fill(self, file: Any, group: int, first: int, out: Chunk, found: _Found) -> None:
        """Read one group, whose first row is row ``first`` of the file, into ``out`` and ``found``."""
        used: list[Any] = [*self.columns, *(column for column in (self.label, self.weight) if column is not None)]
        if self.vector is not None:
            used.append(self.vector)
        names = list(dict.fromkeys(column.name for column in used))
        table = file.read_row_group(group, columns=names, use_threads=False)
        if table.num_rows != out.rows:
            raise DataError(
                f"{self.path}: a group has {table.num_rows} rows and not the {out.rows} of its footer; copy it again"
            )
        if self.vector is not None:
            column = table.column(self.vector.name)
            found.vectors.append(self.vector.rows(self.path, column, first, self.options.keeps_missing))
        at = 0
        for column in self.columns:
            end = at + len(column.parts)
            if column.has_levels:
                out.x[:, at] = column.level_numbers(table.column(column.name), found.tables[at])
                at = end
                continue
            read = column.values(self.path, table.column(column.name), first, self.options.keeps_missing)
            out.x[:, at:end] = read
            at = end
        keep = self.options.keeps_missing_labels
        if self.label is not None and self.label.kind == "words":
            out.y[:] = self.label.word_numbers(self.path, table.column(self.label.name), first, keep, found.words)
        elif self.label is not None:
            out.y[:] = self.label.values(self.path, table.column(self.label.name), first, keep)[:, 0]
        if out.weight is not None:
            out.weight[:] = self._weights(table, first)

    def _weights(self, table: Any, first: int) -> Array:
        """The weights of a group's rows, shape (rows,)."""
        assert self.weight is not None
        values = self.weight.values(self.path, table.column(self.weight.name), first, False)[:, 0]
        if values.size and values.min() < 0:
            row = first + int(values.argmin())
            raise DataError(
                f"{self.path}: column {self.weight.name} is {values.min()} in row {row} (counted from 0); weights are"
                " 0 or more"
            )
        return values
