"""Whether what `fit` was given can work; the same on every rank."""

from __future__ import annotations

import math
import re
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend import HOST, Device, choose
from ..data import ShardedDataset
from ..data.checks import first_beyond
from ..data.partition import even_range
from ..errors import ConfigError, DataError
from ..models import Abilities, Model
from ..optim import FullBatchSolver
from ..options import OPTIONS, TAKES_L1
from ..settings import called, exclude, worded
from .evaluation import target_dtype
from .metrics import meaningful

if TYPE_CHECKING:
    from ..comm import Communicator


def check_settings(
    data: ShardedDataset, optimizer: Any, epochs: Any, global_batch_size: Any, batch_size: Any, l2: Any, seed: Any
) -> None:
    """Raise `ConfigError` or `DataError` at a value that cannot work."""
    if data.rows == 0:
        raise ConfigError("there are no rows to train on")
    data.check_weight()
    if isinstance(optimizer, type) or not hasattr(optimizer, "full_batch"):
        raise ConfigError(f"{called('optimizer')} must be an object such as optim.Momentum(), got {optimizer!r}")
    for name, value in {"epochs": epochs, "global_batch_size": global_batch_size, "batch_size": batch_size}.items():
        if value is not None:
            OPTIONS[name].check(name, value)
    OPTIONS["l2"].check("l2", l2)
    OPTIONS["seed"].check("seed", seed)
    if global_batch_size is not None and batch_size is not None:
        exclude("global_batch_size", "batch_size", "the global batch is batch_size rows of every rank")
    if epochs is not None and isinstance(optimizer, FullBatchSolver):
        raise ConfigError(
            f"epochs is nothing for {optimizer.name}, whose iterations end by max_iter:"
            f" give optim.{type(optimizer).__name__}(max_iter={epochs})"
        )


def check_l1(l1: Any, optimizer: Any) -> None:
    """Raise `ConfigError` at a strength of the l1 penalty that cannot be, or a method that does not take one."""
    OPTIONS["l1"].check("l1", l1)
    if not l1:
        return
    if optimizer.name == "ftrl":
        raise ConfigError("l1 of fit is nothing for ftrl, whose steps have their own: give optim.FTRL(l1=...)")
    if optimizer.name not in TAKES_L1:
        raise ConfigError(
            f"{called('l1')} is nothing for {called('optimizer')} {optimizer.name}: {', '.join(TAKES_L1)} take it"
        )


def check_start(start: Any, model: Model, comm: Communicator) -> None:
    """Raise `ConfigError` on all ranks at parameters that ``model`` cannot begin with; collective."""
    with comm.agreed():
        if start is None:
            return
        found = np.asarray(start)
        if found.shape != (model.layout.size,) or found.dtype.kind != "f" or not np.isfinite(found).all():
            raise ConfigError(
                f"start must be {model.layout.size:,} finite numbers, shape ({model.layout.size},), one for each"
                f" parameter, not {found.dtype} of shape {found.shape}"
            )


def check_metric(model: Model, valid: ShardedDataset, metric: str) -> None:
    """Raise `ConfigError` if it is clear now that ``metric`` has no value for ``model`` on the rows of ``valid``."""
    labels = valid.labels
    dtype = target_dtype(model, valid)
    known = list(meaningful(model, dtype))
    if labels.unlabelled or labels.unknown:  # of classes that the model does not know the loss is infinite
        known = ["accuracy"] if "accuracy" in known and not labels.unlabelled else []
    if labels.rows and labels.low == labels.high:
        known = [name for name in known if name not in ("auc", "r2")]
    if metric in known:
        return
    kind = "values" if dtype.kind == "f" else "labels"
    found = f"{kind} from {labels.low:g} to {labels.high:g}" if labels.low <= labels.high else "which have none"
    way_out = f"choose {' or '.join(known)}" if known else "take other rows"
    raise ConfigError(
        f"{called('metric')} {metric} has no meaning for this model on the validation rows, {found}: {way_out}"
    )


