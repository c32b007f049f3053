"""File formats, told by their first bytes, and what a user may name as data."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..errors import DataError
from .sources import ArrayFile, Source, check_pair, read_npy_header

ACCEPTED = """\
accepted are
  mnist                the MNIST digits that come with the package
  FILE.npz             with arrays x_train, y_train and perhaps x_test, y_test; or x, y
  X.npy,Y.npy          features and labels, two files
  IMAGES,LABELS        two IDX files (the format of MNIST), uncompressed"""

NPY, ZIP, GZIP = b"\x93NUMPY", b"PK", b"\x1f\x8b"
IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
TRAIN_NAMES = (("x_train", "y_train"), ("x", "y"))
TEST_NAMES = (("x_test", "y_test"), ("x", "y"))


def find(data: str | os.PathLike, test: str | os.PathLike | None = None) -> tuple[Source, Source | None]:
    """Look at the files that ``data`` and ``test`` name; return the training and the test set.

    A spec is ``mnist``, one path, or two paths with a comma between them: features, labels.
    Without ``test`` the test set is the one in the file of ``data``, or None.

    Raises:
        DataError: a file is missing or damaged, or arrays do not fit; names what is at fault.
    """
    train = _open(data, TRAIN_NAMES)
    if train is None:
        raise DataError(f"{data}: no training data (x_train and y_train, or x and y); {ACCEPTED}")
    if test is not None:
        held_out = _open(test, TEST_NAMES)
        if held_out is None:
            raise DataError(f"{test}: no test data (x_test and y_test, or x and y); {ACCEPTED}")
    else:
        held_out = _open(data, TEST_NAMES[:1])
    if held_out is not None:
        check_pair(train, held_out)
    return train, held_out


def find_features(data: str | os.PathLike) -> ArrayFile:
    """The features, without labels, that ``data`` names: X.npy, an IDX file, FILE.npz with x or x_test, or mnist.

    Raises:
        DataError: the file is missing or damaged, or holds no features.
    """
    text = _path(data)
    if not _first_bytes(text).startswith(ZIP):
        return _open_array(text, "features")
    for name in ("x", "x_test", "x_train"):
        array = _open_npz_array(text, name)
        if array is not None:
            return array
    raise DataError(f"{text}: no features (x, x_test or x_train)")


def _path(spec: str | os.PathLike) -> str:
    """The path that ``spec`` stands for."""
    text = os.fspath(spec)
    return str(Path(__file__).with_name("mnist.npz")) if text == "mnist" else text


def _open(spec: str | os.PathLike, names: Sequence[tuple[str, str]]) -> Source | None:
    """The set in ``spec`` that is called by one of the pairs of ``names``; None if there is none.

    Two files hold a set without a name: as good as the pair ``x``, ``y``.
    """
    text = _path(spec)
    if text.count(",") == 1 and not os.path.exists(text):
        if ("x", "y") not in names:
            return None
        first, second = text.split(",")
        return Source(_open_array(first, "features"), _open_array(second, "labels"))
    start = _first_bytes(text)
    if start.startswith(ZIP):
        return _open_npz(text, names)
    if start.startswith(NPY) or _is_idx(start):
        raise DataError(f"{text}: holds one array, but labels are needed too: give both files as X,Y; {ACCEPTED}")
    raise _foreign(text, start)


def _first_bytes(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            start = file.read(8)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; {ACCEPTED}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {ACCEPTED}") from None
    if not start:
        raise DataError(f"{path}: the file is empty; {ACCEPTED}")
    return start


def _foreign(path: str, start: bytes) -> DataError:
    if start.startswith(GZIP):
        return DataError(f"{path}: compressed files are not supported yet: unpack it first (gunzip -k {path})")
    return DataError(f"{path}: the format is not known; {ACCEPTED}")


def _is_idx(start: bytes) -> bool:
    return len(start) >= 4 and start[:2] == b"\0\0" and start[2] in IDX_TYPES and start[3] > 0


def _open_array(path: str, name: str) -> ArrayFile:
    """The one array of a .npy or IDX file."""
    start = _first_bytes(path)
    if start.startswith(NPY):
        return _open_npy(path, name)
    if _is_idx(start):
        return _open_idx(path, name)
    if start.startswith(ZIP):
        raise DataError(f"{path}: an .npz file holds features and labels: give it alone; {ACCEPTED}")
    raise _foreign(path, start)


def _open_npy(path: str, name: str) -> ArrayFile:
    with open(path, "rb") as file:
        try:
            shape, fortran, dtype = read_npy_header(file)
        except (ValueError, EOFError) as error:
            raise DataError(f"{path}: damaged .npy header ({error}); copy or save it again") from None
        return ArrayFile(path, name, shape, dtype, file.tell(), fortran and len(shape) > 1)


def _open_idx(path: str, name: str) -> ArrayFile:
    """An IDX file: two zero bytes, type, number of axes, lengths of the axes, elements; all big-endian."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        kind, axes = file.read(4)[2:]
        lengths = file.read(4 * axes)
    if len(lengths) < 4 * axes:
        raise DataError(f"{path}: the IDX header is truncated; copy the file again")
    array = ArrayFile(path, name, struct.unpack(f">{axes}I", lengths), np.dtype(IDX_TYPES[kind]), 4 + 4 * axes)
    surplus = size - 4 - 4 * axes - array.rows * array.width * array.stored.itemsize
    if surplus:  # the mark of the format is weak; its length is a strong check
        raise array.error(f"is followed by {surplus} bytes that do not belong there: no IDX file, or a damaged one")
    return array


def _open_npz(path: str, names: Sequence[tuple[str, str]]) -> Source | None:
    with _archive(path) as (archive, members):
        for x, y in names:
            if x in members and y in members:
                return Source(_open_member(archive, members[x]), _open_member(archive, members[y]))
            if x in members or y in members:
                raise DataError(f"{path}: holds {x if x in members else y}, but no {y if x in members else x}")
    return None


def _open_npz_array(path: str, name: str) -> ArrayFile | None:
    with _archive(path) as (archive, members):
        return _open_member(archive, members[name]) if name in members else None


@contextmanager
def _archive(path: str) -> Iterator[tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]]:
    """An opened .npz file and its arrays by name; damage is told as a DataError."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {Path(info.filename).stem: info for info in archive.infolist() if info.filename.endswith(".npy")}
            if any(name == "indptr" or name.endswith("_indptr") for name in members):
                raise DataError(f"{path}: holds a sparse matrix; sparse data is not supported yet, only dense arrays")
            yield archive, members
    except (zipfile.BadZipFile, OSError, NotImplementedError, zlib.error) as error:
        raise DataError(f"{path}: damaged or truncated .npz file ({error}); copy it again") from None


def _open_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> ArrayFile:
    """An array of an .npz file; where it is stored uncompressed, its elements are found in the file itself."""
    path, name = str(archive.filename), Path(info.filename).stem
    try:
        with archive.open(info) as file:
            shape, fortran, dtype = read_npy_header(file)
            header = file.tell()
    except (ValueError, EOFError, zipfile.BadZipFile, RuntimeError, zlib.error) as error:
        raise DataError(f"{path}: {name} cannot be read ({error}); save the file again with numpy.savez") from None
    offset = None
    if info.compress_type == zipfile.ZIP_STORED:
        with open(path, "rb") as raw:
            raw.seek(info.header_offset + 26)
            name_length, extra_length = struct.unpack("<HH", raw.read(4))
        offset = info.header_offset + 30 + name_length + extra_length + header
    return ArrayFile(path, name, shape, dtype, offset, fortran and len(shape) > 1, info.filename)
