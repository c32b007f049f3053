"""Which columns of a table become categories or hashed words, by themselves or as a user or a model says."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import DataError
from .columns import Columns, Roles
from .levels import CATEGORY, GUESSED, TEXT
from .notation import crosses


def encoded_columns(
    path: str, roles: Roles, names: Sequence[str] | None, count: int, words: Sequence[int], columns: Columns
) -> dict[int, str]:
    """The columns among the features of ``roles`` whose values are encoded, and each one's kind, of `levels`.

    Args:
        names, count: of all columns, see `Columns.select`.
        words: columns that hold words, and no numbers in a form that is not read.

    Raises:
        DataError: a column that was asked for is not there, or is no feature.
    """
    called = {column: _called(column, names) for column in roles.features}
    if columns.encoded is not None:
        known = dict(columns.encoded)
        return {column: known[name] for column, name in called.items() if name in known}
    if columns.required is not None:  # of a model that has no such columns
        return {}
    asked = asked_columns(path, names, count, columns)
    for column, (flag, _) in asked.items():
        if column not in called and columns.holds != "labels":
            raise DataError(
                f"{path}: {flag} {_called(column, names)}: the column is none of the features; leave out what makes it"
                " something else, or the name here"
            )
    found = {column: GUESSED for column in roles.features if column in words}
    return found | {column: kind for column, (_, kind) in asked.items() if column in called}


def asked_columns(path: str, names: Sequence[str] | None, count: int, columns: Columns) -> dict[int, tuple[str, str]]:
    """The columns that a user asks to be encoded: by which flag, and the kind that each is to be.

    Raises:
        DataError: there is no such column, or one is to be two kinds.
    """
    if columns.encoded is not None:
        return {}
    asked: dict[int, tuple[str, str]] = {}
    for flag, kind, spec in (("--categorical", CATEGORY, columns.categorical), ("--text", TEXT, columns.text)):
        for column in columns.several(path, flag, spec, names, count):
            if column in asked:
                raise DataError(f"{path}: column {_called(column, names)} cannot be both --categorical and --text")
            asked[column] = flag, kind
    return asked


def not_row_names(path: str, names: Sequence[str] | None, count: int, columns: Columns) -> set[int]:
    """Columns that are encoded even where every row has another value: those that a user or a model asks for."""
    if columns.encoded is not None:
        known = dict(columns.encoded)
        return {column for column in range(count) if _called(column, names) in known}
    crossed = {name for pair in crosses(columns.cross) for name in pair}
    by_cross = {column for column in range(count) if _called(column, names) in crossed}
    return by_cross | set(asked_columns(path, names, count, columns))


def _called(column: int, names: Sequence[str] | None) -> str:
    return str(column) if names is None else names[column]
