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
    HASHED,
    HUGE_INDEX,
    KEEP_FEATURES,
    KEEP_LABEL,
    LABEL,
    LARGEST_INDEX,
    LOWER_I,
    LOWER_Q,
    MISSING,
    MISSING_NUMBERS,
    MISSING_WORDS,
    MORE,
    NEGATIVE,
    NEWLINE,
    NO_COLON,
    NO_INDEX,
    NO_NUMBER,
    NOT_ASCENDING,
    OPEN_QUOTE,
    QUOTE,
    RETURN,
    SPACE,
    TAB,
    TOO_LARGE,
    UNUSED,
    WEIGHT,
    ZERO,
)
from .numbers import DONE, HARD, WRONG, number

_TOKENS = [word.encode() for word in (*MISSING_WORDS, *MISSING_NUMBERS)]
TOKEN_LENGTHS = np.array([len(token) for token in _TOKENS])
TOKENS = np.array([list(token.ljust(max(TOKEN_LENGTHS), b"\0")) for token in _TOKENS], np.uint8)
WORD_TOKENS = len(MISSING_WORDS)  # those that stand for a missing word too


@numba.njit(inline="always")
def _past_blanks(text, at, delimiter):
    """The first byte that is no blank; a tab that delimits is none, nor is a carriage return within a line."""
    while (
        text[at] == SPACE
        or (text[at] == RETURN and (text[at + 1] == NEWLINE or text[at + 1] == RETURN))
        or (text[at] == TAB and delimiter != TAB)
    ):
        at += 1
    return at


@numba.njit(inline="always")
def _line_end(text, at):
    while text[at] != NEWLINE:
        at += 1
    return at


@numba.njit(inline="always")
def _note(hard, count, start, stop, row, slot):
    """List a number that Python must convert."""
    if count < hard.shape[0]:
        hard[count, 0] = start
        hard[count, 1] = stop
        hard[count, 2] = row
        hard[count, 3] = slot
    return count + 1


@numba.njit(inline="always")
def _field(text, at):
    """The number in a field, perhaps in quotes; ``(value, end, state)`` as of `number`."""
    quoted = text[at] == QUOTE
    value, end, state = number(text, at + 1 if quoted else at)
    if quoted and text[end] == QUOTE:
        end += 1
    elif quoted:
        state = WRONG
    return value, end, state


@numba.njit
def _skipped(text, at, stop, delimiter, multiline):
    """The end of a field that may hold anything, in quotes also delimiters; -1 where a quote is not closed.

    Two quotes within quotes stand for one.  Line ends stand within quotes if ``multiline``.
    """
    if text[at] == QUOTE:
        at += 1
        while True:
            while at < stop and text[at] != QUOTE and (multiline or text[at] != NEWLINE):
                at += 1
            if at >= stop or text[at] == NEWLINE:
                return -1
            at += 1
            if text[at] != QUOTE:
                break
            at += 1
    while text[at] != delimiter and text[at] != NEWLINE and not (delimiter == SPACE and text[at] == TAB):
        at += 1
    return at


@numba.njit
def trimmed(text, start, stop):
    """What is left of ``text[start:stop]`` without blanks around it, and then without quotes: ``(start, stop)``."""
    while start < stop and text[start] <= SPACE:
        start += 1
    while stop > start and text[stop - 1] <= SPACE:
        stop -= 1
    if stop - start > 1 and text[start] == QUOTE and text[stop - 1] == QUOTE:
        start += 1
        stop -= 1
    return start, stop


@numba.njit
def is_missing(text, start, stop, tokens):
    """Whether ``text[start:stop]``, trimmed, is one of the first ``tokens`` words for a value that is not there."""
    for token in range(tokens):
        if TOKEN_LENGTHS[token] == stop - start:
            same = True
            for i in range(stop - start):
                same = same and TOKENS[token, i] == text[start + i]
            if same:
                return True
    return False


@numba.njit
def _missing_end(text, at, delimiter, tokens):
    """The end of the field at ``text[at]`` where its value is not there, a comment behind it left out; -1 where it is.

    ``tokens``: see `is_missing`.
    """
    end = at
    while text[end] != delimiter and text[end] != NEWLINE and not (delimiter == SPACE and text[end] == TAB):
        end += 1
    start, stop = trimmed(text, at, end)
    if is_missing(text, start, stop, tokens):
        return end
    for hash_at in range(at, end):
        if text[hash_at] == HASH and (hash_at == at or text[hash_at - 1] <= SPACE):
            start, stop = trimmed(text, at, hash_at)
            return hash_at if is_missing(text, start, stop, tokens) else -1
    return -1


