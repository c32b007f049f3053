"""Lists the datasets of an HDF5 file, behind links of every kind, and why some cannot be read."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

HIDDEN = ("#refs#", "#subsystem#")  # of MATLAB
SPARSE = ({"data", "indices", "indptr"}, {"data", "ir", "jc"})


@dataclass(frozen=True)
class Item:
    """A name in the file.

    Attributes:
        name: with those of the groups around it.
        identity: the same for two names of one dataset.
        about: shape and type.
        refusal: why it cannot be read, as the end of a sentence; empty: it can, as far as one sees.
        quiet: whether it is no data, but the coordinates of an axis.
        categories: whether it is a group of numbers and the categories that they stand for.
        sparse: where it is the arrays of a sparse matrix, their group; else empty.
        usual: see `catalog.Entry`.
    """

    name: str
    identity: Hashable
    about: str = ""
    refusal: str = ""
    quiet: bool = False
    categories: bool = False
    sparse: str = ""
    usual: str = ""


def walk(file: Any, reverse: bool = False) -> list[Item]:
    """All datasets of the file and what stands for one, in the file's order; ``reverse``: axes are, as MATLAB's."""
    found: list[Item] = []
    _visit(file, "", (), found, reverse)
    return found


def _visit(group: Any, prefix: str, above: tuple[Hashable, ...], found: list[Item], reverse: bool) -> None:
    import h5py

    identity = _identity(group)
    if identity in above:
        return  # a link that leads back
    keys = list(group)
    sparse = next((names for names in SPARSE if names <= set(keys)), set())
    if sparse:
        usual = "x" if "barcodes" in keys else ""  # as 10x Genomics has it, in groups of several names
        name = prefix.rstrip("/") or "data"
        found.append(Item(name, identity, "a sparse matrix", sparse=prefix or "/", usual=usual))
        keys = [key for key in keys if key not in sparse | {"shape", "format"}]
    for key in keys:
        name = prefix + key
        try:
            item = group[key]
        except (KeyError, OSError, RuntimeError) as error:
            found.append(Item(name, name, "a broken link", _broken(group, key, error)))
            continue
        if isinstance(item, h5py.Dataset):
            quiet = text_of(item.attrs.get("CLASS")) == "DIMENSION_SCALE"
            shape = None if item.shape is None else item.shape[:: -1 if reverse else 1]
            about = "no values" if shape is None else f"{' x '.join(map(str, shape))}, {_type_of(item)}"
            found.append(Item(name, _identity(item), about, quiet=quiet))
        elif isinstance(item, h5py.Group) and key not in HIDDEN:
            if text_of(item.attrs.get("encoding-type")) == "categorical":
                found.append(Item(name, _identity(item), "categories", categories=True))
            elif "pandas_type" in item.attrs:
                found.append(Item(name, _identity(item), "a table of pandas", _PANDAS))
            else:
                _visit(item, f"{name}/", (*above, identity), found, reverse)


_PANDAS = (
    "is a table as pandas' to_hdf writes it, in a layout of its own; store it with to_parquet or to_csv, or its"
    " numbers as datasets x and y"
)


def _identity(item: Any) -> Hashable:
    """The same for two names of one object."""
    import h5py

    info = h5py.h5o.get_info(item.id)
    return info.fileno, info.addr


def _type_of(item: Any) -> str:
    import h5py

    if h5py.check_string_dtype(item.dtype) is not None:
        return "words"
    return "records" if item.dtype.names else str(item.dtype)


def text_of(value: Any) -> str:
    """An attribute that is a text, or an array of one."""
    if isinstance(value, np.ndarray):
        value = value.ravel()[0] if value.size else ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _broken(group: Any, key: str, error: Exception) -> str:
    """Where a link leads that cannot be followed."""
    link = group.get(key, getlink=True)
    target = getattr(link, "path", None)
    if hasattr(link, "filename"):
        return (
            f"is a link to {target} in the file {link.filename}, which cannot be opened there: put that file beside it"
        )
    if target is not None:
        return f"is a link to {target}, and there is no such thing"
    return f"cannot be opened ({error})"
