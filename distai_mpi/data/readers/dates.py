"""Dates and timestamps as numbers: seconds, or parts of the calendar; the same from every format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .columns import Columns

Array = Any

# of all dates alike, though the last three are 0 where there is no time of day: pandas stores days as timestamps in
# Parquet and as days in CSV, and a table is to have the same features from both
PARTS = ("year", "month", "day", "weekday", "hour", "minute", "second")
SHOWN = 10  # columns in a note


def column_names(name: str, how: str) -> tuple[str, ...]:
    """What the features are called that come of a column of dates called ``name``.

    Args:
        how: ``seconds`` or ``calendar``; see `columns.Columns.dates`.
    """
    if how == "seconds":
        return (name,)
    return tuple(f"{name}.{part}" for part in PARTS)


def note_of_calendar(path: str, names: Sequence[str], columns: Columns) -> tuple[str, ...]:
    """A note that the columns ``names`` hold dates and become parts of the calendar, where nobody has said so."""
    if not names or columns.dates is not None or columns.required is not None or columns.unlabelled:
        return ()
    which = f"column{'s' * (len(names) > 1)} {', '.join(names[:SHOWN])}{', ...' * (len(names) > SHOWN)}"
    return (
        f"{path}: {which}: dates become {', '.join(PARTS[:-1])} and {PARTS[-1]}; --dates seconds takes them as numbers,"
        " and --dates refuse not at all",
    )


def numbers(values: Array, how: str) -> Array:
    """The features that come of dates: float64, shape (rows, `column_names`), NaN where a date is not there.

    Seconds count from 1970-01-01 UTC, with their fractions.  Of the calendar, a weekday is 0 on Monday, and
    ``second`` has no fraction.

    Args:
        values: datetime64 of any unit, shape (rows,).
    """
    whole = values.astype("M8[s]")  # rounds down
    gone = np.isnat(values)
    if how == "seconds":
        # whole seconds and their fraction apart: so the unit in which a date is stored does not show in the last bit
        out = whole.astype(np.int64) + _fraction(values, whole)
        out[gone] = np.nan
        return out[:, None]
    days = values.astype("M8[D]")
    months = values.astype("M8[M]")
    count = days.astype(np.int64)
    second_of_day = whole.astype(np.int64) - count * 86400
    parts = [
        values.astype("M8[Y]").astype(np.int64) + 1970,
        months.astype(np.int64) % 12 + 1,
        (days - months).astype(np.int64) + 1,
        (count + 3) % 7,  # 1970-01-01 was a Thursday
        second_of_day // 3600,
        second_of_day // 60 % 60,
        second_of_day % 60,
    ]
    out = np.stack(parts, axis=1).astype(np.float64)
    out[gone] = np.nan
    return out


def _fraction(values: Array, whole: Array) -> Array:
    """What is left of ``values`` above ``whole`` seconds, float64."""
    unit, _ = np.datetime_data(values.dtype)
    if unit not in ("ms", "us", "ns", "ps", "fs", "as"):
        return np.zeros(len(values))
    finest = np.dtype(f"M8[{unit}]")
    per_second = 1000 ** (("ms", "us", "ns", "ps", "fs", "as").index(unit) + 1)
    return (values.astype(finest) - whole.astype(finest)).astype(np.int64) / per_second
