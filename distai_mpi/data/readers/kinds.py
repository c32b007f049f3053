"""Kinds of fields of a text table: number, word, date, or missing."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ...errors import DataError
from ..labels import TRUTHS
from . import codes

NUMBER, BOOLEAN, DATE, DATETIME, WORD, NOTHING = "number", "boolean", "date", "datetime", "word", "nothing"
EMPTY = "empty"  # a column that a delimiter at the end of each line makes

DECIMAL = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
INFINITE = re.compile(r"[-+]?inf(inity)?", re.I)  # a number, though none that can be trained on
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_YEAR, _MONTH, _DAY, _MARK = r"\d{4}", r"(?:0?[1-9]|1[0-2])", r"(?:0?[1-9]|[12]\d|3[01])", r"(?:[.,] *| +|[-/])"
_NAME = "(?:" + "|".join(f"{name[:3]}(?:{name[3:]})?" for name in MONTHS) + "|Sept)"
_TIME = r"[T ]\d{1,2}:\d\d(?::\d\d(?:[.,]\d+)?)?\s?(?:Z|UTC|[-+]\d\d(?::?\d\d)?)?"
# day and month in an order that the field itself may not tell
NUMBERS = re.compile(rf"({_DAY})([-/.])({_DAY})\2{_YEAR}({_TIME})?", re.I)
SEASON = re.compile(r"\d\d(\d\d)[-/](\d\d)")
MOMENT = re.compile(
    rf"(?:{_YEAR}([-/]){_MONTH}\1{_DAY}"  # 2020-12-31
    rf"|{_YEAR}{_MARK}{_NAME}{_MARK}{_DAY}"  # 2020-Dec-31
    rf"|{_NAME}{_MARK}{_DAY}{_MARK}{_YEAR}"  # Dec 31, 2020
    rf"|{_DAY}{_MARK}{_NAME}{_MARK}{_YEAR})"  # 31 December 2020
    rf"({_TIME})?|"
    rf"{_YEAR}[-/]{_MONTH}|{_YEAR}{_MARK}{_NAME}|{_NAME}{_MARK}{_YEAR}",  # 2020-12, 2020-Dec, Dec 2020
    re.I,
)
LABEL_ADVICE = "mend the row, or say --missing drop, mean or median, which leave out rows without a label"
CLASS_ADVICE = "; if it is a class, give it another name"
MISSING = frozenset(codes.MISSING_WORDS)
MISSING_NUMBERS = MISSING | set(codes.MISSING_NUMBERS)
COMMA_DECIMAL = re.compile(r"[-+]?\d*,(\d+)([eE][-+]?\d+)?")


def kind_of(field: str) -> str:
    """The kind of one field."""
    if DECIMAL.fullmatch(field) or INFINITE.fullmatch(field):
        return NUMBER
    if field in MISSING_NUMBERS:
        return NOTHING
    if is_boolean(field):
        return BOOLEAN
    moment = MOMENT.fullmatch(field)
    if moment:
        return DATE if moment[2] is None else DATETIME
    if _day_and_month(field) is not None:
        return DATE if NUMBERS.fullmatch(field)[4] is None else DATETIME  # type: ignore[index]
    return WORD


def _day_and_month(field: str) -> tuple[int, int] | None:
    """The first two numbers of a date as 12/31/2020 or 31/12/2020; None where ``field`` is none."""
    match = NUMBERS.fullmatch(field)
    if match is None or (int(match[1]) > 12 and int(match[3]) > 12):
        return None
    return int(match[1]), int(match[3])


def label_word(text: str, keep: bool, path: str, where: str) -> str | None:
    """The word that a label is, the same in every format; None where it stands for a value that is not there.

    Raises:
        DataError: it does, and not ``keep``; names the file ``path`` and the place, ``where``.
    """
    word = text.strip()
    if word not in MISSING:
        return word
    if keep:
        return None
    raise DataError(f"{path}: {where}: {word!r} stands for a value that is not there; {LABEL_ADVICE}{CLASS_ADVICE}")


def day_first(fields: Iterable[str]) -> tuple[bool | None, str]:
    """Whether the day comes before the month in dates as 31/12/2020, and the first such date; none: the empty text.

    The first field that tells it decides; others that differ are faults, which reading tells by line.  None: no field
    tells it.
    """
    example = ""
    for field in fields:
        pair = _day_and_month(field)
        if pair is not None:
            example = example or field
            if max(pair) > 12:
                return pair[0] > 12, example
    return None, example


def is_boolean(field: str) -> bool:
    """Whether this is true or false, as pandas and R write it."""
    return field.lower() in TRUTHS and field in (field.lower(), field.upper(), field.capitalize())


def kind_of_column(fields: Iterable[str]) -> str:
    """The kind of a column of which these are fields.

    A column in which one field is a number is one of numbers; the others are faults, which reading tells by line.
    """
    fields = list(fields)
    kinds = {kind_of(field) for field in fields} - {NOTHING}
    if not kinds:
        return NOTHING
    if NUMBER in kinds:
        return NUMBER
    if kinds == {DATE, DATETIME}:
        return DATETIME
    if kinds == {DATE} and _are_seasons({field for field in fields if kind_of(field) == DATE}):
        return WORD
    return kinds.pop() if len(kinds) == 1 else WORD


def are_mostly_words(fields: Iterable[str]) -> bool:
    """Whether more than half of these fields are words, so that numbers among them are words too."""
    kinds = [kind for kind in map(kind_of, fields) if kind != NOTHING]
    return 2 * kinds.count(WORD) > len(kinds)


def _are_seasons(fields: set[str]) -> bool:
    """Whether these are years that begin in one and end in the next, as 2001-02 and 2002-03, and no months."""
    found = [SEASON.fullmatch(field) for field in fields]
    return len(found) > 1 and all(match and int(match[1]) + 1 == int(match[2]) for match in found)


def has_decimal_commas(fields: Iterable[str]) -> bool | None:
    """Whether a comma is the decimal point in these fields, of a table whose delimiter is another mark.

    None where it could part thousands just as well: three digits stand behind each.
    """
    fields = list(fields)
    commas = [match for match in map(COMMA_DECIMAL.fullmatch, fields) if match]
    if not commas or any("." in field for field in fields if DECIMAL.fullmatch(field)):
        return False
    plain = all(len(match[1]) == 3 and re.match(r"[-+]?[1-9]\d{0,2},", match[0]) for match in commas)
    return None if plain else True
