"""MATLAB files: version 7.3 (HDF5), and earlier ones by SciPy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ...errors import DataError
from ..array_file import ArrayFile
from ..sources import Source
from .catalog import Entry, open_set
from .columns import Columns
from .variables import Block, Variable, VariablesFile

Array = Any

EARLIER = b"MATLAB 5.0 MAT-file"  # versions 5 to 7 write this
NO_NUMBERS = {"struct", "object", "function", "opaque", "table", "datetime", "categorical", "string"}
REFUSAL = (
    "is of MATLAB's class {kind}, which is not read: store numbers as a matrix (table2array, double) and words as"
    " a cell array (cellstr)"
)


def is_earlier(start: bytes) -> bool:
    """Whether a file that begins with ``start`` is one of versions 5 to 7."""
    return start.startswith(EARLIER)


def is_matlab(path: str) -> bool:
    """Whether an HDF5 file was written by MATLAB, or as by MATLAB."""
    with open(path, "rb") as file:
        return file.read(19).startswith(b"MATLAB 7.3 MAT-file")


def _class(data: Any) -> str:
    kind = data.attrs.get("MATLAB_class", b"")
    return kind.decode() if isinstance(kind, bytes) else str(kind)


def holds_words(data: Any) -> bool:
    """Whether a dataset of version 7.3 holds words."""
    return _class(data) in ("cell", "char")


def words(path: str, name: str, file: Any, data: Any) -> Variable:
    """The words in a cell array, or in the rows of a matrix of characters; they are held in memory."""
    if _class(data) == "char":
        found = tuple("".join(map(chr, row)).rstrip() for row in np.atleast_2d(data[()].T).tolist())
        return MatlabWords(path, name, (len(found),), np.dtype("U1"), found)
    texts = []
    for reference in data[()].T.ravel():
        item = file[reference]
        if _class(item) != "char":
            raise DataError(f"{path}: {name} is a cell array that holds other things than words; store a matrix")
        empty = item.attrs.get("MATLAB_empty", 0)
        texts.append("" if empty else "".join(map(chr, item[()].ravel().tolist())))
    return MatlabWords(path, name, (len(texts),), np.dtype("U1"), tuple(texts))


@dataclass(frozen=True)
class MatlabWords(Variable):
    """Words of a MATLAB file."""

    texts: tuple[str, ...]

    def blocks(self, start: int, stop: int) -> Iterator[Block]:
        """See `variables.Variable.blocks`."""
        yield Block(start, np.array(self.texts[start:stop])[:, None])


def open_earlier(
    path: str, names: Sequence[tuple[str, str]], columns: Columns
) -> Source | VariablesFile | ArrayFile | None:
    """The set in a file of versions 5 to 7; see `hdf5.open_hdf5`."""
    entries = [
        Entry(
            name, partial(_variable, path, name, shape, kind, columns), name, f"{' x '.join(map(str, shape))}, {kind}"
        )
        for name, shape, kind in _scipy(path, "whosmat")
    ]
    return open_set(path, entries, names, columns)


def _scipy(path: str, function: str, **options: Any) -> Any:
    import scipy.io

    try:
        return getattr(scipy.io, function)(path, **options)
    except Exception as error:  # SciPy tells damage by whatever it meets
        raise DataError(f"{path}: damaged or unreadable MATLAB file ({error!r}); copy it again") from None


def _variable(path: str, name: str, shape: tuple[int, ...], kind: str, columns: Columns) -> Variable:
    if kind == "sparse":
        raise DataError(f"{path}: {name} is a sparse matrix, which is not read from such files yet: store full({name})")
    if kind in NO_NUMBERS or kind not in _CLASSES:
        raise DataError(f"{path}: {name} {REFUSAL.format(kind=kind)}")
    if 0 in shape:
        raise DataError(f"{path}: {name} is empty")
    values = _scipy(path, "loadmat", variable_names=[name], chars_as_strings=True)[name]
    values = _rows_first(values, columns.transpose)
    if kind in ("cell", "char"):
        return EarlierVariable(path, name, values.shape[:1], np.dtype("U1"), columns.transpose, sequential=True)
    dtype = values.dtype.newbyteorder("=")
    return EarlierVariable(path, name, values.shape, dtype, columns.transpose, sequential=True)


_CLASSES = (
    *("double", "single", "logical", "cell", "char"),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
)


def _rows_first(values: Array, transpose: bool) -> Array:
    """A matrix with its rows on the first axis; a vector, which may lie along or across, with one axis."""
    if values.ndim > 1 and transpose:
        values = np.moveaxis(values, -1, 0)
    return values.reshape(-1) if sum(length > 1 for length in values.shape) <= 1 else values


@dataclass(frozen=True)
class EarlierVariable(Variable):
    """A variable of a MATLAB file before version 7.3, which one rank reads whole."""

    transpose: bool = False

    def blocks(self, start: int, stop: int) -> Iterator[Block]:
        """See `variables.Variable.blocks`."""
        values = _scipy(self.path, "loadmat", variable_names=[self.name], chars_as_strings=True)[self.name]
        values = _rows_first(values, self.transpose)
        if values.dtype.kind == "O":
            if not all(isinstance(item, np.ndarray) and item.dtype.kind == "U" for item in values.reshape(-1)):
                raise self.error("is a cell array that holds other things than words; store a matrix")
            values = np.array(["".join(item.ravel()) for item in values.reshape(-1)])
        if values.dtype.kind == "U":
            values = np.char.rstrip(values)
        yield Block(start, values.reshape(len(values), -1)[start:stop])
