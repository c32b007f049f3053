"""Numba kernels of linear models with one output: whole passes over the rows; importing this module loads Numba.

A pass reads X once, at nearly the speed of a sum over it, where two BLAS products read it twice.  It goes through X
in blocks of rows that stay in the cache between their dots with the parameters and their part in the gradient.  The
dots, at which X comes from memory, ask for what follows: left to the hardware, rows of 50 numbers came at a third of
the speed.  Taking the dots of a block along with the gradient of the one before it was no faster.

X has shape (rows, features), is C-contiguous, and float32 or float64; w and gradients have its dtype.  Rows are
weighted by ``weight``, shape (rows,), or by 1 where it is empty.  Labels of the logistic loss are positive or not.

Losses are float64 arithmetic whatever the dtype, and vector code: Numba's own math.exp calls a scalar function for
each number.  Sums over many rows are float64; those of features in the dtype of X within `PART` rows.
"""

from __future__ import annotations

import numba
import numpy as np

from ...jit import kernel
from ...vectors import LINE_BYTES, add_sums, address, fma, increase, length, load, prefetch, spread
from .cpu import LOGISTIC, SQUARED

CURVED = 3  # beside the codes of losses: "residuals" of `_sweep` are curvature · margin
REORDER = {"reassoc", "contract", "nsz"}  # sums may be reordered, so that they become vector code; NaN stays
STRIP = 256  # rows whose losses are taken together, in the first-level cache
# Logistic losses and gradients of 200,000 × 200, 100,000 × 1000, 1,000,000 × 50 and 20,000 × 5000 float32 numbers take
# the time of 1.6, 1.4, 2.0 and 1.4 sums over X on a core of an AMD EPYC (Zen 5), which then reads 41 GB/s.
BLOCK_BYTES = 1 << 18  # of X in a block, which lies in the second-level cache
AHEAD_BYTES = 1 << 12  # how far after what is read memory is asked for
PIECE_BYTES = 1 << 15  # of a row, so that those of parameters and gradient stay in the caches
PART = 512  # rows whose gradient is summed in the dtype of X; there float32 sums are accurate enough

# Of exp and _log1p.  ln 2 in two parts, the first with zeros for its last 32 bits (Cody & Waite 1980, Software
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
def exp(a):
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
    tail = exp(-signed if right else signed)  # never overflows
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


