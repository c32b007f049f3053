"""File formats, recognised by their first bytes, and what a user may name as data."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from ..errors import DataError
from . import foreign
from .array_file import ArrayFile, read_npy_header
from .folders import refuse_lost_label
from .paired import open_paired
from .part_files import open_several
from .readers import hdf5, look, matlab, netcdf, npz, parquet
from .readers.catalog import make_set
from .readers.chunk import ChunkedFile, NoRows
from .readers.columns import Columns
from .readers.compressed import UNPACK, ZIP, compression, unpacked
from .readers.sparse import SparseFile
from .readers.variables import ArrayVariable, Variable
from .sources import Source, check_pair
from .spec import Spec, data_files, plain_file, spec_name, split_spec

Found = Source | ChunkedFile  # what can be looked at, and what must be read first

ACCEPTED = """\
accepted are
  mnist                the MNIST digits that come with the package
  FILE.npz             with arrays x_train, y_train and perhaps x_test, y_test; or x, y; and perhaps weight_train, ...
                       a sparse matrix as x_data, x_indices, x_indptr and x_shape in place of x
  X.npz,Y.npy          a matrix of scipy.sparse.save_npz, or a sparse one in HDF5, and labels: .npy, .npz or a table
  X.npy,Y.npy          features and labels, two files
  X.csv,Y.csv          likewise, where Y is a table of one column
  IMAGES,LABELS        two IDX files (the format of MNIST)
  FILE.csv             a table, one row a line, with commas, semicolons, tabs or blanks between them; perhaps a header
  FILE.svm             libsvm text: label index:value index:value ...
  FILE.h5              HDF5 with datasets as the arrays of an .npz, or whichever --features and --label name; or a
                       sparse matrix as a group of data, indices and indptr, as in AnnData
  FILE.nc, FILE.mat    netCDF and MATLAB, likewise by --features and --label
  FILE.parquet         a table
  A.csv,B.csv,...      several files of one kind and with the same columns, whose rows make one data set
  'part-*.csv'         those that match a pattern, ** for any folders; in quotes, lest the shell replaces it
  FOLDER               those in a folder; names of folders key=value in it are columns
