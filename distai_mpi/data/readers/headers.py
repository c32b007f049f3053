"""Decides by evidence whether the first line of a table names its columns; asks the user where that is too little."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from ...errors import DataError
from .kinds import BOOLEAN, DATE, DATETIME, DECIMAL, NOTHING, NUMBER, WORD, kind_of, kind_of_column

Rows = Sequence[Sequence[str]]

ASK = "say which it is by --header or --no-header"
WHOLE = re.compile(r"\d+")
YEAR = re.compile(r"[12]\d{3}")
FEWEST_WORDS = 2  # that stand above numbers: one may be a slip in a row


class Header(NamedTuple):
    """What the first line says of the columns.

    Attributes:
        names: one for each column; None: the line is a row.
        numbering: columns that number or name the rows.
        empty: whether the last column is what a delimiter at the end of each line makes.
        notes: for the user, on the choice.
        skip: whether the first line is neither names of these columns nor a row.
    """

    names: tuple[str, ...] | None
    numbering: tuple[int, ...] = ()
    empty: bool = False
    notes: tuple[str, ...] = ()
    skip: bool = False


def read_header(path: str, line: int, first: Sequence[str], below: Rows, said: bool | None) -> Header:
    """What ``first``, the fields of line number ``line``, says of the rows ``below``; ``said`` is the user's word.

    Raises:
        DataError: it is unclear, or names and columns do not fit.
    """
    width = len(below[0]) if below else len(first)
    short = width - len(first)
    tail = bool(below) and width > 1 and all(len(row) == width and not row[-1] for row in below)
    if said is False:
        return Header(None, empty=tail and short == 0 and not first[-1])
    guessed = False
    if said is None and short == 0:
        named, guessed = _is_header(path, line, first, below) if below else (False, False)
        if not named:
            return Header(None, empty=tail and not first[-1])
    elif said is None and not below:
        return Header(None, empty=tail and not first[-1])
    if short == 0:
        return _named(path, first, tail and not first[-1], below, guessed)
    words, counting = _has_words(first), _counts(first)
    if short == 1 and (words or counting or said) and all(len(row) == width for row in below):
        if tail:
            return _named(path, (*first, ""), True, below)
        return _named(path, ("", *first), False, below)
    if short == -1 and not first[-1] and words:
        return _named(path, first[:-1], False, below)
    if said or (said is None and _tells_of_table(first, below)):
        note = f"{path}: line {line} has {len(first)} fields and the lines below {width}: its names are left out"
        note += "" if said else "; if it is a row, say --no-header, and mend it"
        return Header(None, notes=(note,), skip=True)
    if words and below and not any(map(_fits, first, zip(*below, strict=False))):
        raise DataError(
            f"{path}: line {line} has {len(first)} fields, such as {_first_word(first)!r}, and the line below {width}:"
            " mend it, or say --header to read over it"
        )
    return Header(None)


def _named(path: str, names: Sequence[str], empty: bool, below: Rows, guessed: bool = False) -> Header:
    """A header, in which columns without a name are called as pandas does it, but for an index.

    A note tells of one that is ``guessed``, or that consists of numbers.
    """
    named = [column for column, name in enumerate(names) if name]
    index = tuple(range(named[0] if named else len(names) > 1))  # pandas writes the levels of an index without names
    if names[0] == "Unnamed: 0" and len(names) > 1 and _counts([row[0] for row in below]):
        index = (0,)  # what pandas calls such a column when it has read and written it
    notes: list[str] = []
    if guessed or all(map(WHOLE.fullmatch, (name for name in names if name))):
        shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        notes.append(f"{path}: the first line, {shown}, is taken for names of columns; if it is a row, say --no-header")
    called = tuple(name or (f"Unnamed: {i}" if 0 < i < len(names) - empty else "") for i, name in enumerate(names))
    return Header(called, index, empty, tuple(notes))


def _is_header(path: str, line: int, first: Sequence[str], below: Rows) -> tuple[bool, bool]:
    """Whether ``first``, of as many fields as the rows ``below``, is a header, and whether that is worth a note.

    Raises:
        DataError: it is unclear.
    """
    kinds = [kind_of(field) for field in first]
    columns = [[row[column] for row in below if column < len(row)] for column in range(len(first))]
    under = [kind_of_column(column) for column in columns]
    if all(kind in (NUMBER, NOTHING) for kind in kinds):
        return _numbers_are_names(path, line, first, columns), False
    if not any(kind in (NUMBER, BOOLEAN, DATE, DATETIME) for kind in under):
        return True, False  # of a table of words; whether it is one at all is another question
    if not first[0] and len(first) > 1 and WORD in kinds and _counts(columns[0]) and len(columns[0]) > 1:
        return True, False  # above an index
    differ = [kind not in (NUMBER, NOTHING) and under[i] not in (kind, WORD) for i, kind in enumerate(kinds)]
    if not any(differ):
        numbers = [column for column, kind in enumerate(kinds) if kind == NUMBER]
        counts = _may_count([first[column] for column in numbers], [columns[column] for column in numbers])
        if counts and any(first[column] in columns[column] for column in range(len(first))):
            shown = ", ".join(first[:2]) + ", ..., " + ", ".join(first[-2:])
            raise DataError(f"{path}: whether line {line} ({shown}) is a row or names the columns is unclear; {ASK}")
        return counts, counts
    doubtful = [
        field
        for column, (field, kind) in enumerate(zip(first, kinds, strict=True))
        if kind == NUMBER
        and field not in (str(column), str(column - 1))
        and not (YEAR.fullmatch(field) and not all(map(YEAR.fullmatch, columns[column])))
        and under[column] == NUMBER
    ]
    words = {field for field, is_word in zip(first, differ, strict=True) if is_word}
    if doubtful and not (len(words) >= FEWEST_WORDS and all(map(WHOLE.fullmatch, doubtful))):
        column = differ.index(True)
        raise DataError(
            f"{path}: line {line}, column {column} (counted from 0): {first[column]!r} is no number, and"
            f" {doubtful[0]!r} is one: whether the line is a row or names the columns is unclear; {ASK}, or mend it"
        )
    return True, bool(doubtful)


def _tells_of_table(first: Sequence[str], below: Rows) -> bool:
    """Whether ``first``, of another number of fields than the rows ``below``, tells of them: whole numbers, and words.

    So scikit-learn writes how many rows and columns there are, and the names of classes.
    """
    if len(below) < 2 or len({len(row) for row in below}) > 1:
        return False
    under = [kind_of_column(column) for column in zip(*below, strict=True)]
    kinds = [kind_of(field) for field in first]
    words = {field for field, kind, column in zip(first, kinds, under, strict=False) if kind == WORD != column}
    numbers = [field for field, kind in zip(first, kinds, strict=True) if kind != WORD]
    return len(words) >= FEWEST_WORDS and bool(numbers) and all(map(WHOLE.fullmatch, numbers))


def _numbers_are_names(path: str, line: int, first: Sequence[str], columns: Rows) -> bool:
    """Whether a line of numbers alone is a header; ``columns`` are the fields below it."""
    rest, names = list(columns), list(first)
    index = not names[0] and len(names) > 1
    if index:
        names, rest = names[1:], rest[1:]
    if not all(map(WHOLE.fullmatch, names)) or len(set(names)) < len(names):
        return False
    if index:  # what stands below tells an index from a row that lacks its first field
        return (_counts(names) and len(names) > 2) or (_counts(columns[0]) and len(columns[0]) > 1)
    broken = sum(not any(map(WHOLE.fullmatch, column)) for column in rest)
    low = int(names[0])
    if _counts(names):
        goes_on = [column[0] for column in rest] == [str(low + len(names) + i) for i in range(len(names))]
        if (len(names) > 2 or broken) and not goes_on:
            return True
    elif len(names) < 2 or broken < max(2, len(names) - 1) or len(rest[0]) < 3:
        return False
    elif [int(name) for name in names] == list(range(low, low + len(names))) and len(names) > 2:
        return True
    shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    raise DataError(f"{path}: whether line {line} ({shown}) is a row or names the columns by numbers is unclear; {ASK}")


def _may_count(names: Sequence[str], columns: Rows) -> bool:
    """Whether these are whole numbers one after another, such as years, unlike what stands in the columns below."""
    if len(names) < 3 or not all(map(WHOLE.fullmatch, names)):
        return False
    broken = sum(not any(map(WHOLE.fullmatch, column)) for column in columns)
    low = int(names[0])
    return broken >= len(names) - 1 and list(map(int, names)) == list(range(low, low + len(names)))


def _counts(fields: Sequence[str]) -> bool:
    """Whether these are the whole numbers from 0 on."""
    return list(fields) == [str(i) for i in range(len(fields))]


def _has_words(fields: Sequence[str]) -> bool:
    return any(kind_of(field) not in (NUMBER, NOTHING) for field in fields)


def _first_word(fields: Sequence[str]) -> str:
    return next(field for field in fields if kind_of(field) not in (NUMBER, NOTHING))


def _fits(field: str, below: Sequence[str]) -> bool:
    """Whether a field that is no number stands over others."""
    return not DECIMAL.fullmatch(field) and kind_of_column(below) == WORD
