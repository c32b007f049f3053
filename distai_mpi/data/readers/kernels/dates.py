"""Dates and words for true and false in text, to numbers."""

from __future__ import annotations

import numba
import numpy as np

from ....jit import kernel
from ..codes import (
    COLON,
    COMMA,
    DAY_FIRST,
    FINE,
    LOWER_A,
    LOWER_C,
    LOWER_T,
    LOWER_U,
    LOWER_Z,
    MINUS,
    MISSING,
    MONTH_FIRST,
    NO_BOOLEAN,
    NO_DATE,
    NO_ORDER,
    PLUS,
    POINT,
    SLASH,
    SPACE,
    UPPER_Z,
    ZERO,
)
from ..kinds import MONTHS
from .tables import TOKENS, is_missing, trimmed

DAYS = np.array([31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])
NAMES = np.array([[ord(c) for c in name.lower().ljust(9)] for name in MONTHS], np.uint8)
NAME_LENGTHS = np.array([len(name) for name in MONTHS])
WORDS = np.array([[ord(c) for c in word] for word in ("true ", "false")], np.uint8)


@numba.njit
def days_since_1970(year, month, day):
    """Days from 1970-01-01 to a day of the proleptic Gregorian calendar.

    Years begin in March, so that a leap day ends one (Richards, "Calendars", Explanatory Supplement to the Astronomical
    Almanac, 3rd edition, section 15.11, in eras of 400 years).
    """
    if month <= 2:
        year -= 1
    era = year // 400
    of_era = year - era * 400
    of_year = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5 + day - 1
    return era * 146097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719468


