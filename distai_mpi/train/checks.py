"""Whether what `fit` was given can work; the same on every rank."""

from __future__ import annotations

import math
import re
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..choices import METRICS
from ..data import ShardedDataset
from ..data.checks import first_beyond
from ..data.partition import stretch
from ..errors import ConfigError, DataError
from ..models import Abilities, Model
from .evaluation import target_dtype
from .metrics import meaningful
from .run import Optimizer

if TYPE_CHECKING:
    from ..comm import Communicator


def check_settings(
    data: ShardedDataset,
    optimizer: Optimizer,
    epochs: int,
    global_batch_size: int,
    seed: int,
    l2: float,
    tol: float | None,
    min_decrease: float | None,
    clip_norm: float | None,
    valid: ShardedDataset | None,
    metric: str,
    patience: int | None,
) -> None:
    """Raise `ConfigError` or `DataError` at a value that cannot work."""
    if data.rows == 0:
        raise ConfigError("there are no rows to train on")
    data.check_weight()
    _check_types(optimizer, epochs, global_batch_size, seed)
    if epochs < 1:
        raise ConfigError(f"epochs must be at least 1, got {epochs}")
    if global_batch_size < 1:
        raise ConfigError(f"the global batch size must be at least 1, got {global_batch_size}")
    if not (l2 >= 0 and math.isfinite(l2)):
        raise ConfigError(f"l2 must be a number from 0 up, got {l2}")
    for name, value in (
        ("the tolerance (tol)", tol),
        ("the least decrease (min_decrease)", min_decrease),
        ("the norm to clip at (clip_norm)", clip_norm),
    ):
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{name} must be a positive number, got {value}")
    if (tol is not None or min_decrease is not None) and not optimizer.full_batch:
        raise ConfigError(f"a tolerance needs a full-batch optimizer such as gd, not {optimizer.name}")
    if metric not in METRICS:
        raise ConfigError(f"unknown metric {metric!r}: choose one of {', '.join(METRICS)}")
    if patience is not None and patience < 1:
        raise ConfigError(f"the patience must be at least 1 epoch, got {patience}")
    if patience is not None and valid is None:
        raise ConfigError("patience needs validation rows: give a share of the training rows, or a set of its own")


def _check_types(optimizer: Any, epochs: Any, global_batch_size: Any, seed: Any) -> None:
    if isinstance(optimizer, type) or not hasattr(optimizer, "full_batch"):
        raise ConfigError(f"the optimizer must be an object such as optim.Momentum(), not {optimizer!r}")
    for name, value in (("epochs", epochs), ("the global batch size", global_batch_size), ("the seed", seed)):
        if not isinstance(value, int | np.integer):
            raise ConfigError(f"{name} must be a whole number, got {value!r}")
    if seed < 0:
        raise ConfigError(f"the seed must be at least 0, got {seed}")


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
    raise ConfigError(f"metric {metric} has no meaning for this model on the validation rows, {found}: {way_out}")


def check_rows(model: Model, share: ShardedDataset, which: str) -> None:
    """Raise `DataError` if the model can tell that the rows do not fit it."""
    check = Abilities.of(model).data_check
    if check is not None and not share.labels.unlabelled:
        try:
            check.check_data(share.labels)
        except DataError as error:
            raise DataError(f"{share.name}, {which} rows: {error}") from None
    if not math.isfinite(share.total_weight):
        raise DataError(
            f"{share.name}, {which} rows: their weights add up to more than float64 holds; divide all weights by the"
            " same number"
        )


def check_range(model: Model, share: ShardedDataset, which: str, comm: Communicator) -> None:
    """Raise `DataError` on all ranks if ``share`` has a value that the model's dtype cannot hold; collective.

    It is looked for once, before rows are converted: an infinity in the middle of training tells nobody its place.
    Features that are to be standardized are converted after that.
    """
    data, dtype = share.dataset, np.dtype(model.dtype)
    start, stop = (0, data.rows) if share.shuffle == "local" else stretch(data.rows, comm.size, comm.rank)
    found = None if data.standard is not None else first_beyond(data.x[start:stop], dtype)
    what = "feature"
    if found is None and target_dtype(model, share).kind == "f":
        found, what = first_beyond(data.y[start:stop, None], dtype), "target"
    if found is not None:
        row = start + found[0]
        if share.shuffle == "local":  # where the file has it
            place = np.array([share.first + share.starts[share.rank] + row])
            row = int(place[0] if share.order is None else share.order.apply(place)[0])
        told = f"feature {found[1]}" if what == "feature" else "the target"
    with comm.agreed():
        if found is not None:
            raise DataError(
                f"{share.name}, {which} rows: {told} of row {row} (both counted from 0) is {found[2]:g}, which {dtype}"
                " cannot hold; give --dtype float64, or correct it"
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
    plain = value is None or isinstance(value, int | float | str) or is_dataclass(value)
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value)) if plain else type(value).__name__  # functions have addresses
