"""CSV: one row a line, in columns that are numbers, words or dates, one of them the label."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from . import codes, dates
from .chunk import Chunk
from .columns import Columns, Roles
from .kinds import BOOLEAN, CLASS_ADVICE, DATE, DATETIME, DECIMAL, EMPTY, INFINITE, LABEL_ADVICE, MISSING, WORD
from .levels import KINDS, Levels, LevelTable, number_word
from .lines import decode
from .text import HARD_NUMBERS, Block, Growing, TextFile, Unsplittable, field_at, with_newlines

Array = Any

ADVICE = "every field must be a number; mend or remove the line"
LINES_ADVICE = "mend or remove it, or say by --lines which lines are the table"
FILL_ADVICE = "mend the line, or say --missing mean, median or drop"
TEXTS = (WORD, BOOLEAN, DATE, DATETIME, *KINDS)
AS_POINT = bytes.maketrans(b",.", b".\x01")  # of decimal commas; a point then is no part of a number


class _Rows:
    """The rows of a range of bytes, as far as they are read: features, labels, weights, and the words of labels."""

    def __init__(self, features: int, dtype: np.dtype) -> None:
        self.x = Growing((features,), dtype)
        self.y, self.weight = Growing((), np.float64), Growing((), np.float64)
        self.words: dict[str, int] = {}
        self.levels: dict[int, LevelTable] = {}  # of columns of x


class _WordAsLabel(Exception):
    """A label that is no number, in a column in which the first lines have numbers alone."""


@dataclass(frozen=True)
class CsvFile(TextFile):
    """A CSV file, of which it is known how its lines are made up.

    Fields may stand in double quotes.  Lines that are blank or begin with ``#`` are skipped.

    Attributes:
        delimiter: the byte between fields; a space stands for any run of blanks.
        names: of the columns, where the file has a header.
        columns: number of columns.
        roles: which columns are label (where there is none, labels are 0), weight and features; the others are left
            out, whatever they hold.
        options: what was said of the table.
        dtype: type in which features are held, float32 or float64.
        kinds: of each column, one of those of `kinds`.
        comma: whether a comma is the decimal point.
        said: notes for the user besides those of ``roles``.
        orders: of day and month in the dates of each column, one of those of `codes`.
        examples: a date of each column that does not tell its order; none: the empty text.
        multiline: whether quotes may hold line ends, so that the file must be read from its beginning.
    """

    delimiter: int
    names: tuple[str, ...] | None
    columns: int
    roles: Roles
    options: Columns
    dtype: np.dtype
    kinds: tuple[str, ...]
    comma: bool = False
    said: tuple[str, ...] = ()
    orders: tuple[int, ...] = field(default=(), kw_only=True)
    examples: tuple[str, ...] = field(default=(), kw_only=True)
    multiline: bool = field(default=False, kw_only=True)

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user on how the file is read."""
        return self.said + self.roles.notes

    @property
    def features(self) -> int:
        """Features of a row."""
        return len(self._features)

    @property
    def feature_names(self) -> tuple[str, ...] | None:
        """Names of the features, where the file has a header."""
        if self.names is None:
            return None
        return tuple(self.names[column] + (f".{part}" if part else "") for column, part in self._features)

    @cached_property
    def encodes(self) -> dict[int, tuple[str, str]]:
        """See `chunk.ChunkedFile`."""
        kinds = ((feature, column, self.kinds[column]) for feature, (column, _) in enumerate(self._features))
        return {feature: (self.column_name(c), kind) for feature, c, kind in kinds if kind in KINDS}

    @property
    def encoded(self) -> tuple[tuple[str, str], ...]:
        """See `chunk.ChunkedFile`."""
        return tuple(self.encodes.values())

    @cached_property
    def _features(self) -> list[tuple[int, str]]:
        """The column of each feature, and which part of its dates it is."""
        return [(column, part) for column in self.roles.features for part in self._parts(column)]

    def _parts(self, column: int) -> tuple[str, ...]:
        """The parts of the calendar that a column becomes; one without a name where it is a feature itself."""
        if self.options.dates_as != "calendar" or self.kinds[column] not in (DATE, DATETIME):
            return ("",)
        return dates.PARTS

    def column_name(self, column: int) -> str:
        """The name of a column or, where there are no names, its number."""
        return str(column) if self.names is None else self.names[column]

    @property
    def dates(self) -> list[int]:
        """The columns of dates that are read."""
        used = (*self.roles.features, self.roles.label)
        return [column for column in range(self.columns) if column in used and self.kinds[column] in (DATE, DATETIME)]

    @property
    def date_orders(self) -> tuple[tuple[str, bool], ...]:
        """Of columns of dates as 1/2/2020 the name, or number, and whether the day comes first, where it is known."""
        known = {codes.MONTH_FIRST: False, codes.DAY_FIRST: True}
        return tuple((self.column_name(c), known[self.orders[c]]) for c in self.dates if self.orders[c] in known)

    def with_orders(self, known: Mapping[str, bool]) -> CsvFile:
        """The same, dates of the columns ``known`` in that order: whether the day comes first."""
        orders = list(self.orders)
        for column in self.dates:
            first = known.get(self.column_name(column))
            if first is not None:
                orders[column] = codes.DAY_FIRST if first else codes.MONTH_FIRST
        return replace(self, orders=tuple(orders))

    def asking(self, columns: Sequence[int]) -> CsvFile:
        """A file of ``columns``, of dates, alone: 1 where one tells that the month comes first, 2 if the day does."""
        orders = tuple(codes.SEE_ORDER if column in columns else order for column, order in enumerate(self.orders))
        options = replace(self.options, dates="seconds")
        return replace(self, roles=Roles(None, None, tuple(columns)), options=options, orders=orders)

    @cached_property
    def _texts(self) -> list[int]:
        """Columns whose fields are read as text: words of labels, dates, true and false, and what must be empty."""
        used = {*self.roles.features, self.roles.label}
        words = [column for column in range(self.columns) if column in used and self.kinds[column] in TEXTS]
        return [*words, *(column for column in range(self.columns) if self.kinds[column] == EMPTY)]

    @cached_property
    def _slots(self) -> Array:
        """What each column is; see `kernels.tables.read_csv`."""
        slots = np.full(self.columns, codes.UNUSED, np.int64)
        for feature, (column, _) in enumerate(self._features):
            slots[column] = feature
        for special, slot in ((self.roles.label, codes.LABEL), (self.roles.weight, codes.WEIGHT)):
            if special is not None:
                slots[special] = slot
        for which, column in enumerate(self._texts):
            slots[column] = codes.text_slot(which)
        return slots

    @property
    def _keep(self) -> int:
        """Which values that are not there become NaN."""
        return (codes.KEEP_FEATURES if self.options.keeps_missing else 0) | (
            codes.KEEP_LABEL if self.options.keeps_missing_labels else 0
        )

    @property
    def _labels_are_words(self) -> bool:
        return self.roles.label is not None and self.kinds[self.roles.label] == WORD

    def drop(self, columns: Sequence[int]) -> str:
        """The option that leaves out ``columns``: by their names or, where these are not their own, their numbers."""
        names, parts = self.names or ("",) * self.columns, []
        for column in columns:
            name = names[column] if names.count(names[column]) == 1 else ""
            quoted = '"' + name.replace('"', '""') + '"' if set(name) & set(',"\n') else name
            parts.append(quoted or str(column))
        dropped = ",".join(parts)
        return "--drop " + (shlex.quote(dropped) if "'" in dropped else f"'{dropped}'")

    def empty(self) -> Chunk:
        """A chunk without rows."""
        weight = None if self.roles.weight is None else np.empty(0)
        names = () if self._labels_are_words else None
        levels = dict.fromkeys(self.encodes, Levels.of([]))
        return Chunk(np.empty((0, self.features), self.dtype), np.empty(0), weight, names, levels)

    def read(self, part: int, parts: int) -> Chunk:
        """Rows of the lines that begin in the ``part``-th of ``parts`` ranges of bytes."""
        try:
            return self._read(part, parts)
        except _WordAsLabel:
            return self._with_words().read(part, parts)
        except Unsplittable:
            if parts > 1:
                raise
            return replace(self, multiline=True).read(part, parts)

    def _read(self, part: int, parts: int) -> Chunk:
        rows = _Rows(self.features, self.dtype)
        for block in self._whole_lines(part, parts):
            self._read_block(block, rows)
        return self._chunk(rows)

    def pieces(self, part: int, parts: int, most_bytes: float) -> Iterator[Chunk]:
        """The rows of `read` in chunks of about ``most_bytes`` of text, one of them at least.

        Labels may be numbers in the first of them, and words where a word has come.

        Raises:
            Unsplittable: quotes hold line ends, unless the file is known to be ``multiline``.
        """
        file, rows, held = self, _Rows(self.features, self.dtype), 0
        for block in self._whole_lines(part, parts):
            if held >= most_bytes:
                yield file._chunk(rows)
                rows, held = _Rows(self.features, self.dtype), 0
            try:
                file._read_block(block, rows)
            except _WordAsLabel:
                yield file._chunk(rows)
                file, rows = file._with_words(), _Rows(self.features, self.dtype)
                file._read_block(block, rows)
            held += block.stop
        yield file._chunk(rows)

    def _whole_lines(self, part: int, parts: int) -> Iterator[Block]:
        from .kernels.tables import whole_lines

        ends = (lambda text, stop: whole_lines(text, stop, self.delimiter)) if self.multiline else None
        return self.blocks(part, parts, ends)

    def _with_words(self) -> CsvFile:
        """The same, labels read as words."""
        assert self.roles.label is not None
        kinds = list(self.kinds)
        kinds[self.roles.label] = WORD
        return replace(self, kinds=tuple(kinds))

    def _chunk(self, rows: _Rows) -> Chunk:
        """What was read."""
        weight, levels = None if self.roles.weight is None else rows.weight.filled, {}
        for column, (_, kind) in self.encodes.items():
            levels[column], numbers = rows.levels.get(column, LevelTable()).finish(kind)
            rows.x.filled[:, column] = numbers[rows.x.filled[:, column].astype(np.int64)]
        words = tuple(rows.words) if self._labels_are_words else None
        return Chunk(rows.x.filled, rows.y.filled, weight, words, levels)

    def _read_block(self, block: Block, out: _Rows) -> None:
        fault, offset, column = self._parse(block, out)
        if fault != codes.FINE and not self.returns and (mended := with_newlines(block)):
            replace(self, returns=True)._read_block(mended, out)
        elif fault != codes.FINE:
            self._explain(fault, block.text, offset, block.position, column)

    def _parse(self, block: Block, out: _Rows) -> tuple[int, int, int]:
        """Add the rows of a block to ``out`` or, if there is a fault, tell the first one, its byte and its column."""
        from .kernels.tables import read_csv

        text, stop, _, progress = block
        feature_of = {column: feature for feature, (column, _) in enumerate(self._features)}
        most, texts = stop // self.columns + 1, self._texts  # a field takes a byte at least: the one that ends it
        slots, capacity, forms = self._slots, HARD_NUMBERS, (self.multiline, self.kinds[0] == WORD)
        numbers = text
        if self.comma:
            numbers = np.frombuffer(text[:stop].tobytes().translate(AS_POINT), np.uint8)
        x, y, weight = (array.room(most, progress) for array in (out.x, out.y, out.weight))
        spans = np.empty((len(texts), most, 2), np.int64)
        while True:
            hard = np.empty((capacity, 4), np.int64)
            rows, count, fault, offset, column = read_csv(
                numbers, 0, stop, self.delimiter, slots, self._keep, *forms, x, y, weight, spans, hard
            )
            if count <= capacity:
                break
            capacity = count
        if self.roles.label is None:
            y[:rows] = 0
        faults = [] if fault == codes.FINE else [(offset, fault, column)]
        faults += self._settle(numbers, hard[:count].tolist(), slots, x, y, weight)
        for which, column in enumerate(texts):
            if self.kinds[column] in KINDS:
                feature = feature_of[column]
                x[:rows, feature] = out.levels.setdefault(feature, LevelTable()).add(text, spans[which, :rows])
            else:
                faults += self._fill(text, column, spans[which, :rows], x[:rows], y[:rows], out.words)
        if faults:
            offset, fault, column = min(faults)
            return fault, offset, column
        for array in (out.x, out.y, *[out.weight] * (self.roles.weight is not None)):
            array.keep(rows)
        return codes.FINE, 0, 0

    def _settle(
        self, text: Array, hard: list[list[int]], slots: Array, x: Array, y: Array, weight: Array
    ) -> list[tuple[int, int, int]]:
        """Let Python convert the numbers of which the kernel could not tell the value; the first one too large."""
        for begin, end, row, slot in hard:
            value = float(text[begin:end].tobytes().strip(b'"'))
            target = {codes.LABEL: y, codes.WEIGHT: weight}.get(slot)
            with np.errstate(over="ignore"):
                if target is None:
                    x[row, slot] = value
                    value = x[row, slot]
                else:
                    target[row] = value
            if np.isinf(value):
                return [(begin, codes.TOO_LARGE, int(np.flatnonzero(slots == slot)[0]))]
        return []

    def _fill(
        self, text: Array, column: int, spans: Array, x: Array, y: Array, words: dict[str, int]
    ) -> list[tuple[int, int, int]]:
        """Read the fields of a column of text into x or y; the first fault."""
        from .kernels.dates import read_booleans, read_dates, see_order

        is_label = column == self.roles.label
        if self.kinds[column] == EMPTY:
            found = (span for span in spans[spans[:, 1] > spans[:, 0]] if text[slice(*span)].tobytes().strip(b' "\r\t'))
            return [(int(span[0]), codes.NOT_EMPTY, column) for span in found][:1]
        if self.kinds[column] == WORD:
            row, fault = self._read_words(text, spans, y, words)
            return [(int(spans[row, 0]), fault, column)] if fault else []
        keep = bool(self._keep & (codes.KEEP_LABEL if is_label else codes.KEEP_FEATURES))
        parts = self._parts(column)
        out = np.empty((len(spans), 1 if is_label else len(parts)))
        if self.kinds[column] == BOOLEAN:
            row, fault = read_booleans(text, spans, keep, out)
        elif self.orders[column] == codes.SEE_ORDER:
            row, fault = 0, codes.FINE
            see_order(text, spans, out)
        else:
            assert self.orders[column] != codes.ASK_ORDER, "the order of day and month is settled before"
            row, fault = read_dates(text, spans, self.orders[column], len(parts) > 1, keep, out)
        if is_label:
            y[:] = out[:, 0]
        for feature, (of, part) in enumerate(self._features):
            if of == column:
                x[:, feature] = out[:, parts.index(part)]
        return [(int(spans[row, 0]), fault, column)] if fault else []

    def _read_words(self, text: Array, spans: Array, y: Array, words: dict[str, int]) -> tuple[int, int]:
        """Write the indices of words in ``words``, which grow, into ``y``; row and kind of the first fault.

        A number is the same word however it is written; -1 stands for a word that is not there.
        """
        raw, indices = text.tobytes(), dict[bytes, int]()
        for row, (start, stop) in enumerate(spans.tolist()):
            field = raw[start:stop]
            index = indices.get(field)
            if index is None:
                word = _plain(decode(field))
                fault = codes.NO_NUMBER if INFINITE.fullmatch(word) else codes.FINE
                if word in MISSING and not self._keep & codes.KEEP_LABEL:
                    fault = codes.MISSING
                number = word.replace(",", ".") if self.comma and "." not in word else word
                if DECIMAL.fullmatch(number):
                    word = number_word(number)
                    fault = codes.TOO_LARGE if np.isinf(float(number)) else fault
                if fault:
                    return row, fault
                index = indices[field] = -1 if word in MISSING else words.setdefault(word, len(words))
            y[row] = index
        return 0, codes.FINE

    def _explain(self, fault: int, text: Array, offset: int, position: int, column: int) -> None:
        """Raise the DataError about ``fault`` in ``column``, at byte ``offset`` of ``text``, itself at ``position``."""
        name = self.names[column] if self.names is not None and column < self.columns else ""
        where = f", column {name} (number {column}, counted from 0)" if name else f", column {column} (counted from 0)"
        found = field_at(text, offset, b" \t" if self.delimiter == codes.SPACE else bytes([self.delimiter]))
        label, weight = column == self.roles.label, column == self.roles.weight
        if (
            fault == codes.NO_NUMBER
            and label
            and not self._labels_are_words
            and not INFINITE.fullmatch(found.strip("'\""))
        ):
            raise _WordAsLabel
        if fault == codes.OPEN_QUOTE and not self.multiline:
            line = self.line_of(position + offset)
            raise Unsplittable(f"{self.path}: line {line}{where}: a quote begins here that this line does not close")
        fill = ADVICE if weight else LABEL_ADVICE if label else FILL_ADVICE
        advice = self._advice(found, column) if fault == codes.NO_NUMBER else ADVICE
        message = {
            codes.EMPTY: f"{where}: the field is empty; {fill}",
            codes.MISSING: f"{where}: {found} stands for a value that is not there; {fill}{CLASS_ADVICE * label}",
            codes.NO_NUMBER: f"{where}: {found} is no finite number; {advice}",
            codes.FEWER: f" has {column} fields, not the first line's {self.columns}; {LINES_ADVICE}",
            codes.MORE: f" has more than the {self.columns} fields of the first line; {LINES_ADVICE}",
            codes.NEGATIVE: f"{where}: {found} is a weight below 0; weights are 0 or more",
            codes.TOO_LARGE: f"{where}: {found} is beyond the range of {self.dtype}; mend or remove the line",
            codes.OPEN_QUOTE: f"{where}: the quote that begins here is not closed; mend the line",
            codes.HASHED: f": whether {found} begins a comment or a row is unclear, for the line has as many fields"
            " as a row: put the field in quotes, or remove the line",
            codes.NO_BOOLEAN: f"{where}: {found} is neither true nor false, as the first lines are; mend the line",
            codes.NO_DATE: f"{where}: {found} is no date{self._date_form(column)}; mend the line, or drop the column",
            codes.NOT_EMPTY: f"{where}: {found} stands in a column that is empty in the first lines, without a name:"
            " mend the line, or name the column in the first line",
        }[fault]
        self.fail(position + offset, message)

    def _date_form(self, column: int) -> str:
        """How dates of a column are written, in words."""
        order = self.orders[column] if column < self.columns else codes.NO_ORDER
        if order == codes.NO_ORDER:
            return " as 2020-12-31 or 2020-12-31T23:59:59Z"
        form, other = "month/day/year", "--day-first"
        if order == codes.DAY_FIRST:
            form, other = "day/month/year", "--month-first"
        return f", {form}, as the column's dates are read ({other} says otherwise)"

    def _advice(self, found: str, column: int) -> str:
        """What can be done about a field that is no number."""
        if column in (self.roles.weight, self.roles.label):
            return ADVICE
        if re.fullmatch(r"'[-+]?\d*,\d+'", found):
            return "numbers are written with a decimal point in all lines, or with a comma in the first ones too"
        as_category = f"take it as categories by {self.drop([column]).replace('--drop', '--categorical')}"
        return f"{ADVICE}, leave the column out by {self.drop([column])}, or {as_category}"


def _plain(field: str) -> str:
    """A field without blanks and quotes around it, and without a comment behind a number."""
    word = field.strip()
    if word.startswith('"'):
        end = word.rfind('"')
        return word[1:end].replace('""', '"').strip() if end else word
    return re.sub(r"^([-+.\deE]+)\s+#.*", r"\1", word, flags=re.S)