@kernel()
def _dots(x, start, rows, parameters, out):
    """out[r] += row start + r of x · ``parameters``, for an even number of rows of which vectors stay inside x.

    Vectors of ``parameters`` reach beyond the last feature, into its filling.  One row after another, and memory is
    asked for in that order: two or four rows of 200 numbers and more at once came at 0.6 to 0.9 of the speed.
    """
    flat, w, to = address(x), address(parameters), address(out)
    lanes, zero, one = length(flat), spread(x.dtype.type(0)), spread(x.dtype.type(1))
    f, ahead = np.uintp(x.shape[1]), np.uintp(AHEAD_BYTES // x.itemsize)
    l2, l3, l4 = lanes * np.uintp(2), lanes * np.uintp(3), lanes * np.uintp(4)
    first = np.uintp(0)
    while first < f:
        a, stop = np.uintp(start) * f, min(f, first + lanes * np.uintp(PIECE_BYTES // LINE_BYTES))
        whole = first + (stop - first) // l4 * l4
        for r in range(0, rows, 2):
            above = zero
            for second in range(2):
                s0 = s1 = s2 = s3 = zero  # as many as hide the time that a product takes
                j = first
                while j < whole:
                    i = a + j
                    prefetch(flat, i + ahead)
                    prefetch(flat, i + ahead + lanes)
                    prefetch(flat, i + ahead + l2)
                    prefetch(flat, i + ahead + l3)
                    s0 = fma(load(flat, i, lanes), load(w, j, lanes), s0)
                    s1 = fma(load(flat, i + lanes, lanes), load(w, j + lanes, lanes), s1)
                    s2 = fma(load(flat, i + l2, lanes), load(w, j + l2, lanes), s2)
                    s3 = fma(load(flat, i + l3, lanes), load(w, j + l3, lanes), s3)
                    j += l4
                while j < stop:
                    prefetch(flat, a + j + ahead)
                    s0 = fma(load(flat, a + j, f - j), load(w, j, lanes), s0)
                    j += lanes
                s0 = fma(s0, one, fma(s1, one, fma(s2, one, s3)))
                if not second:
                    above = s0
                a += f
            add_sums(above, s0, to, np.uintp(r))
        first = stop


@kernel()
def _gradient(x, start, rows, factors, out):
    """out += Σ factors[r] · row start + r of x, for rows by fours; beyond the last feature ``out`` gets anything.

    The last rows come first: those that were read last are still in the first-level cache.
    """
    flat, factor, to = address(x), address(factors), address(out)
    lanes, zero = length(flat), spread(x.dtype.type(0))
    f, first = np.uintp(x.shape[1]), np.uintp(0)
    f2, f3 = f * np.uintp(2), f * np.uintp(3)
    while first < f:
        a, stop = np.uintp(start + rows) * f, min(f, first + lanes * np.uintp(PIECE_BYTES // LINE_BYTES))
        r = np.uintp(rows)
        while r > np.uintp(0):
            r -= np.uintp(4)
            a -= f3 + f
            z0, z1 = spread(factor[r]), spread(factor[r + np.uintp(1)])
            z2, z3 = spread(factor[r + np.uintp(2)]), spread(factor[r + np.uintp(3)])
            j = first
            while j < stop:
                i = a + j
                s = fma(load(flat, i, lanes), z0, fma(load(flat, i + f, lanes), z1, zero))
                s = fma(load(flat, i + f2, lanes), z2, fma(load(flat, i + f3, lanes), z3, s))
                increase(to, j, s)
                j += lanes
        first = stop


@kernel()
def fold(grad, total):
    """total ← total + grad, and grad ← 0."""
    for j in range(total.size):
        total[j] += grad[j]
        grad[j] = 0


@kernel()
def _scale(factor, out):
    for r in range(out.size):
        out[r] *= factor[r]


@kernel()
def _shift(dots, bias, out):
    """out ← dots + bias, float64, by way of the dtype of dots, in which margins are kept; dots ← 0."""
    for r in range(out.size):
        out[r] = dots[r] + bias
        dots[r] = 0


@kernel()
def reaches(x):
    """(features, filled up to whole vectors; rows of x at which vectors do not reach beyond its end)."""
    rows, features = x.shape
    filled = features + -features % (LINE_BYTES // x.itemsize)
    return filled, max(0, rows - (filled - 1) // max(1, features))


@kernel()
def _sweep(kind, x, y, weight, w, bias, grad, margin, curvature):
    """The pass of `loss_and_grad` and, where kind is `CURVED`, of `product`: there ``weight`` holds curvatures."""
    rows, features = x.shape
    block = max(8, min(STRIP, BLOCK_BYTES // max(1, features * x.itemsize) // 4 * 4))
    filled, safe = reaches(x)
    scratch = np.empty((3, block))
    dots, factor, totals = np.zeros(block, x.dtype), np.empty(block, x.dtype), np.zeros(features)
    buffer = np.zeros(2 * filled + LINE_BYTES // x.itemsize, x.dtype)
    low = (LINE_BYTES - np.int64(buffer.ctypes.data) % LINE_BYTES) // x.itemsize  # vectors are not to cross lines
    parameters, sums = buffer[low : low + filled], buffer[low + filled : low + 2 * filled]
    _copy(w, parameters[:features])
    loss, bias_grad, unfolded = 0.0, 0.0, 0
    for start in range(0, rows, block):
        stop = min(start + block, rows)
        count, reached = stop - start, max(0, min(stop, safe) - start) // 4 * 4
        _dots(x, start, reached, parameters, dots)
        for i in range(reached, count):
            dots[i] = _dot(x[start + i], w)
        z, losses, curved = scratch[0, :count], scratch[1, :count], scratch[2, :count]
        _shift(dots, x.dtype.type(bias), z)
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
        _gradient(x, start, reached, factor, sums)
        for i in range(reached, count):
            for j in range(features):
                sums[j] += factor[i] * x[start + i, j]
        unfolded += count
        if unfolded >= PART:
            fold(sums, totals)
            unfolded = 0
    fold(sums, totals)
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


@kernel()
def diagonal(x, curvature, out):
    """out ← Σ curvature[i] · x[i]² over rows i: the diagonal of the matrix of `product`, without the bias."""
    rows, features = x.shape
    filled, safe = reaches(x)
    sums, totals = np.zeros(filled, x.dtype), np.zeros(features)
    flat, grad = address(x), address(sums)
    f, lanes, zero = np.uintp(features), length(flat), spread(x.dtype.type(0))
    for start in range(0, safe, PART):
        for r in range(start, min(start + PART, safe)):
            row, factor, j = np.uintp(r) * f, spread(x.dtype.type(curvature[r])), np.uintp(0)
            while j < f:
                prefetch(flat, row + j + np.uintp(AHEAD_BYTES // x.itemsize))
                v = load(flat, row + j, lanes)
                increase(grad, j, fma(fma(v, factor, zero), v, zero))
                j += lanes
        fold(sums, totals)
    for r in range(safe, rows):
        for k in range(features):
            totals[k] += np.float64(curvature[r]) * x[r, k] * x[r, k]
    _copy(totals, out)


__all__ = ["LOGISTIC", "SQUARED", "diagonal", "line", "loss_and_grad", "product", "values"]
