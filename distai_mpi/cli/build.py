"""The objects that the flags describe."""

from __future__ import annotations

import os
from typing import Any

import click

from ..comm import launch
from .flags import FULL_BATCH, SEARCHING


def load_data(settings: dict[str, Any], comm: Any) -> Any:
    """The `data.Sets` that the flags name, shared out over ``comm``; collective."""
    from .. import data

    sets = data.load_sets(
        settings["data"],
        comm,
        test=settings["test_data"],
        valid=validation(settings),
        distribute=settings["distribute"],
        shuffle=settings["shuffle"] or ("local" if settings["optimizer_name"] == "average" else None),
        test_fraction=settings["test_fraction"],
        seed=settings["seed"],
        shards=make_partition(settings),
        label=settings["label"],
        weight=settings["weight"],
        dtype=settings["dtype"],
    )
    return data.Sets(*data.standardize(*sets, comm=comm)) if settings["standardize"] else sets


def fit_options(settings: dict[str, Any], share: Any, rows: int) -> dict[str, Any]:
    """What the flags say of the steps on the rows of ``share``, ``rows`` each, as `train.fit` takes it."""
    from .. import data

    optimizer = make_optimizer(settings)
    rows = share.rows if optimizer.full_batch else rows
    return {
        "optimizer": optimizer,
        "schedule": make_schedule(settings, data.steps_per_epoch(share, rows)),
        "clip_norm": settings["clip_norm"],
        "epochs": epochs(settings),
        "global_batch_size": rows,
        "l2": settings["l2"],
        "seed": settings["seed"],
        "allreduce": settings.get("allreduce_began", settings["allreduce"]),
        "factors": settings["factors"],
        "wire": settings["wire"],
        "early": settings["early"],
        "tol": settings["tol"] or (1e-5 if settings["optimizer_name"] in SEARCHING else None),
        "min_decrease": settings["min_decrease"],
    }


def make_model(settings: dict[str, Any], labels: Any) -> Any:
    """The model that the flags describe, for data with these labels."""
    import numpy as np

    from .. import models

    options = {flag: settings[flag] for flag in ("hidden", "activation", "dropout") if settings[flag] is not None}
    dtype = np.dtype(settings["dtype"])
    return models.build(settings["model_name"], labels, bias=settings["bias"], dtype=dtype, **options)


def make_partition(settings: dict[str, Any]) -> Any:
    """How rows are shared out, where the flags say it in numbers; else None."""
    from ..data import Partition

    return Partition(settings["shards"]) if isinstance(settings["shards"], tuple) else None


def make_callbacks(settings: dict[str, Any], share: Any, rank: int, again: str | None) -> list[Any]:
    """What watches the run on the rows of ``share``: files, and on rank 0 the bar or lines.

    ``again`` is the text by which the run can be repeated, see `repeat`.
    """
    from ..train.progress import Chosen, Exchange, progress
    from ..train.report import ResultFiles, ResultLine

    callbacks: list[Any] = []
    fields = {"data": settings["data"], "model": settings["model_name"]}
    if settings["out"]:
        dataset, valid = share.dataset, validation(settings)
        byte_scale = float(dataset.scale) if dataset.x.dtype == "uint8" else None
        kept = {
            "data": absolute(settings["data"]),
            "test_data": absolute(settings["test_data"]),
            "test_fraction": settings["test_fraction"],
            "valid": valid if isinstance(valid, float) else None,
            "seed": settings["seed"],
            "label": settings["label"],
            "weight": settings["weight"],
            "base": share.base,
            "byte_scale": byte_scale,
            "plus_minus": share.labels.plus_minus,
        }
        if dataset.standard is not None:
            kept |= {"mean": dataset.standard.mean, "deviation": dataset.standard.deviation}
        callbacks.append(ResultFiles(settings["out"], fields, kept, again))
    if rank == 0 and settings["verbose"]:
        callbacks.append(Exchange(settings["allreduce"] == "auto"))
    auto = settings["optimizer_name"] == "auto" or settings.get("auto_began")
    if rank == 0 and auto and not settings["quiet"] and not settings["as_json"]:
        callbacks.append(Chosen())
    if rank == 0 and not settings["quiet"]:
        callbacks.append(progress(launch.on_terminal()))
    if settings["as_json"]:
        callbacks.append(ResultLine(fields))
    return callbacks


