"""Columns of words that name the rows, such as AB-0001, AB-0002, ...: neither features nor labels."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from ...errors import DataError
from .columns import Columns, Roles
from .kinds import NOTHING, WORD, kind_of, kind_of_column

FEWEST = 20  # rows that tell a name from a category that happens to be there once
LOOKED = 1000  # rows that are looked at, of a table with few columns
LOOKED_FIELDS = 40_000  # and at most so many fields of one with many

# a number with marks between its digits, and signs, quotes, an exponent or a unit around it
QUANTITY = re.compile(r"[^\w]*[0-9](?:[0-9]|[^\w]|_)*(?:[dDeE][-+]?[0-9]+)?[^\W\d_]{0,3}[^\w]*")

Fields = Callable[[Sequence[int]], dict[int, list[str]]]


def rows_looked_at(width: int) -> int:
    """How many of the first rows of a table with ``width`` columns tell which of them name the rows."""
    return max(FEWEST, min(LOOKED, LOOKED_FIELDS // max(1, width)))


def are_names(fields: Sequence[str]) -> bool:
    """Whether the words in ``fields``, one a row, name the rows: none is there twice, and they are enough to tell."""
    known = [field for field in fields if kind_of(field) != NOTHING]
    return len(known) >= FEWEST and len(set(known)) == len(known) and kind_of_column(known) == WORD


def are_quantities(fields: Sequence[str]) -> bool:
    """Whether these may be numbers in a form that is not read, as 1,234 or 12 % or 5 kg; left out, they were lost."""
    return all(QUANTITY.fullmatch(field) for field in fields if kind_of(field) != NOTHING)


def without_row_names(
    path: str, roles: Roles, names: Sequence[str] | None, words: Sequence[int], fields: Fields, columns: Columns
) -> Roles:
    """``roles`` without the features that name the rows, and with a note of them.

    Columns that a user or a model asks for stay: whether they can be features is another question.

    Args:
        names: of all columns, where they have any.
        words: columns that hold words.
        fields: gives the first `rows_looked_at` fields of some columns, empty where a value is missing.

    Raises:
        DataError: the label that is taken, where none is named, is such a column.
    """
    if columns.columns is not None or (columns.required is not None and names is not None):
        return roles

    def called(column: int) -> str:
        return str(column) if names is None else names[column]

    by_default = columns.wanted and columns.holds == "rows" and columns.label is None and columns.label_name is None
    asked = [column for column in roles.features if column in words]
    asked += [roles.label] if by_default and roles.label in words and roles.label is not None else []
    known = {column for column in asked if called(column) in columns.row_names}
    looked = fields([column for column in asked if column not in known]) if set(asked) - known else {}
    found = known | {column for column, texts in looked.items() if are_names(texts)}
    if roles.label in found:
        raise DataError(
            f"{path}: column {called(roles.label)}, the last one, holds another word in every row, as names of rows do:"
            " name the column of the label by --label"
        )
    found -= {column for column, texts in looked.items() if are_quantities(texts)}
    kept = [i for i, column in enumerate(roles.features) if column not in found]
    if not found or not kept:
        return roles
    left = tuple(called(column) for column in roles.features if column in found)
    which = (
        f"columns {', '.join(left)} are left out: they hold" if left[1:] else f"column {left[0]} is left out: it holds"
    )
    note = f"{path}: {which} another word in every row, as names of rows do"
    return roles._replace(
        features=tuple(roles.features[i] for i in kept),
        names=None if roles.names is None else tuple(roles.names[i] for i in kept),
        notes=(*roles.notes, note),
        row_names=left,
    )
