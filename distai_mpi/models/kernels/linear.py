"""Numba kernels of linear models with one output: whole passes over the rows; importing this module loads Numba.

A pass reads X once, at nearly the speed of a sum over it, where two BLAS products read it twice.  It goes through X
in blocks of rows that stay in the cache between their dots with the parameters and their part in the gradient.
Meanwhile it asks memory for the next block, a few lines at a time: the hardware, which looks ahead in few
streams at once and not beyond a page, does this too late for four rows side by side.

X has shape (rows, features), is C-contiguous, and float32 or float64; w and gradients have its dtype.  Rows are
weighted by ``weight``, shape (rows,), or by 1 where it is empty.  Labels of the logistic loss are positive or not.

Losses are float64 arithmetic whatever the dtype, and vector code: Numba's own math.exp calls a scalar function for
each number.  Sums over many rows are float64; those of features in the dtype of X within `PART` rows.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ...jit import kernel
from .cpu import LOGISTIC, SQUARED

CURVED = 3  # beside the codes of losses: "residuals" of `_sweep` are curvature · margin
REORDER = {"reassoc", "contract", "nsz"}  # sums may be reordered, so that they become vector code; NaN stays
STRIP = 256  # rows whose losses are taken together, in the first-level cache
# Logistic losses and gradients of 200,000 × 200, 100,000 × 1000 and 1,000,000 × 50 float32 numbers took the time of
# 1.7, 1.5 and 2.7 sums over X on a core of an AMD EPYC (Zen 4), and of 5.9, 2.9 and 3.4 without asking ahead.
BLOCK_BYTES = 1 << 16  # of X in a block; two blocks lie in the second-level cache
PIECE_BYTES = 1024  # of a row, between which lines are asked for: so many at once as the core keeps track of
LINE_BYTES = 64  # of the cache
NEARNESS = 2  # of llvm.prefetch: into the second-level cache
PART = 512  # rows whose gradient is summed in the dtype of X; there float32 sums are accurate enough

# Of _exp and _log1p.  ln 2 in two parts, the first with zeros for its last 32 bits (Cody & Waite 1980, Software
# Manual for the Elementary Functions, chapter 6), and the coefficients are those of FreeBSD's msun (fdlibm):
# e_exp.c and e_log.c, (c) 1993 and 2004 by Sun Microsystems; "permission to use, copy, modify, and distribute this
# software is freely granted, provided that this notice is preserved."
INVERSE_LN2 = 1.44269504088896338700
LN2_HIGH, LN2_LOW, LN2 = 6.93147180369123816490e-01, 1.90821492927058770002e-10, 0.693147180559945309417
LOWEST = -708.0  # exp of it is just no denormal number
ROUNDER = 1.5 * 2.0**52  # a number to which it is added is rounded to a whole one, found in its last bits
EXPONENT_BIAS, EXPONENT_PLACE = 1023, 52
P1, P2, P3 = 1.66666666666666019037e-01, -2.77777777770155933842e-03, 6.61375632143793436117e-05
P4, P5 = -1.65339022054652515390e-06, 4.13813679705723846039e-08
L1, L2, L3 = 6.666666666666735130e-01, 3.999999999940941908e-01, 2.857142874366239149e-01
L4, L5, L6 = 2.222219843214978396e-01, 1.818357216161805012e-01, 1.531383769920937332e-01
L7 = 1.479819860511658591e-01


@numba.njit(inline="always")
def _exp(a):
    """exp(a) for a <= 0, and NaN for NaN; exp(LOWEST), 3e-308, below that.  Not for code that reorders sums."""
    a = LOWEST if a < LOWEST else a
    shifted = a * INVERSE_LN2 + ROUNDER
    power = np.int64(np.float64(shifted).view(np.int64) + EXPONENT_BIAS) << EXPONENT_PLACE
    whole = shifted - ROUNDER
    high, low = a - whole * LN2_HIGH, whole * LN2_LOW
    r = high - low
    square = r * r
    c = r - square * (P1 + square * (P2 + square * (P3 + square * (P4 + square * P5))))
    return (1.0 - ((low - (r * c) / (2.0 - c)) - high)) * np.int64(power).view(np.float64)


@numba.njit(inline="always")
def _log1p(t):
    """log(1 + t) for 0 <= t <= 1, and NaN for NaN; as ln 2 + log(1 + (t - 1) / 2) above √2 - 1."""
    large = t > 0.41421356237309503
    above = t - 1.0 if large else t
    s = above / ((3.0 if large else 2.0) + t)
    square = s * s
    series = L1 + square * (L2 + square * (L3 + square * (L4 + square * (L5 + square * (L6 + square * L7)))))
    value = s * (2.0 + square * series)
    return LN2 + value if large else value


@numba.njit(inline="always")
def _logistic(margin, sign):
    """(loss, residual, curvature) of one row: log(1 + exp(-sign · margin)), and its derivatives by margin."""
    signed = sign * margin
    right = signed >= 0
    tail = _exp(-signed if right else signed)  # never overflows
    inverse = 1.0 / (1.0 + tail)
    loss = _log1p(tail) + (0.0 if right else -signed)
    return loss, -sign * (tail if right else 1.0) * inverse, tail * inverse * inverse


@kernel(fastmath={"contract"}, error_model="numpy")
def _weigh(kind, z, y, weight, loss, curvature):
    """Weighted losses, and their first (into z) and second derivatives, at the margins z of a strip of rows.

    All are float64 but y and weight.  More arrays in one loop, and the compiler would give up on vector code.
    """
    rows = z.size
    if kind == SQUARED:
        for r in range(rows):
            off = z[r] - y[r]
            z[r] = off
            loss[r] = 0.5 * off * off
            curvature[r] = 1.0
    else:
        for r in range(rows):
            loss[r], z[r], curvature[r] = _logistic(z[r], 1.0 if y[r] > 0 else -1.0)
    if weight.size:
        for r in range(rows):
            factor = np.float64(weight[r])
            loss[r] *= factor
            z[r] *= factor
            curvature[r] *= factor


@kernel(fastmath=REORDER)
def _sum(a):
    total = 0.0
    for r in range(a.size):
        total += a[r]
    return total


@kernel(fastmath=REORDER)
def _dot(a, b):
    """Σ a · b in float64."""
    total = 0.0
    for r in range(a.size):
        total += np.float64(a[r]) * np.float64(b[r])
    return total


@kernel()
def _copy(source, out):
    for r in range(out.size):
        out[r] = source[r]


@kernel(fastmath=REORDER)
def values(kind, margin, y, weight):
    """Weighted sum of the losses ``kind`` (`SQUARED` or `LOGISTIC`) at the margins of the rows."""
    total, scratch = 0.0, np.empty((3, STRIP))
    for start in range(0, margin.size, STRIP):
        stop = min(start + STRIP, margin.size)
        rows = stop - start
        loss = scratch[1, :rows]
        _copy(margin[start:stop], scratch[0, :rows])
        _weigh(kind, scratch[0, :rows], y[start:stop], weight[start:stop], loss, scratch[2, :rows])
        total += _sum(loss)
    return total


@kernel()
def _move(margin, step, t, out):
    """out ← margin + t · step, float64."""
    for r in range(out.size):
        out[r] = np.float64(margin[r]) + t * np.float64(step[r])


@kernel(fastmath=REORDER)
def line(kind, margin, step_margin, t, y, weight):
    """(loss, slope): as `values` at margin + t · step_margin, and its derivative by t."""
    total, slope, scratch = 0.0, 0.0, np.empty((3, STRIP))
    for start in range(0, margin.size, STRIP):
        stop = min(start + STRIP, margin.size)
        rows = stop - start
        at, loss = scratch[0, :rows], scratch[1, :rows]
        step = step_margin[start:stop]
        _move(margin[start:stop], step, np.float64(t), at)
        _weigh(kind, at, y[start:stop], weight[start:stop], loss, scratch[2, :rows])
        total += _sum(loss)
        slope += _dot(at, step)
    return total, slope


@intrinsic
def _prefetch(typing_context: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line of element ``index`` of a flat array, without waiting; it may lie beyond the end."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        byte, number = ir.IntType(8), ir.IntType(32)
        kinds = [byte.as_pointer(), number, number, number]
        ask = builder.module.declare_intrinsic("llvm.prefetch", [kinds[0]], ir.FunctionType(ir.VoidType(), kinds))
        place = builder.bitcast(builder.gep(data, [args[1]]), kinds[0])
        builder.call(ask, [place, number(0), number(NEARNESS), number(1)])
        return context.get_dummy_value()

    return types.void(array, index), generate


@kernel()
def _prefetch_all(flat, start, stop):
    """Ask for the cache lines of elements ``start`` to ``stop``."""
    for k in range(start, stop, LINE_BYTES // flat.itemsize):
        _prefetch(flat, k)  # type: ignore[call-arg]


@numba.njit(inline="always")
def _rows_at(place, features):
    """Where in a flat matrix the elements at ``place`` of four rows are, as unsigned numbers, which need no check."""
    p, f = np.uintp(place), np.uintp(features)
    return p, p + f, p + f + f, p + f + f + f


@kernel(fastmath=REORDER)
def _dots(flat, place, features, w, first, stop, out, i):
    """out[i : i + 4] ← out[i : i + 4] + the dots with w of four rows, of features ``first`` to ``stop``.

    ``place`` is that of the first of these in ``flat``, a matrix of so many ``features``.
    """
    r0, r1, r2, r3 = _rows_at(place, features)
    f = np.uintp(first)
    s0 = s1 = s2 = s3 = w.dtype.type(0)
    for j in range(np.uintp(stop - first)):
        v = w[f + j]
        s0 += flat[r0 + j] * v
        s1 += flat[r1 + j] * v
        s2 += flat[r2 + j] * v
        s3 += flat[r3 + j] * v
    k = np.uintp(i)
    out[k] += s0
    out[k + np.uintp(1)] += s1
    out[k + np.uintp(2)] += s2
    out[k + np.uintp(3)] += s3


@kernel(fastmath=REORDER)
def _add(flat, place, features, factor, i, grad, first, stop):
    """grad ← grad + Σ factor[i + k] · row k of four, of features ``first`` to ``stop``; see `_dots`."""
    r0, r1, r2, r3 = _rows_at(place, features)
    f, k = np.uintp(first), np.uintp(i)
    f0, f1, f2, f3 = factor[k], factor[k + np.uintp(1)], factor[k + np.uintp(2)], factor[k + np.uintp(3)]
    for j in range(np.uintp(stop - first)):
        grad[f + j] += (f0 * flat[r0 + j] + f1 * flat[r1 + j]) + (f2 * flat[r2 + j] + f3 * flat[r3 + j])


@kernel(fastmath=REORDER)
def _single_dot(x, w):
    total = w.dtype.type(0)
    for j in range(w.size):
        total += x[j] * w[j]
    return total


@kernel(fastmath=REORDER)
def _single_add(x, factor, grad):
    for j in range(grad.size):
        grad[j] += factor * x[j]


@kernel()
def _fold(grad, total):
    """total ← total + grad, and grad ← 0."""
    for j in range(grad.size):
        total[j] += grad[j]
        grad[j] = 0


@kernel()
def _scale(factor, out):
    for r in range(out.size):
        out[r] *= factor[r]


@kernel()
def _shift(dots, bias, out):
    """out ← dots + bias, float64, by way of the dtype of dots, in which margins are kept."""
    for r in range(out.size):
        out[r] = dots[r] + bias


@kernel()
def _block_rows(x):
    """Rows of a block: a multiple of 4."""
    rows = BLOCK_BYTES // max(1, x.shape[1] * x.itemsize)
    return max(8, min(STRIP, rows - rows % 4))


@kernel()
def _sweep(kind, x, y, weight, w, bias, grad, margin, curvature):
    """The pass of `loss_and_grad` and, where kind is `CURVED`, of `product`: there ``weight`` holds curvatures."""
    rows, features = x.shape
    offset = x.dtype.type(bias)
    block = _block_rows(x)
    scratch = np.empty((3, block))
    dots, factor = np.empty(block, x.dtype), np.empty(block, x.dtype)
    totals = np.zeros(features)
    grad[:] = 0
    flat, piece = x.reshape(-1), PIECE_BYTES // x.itemsize
    loss, bias_grad, unfolded = 0.0, 0.0, 0
    for start in range(0, rows, block):
        count = min(block, rows - start)
        stop, quads = start + count, count - count % 4
        ahead = stop * features
        dots[:] = 0
        for i in range(0, quads, 4):
            for first in range(0, features, piece):
                end = min(first + piece, features)
                _prefetch_all(flat, ahead, ahead + 2 * (end - first))
                ahead += 2 * (end - first)
                _dots(flat, (start + i) * features + first, features, w, first, end, dots, i)
        for i in range(quads, count):
            dots[i] = _single_dot(x[start + i], w)
        z, losses, curved = scratch[0, :count], scratch[1, :count], scratch[2, :count]
        _shift(dots, offset, z)
        if margin.size:
            _copy(z, margin[start:stop])
        if kind == CURVED:
            _scale(weight[start:stop], z)
        else:
            _weigh(kind, z, y[start:stop], weight[start:stop], losses, curved)
            loss += _sum(losses)
            if curvature.size:
                _copy(curved, curvature[start:stop])
        bias_grad += _sum(z)
        _copy(z, factor[:count])
        for i in range(0, quads, 4):
            for first in range(0, features, piece):
                end = min(first + piece, features)
                _prefetch_all(flat, ahead, ahead + 2 * (end - first))
                ahead += 2 * (end - first)
                _add(flat, (start + i) * features + first, features, factor, i, grad, first, end)
        for i in range(quads, count):
            _single_add(x[start + i], factor[i], grad)
        unfolded += count
        if unfolded >= PART:
            _fold(grad, totals)
            unfolded = 0
    _fold(grad, totals)
    _copy(totals, grad)
    return loss, bias_grad


@kernel()
def loss_and_grad(kind, x, y, weight, w, bias, grad, margin, curvature):
    """Weighted sum of losses at the margins x w + bias, and its derivative by bias; grad ← its gradient by w.

    ``kind`` is `SQUARED` or `LOGISTIC`.  Each row's margin and weighted second derivative of its loss are left in
    ``margin`` and ``curvature``, shape (rows,), or nowhere where these are empty.
    """
    return _sweep(kind, x, y, weight, w, bias, grad, margin, curvature)


@kernel()
def product(x, curvature, p, p_bias, out, step_margin):
    """out ← Xᵀ (curvature · (X p + p_bias)); returns the sum of the vector in brackets, the part of the bias.

    With the curvatures of `loss_and_grad` this is the Hessian's product with (p, p_bias).  The margins X p + p_bias
    are left in ``step_margin``, shape (rows,), unless it is empty.
    """
    return _sweep(CURVED, x, curvature, curvature, p, p_bias, out, step_margin, curvature[:0])[1]


@kernel(fastmath=REORDER)
def _add_squares(x, r, first, stop, factor, out):
    """out ← out + Σ factor[r + k] · (row r + k)², for four rows, of features ``first`` to ``stop``."""
    x0, x1, x2, x3 = x[r, first:stop], x[r + 1, first:stop], x[r + 2, first:stop], x[r + 3, first:stop]
    f0, f1, f2, f3 = factor[r], factor[r + 1], factor[r + 2], factor[r + 3]
    g = out[first:stop]
    for j in range(g.size):
        g[j] += (f0 * x0[j] * x0[j] + f1 * x1[j] * x1[j]) + (f2 * x2[j] * x2[j] + f3 * x3[j] * x3[j])


@kernel()
def diagonal(x, curvature, out):
    """out ← Σ curvature[i] · x[i]² over rows i: the diagonal of the matrix of `product`, without the bias."""
    rows, features = x.shape
    flat, piece = x.reshape(-1), PIECE_BYTES // x.itemsize
    totals = np.zeros(features)
    out[:] = 0
    quads = rows - rows % 4
    ahead = _block_rows(x) * features
    for r in range(0, quads, 4):
        if r % PART == 0:
            _fold(out, totals)
        for first in range(0, features, piece):
            stop = min(first + piece, features)
            _prefetch_all(flat, ahead, ahead + 4 * (stop - first))
            ahead += 4 * (stop - first)
            _add_squares(x, r, first, stop, curvature, out)
    for r in range(quads, rows):
        for j in range(features):
            out[j] += curvature[r] * x[r, j] * x[r, j]
    _fold(out, totals)
    _copy(totals, out)


__all__ = ["LOGISTIC", "SQUARED", "diagonal", "line", "loss_and_grad", "product", "values"]
