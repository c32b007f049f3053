"""NumPy's .npz: the named arrays of a zip archive, and the sparse matrices that some of them make up."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from ...errors import DataError
from ..array_file import ArrayFile, read_npy_header
from ..sources import Source
from .catalog import Entry, open_set
from .chunk import Csr
from .columns import Columns
from .sparse import SparseVariable, compressed, held_dtype, of_scipy, part_of
from .variables import ArrayVariable, VariablesFile

Array = Any
Members = Mapping[str, zipfile.ZipInfo]

# Names of the arrays of a sparse matrix, alone or behind NAME_, and those that each of SciPy's formats needs.
ROLES = ("data", "indices", "indptr", "shape", "format", "row", "col", "offsets", "_is_array")
FORMATS = {
    "csr": ("data", "indices", "indptr"),
    "csc": ("data", "indices", "indptr"),
    "bsr": ("data", "indices", "indptr", "shape"),
    "coo": ("data", "row", "col", "shape"),
    "dia": ("data", "offsets", "shape"),
}
DAMAGE = (ValueError, EOFError, zipfile.BadZipFile, RuntimeError, zlib.error)


def open_npz(
    path: str, names: Sequence[tuple[str, str]], columns: Columns
) -> Source | VariablesFile | ArrayFile | None:
    """The set that is called by one of the pairs of ``names``, or that ``columns`` name; None where there is none.

    Arrays ``NAME_data``, ``NAME_indices``, ``NAME_indptr`` and ``NAME_shape`` are the sparse matrix ``NAME``; those
    that SciPy's ``save_npz`` writes, which have no such name, are ``x``.
    """
    with _archive(path) as (archive, members):
        entries, taken = [], set()
        for prefix in _prefixes(members):
            parts = {role: prefix + role for role in ROLES if prefix + role in members}
            taken |= set(parts.values())
            name = prefix[:-1] or "x"
            opener = partial(_sparse, archive, members, name, parts, columns.transpose)
            entries.append(Entry(name, opener, tuple(parts.values()), "a sparse matrix"))
        for name, info in members.items():
            if name not in taken:
                entries.append(Entry(name, partial(_variable, archive, info, columns), name))
        return open_set(path, entries, names, columns, plain=True)


def open_alone(path: str) -> ArrayFile | None:
    """The one array of a file that holds no other; None where there are more."""
    with _archive(path) as (archive, members):
        return _open_member(archive, *members.values()) if len(members) == 1 else None


def open_arrays(path: str) -> dict[str, ArrayFile]:
    """All arrays of a file, by their names."""
    with _archive(path) as (archive, members):
        return {name: _open_member(archive, info) for name, info in members.items()}


@contextmanager
def _archive(path: str) -> Iterator[tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]]:
    """An opened .npz file and its arrays by name; damage raises a DataError."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive, {Path(one.filename).stem: one for one in archive.infolist() if one.filename.endswith(".npy")}
    except (zipfile.BadZipFile, OSError, NotImplementedError, zlib.error) as error:
        raise DataError(f"{path}: damaged or truncated .npz or .zip file ({error}); copy it again") from None


def _variable(archive: zipfile.ZipFile, info: zipfile.ZipInfo, columns: Columns) -> ArrayVariable:
    array = _open_member(archive, info)
    if columns.transpose and len(array.shape) == 2:
        array = replace(array, shape=array.shape[::-1], fortran=not array.fortran)
    return ArrayVariable.of(array)


@contextmanager
def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[IO[bytes]]:
    """A member of the archive; damage raises a DataError."""
    try:
        with archive.open(info) as file:
            yield file
    except DAMAGE as error:
        name = Path(info.filename).stem
        raise DataError(
            f"{archive.filename}: {name} cannot be read ({error}); save the file again with numpy.savez"
        ) from None


def _open_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> ArrayFile:
    """An array of an .npz file; where it is stored uncompressed, its elements are found in the file itself."""
    path, name = str(archive.filename), Path(info.filename).stem
    with _member(archive, info) as file:
        shape, fortran, dtype = read_npy_header(file)
        header = file.tell()
    offset = None
    if info.compress_type == zipfile.ZIP_STORED:
        with open(path, "rb") as raw:
            raw.seek(info.header_offset + 26)
            name_length, extra_length = struct.unpack("<HH", raw.read(4))
        offset = info.header_offset + 30 + name_length + extra_length + header
    return ArrayFile(path, name, shape, dtype, offset, fortran and len(shape) > 1, info.filename, header)


def _prefixes(members: Members) -> list[str]:
    """What stands before ``data``, ``indices`` and the like in the names of each sparse matrix's arrays."""
    found: dict[str, None] = {}
    for name in members:
        for role, others in (("indptr", ()), ("format", ("data", "shape"))):
            prefix = name.removesuffix(role)
            if name in (role, f"{prefix[:-1]}_{role}") and all(prefix + other in members for other in others):
                found[prefix] = None
    return list(found)


