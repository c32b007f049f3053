"""Columns of Arrow tables as numbers: their types, parts and values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...errors import DataError
from ..array_file import MISSING_ADVICE
from ..checks import first_not_finite
from ..labels import TRUTH_WORDS
from . import dates, parquet_vectors
from .kinds import label_word
from .levels import KINDS, LevelTable

Array = Any

EXACT_DIGITS = 15  # decimals of so many digits, and powers of ten up to 10^22, are exact in float64


@dataclass(frozen=True)
class ArrowColumn:
    """A column, and what it becomes.

    Attributes:
        name: of the column.
        kind: ``numbers``, ``decimal``, ``dates``, ``list`` (of equally many numbers), ``vector`` (of Spark's, see
            `parquet_vectors`), ``words``, or ``other``; or one of `levels`.
        type: as Arrow calls it, for messages.
        dtype: in which its values are held; of words the numbers that stand for them.
        parts: names of the features it makes, one or more.
        how: what dates become; see `columns.Columns.dates`.
        digits: of decimals: behind the point.
    """

    name: str
    kind: str
    type: str
    dtype: np.dtype
    parts: tuple[str, ...]
    how: str = "refuse"
    digits: int = 0

    @property
    def words(self) -> tuple[str, ...] | None:
        """What the numbers of a label stand for, as far as is known before it is read; None: for themselves."""
        if self.kind == "words":
            return ()
        return TRUTH_WORDS if self.type == "bool" else None

    def advice(self) -> str:
        """What can be done about a column that is no feature; nothing where it is one."""
        if self.kind == "words":
            return "store plain numbers, take it as categories by --categorical, or leave it out"
        if self.kind == "dates" and self.how == "refuse":
            return "turn dates into numbers with --dates seconds or --dates calendar, or leave it out"
        return "leave it out" if self.kind == "other" else ""

    def check_label(self, path: str) -> None:
        """Raise a DataError unless the column can be the label."""
        where = f"{path}: column {self.name} is of type {self.type}"
        if self.kind == "dates" and self.how == "seconds":
            return
        if self.kind in ("dates", "list", "vector", "other"):
            raise DataError(f"{where}, which is no label; name another column with --label")

    def check_weight(self, path: str) -> None:
        """Raise a DataError unless the column can hold weights."""
        if self.kind not in ("numbers", "decimal"):
            raise DataError(
                f"{path}: column {self.name} is of type {self.type}, which is no number; name another with --weight"
            )

    def values(self, path: str, column: Any, first: int, keep: bool) -> Array:
        """The checked numbers, shape (rows, parts), of ``column``, whose first row is row ``first`` of the file.

        ``keep`` hands out NaN for what is missing, and else raises a DataError.
        """
        if column.null_count and not keep:
            row = first + int(np.flatnonzero(column.is_null().to_numpy())[0])
            raise DataError(
                f"{path}: column {self.name} is empty (null) in row {row} (counted from 0); {MISSING_ADVICE}"
            )
        array = column.combine_chunks()
        if self.kind == "list" and self.type.startswith(("list<", "large_list<")):
            array = parquet_vectors.equal_lists(path, self.name, array, len(self.parts), first)
        values = self._numbers(array)
        bad = first_not_finite(values, keep)
        if bad is not None:
            row, part, value = bad
            advice = MISSING_ADVICE if np.isnan(value) else "mend or remove that row"
            name = self.parts[part]
            raise DataError(f"{path}: column {name} holds {value} in row {first + row} (counted from 0); {advice}")
        return values

    def _numbers(self, array: Any) -> Array:
        import pyarrow as arrow
        import pyarrow.compute as compute

        if isinstance(array, arrow.ChunkedArray):  # as combine_chunks of no rows gives
            array = array.chunk(0) if array.num_chunks else arrow.array([], array.type)
        if isinstance(array, arrow.DictionaryArray):
            array = array.dictionary_decode()
        if self.kind == "list":
            return self._lists(array)
        if self.kind == "decimal":
            return _decimals(array, self.digits)[:, None]
        if self.kind == "dates":
            return dates.numbers(array.to_numpy(zero_copy_only=False), self.how)
        if arrow.types.is_boolean(array.type):
            array = compute.cast(array, arrow.uint8())
        if array.null_count:
            array = compute.cast(array, arrow.float64(), safe=False)  # with NaN for null
        return array.to_numpy(zero_copy_only=False)[:, None]

    def _lists(self, array: Any) -> Array:
        width = len(self.parts)
        inner = array.values.slice(array.offset * width, len(array) * width)
        values = ArrowColumn(self.name, "numbers", "", self.dtype, ("",))._numbers(inner).reshape(-1, width)
        if array.null_count:
            values = values.astype(np.float64)
            values[array.is_null().to_numpy(zero_copy_only=False)] = np.nan
        return values

    @property
    def has_levels(self) -> bool:
        """Whether values are levels, see `levels`."""
        return self.kind in KINDS

    def as_levels(self, kind: str) -> ArrowColumn:
        """The same column of levels of this ``kind``."""
        return replace(self, kind=kind, dtype=np.dtype(np.float64), parts=(self.name,))

    def check_levels(self, path: str) -> None:
        """Raise a DataError unless the column can hold categories or documents."""
        if self.kind in ("list", "other"):
            raise DataError(f"{path}: column {self.name} is of type {self.type}, which holds no categories and no text")

    def level_numbers(self, column: Any, table: LevelTable) -> Array:
        """Numbers of the values in ``column`` as of ``table``, to which new ones are added; -1 where missing."""
        import pyarrow as arrow
        import pyarrow.compute as compute

        array = column.combine_chunks()
        if isinstance(array, arrow.ChunkedArray):
            array = array.chunk(0) if array.num_chunks else arrow.array([], array.type)
        if not isinstance(array, arrow.DictionaryArray):
            array = array.dictionary_encode()
        values = array.dictionary
        if not arrow.types.is_large_binary(values.type):
            if not arrow.types.is_binary(values.type):
                values = compute.cast(values, arrow.string())
            values = compute.cast(
                values.fill_null(b"" if arrow.types.is_binary(values.type) else ""), arrow.large_binary()
            )
        if not len(values):
            return np.full(len(array), -1)
        _, offsets, store = values.buffers()
        ends = np.frombuffer(offsets, np.int64)[values.offset : values.offset + len(values) + 1]
        text = np.frombuffer(store, np.uint8) if store is not None and store.size else np.zeros(1, np.uint8)
        numbers = np.append(table.add(text, np.stack([ends[:-1], ends[1:]], axis=1)), -1)
        return numbers[array.indices.fill_null(len(values)).to_numpy(zero_copy_only=False)]

    def word_numbers(self, path: str, column: Any, first: int, keep: bool, words: dict[str, int]) -> Array:
        """Numbers of the words in ``column``, to which ``words`` are added that it does not have yet."""
        import pyarrow as arrow

        if column.null_count and not keep:
            self.values(path, column, first, keep)  # raises
        array = column.combine_chunks()
        if isinstance(array, arrow.ChunkedArray):
            array = array.chunk(0) if array.num_chunks else arrow.array([], array.type)
        if not isinstance(array, arrow.DictionaryArray):
            array = array.dictionary_encode()
        numbers = np.empty(len(array.dictionary) + 1)
        numbers[-1] = np.nan
        indices = array.indices.fill_null(len(array.dictionary)).to_numpy(zero_copy_only=False)
        for index in np.unique(indices).tolist():
            if index < len(array.dictionary):
                row = first + int(np.argmax(indices == index))
                where = f"column {self.name}, row {row} (counted from 0)"
                text = label_word(word(array.dictionary[index].as_py()), keep, path, where)
                numbers[index] = np.nan if text is None else words.setdefault(text, len(words))
        return numbers[indices]


def word(value: Any) -> str:
    """A value of a column of words as text; empty where it is missing."""
    if value is None:
        return ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def describe(field: Any, how: str, width: Callable[[str], int] | None = None) -> ArrowColumn:
    """What the column ``field`` of a schema is; ``width(name)`` tells how long the lists of a column are."""
    import pyarrow.types as kinds

    name, type_ = field.name, field.type
    whole: dict[str, Any] = {"name": name, "type": str(type_), "parts": (name,)}
    if kinds.is_dictionary(type_):
        if _is_word(type_.value_type):
            return ArrowColumn(kind="words", dtype=np.dtype(np.float64), **whole)
        type_ = type_.value_type
    if _is_word(type_):
        return ArrowColumn(kind="words", dtype=np.dtype(np.float64), **whole)
    if kinds.is_boolean(type_):
        return ArrowColumn(kind="numbers", dtype=np.dtype(np.uint8), **whole)
    if kinds.is_integer(type_) or kinds.is_floating(type_):
        return ArrowColumn(kind="numbers", dtype=np.dtype(type_.to_pandas_dtype()), **whole)
    if kinds.is_null(type_):
        return ArrowColumn(kind="numbers", dtype=np.dtype(np.float64), **whole)
    if kinds.is_decimal(type_):
        return ArrowColumn(kind="decimal", dtype=np.dtype(np.float64), digits=type_.scale, **whole)
    if kinds.is_date(type_) or kinds.is_timestamp(type_):
        parts = (name,) if how == "refuse" else dates.column_names(name, how)
        return ArrowColumn(kind="dates", dtype=np.dtype(np.float64), how=how, **(whole | {"parts": parts}))
    return _of_several(name, type_, width)


def _of_several(name: str, type_: Any, width: Callable[[str], int] | None) -> ArrowColumn:
    """What a column of this type is whose values are no single numbers."""
    import pyarrow.types as kinds

    whole: dict[str, Any] = {"name": name, "type": str(type_), "parts": (name,)}
    size = 0
    if kinds.is_fixed_size_list(type_):
        size = type_.list_size
    elif width is not None and parquet_vectors.is_list_of_numbers(type_):
        size = width(name)
    inner: Any = type_.value_type if size else None
    if size and (kinds.is_integer(inner) or kinds.is_floating(inner) or kinds.is_boolean(inner)):
        held = np.dtype(np.uint8 if kinds.is_boolean(inner) else inner.to_pandas_dtype())
        parts = tuple(f"{name}.{i}" for i in range(size))
        return ArrowColumn(kind="list", dtype=held, **(whole | {"parts": parts}))
    kind = "vector" if parquet_vectors.is_vector(type_) else "other"
    return ArrowColumn(kind=kind, dtype=np.dtype(np.float64), **whole)


def _is_word(type_: Any) -> bool:
    import pyarrow.types as kinds

    view = getattr(kinds, "is_string_view", lambda _: False)
    tests = (kinds.is_string, kinds.is_large_string, kinds.is_binary, kinds.is_large_binary, view)
    return any(test(type_) for test in tests)


def _decimals(array: Any, digits: int) -> Array:
    """Decimals rounded to float64, as text with the same digits would be; Arrow's own conversion may be off by a bit.

    An integer below 2^53 divided by a power of ten that is exact is rounded once.
    """
    import pyarrow as arrow
    import pyarrow.compute as compute

    gone = array.is_null().to_numpy(zero_copy_only=False)
    if array.type.bit_width < 128:
        array = compute.cast(array, arrow.decimal128(array.type.precision, digits))
    if array.type.bit_width == 128 and array.type.precision <= EXACT_DIGITS and 0 <= digits <= 22:
        words = np.frombuffer(array.buffers()[1], np.int64)
        start = 2 * array.offset
        values = words[start : start + 2 * len(array) : 2].astype(np.float64) / 10.0**digits
    else:
        values = np.array([np.nan if text is None else float(text) for text in array.cast("string").to_pylist()])
    values = np.asarray(values, np.float64)
    values[gone] = np.nan
    return values
