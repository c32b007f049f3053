"""CSV: one row a line, numbers in columns, one of which is the label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from . import codes
from .stretch import Stretch
from .text import HARD_NUMBERS, Scratch, TextFile, field_at, whole

Array = Any

ADVICE = "every field must be a number; mend or remove the line"
LABEL_ADVICE = "labels must be numbers: write classes as 0, 1, ..., or name another column with --label"


@dataclass(frozen=True)
class CsvFile(TextFile):
    """A CSV file, of which it is known how its lines are made up.

    Numbers may stand in double quotes.  Lines that are blank or begin with ``#`` are skipped.

    Attributes:
        delimiter: the byte between fields; a space stands for any run of blanks.
        names: of the columns, where the file has a header.
        columns: number of columns.
        label: column of the label; None: there is none, and labels are 0.
        weight: column of the weights, or None.
        unused: columns that are left out, whatever they hold.
        dtype: type in which features are held, float32 or float64.
    """

    delimiter: int
    names: tuple[str, ...] | None
    columns: int
    label: int | None
    weight: int | None
    unused: tuple[int, ...]
    dtype: np.dtype

    @property
    def features(self) -> int:
        """Features of a row: the columns that are nothing else."""
        return int((self._slots >= 0).sum())

    @property
    def feature_names(self) -> tuple[str, ...] | None:
        """Names of the features, where the file has a header."""
        if self.names is None:
            return None
        return tuple(name for name, slot in zip(self.names, self._slots, strict=True) if slot >= 0)

    @property
    def _slots(self) -> Array:
        """What each column is; see `kernels.tables.read_csv`."""
        slots = np.zeros(self.columns, np.int64)
        slots[list(self.unused)] = codes.UNUSED
        for column, slot in ((self.label, codes.LABEL), (self.weight, codes.WEIGHT)):
            if column is not None:
                slots[column] = slot
        slots[slots == 0] = np.arange(np.count_nonzero(slots == 0))
        return slots

    def empty(self) -> Stretch:
        """A stretch without rows."""
        weight = None if self.weight is None else np.empty(0)
        return Stretch(np.empty((0, self.features), self.dtype), np.empty(0), weight)

    def read(self, part: int, parts: int) -> Stretch:
        """Rows of the lines that begin in the ``part``-th of ``parts`` ranges of bytes."""
        scratch = Scratch()
        blocks = [self._read_block(*block, scratch) for block in self.blocks(part, parts)]
        none = self.empty()
        weight = None if none.weight is None else whole([block.weight for block in blocks], none.weight)
        return Stretch(
            whole([block.x for block in blocks], none.x), whole([block.y for block in blocks], none.y), weight
        )

    def _read_block(self, text: Array, stop: int, position: int, scratch: Scratch) -> Stretch:
        from .kernels.tables import read_csv

        most = stop // (2 * self.columns) + 1  # a field takes two bytes at least
        slots, capacity = self._slots, HARD_NUMBERS
        while True:
            x = scratch.array("x", (most, self.features), self.dtype)
            y, weight = scratch.array("y", (most,), np.float64), scratch.array("weight", (most,), np.float64)
            y[:] = 0  # where there are no labels
            hard = np.empty((capacity, 4), np.int64)
            rows, count, fault, place, column = read_csv(text, 0, stop, self.delimiter, slots, x, y, weight, hard)
            if count <= capacity:
                break
            capacity = count
        for begin, end, row, slot in hard[:count].tolist():
            value = float(text[begin:end].tobytes().strip(b'"'))
            target = {codes.LABEL: y, codes.WEIGHT: weight}.get(slot)
            with np.errstate(over="ignore"):
                if target is None:
                    x[row, slot] = value
                    value = x[row, slot]
                else:
                    target[row] = value
            if np.isinf(value):
                fault, place, column = codes.TOO_LARGE, begin, int(np.flatnonzero(slots == slot)[0])
                break
        if fault != codes.FINE:
            self._explain(fault, text, place, position, column)
        return Stretch(x[:rows].copy(), y[:rows].copy(), weight[:rows].copy() if self.weight is not None else None)

    def _explain(self, fault: int, text: Array, place: int, position: int, column: int) -> None:
        """Raise the DataError about ``fault`` in ``column``, at byte ``place`` of ``text``, itself at ``position``."""
        name = self.names[column] if self.names is not None and column < self.columns else ""
        where = f", column {name} (number {column}, counted from 0)" if name else f", column {column} (counted from 0)"
        found = field_at(text, place, b"" if self.delimiter == codes.SPACE else bytes([self.delimiter]))
        advice = LABEL_ADVICE if column == self.label and _is_word(found) else ADVICE
        message = {
            codes.EMPTY: f"{where}: the field is empty; {ADVICE}",
            codes.NO_NUMBER: f"{where}: {found} is no finite number; {advice}",
            codes.FEWER: f" has {column} fields, not the first line's {self.columns}; {ADVICE}",
            codes.MORE: f" has more than the {self.columns} fields of the first line; mend or remove it",
            codes.NEGATIVE: f"{where}: {found} is a weight below 0; weights are 0 or more",
            codes.TOO_LARGE: f"{where}: {found} is beyond the range of {self.dtype}; mend or remove the line",
        }[fault]
        self.fail(position + place, message)


def _is_word(shown: str) -> bool:
    """Whether a field, as `field_at` shows it, is no number at all, not even one that is not finite."""
    try:
        float(shown.strip("'\""))
    except ValueError:
        return True
    return False
