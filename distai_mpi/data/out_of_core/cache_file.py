"""A file of rows in blocks: its layout, how it is written, and how it is opened.

    blocks     of consecutive rows, each read at once: sparse ones as starts (int64), indices (uint32, or uint64),
               values (none where all are 1); dense ones as they lie in memory
    labels     y, and weights where there are any
    table      a line a block: rows, entries, first byte, CRC-32
    header     JSON: what is above, by shape and dtype
    trailer    MAGIC, where the tail of the file begins, bytes of the header, CRC-32 of the tail up to here

The file is written under another name, made durable, and then gets its own: under that it is whole.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from ..sparse_rows import SparseRows, index_dtype

Array = Any
MAGIC = b"distai rows 1\n\0\0"
TRAILER = struct.Struct("<16sQQQ")
ALIGNMENT = 64  # of blocks in the file, and of arrays in a block


class Damaged(Exception):
    """A file that is none of these, or not whole; the cache is then made anew."""


@dataclass(frozen=True)
class Kind:
    """How rows of features lie in a file; the same on all ranks.

    Attributes:
        sparse: in compressed form (CSR).
        features: of a row.
        dtype: of the values.
        plain: sparse values are all 1, and not held.
    """

    sparse: bool
    features: int
    dtype: np.dtype
    plain: bool = False

    def arrays(self, rows: int, entries: int) -> tuple[list[tuple[int, int, np.dtype]], int]:
        """(first byte, elements, dtype) of each array of a block, and the bytes of the block."""
        parts = [(rows * self.features, self.dtype)]
        if self.sparse:
            parts = [(rows + 1, np.dtype(np.int64)), (entries, index_dtype(self.features))]
            parts.append((0 if self.plain else entries, self.dtype))
        found, at = [], 0
        for count, dtype in parts:
            found.append((at, count, dtype))
            at += -(-count * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        return found, at

    def nbytes(self, rows: int, entries: int) -> int:
        """Bytes of a block of so many rows and entries."""
        return self.arrays(rows, entries)[1]

    def view(self, buffer: Any, rows: int, entries: int) -> Any:
        """The rows of a block in ``buffer``, of its bytes: `SparseRows`, or an array of shape (rows, features)."""
        found, _ = self.arrays(rows, entries)
        arrays: list[Any] = [
            np.frombuffer(buffer, dtype, count, at) if count else np.empty(0, dtype) for at, count, dtype in found
        ]
        if not self.sparse:
            return arrays[0].reshape(rows, self.features)
        starts, indices, values = arrays
        return SparseRows(starts, indices, values, self.features)


@dataclass(frozen=True)
class CacheFile:
    """A whole file, opened; what is in memory of it.

    Attributes:
        path: the file.
        file: its descriptor, which outlives a file of the same name that takes its place.
        kind: of the rows.
        rows, entries, offsets, checks: of each block, int64.
        y, weight: of all rows; weight None where they have none.
    """

    path: str
    file: int
    kind: Kind
    rows: Array
    entries: Array
    offsets: Array
    checks: Array
    y: Array
    weight: Array | None

    @property
    def nbytes(self) -> Array:
        """Bytes of each block."""
        return np.array([self.kind.nbytes(r, e) for r, e in zip(self.rows, self.entries, strict=True)], np.int64)

    def __del__(self) -> None:
        os.close(self.file)


class CacheWriter:
    """Writes rows, in the order in which they come, to a file of blocks.

    Args:
        path: where it is in the end; until then it has ``.tmp`` behind its name.
        kind: of the rows.
        block_bytes: of a block at most, unless one row is longer.

    Raises:
        OSError: it cannot be written; `abandon` then removes what is there.
    """

    def __init__(self, path: str, kind: Kind, block_bytes: int) -> None:
        self.path, self.kind, self.block_bytes = path, kind, block_bytes
        self._file: BinaryIO = open(f"{path}.tmp", "wb", buffering=0)
        self._parts: list[Any] = []
        self._held = 0  # bytes of them
        self._table: list[tuple[int, int, int, int]] = []
        self._at = 0

    def add(self, x: Any) -> None:
        """Add the rows ``x``, of the kind but for values that are not held; they are copied when a block is full."""
        sizes = np.full(len(x), self.kind.features * self.kind.dtype.itemsize, np.int64)
        if self.kind.sparse:
            entry = index_dtype(self.kind.features).itemsize + (0 if self.kind.plain else self.kind.dtype.itemsize)
            sizes = 8 + np.diff(x.starts) * entry
        ends, start = np.concatenate([[0], np.cumsum(sizes)]), 0
        while start < len(x):
            room = self.block_bytes - self._held
            stop = int(np.searchsorted(ends, ends[start] + room, side="right")) - 1
            if stop <= start and self._parts:
                self._flush()
                continue
            stop = max(stop, start + 1)
            self._parts.append(x[start:stop])
            self._held += int(ends[stop] - ends[start])
            start = stop

    def _flush(self) -> None:
        parts, self._parts, self._held = self._parts, [], 0
        rows = sum(map(len, parts))
        entries = sum(part.entries for part in parts) if self.kind.sparse else 0
        found, nbytes = self.kind.arrays(rows, entries)
        block: Any = np.zeros(nbytes, np.uint8)
        arrays = [block[at : at + count * dtype.itemsize].view(dtype) for at, count, dtype in found]
        if self.kind.sparse:
            _fill_sparse(parts, *arrays)
        else:
            np.concatenate(parts, out=arrays[0].reshape(rows, self.kind.features), casting="same_kind")
        self._table.append((rows, entries, self._at, zlib.crc32(block)))
        self._write(block)

    def _write(self, data: Any) -> None:
        left = memoryview(data).cast("B")
        self._at += len(left)
        while left:
            left = left[self._file.write(left) :]

    def finish(self, y: Array, weight: Array | None) -> None:
        """Write what is left, and the tail with ``y`` and ``weight`` of all rows; make it durable, and name it."""
        if self._parts:
            self._flush()
        begin, tail = self._at, []
        table = np.array(self._table, np.int64).reshape(-1, 4)
        arrays = {"y": y, "table": table} | ({} if weight is None else {"weight": weight})
        tail += [np.ascontiguousarray(array).tobytes() for array in arrays.values()]
        kind = self.kind
        header = {
            "order": sys.byteorder,
            "kind": [kind.sparse, kind.features, kind.dtype.str, kind.plain],
            "arrays": [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()],
        }
        text = json.dumps(header).encode()
        whole = b"".join([*tail, text])
        self._write(whole)
        self._write(TRAILER.pack(MAGIC, begin, len(text), zlib.crc32(whole)))
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(f"{self.path}.tmp", self.path)

    def abandon(self) -> None:
        """Remove what was written."""
        self._file.close()
        if os.path.exists(f"{self.path}.tmp"):
            os.remove(f"{self.path}.tmp")


def _fill_sparse(parts: list[SparseRows], starts: Array, indices: Array, values: Array) -> None:
    """Write the rows of ``parts`` one after another into the arrays."""
    row = entry = 0
    for part in parts:
        first, n = part.starts[0], part.entries
        starts[row : row + len(part) + 1] = part.starts - first + entry
        indices[entry : entry + n] = part.indices[first : first + n]
        if values.size:
            values[entry : entry + n] = part.own_values if part.values.size else 1
        row, entry = row + len(part), entry + n


def open_cache(path: str) -> CacheFile:
    """The file at ``path``; its blocks are not looked at.

    Raises:
        Damaged: it is not there, not whole, or none of these.
    """
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise Damaged(f"{path}: {error.strerror}") from None
    try:
        return CacheFile(path, file, *_read_tail(path, file))
    except (Damaged, ValueError, KeyError, TypeError) as error:
        os.close(file)
        raise Damaged(f"{path}: {error}") from None


def _read_tail(path: str, file: int) -> tuple[Any, ...]:
    size = os.fstat(file).st_size
    if size < TRAILER.size:
        raise Damaged("is too short")
    magic, begin, length, check = TRAILER.unpack(os.pread(file, TRAILER.size, size - TRAILER.size))
    if magic != MAGIC:
        raise Damaged("is no file of rows, or of another version")
    count = size - TRAILER.size - begin
    whole = bytearray(max(0, count))
    if count < length or read_into(file, memoryview(whole), begin) != count or zlib.crc32(whole) != check:
        raise Damaged("is damaged")
    header = json.loads(whole[count - length :])
    if header["order"] != sys.byteorder:
        raise Damaged("is of another machine")
    found, at = {}, 0
    for name, dtype, shape in header["arrays"]:
        elements = int(np.prod(shape))
        found[name] = np.frombuffer(whole, dtype, elements, at).reshape(shape)
        at += elements * np.dtype(dtype).itemsize
    sparse, features, dtype, plain = header["kind"]
    rows, entries, offsets, checks = (np.ascontiguousarray(column) for column in found["table"].T)
    return (
        Kind(sparse, features, np.dtype(dtype), plain),
        *(rows, entries, offsets, checks),
        found["y"].copy(),
        found["weight"].copy() if "weight" in found else None,
    )


def read_into(file: int, buffer: memoryview, offset: int) -> int:
    """Fill ``buffer`` from a byte of ``file``, and return how many bytes there were."""
    done = 0
    while done < len(buffer):
        count = os.preadv(file, [buffer[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done


def check_blocks(cache: CacheFile) -> Iterator[int]:
    """Compare the checksum of every block, and yield its bytes.

    Raises:
        Damaged: one is not what was written.
    """
    buffer = memoryview(bytearray(int(cache.nbytes.max(initial=0))))
    for nbytes, offset, check in zip(cache.nbytes, cache.offsets, cache.checks, strict=True):
        block = buffer[: int(nbytes)]
        if read_into(cache.file, block, int(offset)) != nbytes or zlib.crc32(block) != check:
            raise Damaged(f"{cache.path}: is damaged: a block differs from its checksum")
        yield int(nbytes)
