"""Rows of which most features are 0, in compressed form (CSR)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..backend import HOST
from ..errors import DataError
from ..perf.machine import release
from .frequent import NONE, Frequent
from .rows import blocks

Array = Any
MOST_DENSE = 0.25  # of the values of rows that are held sparse are not 0: these are slower than dense ones above it
DENSE_ADVICE = "hold them densely (--dense)"
LINE_BYTES = 64  # of the cache
AT_A_TIME = 1 << 18  # values that are looked at, or converted, together: what stays in cache
MOST_FOUND = 64  # ranges of rows whose frequent features are kept: passes go through the same blocks again and again
ALL_ONES = {np.dtype(dtype): HOST.read_only(np.ones(8, dtype)) for dtype in (np.float32, np.float64)}
NARROW, WIDE = np.dtype(np.uint32), np.dtype(np.uint64)  # of indices of features


class SparseRows:
    """Rows as the entries that are not 0; see `Rows`.

    Attributes:
        starts: shape (rows + 1,), int64: row r has the entries ``starts[r]`` to ``starts[r + 1] - 1``.
        indices: the feature of each entry, from 0; uint32, or uint64 where there are more.  In a row they ascend, and
            none is there twice: kernels count on it.
        values: of the entries, float32 or float64, as many; empty where all are 1.
        features: of a row.

    All are read-only views.  Entries that lie before the first row, or behind the last, are those of other rows.
    """

    __slots__ = ("_found", "features", "indices", "starts", "values")
    ndim = 2

    def __init__(self, starts: Array, indices: Array, values: Array, features: int) -> None:
        self.starts, self.indices, self.values = (HOST.read_only(a) for a in (starts, indices, values))
        self.features = int(features)
        self._found: list[tuple[int, int, Frequent]] = []  # what `frequent` has found; views of the rows share it

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def shape(self) -> tuple[int, int]:
        """See `Rows`."""
        return len(self), self.features

    @property
    def dtype(self) -> np.dtype:
        """See `Rows`."""
        return self.values.dtype

    @property
    def entries(self) -> int:
        """Number of entries of these rows."""
        return int(self.starts[-1] - self.starts[0])

    @property
    def nbytes(self) -> int:
        """Bytes of the rows."""
        return self.starts.nbytes + self.entries * self._entry_bytes

    @property
    def _entry_bytes(self) -> int:
        return self.indices.itemsize + (self.values.itemsize if self.values.size else 0)

    @property
    def row_bytes(self) -> int:
        """See `Rows`."""
        return 8 + self.entries * self._entry_bytes // max(1, len(self))

    @property
    def touched(self) -> Array:
        """See `Rows`: the features of the entries of these rows."""
        return self.indices[self.starts[0] : self.starts[-1]]

    @property
    def own_values(self) -> Array:
        """Values of the entries of these rows; none where all are 1."""
        return self.values[self.starts[0] : self.starts[-1]]

    def position(self, found: tuple[int, int, float] | None) -> tuple[int, int, float] | None:
        """Row, feature and value of an entry that was found in `own_values` at found[0]."""
        if found is None:
            return None
        entry = int(self.starts[0]) + found[0]
        return int(np.searchsorted(self.starts, entry, side="right")) - 1, int(self.indices[entry]), found[2]

    @property
    def arrays(self) -> tuple[Array, Array, Array]:
        """``starts``, ``indices`` and ``values``, as kernels take them, see `sparse_kernels`."""
        return self.starts, self.indices, self.values if self.values.size else ALL_ONES[self.dtype]

    @property
    def frequent(self) -> Frequent:
        """Features whose sums over the rows need care: of float32 rows, and none of few; found once for all views."""
        from .row_kernels import PART

        if len(self) <= PART or self.dtype != np.float32:
            return NONE
        start, stop = int(self.starts[0]), int(self.starts[-1])
        for first, last, found in self._found:
            if first <= start and stop <= last:
                return found
        found = Frequent.of(self.indices[start:stop], self.features, len(self))
        self._found[:] = [*self._found[1 - MOST_FOUND :], (start, stop, found)]
        return found

    def dot(self, w: Array, out: Array = None) -> Array:
        """See `Rows`."""
        from . import sparse_kernels as kernels

        if out is None:
            out = np.empty((len(self), *w.shape[1:]), self.dtype)
        elif not out.flags.c_contiguous:
            out[...] = self.dot(w)
            return out
        w = HOST.read_only(np.ascontiguousarray(w, self.dtype))
        if w.ndim == 1 or w.shape[1] == 1:
            kernels.dot(*self.arrays, w.reshape(-1), out.reshape(-1))
        else:
            kernels.dot_outputs(*self.arrays, w, whole_vectors(w), out)
        return out

    def t_dot(self, v: Array, out: Array = None) -> Array:
        """See `Rows`; sums of many rows are float64."""
        if out is None:
            out = np.empty((self.features, *v.shape[1:]), self.dtype)
        sums = TransposedSums(self, out)
        sums.add(self, v)
        sums.finish()
        return out

    def take(self, rows: slice | Array) -> SparseRows:
        """These of the rows: a view of a slice in steps of 1, else a copy; an array holds their numbers."""
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step == 1:
                part = SparseRows(self.starts[start : max(start, stop) + 1], self.indices, self.values, self.features)
                part._found = self._found
                return part
            rows = np.arange(start, stop, step)
        return self.gathered(rows, self.dtype)

    __getitem__ = take

    def gathered(self, rows: Array, dtype: Any, factors: Array | None = None) -> SparseRows:
        """A copy of these ``rows``, int64, in ``dtype``, values multiplied by ``factors``, shape (features,)."""
        starts = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(self.starts[rows + 1] - self.starts[rows], out=starts[1:])
        plain = not self.values.size and factors is None
        indices, values = np.empty(starts[-1], self.indices.dtype), np.empty(0 if plain else starts[-1], dtype)
        self.gather_into(rows, starts, indices, values, factors)
        return SparseRows(starts, indices, values, self.features)

    def gather_into(
        self, rows: Array, starts: Array, indices: Array, values: Array, factors: Array | None = None
    ) -> None:
        """Write what `gathered` gives into ``indices`` and ``values``: row r from ``starts[r]`` on."""
        from .sparse_kernels import gather

        gather(*self.arrays, HOST.read_only(rows), _factors(factors), starts, indices, values)

    def release(self, start: int, stop: int) -> None:
        """Give the memory of rows ``start`` to ``stop - 1`` back: nobody may read their entries any more."""
        entries = slice(int(self.starts[start]), int(self.starts[stop]))
        release(self.indices[entries])
        release(self.values[entries])

    def columns(self, features: Array) -> SparseRows:
        """See `Rows`."""
        from .sparse_kernels import select

        place = np.full(self.features, self.features, self.indices.dtype)
        place[features] = np.arange(len(features))
        starts, nothing = np.zeros(len(self) + 1, np.int64), np.empty(0, self.indices.dtype)
        select(*self.arrays, place, starts, nothing, np.empty(0, self.dtype))
        indices = np.empty(starts[-1], self.indices.dtype)
        values = np.empty(starts[-1] if self.values.size else 0, self.dtype)
        if indices.size:
            select(*self.arrays, place, starts, indices, values)
        return SparseRows(starts, indices, values, len(features))

    def squares(self, scale: Array, out: Array) -> None:
        """See `Rows`."""
        from . import sparse_kernels as kernels

        total = np.zeros((self.features, *scale.shape[1:]))
        kernel = kernels.squares_of_one if scale.ndim == 1 else kernels.squares
        kernel(*self.arrays, HOST.read_only(np.ascontiguousarray(scale)), total)
        out[...] = total

    def scaled_gram(self, scale: Array, bias: bool, out: Array, dtype: Any = None) -> None:
        """See `Rows`; of few features, by BLAS on blocks that are held densely."""
        rows, features = self.shape
        dtype, columns = np.dtype(dtype or self.dtype), features + bias
        square = np.empty((columns, columns), dtype)
        for part in blocks(rows, columns, dtype.itemsize):
            a = np.ones((part.stop - part.start, columns), dtype)
            self.take(part).fill(a[:, :features])
            a *= scale[part, None]
            np.dot(a.T, a, out=square)
            out += square

    def fill(self, out: Array, factors: Array | None = None) -> None:
        """See `Rows`; values multiplied by ``factors``, shape (features,)."""
        self.fill_rows(np.arange(len(self)), out, factors)

    def toarray(self) -> Array:
        """The rows as an array."""
        out = np.empty(self.shape, self.dtype)
        self.fill(out)
        return out

    def fill_rows(self, rows: Array, out: Array, factors: Array | None = None) -> None:
        """As `fill`, of these ``rows``, int64."""
        from .sparse_kernels import fill

        into = out if out.flags.c_contiguous else np.empty(out.shape, out.dtype)
        fill(*self.arrays, HOST.read_only(rows), _factors(factors), into)
        if into is not out:
            out[...] = into

    def astype(self, dtype: Any, copy: bool = True) -> SparseRows:
        """The same with values in ``dtype``."""
        return SparseRows(self.starts, self.indices, self.values.astype(dtype, copy=copy), self.features)


class TransposedSums:
    """Xᵀ V of sparse rows X, summed block by block; what it takes to keep the figures of float32 is in `frequent`.

    Args:
        rows: X.
        out: shape (features,) or (features, outputs); is overwritten.

    Attributes:
        sums: what becomes ``out`` at the end, mostly the same array.
        before: rows that were added.
        totals: of the frequent features, shape (n,) or (n, outputs), float64.
    """

    def __init__(self, rows: SparseRows, out: Array) -> None:
        self.out, self.before, self.frequent = out, 0, rows.frequent
        self.sums = out if out.flags.c_contiguous else np.empty(out.shape, out.dtype)
        self.sums[...] = 0
        single = out.ndim == 1 or out.shape[1] == 1
        count = len(self.frequent.features)
        self.totals = np.zeros(count if single else (count, out.shape[1]))
        self.factors = None if single else whole_vectors(out)

    def add(self, rows: SparseRows, v: Array) -> None:
        """Add Xᵀ v of these of the rows, which follow those before; ``v`` has shape (rows,) or (rows, outputs)."""
        from . import sparse_kernels as kernels

        v = HOST.read_only(np.ascontiguousarray(v, rows.dtype))
        features, reach = self.frequent.features, self.frequent.reach
        if self.factors is None:
            v, sums = v.reshape(-1), self.sums.reshape(-1)
            kernels.t_dot_many(*rows.arrays, v, self.before, features, reach, self.totals, sums)
        else:
            sums = self.sums
            kernels.t_dot_outputs(*rows.arrays, v, self.factors, self.before, features, reach, self.totals, sums)
        self.before += len(rows)

    def finish(self) -> None:
        """Write the sums into ``out``."""
        add_totals(self.frequent, self.totals, self.sums.reshape(len(self.out), *self.totals.shape[1:]))
        if self.sums is not self.out:
            self.out[...] = self.sums


def add_totals(frequent: Frequent, totals: Array, sums: Array) -> None:
    """Add the float64 ``totals`` of ``frequent`` features to their ``sums``."""
    if totals.size:
        sums[frequent.features] = totals + sums[frequent.features]


def whole_vectors(matrix: Array) -> Array:
    """Zeros like a row of ``matrix``, filled up to whole vectors of a line of the cache."""
    return np.zeros(matrix.shape[1] + -matrix.shape[1] % (LINE_BYTES // matrix.itemsize), matrix.dtype)


def _factors(factors: Array | None) -> Array:
    return HOST.read_only(np.empty(0) if factors is None else np.ascontiguousarray(factors, np.float64))


def is_sparse(x: Any) -> bool:
    """Whether ``x`` is sparse rows: these, or a matrix or array of SciPy's."""
    return isinstance(x, SparseRows) or hasattr(x, "tocsr")


