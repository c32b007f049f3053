"""Model files: an uncompressed .npz of the named arrays and a JSON description, readable without pickle.

An array NAME of which at least `SPARSE_SIZE` elements, and at most a fraction `SPARSE` not 0, are stored as two others:
NAME.index, positions in the flattened array, int64, ascending, and NAME.value, what stands there.
"""

from __future__ import annotations

import json
import os
import tokenize
import zipfile
import zlib
from typing import Any

import numpy as np

from ..backend import as_host
from ..errors import ConfigError, DataError
from ..files import write_whole
from .base import Model
from .builtin import from_config, name_of, to_config

Array = Any
DESCRIPTION = "config"  # the member that describes the model; the others bear the names of slots
SPARSE, SPARSE_SIZE = 0.25, 1024  # pairs of a position and a float32 value then take three quarters of the room
INDEX, VALUE = ".index", ".value"
EXTRA = "extra."  # what the names of further arrays begin with
# what zipfile, NumPy and json raise on damaged files
DAMAGE: tuple[type[Exception], ...] = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    SyntaxError,
    NotImplementedError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
    ConfigError,
)


def save_model(path: str, model: Model, w: Array, extra: dict[str, Any] | None = None) -> None:
    """Write the parameters ``w`` of ``model``, shape (layout.size,), to ``path``; whole or not at all.

    Only the models known by name come back with `load_model`; those of others are plain named
    arrays.  ``extra`` holds plain JSON values, and arrays, to keep beside the model's own description.

    Raises:
        ConfigError: the file cannot be written.
    """
    arrays = {name: value for name, value in (extra or {}).items() if isinstance(value, np.ndarray)}
    plain = {name: value for name, value in (extra or {}).items() if name not in arrays}
    description = json.dumps((to_config(model) if name_of(model) else {"model": None}) | {"extra": plain})
    members: dict[str, Any] = {DESCRIPTION: np.array(description)}
    for name, array in model.layout.views(np.asarray(as_host(w))).items():
        members |= _stored(name, array)
    members |= {EXTRA + name: value for name, value in arrays.items()}
    write_whole(path, lambda file: np.savez(file, **members))


def load_model(path: str, own: Model | None = None) -> tuple[Any, Array, dict[str, Any]]:
    """The model in a file of `save_model`, its parameters, shape (layout.size,), read-only, and the extra values.

    ``own`` is the model where it is none of those known by name.

    Raises:
        DataError: the file is missing, damaged, or no model of this package.
    """
    if not os.path.exists(path):
        raise DataError(f"{path}: there is no such file; give what 'distai-mpi train --out' wrote")
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: not a model file of distai-mpi, or damaged")
    try:
        with np.load(path, allow_pickle=False) as file:
            config = json.loads(str(file[DESCRIPTION]))
            extra = config.pop("extra", {})
            extra |= {name.removeprefix(EXTRA): file[name] for name in file.files if name.startswith(EXTRA)}
            if config["model"] is None and own is None:
                raise DataError(
                    f"{path}: holds a model of your own: build it as for training, and give it in a program:"
                    f" distai_mpi.load({path!r}, model)"
                )
            model: Any = own if config["model"] is None else from_config(config)
            w = np.zeros(model.layout.size, model.dtype)
            for name, view in model.layout.views(w).items():
                if name in file.files:
                    view[...] = _checked(file[name], view)
                else:
                    _fill(view, file[name + INDEX], file[name + VALUE])
    except DAMAGE as error:
        raise DataError(f"{path}: not a model file of distai-mpi, or damaged ({error})") from None
    w.flags.writeable = False
    return model, w, extra


def _stored(name: str, array: Array) -> dict[str, Array]:
    """The members of the file that ``array`` is stored as."""
    if array.size < SPARSE_SIZE or np.count_nonzero(array) > SPARSE * array.size:
        return {name: array}
    flat = array.reshape(-1)
    index = np.flatnonzero(flat)
    return {name + INDEX: index.astype(np.int64), name + VALUE: flat[index]}


def _fill(view: Array, index: Array, value: Array) -> None:
    """Write pairs into ``view``, which is 0."""
    fits = index.dtype == np.int64 and value.dtype == view.dtype and index.ndim == 1 and index.shape == value.shape
    if not fits or (index.size and (index[0] < 0 or index[-1] >= view.size or (np.diff(index) <= 0).any())):
        raise ValueError(f"positions {index.dtype} {index.shape} and values {value.dtype} {value.shape} do not fit")
    view.reshape(-1)[index] = value


def _checked(stored: Array, view: Array) -> Array:
    if stored.shape != view.shape or stored.dtype != view.dtype:
        raise ValueError(
            f"an array of {stored.dtype}, shape {stored.shape}, stands for {view.dtype}, shape {view.shape}"
        )
    return stored
