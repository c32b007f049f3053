"""The objects that the flags describe."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import click

from ..comm import launch
from ..errors import DataError
from ..options import ENCODED, FULL_BATCH, SOLVERS


def load_data(settings: dict[str, Any], comm: Any) -> Any:
    """The `data.Sets` that the flags name, shared out over ``comm``; collective."""
    from .. import data, models

    sets = load_nodes(settings, comm) if settings["node_labels"] is not None else load_rows(settings, comm)
    loss = models.loss_of_model(settings["model_name"])
    if loss.classifies:
        sets = data.Sets(*data.encode_labels(*sets, comm=comm))
    elif not sets.train.labels.words:  # False and True are the numbers 0 and 1
        others = [shard and replace(shard, classes=None) for shard in sets[1:]]
        sets = data.Sets(replace(sets.train, classes=None), *others)
    if loss.classifies and not loss.several:
        check_two(sets.train)
    if settings["class_weight"] is not None:
        sets = sets._replace(train=data.weigh_classes(sets.train, settings["class_weight"], comm))
    if settings["standardize"]:
        return data.Sets(*data.standardize(*sets, comm=comm))
    return centred(sets, comm, settings) if settings["bias"] else sets


def load_rows(settings: dict[str, Any], comm: Any) -> Any:
    """The sets of rows in files; collective."""
    from .. import data

    return data.load_sets(
        settings["data"],
        comm,
        test=settings["test_data"],
        valid=validation(settings),
        distribute=settings["distribute"],
        shuffle=settings["shuffle"] or ("local" if settings["optimizer_name"] == "average" else None),
        test_fraction=settings["test_fraction"],
        seed=settings["seed"],
        shards=make_partition(settings),
        **column_options(settings),
        dtype=held_dtype(settings),
        sparse_dtype=settings["dtype"],
        out_of_core=make_storage(settings),
    )


def load_nodes(settings: dict[str, Any], comm: Any) -> Any:
    """The sets of nodes of a graph; collective."""
    from ..graphs import NodeFeatures, node_sets

    return node_sets(
        settings["data"],
        settings["node_labels"],
        comm,
        features=NodeFeatures(settings["node_features"] or "encoder", settings["directed"]),
        test_fraction=settings["test_fraction"],
        valid_fraction=validation(settings) or 0.0,
        seed=settings["seed"],
        shards=make_partition(settings),
    )


def centred(sets: Any, comm: Any, settings: dict[str, Any]) -> Any:
    """``sets`` with features that lie so far from 0 that rounding would spoil them centred, of which rank 0 tells."""
    import numpy as np

    from .. import data
    from ..messages import tell

    sets = data.Sets(*data.centre_far(*sets, comm=comm, dtype=settings["dtype"]))
    standard = sets.train.dataset.standard
    if standard is not None and comm.rank == 0 and not settings["quiet"]:
        far = np.flatnonzero(standard.mean).tolist()
        tell(
            f"{sets.train.called(far)} lie so far from 0 that {settings['dtype']} would round them off: their"
            " means are taken off first, and kept with the model"
        )
    return sets


def check_two(shard: Any) -> None:
    """Raise `DataError` unless the labels of ``shard`` are of two classes."""
    from ..data.labels import listed

    if shard.classes is None or len(shard.classes) == 2:
        return
    found = f"{shard.name}: this model is of two classes, but the labels are {listed(shard.classes)}"
    if len(shard.classes) == 1:
        raise DataError(f"{found} alone; name the column of the labels by --label")
    hint = "; -1 beside 0 and 1 often stands for rows without a label: leave them out"
    raise DataError(f"{found}: take --model softmax{hint if set(shard.classes) == {-1, 0, 1} else ''}")


def tell_notes(*shards: Any) -> None:
    """Say on this rank what a user is to know of the data, each sentence once."""
    from ..messages import tell

    for note in dict.fromkeys(note for shard in shards if shard is not None for note in shard.notes):
        tell(note)


def held_dtype(settings: dict[str, Any]) -> str:
    """The type in which text is held: that of the model where its rounding is all that follows, else float64."""
    exact = settings["standardize"] or settings["bias"] or settings["missing"] in ("mean", "median")
    return "float64" if exact else settings["dtype"]


def column_options(settings: dict[str, Any]) -> dict[str, Any]:
    """What the flags say of the columns of a table, as `data.Columns` takes it."""
    names = "label weight columns drop missing dates day_first header lines format dense transpose".split()
    names += list(ENCODED)
    others = {"variable": settings["features"], "indicator": settings["missing_indicator"]}
    return {name: settings[name] for name in names} | others


def kept_of_table(settings: dict[str, Any], shard: Any) -> dict[str, Any]:
    """What a model's file keeps of the table that it was trained on, so that others are read in the same way."""
    kept = column_options(settings) | {
        "column_names": shard.column_names,
        "feature_names": shard.feature_names,
        "label_name": shard.label_name,
        "date_orders": shard.date_orders,
        "row_names": shard.row_names,
        "classes": shard.classes,
        "encoded": shard.encoded,
    }
    if shard.encoding is not None:
        kept |= shard.encoding.described()
    if shard.dataset.fill is not None:
        kept |= {"fill": shard.dataset.fill.values, "indicators": shard.dataset.fill.indicators}
    return kept


