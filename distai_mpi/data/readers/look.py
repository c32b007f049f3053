"""What kind of text a file holds, told by its first lines."""

from __future__ import annotations

import csv
import re
from typing import NamedTuple

import numpy as np

from ...errors import DataError
from .columns import Columns
from .csv_text import CsvFile
from .libsvm_text import LibsvmFile
from .text import TextFile

LINES = 20  # of data that are looked at
LONGEST = 1 << 28  # bytes of a line that may be text
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
ENTRY = re.compile(rb"\s*[-+.\deE]+(:\S+)?\s+(qid:\S+|\d+:[-+.\deE]+)(\s|$)")
DELIMITERS = b"\t;,"


class Line(NamedTuple):
    """A line that is neither blank nor a comment, and the byte of the file behind it."""

    text: bytes
    end: int


def open_text(path: str, packed: bool, columns: Columns, dtype: np.dtype) -> CsvFile | LibsvmFile | None:
    """The CSV or libsvm file at ``path``, compressed by gzip if ``packed``; None where it is no such text.

    Raises:
        DataError: it holds no rows, or a column that was asked for is not there.
    """
    lines = _first_lines(TextFile(path, packed, 0))
    if lines is None:
        return None
    if not lines:
        raise DataError(f"{path}: holds no rows, only blank lines and comments")
    if any(ENTRY.match(line.text) for line in lines):
        columns.refuse(path)
        return LibsvmFile(path, packed, _text_begin(lines), dtype)
    return _open_csv(path, packed, lines, columns, dtype)


def _text_begin(lines: list[Line]) -> int:
    """Where reading begins: behind a byte order mark in the first line."""
    return len(BYTE_ORDER_MARK) if lines[0].text.startswith(BYTE_ORDER_MARK) else 0


def _first_lines(file: TextFile) -> list[Line] | None:
    """The first lines of data; None where there is a zero byte, as in no text."""
    lines: list[Line] = []
    end = 0
    with file.open() as raw:
        while len(lines) < LINES:
            line = _read_line(raw, end)
            if line is None:
                return None
            if not line:
                break
            end += len(line)
            stripped = line.removeprefix(BYTE_ORDER_MARK).strip()
            if stripped and not stripped.startswith(b"#"):
                lines.append(Line(line, end))
    return lines


def _read_line(raw, start: int) -> bytes | None:
    """The line at ``start``, with its end; nothing at the end of the file, None where it cannot be text."""
    raw.seek(start)
    parts, length = [], 0
    while length < LONGEST:
        look = raw.read(1 << 16)
        stop = look.find(b"\n") + 1
        parts.append(look[:stop] if stop else look)
        length += len(parts[-1])
        if b"\0" in parts[-1]:
            return None
        if stop or not look:
            return b"".join(parts)
    return None


def _open_csv(path: str, packed: bool, lines: list[Line], columns: Columns, dtype: np.dtype) -> CsvFile | None:
    first = lines[0].text.removeprefix(BYTE_ORDER_MARK).decode("utf-8", "replace")
    delimiter = _delimiter(first)
    fields = _fields(first, delimiter)
    header = _is_header(fields)
    if header and len(lines) == 1 and delimiter != " " and len(fields) > 1:
        raise DataError(f"{path}: holds one line of words, as of a header, and no rows below it")
    if header and (
        len(lines) == 1 or not any(map(_is_number, _fields(lines[1].text.decode("utf-8", "replace"), delimiter)))
    ):
        return None  # words, and no number below
    names = tuple(fields) if header else None
    label, weight = columns.find(path, names, len(fields))
    unused: tuple[int, ...] = ()
    if not columns.wanted:
        unused = tuple(column for column in (label, weight) if column is not None)
        label = weight = None
    begin = lines[0].end if header else _text_begin(lines)
    return CsvFile(path, packed, begin, ord(delimiter), names, len(fields), label, weight, unused, dtype)


def _delimiter(line: str) -> str:
    """What parts the fields of ``line``: a tab, semicolon or comma outside of quotes, else blanks."""
    bare = re.sub('"[^"]*"', '""', line).strip("\r\n")
    for mark in DELIMITERS.decode():
        if mark in bare:
            return mark
    return " "


def _fields(line: str, delimiter: str) -> list[str]:
    """The fields of ``line``, without quotes and blanks around them."""
    text = line.strip() if delimiter == " " else line.strip("\r\n")
    rows = csv.reader(
        [re.sub(r"\s+", " ", text) if delimiter == " " else text], delimiter=delimiter, skipinitialspace=True
    )
    return [field.strip() for field in next(rows)]


def _is_header(fields: list[str]) -> bool:
    """Whether these are names: none is a number, or those that are name their own columns, as pandas writes it."""
    numbers = {column: field for column, field in enumerate(fields) if _is_number(field)}
    return len(numbers) < len(fields) and all(field == str(column) for column, field in numbers.items())


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True
