"""Lines of prose before a table in text: a title, a source, what its columns mean."""

from __future__ import annotations

from collections.abc import Sequence

from .kinds import COMMA_DECIMAL, DECIMAL
from .lines import DELIMITERS, Line, decode, fields_of

LOOKED_AT = 100  # lines in which a table must have begun
FEWEST = 10  # lines of the table that must follow, all of as many fields


def lines_of_prose(lines: Sequence[Line], least: int = FEWEST) -> int:
    """How many of the first ``lines`` of a file are prose, before the header or the first row of a table.

    They are where the last ``least`` lines at least have equally many fields, two or more, with the same mark between
    them, and none of the lines in front, but the header, has such a mark or is a number: none can be a row.
    """
    for mark in DELIMITERS:
        fields = [len(fields_of(line, mark)) for line in lines]
        begin = len(fields) - 1
        while begin > 0 and fields[begin - 1] == fields[-1]:
            begin -= 1
        if fields[-1] < 2 or len(fields) - begin < least:
            continue
        if begin > 0 and fields[begin - 1] > 1:
            begin -= 1  # a header that has a field more or less, which `headers` tells
        if max(fields[:begin], default=1) > 1 or (begin == 1 and fields[-1] == 2):  # R leaves the index without a name
            return 0
        words, below = [[_by_blanks(line) for line in part] for part in (lines[:begin], lines[begin:])]
        width = len(below[-1])
        if width > 1 and any(len(line) == width for line in words):
            return 0  # what parts the fields may be blanks
        if any(all(map(DECIMAL.fullmatch, line)) for line in words) or (mark == "," and _are_decimals(below)):
            return 0
        return begin
    return 0


def _by_blanks(line: Line) -> list[str]:
    return [word.strip() for word in decode(line.text).split(" ") if word.strip()]


def _are_decimals(lines: Sequence[Sequence[str]]) -> bool:
    """Whether all that stands between blanks may be a number with a decimal comma."""
    return all(COMMA_DECIMAL.fullmatch(word) or DECIMAL.fullmatch(word) for line in lines for word in line)
