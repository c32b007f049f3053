"""Rows in memory, or mapped from a file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import DataError
from .out_of_core.stored_rows import StoredRows
from .sparse_rows import SparseRows, is_sparse, sparse_rows

Array = Any


def storage_dtype(dtype: np.dtype) -> np.dtype:
    """The type in which values of a file's ``dtype`` are held: native, and one that Numba compiles for.

    Raises:
        DataError: ``dtype`` holds no real numbers.
    """
    if dtype.kind not in "biuf":
        raise DataError(f"values of type '{dtype}' are no real numbers; store integers or floats")
    if dtype.kind == "b":
        return np.dtype(np.uint8)
    if dtype.kind == "f" and dtype.itemsize not in (4, 8):
        return np.dtype(np.float32 if dtype.itemsize < 4 else np.float64)
    return dtype.newbyteorder("=")


@dataclass(frozen=True)
class Standard:
    """Standardization of features, (value - mean) / deviation, in float64; replicated.

    Attributes:
        mean: subtracted, shape (features,), float64.
        deviation: divided by, shape (features,), float64, positive.
    """

    mean: Array
    deviation: Array


@dataclass(frozen=True)
class Fill:
    """Replacements of missing values (NaN); replicated.

    Attributes:
        values: of each column of x, already scaled, shape (columns,), float64, finite; or NaN of one of which no value
            is known, which is 0 in all rows, whatever it holds.
        indicators: columns of x for which there is one more feature, 1 where the value is missing and else 0, behind
            all others and in this order; shape (indicators,), int64.
    """

    values: Array
    indicators: Array


@dataclass(frozen=True)
class Dataset:
    """Feature rows with a label or target each; the arrays become read-only views.

    Attributes:
        x: features, shape (rows, columns), any real type, C-contiguous (else it is copied);
            may be mapped from a file, or shared by the ranks of a node.  Or `SparseRows`, or a sparse array or matrix
            of SciPy's, which becomes those; or `StoredRows`, on disk.
        y: labels or targets, shape (rows,), any real type; or words, which become their indices in
            ``label_names``.
        weight: weight of each row, shape (rows,), float64, finite and not negative: a row of weight 2
            counts as two.  None: all are 1.
        scale: factor of the features, applied when they are gathered.  Pixels stay bytes in
            memory, with a scale of 1/255: a quarter of the memory traffic of float32.
        standard: standardization of the scaled features, applied when they are gathered; None: none.  With means
            of 0 sparse rows stay sparse.
        fill: replacements of missing values, applied when rows are gathered; None: none are missing.
        label_names: the words that the numbers in y stand for, in lexicographical order; None: y holds numbers.
    """

    x: Array
    y: Array
    weight: Array | None = None
    scale: float = 1.0
    standard: Standard | None = None
    fill: Fill | None = None
    label_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.label_names is None:
            codes, names = _coded(self.y)
            object.__setattr__(self, "y", codes)
            object.__setattr__(self, "label_names", names)
        if not isinstance(self.x, StoredRows):
            object.__setattr__(self, "x", sparse_rows(self.x) if is_sparse(self.x) else _read_only(self.x, "x"))
        object.__setattr__(self, "y", _read_only(self.y, "y"))
        if self.x.ndim != 2 or self.y.shape != self.x.shape[:1]:
            raise DataError(
                f"x of shape {self.x.shape} and y of shape {self.y.shape} do not fit;"
                " give x as (rows, features) and y as (rows,)"
            )
        if self.fill is not None and self.fill.values.shape != self.x.shape[1:]:
            raise DataError(
                f"rows have {self.x.shape[1]} columns, but values for {self.fill.values.size} in place of missing ones"
            )
        if self.standard is not None and self.standard.mean.shape != (self.features,):
            raise DataError(
                f"rows have {self.features} features, but are to be standardized as {self.standard.mean.size}"
            )
        if self.weight is not None:
            object.__setattr__(self, "weight", _checked_weight(self.weight, self.rows))

    @property
    def is_sparse(self) -> bool:
        """Whether ``x`` is `SparseRows`, in memory or on disk."""
        return self.x.is_sparse if isinstance(self.x, StoredRows) else isinstance(self.x, SparseRows)

    @property
    def stays_sparse(self) -> bool:
        """Whether rows are sparse, see `is_sparse`, and are so still when they are gathered."""
        centred = self.standard is not None and self.standard.mean.any()
        return self.is_sparse and self.scale == 1 and self.fill is None and not centred

    @property
    def factors(self) -> Array | None:
        """What values of rows that stay sparse are multiplied by, float64, shape (features,); None: nothing."""
        return None if self.standard is None else 1.0 / self.standard.deviation

    @property
    def rows(self) -> int:
        """Number of rows held here."""
        return self.x.shape[0]

    @property
    def features(self) -> int:
        """Number of features of a row, indicators of missing values included."""
        return self.x.shape[1] + (0 if self.fill is None else self.fill.indicators.size)

    @property
    def weight_sum(self) -> float:
        """Summed weight of the rows held here."""
        return float(self.rows) if self.weight is None else float(np.sum(self.weight))

    def part(self, start: int, stop: int) -> Dataset:
        """Rows ``start`` to ``stop - 1``, as views."""
        weight = None if self.weight is None else self.weight[start:stop]
        return replace(self, x=self.x[start:stop], y=self.y[start:stop], weight=weight)


def _coded(labels: Array) -> tuple[Array, tuple[str, ...] | None]:
    """Labels that are words as int64 codes, shape (rows,), and the words; others as they are, and None."""
    array = np.asarray(labels)
    if array.dtype.kind == "O" and array.size and all(isinstance(label, str) for label in array.flat):
        array = array.astype(str)
    if array.dtype.kind != "U":
        return labels, None
    names, codes = np.unique(array, return_inverse=True)
    return codes.reshape(array.shape), tuple(names.tolist())


def _read_only(values: Array, name: str) -> Array:
    """A view that cannot be written to (a C-contiguous copy in a native type where needed)."""
    array = np.asarray(values)
    try:
        dtype = storage_dtype(array.dtype)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    view = np.ascontiguousarray(array, dtype=dtype).reshape(array.shape).view()
    view.flags.writeable = False
    return view


def _checked_weight(weight: Array, rows: int) -> Array:
    """A read-only float64 view of ``weight`` (a copy where it has another type), if every value can weigh a row."""
    view = _read_only(weight, "weight").astype(np.float64, copy=False).view()
    if view.shape != (rows,):
        raise DataError(f"weight of shape {view.shape} does not fit {rows} rows; give one number a row")
    bad = np.flatnonzero(~((view >= 0) & (view < np.inf)))
    if bad.size:
        raise DataError(f"weight is {view[bad[0]]} in row {bad[0]} (counted from 0); weights are finite and at least 0")
    view.flags.writeable = False
    return view
