"""Documents one a line, ``label<TAB>text``: quotes, commas and number signs are parts of the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import DataError
from . import codes
from .chunk import Chunk
from .columns import Columns, Roles
from .levels import TEXT, Levels, LevelTable, level_word
from .lines import decode
from .text import Growing, TextFile

Array = Any
COLUMN, LABEL = "text", "label"  # what the two are called
WAY_OUT = "write LABEL<TAB>TEXT in each line"


@dataclass(frozen=True)
class DocumentLines(TextFile):
    """Lines ``label<TAB>text``; where labels are not wanted, text alone will do.  Blank lines are skipped.

    Attributes:
        options: what was said of the table.
        word_labels: whether labels are words; else they are numbers.
    """

    options: Columns
    word_labels: bool

    dtype = np.dtype(np.float64)
    features = 1
    feature_names = (COLUMN,)
    encoded = ((COLUMN, TEXT),)

    @property
    def encodes(self) -> dict[int, tuple[str, str]]:
        """See `chunk.ChunkedFile`."""
        return dict(enumerate(self.encoded))

    @property
    def roles(self) -> Roles:
        """The label and the text."""
        label = LABEL if self.options.wanted else None
        return Roles(None if label is None else 0, None, (1,), names=(COLUMN,), label_name=label)

    def empty(self) -> Chunk:
        """A chunk without rows."""
        return Chunk(np.empty((0, 1)), np.empty(0), None, () if self.word_labels else None, {0: Levels.of([])})

    def read(self, part: int, parts: int) -> Chunk:
        """Rows of the lines that begin in the ``part``-th of ``parts`` ranges of bytes."""
        x, y, table, words = Growing((), np.float64), Growing((), np.float64), LevelTable(), dict[str, int]()
        for text, stop, position, progress in self.blocks(part, parts):
            spans = self._lines(text[:stop])
            labels, documents = self._divided(text, spans, position)
            numbers = x.room(len(spans), progress)
            numbers[:] = table.add(text, documents)
            y.room(len(spans), progress)[:] = self._labels(text, labels, words, position)
            x.keep(len(spans))
            y.keep(len(spans))
        levels, place = table.finish(TEXT)
        rows = place[x.filled.astype(np.int64)].astype(np.float64)[:, None]
        names = tuple(words) if self.word_labels and self.options.wanted else None
        return Chunk(rows, y.filled, None, names, {0: levels})

    def _lines(self, text: Array) -> Array:
        """First byte and end of each line that is not empty, int64, shape (lines, 2)."""
        ends = np.flatnonzero(text == codes.NEWLINE)
        spans = np.stack([np.concatenate([[0], ends[:-1] + 1]), ends], axis=1) if ends.size else np.empty((0, 2), int)
        lengths = spans[:, 1] - spans[:, 0]
        bare = (lengths == 0) | ((lengths == 1) & (text[spans[:, 0]] == codes.RETURN))
        return spans[~bare]

    def _divided(self, text: Array, spans: Array, position: int) -> tuple[Array, Array]:
        """Spans of labels and of documents."""
        tabs = np.append(np.flatnonzero(text == codes.TAB), np.iinfo(np.int64).max)
        first = tabs[np.searchsorted(tabs, spans[:, 0])]
        lacking = first >= spans[:, 1]
        if self.options.wanted and lacking.any():
            at = position + int(spans[np.argmax(lacking), 0])
            self.fail(at, f": has no tab, and so no label; {WAY_OUT}")
        labels = np.stack([spans[:, 0], np.where(lacking, spans[:, 0], first)], axis=1)
        return labels, np.stack([np.where(lacking, spans[:, 0], first + 1), spans[:, 1]], axis=1)

    def _labels(self, text: Array, spans: Array, words: dict[str, int], position: int) -> Array:
        """Labels as numbers, or as numbers in ``words``, which grow."""
        if not self.options.wanted:
            return np.zeros(len(spans))
        table = LevelTable()
        met = table.add(text, spans)
        values = np.empty(len(table.levels))
        for number, field in enumerate(table.levels.words()):
            word = level_word(field)
            if word is None and not self.options.keeps_missing_labels:
                at = position + int(spans[np.argmax(met == number), 0])
                self.fail(at, f": {field!r} stands for a label that is not there; {WAY_OUT}")
            if self.word_labels:
                values[number] = -1 if word is None else words.setdefault(word, len(words))
                continue
            try:
                values[number] = np.nan if word is None else float(word)
            except ValueError:
                at = position + int(spans[np.argmax(met == number), 0])
                self.fail(at, f": the label {field!r} is no number, as those of the first lines are; {WAY_OUT}")
        return values[met]


def open_documents(file: TextFile, columns: Columns) -> DocumentLines:
    """The lines of ``file``, whose first ones tell whether labels are words.

    Raises:
        DataError: its lines have no tabs, or columns are named that it does not have.
    """
    with file.open() as opened:
        opened.seek(file.begin)
        lines = [line for line in opened.read(1 << 16).splitlines()[:100] if line.strip()]
    fields = [level_word(decode(line.split(b"\t")[0])) for line in lines]
    words = False
    for word in fields:
        try:
            float(word or 0)
        except ValueError:
            words = True
    if columns.holds != "rows" and columns.wanted:
        raise DataError(f"{file.path}: lines of --format text hold labels and text: give the file alone")
    for flag, spec, own in (("--label", columns.label, (LABEL, "0")), ("--text", columns.text, (COLUMN, "1"))):
        if spec is not None and spec not in own:
            raise DataError(
                f"{file.path}: {flag} {spec}: lines of --format text hold {LABEL} and {COLUMN}; leave it out"
            )
    for flag, spec in (
        ("--weight", columns.weight),
        ("--cross", columns.cross),
        ("--categorical", columns.categorical),
    ):
        if spec is not None and columns.encoded is None:
            raise DataError(f"{file.path}: {flag} {spec}: lines of --format text hold {LABEL} and {COLUMN} alone")
    known = (file.path, file.sequential, file.begin, columns, words)
    return DocumentLines(*known, returns=file.returns, end=file.end)
