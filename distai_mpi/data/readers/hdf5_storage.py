"""Checks that the storage of an HDF5 dataset is complete: its filters, external files and virtual sources."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import numpy as np

from ...errors import DataError

DEPTH = 16  # of virtual datasets that are made of virtual datasets


def check(path: str, name: str, data: Any) -> tuple[set[str], frozenset[int]]:
    """The further files in which the values of ``data`` lie, and the numbers of the filters that these went through.

    Raises:
        DataError: a file or a filter is missing.
    """
    filters: dict[int, bytes] = {}
    files = _check_virtual(path, name, data, filters) if data.is_virtual else set()
    files |= _check_external(path, name, data)
    filters |= _filters(data)
    missing = load_filters(filters)
    if missing is not None:
        known = filters[missing].decode("utf-8", "replace")
        raise DataError(
            f"{path}: {name} is compressed by a filter that HDF5 itself has not (number {missing}{known and ', '}"
            f"{known}), and needs the package hdf5plugin: pip install hdf5plugin"
        )
    return files, frozenset(filters)


def load_filters(numbers: Iterable[int]) -> int | None:
    """Let HDF5 have the filters ``numbers`` in this process; one that neither it nor the package hdf5plugin has."""
    from h5py import h5z

    if not all(map(h5z.filter_avail, numbers)):
        with suppress(ImportError):
            import hdf5plugin  # noqa: F401  # registers the filters that it has
    return next((number for number in numbers if not h5z.filter_avail(number)), None)


def _filters(data: Any) -> dict[int, bytes]:
    """Numbers and names of a dataset's filters."""
    settings = data.id.get_create_plist()
    found = [settings.get_filter(i) for i in range(settings.get_nfilters())]
    return {number: called or b"" for number, _, _, called in found}


def _check_external(path: str, name: str, data: Any) -> set[str]:
    """The raw files of a dataset; HDF5 would read zeros where one is too short."""
    import h5py

    files: set[str] = set()
    folder = os.path.dirname(os.path.abspath(data.file.filename))
    prefix = os.environ.get("HDF5_EXTFILE_PREFIX", "").replace("${ORIGIN}", folder)
    left = data.size * data.id.get_type().get_size()
    for raw, offset, size in data.external or ():
        full = os.path.join(prefix, raw)
        needed = left if size == h5py.h5f.UNLIMITED else min(size, left)
        if not os.path.exists(full):
            raise DataError(
                f"{path}: {name} lies in the file {raw}, which is not there: HDF5 looks for it in the folder where the"
                " program is started, or, with HDF5_EXTFILE_PREFIX='${ORIGIN}' in the environment, beside the file"
            )
        if os.path.getsize(full) < offset + needed:
            raise DataError(
                f"{path}: {name} lies in the file {full}, which has {os.path.getsize(full)} bytes and not"
                f" {offset + needed}; copy it again"
            )
        left -= needed
        files.add(full)
    return files


def _check_virtual(path: str, name: str, data: Any, filters: dict[int, bytes], depth: int = 0) -> set[str]:
    """The files of a virtual dataset's sources, whose filters join ``filters``.

    HDF5 would read fill values where a source is missing or too small.
    """
    import h5py

    home, files, covered = data.file.filename, set(), 0
    for space, of_file, of_data, of_space in data.virtual_sources():
        for number in range(_blocks(space, data.shape) if "%b" in of_file + of_data else 1):
            file_name, source_name = (_numbered(text, number) for text in (of_file, of_data))
            full = home if file_name == "." else _beside(home, file_name)
            what = f"{path}: {name} is put together from other data, of which {source_name} in {file_name}"
            if not os.path.exists(full):
                raise DataError(f"{what} is missing: there is no such file; put it beside {path}")
            with h5py.File(full, "r") as file:
                if source_name not in file:
                    raise DataError(f"{what} is missing: the file has no such data")
                source = file[source_name]
                if _too_small(source, of_space, space):
                    raise DataError(f"{what} is too small: it has shape {source.shape}")
                if source.is_virtual and depth < DEPTH:
                    files |= _check_virtual(path, name, source, filters, depth + 1)
                filters |= _filters(source)
            files.add(full)
        covered += data.size if _unlimited(space) is not None else space.get_select_npoints()
    if covered < data.size:
        raise DataError(
            f"{path}: {name} is put together from other data, which give {covered} of its {data.size} values: the"
            " others are in no file"
        )
    return files


def _too_small(source: Any, of_space: Any, space: Any) -> bool:
    """Whether a source ends before what is selected of it, ``of_space``, to be put at ``space``."""
    import h5py

    if of_space.get_select_type() == h5py.h5s.SEL_ALL:  # HDF5 keeps no shape with it
        return _unlimited(space) is None and source.size < space.get_select_npoints()
    if _unlimited(of_space) is not None:
        return False
    ends = of_space.get_select_bounds()[1]
    return len(ends) != len(source.shape) or any(end >= size for end, size in zip(ends, source.shape, strict=True))


def _unlimited(space: Any) -> int | None:
    """The axis along which a selection has no end, or None."""
    import h5py

    if space.get_select_type() != h5py.h5s.SEL_HYPERSLABS or not space.is_regular_hyperslab():
        return None
    _, _, counts, _ = space.get_regular_hyperslab()
    return next((axis for axis, count in enumerate(counts) if count == h5py.h5s.UNLIMITED), None)


def _blocks(space: Any, shape: tuple[int, ...]) -> int:
    """How many numbered sources a selection without end takes for a dataset of this shape."""
    axis = _unlimited(space)
    if axis is None:
        return 1
    starts, strides, _, _ = space.get_regular_hyperslab()
    return int(np.ceil((shape[axis] - starts[axis]) / strides[axis]))


def _numbered(text: str, number: int) -> str:
    return text.replace("%%", "\0").replace("%b", str(number)).replace("\0", "%")


def _beside(home: str, name: str) -> str:
    """Where HDF5 looks for a source: by its environment variable, beside the file, or as named."""
    folder = os.path.dirname(os.path.abspath(home))
    prefix = os.environ.get("HDF5_VDS_PREFIX", "").replace("${ORIGIN}", folder)
    paths = [os.path.join(prefix, name)] if prefix else []
    paths += [os.path.join(folder, name), name, os.path.join(folder, os.path.basename(name))]
    return next((path for path in paths if os.path.exists(path)), name)
