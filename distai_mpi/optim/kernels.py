"""Numba kernels of the updates: one pass over the slice, no temporaries; importing this module loads Numba.

Parameters are updated with compensation: ``carry`` keeps what rounding took from the last sum and
adds it to the next update (Kahan 1965; for training, Zamirai et al. 2021, "Revisiting BFloat16 training",
section 4.2).  Updates below the last bit of a float32 parameter are then not lost, and runs on different
numbers of ranks, which round differently, stay together far longer.  It costs one number per owned
parameter, and the pass is as long as before: it waits for memory, not for additions.

Each loop is compiled twice, into ``w`` itself and into another array: told apart, both become vector code, which a
loop for either would not (in place it took 3 to 4 times as long).  Nor would one whose divisions might raise, as
Python's do, hence NumPy's error model (Adam took 3 to 6 times as long without).
"""

from __future__ import annotations

import math

import numba

from ..jit import kernel


@numba.njit(inline="always")
def _add(w, update, carry):
    """(w + update + carry rounded, what the rounding lost): Fast2Sum, Dekker 1971, exact where w is the larger."""
    update += carry
    total = w + update
    return total, update - (total - w)


@numba.njit(inline="always")
def _sgd(w, grad, carry, rate, out):
    for i in range(w.size):
        out[i], carry[i] = _add(w[i], -rate * grad[i], carry[i])


@kernel()
def sgd(w, grad, carry, rate, out):
    """out ← w - rate · grad."""
    if out.ctypes.data == w.ctypes.data:
        _sgd(w, grad, carry, rate, w)
    else:
        _sgd(w, grad, carry, rate, out)


@numba.njit(inline="always")
def _momentum(w, grad, velocity, carry, rate, momentum, out):
    for i in range(w.size):
        v = momentum * velocity[i] + grad[i]
        velocity[i] = v
        out[i], carry[i] = _add(w[i], -rate * v, carry[i])


@kernel()
def momentum(w, grad, velocity, carry, rate, momentum, out):
    """velocity ← momentum · velocity + grad, out ← w - rate · velocity."""
    if out.ctypes.data == w.ctypes.data:
        _momentum(w, grad, velocity, carry, rate, momentum, w)
    else:
        _momentum(w, grad, velocity, carry, rate, momentum, out)


@numba.njit(inline="always")
def _nesterov(w, grad, velocity, carry, rate, momentum, out):
    for i in range(w.size):
        v = momentum * velocity[i] + grad[i]
        velocity[i] = v
        out[i], carry[i] = _add(w[i], -rate * (grad[i] + momentum * v), carry[i])


@kernel()
def nesterov(w, grad, velocity, carry, rate, momentum, out):
    """velocity ← momentum · velocity + grad, out ← w - rate · (grad + momentum · velocity)."""
    if out.ctypes.data == w.ctypes.data:
        _nesterov(w, grad, velocity, carry, rate, momentum, w)
    else:
        _nesterov(w, grad, velocity, carry, rate, momentum, out)


@numba.njit(inline="always")
def _adam(w, grad, mean, square, carry, rate, beta1, beta2, correction, epsilon, decay, out):
    one = w.dtype.type(1)
    for i in range(w.size):
        g = grad[i]
        m = beta1 * mean[i] + (one - beta1) * g
        s = beta2 * square[i] + (one - beta2) * g * g
        mean[i] = m
        square[i] = s
        update = -rate * m / (math.sqrt(s / correction) + epsilon) - decay * w[i]
        out[i], carry[i] = _add(w[i], update, carry[i])


@kernel(error_model="numpy")
def adam(w, grad, mean, square, carry, rate, beta1, beta2, correction, epsilon, decay, out):
    """mean and square ← decaying means of grad and grad²; w moves against mean / (√(square / correction) + epsilon).

    ``rate`` includes the correction of the mean, 1 / (1 - beta1^t); ``correction`` is 1 - beta2^t.  ``decay``
    is the fraction of w that decoupled weight decay takes away besides.
    """
    if out.ctypes.data == w.ctypes.data:
        _adam(w, grad, mean, square, carry, rate, beta1, beta2, correction, epsilon, decay, w)
    else:
        _adam(w, grad, mean, square, carry, rate, beta1, beta2, correction, epsilon, decay, out)


@numba.njit(inline="always")
def adagrad_of(w, g, square, lost, rate, initial, epsilon):
    """One parameter's step of `adagrad`: (w, square, lost), of which ``lost`` is in ``carry``."""
    s = square + g * g
    total, lost_now = _add(w, -rate * g / (math.sqrt(initial + s) + epsilon), lost)
    return total, s, lost_now


@numba.njit(inline="always")
def _adagrad(w, grad, squares, carry, rate, initial, epsilon, out):
    for i in range(w.size):
        out[i], squares[i], carry[i] = adagrad_of(w[i], grad[i], squares[i], carry[i], rate, initial, epsilon)


@kernel(error_model="numpy")
def adagrad(w, grad, squares, carry, rate, initial, epsilon, out):
    """squares ← squares + grad², out ← w - rate · grad / (√(initial + squares) + epsilon)."""
    if out.ctypes.data == w.ctypes.data:
        _adagrad(w, grad, squares, carry, rate, initial, epsilon, w)
    else:
        _adagrad(w, grad, squares, carry, rate, initial, epsilon, out)


@numba.njit(inline="always")
def ftrl_of(before, g, q, square, lost, rate, beta, l1, l2, zero, one):
    """One parameter's step of `ftrl`: (w, dual, square, lost), where ``carry`` has ``lost``; 0 and 1 in its type."""
    s = square + g * g
    eta = rate / (beta + math.sqrt(s))
    at_zero = before == zero
    step = (lost if at_zero else zero) - g
    lost_of_w = zero if at_zero else lost
    summed = q + step
    point = before + (eta * summed + lost_of_w)
    sign = -l1 if point < zero else l1
    update = eta * (summed - sign - l2 * before) / (one + eta * l2)
    total, lost_now = _add(before, update, lost_of_w)
    to_zero, moves = abs(point) <= eta * l1, g != zero
    held = summed if at_zero else point / eta
    lost_at_zero = step - (summed - q) if at_zero else zero
    w = (zero if to_zero else total) if moves else before
    dual = (held if to_zero else sign + l2 * total) if moves else q
    lost_after = (lost_at_zero if to_zero else lost_now) if moves else lost
    return w, dual, s, lost_after


@numba.njit(inline="always")
def _ftrl(w, grad, dual, squares, carry, rate, beta, l1, l2, out):
    zero, one = w.dtype.type(0), w.dtype.type(1)
    for i in range(w.size):
        out[i], dual[i], squares[i], carry[i] = ftrl_of(
            w[i], grad[i], dual[i], squares[i], carry[i], rate, beta, l1, l2, zero, one
        )


@kernel(error_model="numpy")
def ftrl(w, grad, dual, squares, carry, rate, beta, l1, l2, out):
    """squares ← squares + grad²; at η = rate / (beta + √squares) the proximal step, which may end at 0 exactly.

    out minimises (grad - dual) · x + (x - w)² / (2 η) + l1 |x| + ½ l2 x², and dual becomes the slope of the last two
    there: l1 sign(x) + l2 x, or at 0 what keeps x there, between -l1 and l1.  Elements without a gradient stay.

    At 0, where there is nothing of w to lose, ``carry`` keeps what rounding took from dual.
    """
    if out.ctypes.data == w.ctypes.data:
        _ftrl(w, grad, dual, squares, carry, rate, beta, l1, l2, w)
    else:
        _ftrl(w, grad, dual, squares, carry, rate, beta, l1, l2, out)
