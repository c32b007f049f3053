"""Levels: the distinct values of a column of categories or documents, as bytes, in the order in which they were met."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ...backend import HOST
from .kinds import DECIMAL, MISSING, is_boolean
from .lines import decode

Array = Any
BLOCK, BLOCK_BYTES = 1 << 13, 1 << 17  # strings that are copied at a time, and their bytes: they stay in the cache
WHOLE = re.compile(r"[-+]?\d+")
ROOM = 1 << 10  # levels and bytes for which there is room at first
CATEGORY, GUESSED, TEXT = KINDS = ("category", "guess", "text")  # of columns of levels; GUESSED: none has asked


class Levels(NamedTuple):
    """Distinct values of a column, in UTF-8; local.

    Attributes:
        store: their bytes, one value behind another, uint8.
        ends: the byte behind each, shape (levels,), int64.
    """

    store: Array
    ends: Array

    @classmethod
    def of(cls, words: Sequence[str]) -> Levels:
        """These ``words``, none of which is there twice."""
        parts = [word.encode() for word in words]
        ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        return cls(np.frombuffer(b"".join(parts) or b"\0", np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def spans(self) -> Array:
        """First byte and end of each, int64, shape (levels, 2)."""
        return np.stack([np.concatenate([[0], self.ends[:-1]]), self.ends], axis=1) if len(self) else _NO_SPANS

    def words(self, which: Array | None = None) -> list[str]:
        """All of them, or those whose numbers are in ``which``, as text."""
        raw, spans = self.store.tobytes(), self.spans if which is None else self.spans[which]
        return [decode(raw[start:stop]) for start, stop in spans.tolist()]

    def hashes(self) -> tuple[Array, Array]:
        """Two independent hashes of each, uint32, shape (levels,); see `kernels.levels.murmur3`."""
        from .kernels.levels import hash_levels

        first, second = np.empty(len(self), np.uint32), np.empty(len(self), np.uint32)
        hash_levels(HOST.read_only(self.store), HOST.read_only(self.ends), first, second)
        return first, second


_NO_SPANS = np.empty((0, 2), np.int64)


class LevelTable:
    """Collects the levels of a column, block by block of text."""

    def __init__(self) -> None:
        self._store, self._ends = np.empty(ROOM, np.uint8), np.empty(ROOM, np.int64)
        self._slots = np.zeros(4 * ROOM, np.int32)
        self._state = np.zeros(2, np.int64)

    def add(self, text: Array, spans: Array) -> Array:
        """The levels of the fields at ``spans``, int64, shape (rows, 2), of ``text``, uint8; int64, shape (rows,)."""
        from .kernels.levels import fill_slots, index_fields

        text, spans = HOST.read_only(np.ascontiguousarray(text)), HOST.read_only(np.ascontiguousarray(spans))
        out, row = np.empty(len(spans), np.int64), 0
        while True:
            row = index_fields(text, spans, row, self._state, self._store, self._ends, self._slots, out)
            if row == len(spans):
                return out
            count, used = self._state.tolist()
            length = int(spans[row, 1] - spans[row, 0])
            self._store = _grown(self._store, used, length)
            if count == len(self._ends):
                self._ends = _grown(self._ends, count, 1)
                self._slots = np.zeros(4 * len(self._ends), np.int32)
                fill_slots(self._store, self._ends, count, self._slots)

    @property
    def levels(self) -> Levels:
        """Those met so far; views."""
        count, used = self._state.tolist()
        return Levels(self._store[: max(1, used)], self._ends[:count])

    def finish(self, kind: str) -> tuple[Levels, Array]:
        """The levels by their words, and for each one that was met the level that it is, int64; -1 where it is missing.

        A number is the same level however it is written, as True and TRUE are; documents (of kind TEXT) stay as they
        are, but for quotes.
        """
        from .kernels.levels import mark_unusual

        met = self.levels
        unusual = np.empty(len(met), np.bool_)
        mark_unusual(HOST.read_only(met.store), HOST.read_only(met.ends), unusual)
        which, spans = np.flatnonzero(unusual), met.spans
        words = [level_word(word, kind) for word in met.words(which)]
        appended = Levels.of([word or "" for word in words])
        spans[which] = appended.spans + len(met.store)
        table = LevelTable()
        known = np.ones(len(met), bool)
        known[which[[word is None for word in words]]] = False
        numbers = np.full(len(met) + 1, -1)  # the last one for values that are missing already
        numbers[:-1][known] = table.add(np.concatenate([met.store, appended.store]), spans[known])
        return table.levels, numbers


def _grown(array: Array, used: int, more: int) -> Array:
    """``array`` with room for ``more`` entries behind those that are ``used``, if there is none."""
    if used + more <= len(array):
        return array
    larger = np.empty(max(2 * len(array), used + more), array.dtype)
    larger[:used] = array[:used]
    return larger


def merged(parts: Sequence[tuple[Levels, Array]]) -> tuple[Levels, list[Array]]:
    """The levels of all ``parts`` of a column, and the numbers of each, int64 and -1 where missing, among them."""
    table, numbers = LevelTable(), []
    for levels, own in parts:
        numbers.append(np.append(table.add(levels.store, levels.spans), -1)[own.astype(np.int64)])
    return table.levels, numbers


def level_word(text: str, kind: str = CATEGORY) -> str | None:
    """What a field of a category is called, the same in every format; None where it stands for a missing value."""
    word = text.replace('""', '"').strip()
    if kind == TEXT:
        return word or None
    if word in MISSING:
        return None
    if is_boolean(word):
        return word.capitalize()
    number = re.sub(r"^([-+.\deE]+)\s+#.*", r"\1", word, flags=re.S)
    return number_word(number) if DECIMAL.fullmatch(number) else word


def number_word(text: str) -> str:
    """What a number is called among words: 1 for 1.0; as it is written where it is beyond float64.

    Whole numbers keep all digits: codes of 64 bits that are one in float64 stay two.
    """
    value = float(text)
    if np.isinf(value):
        return text
    if WHOLE.fullmatch(text):
        return str(int(text))
    return str(int(value)) if value.is_integer() else repr(value)


def order_of(word: str) -> tuple[bool, float, str]:
    """Key by which levels are sorted: numbers by value, before words in lexicographical order."""
    number = bool(DECIMAL.fullmatch(word))
    return not number, float(word) if number else 0.0, word


def levels_of_values(values: Any, kind: str = CATEGORY) -> tuple[Levels, Array]:
    """The levels of an array of words, numbers or dates, or of a list, and the number of each value among them.

    Values are called as in a Parquet file of this type.  None, NaN, NA and what stands for a missing value in files
    have the number -1.
    """
    array = np.asarray(values)
    if array.dtype.kind == "U" and array.size:
        return _of_fixed_width(array, kind)
    if array.dtype.kind == "O" and kind != TEXT:
        found = _of_strings(array, kind)
        if found is not None:
            return found
    return _of_words(_words_of(array), kind)


def _words_of(array: Array) -> list[Any]:
    """What values of ``array``, which holds no fixed-width text, are called in files."""
    if array.dtype.kind == "M":
        known = ~np.isnat(array)
        return np.where(known, np.char.replace(np.datetime_as_string(array), "T", " "), "").tolist()
    if array.dtype in (np.float16, np.float32):
        return array.astype(str).tolist()  # as few digits as tell it from others of its type
    return array.tolist()


def _of_words(words: list[Any], kind: str) -> tuple[Levels, Array]:
    """`levels_of_values` of a list."""
    try:
        raw = "\n".join(words)
    except TypeError:  # they are not all text
        words = [_spelled(value) for value in words]
        raw = "\n".join(words)
    if raw.count("\n") != max(0, len(words) - 1):  # some value holds the mark
        lengths = [len(word.encode()) for word in words]
        text, ends = "".join(words).encode(), np.cumsum(lengths, dtype=np.int64)
        spans = np.stack([ends - lengths, ends], axis=1)
    else:
        text = raw.encode() + b"\n" * bool(words)
        ends = np.flatnonzero(np.frombuffer(text, np.uint8) == 10)
        spans = np.stack([np.concatenate([[0], ends[:-1] + 1]), ends], axis=1) if words else _NO_SPANS
    return _indexed(np.frombuffer(text or b"\0", np.uint8), spans, kind)


class _Addresses:
    """The addresses of an array's objects, for NumPy."""

    def __init__(self, array: Array) -> None:
        self.__array_interface__ = {
            "version": 3,
            "data": array.__array_interface__["data"],
            "shape": array.shape,
            "strides": array.strides,
            "typestr": np.dtype(np.intp).str,
        }