def fit_options(settings: dict[str, Any], shard: Any, rows: int) -> dict[str, Any]:
    """What the flags say of the steps on the rows of ``shard``, ``rows`` each, as `train.fit` takes it."""
    from .. import data
    from ..comm import Exchange

    optimizer = make_optimizer(settings, data.steps_per_epoch(shard, rows))
    return {
        "optimizer": optimizer,
        "epochs": None if settings["optimizer_name"] in SOLVERS else epochs(settings),
        "global_batch_size": shard.rows if optimizer.full_batch else rows,
        "l2": settings["l2"],
        "l1": (settings["l1"] or 0.0) if settings["optimizer_name"] in SOLVERS else 0.0,
        "seed": settings["seed"],
        "exchange": Exchange(
            algorithm=settings.get("allreduce_began", settings["allreduce"]),
            dtype=settings["wire"],
            overlap=settings["early"],
            factors=settings["factors"],
        ),
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


def make_storage(settings: dict[str, Any]) -> Any:
    """Where rows are kept on disk; None: they are in memory."""
    from ..data import OutOfCore

    if not settings["out_of_core"]:
        return None
    return OutOfCore(dtype=settings["dtype"], **given(settings, "memory", "cache_dir"))


def make_callbacks(
    settings: dict[str, Any], sets: Any, rank: int, again: str | None, checkpoint: Any, path: list[Any] | None = None
) -> list[Any]:
    """What watches the run on the rows of ``sets``: early stopping, trace, files, and on rank 0 the bar or lines.

    ``again`` is the text by which the run can be repeated, see `repeat`; ``path`` the figures of `cli.path.follow`.
    """
    from ..train import Balance, EarlyStopping, Trace
    from ..train.progress import Chosen, ExchangeLine, progress
    from ..train.report import ResultFiles, ResultLine

    callbacks: list[Any] = [] if checkpoint is None else [checkpoint]
    if sets.valid is not None and path is None:
        callbacks.append(EarlyStopping(sets.valid, settings["metric"] or "loss", settings["patience"]))
    if settings["trace"]:
        callbacks.append(Trace(settings["trace"]))
    follows = settings["shards"] == "speed" or settings.get("follows_speed")
    if follows and settings["optimizer_name"] not in (*SOLVERS, "average"):
        callbacks.append(Balance(tell=speaking(settings)))
    shard = sets.train
    fields = {"data": settings["data"], "model": settings["model_name"], "classes": written(shard.classes)}
    if path is not None:
        fields["l1_path"] = path
    if settings["out"]:
        dataset, valid = shard.dataset, validation(settings)
        byte_scale = float(dataset.scale) if dataset.x.dtype == "uint8" else None
        kept = {
            "data": absolute(settings["data"]),
            "test_data": absolute(settings["test_data"]),
            "test_fraction": settings["test_fraction"],
            "valid": valid if isinstance(valid, float) else None,
            "seed": settings["seed"],
            "base": shard.base,
            "byte_scale": byte_scale,
        } | kept_of_table(settings, shard)
        if settings["node_labels"] is not None:
            kept |= {"node_labels": absolute(settings["node_labels"]), "directed": settings["directed"]}
            kept["node_features"] = settings["node_features"] or "encoder"
        if dataset.standard is not None:
            kept |= {"mean": dataset.standard.mean, "deviation": dataset.standard.deviation}
        callbacks.append(ResultFiles(settings["out"], fields, kept, again, settings["spare"], checkpoints(settings)))
    if rank == 0 and settings["verbose"]:
        callbacks.append(ExchangeLine(settings["allreduce"] == "auto"))
    auto = settings["optimizer_name"] == "auto" or settings.get("auto_began")
    if rank == 0 and auto and not settings["quiet"] and not settings["as_json"]:
        callbacks.append(Chosen())
    if rank == 0 and not settings["quiet"]:
        callbacks.append(progress(launch.on_terminal()))
    if settings["as_json"]:
        callbacks.append(ResultLine(fields))
    return callbacks


def written(classes: Any) -> list[Any] | None:
    """The labels of classes as they are written: whole numbers as such."""
    if classes is None:
        return None
    whole = all(isinstance(label, float) and label.is_integer() for label in classes)
    return [int(label) for label in classes] if whole else list(classes)


def make_checkpoint(settings: dict[str, Any]) -> Any:
    """Where and when the run is saved; None without a folder."""
    from ..train.checkpoint import Checkpoint

    if not settings["out"]:
        return None
    folder, keep = checkpoints(settings), settings["keep_checkpoints"]
    return Checkpoint(folder, settings["checkpoint_every"], settings["resume"], keep, speaking(settings))


def speaking(settings: dict[str, Any]) -> Any:
    """What says a message, and whether it is a warning: with ``--quiet`` warnings alone."""
    from ..messages import tell

    def speak(message: str, warning: bool) -> None:
        if warning or not settings["quiet"]:
            tell(message, warning)

    return speak


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
        "node_labels": absolute(settings["node_labels"]),
        "valid": absolute(valid) if isinstance(valid, str) else valid,
        "out": os.path.abspath(settings["out"]),
        "spare": settings["spare"] and os.path.abspath(settings["spare"]),
        "trace": settings["trace"] and os.path.abspath(settings["trace"]),
        "epochs": None if settings["max_iter"] or settings["optimizer_name"] in SOLVERS else epochs(settings),
        "resume": None,
    }
    if settings["optimizer_name"] not in FULL_BATCH:
        fixed |= {"batch_size": None, "global_batch_size": batch_size(settings, copies(settings, ranks))}
    return write_config(settings | fixed, command, "distai-mpi train --config FILE runs this again")