@numba.njit
def civil(days):
    """Year, month and day of the day that is ``days`` after 1970-01-01; see `days_since_1970`."""
    days += 719468
    era = days // 146097
    of_era = days - era * 146097
    year = (of_era - of_era // 1460 + of_era // 36524 - of_era // 146096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    march = (5 * of_year + 2) // 153
    month = march + 3 if march < 10 else march - 9
    return year + era * 400 + (1 if month <= 2 else 0), month, of_year - (153 * march + 2) // 5 + 1


@numba.njit
def _whole(text, at, stop, most):
    """The whole number of at most ``most`` digits at ``text[at]``, and the byte behind; none there: the same byte."""
    value, begin = 0, at
    while at < stop and at - begin < most and np.uint8(text[at] - ZERO) < 10:
        value = value * 10 + (text[at] - ZERO)
        at += 1
    return value, at


@numba.njit
def _offset(text, at, stop):
    """Seconds that a time is ahead of UTC by what stands behind it, and whether that is well formed."""
    if at < stop and text[at] == SPACE:
        at += 1
    length = stop - at
    if length == 0:
        return 0, True
    if length == 1:
        return 0, text[at] == UPPER_Z or text[at] == LOWER_Z
    if length == 3 and text[at] | 32 == LOWER_U and text[at + 1] | 32 == LOWER_T:
        return 0, text[at + 2] | 32 == LOWER_C
    if text[at] != PLUS and text[at] != MINUS:
        return 0, False
    sign = -1 if text[at] == MINUS else 1
    hours, after = _whole(text, at + 1, stop, 2)
    if after != at + 3:
        return 0, False
    if after < stop and text[after] == COLON:
        after += 1
        if after == stop:
            return 0, False
    minutes, end = _whole(text, after, stop, 2)
    right = end == stop and (end == after or end == after + 2) and hours < 24 and minutes < 60
    return sign * (hours * 3600 + minutes * 60), right


@numba.njit
def _name(text, at, stop):
    """The month, from 1, whose English name or its first three letters stand at ``text[at]``, and the byte behind.

    0 where there is none.
    """
    end = at
    while end < stop and LOWER_A <= text[end] | 32 <= LOWER_Z:
        end += 1
    length = end - at
    for month in range(12):
        if length == 3 or length == NAME_LENGTHS[month] or (length == 4 and month == 8):  # Sept
            same = True
            for i in range(length):
                same = same and text[at + i] | 32 == NAMES[month, i]
            if same:
                return month + 1, end
    return 0, at


@numba.njit
def _past_mark(text, at, stop):
    """The byte behind the mark between two parts of a date with a month's name; where there is none, the same byte."""
    if at < stop and (text[at] == MINUS or text[at] == SLASH):
        return at + 1
    if at < stop and (text[at] == POINT or text[at] == COMMA):
        at += 1
    while at < stop and text[at] == SPACE:
        at += 1
    return at


@numba.njit
def _with_name(text, at, stop):
    """Year, month, day and the byte behind of a date with a month's name; see `kinds.MOMENT`.  Month 0: it is none."""
    none = (0, 0, 0, at)
    month, after = _name(text, at, stop)
    if month:  # Dec 31, 2020 or Dec 2020
        begin = _past_mark(text, after, stop)
        first, end = _whole(text, begin, stop, 4)
        if begin == after or end == begin:
            return none
        if end == stop:
            return (first, month, 1, end) if end == begin + 4 else none
        begin, digits = _past_mark(text, end, stop), end - begin
        year, last = _whole(text, begin, stop, 4)
        return (year, month, first, last) if digits < 3 and begin > end and last == begin + 4 else none
    first, after = _whole(text, at, stop, 4)
    begin, digits = _past_mark(text, after, stop), after - at
    month, end = _name(text, begin, stop)
    if digits == 0 or begin == after or month == 0:
        return none
    if end == stop:
        return (first, month, 1, end) if digits == 4 else none
    begin = _past_mark(text, end, stop)
    second, last = _whole(text, begin, stop, 4)
    if begin == end:
        return none
    if digits == 4 and 0 < last - begin < 3:
        return first, month, second, last
    return (second, month, first, last) if digits < 3 and last == begin + 4 else none


@numba.njit
def _in_numbers(text, at, stop):
    """Of a date as 12/31/2020 or 31/12/2020: its numbers in their order, and the byte behind; year 0: it is none."""
    first, after = _whole(text, at, stop, 2)
    mark = text[after] if after < stop else np.uint8(0)
    if after == at or (mark != SLASH and mark != MINUS and mark != POINT):
        return 0, 0, 0, at
    second, end = _whole(text, after + 1, stop, 2)
    if end == after + 1 or end >= stop or text[end] != mark:
        return 0, 0, 0, at
    year, last = _whole(text, end + 1, stop, 4)
    return (first, second, year, last) if last == end + 5 else (0, 0, 0, at)


@numba.njit
def _day(text, at, stop, order):
    """Year, month, day and the byte behind of a date as `kinds` tells of them; month 0: it is none.

    It need be no day of the calendar.  A date without a day, which must be all there is, is the first of its month.
    """
    year, after = _whole(text, at, stop, 4)
    mark = text[after] if after < stop else np.uint8(0)
    if after == at + 4 and (mark == MINUS or mark == SLASH):
        month, end = _whole(text, after + 1, stop, 2)
        if end > after + 1:
            if end == stop:
                return year, month, 1, end
            day, last = _whole(text, end + 1, stop, 2)
            return (year, month, day, last) if text[end] == mark and last > end + 1 else (0, 0, 0, at)
    if order != NO_ORDER:
        first, second, year, end = _in_numbers(text, at, stop)
        if year:
            return (year, second, first, end) if order == DAY_FIRST else (year, first, second, end)
    return _with_name(text, at, stop)


@numba.njit
def _moment(text, at, stop, order):
    """Of a date: day since 1970, its second and the fraction, and whether it is right.

    Day and second are those of UTC; a time without an offset is taken for one.
    """
    year, month, day, after = _day(text, at, stop, order)
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    if year == 0 or month < 1 or month > 12 or day < 1 or day > DAYS[month - 1]:
        return 0, 0, 0.0, False
    if month == 2 and day == 29 and not leap:
        return 0, 0, 0.0, False
    days = days_since_1970(year, month, day)
    if after == stop:
        return days, 0, 0.0, True
    if text[after] != SPACE and text[after] | 32 != LOWER_T:
        return 0, 0, 0.0, False
    hour, end = _whole(text, after + 1, stop, 2)
    if end == after + 1 or end >= stop or text[end] != COLON or hour > 23:
        return 0, 0, 0.0, False
    minute, after = _whole(text, end + 1, stop, 2)
    if after != end + 3 or minute > 59:
        return 0, 0, 0.0, False
    second, fraction, scale = 0, 0, 1.0
    if after < stop and text[after] == COLON:
        second, end = _whole(text, after + 1, stop, 2)
        if end != after + 3 or second > 59:
            return 0, 0, 0.0, False
        after = end
        if after < stop and (text[after] == POINT or text[after] == COMMA):
            begin = after + 1
            fraction, after = _whole(text, begin, stop, 9)
            if after == begin:
                return 0, 0, 0.0, False
            scale = 10.0 ** (after - begin)
            while after < stop and np.uint8(text[after] - ZERO) < 10:  # beyond nanoseconds
                after += 1
    ahead, right = _offset(text, after, stop)
    whole = hour * 3600 + minute * 60 + second - ahead
    days += whole // 86400
    return days, whole % 86400, fraction / scale, right


@kernel()
def see_order(text, spans, out):
    """Which dates tell the order of day and month: 1 where the month comes first, 2 where the day does, else 0.

    Fields that are no such dates tell nothing: `read_dates` finds what is wrong.

    Args:
        text, spans: see `read_dates`.
        out: shape (rows, 1), overwritten.
    """
    for row in range(spans.shape[0]):
        start, stop = trimmed(text, spans[row, 0], spans[row, 1])
        first, second, _, _ = _in_numbers(text, start, stop)
        if (first > 12) == (second > 12):
            out[row, 0] = 0
        else:
            out[row, 0] = DAY_FIRST if first > 12 else MONTH_FIRST


@kernel()
def read_dates(text, spans, order, calendar, keep, out):
    """Dates in fields, perhaps with a time, to numbers.

    Args:
        text: uint8.
        spans: first byte and end of each field, int64, shape (rows, 2).
        order: of dates as 12/31/2020, ``MONTH_FIRST`` or ``DAY_FIRST``; ``NO_ORDER``: they are none.
        calendar: whether parts of the calendar are wanted; else seconds since 1970-01-01 UTC.
        keep: whether values that are not there become NaN.
        out: shape (rows, 1), or of the calendar (rows, 7): year, month, day, weekday from Monday 0, hour, minute, and
            second, which has no fraction; overwritten.

    Returns:
        ``(row, fault)`` of the first fault.
    """
    for row in range(spans.shape[0]):
        start, stop = trimmed(text, spans[row, 0], spans[row, 1])
        days, second, fraction, right = _moment(text, start, stop, order)
        if not right:
            if not is_missing(text, start, stop, TOKENS.shape[0]):
                return row, NO_DATE
            if not keep:
                return row, MISSING
            out[row] = np.nan
        elif not calendar:
            out[row, 0] = days * 86400 + second + fraction
        else:
            year, month, day = civil(days)
            out[row, 0], out[row, 1], out[row, 2], out[row, 3] = year, month, day, (days + 3) % 7
            out[row, 4], out[row, 5], out[row, 6] = second // 3600, second // 60 % 60, second % 60
    return 0, FINE


@kernel()
def read_booleans(text, spans, keep, out):
    """1 and 0 for true and false, in small letters, capitals, or with one capital; see `read_dates`.

    ``out`` has shape (rows, 1).
    """
    for row in range(spans.shape[0]):
        start, stop = trimmed(text, spans[row, 0], spans[row, 1])
        length = stop - start
        found = -1
        for which in range(2):
            if length == 5 - (which == 0):
                same, upper = True, 0
                for i in range(length):
                    same = same and text[start + i] | 32 == WORDS[which, i]
                    upper += text[start + i] < LOWER_A
                if same and (upper == 0 or upper == length or (upper == 1 and text[start] < LOWER_A)):
                    found = 1 - which
        if found >= 0:
            out[row, 0] = found
        elif not is_missing(text, start, stop, TOKENS.shape[0]):
            return row, NO_BOOLEAN
        elif not keep:
            return row, MISSING
        else:
            out[row, 0] = np.nan
    return 0, FINE
