"""When training stops because validation rows are no longer predicted better."""

from __future__ import annotations

import math
from typing import Any

from ..choices import METRICS
from ..errors import ConfigError

Array = Any


class EarlyStopping:
    """Watches a metric on the validation rows, and keeps the parameters that were best.

    Every rank sees the same values, and so comes to the same decision.  ``state`` holds all that has to be
    kept to go on later: plain values.

    Args:
        metric: a name of `choices.METRICS`.
        patience: epochs in a row without a better value after which training stops; None: it never does.
        owned: this rank's slice of the parameters, before the first epoch.
    """

    def __init__(self, metric: str, patience: int | None, owned: Array) -> None:
        self.metric, self.patience = metric, patience
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
            raise ConfigError(
                f"--metric {self.metric} has no value on the validation rows; choose another metric or other rows"
            )
        best = self.state["value"]
        better = best is None or (value > best if METRICS[self.metric] else value < best)
        if better and not math.isnan(value):  # beside one that is not a number nothing would be better later on
            self.best[:] = owned
            self.state.update(value=value, epoch=epoch, stale=0)
        else:
            self.state["stale"] += 1