text, .npy and IDX files may be compressed by gzip, bzip2, xz, Zstandard, or be the one file of a zip archive; files are
recognised by what they hold, not by their names"""

NPY = b"\x93NUMPY"
IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
TRAIN_NAMES = (("x_train", "y_train"), ("x", "y"))
TEST_NAMES = (("x_test", "y_test"), ("x", "y"))
FEATURE_NAMES = (("x", "y"), ("x_test", "y_test"), ("x_train", "y_train"))


class Look(NamedTuple):
    """The beginning of a file.

    Attributes:
        start: its first bytes, unpacked where it is compressed; may be none.
        packed: how it is compressed, a key of `readers.compressed.UNPACK`; None: it is not.
    """

    path: str
    start: bytes
    packed: str | None

    @property
    def is_npz(self) -> bool:
        """Whether it is a zip archive of arrays, or a damaged one."""
        return self.start.startswith(ZIP)

    @property
    def container(self) -> Callable[..., Found | ArrayFile | None] | None:
        """What opens a file of named arrays; None where it is no such file."""
        if self.is_npz:
            return npz.open_npz
        if self.start.startswith(netcdf.CLASSIC):
            return netcdf.open_classic
        if matlab.is_earlier(self.start):
            return matlab.open_earlier
        return hdf5.open_hdf5 if self.packed is None and hdf5.is_hdf5(self.path, self.start) else None

    @property
    def is_parquet(self) -> bool:
        """Whether it is a Parquet file, and no text that begins with such letters."""
        return self.start.startswith((parquet.SIGNATURE, parquet.ENCRYPTED)) and not foreign.is_text(self.start)

    @property
    def is_npy(self) -> bool:
        """Whether it is a .npy file."""
        return self.start.startswith(NPY)

    @property
    def is_idx(self) -> bool:
        """Whether it is an IDX file."""
        start = self.start
        return len(start) >= 4 and start[:2] == b"\0\0" and start[2] in IDX_TYPES and start[3] > 0

    @property
    def is_array(self) -> bool:
        """Whether it holds one array."""
        return self.is_npy or self.is_idx


def find(
    data: Spec, test: Spec | None = None, columns: Columns | None = None, dtype: DTypeLike = np.float64
) -> tuple[Found, Found | None]:
    """Look at the files that ``data`` and ``test`` name; return the training and the test set.

    What they may name says `ACCEPTED`; several files may also be given as a list.
    Without ``test`` the test set is the one in the files of ``data``, or None.  ``columns`` says which columns of a
    table (CSV, Parquet) are label and weight; ``dtype`` is the type in which features in text are held.

    Raises:
        DataError: a file is missing or damaged, or arrays do not fit; names what is at fault.
        ConfigError: columns are named for a file that is no table.
    """
    columns, dtype = columns or Columns(), np.dtype(dtype)
    train = _open(data, TRAIN_NAMES, columns, dtype)
    if train is None:
        raise DataError(f"{spec_name(data)}: no training data (x_train and y_train, or x and y); {ACCEPTED}")
    columns = columns.following(train)
    if test is not None:
        held_out = _open(test, TEST_NAMES, columns, dtype)
        if held_out is None:
            raise DataError(f"{spec_name(test)}: no test data (x_test and y_test, or x and y); {ACCEPTED}")
    else:
        held_out = _open(data, TEST_NAMES[:1], columns, dtype)
    if isinstance(train, Source) and isinstance(held_out, Source):
        check_pair(train, held_out)
    return train, held_out


def find_features(data: Spec, columns: Columns | None = None, dtype: DTypeLike = np.float64) -> ArrayFile | ChunkedFile:
    """The features, without labels, that ``data`` names: an array, x, x_test or x_train of a file, or a table.

    Columns that ``columns`` names are left out.

    Raises:
        DataError: the file is missing or damaged, or holds no features.
        ConfigError: columns are named for a file that is no table.
    """
    columns, open_one = replace(columns or Columns(), wanted=False), partial(_open_features, dtype=np.dtype(dtype))
    parts = split_spec(data)
    files = data_files(parts)
    if len(parts) == len(files) == 2 and all(map(plain_file, parts)):
        _refuse_pair(*parts)
    if len(files) == 1 and not files[0].folders:
        return open_one(files[0].path, columns)
    found = open_several(spec_name(data), files, open_one, columns)
    assert found is not None  # for a file without features is an error
    return found


def _refuse_pair(x: str, y: str) -> None:
    """Raise a DataError about two arrays, features and labels as for training: both would be taken for features."""
    if look_at(x).is_array and look_at(y).is_array and open_array(y, "labels").width == 1:
        raise DataError(f"{x},{y}: {y} has one value a row, as labels; for predictions give the features alone: {x}")


def _open_features(path: str, columns: Columns, dtype: np.dtype) -> ArrayFile | ChunkedFile:
    """The features in one file."""
    seen = look_at(path)
    found = _open_rows(seen, FEATURE_NAMES, columns, dtype)
    if found is not None:
        return found.x if isinstance(found, Source) else found
    if seen.container is not None:
        raise DataError(f"{path}: no features (x, x_test or x_train); name them with --features")
    array = open_array(path, "features")
    if array.stored.names:
        table = _open_table(path, columns)
    else:
        replace(columns, columns=None, drop=None).refuse(path)  # columns of an array have numbers, not names
        table = make_set(path, [ArrayVariable.of(array)], None, None, None, columns, plain=True)
    assert table is not None
    return table.x if isinstance(table, Source) else table


def _open(spec: Spec, names: Sequence[tuple[str, str]], columns: Columns, dtype: np.dtype) -> Found | None:
    """The set in ``spec`` that is called by one of the pairs of ``names``; None if there is none.

    Two files, or tables, hold a set without a name: as good as the pair ``x``, ``y``.
    """
    parts = split_spec(spec)
    two = len(parts) == 2 and all(map(plain_file, parts))
    pair = _two_arrays(parts, columns) if two else None
    if pair is not None:
        columns.refuse_lines(spec_name(spec))
        replace(columns, columns=None, drop=None).refuse(spec_name(spec))
        if ("x", "y") not in names:
            return None
        x, y = pair
        called = None if x.column_names is None else [x.name]
        made = make_set(parts[0], [x], called, y, None, columns, plain=True)
        assert not isinstance(made, ArrayFile)
        return made
    files = data_files(parts)
    several = len(files) > 1 or bool(files[0].folders)
    open_one = partial(_open_set, names=names, dtype=dtype, alone=not several)
    if several:
        tables = open_paired(spec_name(spec), parts[0], parts[1], open_one, columns, _sparse_features) if two else None
        if tables is not None:
            return tables
        return open_several(spec_name(spec), files, open_one, columns)
    found = open_one(files[0].path, columns)
    if getattr(found, "feature_names", None) is not None:
        refuse_lost_label(files[0].path, columns)
    return found


def _open_set(
    path: str, columns: Columns, names: Sequence[tuple[str, str]], dtype: np.dtype, alone: bool = True
) -> Found | None:
    """The set in one file, which is a data set ``alone`` or one of several files of it."""
    seen = look_at(path)
    found = _open_rows(seen, names, columns, dtype, alone)
    if found is None and seen.is_npy and ("x", "y") in names:
        found = _open_table(path, columns)
    assert not isinstance(found, ArrayFile)
    if found is not None or seen.container is not None or ("x", "y") not in names:
        return found
    if seen.is_array:
        raise DataError(f"{path}: holds one array, but labels are needed too: give both files as X,Y; {ACCEPTED}")
    raise _unknown(seen)


def _open_rows(
    seen: Look, names: Sequence[tuple[str, str]], columns: Columns, dtype: np.dtype, alone: bool = True
) -> Found | ArrayFile | None:
    """The set in a file of named arrays, or in a table: Parquet, CSV, libsvm; None where there is none."""
    container = seen.container
    if container is not None or seen.is_array or seen.is_parquet:
        columns.refuse_lines(seen.path)
    if container is not None or seen.is_array:
        columns.refuse_encoded(seen.path)
    if container is not None:
        return container(seen.path, names, columns)
    if ("x", "y") not in names or seen.is_array:
        return None
    if seen.is_parquet:
        return parquet.open_parquet(seen.path, columns, alone)
    if not seen.start:
        raise NoRows(f"{seen.path}: the file is empty; {ACCEPTED}")
    found = look.open_text(seen.path, seen.packed is not None, columns, dtype)
    return found and found.parallel(seen.packed)


def _unknown(seen: Look) -> DataError:
    """The DataError about a format that nothing is known of."""
    what = "the format" if seen.packed is None else f"the format of what is compressed in it ({seen.packed})"
    return DataError(f"{seen.path}: {what} is not known; {ACCEPTED}")


def look_at(path: str) -> Look:
    """The beginning of the file at ``path``.

    Raises:
        DataError: there is no such file, it cannot be read, or it is of a format that is known and not read here.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode) and not os.path.isdir(path):  # a pipe would wait for its writer
            raise DataError(f"{path}: is no regular file; copy what it gives to a file first")
        with open(path, "rb") as file:
            start = file.read(foreign.LOOK_BYTES)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; {ACCEPTED}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {ACCEPTED}") from None
    packed = compression(path, start)
    if packed is not None:
        with unpacked(path) as inside:
            start = inside.read(foreign.LOOK_BYTES)
    foreign.refuse(path, start)
    if start.startswith(netcdf.CLASSIC_5):
        raise DataError(
            f"{path}: this kind of netCDF (CDF-5) is not read: nccopy -k nc4 {path} NEW.nc turns it into HDF5"
        )
    seen = Look(path, start, packed)
    if packed is not None and (
        seen.container is not None or start.startswith(hdf5.SIGNATURE) or seen.is_parquet or compression(path, start)
    ):
        raise DataError(
            f"{path}: what is compressed in it can only be read from a file of its own: unpack it"
            f" ({UNPACK[packed]} {path})"
        )
    return seen


