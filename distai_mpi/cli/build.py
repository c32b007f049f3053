"""The objects that the flags describe."""

from __future__ import annotations

import os
from typing import Any

from ..comm import launch


def make_model(settings: dict[str, Any], labels: Any) -> Any:
    """The model that the flags describe, for data with these labels."""
    import numpy as np

    from .. import models

    options = {flag: settings[flag] for flag in ("hidden", "activation", "dropout") if settings[flag] is not None}
    dtype = np.dtype(settings["dtype"])
    return models.build(settings["model_name"], labels, bias=settings["bias"], dtype=dtype, **options)


def make_callbacks(settings: dict[str, Any], dataset: Any, rank: int) -> list[Any]:
    """What watches the run: files, and on rank 0 the bar or lines."""
    from ..train.progress import progress
    from ..train.report import ResultFiles, ResultLine

    callbacks: list[Any] = []
    fields = {"data": settings["data"], "model": settings["model_name"]}
    if settings["out"]:
        byte_scale = float(dataset.scale) if dataset.x.dtype == "uint8" else None
        kept = {
            "data": absolute(settings["data"]),
            "test_data": absolute(settings["test_data"]),
            "test_fraction": settings["test_fraction"],
            "seed": settings["seed"],
            "byte_scale": byte_scale,
        }
        callbacks.append(ResultFiles(settings["out"], fields, kept))
    if rank == 0 and not settings["quiet"]:
        callbacks.append(progress(launch.on_terminal()))
    if settings["as_json"]:
        callbacks.append(ResultLine(fields))
    return callbacks


def absolute(name: str | None) -> str | None:
    """The name of data as it is understood in any folder."""
    if name is None or name == "mnist":
        return name
    parts = [name] if os.path.exists(name) else name.split(",")
    return ",".join(os.path.abspath(part) for part in parts)


def make_optimizer(settings: dict[str, Any]) -> Any:
    """The optimizer that the flags describe."""
    from ..optim import OPTIMIZERS

    chosen = {name: settings[name] for name in ("lr", "momentum", "weight_decay") if settings[name] is not None}
    return OPTIMIZERS[settings["optimizer_name"]](**chosen)


def batch_size(settings: dict[str, Any], ranks: int) -> int:
    """Rows of a step over all ranks together."""
    if settings["batch_size"]:
        return settings["batch_size"] * ranks
    return settings["global_batch_size"] or 256
