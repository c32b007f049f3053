"""The parameters that were best on validation rows, and when training stops because none are better."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..options import METRICS, OPTIONS
from ..settings import called, setting, settings

if TYPE_CHECKING:
    from ..data import ShardedDataset

Array = Any


@settings
class EarlyStopping:
    """Keeps the parameters that are best on validation rows, which are the result, and ends training in time.

    Attributes:
        valid: this rank's shard of rows that are looked at after every epoch, from `data.load_sets`.
        metric: what is best on them, a name of `options.METRICS`.
        patience: stop after so many epochs in a row without a better value; None: never.
    """

    valid: ShardedDataset = setting(repr=False)
    metric: str = setting(OPTIONS["metric"], default="loss")
    patience: int | None = setting(OPTIONS["patience"], default=None)

    def check(self) -> None:
        """Refuse what holds no rows."""
        if not hasattr(self.valid, "rows"):
            raise ConfigError(f"{called('valid')} must be rows from data.load_sets or data.load, got {self.valid!r}")


class BestParameters:
    """Watches a metric on the validation rows, and keeps the parameters that were best.

    Every rank sees the same values, and so comes to the same decision.  ``state`` holds all that has to be
    kept to go on later: plain values.

    Args:
        settings: the metric, and the patience.
        owned: this rank's slice of the parameters, before the first epoch.
    """

    def __init__(self, settings: EarlyStopping, owned: Array) -> None:
        self.metric, self.patience = settings.metric, settings.patience
        self.best = owned.copy()  # this rank's slice
        self.state: dict[str, Any] = {"value": None, "epoch": None, "stale": 0}

    @property
    def best_epoch(self) -> int | None:
        """The epoch whose parameters are kept."""
        return self.state["epoch"]

    @property
    def exhausted(self) -> bool:
        """Whether the patience is at its end."""
        return self.patience is not None and self.state["stale"] >= self.patience

    def look(self, epoch: int, value: float | None, owned: Array) -> None:
        """Take in the metric after ``epoch`` and the owned slice.

        Raises:
            ConfigError: the rows do not define the metric.
        """
        if value is None:
            name = called("metric")
            raise ConfigError(
                f"{name} {self.metric} has no value on the validation rows; choose another metric or other rows"
            )
        best = self.state["value"]
        better = best is None or (value > best if METRICS[self.metric] else value < best)
        if better and not math.isnan(value):  # beside one that is not a number nothing would be better later on
            self.best[:] = owned
            self.state.update(value=value, epoch=epoch, stale=0)
        else:
            self.state["stale"] += 1
