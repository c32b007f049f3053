"""HDF5: the variables of a file; contiguous ones are mapped, all others read in ranges of whole HDF5 chunks."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ...errors import DataError
from ..array_file import BLOCK_BYTES, ArrayFile
from ..sources import Source
from . import hdf5_links, hdf5_sparse, hdf5_storage, matlab, netcdf
from .catalog import Entry, open_set
from .columns import Columns
from .variables import Block, Variable, VariablesFile

Array = Any

SIGNATURE = b"\x89HDF\r\n\x1a\n"
USER_BLOCKS = tuple(512 << i for i in range(20))  # where the signature may stand, but for the beginning
DAMAGE = (OSError, RuntimeError, ValueError, KeyError, TypeError, UnicodeDecodeError)  # as h5py tells it


def is_hdf5(path: str, start: bytes) -> bool:
    """Whether the file, whose first bytes are ``start``, is one of HDF5, perhaps behind a block of a user's own."""
    if start.startswith(SIGNATURE):
        return True
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        for offset in USER_BLOCKS:
            if offset >= size:
                break
            file.seek(offset)
            if file.read(len(SIGNATURE)) == SIGNATURE:
                return True
    return False


def open_hdf5(
    path: str, names: Sequence[tuple[str, str]], columns: Columns
) -> Source | VariablesFile | ArrayFile | None:
    """The set that is called by one of the pairs of ``names``, or that ``columns`` name; None where there is none.

    Names are those of datasets, ``x``, ``y_test``, ``train/x`` and the like; see `catalog.ALIASES`.
    """
    with opened(path) as file:
        settings = _Settings(matlab.is_matlab(path), netcdf.is_netcdf(file), columns.transpose, columns.dates)
        found = hdf5_links.walk(file, settings.matlab)
        entries = [
            Entry(
                item.name, partial(_open, path, file, item, settings), item.identity, item.about, item.quiet, item.usual
            )
            for item in found
        ]
        return open_set(path, entries, names, columns)


@contextmanager
def opened(path: str) -> Iterator[Any]:
    """The file; damage raises a DataError."""
    try:
        import h5py
    except ImportError:
        raise DataError(f"{path}: HDF5 files need the package h5py: pip install 'distai-mpi[hdf5]'") from None
    try:
        with h5py.File(path, "r") as file:
            yield file
    except DataError:
        raise
    except DAMAGE as error:
        raise DataError(f"{path}: damaged or unreadable HDF5 file ({error}); copy it again") from None


@dataclass(frozen=True)
class _Settings:
    """What decides how a file's datasets are read."""

    matlab: bool
    netcdf: bool
    transpose: bool
    dates: str | None


def _open(path: str, file: Any, item: hdf5_links.Item, settings: _Settings) -> Variable:
    """What ``item`` names: a dataset, categories of AnnData, or a sparse matrix."""
    if not item.sparse:
        return _variable(path, file, item, settings)

    def vector(name: str) -> Variable:
        return _variable(path, file, hdf5_links.Item(name, name), settings)

    group = file[item.sparse]
    shape = hdf5_sparse.shape_of(path, item.name, group)
    names = None if shape is None or settings.transpose else _column_names(file, item.name, shape)
    return hdf5_sparse.open_matrix(path, item.name, group, vector, settings.transpose, names)


def _variable(path: str, file: Any, item: hdf5_links.Item, settings: _Settings) -> Variable:
    """The dataset (or categories of AnnData) that ``item`` names."""
    from h5py import h5t

    if item.refusal:
        raise DataError(f"{path}: {item.name} {item.refusal}")
    data = file[item.name]
    if item.categories:
        return _categorical(path, item.name, data)
    if data.shape is None or (settings.matlab and data.attrs.get("MATLAB_empty", 0)):
        raise DataError(f"{path}: {item.name} is empty")
    others, filters = hdf5_storage.check(path, item.name, data)
    if settings.matlab and matlab.holds_words(data):
        return matlab.words(path, item.name, file, data)
    dtype, words, codes = _kind(path, item.name, data)
    axes = _axes(data.shape, settings)
    shape = tuple(data.shape[axis] for axis in axes)
    if dtype.kind == "U" and data.dtype == np.dtype("S1") and len(shape) > 1:
        shape = shape[:-1]  # text as netCDF has it, a character in each element
    packing = None
    if words is None and dtype.kind in "biuf":
        packing = netcdf.Packing.of(path, item.name, dict(data.attrs), dtype, settings.netcdf, settings.dates)
    found = Hdf5Variable(
        path,
        item.name,
        shape,
        dtype if packing is None else packing.dtype,
        data.dtype,
        axes,
        packing,
        codes,
        filters,
        words=words,
        gaps="" if packing is None else packing.gaps,
        column_names=_column_names(file, item.name, shape),
        chunk=data.chunks[axes[0]] if data.chunks else 1,
        others=frozenset(others | {data.file.filename}),
        note=netcdf.note_of_dates(dict(data.attrs), settings.dates),
    )
    offset = data.id.get_offset()
    mapped = packing is None and dtype.kind in "biuf" and words is None and offset is not None and not data.external
    # what lies there is of this dtype only if HDF5's own type is: of few bits, say, or with an offset, it is not
    if mapped and data.id.get_type() == h5t.py_create(data.dtype, logical=True):
        order = tuple(range(len(axes)))
        if axes == order or axes == order[::-1]:
            array = ArrayFile(data.file.filename, item.name, shape, data.dtype, offset, axes != order)
            return replace(found, array=array)
    return found