def sparse_rows(x: Any, name: str = "x") -> SparseRows:
    """``x``, see `is_sparse`, as `SparseRows`; entries of one feature of a row are summed, and all sorted by feature.

    Values of 1 alone are not held; others are in float32 where that loses nothing, else in float64.

    Raises:
        DataError: its values are no real numbers, it has not two axes, or its arrays do not fit each other.
    """
    if isinstance(x, SparseRows):
        return x
    if len(x.shape) != 2:
        raise DataError(f"{name} has shape {x.shape}; it needs the shape (rows, features)")
    if hasattr(x, "check_format"):  # SciPy does not look at indices, and kernels would read and write beyond arrays
        try:
            x.check_format(full_check=True)
        except ValueError as error:
            raise DataError(f"{name}: is no valid sparse matrix: {error}") from None
    x = x.tocsr()
    if x.dtype.kind not in "biuf":
        raise DataError(f"{name}: values of type '{x.dtype}' are no real numbers; store integers or floats")
    if not x.has_canonical_format:
        x = x.copy()
        x.sum_duplicates()
    features = x.shape[1]
    indices, values = x.indices[: x.nnz], x.data[: x.nnz]  # there may be room for more behind them
    starts = x.indptr.astype(np.int64, copy=False)
    return SparseRows(starts, index_array(indices, features), compact(HOST.read_only(values)), features)