@numba.njit
def _is_comment(text, at, delimiter):
    """Whether the line whose first byte that is no blank is ``text[at]`` is no row: a comment, or blank."""
    if text[at] == NEWLINE:
        return True
    return text[at] == HASH and (_missing_end(text, at, delimiter, WORD_TOKENS) <= at)


@numba.njit
def _may_be_row(text, at, stop, delimiter, columns):
    """Whether a line that begins with # has as many fields as a row, the first one of words: #ff0000,1,2."""
    fields = 1
    if text[at + 1] <= SPACE:
        return False
    while True:
        end = _skipped(text, at, stop, delimiter, False)
        if end < 0:
            return False
        at = _past_blanks(text, end, delimiter)
        if text[at] == NEWLINE:
            return fields == columns
        at += text[at] == delimiter
        at = _past_blanks(text, at, delimiter)
        fields += 1


@numba.njit
def _is_colour(text, at, delimiter):
    """Whether a field is a colour as HTML writes it: # and 3, 4, 6 or 8 hexadecimal digits."""
    end = at + 1
    while (48 <= text[end] <= 57) or (65 <= (text[end] & 95) <= 70):  # 0 to 9, A to F and a to f
        end += 1
    digits = end - at - 1
    return (text[end] == delimiter or text[end] <= SPACE) and (3 <= digits <= 4 or digits == 6 or digits == 8)


@kernel()
def whole_lines(text, stop, delimiter):
    """Bytes of ``text[:stop]`` up to its last line end that stands outside of quotes; 0 where there is none."""
    at, done, fresh = 0, 0, True
    while at < stop:
        byte = text[at]
        if byte == HASH and at == done:
            while at < stop and text[at] != NEWLINE:
                at += 1
            continue
        if byte == NEWLINE:
            done = at + 1
        if byte == QUOTE and fresh:
            at += 1
            while at < stop and (text[at] != QUOTE or (at + 1 < stop and text[at + 1] == QUOTE)):
                at += 2 if text[at] == QUOTE else 1
            byte = np.uint8(QUOTE)
        fresh = byte == NEWLINE or byte == delimiter or byte == SPACE or byte == TAB
        at += 1
    return done


@kernel()
def read_csv(text, start, stop, delimiter, slots, keep, multiline, words_first, x, y, weight, spans, hard):
    """Numbers of lines of ``len(slots)`` fields each, and where the text of other fields stands.

    Args:
        text, start, stop: see the module.
        delimiter: a byte; SPACE stands for any run of blanks.
        slots: what each column is, int64: the number of a feature, LABEL, WEIGHT, UNUSED, or `codes.text_slot`.
        keep: which values that are not there become NaN: KEEP_FEATURES and KEEP_LABEL, or their sum.
        multiline: whether quotes may hold line ends.
        words_first: whether the first column holds words, so that a line that begins with # may be a row.
        x: features, shape (rows, features), float32 or float64; overwritten, with as many rows as lines can be.
        y, weight: likewise, shape (rows,), float64.
        spans: first byte and end of each field with a text slot, int64, shape (text slots, rows, 2); overwritten.
        hard: int64, shape (capacity, 4): first byte, end, row, slot.

    Returns:
        ``(rows, hard numbers, fault, byte of the fault, column of the fault)``.
    """
    row, hard_count, at, columns = 0, 0, start, slots.size
    blanks = delimiter == SPACE
    while at < stop:
        at = _past_blanks(text, at, delimiter)
        if text[at] <= HASH and _is_comment(text, at, delimiter):
            row_of_words = words_first and text[at] == HASH and _may_be_row(text, at, stop, delimiter, columns)
            if row_of_words and not _is_colour(text, at, delimiter):
                return row, hard_count, HASHED, at, 0
            if not row_of_words:
                at = _line_end(text, at) + 1
                continue
        for column in range(columns):
            if text[at] <= HASH:  # a blank, an end or a quote
                at = _past_blanks(text, at, delimiter)
                if text[at] == NEWLINE and column < columns - 1:
                    return row, hard_count, FEWER, at, column + 1
            slot = slots[column]
            if slot <= UNUSED:
                value, end, state = 0.0, _skipped(text, at, stop, delimiter, multiline), DONE
                if end < 0:
                    return row, hard_count, OPEN_QUOTE, at, column
                if slot < UNUSED:
                    spans[UNUSED - 1 - slot, row, 0] = at
                    spans[UNUSED - 1 - slot, row, 1] = end
            else:
                value, end, state = _field(text, at)
            after = end
            if text[end] <= SPACE and state != WRONG:
                after = _past_blanks(text, end, delimiter)
            mark = text[after]
            ends = mark == NEWLINE or (mark == HASH and after > end)
            if state == WRONG or not (mark == delimiter or ends or (blanks and after > end)):
                end = _missing_end(text, at, delimiter, WORD_TOKENS if slot == LABEL else TOKENS.shape[0])
                if end < 0:
                    return row, hard_count, NO_NUMBER, at, column
                if slot == WEIGHT or not keep & (KEEP_LABEL if slot == LABEL else KEEP_FEATURES):
                    return row, hard_count, EMPTY if end == at else MISSING, at, column
                value, state, after = np.nan, DONE, _past_blanks(text, end, delimiter)
                mark = text[after]
                ends = mark == NEWLINE or mark == HASH
            if slot >= 0:
                x[row, slot] = value
                if np.isinf(x[row, slot]):
                    return row, hard_count, TOO_LARGE, at, column
            elif slot == LABEL:
                y[row] = value
            elif slot == WEIGHT:
                if value < 0:
                    return row, hard_count, NEGATIVE, at, column
                weight[row] = value
            if state == HARD:
                hard_count = _note(hard, hard_count, at, end, row, slot)
            if ends:
                if column < columns - 1:
                    return row, hard_count, FEWER, after, column + 1
                at = after
            else:
                at = after if blanks else after + 1
                if column == columns - 1:
                    return row, hard_count, MORE, after, column + 1
        at = _line_end(text, at) + 1
        row += 1
    return row, hard_count, FINE, at, 0


