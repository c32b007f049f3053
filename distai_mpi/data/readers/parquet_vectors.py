"""Vectors in Parquet: lists of equally many numbers, and those that Spark ML stores as features (VectorUDT).

Spark's are structures ``type, size, indices, values``: type 0 is a sparse vector, of which the values stand at the
ascending indices, counted from 0; type 1 is a dense one, of values alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import DataError
from ..array_file import MISSING_ADVICE
from .chunk import Csr
from .sparse import index_dtype

Array = Any

FIELDS = ("type", "size", "indices", "values")  # of a vector of Spark's
SPARSE, DENSE = 0, 1  # its types


def is_vector(type_: Any) -> bool:
    """Whether a column of Arrow's ``type_`` holds vectors of Spark's."""
    import pyarrow.types as kinds

    if not kinds.is_struct(type_) or sorted(type_.field(i).name for i in range(type_.num_fields)) != sorted(FIELDS):
        return False
    lists = type_.field("indices").type, type_.field("values").type
    return all(map(kinds.is_list, lists)) and kinds.is_integer(lists[0].value_type)


def is_list_of_numbers(type_: Any) -> bool:
    """Whether a column of Arrow's ``type_`` holds lists of numbers whose lengths the type does not tell."""
    import pyarrow.types as kinds

    if not (kinds.is_list(type_) or kinds.is_large_list(type_)):
        return False
    return kinds.is_integer(type_.value_type) or kinds.is_floating(type_.value_type)


def width_of(path: str, file: Any, name: str) -> int:
    """How long the vectors of the column ``name`` of an open ``file`` are, by the first that is not null.

    Raises:
        DataError: it is empty, or there is none.
    """
    for batch in file.iter_batches(1024, columns=[name]):
        for value in batch.column(0).to_pylist() if batch.column(0).null_count < batch.num_rows else ():
            if value is None:
                continue
            sparse = isinstance(value, dict) and value["type"] == SPARSE
            length = value["size"] if sparse else len(value["values"] or () if isinstance(value, dict) else value)
            if not length:
                raise DataError(f"{path}: column {name} holds vectors without numbers; leave it out by --drop '{name}'")
            return int(length)
    raise DataError(f"{path}: column {name} is empty (null) in all rows; leave it out by --drop '{name}'")


def equal_lists(path: str, name: str, column: Any, width: int, first: int) -> Any:
    """A column of lists as one array of lists of ``width`` numbers; its first row is row ``first`` of the file.

    Null lists become lists of nulls.

    Raises:
        DataError: a list has another length; names the row.
    """
    import pyarrow as arrow
    import pyarrow.compute as compute

    array = _one_array(column)
    lengths = compute.list_value_length(array).fill_null(width).to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(lengths != width)
    if wrong.size:
        raise DataError(
            f"{path}: column {name} holds {lengths[wrong[0]]} numbers in row {first + wrong[0]} (counted from 0), and"
            f" {width} in the first one; give all lists one length, or leave the column out by --drop '{name}'"
        )
    held = array.is_valid().to_numpy(zero_copy_only=False)
    places = np.where(held, np.cumsum(held) - 1, 0)[:, None] * width + np.arange(width)
    places = arrow.array(places.reshape(-1), mask=np.repeat(~held, width))
    flat = array.flatten()
    if not len(flat):  # of null lists alone
        flat, places = arrow.nulls(len(array) * width, flat.type), arrow.array(np.arange(len(array) * width))
    return arrow.FixedSizeListArray.from_arrays(flat.take(places), width)


