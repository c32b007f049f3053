"""Parameter averaging: every rank trains parameters of its own, which are averaged now and then."""

from __future__ import annotations

from typing import ClassVar

from ..errors import ConfigError
from ..options import OPTIONS
from ..settings import called, setting, settings
from .first_order import FTRL, SGD, FirstOrder, Nesterov
from .schedules import Constant, Schedule


@settings
class LocalSGD:
    """Local steps by ``inner`` on each rank, then w ← w - outer_lr · v, v from the mean way the ranks have gone.

    After ``sync_every`` steps the outer gradient is w - mean of the ranks' parameters, weighted by the rows that
    each has trained on since.  With ``outer_lr`` 1 and no outer momentum the mean itself becomes w: parameter
    averaging as of McDonald, Hall & Mann 2010, "Distributed training strategies for the structured perceptron"
    (section 4.2, iterative parameter mixing), which is what Spark programs do by mapPartitions.  With Nesterov
    momentum it is DiLoCo (Douillard et al. 2023, algorithm 1).

    Attributes:
        inner: the method of each rank's own steps, at the rank's own part of the global batch.
        sync_every: steps of every rank between two averages; the end of an epoch averages too.
        keep_state: whether the inner method keeps its state (velocity, moments) when parameters are averaged.
        outer_lr: learning rate of the outer step.
        outer_momentum: Nesterov momentum of the outer step; 0: none.
    """

    inner: FirstOrder = setting(default=SGD(), fixed=True)
    sync_every: int = setting(OPTIONS["sync_every"], default=10)
    keep_state: bool = setting(kind="bool", default=True)
    outer_lr: float = setting(OPTIONS["outer_lr"], default=1.0)
    outer_momentum: float = setting(OPTIONS["outer_momentum"], default=0.0)
    name: ClassVar[str] = "average"
    full_batch: ClassVar[bool] = False

    def check(self) -> None:
        """Refuse inner methods that take no batches of their own."""
        if self.inner.full_batch or isinstance(self.inner, LocalSGD):
            inner = called("inner", "--inner-optimizer")
            raise ConfigError(f"{inner} must be an optimizer that takes its own batches, not {self.inner.name}")
        if isinstance(self.inner, FTRL) and self.inner.l1:
            l1 = called("l1 of ftrl", "--l1")
            raise ConfigError(f"{l1} makes parameters 0 exactly, which a mean over ranks does not keep; leave it out")

    @property
    def lr(self) -> float:
        """Learning rate of the inner method."""
        return self.inner.lr

    @property
    def schedule(self) -> Schedule:
        """Schedule of the inner method."""
        return getattr(self.inner, "schedule", Constant())

    @property
    def clip_norm(self) -> float | None:
        """Norm that each rank's own gradients are shortened to."""
        return getattr(self.inner, "clip_norm", None)

    @property
    def outer(self) -> FirstOrder:
        """The method of the outer step."""
        if self.outer_momentum == 0:
            return SGD(self.outer_lr)
        return Nesterov(self.outer_lr, self.outer_momentum)
