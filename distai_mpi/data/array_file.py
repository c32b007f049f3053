"""Arrays in files by their headers: shape, type, and where the elements lie."""

from __future__ import annotations

import math
import os
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from ..errors import DataError
from .dataset import storage_dtype
from .readers.compressed import unpacked

Array = Any

MISSING_ADVICE = "mend or remove that row, or give --missing mean, median or drop"
BLOCK_BYTES = 16 << 20  # read at a time by default


@dataclass(frozen=True)
class ArrayFile:
    """One array in one file, its rows flattened to ``width`` values; picklable, holds nothing open.

    Attributes:
        path: the file.
        name: the array in it, for messages.
        shape: as stored; one axis or more, none of them empty.
        stored: type of the elements in the file, byte order included.
        offset: byte of the file where the elements begin; None where they are compressed.
        fortran: whether the elements are stored by columns.
        member: name of the file within a zip archive (.npz), or None.
        header: bytes before the elements in what is compressed, a zip's member or the whole file.
    """

    path: str
    name: str
    shape: tuple[int, ...]
    stored: np.dtype
    offset: int | None
    fortran: bool = False
    member: str | None = None
    header: int = 0

    def __post_init__(self) -> None:
        """Check what the header tells: no empty axis, no pickled objects, and a file long enough."""
        if self.stored.hasobject:
            raise self.error("holds pickled Python objects, which are refused; save it as an array of numbers")
        if not self.shape or 0 in self.shape:
            raise self.error(f"has shape {self.shape}: there are no rows or no features to train on")
        if self.offset is not None:
            # mapped memory beyond the end of a file would kill the process when it is touched
            needed, size = self.offset + math.prod(self.shape) * self.stored.itemsize, os.path.getsize(self.path)
            if size < needed:
                raise self.error(f"is truncated: {needed} bytes are needed, the file has {size}; copy it again")

    def check_numbers(self) -> ArrayFile:
        """The array itself; raise a DataError unless it holds real numbers."""
        try:
            storage_dtype(self.stored)
        except DataError as error:
            raise self.error(str(error)) from None
        return self

    def error(self, message: str) -> DataError:
        """A DataError that names file and array."""
        return DataError(f"{self.path}: {self.name} {message}")

    def not_finite(self, row: int, column: int, value: float) -> DataError:
        """The DataError about a NaN or an infinity."""
        advice = MISSING_ADVICE if math.isnan(value) else "mend or remove that row"
        return self.error(f"holds {value} in row {row}, column {column} (counted from 0); {advice}")

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.shape[0]

    @property
    def width(self) -> int:
        """Values of a row, all axes but the first flattened."""
        return math.prod(self.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        """Type in which the values are held in memory."""
        return storage_dtype(self.stored)

    @property
    def nbytes(self) -> int:
        """Bytes that the array takes in memory."""
        return self.rows * self.width * self.dtype.itemsize

    @property
    def scale(self) -> float:
        """What the values are multiplied by as features; see `byte_scale`."""
        return byte_scale(self.stored, self.shape)

    @property
    def sliceable(self) -> bool:
        """Whether rows can be read without reading those before them."""
        return self.offset is not None

    @property
    def mappable(self) -> bool:
        """Whether the array can be mapped from the file."""
        return self.sliceable and not self.fortran and self.stored == self.dtype

    def map(self) -> Array:
        """The array, shape (rows, width), mapped from the file, read-only; needs `mappable`."""
        return self._view().reshape(self.rows, self.width)

    def take(self, rows: Array, out: Array, chunk: int) -> None:
        """Copy ``rows`` (int64, any order) into ``out``, shape (len(rows), width), ``chunk`` at a time.

        The file is read from beginning to end; only the chunks with these rows where it is
        `sliceable`, else whole.
        """
        where = np.argsort(rows)
        if self.sliceable:
            view = self._view()
            for start in range(0, rows.size, chunk):
                part = where[start : start + chunk]
                out[part] = view[rows[part]].reshape(part.size, self.width)
            return
        ascending = rows[where]
        for first, values in self.chunks(chunk):
            low, high = np.searchsorted(ascending, (first, first + len(values)))
            out[where[low:high]] = values[ascending[low:high] - first]

    def chunks(self, chunk: int) -> Iterator[tuple[int, Array]]:
        """Yield ``(first row, values)`` from beginning to end, values of shape (at most chunk, width).

        Values are of type `dtype`, and stay what they are when the next are asked for.
        """
        for start, part in self.stored_chunks(chunk, 0, self.rows):
            yield start, np.array(part, self.dtype, order="C").reshape(len(part), self.width)

    def stored_chunks(self, chunk: int, start: int, stop: int) -> Iterator[tuple[int, Array]]:
        """Yield ``(first row, elements)`` of rows ``start`` to ``stop - 1``, in the stored type and shape of a row.

        All rows must be asked for unless the array is `sliceable`.  Elements may hold until the next are asked for.
        """
        if not self.fortran:
            yield from self._read(chunk, start, stop) if self.sliceable else self._unpack(chunk)
            return
        source = self._view() if self.sliceable else self._unpack_columns()
        for first in range(start, stop, chunk):
            yield first, source[first : min(first + chunk, stop)]

    def _read(self, chunk: int, start: int, stop: int) -> Iterator[tuple[int, Array]]:
        """Read rows stored one after another: not mapped, for pages of a mapping count as memory of the process."""
        buffer = np.empty((max(0, min(chunk, stop - start)), *self.shape[1:]), self.stored)
        with open(self.path, "rb", buffering=0) as file:
            file.seek((self.offset or 0) + start * self.width * self.stored.itemsize)
            for first in range(start, stop, chunk):
                part = buffer[: min(chunk, stop - first)]
                left = memoryview(part.reshape(-1).view(np.uint8).data) if part.size else memoryview(b"")
                while left:
                    count = file.readinto(left)
                    if not count:
                        raise self.error("is truncated: it holds fewer values than its header says; copy it again")
                    left = left[count:]
                yield first, part

    def _view(self) -> Array:
        """The elements in the file, in the stored shape and type, mapped read-only."""
        order: Any = "F" if self.fortran else "C"
        offset = self.offset or 0
        return np.asarray(np.memmap(self.path, self.stored, "r", offset, self.shape, order))

    def _unpack(self, chunk: int) -> Iterator[tuple[int, Array]]:
        """Decompress rows stored one after another."""
        with self._member() as file:
            for start in range(0, self.rows, chunk):
                count = min(chunk, self.rows - start)
                data = self._exactly(file, count * self.width * self.stored.itemsize)
                yield start, np.frombuffer(data, self.stored).reshape(count, *self.shape[1:])
            self._ends(file)

    def _unpack_columns(self) -> Array:
        """Decompress an array stored by columns: whole, for no row is complete before the end."""
        with self._member() as file:
            data = self._exactly(file, math.prod(self.shape) * self.stored.itemsize)
            self._ends(file)
        return np.frombuffer(data, self.stored).reshape(self.shape, order="F")

    @contextmanager
    def _member(self) -> Iterator[IO[bytes]]:
        """What is compressed, opened behind its header; damage raises a DataError."""
        try:
            with ExitStack() as stack:
                if self.member is None:
                    file: Any = stack.enter_context(unpacked(self.path))
                else:
                    archive = stack.enter_context(zipfile.ZipFile(self.path))
                    file = stack.enter_context(archive.open(self.member))
                self._exactly(file, self.header)
                yield file
        except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError) as error:
            raise self.error(f"is damaged ({error}); copy it again") from None

    def _ends(self, file: IO[bytes]) -> None:
        """Check that nothing follows the elements; reading the end also compares the checksum."""
        if file.read(1):
            raise self.error("is followed by bytes that do not belong there: it is damaged, or no such file")

    def _exactly(self, file: IO[bytes], count: int) -> bytes:
        data = file.read(count)
        if len(data) != count:
            raise self.error("is truncated: it holds fewer values than its header says; copy it again")
        return data


def read_npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read past the header of an open .npy file: ``(shape, by columns, dtype)``.

    Raises:
        ValueError: it is no such file, or its type is not one of plain numbers.
    """
    version = np.lib.format.read_magic(file)
    try:
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(file)
        if version == (2, 0):
            return np.lib.format.read_array_header_2_0(file)
    except (SyntaxError, TypeError, tokenize.TokenError) as error:  # NumPy parses the header as Python
        raise ValueError(f"unreadable header: {error}") from None
    raise ValueError(
        f"version {version} of the .npy format is for fields whose names are not Latin; name them in ASCII"
    )


def byte_scale(stored: np.dtype, shape: Sequence[int]) -> float:
    """What values are multiplied by as features: 1/255 for images of bytes (three axes or more), else 1."""
    return 1 / 255 if stored == np.uint8 and len(shape) > 2 else 1.0
