"""Parameter averaging: every rank trains parameters of its own, which are averaged now and then."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ..errors import ConfigError
from .first_order import SGD, FirstOrder, Nesterov


@dataclass(frozen=True)
class LocalSGD:
    """Local steps by ``inner`` on each rank, then w ← w - outer_lr · v, v from the mean way the ranks have gone.

    After ``sync_every`` steps the outer gradient is w - mean of the ranks' parameters, weighted by the rows that
    each has trained on since.  With ``outer_lr`` 1 and no outer momentum the mean itself becomes w: parameter
    averaging as of McDonald, Hall & Mann 2010, "Distributed training strategies for the structured perceptron"
    (section 4.2, iterative parameter mixing), which is what Spark programs do by mapPartitions.  With Nesterov
    momentum it is DiLoCo (Douillard et al. 2023, algorithm 1).

    Attributes:
        inner: the method of each rank's own steps, at the rank's own share of the global batch.
        sync_every: steps of every rank between two averages; the end of an epoch averages too.
        keep_state: whether the inner method keeps its state (velocity, moments) when parameters are averaged.
        outer_lr: learning rate of the outer step.
        outer_momentum: Nesterov momentum of the outer step; 0: none.
    """

    inner: FirstOrder = field(default_factory=SGD)
    sync_every: int = 10
    keep_state: bool = True
    outer_lr: float = 1.0
    outer_momentum: float = 0.0
    name: ClassVar[str] = "average"
    full_batch: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.inner.full_batch or isinstance(self.inner, LocalSGD):
            raise ConfigError(f"averaging needs an inner optimizer that takes its own batches, not {self.inner.name}")
        if self.sync_every < 1:
            raise ConfigError(f"averaging takes at least 1 step between two averages, got {self.sync_every}")
        _ = self.outer  # checks its own numbers

    @property
    def lr(self) -> float:
        """Learning rate of the inner method."""
        return self.inner.lr

    @property
    def outer(self) -> FirstOrder:
        """The method of the outer step."""
        if self.outer_momentum == 0:
            return SGD(self.outer_lr)
        return Nesterov(self.outer_lr, self.outer_momentum)
