"""Sparse matrices that files hold as arrays of their entries: each rank reads a range of the rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import DataError
from ..array_file import MISSING_ADVICE
from ..checks import first_not_finite
from ..partition import even_range
from ..sparse_rows import AT_A_TIME, fits_float32
from .chunk import Chunk, Csr
from .variables import Block, Variable, VariablesFile

Array = Any

MOST_FEATURES = 1 << 32
MOST_CHOSEN = 1 << 24  # columns of a matrix from which --columns and --drop choose: they are listed one by one


@dataclass(frozen=True)
class SparseVariable(Variable):
    """A sparse matrix of a file; picklable, holds nothing open.

    Attributes:
        shape: (rows, features).
        dtype: in which values are held, float32 or float64.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shape[1] > MOST_FEATURES:
            raise self.error(f"has {self.shape[1]:,} features, and {MOST_FEATURES:,} are the most that are read")

    def blocks(self, start: int, stop: int) -> Iterator[Block]:
        """Not for such a matrix, whose rows are read by `csr`."""
        raise self.error("is a sparse matrix, which is read as features alone")

    def csr(self, start: int, stop: int) -> Csr:
        """Rows ``start`` to ``stop - 1``, features counted from 0, ascending in a row.

        Raises:
            DataError: the arrays are not those of such a matrix; names array and row.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class CompressedMatrix(SparseVariable):
    """The entries of one row after another (CSR), or of one column after another (CSC), which is read whole.

    Attributes:
        data: values of the entries, shape (entries,); None: there are no entries.
        indices: their columns, or rows, likewise.
        indptr: entries before each row, or column, and at last all, shape (rows + 1,).
        by_columns: whether columns stand one after another.
    """

    data: Variable | None
    indices: Variable | None
    indptr: Variable
    by_columns: bool = False

    def csr(self, start: int, stop: int) -> Csr:
        """See `SparseVariable.csr`."""
        if self.by_columns:
            found = part_of(turned(self._lines(0, self.shape[1]), self.shape), start, stop)
        else:
            found = canonical(self._lines(start, stop), self.shape[1])
        if self.data is not None and self.data.dtype.kind == "b":
            np.minimum(found.values, 1, out=found.values)  # true and true is true
        return found

    def _lines(self, start: int, stop: int) -> Csr:
        """Rows, or columns, ``start`` to ``stop - 1`` as they are stored."""
        pointers = self._pointers(start, stop)
        first, last = int(pointers[0]), int(pointers[-1])
        limit = self.shape[not self.by_columns]
        indices, values = np.empty(last - first, index_dtype(limit)), np.empty(last - first, self.dtype)
        if self.indices is not None and self.data is not None and last > first:
            for at, block in _read(self.indices, first, last):
                if block.min() < 0 or block.max() >= limit:
                    wrong = np.flatnonzero((block < 0) | (block >= limit))
                    line = start + int(np.searchsorted(pointers, at + wrong[0], side="right")) - 1
                    raise self.indices.error(
                        f"holds {block[wrong[0]]} in {self._line} {line} (counted from 0), but the matrix has {limit:,}"
                        f" {'rows' if self.by_columns else 'columns'}, numbered from 0; its shape is {self.shape}"
                    )
                indices[at - first : at - first + len(block)] = block
            values = np.empty(last - first, np.float32)  # until one is found that it cannot hold
            for at, block in _read(self.data, first, last):
                place = slice(at - first, at - first + len(block))
                if values.dtype != self.dtype and not fits_float32(block).all():
                    before, values = values, np.empty(last - first, self.dtype)
                    values[: place.start] = before[: place.start]
                values[place] = block
        return Csr(pointers[1:] - first, indices, values)

    @property
    def _line(self) -> str:
        return "column" if self.by_columns else "row"

    def _pointers(self, start: int, stop: int) -> Array:
        """Entries before the rows, or columns, ``start`` to ``stop``, int64, checked."""
        found = np.empty(stop + 1 - start, np.int64)
        for at, block in _read(self.indptr, start, stop + 1):
            found[at - start : at - start + len(block)] = block
        entries = 0 if self.data is None else self.data.rows
        if start == 0 and found[0] != 0:
            raise self.indptr.error(f"begins with {found[0]}, and not with 0: it tells the entries before each row")
        falls = np.flatnonzero(found[1:] < found[:-1])
        if falls.size:
            at = int(falls[0])
            raise self.indptr.error(
                f"falls from {found[at]} to {found[at + 1]} in {self._line} {start + at} (counted from 0), and must"
                " ascend: the arrays do not belong together, or are damaged"
            )
        if stop == self.indptr.rows - 1 and found[-1] != entries:
            raise self.indptr.error(f"ends with {found[-1]}, but there are {entries} entries; it must end with these")
        if not 0 <= found[0] <= found[-1] <= entries:
            at = 0 if found[0] < 0 else int(np.argmax(found > entries))
            raise self.indptr.error(
                f"holds {found[at]} for {self._line} {start + at} (counted from 0), but there are {entries} entries"
            )
        return found


def _read(variable: Variable, start: int, stop: int) -> Iterator[tuple[int, Array]]:
    """``(first, values)`` of elements ``start`` to ``stop - 1`` of an array of one axis."""
    whole = variable.sequential
    for block in variable.blocks(0, variable.rows) if whole else variable.blocks(start, stop):
        if block.missing is not None and block.missing.any():
            raise variable.error(f"lacks values ({variable.gaps}), and an array of a sparse matrix has all")
        low, high = max(start, block.first), min(stop, block.first + len(block.values))
        if low < high:
            yield low, block.values[low - block.first : high - block.first, 0]


def compressed(
    path: str,
    name: str,
    arrays: tuple[Variable | None, Variable | None, Variable],
    shape: tuple[int, ...] | None,
    layout: str | None = None,
    transpose: bool = False,
    column_names: tuple[str, ...] | None = None,
) -> CompressedMatrix:
    """The matrix ``name`` of a file that holds it as ``arrays``: data, indices and indptr.

    Args:
        arrays: see `CompressedMatrix`.
        shape: rows and columns; None: the file does not tell, and there are as many as there are in the arrays.
        layout: ``csr`` or ``csc``; None: the file does not tell, and rows stand one after another.
        transpose: whether a row of the data is stored as a column.

    Raises:
        DataError: the arrays do not fit.
    """
    data, indices, indptr = arrays
    for array in arrays:
        if array is None:
            continue
        if len(array.shape) != 1:
            raise array.error(f"has shape {array.shape}, but an array of the sparse matrix {name} has one axis")
        if array.dtype.kind not in ("biuf" if array is data else "iu") or array.words is not None:
            kind = "numbers" if array is data else "integers"
            raise array.error(f"is of type '{array.dtype}', but these are {kind} in the sparse matrix {name}")
    lengths = [0 if array is None else array.rows for array in (data, indices)]
    if lengths[0] != lengths[1]:
        raise indptr.error(
            f"belongs to the sparse matrix {name}, of which there are {lengths[0]} values and {lengths[1]} indices;"
            " each entry has one of both: the arrays do not belong together, or are damaged"
        )
    lines = indptr.rows - 1
    if shape is None:
        other = 1 + (0 if indices is None else max(int(block.max()) for _, block in _read(indices, 0, indices.rows)))
        shape = (other, lines) if layout == "csc" else (lines, other)
        transpose = transpose and layout is not None  # else what stands together is a row, whatever it is called
    if len(shape) != 2:
        raise DataError(f"{path}: {name} has shape {shape}, but a matrix has two axes: rows and features")
    by_columns = layout == "csc"
    if transpose:
        shape, by_columns = shape[::-1], not by_columns and layout is not None
    if lines != shape[by_columns]:
        lost = ""
        if layout is None and lines == shape[1]:
            lost = " if it is stored column by column, give the file a format of csc; if a column is a row, --transpose"
        raise indptr.error(
            f"has {lines + 1} values, but the sparse matrix {name} of shape {shape} has {shape[by_columns]}"
            f" {'columns' if by_columns else 'rows'}, and one value more is needed;{lost or ' store the matrix again'}"
        )
    given = [array for array in arrays if array is not None]
    return CompressedMatrix(
        path,
        name,
        shape,
        held_dtype(None if data is None else data.dtype),
        data,
        indices,
        indptr,
        by_columns,
        sequential=by_columns or any(array.sequential for array in given),
        others=frozenset().union(*({array.path, *array.others} for array in given)),
        column_names=column_names,
    )


def held_dtype(stored: np.dtype | None) -> np.dtype:
    """The type in which values of a ``stored`` type are held: float32 where that loses nothing, else float64."""
    return np.dtype(np.float32 if stored is None or np.can_cast(stored, np.float32) else np.float64)


def index_dtype(count: int) -> np.dtype:
    """The type of numbers from 0 to ``count - 1``, which are at most 2³²."""
    return np.dtype(np.int32 if count <= 1 << 31 else np.uint32)


def canonical(rows: Csr, features: int) -> Csr:
    """``rows`` with the entries of each sorted by feature, and those of one feature summed; may overwrite them."""
    ends, indices, values = rows
    if _ascend(ends, indices):
        return rows
    from scipy.sparse import csr_array

    starts = np.concatenate([[0], ends])
    signed = indices.astype(np.int64 if indices.dtype == np.uint32 else np.int32, copy=False)
    matrix = csr_array((values, signed, starts), shape=(len(ends), features))
    matrix.sum_duplicates()
    return Csr(matrix.indptr[1:].astype(np.int64), matrix.indices.astype(indices.dtype, copy=False), matrix.data)


def _ascend(ends: Array, indices: Array) -> bool:
    """Whether the indices of each row ascend, none of them twice; looks at some at a time."""
    for start in range(0, len(indices) - 1, AT_A_TIME):
        part = indices[start : start + AT_A_TIME + 1]
        falls = part[1:] <= part[:-1]
        low, high = np.searchsorted(ends, (start, start + len(falls)), side="right")
        begins = ends[low:high] - 1 - start  # where the next one is of another row
        falls[begins[begins >= 0]] = False
        if falls.any():
            return False
    return True


def turned(columns: Csr, shape: tuple[int, ...]) -> Csr:
    """The rows of the matrix of this ``shape`` whose ``columns``, of entries numbered by row, are given."""
    from scipy.sparse import csc_array

    starts = np.concatenate([[0], columns.ends])
    return of_scipy(csc_array((columns.values, columns.indices.astype(np.int64), starts), shape=shape))


def of_scipy(matrix: Any) -> Csr:
    """A matrix of SciPy's, of any format."""
    rows = matrix.tocsr()
    indices = rows.indices.astype(index_dtype(matrix.shape[1]), copy=False)
    return canonical(Csr(rows.indptr[1:].astype(np.int64), indices, rows.data), matrix.shape[1])


