"""Whether what `fit` was given can work; the same on every rank."""

from __future__ import annotations

import math

from ..data import Share
from ..errors import ConfigError, DataError
from ..models import Model
from .metrics import METRICS
from .run import Optimizer


def check_settings(
    data: Share,
    optimizer: Optimizer,
    epochs: int,
    global_batch_size: int,
    l2: float,
    tol: float | None,
    clip_norm: float | None,
    valid: Share | None,
    metric: str,
    patience: int | None,
) -> None:
    """Raise `ConfigError` at a value that cannot work."""
    if data.rows == 0:
        raise ConfigError("there are no rows to train on")
    if epochs < 1:
        raise ConfigError(f"epochs must be at least 1, got {epochs}")
    if global_batch_size < 1:
        raise ConfigError(f"the global batch size must be at least 1, got {global_batch_size}")
    if not (l2 >= 0 and math.isfinite(l2)):
        raise ConfigError(f"l2 must be a number from 0 up, got {l2}")
    for name, value in (("the tolerance (tol)", tol), ("the norm to clip at (clip_norm)", clip_norm)):
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{name} must be a positive number, got {value}")
    if tol is not None and not optimizer.full_batch:
        raise ConfigError(f"a tolerance needs a full-batch optimizer such as gd, not {optimizer.name}")
    if metric not in METRICS:
        raise ConfigError(f"unknown metric {metric!r}: choose one of {', '.join(METRICS)}")
    if patience is not None and patience < 1:
        raise ConfigError(f"the patience must be at least 1 epoch, got {patience}")
    if patience is not None and valid is None:
        raise ConfigError("patience needs validation rows: give a share of the training rows, or a set of its own")


def check_rows(model: Model, share: Share, which: str) -> None:
    """Raise `DataError` if the model can tell that the rows do not fit it."""
    if hasattr(model, "check_data"):
        try:
            model.check_data(share.labels)
        except DataError as error:
            raise DataError(f"{share.name}, {which} rows: {error}") from None