def _of_strings(array: Array, kind: str) -> tuple[Levels, Array] | None:
    """`levels_of_values` of an array of Python's strings, shape (rows,); None: it holds something else.

    A look-up in a dict or joining them would take two to three times as long.
    """
    from .kernels.strings import copy_strings

    table, met, row = LevelTable(), np.empty(len(array), np.int64), 0
    text, spans = np.empty(BLOCK_BYTES, np.uint8), np.empty((BLOCK, 2), np.int64)
    objects = np.asarray(_Addresses(array))
    while row < len(array):
        count = copy_strings(np.ascontiguousarray(objects[row : row + BLOCK]), text, spans)
        if count < 0:
            return None
        if count == 0:  # the next one is longer
            text = np.empty(2 * len(text), np.uint8)
        met[row : row + count] = table.add(text, spans[:count])
        row += count
    levels, numbers = table.finish(kind)
    return levels, numbers[met]


def _of_fixed_width(array: Array, kind: str) -> tuple[Levels, Array]:
    """`levels_of_values` of an array of text of a fixed width, U."""
    width = array.dtype.itemsize // 4
    points = np.ascontiguousarray(array).view(np.uint32).reshape(array.size, width)
    if points.max() > 127:
        return _of_words(array.tolist(), kind)
    text = points.astype(np.uint8).reshape(-1)
    starts = np.arange(array.size, dtype=np.int64) * width
    return _indexed(text, np.stack([starts, starts + width], axis=1), kind)  # zeros at the ends are left out


def _indexed(text: Array, spans: Array, kind: str) -> tuple[Levels, Array]:
    table = LevelTable()
    met = table.add(text, spans)
    levels, numbers = table.finish(kind)
    return levels, numbers[met]


def _spelled(value: Any) -> str:
    if isinstance(value, bytes):
        return decode(value)
    equal = value == value  # not of NaN; of NA of pandas it is neither true nor false
    if value is None or not isinstance(equal, bool | np.bool_) or not equal:
        return ""
    return value if isinstance(value, str) else str(value)
