"""Which values of the flags go together."""

from __future__ import annotations

import os
from typing import Any

from ..errors import ConfigError
from ..options import FULL_BATCH, OPTIMIZERS, SOLVERS, TAKES_L1
from .build import make_partition, make_storage, validation
from .flags import flag_of

LEARNING = tuple(name for name in OPTIMIZERS if name not in SOLVERS)  # these have a learning rate
# Flags that mean something beside certain values of another one alone: (flags, that other, its values).
BELONGS = (
    (("hidden", "activation", "dropout"), "model_name", ("mlp",)),
    (("momentum",), "optimizer_name", ("momentum", "nesterov")),
    (("weight_decay",), "optimizer_name", ("adamw",)),
    (("l1",), "optimizer_name", TAKES_L1),
    (("l1_path",), "optimizer_name", ("newton-cg", "auto")),
    (("max_iter", "tol", "min_decrease"), "optimizer_name", FULL_BATCH),
    (("sample",), "optimizer_name", SOLVERS),
    (("history",), "optimizer_name", ("lbfgs",)),
    (("lr", "schedule", "warmup", "clip_norm", "epochs"), "optimizer_name", LEARNING),
    (("inner_optimizer", "inner_state", "sync_every", "outer_lr", "outer_momentum"), "optimizer_name", ("average",)),
    (("decay_every", "decay_factor"), "schedule", ("step",)),
    (("lr_floor",), "schedule", ("cosine",)),
)
TOGETHER = (  # (flag, the one that it needs, why)
    ("l1_min_ratio", "l1_path", "it says where the path ends"),
    ("patience", "valid", "it counts epochs without a better result on validation rows"),
    ("metric", "valid", "it is looked at on validation rows"),
    ("checkpoint_every", "out", "checkpoints are kept there"),
    ("resume", "out", "checkpoints are kept there"),
    ("spare", "out", "it stands in for that"),
    ("parts", "mesh", "every rank has the whole model without it"),
    ("micro_batches", "mesh", "every rank has the whole model without it"),
    ("recompute", "mesh", "every rank has the whole model without it"),
    ("cuts", "mesh", "every rank has the whole model without it"),
    ("memory", "out_of_core", "rows are in memory without it"),
    ("cache_dir", "out_of_core", "rows are in memory without it"),
    ("node_features", "node_labels", "nodes are the rows where that gives their labels"),
    ("directed", "node_labels", "edges are those of the graph whose nodes that gives labels"),
)
OF_ROWS = (  # what says how files of rows are read
    *("test_data", "label", "weight", "columns", "drop", "header", "day_first", "lines", "format", "features"),
    *("dense", "transpose", "missing_indicator", "distribute", "shuffle", "out_of_core"),
    *("missing", "dates", "categorical", "text", "cross", "tfidf"),
)
EITHER = (
    ("quiet", "verbose"),
    ("global_batch_size", "batch_size"),
    ("epochs", "max_iter"),
    ("l1", "l1_path"),
)


def check_flags(settings: dict[str, Any]) -> None:
    """Refuse flags that do not go together, before MPI starts, alike on every rank."""
    optimizer = settings["optimizer_name"]
    chosen = {
        "model_name": [settings["model_name"]],
        "optimizer_name": [optimizer, *([settings["inner_optimizer"] or "sgd"] if optimizer == "average" else [])],
        "schedule": [settings["schedule"] or "constant"],
    }
    for names, other, owners in BELONGS:
        for name in names:
            if settings[name] is not None and not set(owners) & set(chosen[other]):
                wanted = f"{flag_of(other)} {' or '.join(owners)}"
                raise ConfigError(f"{flag_of(name)} belongs to {wanted}, not {chosen[other][-1]}; leave it out")
    for name, other, why in TOGETHER:
        if settings[name] and not settings[other]:
            raise ConfigError(f"{flag_of(name)} needs {flag_of(other)}: {why}")
    for name, other in EITHER:
        if settings[name] and settings[other]:
            raise ConfigError(f"{flag_of(name)} and {flag_of(other)} exclude each other: give one")
    if settings["missing_indicator"] and settings["missing"] not in ("mean", "median"):
        raise ConfigError("--missing-indicator needs --missing mean or median: other rows have nothing missing")
    if settings["schedule"] == "step" and settings["decay_every"] is None:
        raise ConfigError("--schedule step needs --decay-every: the epochs after which the rate is lowered")
    check_graph(settings)
    make_partition(settings)
    check_stored(settings)
    check_paths(settings)
    check_full_batch(settings, optimizer)


def check_stored(settings: dict[str, Any]) -> None:
    """Refuse what rows on disk cannot be or have; `data.load_sets` refuses the rest."""
    if not settings["out_of_core"]:
        return
    make_storage(settings)
    if settings["shards"] == "speed":
        raise ConfigError("--out-of-core does not go with --shards speed: rows stay with the rank that has parsed them")
    if settings["device"] != "cpu":
        raise ConfigError(f"--out-of-core is for the CPU, not --device {settings['device']}: leave that out")


def check_graph(settings: dict[str, Any]) -> None:
    """Refuse what means nothing where the rows are the nodes of a graph."""
    if settings["node_labels"] is None:
        return
    for name in OF_ROWS:
        if settings[name] and settings[name] != "refuse":
            raise ConfigError(f"{flag_of(name)} says how rows are read, but with --node-labels rows are nodes")
    if not isinstance(validation(settings), float | None):
        raise ConfigError(f"--valid {settings['valid']}: with --node-labels give the fraction of the nodes")
    if settings["model_name"] not in ("logistic", "softmax", "mlp"):
        raise ConfigError(f"--model {settings['model_name']}: labels of nodes are classes: take softmax or mlp")


def check_paths(settings: dict[str, Any]) -> None:
    """Refuse names under which nothing can be written."""
    if settings["out"] == "":
        raise ConfigError("--out is empty: name a folder, or leave it out to write nothing")
    if settings["spare"] is not None and os.path.abspath(settings["spare"]) == os.path.abspath(settings["out"]):
        raise ConfigError(f"--spare {settings['spare']} is the folder of --out: name another one, on another disk")
    if settings["trace"] is not None and not settings["trace"].endswith((".json", ".json.gz")):
        raise ConfigError(f"--trace {settings['trace']}: name a file FILE.json, or FILE.json.gz to have it compressed")


def check_full_batch(settings: dict[str, Any], optimizer: str) -> None:
    """Refuse what means nothing to a method that takes all rows in every step."""
    if optimizer in SOLVERS and settings["dropout"]:
        raise ConfigError(
            f"--dropout {settings['dropout']:g} is nothing for --optimizer {optimizer}, which sees rows without"
            " dropout: leave it out"
        )
    if optimizer in FULL_BATCH and (settings["global_batch_size"] or settings["batch_size"]):
        raise ConfigError(f"--optimizer {optimizer} takes all rows in every step: leave the batch size out")
