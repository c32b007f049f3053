"""Model files: an uncompressed .npz of the named arrays and a JSON description, readable without pickle."""

from __future__ import annotations

import json
import os
import zipfile
from typing import Any

import numpy as np

from ..errors import DataError
from .builtin import from_config, to_config
from .feedforward import FeedForward

Array = Any
DESCRIPTION = "config"  # the member that describes the model; the others bear the names of slots


def save_model(path: str, model: FeedForward, w: Array, extra: dict[str, Any] | None = None) -> None:
    """Write ``model`` with parameters ``w``, shape (layout.size,), to ``path``; whole or not at all.

    ``extra`` holds plain JSON values to keep beside the model's own description.
    """
    description = json.dumps(to_config(model) | {"extra": extra or {}})
    members: dict[str, Any] = {DESCRIPTION: np.array(description), **model.layout.views(np.asarray(w))}
    temporary = f"{path}.tmp"
    with open(temporary, "wb") as file:
        np.savez(file, **members)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_model(path: str) -> tuple[FeedForward, Array, dict[str, Any]]:
    """The model in a file of `save_model`, its parameters, shape (layout.size,), and what was kept beside them.

    Raises:
        DataError: the file is missing, damaged, or no model of this package.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            config = json.loads(str(file[DESCRIPTION]))
            extra = config.pop("extra", {})
            model = from_config(config)
            w = np.empty(model.layout.size, model.dtype)
            for name, view in model.layout.views(w).items():
                view[...] = _checked(file[name], view)
    except FileNotFoundError:
        raise DataError(
            f"{path}: there is no such file; give a model.npz that 'distai-mpi train --out' wrote"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a model file of distai-mpi, or damaged ({error})") from None
    return model, w, extra


def _checked(stored: Array, view: Array) -> Array:
    if stored.shape != view.shape or stored.dtype != view.dtype:
        raise ValueError(
            f"an array of {stored.dtype}, shape {stored.shape}, stands for {view.dtype}, shape {view.shape}"
        )
    return stored
