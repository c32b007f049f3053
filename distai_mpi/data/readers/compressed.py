"""Compressed files, recognised by their first bytes: gzip, bzip2, xz, Zstandard, and zip archives of one file."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import sys
import zipfile
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Any

from ...errors import DataError
from .members import Members

ZIP = (b"PK\x03\x04", b"PK\x05\x06")  # "PK" alone may begin a header of CSV
SHOWN_MEMBERS = 5  # of a zip archive, in a message
READ_BYTES = 1 << 18  # of a compressed file at a time
SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")  # frame without data, with which some Zstandard files begin

UNPACK = {
    "gzip": "gunzip -k",
    "bzip2": "bunzip2 -k",
    "xz": "unxz -k",
    "Zstandard": "unzstd",
    "zip": "unzip",
}


def compression(path: str, start: bytes) -> str | None:
    """How the file at ``path`` that begins with ``start`` is compressed: a key of `UNPACK`; None: it is not.

    An .npz file, a zip archive of arrays, is not: its arrays are read one by one.

    Raises:
        DataError: a zip archive of several files, or of none, or one with a password.
    """
    if start.startswith(b"\x1f\x8b"):
        return "gzip"
    if start.startswith(b"BZh") and start[4:10] in (b"1AY&SY", b"\x17rE8P\x90"):  # a block, or the end, of a stream
        return "bzip2"
    if start.startswith(b"\xfd7zXZ\0"):
        return "xz"
    if start.startswith(b"\x28\xb5\x2f\xfd") or SKIPPABLE.match(start):
        return "Zstandard"
    return "zip" if start.startswith(ZIP) and _only_member(path) else None


@contextmanager
def unpacked(path: str, members: Members | None = None) -> Iterator[IO[bytes]]:
    """What the compressed file at ``path`` holds, as a file; damage, whenever it is found, raises a DataError.

    With ``members``, see `find_members`, it may be read from any byte on without unpacking what lies before.
    """
    with open(path, "rb") as file:
        kind = compression(path, file.read(16))
    try:
        with ExitStack() as stack:
            yield _open(path, kind, stack, members)
    except _damages() as error:
        raise DataError(
            f"{path}: is damaged or truncated, or followed by what does not belong there ({error}); copy it again"
        ) from None


def _open(path: str, kind: str | None, stack: ExitStack, members: Members | None = None) -> IO[bytes]:
    """The file by its ``kind`` of compression; the ``stack`` closes what was opened."""
    if kind == "gzip":
        if members is not None:
            return stack.enter_context(io.BufferedReader(_GzipMembers(path, members), READ_BYTES))
        opened: Any = _gzip_file()(fileobj=stack.enter_context(open(path, "rb")), mode="rb")
        return stack.enter_context(opened)
    if kind == "zip":
        archive = stack.enter_context(zipfile.ZipFile(path))
        try:
            return stack.enter_context(archive.open(_only_member(path) or ""))
        except NotImplementedError as error:
            raise DataError(f"{path}: cannot be unpacked here ({error}); unpack it: unzip {path}") from None
    makers: dict[str | None, Callable[[], Any]] = {"bzip2": bz2.BZ2Decompressor, "xz": lzma.LZMADecompressor}
    make = makers[kind] if kind in makers else _zstandard(path)
    streams = stack.enter_context(_Streams(path, make, kind == "xz", members))
    return stack.enter_context(io.BufferedReader(streams, READ_BYTES))


def _damages() -> tuple[type[Exception], ...]:
    """What decompressors raise where a file is damaged."""
    isal = sys.modules.get("isal.igzip_lib")
    known = (OSError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)  # OSError: as bzip2 tells it
    return known if isal is None else (*known, isal.error)


def _gzip_file() -> Any:
    """What reads gzip: isal's where it is installed, about 3 times as fast as the standard library's; alike."""
    try:
        from isal.igzip import IGzipFile
    except ImportError:
        return gzip.GzipFile
    return IGzipFile


class _GzipMembers(io.RawIOBase):
    """A gzip file of `Members`, read from any of them on."""

    def __init__(self, path: str, members: Members) -> None:
        self._file, self.members = open(path, "rb"), members
        self._begin(0)

    def _begin(self, member: int) -> None:
        self._file.seek(self.members.packed[member])
        self._inner: Any = _gzip_file()(fileobj=self._file, mode="rb")
        self._position = self.members.unpacked[member]

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a byte of what is unpacked, from the beginning or from here."""
        target = offset + (self._position if whence == os.SEEK_CUR else 0)
        member = self.members.before(target)
        if target < self._position or self.members.unpacked[member] > self._position:
            self._begin(member)
        while self._position < target and (data := self._inner.read(min(READ_BYTES, target - self._position))):
            self._position += len(data)
        return self._position

    def readinto(self, out: Any) -> int:
        """Fill ``out``, or less of it; 0 at the end."""
        count = self._inner.readinto(out)
        self._position += count
        return count