def make_checkpoint(settings: dict[str, Any]) -> Any:
    """Where and when the run is saved; None without a folder."""
    from ..messages import tell
    from ..train.checkpoint import Checkpoint

    if not settings["out"]:
        return None

    def speak(message: str, warning: bool) -> None:
        if warning or not settings["quiet"]:
            tell(message, warning)

    folder, keep = checkpoints(settings), settings["keep_checkpoints"]
    return Checkpoint(folder, settings["checkpoint_every"], settings["resume"], keep, speak)


def checkpoints(settings: dict[str, Any]) -> str:
    """The folder of checkpoints."""
    return os.path.join(settings["out"], "checkpoints")


def repeat(settings: dict[str, Any], ranks: int, command: click.Command) -> str | None:
    """The settings as a TOML text by which ``command`` trains the same again, in any folder; None without --out."""
    from .config import write_config

    if not settings["out"]:
        return None
    valid = validation(settings)
    fixed = {
        "data": absolute(settings["data"]),
        "test_data": absolute(settings["test_data"]),
        "valid": absolute(valid) if isinstance(valid, str) else valid,
        "out": os.path.abspath(settings["out"]),
        "trace": settings["trace"] and os.path.abspath(settings["trace"]),
        "epochs": None if settings["max_iter"] or settings["optimizer_name"] in SEARCHING else epochs(settings),
        "resume": None,
    }
    if settings["optimizer_name"] not in FULL_BATCH:
        fixed |= {"batch_size": None, "global_batch_size": batch_size(settings, ranks)}
    return write_config(settings | fixed, command, "distai-mpi train --config FILE runs this again")


def absolute(name: str | None) -> str | None:
    """The name of data as it is understood in any folder."""
    if name is None or name == "mnist":
        return name
    parts = [name] if os.path.exists(name) else name.split(",")
    return ",".join(os.path.abspath(part) for part in parts)


def make_optimizer(settings: dict[str, Any]) -> Any:
    """The optimizer that the flags describe."""
    from ..optim import LBFGS, OPTIMIZERS, Auto, Newton, NewtonCG, ParameterAveraging

    name = settings["optimizer_name"]
    if name in SEARCHING:
        given = {key: settings[key] for key in ("memory", "sample") if settings[key] is not None}
        return {"lbfgs": LBFGS, "newton-cg": NewtonCG, "newton": Newton, "auto": Auto}[name](**given)
    chosen = {key: settings[key] for key in ("lr", "momentum", "weight_decay") if settings[key] is not None}
    if name != "average":
        return OPTIMIZERS[name](**chosen)
    inner = OPTIMIZERS[settings["inner_optimizer"] or "sgd"](**chosen)
    outer = {key: settings[key] for key in ("sync_every", "outer_lr", "outer_momentum") if settings[key] is not None}
    return ParameterAveraging(inner, keep_state=settings["inner_state"] != "reset", **outer)


def make_schedule(settings: dict[str, Any], steps_per_epoch: int) -> Any:
    """The schedule of the learning rate; epochs become steps."""
    from ..optim import Constant, Cosine, Step, WarmUp

    warmup = settings["warmup"] or 0
    schedule: Any = Constant()
    if settings["schedule"] == "step":
        factor = 0.1 if settings["decay_factor"] is None else settings["decay_factor"]
        schedule = Step(settings["decay_every"] * steps_per_epoch, factor)
    if settings["schedule"] == "cosine":
        schedule = Cosine(max(1, epochs(settings) * steps_per_epoch - warmup), settings["lr_floor"] or 0.0)
    return WarmUp(warmup, schedule) if warmup else schedule


def epochs(settings: dict[str, Any]) -> int:
    """Passes over the training rows, or iterations."""
    from ..train.loop import EPOCHS, MOST_ITERATIONS

    searches = settings["optimizer_name"] in SEARCHING
    return settings["max_iter"] or settings["epochs"] or (MOST_ITERATIONS if searches else EPOCHS)


def validation(settings: dict[str, Any]) -> Any:
    """``--valid`` as `data.load_sets` takes it: a share of the rows, or the name of data."""
    try:
        return float(settings["valid"])
    except (TypeError, ValueError):
        return settings["valid"]


def batch_size(settings: dict[str, Any], ranks: int) -> int:
    """Rows of a step over all ranks together."""
    if settings["batch_size"]:
        return settings["batch_size"] * ranks
    return settings["global_batch_size"] or 256
