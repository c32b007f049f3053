"""Which column of a table is the label, and which the weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import ConfigError, DataError


@dataclass(frozen=True)
class Columns:
    """What a user says of the columns of a table: their names, or their numbers from 0.

    Attributes:
        label: column of the label; None: the last one.
        weight: column of the weights; None: there is none.
        wanted: whether labels and weights are read; else these columns are left out, and without ``label`` all
            columns are features.
        optional: whether they are passed over, and not refused, for data that is no table.
    """

    label: str | None = None
    weight: str | None = None
    wanted: bool = True
    optional: bool = False

    def refuse(self, path: str) -> None:
        """Raise a ConfigError about a file without columns, if any were named."""
        for flag, column in (("--label", self.label), ("--weight", self.weight)):
            if column is not None and not self.optional:
                raise ConfigError(f"{flag} {column}: {path} is no table; columns are those of CSV and Parquet files")

    def find(self, path: str, names: Sequence[str] | None, count: int) -> tuple[int | None, int | None]:
        """The columns of label and weight among ``count``, whose names are ``names`` where they have any.

        Raises:
            DataError: there is no such column, both are one, or no column is left for features.
        """
        weight = None if self.weight is None else _find(path, "--weight", self.weight, names, count)
        label = None if self.label is None else _find(path, "--label", self.label, names, count)
        if label is None and self.wanted:
            label = max((column for column in range(count) if column != weight), default=None)
        if label is not None and label == weight:
            raise DataError(f"{path}: column {self.label} cannot be both label and weight; name two columns")
        if count <= (label is not None) + (weight is not None):
            raise DataError(
                f"{path}: has {count} column{'s' * (count > 1)}, and none is left for features beside label and weight"
            )
        return label, weight


def _find(path: str, flag: str, column: str, names: Sequence[str] | None, count: int) -> int:
    """The number of the column that is called ``column``, or has this number."""
    known = list(names or ())
    if known.count(column) > 1:
        raise DataError(
            f"{path}: {flag} {column}: several columns have this name; give a number, from 0 to {count - 1}"
        )
    if column in known:
        return known.index(column)
    if column.isdecimal() and int(column) < count:
        return int(column)
    there = f"columns 0 to {count - 1}"
    if known:
        there = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "") + f", or numbers from 0 to {count - 1}"
    raise DataError(f"{path}: {flag} {column}: there is no such column; there are {there}")
