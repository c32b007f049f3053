"""The first lines of a text file, as rows of fields."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from .text import TextFile, has_lone_return

LINES = 20  # of data that are looked at
MOST_LINES = 1000  # where these do not tell what the file is
LONGEST = 1 << 28  # bytes of a line that may be text
WINDOW = 1 << 18  # bytes that are looked at first
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
WIDE_MARKS = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
DELIMITERS = "\t;,|"
# a quoted field and what opens it: the line's begin or a delimiter, and blanks; "" within stands for one quote
NO_COMMENT = re.compile(rb"#(?:(?:N/A|NA)\s*([\t;,| ]|\Z)|(?:[0-9a-fA-F]{6}|[0-9a-fA-F]{8})\s*[\t;,|])")  # a colour
QUOTED = re.compile(rb'(?:^|[\t;,| ])\s*"(?:[^"]|"")*("|\Z)')


class Line(NamedTuple):
    """A line that is neither blank nor a comment; with line ends in it where they stand in quotes.

    Attributes:
        text: without its end.
        end: the byte of the file behind it.
        number: from 1.
    """

    text: bytes
    end: int
    number: int


class Field(NamedTuple):
    """A field of a line.

    Attributes:
        text: without quotes and blanks around it.
        quoted: whether it stood in quotes.
    """

    text: str
    quoted: bool


def first_bytes(file: TextFile, size: int) -> tuple[bytes, bool]:
    """At most ``size`` bytes of the text, and whether these are all."""
    parts: list[bytes] = []
    held = 0
    with file.open() as raw:
        while held <= size:
            part = raw.read(min(size + 1 - held, 1 << 20))
            if not part:
                return b"".join(parts), True
            parts.append(part)
            held += len(part)
            if file.end is not None and held >= file.end and size >= file.end:
                return b"".join(parts)[: file.end], True
    return b"".join(parts)[:size], False


def first_lines(file: TextFile, lines: int) -> tuple[list[Line], bool, bool] | None:
    """The first ``lines`` lines of data, whether carriage returns alone end lines, and whether these are all.

    None where there is a zero byte, as in no text, or where a line is longer than any text's.
    """
    size = WINDOW
    while True:
        window, whole = first_bytes(file, size)
        if b"\0" in window:
            return None
        returns = has_lone_return(window)
        found = list(islice(split(window, whole, returns, file.begin), lines + 1))
        enough = len(found) >= lines or (len(found) > 2 and size >= 64 * WINDOW)
        if whole or enough:
            return found[:lines], returns, whole and len(found) <= lines
        if size >= LONGEST and len(found) < 2:
            return None
        size *= 4


def split(window: bytes, whole: bool, returns: bool, begin: int = 0) -> Iterator[Line]:
    """The lines from byte ``begin`` on in the first bytes of a file, one by one; the last one without an end counts if
    they are the ``whole`` file.
    """
    ends = [match.end() for match in re.finditer(rb"\r\n|\r|\n" if returns else rb"\n", window)]
    if whole and (not ends or ends[-1] < len(window)):
        ends.append(len(window))
    at = bisect_right(ends, begin)
    while at < len(ends):
        first, text = at, window[begin : ends[at]]
        if b'"' in text and not _is_skipped(text):
            opened = _is_open(text)
            while opened and at + 1 < len(ends):
                at += 1
                text = window[begin : ends[at]]
                opened = b'"' not in window[ends[at - 1] : ends[at]] or _is_open(text)
            if opened:  # not closed in sight: this quote stands for itself
                at, text = first, window[begin : ends[first]]
        if not _is_skipped(text):
            yield Line(text.removeprefix(BYTE_ORDER_MARK) if not begin else text, ends[at], first + 1)
        begin, at = ends[at], at + 1


def _is_skipped(text: bytes) -> bool:
    """Whether a line is blank or a comment."""
    bare = text.removeprefix(BYTE_ORDER_MARK).strip()
    return not bare or (bare.startswith(b"#") and not NO_COMMENT.match(bare))


def _is_open(text: bytes) -> bool:
    """Whether a quote that opens a field is not closed."""
    return any(match[1] == b"" for match in QUOTED.finditer(text.rstrip(b"\r\n")))


def delimiter_of(lines: list[Line]) -> str:
    """What parts the fields: a tab, semicolon, comma or bar outside of quotes in the first two lines, else blanks.

    A mark that stands in the first line alone is taken where no other stands in both.
    """
    bare = [re.sub(r'"[^"]*"', '""', decode(line.text)).strip("\r\n") for line in lines[:2]]
    for mark in DELIMITERS:
        if all(mark in line for line in bare):
            return mark
    if len(bare) > 1 and len(bare[1].split()) > 1 and len(bare[1].split()) == len(bare[0].split()):
        return " "
    return next((mark for mark in DELIMITERS if mark in bare[0]), " ")


def decode(text: bytes) -> str:
    """Bytes as UTF-8 or, where they are none, as Latin-1, which all bytes are."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")


def fields_of(line: Line, delimiter: str) -> list[Field]:
    """The fields of ``line``, without a comment behind them."""
    text = decode(line.text).strip("\r\n")
    if '"' not in text and "#" not in text:
        return [Field(field.strip(), False) for field in text.split(None if delimiter == " " else delimiter)]
    if delimiter == " ":
        text, end = text.strip(), r"\s+"
    else:
        end = re.escape(delimiter)
    inner, blank = (r"\S" if delimiter == " " else f"[^{end}]"), (" " if delimiter == "\t" else r"\s")
    pattern = re.compile(rf'{blank}*"((?:[^"]|"")*)"{blank}*(?={end}|\Z)|({inner}*)')
    found, start, separator = [], 0, re.compile(end)
    while True:
        match = pattern.match(text, start)
        assert match is not None
        quoted = match[1] is not None
        found.append(Field(match[1].replace('""', '"') if quoted else match[2].strip(), quoted))
        start = match.end()
        behind = separator.match(text, start)
        if behind is None:
            break
        start = behind.end()
    return _without_comment(found, delimiter)


def _without_comment(found: list[Field], delimiter: str) -> list[Field]:
    """The fields before a ``#`` that stands behind a number and a blank."""
    for at, field in enumerate(found):
        if delimiter == " " and at and not field.quoted and field.text.startswith("#") and field.text[:3] != "#N/":
            return found[:at]
        cut = re.fullmatch(r"([-+.\deE]+)\s+#.*", field.text, re.S)
        if cut and not field.quoted:
            return [*found[:at], Field(cut[1], False)]
    return found
