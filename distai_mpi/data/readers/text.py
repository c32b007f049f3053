"""Text in lines, read by ranges of bytes: a rank reads the lines that begin in its range."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import IO, Any, NamedTuple, NoReturn, Self

import numpy as np
from numpy.typing import DTypeLike

from ...errors import DataError
from ...perf.machine import release
from . import codes
from .compressed import unpacked
from .members import Members, find_members

Array = Any

BLOCK_BYTES = 4 << 20  # read and parsed at a time: what stays in cache
LOOK_BYTES = 64 << 10  # in which the end of a line is looked for
HARD_NUMBERS = 1024  # of a block that compiled code may leave to Python before it is asked again
SPARE = 1.25  # times what a whole file is expected to hold: memory that is not written to costs nothing
COPIED = 1 << 20  # entries at a time
SHOWN = 40  # characters of a field in a message


class Block(NamedTuple):
    """Whole lines of a file.

    Attributes:
        text: uint8; the lines are its first ``stop`` bytes, the last one ended by a newline.
        stop: see ``text``.
        position: of the first line in the file.
        progress: fraction of the range of the file that lies before the block; 0 where it is unknown.
    """

    text: Array
    stop: int
    position: int
    progress: float


@dataclass(frozen=True)
class TextFile:
    """Lines of text in a file, perhaps compressed.

    A compressed file mostly has no ranges of bytes to begin at: one rank reads it all, block by block.

    Attributes:
        path: the file.
        sequential: whether it is compressed, and can only be read from its beginning.
        begin: first byte of the first line of data, in the uncompressed text.
        returns: whether a carriage return alone ends a line, as it did on the old Macintosh.
        end: the byte behind the last line of data, likewise; None: the text's end.
        members: of a compressed file that need not be, where unpacking may begin.
    """

    path: str
    sequential: bool
    begin: int
    returns: bool = field(default=False, kw_only=True)
    end: int | None = field(default=None, kw_only=True)
    members: Members | None = field(default=None, kw_only=True)

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
        packed = self.sequential or self.members is not None
        with unpacked(self.path, self.members) if packed else open(self.path, "rb", buffering=0) as file:
            yield file

    @property
    def size(self) -> int:
        """Bytes of the text; of a file that is `sequential` those of the file."""
        return os.path.getsize(self.path) if self.members is None else self.members.size

    def parallel(self, kind: str | None) -> Self:
        """The same, read in ranges where its ``kind`` of compression allows."""
        members = find_members(self.path, kind)
        return self if members is None else replace(self, sequential=False, members=members)

    def blocks(self, part: int, parts: int, whole_lines: Callable[[Array, int], int] | None = None) -> Iterator[Block]:
        """Yield the lines that begin in the ``part``-th of ``parts`` ranges, about `BLOCK_BYTES` at a time.

        Each holds until the next is asked for.  ``whole_lines(text, stop)`` tells up to where lines are whole, where
        a newline alone does not end one.
        """
        with self.open() as file:
            low, high = self.begin, self.end
            if not self.sequential:
                size = self.size if self.end is None else self.end
                low, high = (
                    self._line_start(file, size, self.begin + (size - self.begin) * p // parts)
                    for p in (part, part + 1)
                )
            file.seek(low)
            buffer, held, position = bytearray(BLOCK_BYTES), 0, low
            while high is None or position + held < high:
                if 2 * held > len(buffer):
                    buffer = buffer[:held].ljust(2 * len(buffer))  # a long line
                want = len(buffer) - 1 - held
                if high is not None:
                    want = min(want, high - position - held)
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
                    yield Block(text, stop, position, (position - low) / (high - low) if high is not None else 0.0)
                if last:
                    if self.members is not None and file.read(1) and high == self.members.size:  # looks at checksums
                        raise DataError(f"{self.path}: is damaged: it holds more than its parts say; copy it again")
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


def with_newlines(block: Block) -> Block | None:
    """``block`` with line ends in place of lone carriage returns; None where there are none."""
    text = block.text[: block.stop].tobytes()
    return block._replace(text=np.frombuffer(text.replace(b"\r", b"\n"), np.uint8)) if has_lone_return(text) else None


def has_lone_return(text: bytes) -> bool:
    """Whether a carriage return stands in ``text`` that no newline follows."""
    return re.search(rb"\r(?![\r\n]|\Z)", text) is not None


class Growing:
    """An array that is filled block by block, in its place: it moves only where its length was guessed too short.

    Memory behind what is filled is never touched, so that room to spare costs none.
    """

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        """``shape`` and ``dtype`` are those of an entry."""
        self._array = np.empty((0, *shape), dtype)
        self._used = 0

    @property
    def filled(self) -> Array:
        """What is kept."""
        return self._array[: self._used]

    def room(self, entries: int, progress: float) -> Array:
        """The next ``entries`` entries, with anything in them; valid until the next call.

        ``progress`` is the fraction of the whole that is kept; 0: unknown.
        """
        need = self._used + entries
        if need > len(self._array):
            guess = SPARE * self._used / progress if progress else 2 * self._used
            array = np.empty((int(max(need, guess + entries)), *self._array.shape[1:]), self._array.dtype)
            for start in range(0, self._used, COPIED):
                part = self._array[start : min(start + COPIED, self._used)]
                array[start : start + len(part)] = part
                release(part)
            self._array = array
        return self._array[self._used : need]

    def keep(self, entries: int) -> None:
        """The first ``entries`` of the room are filled."""
        self._used += entries


def field_at(text: Array, offset: int, marks: bytes) -> str:
    """What stands in ``text`` from ``offset`` to one of the bytes ``marks`` or the end of the line, for messages."""
    line = text[offset : offset + 4 * SHOWN].tobytes().split(b"\n")[0]
    for mark in marks:
        line = line.split(bytes([mark]))[0]
    shown = line.strip().decode("utf-8", "replace")
    return repr(shown if len(shown) <= SHOWN else shown[:SHOWN] + "...")
