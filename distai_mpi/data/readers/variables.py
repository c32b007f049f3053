"""Named arrays of a file, joined to a table that is read in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ...errors import DataError
from ..array_file import BLOCK_BYTES, MISSING_ADVICE, ArrayFile, byte_scale
from ..checks import check_weights, first_not_finite
from ..dataset import storage_dtype
from ..labels import TRUTH_WORDS
from . import dates
from .chunk import Chunk, Csr
from .columns import Columns, Roles
from .kinds import label_word

Array = Any


class Block(NamedTuple):
    """Rows of a variable.

    Attributes:
        first: number of the first row.
        values: shape (rows, width).
        missing: which values are not there, of the same shape, or None: all are.
    """

    first: int
    values: Array
    missing: Array | None = None


@dataclass(frozen=True)
class Variable:
    """One array of a file by its name, its rows first; picklable, holds nothing open.

    Attributes:
        path: the file.
        name: of the array.
        shape: as its rows are counted, on the first axis.
        dtype: of the values that `blocks` gives: numbers, datetime64, or words (``U``).
        words: where values are numbers that stand for words, these; else None.
        gaps: what stands in the file for values that are missing, for messages; empty: only NaN does.
        column_names: names of the columns of a matrix, where the file has them.
        array: the same as a plain array, where the file holds it as such.
        sequential: whether it can only be read whole, by one rank.
        chunk: rows that are stored together.
        others: further files that are read.
        note: for the user, where this is used; may be empty.
    """

    path: str
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    words: tuple[str, ...] | None = field(default=None, kw_only=True)
    gaps: str = field(default="", kw_only=True)
    column_names: tuple[str, ...] | None = field(default=None, kw_only=True)
    array: ArrayFile | None = field(default=None, kw_only=True)
    sequential: bool = field(default=False, kw_only=True)
    chunk: int = field(default=1, kw_only=True)
    others: frozenset[str] = field(default=frozenset(), kw_only=True)
    note: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        if not self.shape or 0 in self.shape:
            raise self.error(f"has shape {self.shape}: there are no rows or no features to train on")

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.shape[0]

    @property
    def width(self) -> int:
        """Values of a row."""
        return int(np.prod(self.shape[1:], dtype=np.int64))

    @property
    def is_words(self) -> bool:
        """Whether values are words, or numbers that stand for them."""
        return self.words is not None or self.dtype.kind in "US"

    @property
    def is_dates(self) -> bool:
        """Whether values are dates."""
        return self.dtype.kind == "M"

    def error(self, message: str) -> DataError:
        """A DataError that names file and array."""
        return DataError(f"{self.path}: {self.name} {message}")

    def blocks(self, start: int, stop: int) -> Iterator[Block]:
        """Rows ``start`` to ``stop - 1``, some at a time."""
        raise NotImplementedError

    def step(self) -> int:
        """Rows that are read at a time: whole chunks, of about `BLOCK_BYTES`."""
        row_bytes = max(1, self.width * max(1, self.dtype.itemsize))
        return self.chunk * max(1, BLOCK_BYTES // (row_bytes * self.chunk))

    def held(self, keep: bool) -> np.dtype:
        """The type in which values are held; ``keep``: NaN stands for those that are missing."""
        if self.is_words or self.is_dates:
            return np.dtype(np.float64)
        try:
            dtype = storage_dtype(self.dtype)
        except DataError as error:
            raise self.error(str(error)) from None
        return np.dtype(np.float64) if keep and self.gaps and dtype.kind != "f" else dtype


@dataclass(frozen=True)
class ArrayVariable(Variable):
    """An array of a .npy, .npz or IDX file, or one of its named fields.

    Attributes:
        source: the array.
        part: the field, or None.
    """

    source: ArrayFile
    part: str | None = None

    @staticmethod
    def of(source: ArrayFile) -> ArrayVariable:
        """The array ``source``."""
        dtype = source.stored.newbyteorder("=")
        if dtype.kind == "S":
            dtype = np.dtype(f"U{dtype.itemsize}")
        plain = None if dtype.kind in "UM" else source
        return ArrayVariable(
            source.path, source.name, source.shape, dtype, source, array=plain, sequential=not source.sliceable
        )

    @staticmethod
    def fields(source: ArrayFile) -> list[ArrayVariable]:
        """The fields of ``source``, whose elements have names."""
        found = []
        for part in source.stored.names or ():
            dtype = source.stored[part]
            shape = (*source.shape, *dtype.shape)
            base = dtype.base.newbyteorder("=")
            if base.kind == "S":
                base = np.dtype(f"U{base.itemsize}")
            found.append(ArrayVariable(source.path, part, shape, base, source, part, sequential=not source.sliceable))
        return found

    def blocks(self, start: int, stop: int) -> Iterator[Block]:
        """See `Variable.blocks`."""
        for first, elements in self.source.stored_chunks(self.step(), start, stop):
            values = elements if self.part is None else elements[self.part]
            if values.dtype.kind == "S":
                values = np.char.decode(values, "utf-8", "replace")
            yield Block(first, values.reshape(len(values), self.width))


class Part(NamedTuple):
    """Columns of a variable that are features, or one that is the label or the weight.

    Attributes:
        columns: their numbers in a row of the variable; None: all of them.
    """

    variable: Variable
    columns: tuple[int, ...] | None = None

    @property
    def width(self) -> int:
        """How many they are."""
        return self.variable.width if self.columns is None else len(self.columns)

    @property
    def index(self) -> Any:
        """What picks them from rows."""
        return slice(None) if self.columns is None else list(self.columns)

    def values(self, start: int, stop: int, keep: bool) -> Iterator[tuple[int, Array]]:
        """``(first row, values)`` with NaN for what is missing if ``keep``; else that raises a DataError."""
        variable = self.variable
        for block in variable.blocks(start, stop):
            values = block.values if self.columns is None else block.values[:, self.index]
            if block.missing is not None:
                missing = block.missing[:, self.index]
                if missing.any():
                    if not keep:
                        row, column = (int(where[0]) for where in np.nonzero(missing))
                        raise variable.error(
                            f"is missing ({variable.gaps}) in row {block.first + row}, column {self._number(column)}"
                            f" (counted from 0); {MISSING_ADVICE}"
                        )
                    values = values.astype(variable.held(keep))
                    values[missing] = np.nan
            yield block.first, values

    def numbers(self, start: int, stop: int, options: Columns, keep: bool) -> Iterator[tuple[int, Array]]:
        """The same, checked to be finite, dates turned into numbers."""
        for first, values in self.values(start, stop, keep):
            if self.variable.is_dates:
                several = [dates.numbers(column, options.dates_as) for column in values.T]
                values = np.concatenate(several, axis=1)
            bad = first_not_finite(values, keep)
            if bad is not None:
                row, column, value = bad
                if self.variable.is_dates:
                    column = column * self.width // values.shape[1]
                advice = MISSING_ADVICE if np.isnan(value) else "mend or remove that row"
                raise self.variable.error(
                    f"holds {value} in row {first + row}, column {self._number(column)} (counted from 0); {advice}"
                )
            yield first, values

    def _number(self, column: int) -> int:
        """The variable's own number of a column."""
        return column if self.columns is None else self.columns[column]


