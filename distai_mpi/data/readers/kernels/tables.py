"""CSV and libsvm text to numbers.

Both kernels read whole lines of ``text``, a uint8 array, from ``start`` to ``stop``, where a line has just ended.
They stop at the first fault and return what it is and where.  Numbers that `numbers.number` calls HARD are listed,
at most as many as fit; all are counted.
"""

from __future__ import annotations

import numba
import numpy as np

from ....jit import kernel
from ..codes import (
    COLON,
    EMPTY,
    FEWER,
    FINE,
    HASH,
    HUGE_INDEX,
    LABEL,
    LARGEST_INDEX,
    MORE,
    NEGATIVE,
    NEWLINE,
    NO_COLON,
    NO_INDEX,
    NO_NUMBER,
    NOT_ASCENDING,
    QUOTE,
    RETURN,
    SPACE,
    TAB,
    TOO_LARGE,
    UNUSED,
    WEIGHT,
)
from .numbers import DONE, HARD, WRONG, number


@numba.njit(inline="always")
def _past_blanks(text, place, delimiter):
    """The first byte that is no blank; a tab that delimits is none."""
    while text[place] == SPACE or text[place] == RETURN or (text[place] == TAB and delimiter != TAB):
        place += 1
    return place


@numba.njit(inline="always")
def _line_end(text, place):
    while text[place] != NEWLINE:
        place += 1
    return place


@numba.njit(inline="always")
def _note(hard, count, start, stop, row, slot):
    """List a number whose value Python must settle."""
    if count < hard.shape[0]:
        hard[count, 0] = start
        hard[count, 1] = stop
        hard[count, 2] = row
        hard[count, 3] = slot
    return count + 1


@numba.njit(inline="always")
def _field(text, place):
    """The number in a field, perhaps in quotes; ``(value, end, state)`` as of `number`."""
    quoted = text[place] == QUOTE
    value, end, state = number(text, place + 1 if quoted else place)
    if quoted and text[end] == QUOTE:
        end += 1
    elif quoted:
        state = WRONG
    return value, end, state


@numba.njit(inline="always")
def _skipped(text, place, delimiter):
    """The end of a field that may hold anything, in quotes also the delimiter."""
    if text[place] == QUOTE:
        place += 1
        while text[place] != QUOTE and text[place] != NEWLINE:
            place += 1
    while text[place] != delimiter and text[place] != NEWLINE:
        place += 1
    return place


@kernel()
def read_csv(text, start, stop, delimiter, slots, x, y, weight, hard):
    """Numbers of lines of ``len(slots)`` fields each.

    Args:
        text, start, stop: see the module.
        delimiter: a byte; SPACE stands for any run of blanks.
        slots: what each column is, int64: the number of a feature, LABEL, WEIGHT or UNUSED.
        x: features, shape (rows, features), float32 or float64; overwritten, with as many rows as lines can be.
        y, weight: likewise, shape (rows,), float64.
        hard: int64, shape (capacity, 4): first byte, end, row, slot.

    Returns:
        ``(rows, hard numbers, fault, byte of the fault, column of the fault)``.
    """
    row, hard_count, place, columns = 0, 0, start, slots.size
    blanks = delimiter == SPACE
    while place < stop:
        place = _past_blanks(text, place, delimiter)
        if text[place] == NEWLINE or text[place] == HASH:
            place = _line_end(text, place) + 1
            continue
        for column in range(columns):
            if text[place] <= HASH:  # a blank, an end or a quote
                place = _past_blanks(text, place, delimiter)
                if text[place] == NEWLINE or text[place] == HASH:
                    return row, hard_count, EMPTY, place, column
            slot = slots[column]
            if slot == UNUSED:
                value, end, state = 0.0, _skipped(text, place, delimiter), DONE
            else:
                value, end, state = _field(text, place)
            after = end
            if text[end] <= SPACE and state != WRONG:
                after = _past_blanks(text, end, delimiter)
            mark = text[after]
            ends = mark == NEWLINE or mark == HASH
            if state == WRONG or not (mark == delimiter or ends or (blanks and after > end)):
                empty = text[place] == delimiter and slot != UNUSED
                return row, hard_count, EMPTY if empty else NO_NUMBER, place, column
            if slot >= 0:
                x[row, slot] = value
                if np.isinf(x[row, slot]):
                    return row, hard_count, TOO_LARGE, place, column
            elif slot == LABEL:
                y[row] = value
            elif slot == WEIGHT:
                if value < 0:
                    return row, hard_count, NEGATIVE, place, column
                weight[row] = value
            if state == HARD:
                hard_count = _note(hard, hard_count, place, end, row, slot)
            if ends:
                if column < columns - 1:
                    return row, hard_count, FEWER, after, column + 1
                place = after
            else:
                place = after if blanks else after + 1
                if column == columns - 1:
                    return row, hard_count, MORE, after, column + 1
        place = _line_end(text, place) + 1
        row += 1
    return row, hard_count, FINE, place, 0


