"""First-order methods: one update of a slice of the parameters from the same slice of the mean gradient.

The arithmetic is in `optim.kernels`, and for arrays on a GPU in `optim.array_kernels`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar, Protocol

from ..backend import device_of, namespace
from ..errors import ConfigError

Array = Any
State = dict[str, Any]
Ranges = Sequence[tuple[int, int]]  # stretches of a slice: first element and end


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

    def init(self, w: Array, decay: Ranges = ()) -> State:
        """The state before the first step for a slice ``w``, shape (n,): arrays of that shape, and numbers.

        ``decay`` gives the stretches of the slice, ascending, that weight decay applies to.
        """
        ...

    def step(self, w: Array, grad: Array, state: State, out: Array | None = None, factor: float = 1.0) -> None:
        """Write the slice after one step to ``out`` (``w`` itself if None) and update ``state`` in place.

        w, grad and out have shape (n,) and one dtype; out may be w and must not overlap grad.  The
        learning rate is ``factor`` · lr: what a schedule makes of it.

        The package's own methods take the same step part by part as well: see `Elementwise`.
        """
        ...


class Elementwise:
    """A step that treats every element alike, so that it can be taken part by part while the gradient arrives."""

    def step(self, w: Array, grad: Array, state: State, out: Array | None = None, factor: float = 1.0) -> None:
        """See `FirstOrder.step`."""
        self.advance(state)
        self.update(w, grad, state, w if out is None else out, factor, slice(0, w.size))

    def advance(self, state: State) -> None:
        """Begin a step, whose parts are then given to `update`."""

    def update(self, w: Array, grad: Array, state: State, out: Array, factor: float, part: slice) -> None:
        """Take the step that was begun for the elements ``part`` of the slices w, grad and out, shape (n,)."""
        raise NotImplementedError


@dataclass(frozen=True)
class SGD(Elementwise):
    """Stochastic gradient descent: w ← w - lr · gradient of the global batch's mean loss.

    With a global batch of one row it is the classic one-sample method (Robbins & Monro 1951).
    """

    lr: float = 0.1
    name: ClassVar[str] = "sgd"
    full_batch: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_rate(self.lr)

    def init(self, w: Array, decay: Ranges = ()) -> State:
        """``carry``: zeros of w's shape and dtype, what rounding has taken from w so far."""
        return {"carry": _zeros_like(w)}

    def update(self, w: Array, grad: Array, state: State, out: Array, factor: float, part: slice) -> None:
        """See `Elementwise.update`."""
        _kernels(w).sgd(w[part], grad[part], state["carry"][part], w.dtype.type(factor * self.lr), out[part])


@dataclass(frozen=True)
class GradientDescent(SGD):
    """Gradient descent on the full objective: one step an epoch, from the gradient over all rows."""

    name: ClassVar[str] = "gd"
    full_batch: ClassVar[bool] = True


@dataclass(frozen=True)
class Momentum(Elementwise):
    """Heavy-ball momentum (Polyak 1964): v ← momentum · v + gradient, w ← w - lr · v.

    The form in which the learning rate multiplies the velocity (as PyTorch has it, not
    Sutskever et al. 2013, equation 1); both agree while the rate is constant.
    """

    lr: float = 0.12
    momentum: float = 0.9
    name: ClassVar[str] = "momentum"
    full_batch: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_rate(self.lr)
        if not 0 <= self.momentum <= 1:
            raise ConfigError(f"momentum must lie between 0 and 1, got {self.momentum}")

    def init(self, w: Array, decay: Ranges = ()) -> State:
        """``velocity`` and ``carry``: zeros of w's shape and dtype."""
        return {"velocity": _zeros_like(w), "carry": _zeros_like(w)}

    def update(self, w: Array, grad: Array, state: State, out: Array, factor: float, part: slice) -> None:
        """See `Elementwise.update`."""
        rate, momentum = w.dtype.type(factor * self.lr), w.dtype.type(self.momentum)
        self._rule(w)(
            w[part], grad[part], state["velocity"][part], state["carry"][part], rate, momentum, out[part]
        )  # fmt: skip

    @staticmethod
    def _rule(w: Array) -> Any:
        return _kernels(w).momentum