def absolute(name: str | None) -> str | None:
    """The name of data as it is understood in any folder."""
    from ..data.spec import absolute

    return absolute(name)


def make_optimizer(settings: dict[str, Any], steps_per_epoch: int = 1) -> Any:
    """The optimizer that the flags describe."""
    from ..optim import LBFGS, OPTIMIZERS, Auto, LocalSGD, Newton, NewtonCG

    name = settings["optimizer_name"]
    if name in SOLVERS:
        kind = {"lbfgs": LBFGS, "newton-cg": NewtonCG, "newton": Newton, "auto": Auto}[name]
        history = {} if settings["history"] is None else {"memory": settings["history"]}
        return kind(**history, **given(settings, "sample", "max_iter", "tol", "min_decrease"))
    chosen = given(settings, "lr", "momentum", "weight_decay", "l1", "clip_norm")
    chosen["schedule"] = make_schedule(settings, 1 if name == "gd" else steps_per_epoch)
    if name != "average":
        return OPTIMIZERS[name](**chosen, **given(settings, "tol", "min_decrease"))
    inner = OPTIMIZERS[settings["inner_optimizer"] or "sgd"](**chosen)
    outer = given(settings, "sync_every", "outer_lr", "outer_momentum")
    return LocalSGD(inner, keep_state=settings["inner_state"] != "reset", **outer)


def given(settings: dict[str, Any], *names: str) -> dict[str, Any]:
    """Those of the settings ``names`` that were given."""
    return {name: settings[name] for name in names if settings[name] is not None}


def make_schedule(settings: dict[str, Any], steps_per_epoch: int) -> Any:
    """The schedule of the learning rate; epochs become steps."""
    from ..optim import Constant, Cosine, Step, WarmUp

    warmup = settings["warmup"] or 0
    schedule: Any = Constant()
    if settings["schedule"] == "step":
        factor = 0.1 if settings["decay_factor"] is None else settings["decay_factor"]
        schedule = Step(settings["decay_every"] * steps_per_epoch, factor)
    if settings["schedule"] == "cosine":
        schedule = Cosine(final_factor=settings["lr_floor"] or 0.0)
    return WarmUp(warmup, schedule) if warmup else schedule


def epochs(settings: dict[str, Any]) -> int:
    """Passes over the training rows, of methods that take steps of their own length."""
    from ..train.loop import EPOCHS

    return settings["max_iter"] or settings["epochs"] or EPOCHS


def validation(settings: dict[str, Any]) -> Any:
    """``--valid`` as `data.load_sets` takes it: a fraction of the rows, or the name of data."""
    try:
        return float(settings["valid"])
    except (TypeError, ValueError):
        return settings["valid"]


def copies(settings: dict[str, Any], ranks: int) -> int:
    """How many of the ranks share rows out: all, or on a mesh one of each copy of the model."""
    if settings["mesh"] is None:
        return ranks
    from ..comm import MeshShape

    return MeshShape.parse(settings["mesh"], ranks).data


def batch_size(settings: dict[str, Any], ranks: int) -> int:
    """Rows of a step over all ranks together."""
    if settings["batch_size"]:
        return settings["batch_size"] * ranks
    return settings["global_batch_size"] or 256