def _kind(path: str, name: str, data: Any) -> tuple[np.dtype, tuple[str, ...] | None, tuple[int, ...]]:
    """Type of the values, and where they stand for words: these and the numbers that stand for them."""
    import h5py

    dtype = data.dtype
    if h5py.check_string_dtype(dtype) is not None:
        return np.dtype("U1"), None, ()
    values = h5py.check_enum_dtype(dtype)
    if values is not None and dtype.kind != "b":
        by_number = sorted((int(number), word) for word, number in values.items())
        return np.dtype(np.int64), tuple(word for _, word in by_number), tuple(number for number, _ in by_number)
    if dtype.kind in "biuf":
        return np.dtype(dtype.newbyteorder("=")), None, ()
    what = f"values of type '{dtype}'"
    if dtype.names:
        what = f"records with the fields {', '.join(dtype.names)}"
    elif h5py.check_vlen_dtype(dtype) is not None:
        what = "rows of unequal lengths"
    elif h5py.check_ref_dtype(dtype) is not None:
        what = "references to other data"
    raise DataError(f"{path}: {name} holds {what}: these are no real numbers; store integers or floats in datasets")


def _axes(shape: tuple[int, ...], settings: _Settings) -> tuple[int, ...]:
    """The axes of a dataset: that of its rows, and those of what is in a row.

    MATLAB stores columns one after another, which HDF5 sees as axes in the reverse order; a vector of it may lie
    along or across.
    """
    axes = tuple(range(len(shape)))
    if settings.matlab:
        axes = axes[::-1]
    if len(shape) > 1 and settings.transpose:
        axes = (axes[-1], *axes[:-1])
    if settings.matlab and sum(length > 1 for length in shape) == 1 and shape[axes[0]] == 1:
        long = next(axis for axis in axes if shape[axis] > 1)
        axes = (long, *(axis for axis in axes if axis != long))
    return axes


def _column_names(file: Any, name: str, shape: tuple[int, ...]) -> tuple[str, ...] | None:
    """Names of the columns of X in an AnnData file."""
    if name != "X" or "encoding-type" not in file.attrs or file.attrs["encoding-type"] != "anndata" or len(shape) != 2:
        return None
    group = file.get("var")
    index = None if group is None else group.get(group.attrs.get("_index", "_index"))
    if index is None or index.shape != shape[1:]:
        return None
    names = tuple(str(one) for one in index.asstr()[:]) if index.dtype.kind in "OS" else None
    return names if names is not None and len(set(names)) == len(names) else None


def _categorical(path: str, name: str, group: Any) -> Variable:
    """A column of an AnnData table that numbers its categories."""
    codes, categories = group["codes"], group["categories"]
    strings = categories.dtype.kind in "OS"
    words = tuple(str(word) for word in (categories.asstr()[:] if strings else categories[:]))
    return Hdf5Variable(
        path,
        f"{name}/codes",
        codes.shape,
        np.dtype(np.int64),
        codes.dtype,
        (0,),
        None,
        tuple(range(len(words))),
        words=words,
        gaps="no category",
    )


@dataclass(frozen=True)
class Hdf5Variable(Variable):
    """A dataset of an HDF5 file.

    Attributes:
        stored: its own type.
        axes: its axes as rows, and what is in a row.
        packing: how numbers are packed, or None: not at all.
        codes: numbers that stand for `words`, one each.
        filters: numbers of the filters that it went through.
    """

    stored: np.dtype
    axes: tuple[int, ...]
    packing: netcdf.Packing | None = None
    codes: tuple[int, ...] = ()
    filters: frozenset[int] = frozenset()

    def blocks(self, start: int, stop: int) -> Iterator[Block]:
        """See `variables.Variable.blocks`."""
        step = self.step()
        with opened(self.path) as file:
            hdf5_storage.load_filters(self.filters)  # another rank may have found the file
            data = file[self.name]
            for first in range(start, stop, step):
                where = [slice(None)] * len(self.axes)
                where[self.axes[0]] = slice(first, min(first + step, stop))
                rows = self._strings(data)[tuple(where)].transpose(self.axes)
                yield self._decoded(first, rows.reshape(len(rows), -1))

    def _strings(self, data: Any) -> Any:
        """The dataset, of which strings are read as such."""
        whole_strings = self.dtype.kind == "U" and self.stored != np.dtype("S1")
        return data.asstr("utf-8", "replace") if whole_strings else data

    def _decoded(self, first: int, values: Array) -> Block:
        """Values as stored, shape (rows, elements), as they are meant."""
        if self.dtype.kind == "U" and self.stored == np.dtype("S1"):  # a character in each element
            text = [b"".join(row).decode("utf-8", "replace").rstrip("\0 ") for row in values.tolist()]
            return Block(first, np.array(text)[:, None])
        if self.dtype.kind == "U":
            return Block(first, values.astype(str))
        if self.words is not None:
            indices = np.searchsorted(self.codes, values).clip(0, len(self.codes) - 1)
            unknown = np.asarray(self.codes)[indices] != values
            return Block(first, indices, unknown if unknown.any() else None)
        if self.packing is None:
            return Block(first, values)
        return Block(first, *self.packing.unpack(values))

    def step(self) -> int:
        """See `variables.Variable.step`."""
        row_bytes = max(1, math.prod(self.shape[1:]) * self.stored.itemsize)
        return self.chunk * max(1, BLOCK_BYTES // (row_bytes * self.chunk))