def empty_rows(rows: int, features: int, dtype: Any) -> SparseRows:
    """So many rows without entries."""
    return SparseRows(np.zeros(rows + 1, np.int64), np.empty(0, index_dtype(features)), np.empty(0, dtype), features)


def join(parts: Sequence[SparseRows], features: int, dtype: Any) -> SparseRows:
    """The rows of ``parts`` one after another, a copy; all values are held where those of some part are."""
    parts = [part for part in parts if len(part)]
    if not parts:
        return empty_rows(0, features, dtype)
    plain = not any(part.values.size for part in parts)
    lengths = np.concatenate([np.diff(part.starts) for part in parts])
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    indices = np.concatenate([part.touched for part in parts])
    values = np.empty(0, dtype)
    if not plain:
        ones = [part.own_values if part.values.size else np.ones(part.entries, dtype) for part in parts]
        values = np.concatenate(ones, dtype=dtype, casting="same_kind")
    return SparseRows(starts, indices, values, features)


def index_dtype(features: int) -> np.dtype:
    """The type of indices of so many features."""
    return NARROW if features <= 1 << 32 else WIDE


def index_array(indices: Array, features: int) -> Array:
    """``indices`` as `SparseRows` holds them; a view where they have so many bytes already."""
    dtype = index_dtype(features)
    if indices.dtype.itemsize == dtype.itemsize and indices.dtype.kind in "iu":
        return indices.view(dtype)
    return indices.astype(dtype)