def _sparse(
    archive: zipfile.ZipFile, members: Members, name: str, parts: dict[str, str], transpose: bool
) -> SparseVariable:
    """The sparse matrix ``name``, whose arrays are called ``parts``, by their roles."""
    path = str(archive.filename)
    layout = _small(archive, members[parts["format"]]) if "format" in parts else None
    kind = "csr" if layout is None else _word(layout)
    if kind not in FORMATS:
        raise DataError(f"{path}: {parts['format']} is {kind!r}; formats of sparse matrices are {', '.join(FORMATS)}")
    lost = [role for role in FORMATS[kind] if role not in parts]
    if lost:
        raise DataError(
            f"{path}: {name} is a sparse matrix ({kind}) of which {', '.join(sorted(parts.values()))} are there, and no"
            f" {', '.join(lost)}; save it again with scipy.sparse.save_npz, or all of its arrays"
        )
    shape = None
    if "shape" in parts:
        sizes = _small(archive, members[parts["shape"]])
        if sizes.dtype.kind not in "iu" or sizes.ndim != 1:
            raise DataError(f"{path}: {parts['shape']} holds no shape: it needs the rows and the columns, two integers")
        shape = tuple(sizes.tolist())
    if kind in ("csr", "csc"):
        data, indices = (_vector(archive, members[parts[role]]) for role in ("data", "indices"))
        indptr = ArrayVariable.of(_open_member(archive, members[parts["indptr"]]))
        stated = None if layout is None else kind
        return compressed(path, name, (data, indices, indptr), shape, stated, transpose)
    with _member(archive, members[parts["data"]]) as file:
        stored = read_npy_header(file)[2]
    if stored.kind not in "biuf":
        raise DataError(f"{path}: {parts['data']} is of type '{stored}', and no real numbers; store integers or floats")
    if shape is None or len(shape) != 2:
        raise DataError(f"{path}: {name} has shape {shape}, but a matrix has two axes: rows and features")
    roles = [role for role in FORMATS[kind] if role != "shape"]
    files = tuple((role, members[parts[role]].filename) for role in roles)
    shape, dtype = shape[::-1] if transpose else shape, held_dtype(stored)
    return ScipyMatrix(path, name, shape, dtype, kind, files, stored.kind == "b", transpose, sequential=True)


def _vector(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> ArrayVariable | None:
    """An array of a sparse matrix; None where it is empty, for the matrix has no entries."""
    with _member(archive, info) as file:
        shape = read_npy_header(file)[0]
    return None if shape == (0,) else ArrayVariable.of(_open_member(archive, info))


def _small(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Array:
    """An array of a few values."""
    with _member(archive, info) as file:
        shape, _, dtype = read_npy_header(file)
        if dtype.hasobject or np.prod(shape) > 8:
            raise ValueError(f"an array of type '{dtype}' and shape {shape} is no part of a sparse matrix")
    with _member(archive, info) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _word(value: Array) -> str:
    word = value.reshape(-1)[0] if value.size else ""
    return word.decode("latin-1") if isinstance(word, bytes) else str(word)


@dataclass(frozen=True)
class ScipyMatrix(SparseVariable):
    """A matrix in another of SciPy's formats, which one rank reads whole.

    Attributes:
        layout: the format, one of `FORMATS`.
        files: roles of its arrays, and what they are called in the archive.
        truths: whether values are bools.
        transpose: whether a row of the data is stored as a column.
    """

    layout: str
    files: tuple[tuple[str, str], ...]
    truths: bool
    transpose: bool

    def csr(self, start: int, stop: int) -> Csr:
        """See `SparseVariable.csr`."""
        import scipy.sparse

        with _archive(self.path) as (archive, _):
            arrays = {}
            for role, name in self.files:
                with _member(archive, archive.getinfo(name)) as file:
                    arrays[role] = np.lib.format.read_array(file, allow_pickle=False)
        values = arrays.pop("data").astype(self.dtype)
        shape = self.shape[::-1] if self.transpose else self.shape
        try:
            if self.layout == "coo":
                matrix = scipy.sparse.coo_array((values, (arrays["row"], arrays["col"])), shape=shape)
            elif self.layout == "dia":
                matrix = scipy.sparse.dia_array((values, arrays["offsets"]), shape=shape)
            else:
                matrix = scipy.sparse.bsr_array((values, arrays["indices"], arrays["indptr"]), shape=shape)
                matrix.check_format(full_check=True)
            rows = of_scipy(matrix.T if self.transpose else matrix)
        except (ValueError, TypeError, IndexError) as error:
            raise self.error(f"is damaged: its arrays make no sparse matrix ({self.layout}): {error}") from None
        if self.truths:
            np.minimum(rows.values, 1, out=rows.values)
        return part_of(rows, start, stop)
