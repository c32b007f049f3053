"""HDF5: datasets of one file; contiguous ones are mapped, all others read in stretches of whole chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import DataError
from ..array_file import ArrayFile, byte_scale
from ..checks import check_rows, check_weights
from ..dataset import storage_dtype
from ..sources import Source
from .stretch import Stretch

Array = Any

SIGNATURE = b"\x89HDF\r\n\x1a\n"
READ_BYTES = 16 << 20  # at a time, but at least a chunk
ALIASES = {
    "x": ("x", "data", "features", "images", "inputs"),
    "y": ("y", "label", "labels", "target", "targets"),
    "weight": ("weight", "weights", "sample_weight", "sample_weights"),
}


def open_hdf5(path: str, names: Sequence[tuple[str, str]], labelled: bool = True) -> Source | Hdf5File | None:
    """The set in the file that is called by one of the pairs of ``names``; None if there is none.

    Names are those of datasets, ``x``, ``y_test``, ``train/x`` and the like; see `ALIASES`.
    """
    with _opened(path) as file:
        found = _datasets(path, file)
        for x, y in names:
            if x not in found and y not in found:
                continue
            if x in found and not labelled:
                return _source(file, [_array(path, file, found[x])])
            if x not in found or y not in found:
                raise DataError(f"{path}: holds {found.get(x) or found[y]}, but no {y if x in found else x}")
            weight = found.get(y.replace("y", "weight", 1))
            return _source(file, [_array(path, file, name) for name in (found[x], found[y], weight) if name])
    return None


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    try:
        import h5py
    except ImportError:
        raise DataError(f"{path}: HDF5 files need the package h5py: pip install 'distai-mpi[hdf5]'") from None
    try:
        with h5py.File(path, "r") as file:
            yield file
    except DataError:
        raise
    except (
        OSError,
        RuntimeError,
        ValueError,
        KeyError,
        TypeError,
        UnicodeDecodeError,
    ) as error:  # as h5py tells damage
        raise DataError(f"{path}: damaged or unreadable HDF5 file ({error}); copy it again") from None


def _datasets(path: str, file: Any) -> dict[str, str]:
    """Names in the file of the datasets, by what they are for: x, y, weight, also with _train or _test."""
    import h5py

    found: dict[str, str] = {}

    def visit(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        words = name.lower().replace("/", "_").split("_")
        part = next((word for word in ("train", "test") if word in words), "")
        bare = "_".join(word for word in words if word != part)
        for role, aliases in ALIASES.items():
            key = f"{role}_{part}" if part else role
            if bare in aliases:
                if key in found:
                    raise DataError(f"{path}: {found[key]} and {name} could both be {key}; rename or remove one")
                found[key] = name

    file.visititems(visit)
    return found


def _array(path: str, file: Any, name: str) -> ArrayFile:
    """The dataset's shape and type, and where its elements lie if that is in one piece."""
    data = file[name]
    if data.shape is None:
        raise DataError(f"{path}: {name} is empty")
    try:
        storage_dtype(data.dtype)
    except DataError as error:
        raise DataError(f"{path}: {name} {error}") from None
    offset = None if data.external else data.id.get_offset()
    return ArrayFile(path, name, data.shape, data.dtype, offset)


def _source(file: Any, arrays: list[ArrayFile]) -> Source | Hdf5File:
    if len(arrays) > 1:
        source = Source(*arrays)  # also checks that they fit
        if source.sliceable:
            return source
    chunks = (file[array.name].chunks for array in arrays)
    return Hdf5File(arrays[0].path, tuple(arrays), max(chunk[0] if chunk else 1 for chunk in chunks))


@dataclass(frozen=True)
class Hdf5File:
    """Datasets of an HDF5 file that are stored in chunks or compressed; see `stretch.StretchFile`.

    Attributes:
        path: the file.
        arrays: x, and perhaps y, and perhaps weight.
        chunk: rows of a chunk; ranks share out whole ones.
    """

    path: str
    arrays: tuple[ArrayFile, ...]
    chunk: int
    sequential = False

    @property
    def files(self) -> set[str]:
        """Paths of the files: one."""
        return {self.path}

    @property
    def features(self) -> int:
        """Features of a row."""
        return self.arrays[0].width

    @property
    def dtype(self) -> np.dtype:
        """Type in which features are held."""
        return self.arrays[0].dtype

    @property
    def target_dtype(self) -> np.dtype:
        """Type in which labels are held."""
        return self.arrays[1].dtype if len(self.arrays) > 1 else np.dtype(np.int8)

    @property
    def scale(self) -> float:
        """What features are multiplied by."""
        return byte_scale(self.arrays[0].stored, self.arrays[0].shape)

    def empty(self) -> Stretch:
        """A stretch without rows."""
        weight = np.empty(0) if len(self.arrays) > 2 else None
        return Stretch(np.empty((0, self.features), self.dtype), np.empty(0, self.target_dtype), weight)

    def read(self, part: int, parts: int) -> Stretch:
        """Rows of the chunks that are the ``part``-th of ``parts`` shares of all."""
        rows = self.arrays[0].rows
        start, stop = (min(rows, round(rows * p / parts / self.chunk) * self.chunk) for p in (part, part + 1))
        if part == parts - 1:
            stop = rows
        with _opened(self.path) as file:
            x, *others = (self._values(file, array, start, stop) for array in self.arrays)
        y = others[0].reshape(-1) if others else np.zeros(stop - start, np.int8)
        weight = others[1].reshape(-1).astype(np.float64) if len(others) > 1 else None
        for array, values in zip(self.arrays, (x, y.reshape(-1, 1)), strict=False):
            check_rows(array, values, start)
        if weight is not None:
            check_weights(self.arrays[2], weight, start)
        return Stretch(x, y, weight)

    def _values(self, file: Any, array: ArrayFile, start: int, stop: int) -> Array:
        values = np.empty((stop - start, array.width), array.dtype)
        chunk_bytes = self.chunk * array.width * array.stored.itemsize
        step = self.chunk * max(1, READ_BYTES // max(1, chunk_bytes))
        for first in range(start, stop, step):
            end = min(stop, first + step)
            values[first - start : end - start] = file[array.name][first:end].reshape(end - first, array.width)
        return values
