"""The format of a checkpoint: one file of numbers per rank, and a manifest that says what lies where.

    FOLDER/step-000001234/rank-00000.bin    sections that begin on pages: ranges of vectors, little-endian as a rule
    FOLDER/step-000001234/manifest.json     written last: without it, or with another checksum, nothing is there

A file has no header.  The manifest gives each file's length, the CRC-32 of each of its blocks of `BLOCK` bytes, and
its sections: which elements of which vector lie at which byte.  So a rank of another number of ranks reads the blocks
that it needs, and no others.  Nothing here communicates.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import mmap
import os
import re
import shutil
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from ...backend import HOST, device_of
from ...errors import DataError
from ...files import write_whole
from .strided import Strided, shared

Array = Any

VERSION = 1
PAGE = 4096  # what O_DIRECT needs memory, offsets and lengths to be multiples of
BLOCK = 8 << 20  # bytes of one write, and of one checksum
FINITE = 1 << 17  # numbers that are looked at while they are in the cache
MANIFEST = "manifest.json"
STEP = re.compile(r"step-(\d{9,})")


class Part(NamedTuple):
    """A range of a vector that one rank holds.

    Attributes:
        name: of the vector, the same on every rank.
        array: elements of it, shape (n,), contiguous; local.
        ranges: where they lie in it.
        size: elements of the whole vector.
        rank: the rank whose own vector it is; None: one vector lies spread over the ranks.
    """

    name: str
    array: Array
    ranges: tuple[Strided, ...]
    size: int
    rank: int | None = None

    @classmethod
    def range(cls, name: str, array: Array, start: int, size: int, rank: int | None = None) -> Part:
        """The elements from number ``start`` on, one after another."""
        return cls(name, array, (Strided(start, array.size),), size, rank)


class Image:
    """What a rank's file will hold, in memory that is taken once: taking a snapshot is one copy.

    Args:
        parts: the ranges that will be copied, again and again, with these lengths and types.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.sections: list[dict[str, Any]] = []
        self.bytes = 0
        for part in parts:
            span = {"ranges": part.ranges, "elements": part.array.size, "size": part.size, "offset": self.bytes}
            of = {"name": part.name, "dtype": part.array.dtype.str, "rank": part.rank}
            self.sections.append(of | span)
            self.bytes += -(-part.array.nbytes // PAGE) * PAGE
        memory = mmap.mmap(-1, max(self.bytes, PAGE))
        self.memory = memoryview(memory)[: self.bytes]
        np.frombuffer(memory, np.uint8)[::PAGE] = 0  # take the pages now: a fault costs more than copying a page

    def copy(self, parts: Sequence[Part]) -> None:
        """Take the snapshot; ``parts`` are as those that the image was made for."""
        for part, section in zip(parts, self.sections, strict=True):
            if part.array.size:
                view = np.frombuffer(self.memory, part.array.dtype, part.array.size, section["offset"])
                device_of(part.array).get(part.array, view)

    def finite(self) -> bool:
        """Whether no number of the snapshot is nan or infinite."""
        for section in self.sections:
            dtype, count = np.dtype(section["dtype"]), section["elements"]
            if dtype.kind != "f" or not count:
                continue
            values = np.frombuffer(self.memory, dtype, count, section["offset"])
            for start in range(0, count, FINITE):
                piece = values[start : start + FINITE]
                if not (np.isfinite(piece.min()) and np.isfinite(piece.max())):  # nan goes through both
                    return False
        return True


def shard_name(rank: int) -> str:
    """The name of a rank's file."""
    return f"rank-{rank:05d}.bin"


def step_folder(folder: str, step: int) -> str:
    """The folder of the checkpoint after so many steps."""
    return os.path.join(folder, f"step-{step:09d}")


def write_shard(step: str, rank: int, image: Image) -> dict[str, Any]:
    """Write a rank's file into the folder ``step``, durably; return what the manifest says of it.

    Raises:
        OSError: it cannot be written.
        DataError: training has diverged.
    """
    os.makedirs(step, exist_ok=True)
    path = os.path.join(step, shard_name(rank))
    with ThreadPoolExecutor(1) as aside:  # CRC-32 is about as fast as a disk: one after the other would halve it
        checksums = aside.submit(block_checksums, image.memory)
        finite = aside.submit(image.finite)
        _write(path, image.memory)
    if not finite.result():  # the loss does not tell yet: it is that before the last step
        raise DataError(f"{path}: would hold numbers that are not finite")
    sync_folder(step)
    return {
        "file": shard_name(rank),
        "bytes": image.bytes,
        "checksums": checksums.result(),
        "sections": image.sections,
    }


def block_checksums(memory: memoryview) -> list[int]:
    """The CRC-32 of each block."""
    return [zlib.crc32(memory[start : start + BLOCK]) for start in range(0, len(memory), BLOCK)]


def _write(path: str, memory: memoryview) -> None:
    """Write whole pages to a new file, past the page cache where the file system can: no copy, and nothing evicted."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    direct = getattr(os, "O_DIRECT", 0)
    try:
        file = os.open(path, flags | direct, 0o666)
    except OSError as error:
        if not direct or error.errno != errno.EINVAL:
            raise
        file, direct = os.open(path, flags, 0o666), 0
    try:
        for start in range(0, len(memory), BLOCK):
            left = memory[start : start + BLOCK]
            while left:
                try:
                    left = left[os.write(file, left) :]
                except OSError as error:
                    if not direct or error.errno != errno.EINVAL:
                        error.filename = path
                        raise
                    direct = _through_the_cache(file, direct)
                if left and direct:  # a short write may end anywhere
                    direct = _through_the_cache(file, direct)
        os.fsync(file)
    finally:
        os.close(file)


def _through_the_cache(file: int, direct: int) -> int:
    """Let ``file`` be written through the page cache from now on; returns 0."""
    fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) & ~direct)
    return 0


def sync_folder(path: str) -> None:
    """Make the names in a folder durable, where the file system knows how."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(folder)


def commit(step: str, body: dict[str, Any]) -> None:
    """Write the manifest of the files in ``step``: from here on the checkpoint is there.

    Raises:
        OSError, DistaiError: it cannot be written.
    """
    text = json.dumps({"version": VERSION, **body})
    manifest = f'{{"checksum": {zlib.crc32(text.encode())}, "checkpoint": {text}}}\n'
    for above in (os.path.dirname(os.path.dirname(step)), os.path.dirname(step)):  # either may be new
        sync_folder(above or ".")
    write_whole(os.path.join(step, MANIFEST), lambda file: file.write(manifest.encode()))
    sync_folder(step)


def remove(step: str) -> None:
    """Take a checkpoint away, manifest first: a half of it must not pass for one.

    Raises:
        OSError: it cannot be removed.
    """
    with contextlib.suppress(FileNotFoundError):
        os.remove(os.path.join(step, MANIFEST))
        sync_folder(step)
    shutil.rmtree(step)


def found(folder: str) -> list[tuple[int, str]]:
    """Step and folder of all that may be a checkpoint, newest first, also what has no manifest."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    steps = [(int(match[1]), os.path.join(folder, name)) for name in names if (match := STEP.fullmatch(name))]
    return sorted(steps, reverse=True)


def whole(folder: str) -> list[str]:
    """The folders of all checkpoints that have a manifest, newest first."""
    return [step for _, step in found(folder) if os.path.exists(os.path.join(step, MANIFEST))]


def prune(folder: str, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints, and what never became one; leaves what it cannot remove."""
    kept = whole(folder)[:keep]
    for _, step in found(folder):
        if step not in kept:
            with contextlib.suppress(OSError):
                remove(step)


class Stored:
    """A checkpoint as its manifest tells of it.

    Args:
        step: its folder.
        body: what the manifest says, where another rank has read it.

    Raises:
        DataError: the manifest is missing, damaged or of a newer version.
    """

    def __init__(self, step: str, body: dict[str, Any] | None = None) -> None:
        self.step = step
        self.body: dict[str, Any] = self._manifest() if body is None else body

    def _manifest(self) -> dict[str, Any]:
        path = os.path.join(self.step, MANIFEST)
        try:
            with open(path, "rb") as file:
                text = file.read()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None
        head = re.match(rb'\{"checksum": (\d+), "checkpoint": ', text)
        if head is None or zlib.crc32(text[head.end() : -2]) != int(head[1]):
            raise DataError(f"{path}: damaged")
        body = json.loads(text[head.end() : -2])
        if body["version"] > VERSION:
            raise DataError(f"{path}: written by a newer version of distai-mpi; use that one")
        return body

    def read(self, parts: Sequence[Part]) -> None:
        """Fill the arrays of ``parts`` from the files, of which only the blocks that matter are read.

        Raises:
            DataError: a file is missing, too short or damaged, or does not hold what is asked for.
        """
        targets, parts = parts, [part._replace(array=_host(part.array)) for part in parts]
        missing = {(part.name, part.rank): part.array.size for part in parts}
        for shard in self.body["shards"]:
            pieces = []
            for section in shard["sections"]:
                for part in parts:
                    if (section["name"], section["rank"]) == (part.name, part.rank):
                        shares = self._overlap(section, part)
                        pieces += shares
                        missing[part.name, part.rank] -= sum(len(into) for _, into in shares) // part.array.itemsize
            if pieces:  # else the file is not even opened: a rank needs those of a few others
                self._read_shard(shard, pieces)
        short = sorted(name for (name, _), count in missing.items() if count)
        if short:
            raise DataError(f"{self.step}: does not hold all of {', '.join(short)}")
        for target, part in zip(targets, parts, strict=True):
            if target.array is not part.array:
                device_of(target.array).put(part.array, target.array)

    def _overlap(self, section: dict[str, Any], part: Part) -> list[tuple[int, memoryview]]:
        """Where elements that ``section`` and ``part`` share begin in the file, and where they go."""
        if (section["dtype"], section["size"]) != (part.array.dtype.str, part.size):
            raise DataError(
                f"{self.step}: {part.name} has {section['size']:,} elements of type {section['dtype']},"
                f" where {part.size:,} of type {part.array.dtype.str} are needed"
            )
        item, offset, into = part.array.itemsize, section["offset"], memoryview(part.array.view(np.uint8))
        shares = shared(ranges_in(section), part.ranges).tolist()
        return [(offset + there * item, into[here * item : (here + count) * item]) for there, here, count in shares]

    def _read_shard(self, shard: dict[str, Any], pieces: Sequence[tuple[int, memoryview]]) -> None:
        """Read the blocks of a file that hold ``pieces``, check them, and copy these out."""
        path = os.path.join(self.step, shard["file"])
        try:
            with open(path, "rb", buffering=0) as file:
                length = os.fstat(file.fileno()).st_size
                if length != shard["bytes"]:
                    raise DataError(f"{path}: has {length:,} bytes in place of {shard['bytes']:,}")
                block = memoryview(bytearray(min(BLOCK, length)))
                by_block: dict[int, list[tuple[int, memoryview]]] = {}
                for piece in pieces:
                    for number in range(piece[0] // BLOCK, (piece[0] + len(piece[1]) - 1) // BLOCK + 1):
                        by_block.setdefault(number, []).append(piece)
                for number, here in sorted(by_block.items()):
                    start, checksum = number * BLOCK, shard["checksums"][number]
                    file.seek(start)
                    data = block[: min(BLOCK, length - start)]
                    if file.readinto(data) != len(data) or zlib.crc32(data) != checksum:
                        raise DataError(f"{path}: damaged between bytes {start:,} and {start + len(data):,}")
                    for offset, into in here:
                        low, high = max(offset, start), min(offset + len(into), start + len(data))
                        into[low - offset : high - offset] = data[low - start : high - start]
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def ranges_in(section: dict[str, Any]) -> list[Strided]:
    """Where the elements of a section lie, which checkpoints of earlier versions say as one range."""
    if "ranges" in section:
        return [Strided(*each) for each in section["ranges"]]
    return [Strided(section["start"], section["stop"] - section["start"])]


def _host(array: Array) -> Array:
    """``array`` itself, or a host array like it where it lives on a device."""
    return array if device_of(array) is HOST else np.empty(array.shape, array.dtype)
