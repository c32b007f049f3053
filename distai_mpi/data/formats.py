"""File formats, told by their first bytes, and what a user may name as data."""

from __future__ import annotations

import gzip
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import DTypeLike

from ..errors import DataError
from .array_file import ArrayFile, read_npy_header
from .readers import hdf5, look, parquet
from .readers.columns import Columns
from .readers.stretch import StretchFile
from .sources import Source, check_pair

Found = Source | StretchFile  # what can be looked at, and what must be read first

ACCEPTED = """\
accepted are
  mnist                the MNIST digits that come with the package
  FILE.npz             with arrays x_train, y_train and perhaps x_test, y_test; or x, y; and perhaps weight_train, ...
  X.npy,Y.npy          features and labels, two files
  IMAGES,LABELS        two IDX files (the format of MNIST)
  FILE.csv             numbers, one row a line, with commas, semicolons, tabs or blanks between them; perhaps a header
  FILE.svm             libsvm text: label index:value index:value ...
  FILE.h5              HDF5 with datasets as the arrays of an .npz
  FILE.parquet         a table of numbers
.npy, IDX, CSV and libsvm files may be compressed by gzip; files are told by what they hold, not by their names"""

NPY, ZIP, GZIP = b"\x93NUMPY", b"PK", b"\x1f\x8b"
IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
TRAIN_NAMES = (("x_train", "y_train"), ("x", "y"))
TEST_NAMES = (("x_test", "y_test"), ("x", "y"))
FEATURE_NAMES = (("x", "y"), ("x_test", "y_test"), ("x_train", "y_train"))
BINARY = (ZIP, NPY, hdf5.SIGNATURE, parquet.SIGNATURE, GZIP)  # what is no text


def find(
    data: str | os.PathLike,
    test: str | os.PathLike | None = None,
    columns: Columns | None = None,
    dtype: DTypeLike = np.float64,
) -> tuple[Found, Found | None]:
    """Look at the files that ``data`` and ``test`` name; return the training and the test set.

    A spec is ``mnist``, one path, or two paths with a comma between them: features, labels.
    Without ``test`` the test set is the one in the file of ``data``, or None.  ``columns`` says which columns of a
    table (CSV, Parquet) are label and weight; ``dtype`` is the type in which features in text are held.

    Raises:
        DataError: a file is missing or damaged, or arrays do not fit; names what is at fault.
        ConfigError: columns are named for a file that is no table.
    """
    columns, dtype = columns or Columns(), np.dtype(dtype)
    train = _open(data, TRAIN_NAMES, columns, dtype)
    if train is None:
        raise DataError(f"{data}: no training data (x_train and y_train, or x and y); {ACCEPTED}")
    if test is not None:
        held_out = _open(test, TEST_NAMES, columns, dtype)
        if held_out is None:
            raise DataError(f"{test}: no test data (x_test and y_test, or x and y); {ACCEPTED}")
    else:
        held_out = _open(data, TEST_NAMES[:1], columns, dtype)
    if isinstance(train, Source) and isinstance(held_out, Source):
        check_pair(train, held_out)
    return train, held_out


def find_features(
    data: str | os.PathLike, columns: Columns | None = None, dtype: DTypeLike = np.float64
) -> ArrayFile | StretchFile:
    """The features, without labels, that ``data`` names: an array, x, x_test or x_train of a file, or a table.

    Columns that ``columns`` names are left out.

    Raises:
        DataError: the file is missing or damaged, or holds no features.
        ConfigError: columns are named for a file that is no table.
    """
    path = _path(data)
    columns = replace(columns or Columns(), wanted=False)
    start = _first_bytes(path)
    table = _open_rows(path, start, FEATURE_NAMES, columns, np.dtype(dtype))
    if table is not None:
        return table.x if isinstance(table, Source) else table
    columns.refuse(path)
    if start.startswith(hdf5.SIGNATURE):
        raise DataError(f"{path}: no features (x, x_test or x_train)")
    if not start.startswith(ZIP):
        return _open_array(path, "features")
    for name, _ in FEATURE_NAMES:
        array = _open_npz_array(path, name)
        if array is not None:
            return array
    raise DataError(f"{path}: no features (x, x_test or x_train)")


def _path(spec: str | os.PathLike) -> str:
    """The path that ``spec`` stands for."""
    text = os.fspath(spec)
    return str(Path(__file__).with_name("mnist.npz")) if text == "mnist" else text


def _open(spec: str | os.PathLike, names: Sequence[tuple[str, str]], columns: Columns, dtype: np.dtype) -> Found | None:
    """The set in ``spec`` that is called by one of the pairs of ``names``; None if there is none.

    Two files, or one table, hold a set without a name: as good as the pair ``x``, ``y``.
    """
    text = _path(spec)
    if text.count(",") == 1 and not os.path.exists(text):
        columns.refuse(text)
        if ("x", "y") not in names:
            return None
        first, second = text.split(",")
        return Source(_open_array(first, "features", paired=True), _open_array(second, "labels", paired=True))
    start = _first_bytes(text)
    if start.startswith(ZIP):
        columns.refuse(text)
        return _open_npz(text, names)
    found = _open_rows(text, start, names, columns, dtype)
    if found is not None or start.startswith(hdf5.SIGNATURE) or ("x", "y") not in names:
        return found
    if _unpacked_bytes(text, start).startswith(NPY) or _is_idx(_unpacked_bytes(text, start)):
        raise DataError(f"{text}: holds one array, but labels are needed too: give both files as X,Y; {ACCEPTED}")
    raise _foreign(text, start)


