"""Sparse matrices in HDF5: groups of the arrays data, indices and indptr, as AnnData, 10x Genomics and others write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...errors import DataError
from .hdf5_links import text_of
from .sparse import CompressedMatrix, compressed
from .variables import Variable

LAYOUTS = ("encoding-type", "h5sparse_format", "format")  # attributes
FORMATS = ("csr", "csc", "bsr", "coo", "dia", "dok", "lil")  # of SciPy
SHAPES = ("shape", "h5sparse_shape")
FEATURES_OF_10X = ("features/id", "genes")


def shape_of(path: str, name: str, group: Any) -> tuple[int, ...] | None:
    """Shape of the matrix in ``group`` as it is told there, by an attribute or a dataset; None: it is not."""
    import h5py

    found = next((group.attrs[key] for key in SHAPES if key in group.attrs), None)
    if found is None and isinstance(group.get("shape"), h5py.Dataset):
        found = group["shape"][()]
    if found is None:
        return None
    sizes = np.asarray(found)
    if sizes.dtype.kind not in "iu" or sizes.ndim != 1:
        raise DataError(f"{path}: {name} is a sparse matrix whose shape is no pair of integers: {found}")
    return tuple(sizes.tolist())


def open_matrix(
    path: str,
    name: str,
    group: Any,
    vector: Callable[[str], Variable],
    transpose: bool,
    column_names: tuple[str, ...] | None,
) -> CompressedMatrix:
    """The sparse matrix of ``group``, whose arrays ``vector`` opens by their names in the file.

    That of 10x Genomics (with barcodes) has a cell in each column, which is a row here.

    Raises:
        DataError: the arrays do not fit, or there is no telling what they are.
    """
    import h5py

    keys = ("data", "indices", "indptr") if "indptr" in group else ("data", "ir", "jc")
    for key in keys:
        if not isinstance(group.get(key), h5py.Dataset):
            raise DataError(f"{path}: {name} has {', '.join(keys)}, as a sparse matrix, but {key} is no array")
    layout, shape = _layout(path, name, group), shape_of(path, name, group)
    if keys[1] == "ir":  # MATLAB's, by columns; the number of rows is an attribute
        if "MATLAB_sparse" not in group.attrs:
            raise DataError(
                f"{path}: {name} holds a sparse matrix (data, ir, jc) without the attribute MATLAB_sparse, the number"
                f" of its rows; store full({name}) in place of it"
            )
        layout, shape = "csc", (int(group.attrs["MATLAB_sparse"]), group["jc"].size - 1)
    if "barcodes" in group:
        layout, transpose = layout or "csc", True
        column_names = _names(group, shape)
    whole = [f"{group.name.rstrip('/')}/{key}".lstrip("/") for key in keys]
    data, indices = (None if group[key].shape == (0,) else vector(of) for key, of in zip(keys[:2], whole, strict=False))
    return compressed(path, name, (data, indices, vector(whole[2])), shape, layout, transpose, column_names)


def _layout(path: str, name: str, group: Any) -> str | None:
    """Whether rows (``csr``) or columns (``csc``) stand one after another; None: the file does not tell."""
    import h5py

    found = next((text_of(group.attrs[key]) for key in LAYOUTS if key in group.attrs), None)
    if found is None and isinstance(group.get("format"), h5py.Dataset):
        found = text_of(group["format"][()])
    if found is None:
        return None
    layout = found.lower().removesuffix("_matrix").removesuffix("_array")
    if layout not in FORMATS:
        return None  # the format of something else
    if layout not in ("csr", "csc"):
        raise DataError(
            f"{path}: {name} is a sparse matrix of the format {found!r}, and csr and csc are read: convert it by"
            " scipy.sparse, .tocsr(), before it is stored"
        )
    return layout


def _names(group: Any, shape: tuple[int, ...] | None) -> tuple[str, ...] | None:
    """Identifiers of the features of 10x Genomics, if there is one for each."""
    import h5py

    for key in FEATURES_OF_10X:
        item = group.get(key)
        if isinstance(item, h5py.Dataset) and item.dtype.kind in "OS" and shape is not None and item.shape == shape[:1]:
            names = tuple(str(one) for one in item.asstr()[:])
            return names if len(set(names)) == len(names) else None
    return None
