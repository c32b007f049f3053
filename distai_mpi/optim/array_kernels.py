"""The updates of `optim.kernels` as array functions, for NumPy's namespace and CuPy's alike.

What a function does is told there; here it takes several passes, with one or two temporaries.  Operations come in
the same order, so that results differ by the rounding of fused operations at most.
"""

from __future__ import annotations

from typing import Any

from ..backend import namespace

Array = Any


def sgd(w: Array, grad: Array, carry: Array, rate: Any, out: Array) -> None:
    """See `optim.kernels.sgd`."""
    update = grad * -rate
    _add(w, update, carry, out)


def momentum(w: Array, grad: Array, velocity: Array, carry: Array, rate: Any, momentum: Any, out: Array) -> None:
    """See `optim.kernels.momentum`."""
    velocity *= momentum
    velocity += grad
    update = velocity * -rate
    _add(w, update, carry, out)


def nesterov(w: Array, grad: Array, velocity: Array, carry: Array, rate: Any, momentum: Any, out: Array) -> None:
    """See `optim.kernels.nesterov`."""
    velocity *= momentum
    velocity += grad
    update = velocity * momentum
    update += grad
    update *= -rate
    _add(w, update, carry, out)


def adam(
    w: Array,
    grad: Array,
    mean: Array,
    square: Array,
    carry: Array,
    rate: Any,
    beta1: Any,
    beta2: Any,
    correction: Any,
    epsilon: Any,
    decay: Any,
    out: Array,
) -> None:
    """See `optim.kernels.adam`."""
    xp, one = namespace(w), w.dtype.type(1)
    scratch = grad * (one - beta1)
    mean *= beta1
    mean += scratch
    xp.multiply(grad, one - beta2, out=scratch)
    scratch *= grad
    square *= beta2
    square += scratch
    xp.divide(square, correction, out=scratch)
    xp.sqrt(scratch, out=scratch)
    scratch += epsilon
    update = mean * -rate
    update /= scratch
    if decay:
        xp.multiply(w, decay, out=scratch)
        update -= scratch
    _add(w, update, carry, out)


def adagrad(
    w: Array, grad: Array, squares: Array, carry: Array, rate: Any, initial: Any, epsilon: Any, out: Array
) -> None:
    """See `optim.kernels.adagrad`."""
    xp = namespace(w)
    scratch = grad * grad
    squares += scratch
    xp.add(squares, initial, out=scratch)
    xp.sqrt(scratch, out=scratch)
    scratch += epsilon
    update = grad * -rate
    update /= scratch
    _add(w, update, carry, out)


def ftrl(
    w: Array, grad: Array, dual: Array, squares: Array, carry: Array, rate: Any, beta: Any, l1: Any, l2: Any, out: Array
) -> None:
    """See `optim.kernels.ftrl`; here it takes some ten temporaries."""
    xp, zero, one = namespace(w), w.dtype.type(0), w.dtype.type(1)
    squares += grad * grad
    eta = rate / (xp.sqrt(squares) + beta)
    at_zero, moves = w == zero, grad != zero
    lost_of_w = xp.where(at_zero, zero, carry)
    step = xp.where(at_zero, carry, zero) - grad
    summed = dual + step
    point = w + (eta * summed + lost_of_w)
    sign = xp.where(point < zero, -l1, l1)
    update = eta * (summed - sign - w * l2) / (eta * l2 + one)
    update += lost_of_w
    total = w + update
    update -= total - w
    to_zero = xp.abs(point) <= eta * l1
    step -= summed - dual
    held, lost = xp.where(at_zero, summed, point / eta), xp.where(at_zero, step, zero)
    dual[...] = xp.where(moves, xp.where(to_zero, held, sign + total * l2), dual)
    carry[...] = xp.where(moves, xp.where(to_zero, lost, update), carry)
    out[...] = xp.where(moves, xp.where(to_zero, zero, total), w)


def _add(w: Array, update: Array, carry: Array, out: Array) -> None:
    """out ← w + update + carry, carry ← what the rounding lost; overwrites ``update``, and ``out`` may be ``w``."""
    xp = namespace(w)
    carry += update
    xp.add(w, carry, out=update)
    xp.subtract(update, w, out=out)
    carry -= out
    out[...] = update