def _open_rows(
    path: str, start: bytes, names: Sequence[tuple[str, str]], columns: Columns, dtype: np.dtype
) -> Found | None:
    """The set in an HDF5 file, or in a table: Parquet, CSV, libsvm; None where there is none."""
    if start.startswith(hdf5.SIGNATURE):
        columns.refuse(path)
        return hdf5.open_hdf5(path, names, columns.wanted)
    if start.startswith(parquet.SIGNATURE):
        return parquet.open_parquet(path, columns) if ("x", "y") in names else None
    unpacked = _unpacked_bytes(path, start)
    if unpacked.startswith(BINARY) or _is_idx(unpacked) or ("x", "y") not in names:
        return None
    if not unpacked:
        raise DataError(f"{path}: the file is empty; {ACCEPTED}")
    return look.open_text(path, unpacked is not start, columns, dtype)


def _first_bytes(path: str) -> bytes:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode) and not os.path.isdir(path):  # a pipe would wait for its writer
            raise DataError(f"{path}: is no regular file; copy what it gives to a file first")
        with open(path, "rb") as file:
            start = file.read(8)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; {ACCEPTED}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {ACCEPTED}") from None
    if not start:
        raise DataError(f"{path}: the file is empty; {ACCEPTED}")
    return start


def _unpacked_bytes(path: str, start: bytes) -> bytes:
    """The first bytes of what is in a file: ``start`` itself, unless it is compressed by gzip."""
    if not start.startswith(GZIP):
        return start
    try:
        with gzip.open(path) as file:
            return file.read(8)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged or truncated gzip file ({error}); copy it again") from None


def _foreign(path: str, start: bytes) -> DataError:
    if start.startswith(GZIP):
        return DataError(f"{path}: what is compressed in it is not known: unpack it (gunzip -k {path}); {ACCEPTED}")
    return DataError(f"{path}: the format is not known; {ACCEPTED}")


def _is_idx(start: bytes) -> bool:
    return len(start) >= 4 and start[:2] == b"\0\0" and start[2] in IDX_TYPES and start[3] > 0


def _open_array(path: str, name: str, paired: bool = False) -> ArrayFile:
    """The one array of a .npy or IDX file, perhaps compressed by gzip; ``paired`` with another file."""
    start = _first_bytes(path)
    unpacked = _unpacked_bytes(path, start)
    if unpacked.startswith(NPY):
        return _open_npy(path, name, unpacked is not start)
    if _is_idx(unpacked):
        return _open_idx(path, name, unpacked is not start)
    if start.startswith((ZIP, hdf5.SIGNATURE)):
        raise DataError(f"{path}: such a file holds features and labels: give it alone; {ACCEPTED}")
    if paired:
        raise DataError(
            f"{path}: is neither a .npy nor an IDX file, as the two of a pair X,Y must be;"
            f" give a table such as CSV alone; {ACCEPTED}"
        )
    raise _foreign(path, start)


@contextmanager
def _unpacking(path: str, packed: bool) -> Iterator[IO[bytes]]:
    """The file, uncompressed if it is ``packed``; damage is told as a DataError."""
    try:
        with gzip.open(path) if packed else open(path, "rb") as file:
            yield file  # type: ignore[misc]
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path}: damaged or truncated file ({error}); copy it again") from None


def _open_npy(path: str, name: str, packed: bool) -> ArrayFile:
    with _unpacking(path, packed) as file:
        try:
            shape, fortran, dtype = read_npy_header(file)
        except ValueError as error:
            raise DataError(f"{path}: damaged .npy header ({error}); copy or save it again") from None
        begin = file.tell()
    return ArrayFile(path, name, shape, dtype, None if packed else begin, fortran and len(shape) > 1, header=begin)


def _open_idx(path: str, name: str, packed: bool) -> ArrayFile:
    """An IDX file: two zero bytes, type, number of axes, lengths of the axes, elements; all big-endian."""
    with _unpacking(path, packed) as file:
        kind, axes = file.read(4)[2:]
        lengths = file.read(4 * axes)
    if len(lengths) < 4 * axes:
        raise DataError(f"{path}: the IDX header is truncated; copy the file again")
    shape, begin = struct.unpack(f">{axes}I", lengths), 4 + 4 * axes
    array = ArrayFile(path, name, shape, np.dtype(IDX_TYPES[kind]), None if packed else begin, header=begin)
    if not packed:  # the mark of the format is weak; its length is a strong check
        surplus = os.path.getsize(path) - begin - array.rows * array.width * array.stored.itemsize
        if surplus:
            raise array.error(f"is followed by {surplus} bytes that do not belong there: no IDX file, or a damaged one")
    return array


def _open_npz(path: str, names: Sequence[tuple[str, str]]) -> Source | None:
    with _archive(path) as (archive, members):
        for x, y in names:
            if x in members and y in members:
                weight = members.get(y.replace("y", "weight", 1))
                found = [member for member in (members[x], members[y], weight) if member is not None]
                return Source(*(_open_member(archive, member) for member in found))
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
    return ArrayFile(path, name, shape, dtype, offset, fortran and len(shape) > 1, info.filename, header)