@dataclass(frozen=True)
class VectorColumn:
    """A column of Spark's vectors, the features of a table; picklable.

    Attributes:
        name: of the column.
        width: numbers of a vector.
    """

    name: str
    width: int

    def empty(self) -> Csr:
        """No rows."""
        return Csr(np.empty(0, np.int64), np.empty(0, index_dtype(self.width)), np.empty(0))

    def rows(self, path: str, column: Any, first: int, keep: bool) -> Csr:
        """The vectors of ``column``, whose first row is row ``first`` of the file, without their zeros, float64.

        ``keep`` lets NaN through, which stands for values that are missing.

        Raises:
            DataError: a vector is null or of another size, or indices are out of range, unsorted or repeated, or a
                value is not finite; names the row.
        """
        import pyarrow.compute as compute

        array = _one_array(column)
        parts = {field.name: part for field, part in zip(array.type, array.flatten(), strict=True)}
        self._refuse(path, first, array.is_null(), f"is empty (null); {MISSING_ADVICE}")
        kinds = parts["type"].fill_null(-1).to_numpy(zero_copy_only=False)
        self._refuse(path, first, ~np.isin(kinds, (SPARSE, DENSE)), "is of neither type: 0 is sparse, 1 is dense")
        sparse = kinds == SPARSE
        lengths, indexed = (
            compute.list_value_length(parts[name]).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
            for name in ("values", "indices")
        )
        sizes = np.where(sparse, parts["size"].fill_null(-1).to_numpy(zero_copy_only=False), lengths)
        advice = f"is not of the size {self.width} that the first one has; give all vectors one size"
        self._refuse(path, first, sizes != self.width, advice)
        self._refuse(path, first, sparse & (indexed != lengths), "has not one index for each value")
        values = parts["values"].flatten().to_numpy(zero_copy_only=False).astype(np.float64)  # NaN for null
        ends = np.cumsum(lengths)
        row_of = np.repeat(np.arange(len(lengths)), lengths)
        indices = np.empty(values.size, np.int64)
        indices[sparse[row_of]] = parts["indices"].filter(sparse).flatten().to_numpy(zero_copy_only=False)
        indices[~sparse[row_of]] = np.tile(np.arange(self.width), np.count_nonzero(~sparse))
        self._refuse_entries(path, first, row_of, (indices < 0) | (indices >= self.width), indices, "out of range")
        falls = np.zeros(indices.size, bool)
        falls[1:] = (indices[1:] <= indices[:-1]) & (row_of[1:] == row_of[:-1])
        self._refuse_entries(path, first, row_of, falls, indices, "after one that is as large: sort them, each once")
        wrong = np.isinf(values) if keep else ~np.isfinite(values)
        if wrong.any():
            at = int(np.argmax(wrong))
            advice = MISSING_ADVICE if np.isnan(values[at]) else "mend or remove that row"
            raise self._error(path, first + row_of[at], f"holds {values[at]} at index {indices[at]}; {advice}")
        held = values != 0
        before = np.concatenate([[0], np.cumsum(held)])
        return Csr(before[ends], indices[held].astype(index_dtype(self.width)), values[held])

    def _error(self, path: str, row: int, message: str) -> DataError:
        return DataError(f"{path}: the vector of column {self.name} in row {row} (counted from 0) {message}")

    def _refuse(self, path: str, first: int, wrong: Any, message: str) -> None:
        found = np.flatnonzero(np.asarray(wrong))
        if found.size:
            raise self._error(path, first + int(found[0]), message)

    def _refuse_entries(self, path: str, first: int, row_of: Array, wrong: Array, indices: Array, what: str) -> None:
        found = np.flatnonzero(wrong)
        if found.size:
            at = found[0]
            message = f"has the index {indices[at]} {what}; there are {self.width} numbers, counted from 0"
            raise self._error(path, first + int(row_of[at]), message)


def join(parts: list[Csr], none: Csr) -> Csr:
    """The rows of ``parts`` one after another; ``none`` where there are no parts."""
    if not parts:
        return none
    before = np.cumsum([0, *(len(part.values) for part in parts)])
    ends = np.concatenate([part.ends + start for part, start in zip(parts, before[:-1], strict=True)])
    return Csr(ends, *(np.concatenate([part[i] for part in parts]) for i in (1, 2)))


def _one_array(column: Any) -> Any:
    import pyarrow as arrow

    array = column.combine_chunks() if isinstance(column, arrow.ChunkedArray) else column
    if isinstance(array, arrow.ChunkedArray):  # as combine_chunks of no rows gives
        array = array.chunk(0) if array.num_chunks else arrow.array([], array.type)
    return array