def check_rows(model: Model, shard: ShardedDataset, which: str) -> None:
    """Raise `DataError` if the model can tell that the rows do not fit it."""
    check = Abilities.of(model).data_check
    if check is not None and not shard.labels.unlabelled:
        try:
            check.check_data(shard.labels)
        except DataError as error:
            raise DataError(f"{shard.name}, {which} rows: {error}") from None
    if shard.labels.missing and not shard.labels.unlabelled:  # no number that a kernel could index by
        raise DataError(f"{shard.name}, {which} rows: {shard.labels.missing:,} without a label (NaN); leave them out")
    if not math.isfinite(shard.total_weight):
        raise DataError(
            f"{shard.name}, {which} rows: their weights add up to more than float64 holds; divide all weights by the"
            " same number"
        )


def check_range(model: Model, shard: ShardedDataset, which: str, comm: Communicator) -> None:
    """Raise `DataError` on all ranks if ``shard`` has a value that the model's dtype cannot hold; collective.

    It is looked for once, before rows are converted: an infinity in the middle of training tells nobody its position.
    Features that are to be standardized are converted after that.
    """
    data, dtype = shard.dataset, np.dtype(model.dtype)
    start, stop = (0, data.rows) if shard.shuffle == "local" else even_range(data.rows, comm.size, comm.rank)
    found = None if data.standard is not None else first_beyond(data.x[start:stop], dtype)
    what = "feature"
    if found is None and target_dtype(model, shard).kind == "f":
        found, what = first_beyond(data.y[start:stop, None], dtype), "target"
    if found is not None:
        row = start + found[0]
        if shard.shuffle == "local":  # where the file has it
            position = np.array([shard.first + shard.starts[shard.rank] + row])
            row = int(position[0] if shard.order is None else shard.order.apply(position)[0])
        told = f"feature {found[1]}" if what == "feature" else "the target"
    with comm.agreed():
        if found is not None:
            raise DataError(
                f"{shard.name}, {which} rows: {told} of row {row} (both counted from 0) is {found[2]:g}, which {dtype}"
                f" cannot hold; {worded('give the model dtype float64', 'give --dtype float64')}, or correct it"
            )


def check_alike(comm: Communicator, **settings: Any) -> None:
    """Raise `ConfigError` on every rank unless all have the same ``settings``; collective.

    Ranks that take different numbers of steps would wait for each other for ever.
    """
    ranks = comm.allgather_object({name: spelled(value) for name, value in settings.items()})
    for name, first in ranks[0].items():
        for rank, others in enumerate(ranks):
            if others[name] != first:
                raise ConfigError(
                    f"{name} is {first} on rank 0 and {others[name]} on rank {rank}; give all ranks the same"
                )


def spelled(value: Any) -> str:
    """``value`` in words that are the same on all ranks: an object that does not spell itself out goes by its class."""
    plain = value is None or isinstance(value, int | float | str | tuple) or is_dataclass(value)
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value)) if plain else type(value).__name__  # functions have addresses


def agree_on_device(asked: str | Device, model: Model, comm: Communicator) -> Device:
    """The device of this rank, of the same kind on every rank; collective.

    ``auto`` takes GPUs where every rank has one and the model can use it; see `backend.choose`.

    Raises:
        ConfigError: a GPU was asked for, and a rank has none or the model computes on the host alone; on every rank.
    """
    able = Abilities.of(model).on_devices
    if asked == "auto" and not able:
        return HOST
    with comm.agreed():
        device = asked if isinstance(asked, Device) else choose(asked, comm.node.rank)
        if device is not HOST and not able:
            raise ConfigError(
                f"{called('device')} {device.name}: {type(model).__name__} computes on the host alone (its on_devices"
                f" is not set); use {called('device')} cpu"
            )
    if asked == "auto" and not all(comm.allgather_object(device is not HOST)):
        return HOST
    return device