def compact(values: Array) -> Array:
    """``values`` as `SparseRows` holds them, in as few bytes as lose nothing; may overwrite them."""
    if _all(values, lambda part: part == 1):
        return np.empty(0, np.float32)
    if values.dtype == np.float32:
        return values
    return narrow(values) if _all(values, fits_float32) else values.astype(np.float64, copy=False)


def fits_float32(values: Array) -> Array:
    """Which of the ``values`` float32 can hold exactly, NaN among them; bool."""
    with np.errstate(over="ignore"):
        return (values.astype(np.float32) == values) | (values != values)


def rounded(values: Array, dtype: Any) -> Array:
    """``values`` of float64 as float32, where that is ``dtype`` and none is beyond its range; may overwrite them."""
    most = float(np.finfo(np.float32).max)
    if values.dtype != np.float64 or dtype != np.float32 or not _all(values, lambda part: ~(np.abs(part) > most)):
        return values
    return narrow(values)


def narrow(values: Array) -> Array:
    """``values`` rounded to float32, in the memory of float64 ones where these may be written to.

    What they take no more of it is given back.
    """
    if values.dtype != np.float64 or not values.flags.writeable or not values.flags.c_contiguous:
        with np.errstate(over="ignore"):
            return values.astype(np.float32)
    found = values.view(np.float32)[: values.size]
    for start in range(0, values.size, AT_A_TIME):  # what is read lies behind what is written, or is read before
        with np.errstate(over="ignore"):
            found[start : start + AT_A_TIME] = values[start : start + AT_A_TIME].astype(np.float32)
    release(values[values.size // 2 + 1 :])
    return found


def _all(values: Array, test: Callable[[Array], Array]) -> bool:
    """Whether all ``values`` pass the ``test``, of some at a time: no array of as many bools is made."""
    return all(bool(test(values[at : at + AT_A_TIME]).all()) for at in range(0, values.size, AT_A_TIME))
