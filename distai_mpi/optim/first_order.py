"""First-order methods: one update of a slice of the parameters from the same slice of the mean gradient.

The arithmetic is in `optim.kernels`, and for arrays on a GPU in `optim.array_kernels`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, ClassVar, Protocol

from ..backend import device_of, namespace
from ..options import OPTIONS
from ..settings import setting, settings
from .schedules import Constant, Schedule

Array = Any
State = dict[str, Any]
Ranges = Sequence[tuple[int, int]]  # ranges of a slice: first element and end


class FirstOrder(Protocol):
    """A first-order method.  Its state is explicit and, like the slice, local to the rank that owns it.

    Attributes:
        lr: learning rate.
        full_batch: whether a step takes all rows, whatever global batch size is asked for.

    ``schedule`` and ``clip_norm`` as of `Elementwise` are read where a method has them.
    """

    name: ClassVar[str]
    full_batch: ClassVar[bool]

    @property
    def lr(self) -> float: ...

    def init(self, w: Array, decay: Ranges = ()) -> State:
        """The state before the first step for a slice ``w``, shape (n,): arrays of that shape, and numbers.

        ``decay`` gives the ranges of the slice, ascending, that weight decay applies to.
        """
        ...

    def step(self, w: Array, grad: Array, state: State, out: Array | None = None, factor: float = 1.0) -> None:
        """Write the slice after one step to ``out`` (``w`` itself if None) and update ``state`` in place.

        w, grad and out have shape (n,) and one dtype; out may be w and must not overlap grad.  The
        learning rate is ``factor`` · lr: what a schedule makes of it.

        The package's own methods take the same step part by part as well: see `Elementwise`.
        """
        ...


@settings
class Elementwise:
    """A step that treats every element alike, so that it can be taken part by part while the gradient arrives.

    Attributes:
        schedule: factor of the learning rate, by the number of steps taken.
        clip_norm: gradients whose Euclidean norm is larger are scaled down to it (the gradient of the global batch;
            under `LocalSGD` each rank's own); None: none are.  Costs one small message a step.
    """

    schedule: Schedule = setting(default=Constant(), kw_only=True)
    clip_norm: float | None = setting(OPTIONS["clip_norm"], default=None, kw_only=True)

    def step(self, w: Array, grad: Array, state: State, out: Array | None = None, factor: float = 1.0) -> None:
        """See `FirstOrder.step`."""
        self.advance(state)
        self.update(w, grad, state, w if out is None else out, factor, slice(0, w.size))

    def advance(self, state: State) -> None:
        """Begin a step, whose parts are then given to `update`."""

    def update(self, w: Array, grad: Array, state: State, out: Array, factor: float, part: slice) -> None:
        """Take the step that was begun for the elements ``part`` of the slices w, grad and out, shape (n,)."""
        raise NotImplementedError


@settings
class SGD(Elementwise):
    """Stochastic gradient descent: w ← w - lr · gradient of the global batch's mean loss.

    With a global batch of one row it is the classic one-sample method (Robbins & Monro 1951).
    """

    lr: float = setting(OPTIONS["lr"], default=0.1)
    name: ClassVar[str] = "sgd"
    full_batch: ClassVar[bool] = False

    def init(self, w: Array, decay: Ranges = ()) -> State:
        """``carry``: zeros of w's shape and dtype, what rounding has taken from w so far."""
        return {"carry": _zeros_like(w)}

    def update(self, w: Array, grad: Array, state: State, out: Array, factor: float, part: slice) -> None:
        """See `Elementwise.update`."""
        _kernels(w).sgd(w[part], grad[part], state["carry"][part], w.dtype.type(factor * self.lr), out[part])


@settings
class GradientDescent(SGD):
    """Gradient descent on the full objective: one step an epoch, from the gradient over all rows.

    Attributes:
        tol: stop when the norm of the gradient is at most ``tol`` times that of the first step; None: never.
        min_decrease: stop when a step lowers the objective by less than this fraction of it; None: never.
    """

    tol: float | None = setting(OPTIONS["tol"], default=None, kw_only=True)
    min_decrease: float | None = setting(OPTIONS["min_decrease"], default=None, kw_only=True)
    name: ClassVar[str] = "gd"
    full_batch: ClassVar[bool] = True


@settings
class Momentum(Elementwise):
    """Heavy-ball momentum (Polyak 1964): v ← momentum · v + gradient, w ← w - lr · v.

    The form in which the learning rate multiplies the velocity (as PyTorch has it, not
    Sutskever et al. 2013, equation 1); both agree while the rate is constant.
    """

    lr: float = setting(OPTIONS["lr"], default=0.12)
    momentum: float = setting(OPTIONS["momentum"], default=0.9)
    name: ClassVar[str] = "momentum"
    full_batch: ClassVar[bool] = False

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


@settings
class Nesterov(Momentum):
    """Nesterov momentum: v ← momentum · v + gradient, w ← w - lr · (gradient + momentum · v).

    Sutskever et al. 2013, "On the importance of initialization and momentum", equations 3 and 4, in the
    variables of `Momentum`, so that the gradient is taken at w itself.
    """

    name: ClassVar[str] = "nesterov"

    @staticmethod
    def _rule(w: Array) -> Any:
        return _kernels(w).nesterov


@settings
class Adam(Elementwise):
    """Adam (Kingma & Ba 2015, algorithm 1): steps by the mean gradient over the root of the mean square.

    The l2 penalty of the objective is part of the gradient; `AdamW` decays weights apart from it.
    """

    lr: float = setting(OPTIONS["lr"], default=0.001)
    beta1: float = setting(kind="float", default=0.9, low=0, below=1)
    beta2: float = setting(kind="float", default=0.999, low=0, below=1)
    epsilon: float = setting(kind="float", default=1e-8, above=0)
    name: ClassVar[str] = "adam"
    full_batch: ClassVar[bool] = False

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


@settings
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2): w also loses lr · weight_decay · w.

    Slots without decay (biases) are left alone.
    """

    weight_decay: float = setting(OPTIONS["weight_decay"], default=0.01)
    name: ClassVar[str] = "adamw"

    def update(self, w: Array, grad: Array, state: State, out: Array, factor: float, part: slice) -> None:
        """See `Elementwise.update`."""
        rate = factor * self.lr
        for piece, decays in pieces(state["decay"], part):
            self._update(w, grad, state, out, piece, rate, rate * self.weight_decay if decays else 0.0)


@settings
class AdaGrad(Elementwise):
    """AdaGrad (Duchi, Hazan & Singer 2011, figure 1, diagonal): steps by the gradient over the root of all squares.

    w ← w - lr · gradient / (√(initial + Σ gradient²) + epsilon), the sum over the steps so far.  The l2 penalty of the
    objective is part of the gradient.  The sum is not compensated: rounding shows in it after some 10⁷ steps alone.

    Attributes:
        initial: what the sums of squares begin with; above 0 it tempers the first steps, each of which is otherwise
            of the length lr, however small its gradient.
        epsilon: the paper's δ.
    """

    lr: float = setting(OPTIONS["lr"], default=0.01)
    initial: float = setting(kind="float", default=0.0, low=0)
    epsilon: float = setting(kind="float", default=1e-8, above=0)
    name: ClassVar[str] = "adagrad"
    full_batch: ClassVar[bool] = False

    def init(self, w: Array, decay: Ranges = ()) -> State:
        """``squares``, without ``initial``, and ``carry``: zeros of w's shape and dtype."""
        return {"squares": _zeros_like(w), "carry": _zeros_like(w)}

    def update(self, w: Array, grad: Array, state: State, out: Array, factor: float, part: slice) -> None:
        """See `Elementwise.update`."""
        squares, carry, number = state["squares"][part], state["carry"][part], w.dtype.type
        rate, initial, epsilon = number(factor * self.lr), number(self.initial), number(self.epsilon)
        _kernels(w).adagrad(w[part], grad[part], squares, carry, rate, initial, epsilon, out[part])