def _zstandard(path: str) -> Callable[[], Any]:
    """What makes decompressors of Zstandard, which Python has from 3.14 on."""
    try:
        from compression.zstd import ZstdDecompressor  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        try:
            from backports.zstd import ZstdDecompressor
        except ImportError:
            raise DataError(
                f"{path}: is compressed by Zstandard, which needs the package backports.zstd:"
                " pip install 'distai-mpi[zstd]'"
            ) from None
    return ZstdDecompressor


class _Streams(io.RawIOBase):
    """Compressed streams one after another, as parallel compressors write them, read as one.

    Those of the standard library take what follows a stream and is none for the end of the file: a damaged header in
    the middle would cost the rest of the rows without a word.

    Attributes:
        make: makes a decompressor, with the interface of `bz2.BZ2Decompressor`.
        padded: whether zero bytes may stand between streams and at the end.
        members: where unpacking may begin; None: at the beginning.
    """

    def __init__(self, path: str, make: Callable[[], Any], padded: bool, members: Members | None = None) -> None:
        self._file = open(path, "rb", buffering=0)
        self.make, self.padded, self.members = make, padded, members or Members((0,), (0,), 0)
        self._begin(0)

    def _begin(self, member: int) -> None:
        self._file.seek(self.members.packed[member])
        self._decoder, self._position, self._pending = self.make(), self.members.unpacked[member], b""

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes: by reading."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a byte of what is unpacked, from the beginning or from here; all from the member before is read."""
        target = offset + (self._position if whence == os.SEEK_CUR else 0)
        member = self.members.before(target)
        if target < self._position or self.members.unpacked[member] > self._position:
            self._begin(member)
        while self._position < target and self._next(min(READ_BYTES, target - self._position)):
            pass
        return self._position

    def readinto(self, out: Any) -> int:
        """Fill ``out``, or less of it; 0 at the end."""
        data = self._next(len(out))
        out[: len(data)] = data
        return len(data)

    def _next(self, most: int) -> bytes:
        """At least one byte and at most ``most``; none at the end."""
        while most:
            if self._decoder.eof:
                self._pending = self._following(self._decoder.unused_data)
                if not self._pending:
                    return b""
                self._check_place(self._file.tell() - len(self._pending))
                self._decoder = self.make()
            elif self._decoder.needs_input and not self._pending:
                self._pending = self._file.read(READ_BYTES)
                if not self._pending:
                    raise EOFError("the end of the compressed data is missing")
            data, self._pending = self._pending, b""
            try:
                found = self._decoder.decompress(data, max_length=most)
            except Exception as error:  # each library raises its own
                raise EOFError(str(error)) from None
            if found:
                self._position += len(found)
                return found
        return b""

    def _check_place(self, at: int) -> None:
        """Raise an EOFError where a place at byte ``at`` of the file is not the one that `Members` say."""
        place = bisect_left(self.members.packed, at)
        if place < len(self.members.packed) and self.members.packed[place] == at:
            if self.members.unpacked[place] != self._position:
                raise EOFError("its frames are longer or shorter than its table says")

    def _following(self, data: bytes) -> bytes:
        """What follows a stream, of which ``data`` was read: the beginning of the next one, or nothing."""
        while True:
            if self.padded:
                data = data.lstrip(b"\0")
            more = b"" if data else self._file.read(READ_BYTES)
            if data or not more:
                return data
            data = more


def _only_member(path: str) -> str | None:
    """Name of the one file in the zip archive; None for an .npz file."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if not info.is_dir() and not _is_clutter(info.filename)]
    except (zipfile.BadZipFile, OSError, ValueError):
        return None  # the readers of .npz files report it
    names = [info.filename for info in members]
    if any(name.endswith(".npy") for name in names):
        return None
    if "[Content_Types].xml" in names or "mimetype" in names:
        raise DataError(f"{path}: is a spreadsheet or another document of an office program; save the table as CSV")
    if any(name.endswith("data.pkl") for name in names):
        raise DataError(f"{path}: is a file of PyTorch, which may run code when it is read; save arrays by numpy.savez")
    if not members:
        raise DataError(f"{path}: is a zip archive without a file in it")
    if len(members) > 1:
        shown = ", ".join(names[:SHOWN_MEMBERS]) + (", ..." if len(names) > SHOWN_MEMBERS else "")
        raise DataError(
            f"{path}: is a zip archive of {len(names)} files ({shown}); unpack it (unzip {path}) and name the files"
            " that are meant"
        )
    if members[0].flag_bits & 1:
        raise DataError(f"{path}: is encrypted; unpack it with its password first: unzip {path}")
    return names[0]


def _is_clutter(name: str) -> bool:
    """Whether a file in an archive is none of the user's, but one that macOS or Windows adds."""
    return name.startswith("__MACOSX/") or name.rsplit("/", 1)[-1] in (".DS_Store", "Thumbs.db", "desktop.ini")