def part_of(rows: Csr, start: int, stop: int) -> Csr:
    """Rows ``start`` to ``stop - 1`` of ``rows``."""
    starts = np.concatenate([[0], rows.ends])
    first, last = starts[start], starts[stop]
    return Csr(starts[start + 1 : stop + 1] - first, rows.indices[first:last], rows.values[first:last])


def _chosen(rows: Csr, columns: tuple[int, ...], width: int) -> Csr:
    """These ``columns`` of ``rows`` of ``width``, in this order."""
    if columns == tuple(range(width)):
        return rows
    places = np.full(width, -1, np.int64)
    places[list(columns)] = np.arange(len(columns))
    indices = places[rows.indices]
    kept = indices >= 0
    found = Csr(_before(kept)[rows.ends], indices[kept].astype(rows.indices.dtype), rows.values[kept])
    return canonical(found, width)


def _before(kept: Array) -> Array:
    """How many of the bools are true before each of them, and at last of all, int64."""
    return np.concatenate([[0], np.cumsum(kept)])


@dataclass(frozen=True)
class SparseFile(VariablesFile):
    """A sparse matrix as the features of rows, with label and weight beside it; see `chunk.ChunkedFile`.

    Features are counted from 0, and are as many as the matrix has columns.
    """

    def empty(self) -> Chunk:
        """A chunk without rows."""
        indices = np.empty(0, index_dtype(self.parts[0].variable.width))
        return super().empty()._replace(x=Csr(np.empty(0, np.int64), indices, np.empty(0, self.dtype)))

    def range_of(self, part: int, parts: int) -> tuple[int, int]:
        """See `VariablesFile.range_of`; without regard to how labels are stored, which are few bytes."""
        return even_range(self.parts[0].variable.rows, parts, part)

    def rows_of(self, start: int, stop: int) -> Csr:
        """See `VariablesFile.rows_of`."""
        part = self.parts[0]
        matrix, columns = part.variable, part.columns
        assert isinstance(matrix, SparseVariable)
        rows = matrix.csr(start, stop)
        if columns is not None:
            rows = _chosen(rows, columns, matrix.width)
        wrong = first_not_finite(rows.values[:, None], self.options.keeps_missing)
        if wrong is not None:
            at = wrong[0]
            row, column = start + int(np.searchsorted(rows.ends, at, side="right")), int(rows.indices[at])
            advice = MISSING_ADVICE if np.isnan(rows.values[at]) else "mend or remove that row"
            column = column if columns is None else columns[column]
            raise matrix.error(f"holds {rows.values[at]} in row {row}, column {column} (counted from 0); {advice}")
        return rows