@numba.njit(inline="always")
def _index(text, at):
    """The whole number at ``text[at]``, at most LARGEST_INDEX + 1, and the first byte behind it."""
    value = 0
    digit = np.uint8(text[at] - ZERO)
    while digit < 10:
        if value <= LARGEST_INDEX:
            value = value * 10 + int(digit)
        at += 1
        digit = np.uint8(text[at] - ZERO)
    return min(value, LARGEST_INDEX + 1), at


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
    row, entry, hard_count, at, weighted = 0, 0, 0, start, False
    while at < stop:
        at = _past_blanks(text, at, SPACE)
        if text[at] == NEWLINE or text[at] == HASH:
            at = _line_end(text, at) + 1
            continue
        value, end, state = _number(text, at)
        if state == WRONG or not (text[end] <= SPACE or text[end] == COLON or text[end] == HASH):
            return row, entry, weighted, hard_count, NO_NUMBER, at
        if state == HARD:
            hard_count = _note(hard, hard_count, at, end, row, LABEL)
        y[row], weight[row] = value, 1.0
        if text[end] == COLON:
            weighted = True
            at = end + 1
            value, end, state = _number(text, at)
            if state == WRONG or not (text[end] <= SPACE or text[end] == HASH):
                return row, entry, weighted, hard_count, NO_NUMBER, at
            if value < 0:
                return row, entry, weighted, hard_count, NEGATIVE, at
            if state == HARD:
                hard_count = _note(hard, hard_count, at, end, row, WEIGHT)
            weight[row] = value
        before = -1
        while True:
            at = end + 1 if text[end] == SPACE else end
            if text[at] <= HASH:
                at = _past_blanks(text, at, SPACE)
                if text[at] == NEWLINE or text[at] == HASH:
                    break
            if text[at] == LOWER_Q and text[at + 1] == LOWER_I and before < 0:
                end = at
                while text[end] > SPACE:
                    end += 1
                continue
            index, end = _index(text, at)
            if end == at:
                return row, entry, weighted, hard_count, NO_INDEX, at
            if text[end] != COLON:
                return row, entry, weighted, hard_count, NO_COLON, at
            if index > LARGEST_INDEX:
                return row, entry, weighted, hard_count, HUGE_INDEX, at
            if index <= before:
                return row, entry, weighted, hard_count, NOT_ASCENDING, at
            before, at = index, end + 1
            value, end, state = _number(text, at)
            if state == WRONG or not (text[end] <= SPACE or text[end] == HASH):
                return row, entry, weighted, hard_count, NO_NUMBER, at
            values[entry] = value
            if np.isinf(values[entry]):
                return row, entry, weighted, hard_count, TOO_LARGE, at
            if state == HARD:
                hard_count = _note(hard, hard_count, at, end, row, entry)
            indices[entry] = index
            entry += 1
        ends[row] = entry
        row += 1
        at = _line_end(text, at) + 1
    return row, entry, weighted, hard_count, FINE, at


@kernel()
def fill_rows(ends, indices, values, base, first, x):
    """Write rows ``first`` and on of a CSR matrix into ``x``, shape (rows, features); indices count from ``base``."""
    for row in range(x.shape[0]):
        for j in range(x.shape[1]):
            x[row, j] = 0
        begin = ends[first + row - 1] if first + row > 0 else 0
        for entry in range(begin, ends[first + row]):
            x[row, indices[entry] - base] = values[entry]