@numba.njit(inline="always")
def _index(text, place):
    """The whole number at ``text[place]``, at most LARGEST_INDEX + 1, and the first byte behind it."""
    value = 0
    digit = np.uint8(text[place] - ord("0"))
    while digit < 10:
        if value <= LARGEST_INDEX:
            value = value * 10 + int(digit)
        place += 1
        digit = np.uint8(text[place] - ord("0"))
    return min(value, LARGEST_INDEX + 1), place


# Called three times below: Numba's own inlining, which copies the function before it compiles it, takes three times as
# long to compile and reads no faster.  In `read_csv`, which calls it once, that inlining reads a tenth faster.
_number = numba.njit(forceinline=True)(number.py_func)


@kernel()
def read_libsvm(text, start, stop, y, weight, ends, indices, values, hard):
    """Lines ``label[:weight] [qid:...] index:value ... [# comment]``, as a CSR matrix with indices as they stand.

    Args:
        text, start, stop: see the module.
        y, weight: shape (rows,), float64; overwritten, with as many rows as lines can be.
        ends: entries up to each row's last one, shape (rows,), int64.
        indices, values: int32, and float32 or float64, shape (entries,).
        hard: int64, shape (capacity, 4): first byte, end, row, and entry, LABEL or WEIGHT.

    Returns:
        ``(rows, entries, whether a row has a weight, hard numbers, fault, byte of the fault)``.
    """
    row, entry, hard_count, place, weighted = 0, 0, 0, start, False
    while place < stop:
        place = _past_blanks(text, place, SPACE)
        if text[place] == NEWLINE or text[place] == HASH:
            place = _line_end(text, place) + 1
            continue
        value, end, state = _number(text, place)
        if state == WRONG or not (text[end] <= SPACE or text[end] == COLON or text[end] == HASH):
            return row, entry, weighted, hard_count, NO_NUMBER, place
        if state == HARD:
            hard_count = _note(hard, hard_count, place, end, row, LABEL)
        y[row], weight[row] = value, 1.0
        if text[end] == COLON:
            weighted = True
            place = end + 1
            value, end, state = _number(text, place)
            if state == WRONG or not (text[end] <= SPACE or text[end] == HASH):
                return row, entry, weighted, hard_count, NO_NUMBER, place
            if value < 0:
                return row, entry, weighted, hard_count, NEGATIVE, place
            if state == HARD:
                hard_count = _note(hard, hard_count, place, end, row, WEIGHT)
            weight[row] = value
        before = -1
        while True:
            place = end + 1 if text[end] == SPACE else end
            if text[place] <= HASH:
                place = _past_blanks(text, place, SPACE)
                if text[place] == NEWLINE or text[place] == HASH:
                    break
            if text[place] == ord("q") and text[place + 1] == ord("i") and before < 0:
                end = place
                while text[end] > SPACE:
                    end += 1
                continue
            index, end = _index(text, place)
            if end == place:
                return row, entry, weighted, hard_count, NO_INDEX, place
            if text[end] != COLON:
                return row, entry, weighted, hard_count, NO_COLON, place
            if index > LARGEST_INDEX:
                return row, entry, weighted, hard_count, HUGE_INDEX, place
            if index <= before:
                return row, entry, weighted, hard_count, NOT_ASCENDING, place
            before, place = index, end + 1
            value, end, state = _number(text, place)
            if state == WRONG or not (text[end] <= SPACE or text[end] == HASH):
                return row, entry, weighted, hard_count, NO_NUMBER, place
            values[entry] = value
            if np.isinf(values[entry]):
                return row, entry, weighted, hard_count, TOO_LARGE, place
            if state == HARD:
                hard_count = _note(hard, hard_count, place, end, row, entry)
            indices[entry] = index
            entry += 1
        ends[row] = entry
        row += 1
        place = _line_end(text, place) + 1
    return row, entry, weighted, hard_count, FINE, place


@kernel()
def fill_rows(ends, indices, values, base, first, x):
    """Write rows ``first`` and on of a CSR matrix into ``x``, shape (rows, features); indices count from ``base``."""
    for row in range(x.shape[0]):
        for j in range(x.shape[1]):
            x[row, j] = 0
        begin = ends[first + row - 1] if first + row > 0 else 0
        for entry in range(begin, ends[first + row]):
            x[row, indices[entry] - base] = values[entry]