@settings
class FTRL(Elementwise):
    """FTRL-proximal (McMahan et al. 2013, "Ad click prediction: a view from the trenches", algorithm 1).

    Each weight has a learning rate of its own, η = lr / (beta + √Σ gradient²), and l1 makes weights 0 exactly: those
    whose gradients do not add up to more than l1.

    The steps are the paper's, taken in the form of a proximal step from w (after McMahan 2011,
    "Follow-the-regularized-leader and mirror descent: equivalence theorems and L1 regularization").  In place of the
    paper's z its state keeps ``dual``, the slope of the penalty l1 |w| + ½ l2 w² at w, which makes up -z = w/η + dual.
    So w itself is the sum that is compensated, η may follow a schedule, and training starts where the model does: at
    w = 0 that is the paper's z = 0, elsewhere the quadratic that beta stands for is one about the start.

    Two penalties are told apart.  That of the objective (``fit(l2=...)``, ``--l2``) is part of every gradient.  ``l1``
    and ``l2`` here are the paper's: they are counted once, against the sum of the gradients of all steps, weigh less
    the longer a run is, and are no part of the losses that are reported.  Neither touches slots without decay (biases).

    Attributes:
        lr: the paper's α.
        beta: its β, by which rates begin finite.
        l1: its λ₁.
        l2: its λ₂.
    """

    lr: float = setting(OPTIONS["lr"], default=0.1)
    beta: float = setting(kind="float", default=1.0, above=0)
    l1: float = setting(OPTIONS["l1"], default=0.0)
    l2: float = setting(kind="float", default=0.0, low=0)
    name: ClassVar[str] = "ftrl"
    full_batch: ClassVar[bool] = False

    def init(self, w: Array, decay: Ranges = ()) -> State:
        """``dual``, ``squares`` and ``carry``: zeros of w's shape and dtype."""
        zeros = {name: _zeros_like(w) for name in ("dual", "squares", "carry")}
        return {**zeros, "decay": tuple(decay)}

    def update(self, w: Array, grad: Array, state: State, out: Array, factor: float, part: slice) -> None:
        """See `Elementwise.update`."""
        number = w.dtype.type
        rate, beta, step = number(factor * self.lr), number(self.beta), _kernels(w).ftrl
        if rate == 0:  # at which a weight at 0 would be held there by whatever slope
            out[part] = w[part]
            return
        for piece, decays in pieces(state["decay"], part):
            slope = [state[name][piece] for name in ("dual", "squares", "carry")]
            l1, l2 = (number(self.l1), number(self.l2)) if decays else (number(0), number(0))
            step(w[piece], grad[piece], *slope, rate, beta, l1, l2, out[piece])


def pieces(decay: Ranges, part: slice) -> Iterator[tuple[slice, bool]]:
    """``part`` of a slice, cut where its ranges ``decay`` begin and end, and whether each piece is within one."""
    done = part.start
    for low, high in (*decay, (part.stop, part.stop)):
        start, stop = min(max(low, part.start), part.stop), min(max(high, part.start), part.stop)
        for piece, decays in ((slice(done, start), False), (slice(start, stop), True)):
            if piece.start < piece.stop:
                yield piece, decays
        done = stop


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
    kind.name: kind for kind in (GradientDescent, SGD, Momentum, Nesterov, Adam, AdamW, AdaGrad, FTRL)
}
