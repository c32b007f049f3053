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
def _past_blanks(text, place, delimiter):
    """The first byte that is no blank; a tab that delimits is none, nor is a carriage return within a line."""
    while (
        text[place] == SPACE
        or (text[place] == RETURN and (text[place + 1] == NEWLINE or text[place + 1] == RETURN))
        or (text[place] == TAB and delimiter != TAB)
    ):
        place += 1
    return place


@numba.njit(inline="always")
def _line_end(text, place):
    while text[place] != NEWLINE:
        place += 1
    return place


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
def _field(text, place):
    """The number in a field, perhaps in quotes; ``(value, end, state)`` as of `number`."""
    quoted = text[place] == QUOTE
    value, end, state = number(text, place + 1 if quoted else place)
    if quoted and text[end] == QUOTE:
        end += 1
    elif quoted:
        state = WRONG
    return value, end, state


@numba.njit
def _skipped(text, place, stop, delimiter, multiline):
    """The end of a field that may hold anything, in quotes also delimiters; -1 where a quote is not closed.

    Two quotes within quotes stand for one.  Line ends stand within quotes if ``multiline``.
    """
    if text[place] == QUOTE:
        place += 1
        while True:
            while place < stop and text[place] != QUOTE and (multiline or text[place] != NEWLINE):
                place += 1
            if place >= stop or text[place] == NEWLINE:
                return -1
            place += 1
            if text[place] != QUOTE:
                break
            place += 1
    while text[place] != delimiter and text[place] != NEWLINE and not (delimiter == SPACE and text[place] == TAB):
        place += 1
    return place


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
def _missing_end(text, place, delimiter, tokens):
    """The end of the field at ``place`` where its value is not there, a comment behind it left out; -1 where it is.

    ``tokens``: see `is_missing`.
    """
    end = place
    while text[end] != delimiter and text[end] != NEWLINE and not (delimiter == SPACE and text[end] == TAB):
        end += 1
    start, stop = trimmed(text, place, end)
    if is_missing(text, start, stop, tokens):
        return end
    for hash_at in range(place, end):
        if text[hash_at] == HASH and (hash_at == place or text[hash_at - 1] <= SPACE):
            start, stop = trimmed(text, place, hash_at)
            return hash_at if is_missing(text, start, stop, tokens) else -1
    return -1


@numba.njit
def _is_comment(text, place, delimiter):
    """Whether the line whose first byte that is no blank stands at ``place`` is no row: a comment, or blank."""
    if text[place] == NEWLINE:
        return True
    return text[place] == HASH and (_missing_end(text, place, delimiter, WORD_TOKENS) <= place)


@numba.njit
def _may_be_row(text, place, stop, delimiter, columns):
    """Whether a line that begins with # has as many fields as a row, the first one of words: #ff0000,1,2."""
    fields = 1
    if text[place + 1] <= SPACE:
        return False
    while True:
        end = _skipped(text, place, stop, delimiter, False)
        if end < 0:
            return False
        place = _past_blanks(text, end, delimiter)
        if text[place] == NEWLINE:
            return fields == columns
        place += text[place] == delimiter
        place = _past_blanks(text, place, delimiter)
        fields += 1


@numba.njit
def _is_colour(text, place, delimiter):
    """Whether a field is a colour as HTML writes it: # and 3, 4, 6 or 8 hexadecimal digits."""
    end = place + 1
    while (48 <= text[end] <= 57) or (65 <= (text[end] & 95) <= 70):  # 0 to 9, A to F and a to f
        end += 1
    digits = end - place - 1
    return (text[end] == delimiter or text[end] <= SPACE) and (3 <= digits <= 4 or digits == 6 or digits == 8)


@kernel()
def whole_lines(text, stop, delimiter):
    """Bytes of ``text[:stop]`` up to its last line end that stands outside of quotes; 0 where there is none."""
    place, done, fresh = 0, 0, True
    while place < stop:
        byte = text[place]
        if byte == HASH and place == done:
            while place < stop and text[place] != NEWLINE:
                place += 1
            continue
        if byte == NEWLINE:
            done = place + 1
        if byte == QUOTE and fresh:
            place += 1
            while place < stop and (text[place] != QUOTE or (place + 1 < stop and text[place + 1] == QUOTE)):
                place += 2 if text[place] == QUOTE else 1
            byte = np.uint8(QUOTE)
        fresh = byte == NEWLINE or byte == delimiter or byte == SPACE or byte == TAB
        place += 1
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
    row, hard_count, place, columns = 0, 0, start, slots.size
    blanks = delimiter == SPACE
    while place < stop:
        place = _past_blanks(text, place, delimiter)
        if text[place] <= HASH and _is_comment(text, place, delimiter):
            row_of_words = words_first and text[place] == HASH and _may_be_row(text, place, stop, delimiter, columns)
            if row_of_words and not _is_colour(text, place, delimiter):
                return row, hard_count, HASHED, place, 0
            if not row_of_words:
                place = _line_end(text, place) + 1
                continue
        for column in range(columns):
            if text[place] <= HASH:  # a blank, an end or a quote
                place = _past_blanks(text, place, delimiter)
                if text[place] == NEWLINE and column < columns - 1:
                    return row, hard_count, FEWER, place, column + 1
            slot = slots[column]
            if slot <= UNUSED:
                value, end, state = 0.0, _skipped(text, place, stop, delimiter, multiline), DONE
                if end < 0:
                    return row, hard_count, OPEN_QUOTE, place, column
                if slot < UNUSED:
                    spans[UNUSED - 1 - slot, row, 0] = place
                    spans[UNUSED - 1 - slot, row, 1] = end
            else:
                value, end, state = _field(text, place)
            after = end
            if text[end] <= SPACE and state != WRONG:
                after = _past_blanks(text, end, delimiter)
            mark = text[after]
            ends = mark == NEWLINE or (mark == HASH and after > end)
            if state == WRONG or not (mark == delimiter or ends or (blanks and after > end)):
                end = _missing_end(text, place, delimiter, WORD_TOKENS if slot == LABEL else TOKENS.shape[0])
                if end < 0:
                    return row, hard_count, NO_NUMBER, place, column
                if slot == WEIGHT or not keep & (KEEP_LABEL if slot == LABEL else KEEP_FEATURES):
                    return row, hard_count, EMPTY if end == place else MISSING, place, column
                value, state, after = np.nan, DONE, _past_blanks(text, end, delimiter)
                mark = text[after]
                ends = mark == NEWLINE or mark == HASH
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
    digit = np.uint8(text[place] - ZERO)
    while digit < 10:
        if value <= LARGEST_INDEX:
            value = value * 10 + int(digit)
        place += 1
        digit = np.uint8(text[place] - ZERO)
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
            if text[place] == LOWER_Q and text[place + 1] == LOWER_I and before < 0:
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
