"""Compressed streams one after another, of which each may be unpacked alone: where they begin.

Ranks then read such a file in parallel, as they read plain text.  These are

* gzip in blocks (BGZF, as `bgzip` writes it): each block tells its length (SAM specification, section 4.1);
* Zstandard of several frames that tell their size (RFC 8878, section 3.1.1), or with a table of them behind (the
  seekable format of Zstandard's contrib folder).

Of other gzip files only unpacking tells where a stream ends.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from collections.abc import Iterator
from typing import IO, NamedTuple

APART = 1 << 20  # bytes of unpacked data between two places that are kept
ZSTD_FRAME, SKIPPABLE, SEEK_TABLE, SEEKABLE = 0xFD2FB528, 0x184D2A50, 0x184D2A5E, 0x8F92EAB1
Sizes = Iterator[tuple[int, int]]  # compressed bytes, and unpacked ones, of one stream after another


class Members(NamedTuple):
    """Places in a compressed file at which unpacking may begin.

    Attributes:
        packed: bytes of the file.
        unpacked: the bytes of what is unpacked that begin there, ascending.
        size: of all that is unpacked.
    """

    packed: tuple[int, ...]
    unpacked: tuple[int, ...]
    size: int

    def before(self, position: int) -> int:
        """Number of the last place at or before a byte of what is unpacked."""
        return max(0, bisect_right(self.unpacked, position) - 1)


def find_members(path: str, kind: str | None, apart: int = APART) -> Members | None:
    """The places in the file at ``path``, at least ``apart`` unpacked bytes from each other; None: fewer than two.

    Nothing is unpacked, and what is damaged is left to those who unpack it.
    """
    walks = {"gzip": _bgzf, "Zstandard": _zstandard}
    if kind not in walks:
        return None
    packed, unpacked, at, position = [0], [0], 0, 0
    try:
        with open(path, "rb") as file:
            for length, size in walks[kind](file, os.path.getsize(path)):
                if position - unpacked[-1] >= apart:
                    packed.append(at)
                    unpacked.append(position)
                at, position = at + length, position + size
    except (struct.error, ValueError, IndexError):  # not of that form, or damaged
        return None
    return Members(tuple(packed), tuple(unpacked), position) if len(packed) > 1 else None


def _bgzf(file: IO[bytes], end: int) -> Sizes:
    at = 0
    while at < end:
        file.seek(at)
        mark, _, extra = struct.unpack("<4s6sH", file.read(12))
        fields = file.read(extra)
        if mark != b"\x1f\x8b\x08\x04":
            raise ValueError("no block of gzip with a field of its own")
        length = 0
        while fields:
            name, size = struct.unpack("<2sH", fields[:4])
            if name == b"BC":
                length = 1 + struct.unpack("<H", fields[4 : 4 + size])[0]
            fields = fields[4 + size :]
        if length < 12 + extra + 8 or at + length > end:
            raise ValueError("no block of BGZF")
        file.seek(at + length - 4)
        yield length, struct.unpack("<I", file.read(4))[0]
        at += length


def _zstandard(file: IO[bytes], end: int) -> Sizes:
    file.seek(max(0, end - 9))
    frames, _, mark = struct.unpack("<IBI", file.read(9))
    yield from _seek_table(file, end, frames) if mark == SEEKABLE else _frames(file, end)


def _seek_table(file: IO[bytes], end: int, frames: int) -> Sizes:
    """The frames that the table at the end of a file tells of, and the table itself as one of no size."""
    file.seek(end - 5)
    entry = 12 if file.read(1)[0] & 0x80 else 8  # with a checksum of each
    length = 9 + frames * entry
    file.seek(end - length - 8)
    mark, size = struct.unpack("<II", file.read(8))
    table = file.read(frames * entry)
    sizes = [struct.unpack_from("<II", table, entry * frame) for frame in range(frames)]
    if (mark, size) != (SEEK_TABLE, length) or sum(packed for packed, _ in sizes) != end - length - 8:
        raise ValueError("the table tells of other frames")
    yield from sizes
    yield length + 8, 0


def _frames(file: IO[bytes], end: int) -> Sizes:
    at = 0
    while at < end:
        file.seek(at)
        (mark,) = struct.unpack("<I", file.read(4))
        if mark & ~0xF == SKIPPABLE:
            length, size = 8 + struct.unpack("<I", file.read(4))[0], 0
        elif mark == ZSTD_FRAME:
            length, size = _frame(file, at)
        else:
            raise ValueError("no frame of Zstandard")
        if at + length > end:
            raise ValueError("the last frame is not whole")
        yield length, size
        at += length


def _frame(file: IO[bytes], at: int) -> tuple[int, int]:
    """Length and unpacked size of the frame at byte ``at``, whose mark was read."""
    flags = file.read(1)[0]
    single, told = bool(flags & 0x20), flags >> 6
    header = 5 + (not single) + (0, 1, 2, 4)[flags & 3]
    width = (int(single), 2, 4, 8)[told]
    if not width:
        raise ValueError("a frame that does not tell its size")
    file.seek(at + header)
    size = int.from_bytes(file.read(width), "little") + (256 if told == 1 else 0)
    position, last = at + header + width, 0
    while not last:
        file.seek(position)
        block = file.read(3)
        if len(block) < 3:
            raise ValueError("a block is missing")
        word = int.from_bytes(block, "little")
        last = word & 1
        position += 3 + (1 if (word >> 1) & 3 == 1 else word >> 3)  # one byte where it is repeated
    return position + (4 if flags & 4 else 0) - at, size