def open_array(path: str, name: str, paired: bool = False) -> ArrayFile:
    """The one array of a .npy or IDX file, perhaps compressed; ``paired`` with another file."""
    seen = look_at(path)
    if not seen.start:
        raise DataError(f"{path}: the file is empty; {ACCEPTED}")
    if seen.is_npy:
        return _open_npy(path, name, seen.packed is not None)
    if seen.is_idx:
        return _open_idx(path, name, seen.packed is not None)
    if seen.container is not None:
        raise DataError(f"{path}: such a file holds features and labels: give it alone; {ACCEPTED}")
    if paired:
        raise DataError(
            f"{path}: is neither a .npy nor an IDX file, as the two of a pair X,Y must be;"
            f" give a table such as CSV alone; {ACCEPTED}"
        )
    raise _unknown(seen)


def _two_arrays(paths: Sequence[str], columns: Columns) -> tuple[Variable, Variable] | None:
    """Features and labels, where the two files hold one each: two arrays, or a sparse matrix and an array."""
    seen = [look_at(path) for path in paths]
    if seen[0].container is not None and (seen[1].is_array or seen[1].is_npz):
        of_labels = npz.open_alone(paths[1]) if seen[1].is_npz else open_array(paths[1], "labels", paired=True)
        matrix = None if of_labels is None else _sparse_features(paths[0], columns)
        if of_labels is not None and matrix is not None:
            return matrix.parts[0].variable, ArrayVariable.of(of_labels)
    if not any(one.is_array for one in seen):
        return None
    x, y = (open_array(path, name, paired=True) for path, name in zip(paths, ("features", "labels"), strict=True))
    return ArrayVariable.of(x), ArrayVariable.of(y)


def _sparse_features(path: str, columns: Columns) -> SparseFile | None:
    """The sparse matrix in a file whose labels are in another one; None where it holds none."""
    container = look_at(path).container
    if container is None:
        return None
    found = container(path, (*TRAIN_NAMES[::-1], *TEST_NAMES[:1]), replace(columns, wanted=False, label=None))
    return found if isinstance(found, SparseFile) else None


@contextmanager
def _unpacking(path: str, packed: bool) -> Iterator[IO[bytes]]:
    """The file, uncompressed if it is ``packed``; damage raises a DataError."""
    with unpacked(path) if packed else open(path, "rb") as file:
        yield file


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


def _open_table(path: str, columns: Columns) -> Found | ArrayFile | None:
    """The columns of a single array as a table, where it has named fields, or --label names its columns."""
    array = open_array(path, "array")
    if array.stored.names:
        if len(array.shape) > 1:
            raise array.error(f"has shape {array.shape} and named fields; give it one axis")
        fields = ArrayVariable.fields(array)
        return make_set(path, list(fields), [field.name for field in fields], None, None, columns)
    if columns.label is None or columns.optional:
        return None
    return make_set(path, [ArrayVariable.of(array)], None, None, None, columns)