@dataclass(frozen=True)
class VariablesFile:
    """Variables of a file as features, label and weight of rows; see `chunk.ChunkedFile`.

    Attributes:
        path: the file.
        parts: the features.
        label: the label, or None.
        weight: the weights, or None.
        options: what was said of the table.
        roles: names of the features, label and weight, where there are any.
        names: names of the features, or None.
    """

    path: str
    parts: tuple[Part, ...]
    label: Part | None
    weight: Part | None
    options: Columns
    roles: Roles
    names: tuple[str, ...] | None = None
    base: ClassVar[int] = 1

    @property
    def _all(self) -> list[Variable]:
        return [part.variable for part in (*self.parts, self.label, self.weight) if part is not None]

    @property
    def files(self) -> set[str]:
        """Paths of all files that are read."""
        return {self.path}.union(*({variable.path, *variable.others} for variable in self._all))

    @property
    def sequential(self) -> bool:
        """Whether one rank reads all."""
        return any(variable.sequential for variable in self._all)

    @property
    def _widths(self) -> list[int]:
        """Features that each part makes."""
        how = self.options.dates_as
        return [part.width * (len(dates.column_names("", how)) if part.variable.is_dates else 1) for part in self.parts]

    @property
    def features(self) -> int:
        """Features of a row."""
        return sum(self._widths)

    @property
    def feature_names(self) -> tuple[str, ...] | None:
        """Names of the features, where there are any."""
        return self.names

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user on how the file is read."""
        notes = [f"{self.path}: {variable.name} {variable.note}" for variable in self._all if variable.note]
        return self.roles.notes + tuple(dict.fromkeys(notes))

    @property
    def dtype(self) -> np.dtype:
        """Type in which features are held: the common one of all variables."""
        return np.result_type(*(part.variable.held(self.options.keeps_missing) for part in self.parts))

    @property
    def target_dtype(self) -> np.dtype:
        """Type in which labels are held."""
        return np.dtype(np.int8) if self.label is None else self.label.variable.held(self.options.keeps_missing_labels)

    @property
    def scale(self) -> float:
        """What features are multiplied by."""
        first = self.parts[0].variable
        return byte_scale(first.dtype, first.shape) if len(self.parts) == 1 and not first.is_words else 1.0

    def empty(self) -> Chunk:
        """A chunk without rows."""
        weight = None if self.weight is None else np.empty(0)
        return Chunk(
            np.empty((0, self.features), self.dtype), np.empty(0, self.target_dtype), weight, self._label_words
        )

    @property
    def _label_words(self) -> tuple[str, ...] | None:
        """What the numbers of labels stand for, as far as is known before they are read; None: for themselves."""
        variable = None if self.label is None else self.label.variable
        if variable is not None and variable.is_words:
            return ()
        return TRUTH_WORDS if variable is not None and variable.dtype.kind == "b" else None

    def read(self, part: int, parts: int) -> Chunk:
        """Rows of the chunks that are the ``part``-th of ``parts`` ranges of all."""
        start, stop = self.range_of(part, parts)
        x = self.rows_of(start, stop)
        y, words = self._labels(start, stop)
        return Chunk(x, y, self._weights(start, stop), words)

    def range_of(self, part: int, parts: int) -> tuple[int, int]:
        """First row, and the one after the last, of the ``part``-th of ``parts`` ranges."""
        variables = self._all
        rows, chunk = variables[0].rows, max(variable.chunk for variable in variables)
        start, stop = (min(rows, round(rows * p / parts / chunk) * chunk) for p in (part, part + 1))
        return start, rows if part == parts - 1 else stop

    def rows_of(self, start: int, stop: int) -> Array | Csr:
        """Features of rows ``start`` to ``stop - 1``, shape (rows, features), or the same as `chunk.Csr`."""
        x = np.empty((stop - start, self.features), self.dtype)
        at = 0
        for source, width in zip(self.parts, self._widths, strict=True):
            for first, values in source.numbers(start, stop, self.options, self.options.keeps_missing):
                x[first - start : first - start + len(values), at : at + width] = values
            at += width
        return x

    def _labels(self, start: int, stop: int) -> tuple[Array, tuple[str, ...] | None]:
        """Labels of rows ``start`` to ``stop - 1``, and the words that they stand for, if any."""
        y = np.zeros(stop - start, self.target_dtype)
        if self.label is None:
            return y, None
        keep, variable = self.options.keeps_missing_labels, self.label.variable
        if not variable.is_words:
            for first, values in self.label.numbers(start, stop, self.options, keep):
                y[first - start : first - start + len(values)] = values[:, 0]
            return y, self._label_words
        found: dict[str, int] = {}
        for first, values in self.label.values(start, stop, keep):
            kinds, begins, which = np.unique(values[:, 0], return_index=True, return_inverse=True)
            numbers = np.full(len(kinds), np.nan)
            for i in np.argsort(begins).tolist():
                kind = kinds[i]
                if kind == kind:  # else it is missing
                    where = f"{variable.name}, row {first + int(begins[i])} (counted from 0)"
                    text = str(kind) if variable.words is None else variable.words[int(kind)]
                    word = label_word(text, keep, self.path, where)
                    numbers[i] = np.nan if word is None else found.setdefault(word, len(found))
            y[first - start : first - start + len(values)] = numbers[which]
        return y, tuple(found)

    def _weights(self, start: int, stop: int) -> Array | None:
        """Weights of rows ``start`` to ``stop - 1``, float64."""
        if self.weight is None:
            return None
        weight = np.empty(stop - start)
        for first, values in self.weight.values(start, stop, False):
            weight[first - start : first - start + len(values)] = values[:, 0]
        check_weights(self.weight.variable, weight, start)
        return weight
