"""Which values of the flags go together."""

from __future__ import annotations

from typing import Any

from ..errors import ConfigError


def check_settings(settings: dict[str, Any]) -> None:
    """Refuse flags that do not go together, before MPI starts, alike on every rank."""
    model, optimizer = settings["model_name"], settings["optimizer_name"]
    for flag in ("hidden", "activation", "dropout"):
        if settings[flag] is not None and model != "mlp":
            raise ConfigError(f"--{flag} belongs to --model mlp, not {model}; leave it out")
    for flag, owners in (("momentum", ("momentum", "nesterov")), ("weight_decay", ("adamw",))):
        if settings[flag] is not None and optimizer not in owners:
            name = flag.replace("_", "-")
            raise ConfigError(f"--{name} belongs to --optimizer {' or '.join(owners)}, not {optimizer}; leave it out")
    for flag in ("max_iter", "tol"):
        if settings[flag] is not None and optimizer != "gd":
            raise ConfigError(f"--{flag.replace('_', '-')} belongs to --optimizer gd, not {optimizer}; use --epochs")
    if settings["out"] == "":
        raise ConfigError("--out is empty: name a folder, or leave it out to write nothing")
    if settings["quiet"] and settings["verbose"]:
        raise ConfigError("-q and -v exclude each other: give one")
    if settings["device"] == "gpu":
        raise ConfigError("--device gpu: this version trains on CPUs alone; use --device cpu or auto")
    if settings["global_batch_size"] and settings["batch_size"]:
        raise ConfigError("--global-batch-size and --batch-size exclude each other: give one")
    if optimizer == "gd" and (settings["global_batch_size"] or settings["batch_size"]):
        raise ConfigError("--optimizer gd takes all rows in every step: leave the batch size out")