@dataclass(frozen=True)
class Nesterov(Momentum):
    """Nesterov momentum: v ← momentum · v + gradient, w ← w - lr · (gradient + momentum · v).

    Sutskever et al. 2013, "On the importance of initialization and momentum", equations 3 and 4, in the
    variables of `Momentum`, so that the gradient is taken at w itself.
    """

    name: ClassVar[str] = "nesterov"

    @staticmethod
    def _rule(w: Array) -> Any:
        return _kernels(w).nesterov


@dataclass(frozen=True)
class Adam(Elementwise):
    """Adam (Kingma & Ba 2015, algorithm 1): steps by the mean gradient over the root of the mean square.

    The l2 penalty of the objective is part of the gradient; `AdamW` decays weights apart from it.
    """

    lr: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    name: ClassVar[str] = "adam"
    full_batch: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_rate(self.lr)
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and self.epsilon > 0):
            raise ConfigError(
                f"adam needs 0 <= beta < 1 and epsilon > 0, got {self.beta1}, {self.beta2}, {self.epsilon}"
            )

    def init(self, w: Array, decay: Ranges = ()) -> State:
        """``mean``, ``square`` and ``carry``: zeros of w's shape and dtype; ``steps``: 0."""
        zeros = {name: _zeros_like(w) for name in ("mean", "square", "carry")}
        return {**zeros, "steps": 0, "decay": tuple(decay)}

    def advance(self, state: State) -> None:
        """See `Elementwise.advance`."""
        state["steps"] += 1

    def update(self, w: Array, grad: Array, state: State, out: Array, factor: float, part: slice) -> None:
        """See `Elementwise.update`."""
        self._update(w, grad, state, out, part, factor * self.lr, 0.0)

    def _update(self, w: Array, grad: Array, state: State, out: Array, part: slice, rate: float, decay: float) -> None:
        """Step number ``state["steps"]`` of the elements ``part`` at the learning rate ``rate``."""
        steps, number = state["steps"], w.dtype.type
        _kernels(w).adam(
            w[part],
            grad[part],
            state["mean"][part],
            state["square"][part],
            state["carry"][part],
            number(rate / (1 - self.beta1**steps)),
            number(self.beta1),
            number(self.beta2),
            number(1 - self.beta2**steps),
            number(self.epsilon),
            number(decay),
            out[part],
        )


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2): w also loses lr · weight_decay · w.

    Slots without decay (biases) are left alone.
    """

    weight_decay: float = 0.01
    name: ClassVar[str] = "adamw"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            raise ConfigError(f"the weight decay must be a number from 0 up, got {self.weight_decay}")

    def update(self, w: Array, grad: Array, state: State, out: Array, factor: float, part: slice) -> None:
        """See `Elementwise.update`."""
        rate, done = factor * self.lr, part.start
        for low, high in (*state["decay"], (w.size, w.size)):
            start, stop = min(max(low, part.start), part.stop), min(max(high, part.start), part.stop)
            for stretch, decay in ((slice(done, start), 0.0), (slice(start, stop), rate * self.weight_decay)):
                if stretch.start < stretch.stop:
                    self._update(w, grad, state, out, stretch, rate, decay)
            done = stop


def _check_rate(lr: float) -> None:
    if not (lr > 0 and math.isfinite(lr)):
        raise ConfigError(f"the learning rate (lr) must be a positive number, got {lr}")


def _kernels(w: Array) -> ModuleType:
    """The updates for arrays that live where ``w`` does; Numba's are loaded here."""
    if device_of(w).compiled:
        from . import kernels

        return kernels
    from . import array_kernels

    return array_kernels


def _zeros_like(w: Array) -> Array:
    return namespace(w).zeros_like(w)


OPTIMIZERS: dict[str, type[FirstOrder]] = {
    kind.name: kind for kind in (GradientDescent, SGD, Momentum, Nesterov, Adam, AdamW)
}
