"""Checks of values, after they were read."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any

CHECKED_BYTES = 1 << 20  # at a time: what stays in cache


def first_not_finite(values: Array) -> tuple[int, int, float] | None:
    """Row, column and value of the first NaN or infinity in ``values``, shape (rows, columns), or None.

    Integers take no time.  Floats are summed, for a sum is finite only if all terms are, and
    takes no memory; only where it is not (it may overflow, too) are they looked at one by one.
    """
    if values.dtype.kind != "f":
        return None
    chunk = max(1, CHECKED_BYTES // max(1, values.itemsize * values.shape[1]))
    for start in range(0, len(values), chunk):
        part = values[start : start + chunk]
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(part.sum()):
                continue
        rows, columns = np.nonzero(~np.isfinite(part))
        if rows.size:
            return start + int(rows[0]), int(columns[0]), float(part[rows[0], columns[0]])
    return None


def check_rows(array: Any, values: Array, first: int) -> None:
    """Raise the DataError of ``array`` (an `ArrayFile`) about a value that is not finite, in rows from ``first`` on."""
    bad = first_not_finite(values)
    if bad is not None:
        raise array.not_finite(first + bad[0], *bad[1:])


def check_weights(array: Any, weight: Array, first: int) -> None:
    """Raise the DataError of ``array`` about a value that is no weight; ``weight`` has shape (rows,)."""
    bad = np.flatnonzero(~((weight >= 0) & (weight < np.inf)))
    if bad.size:
        row = first + int(bad[0])
        raise array.error(f"is {weight[bad[0]]} in row {row} (counted from 0); weights are finite and 0 or more")
