"""Checks of values, after they were read."""

from __future__ import annotations

from typing import Any

import numpy as np

from .out_of_core.stored_rows import StoredRows
from .sparse_rows import SparseRows

Array = Any

CHECKED_BYTES = 1 << 20  # at a time: what stays in cache


def first_not_finite(values: Array, keeps_missing: bool = False) -> tuple[int, int, float] | None:
    """Row, column and value of the first NaN or infinity in ``values``, shape (rows, columns), or None.

    With ``keeps_missing`` of the first infinity: NaN then stands for a value that is missing.

    Integers take no time.  Floats are summed, for a sum is finite only if all terms are, and
    takes no memory; only where it is not (it may overflow, too) are they looked at one by one.
    """
    if isinstance(values, SparseRows):
        return values.position(first_not_finite(values.own_values[:, None], keeps_missing))
    if values.dtype.kind != "f":
        return None
    chunk = max(1, CHECKED_BYTES // max(1, values.itemsize * values.shape[1]))
    for start in range(0, len(values), chunk):
        part = values[start : start + chunk]
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(part.sum()):
                continue
        rows, columns = np.nonzero(np.isinf(part) if keeps_missing else ~np.isfinite(part))
        if rows.size:
            return start + int(rows[0]), int(columns[0]), float(part[rows[0], columns[0]])
    return None


def first_beyond(values: Array, dtype: Any) -> tuple[int, int, float] | None:
    """Row, column and value of the first of ``values``, shape (rows, columns), that ``dtype`` cannot hold.

    None: all of them can be held.  Where the type of the values says so, it takes no time.  What is not finite to begin
    with does not count.
    """
    if isinstance(values, SparseRows):
        return values.position(first_beyond(values.own_values[:, None], dtype))
    most = float(np.finfo(dtype).max)
    info = np.finfo(values.dtype) if values.dtype.kind == "f" else np.iinfo(values.dtype)
    if float(info.max) <= most:
        return None
    if isinstance(values, StoredRows):
        return values.first_found(lambda rows: first_beyond(rows, dtype))
    chunk = max(1, CHECKED_BYTES // max(1, values.itemsize * values.shape[1]))
    for start in range(0, len(values), chunk):
        part = values[start : start + chunk]
        if part.size == 0 or max(float(part.max()), -float(part.min())) <= most:
            continue
        rows, columns = np.nonzero((np.abs(part) > most) & np.isfinite(part))
        if rows.size:
            return start + int(rows[0]), int(columns[0]), float(part[rows[0], columns[0]])
    return None


def check_rows(array: Any, values: Array, first: int, keeps_missing: bool = False) -> None:
    """Raise the DataError of ``array`` (an `ArrayFile`) about a value that is not finite, in rows from ``first`` on."""
    bad = first_not_finite(values, keeps_missing)
    if bad is not None:
        raise array.not_finite(first + bad[0], *bad[1:])


def check_weights(array: Any, weight: Array, first: int) -> None:
    """Raise the DataError of ``array`` about a value that is no weight; ``weight`` has shape (rows,)."""
    bad = np.flatnonzero(~((weight >= 0) & (weight < np.inf)))
    if bad.size:
        row = first + int(bad[0])
        raise array.error(f"is {weight[bad[0]]} in row {row} (counted from 0); weights are finite and 0 or more")
