"""The loops of `kernels.cpu` as array functions, for NumPy's namespace and CuPy's alike.

What a function does, and what its arguments are, is told there.  Results are the same to rounding, dropout masks
bit for bit.  Arrays are changed in place; temporaries are few, and come from the device's memory pool.
Nothing is copied to the host: `_residual` returns a sum that stays on the device.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from ...backend import namespace
from ...data.streams import GOLDEN, MASK, MIX_FIRST, MIX_SECOND
from ..losses import Loss

Array = Any
GELU_SCALE = float(np.sqrt(2.0 / np.pi))
GELU_CUBIC = 0.044715


def relu(z: Array, bias: Array, slope: Array) -> None:
    """See `kernels.cpu.relu`."""
    xp = namespace(z)
    z += bias
    xp.less_equal(z, 0, out=slope)
    xp.subtract(1, slope, out=slope)
    xp.maximum(z, 0, out=z)  # of NaN it makes NaN, which is seen in the loss


def relu_dropout(z: Array, bias: Array, slope: Array, *stream: Any) -> None:
    """See `kernels.cpu.relu_dropout`."""
    relu(z, bias, slope)
    dropout(z, slope, *stream)


def dropout(a: Array, slope: Array, key: Any, first: int, width: int, threshold: Any, scale: Any) -> None:
    """See `kernels.cpu.dropout`; ``a`` has all ``width`` units."""
    assert a.shape[1] == width, "a GPU computes whole layers"
    factor = _draws(a, key, first) < threshold
    for x in (a, slope):
        x *= factor
        x *= scale


def _draws(a: Array, key: Any, first: int) -> Array:
    """The upper 32 bits of the numbers of stream ``key`` for units of ``a``, whose first row is ``first``; uint64."""
    xp = namespace(a)
    bits = xp.arange(a.size, dtype=np.uint64)
    shifted = xp.empty_like(bits)
    bits *= np.uint64(GOLDEN)
    bits += np.uint64((int(key) + GOLDEN * first * a.shape[1]) & MASK)
    for shift, factor in ((30, MIX_FIRST), (27, MIX_SECOND)):
        xp.right_shift(bits, np.uint64(shift), out=shifted)
        bits ^= shifted
        bits *= np.uint64(factor)
    xp.right_shift(bits, np.uint64(31), out=shifted)
    bits ^= shifted
    bits >>= np.uint64(32)
    return bits.reshape(a.shape)


def add_bias(z: Array, bias: Array) -> None:
    """See `kernels.cpu.add_bias`."""
    z += bias


def tanh_slope(a: Array, slope: Array) -> None:
    """See `kernels.cpu.tanh_slope`."""
    xp = namespace(a)
    xp.multiply(a, a, out=slope)
    xp.subtract(1, slope, out=slope)


def gelu_argument(z: Array, bias: Array, argument: Array) -> None:
    """See `kernels.cpu.gelu_argument`."""
    xp = namespace(z)
    z += bias
    xp.multiply(z, z, out=argument)
    argument *= GELU_CUBIC
    argument += 1
    argument *= z
    argument *= GELU_SCALE


def gelu(z: Array, slope: Array) -> None:
    """See `kernels.cpu.gelu`; with t the tanh: ½ (1 + t) + ½ z (1 - t²) (the argument's derivative by z)."""
    xp = namespace(z)
    inner = z * z
    inner *= 3 * GELU_CUBIC
    inner += 1
    inner *= GELU_SCALE
    inner *= z
    rest = slope * slope
    xp.subtract(1, rest, out=rest)
    inner *= rest
    slope += 1
    z *= slope
    z *= 0.5
    slope += inner
    slope *= 0.5


def backpropagate(delta: Array, slope: Array, bias_grad: Array) -> None:
    """See `kernels.cpu.backpropagate`."""
    delta *= slope
    namespace(delta).sum(delta, axis=0, out=bias_grad)


def residual_of(loss: Loss) -> Any:
    """`_residual` of this loss."""
    return partial(_residual, loss)


def _residual(loss: Loss, z: Array, bias: Array, y: Array, weight: Array, bias_grad: Array, curvature: Array) -> Array:
    """See `kernels.cpu`; the sum of losses is an array of shape (), float64, where ``z`` lives."""
    xp = namespace(z)
    if len(z) == 0:  # CuPy has no maximum of nothing
        bias_grad.fill(0)
        return xp.zeros((), np.float64)
    z += bias
    losses, curved = loss.of_rows(z, y)
    if weight.size:
        losses = losses * weight
        z *= weight[:, None]
    if curvature.size:
        curvature[:] = curved * weight if weight.size else curved
    xp.sum(z, axis=0, out=bias_grad)
    return xp.sum(losses)
