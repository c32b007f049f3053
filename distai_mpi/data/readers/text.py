"""Text in lines, read by ranges of bytes: a rank reads the lines that begin in its range."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import IO, Any, NoReturn, Self

import numpy as np
from numpy.typing import DTypeLike

from ...errors import DataError
from . import codes
from .compressed import unpacked

Array = Any

BLOCK_BYTES = 4 << 20  # read and parsed at a time: what stays in cache
LOOK_BYTES = 64 << 10  # in which the end of a line is looked for
HARD_NUMBERS = 1024  # of a block that compiled code may leave to Python before it is asked again
SHOWN = 40  # characters of a field in a message


@dataclass(frozen=True)
class TextFile:
    """Lines of text in a file, perhaps compressed.

    A compressed file has no ranges of bytes to begin at: one rank reads it all, block by block.

    Attributes:
        path: the file.
        sequential: whether it is compressed.
        begin: first byte of the first line of data, in the uncompressed text.
        returns: whether a carriage return alone ends a line, as it did on the old Macintosh.
        end: the byte behind the last line of data, likewise; None: the text's end.
    """

    path: str
    sequential: bool
    begin: int
    returns: bool = field(default=False, kw_only=True)
    end: int | None = field(default=None, kw_only=True)

    @property
    def files(self) -> set[str]:
        """Paths of the files: one."""
        return {self.path}

    @property
    def scale(self) -> float:
        """What features are multiplied by: nothing."""
        return 1.0

    @property
    def target_dtype(self) -> np.dtype:
        """Type in which labels and targets are held."""
        return np.dtype(np.float64)

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The uncompressed text; damage raises a DataError."""
        with unpacked(self.path) if self.sequential else open(self.path, "rb", buffering=0) as file:
            yield file

    def blocks(
        self, part: int, parts: int, whole_lines: Callable[[Array, int], int] | None = None
    ) -> Iterator[tuple[Array, int, int]]:
        """Yield the lines that begin in the ``part``-th of ``parts`` ranges, about `BLOCK_BYTES` at a time.

        Each as ``(text, stop, position)``: whole lines in the first ``stop`` bytes of ``text``, uint8, the last
        one ended by a newline, and the position of the first one in the file.  Holds until the next is asked for.
        ``whole_lines(text, stop)`` tells up to where lines are whole, where a newline alone does not end one.
        """
        block_bytes = BLOCK_BYTES
        with self.open() as file:
            low, high = self.begin, self.end
            if not self.sequential:
                size = os.path.getsize(self.path) if self.end is None else self.end
                low, high = (
                    self._line_start(file, size, self.begin + (size - self.begin) * p // parts)
                    for p in (part, part + 1)
                )
            file.seek(low)
            buffer, held, position = bytearray(block_bytes + 1), 0, low
            while high is None or position + held < high:
                want = block_bytes if high is None else min(block_bytes, high - position - held)
                if held + want + 1 > len(buffer):
                    buffer = buffer[:held].ljust(2 * (held + want) + 1)  # a long line
                count = file.readinto(memoryview(buffer)[held : held + want])  # type: ignore[attr-defined]
                if not count and high is not None:
                    raise DataError(f"{self.path}: has become shorter while it was read; try again")
                if self.returns:
                    buffer[held : held + count] = buffer[held : held + count].replace(b"\r", b"\n")
                held += count
                last = not count if high is None else position + held == high
                if last and held and buffer[held - 1] != codes.NEWLINE:
                    buffer[held] = codes.NEWLINE
                    held += 1
                text = np.frombuffer(buffer, np.uint8)
                if last:
                    stop = held
                else:
                    stop = whole_lines(text, held) if whole_lines else buffer.rfind(b"\n", 0, held) + 1
                if stop:
                    yield text, stop, position
                if last:
                    return
                position += stop
                held -= stop
                buffer[:held] = buffer[stop : stop + held]

    def _line_start(self, file: IO[bytes], size: int, offset: int) -> int:
        """The first byte at or behind ``offset`` where a line begins; the end of the file where none does."""
        if offset <= self.begin:
            return self.begin
        offset -= 1
        while offset < size:
            file.seek(offset)
            look = file.read(LOOK_BYTES)
            if not look:
                break
            found = (look.replace(b"\r", b"\n") if self.returns else look).find(b"\n")
            if found >= 0:
                return offset + found + 1
            offset += len(look)
        return size

    def within(self, first: int, last: int | None) -> Self:
        """The same, of the lines from number ``first`` on, from 1, to ``last`` or, where it is None, the text's end.

        Raises:
            DataError: it has not so many lines.
        """
        begin, end = (line and self._end_of(line) for line in (first - 1, last))
        return replace(self, begin=max(self.begin, begin or 0), end=end)

    def _end_of(self, line: int) -> int:
        """The byte behind line number ``line``, from 1."""
        ends, lines, position, tail = re.compile(rb"\r\n|\r|\n" if self.returns else rb"\n"), 0, 0, False
        with self.open() as file:
            while text := file.read(BLOCK_BYTES):
                while text.endswith(b"\r") and (more := file.read(1)):  # of which a newline may be the other half
                    text += more
                found = [match.end() for match in ends.finditer(text)]
                if lines + len(found) >= line:
                    return position + found[line - lines - 1]
                lines, position, tail = lines + len(found), position + len(text), not found or found[-1] < len(text)
        if lines + tail < line:
            raise DataError(f"{self.path}: there is no line {line}: the last one is number {lines + tail}")
        return position

    def line_of(self, position: int) -> int:
        """Number of the line, from 1, that holds the byte at ``position``."""
        line, before = 1, b""
        with self.open() as file:
            while position > 0:
                look = file.read(min(position, BLOCK_BYTES))
                if not look:
                    break
                line += look.count(b"\n")
                if self.returns:  # one that a newline follows ends no line of its own
                    line += look.count(b"\r") - (before + look).count(b"\r\n")
                before, position = look[-1:], position - len(look)
        return line

    def fail(self, position: int, message: str) -> NoReturn:
        """Raise a DataError about the line that holds the byte at ``position``."""
        raise DataError(f"{self.path}: line {self.line_of(position)}{message}")


class Unsplittable(DataError):
    """A file that cannot be read in ranges; as part 0 of 1 it can."""


def has_lone_return(text: bytes) -> bool:
    """Whether a carriage return stands in ``text`` that no newline follows."""
    return re.search(rb"\r(?![\r\n]|\Z)", text) is not None


class Scratch:
    """Arrays that are used again from block to block: fresh memory costs a page fault every few numbers."""

    def __init__(self) -> None:
        self._kept: dict[str, Array] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """An array of that shape and type, with anything in it; valid until the next one of that name."""
        size = math.prod(shape)
        if name not in self._kept or self._kept[name].size < size:
            self._kept[name] = np.empty(size, dtype)
        return self._kept[name][:size].reshape(shape)


def field_at(text: Array, offset: int, marks: bytes) -> str:
    """What stands in ``text`` from ``offset`` to one of the bytes ``marks`` or the end of the line, for messages."""
    line = text[offset : offset + 4 * SHOWN].tobytes().split(b"\n")[0]
    for mark in marks:
        line = line.split(bytes([mark]))[0]
    shown = line.strip().decode("utf-8", "replace")
    return repr(shown if len(shown) <= SHOWN else shown[:SHOWN] + "...")


def whole(parts: list[Array], empty: Array) -> Array:
    """``parts`` one after another; ``empty`` where there are none."""
    return np.concatenate(parts) if parts else empty
