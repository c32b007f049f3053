"""First-order methods: one update of a slice of the parameters from the same slice of the mean gradient.

The arithmetic is in `optim.kernels`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from ..errors import ConfigError

Array = Any
State = dict[str, Any]


class FirstOrder(Protocol):
    """A first-order method.  Its state is explicit and, like the slice, local to the rank that owns it.

    Attributes:
        lr: learning rate.
        full_batch: whether a step takes all rows, whatever global batch size is asked for.
    """

    name: ClassVar[str]
    full_batch: ClassVar[bool]

    @property
    def lr(self) -> float: ...

    def init(self, w: Array) -> State:
        """The state before the first step for a slice ``w``, shape (n,): arrays of that shape, and numbers."""
        ...

    def step(self, w: Array, grad: Array, state: State, out: Array | None = None) -> None:
        """Write the slice after one step to ``out`` (``w`` itself if None) and update ``state`` in place.

        w, grad and out have shape (n,) and one dtype; out may be w and must not overlap grad.
        """
        ...


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent: w ← w - lr · gradient of the global batch's mean loss.

    With a global batch of one row it is the classic one-sample method (Robbins & Monro 1951).
    """

    lr: float = 0.1
    name: ClassVar[str] = "sgd"
    full_batch: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_rate(self.lr)

    def init(self, w: Array) -> State:
        """``carry``: zeros of w's shape and dtype, what rounding has taken from w so far."""
        return {"carry": np.zeros_like(w)}

    def step(self, w: Array, grad: Array, state: State, out: Array | None = None) -> None:
        """See `FirstOrder.step`."""
        from . import kernels

        kernels.sgd(w, grad, state["carry"], w.dtype.type(self.lr), w if out is None else out)


@dataclass(frozen=True)
class GradientDescent(SGD):
    """Gradient descent on the full objective: one step an epoch, from the gradient over all rows."""

    name: ClassVar[str] = "gd"
    full_batch: ClassVar[bool] = True


@dataclass(frozen=True)
class Momentum:
    """Heavy-ball momentum (Polyak 1964): v ← momentum · v + gradient, w ← w - lr · v.

    The form in which the learning rate multiplies the velocity (as PyTorch has it, not
    Sutskever et al. 2013, equation 1); both agree while the rate is constant.
    """

    lr: float = 0.125
    momentum: float = 0.9
    name: ClassVar[str] = "momentum"
    full_batch: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_rate(self.lr)
        if not 0 <= self.momentum <= 1:
            raise ConfigError(f"momentum must lie between 0 and 1, got {self.momentum}")

    def init(self, w: Array) -> State:
        """``velocity`` and ``carry``: zeros of w's shape and dtype."""
        return {"velocity": np.zeros_like(w), "carry": np.zeros_like(w)}

    def step(self, w: Array, grad: Array, state: State, out: Array | None = None) -> None:
        """See `FirstOrder.step`."""
        from . import kernels

        rate, momentum = w.dtype.type(self.lr), w.dtype.type(self.momentum)
        kernels.momentum(w, grad, state["velocity"], state["carry"], rate, momentum, w if out is None else out)


def _check_rate(lr: float) -> None:
    if not (lr > 0 and math.isfinite(lr)):
        raise ConfigError(f"the learning rate (lr) must be a positive number, got {lr}")


OPTIMIZERS: dict[str, type[FirstOrder]] = {kind.name: kind for kind in (GradientDescent, SGD, Momentum)}
