"""Numba kernels of linear models with one output: whole passes over the rows; importing this module loads Numba.

A pass reads X once, at nearly the speed of a sum over it, where two BLAS products read it twice.  It goes through X
in blocks of rows that stay in the cache between their dots with the parameters and their part in the gradient.  The
dots, at which X comes from memory, ask for what follows: left to the hardware, rows of 50 numbers came at a third of
the speed.  Taking the dots of a block along with the gradient of the one before it was no faster.

X has shape (rows, features), is C-contiguous, and float32 or float64; w and gradients have its dtype.  Rows are
weighted by ``weight``, shape (rows,), or by 1 where it is empty.

Losses are float64 arithmetic whatever the dtype, and vector code.  Sums over many rows are float64; those of features
in the dtype of X within `PART` rows.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from ...data.row_kernels import AHEAD_BYTES, PART, copy, fold, reaches
from ...jit import kernel, specialise
from ...vectors import LINE_BYTES, add_sums, address, fma, increase, length, load, prefetch, spread
from ..losses import PointLoss
from .arithmetic import point_of

REORDER = {"reassoc", "contract", "nsz"}  # sums may be reordered, so that they become vector code; NaN stays
STRIP = 256  # rows whose losses are taken together, in the first-level cache
# Logistic losses and gradients of 200,000 × 200, 100,000 × 1000, 1,000,000 × 50 and 20,000 × 5000 float32 numbers take
# the time of 1.6, 1.4, 2.0 and 1.4 sums over X on a core of an AMD EPYC (Zen 5), which then reads 41 GB/s.
BLOCK_BYTES = 1 << 18  # of X in a block, which lies in the second-level cache
PIECE_BYTES = 1 << 15  # of a row, so that those of parameters and gradient stay in the caches


def _weigh(z, y, weight, loss, curvature):
    """Weighted losses, and their first (into z) and second derivatives, at the margins z of a strip of rows.

    All are float64 but y and weight.  More arrays in one loop, and the compiler would give up on vector code.
    """
    rows = z.size
    for r in range(rows):
        loss[r], z[r], curvature[r] = point(z[r], y[r])  # type: ignore[name-defined]  # noqa: F821 - the loss's
    if weight.size:
        for r in range(rows):
            factor = np.float64(weight[r])
            loss[r] *= factor
            z[r] *= factor
            curvature[r] *= factor


@kernel(fastmath=REORDER)
def sum_of(a):
    """Σ a in float64."""
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
def _move(margin, step, t, out):
    """out ← margin + t · step, float64."""
    for r in range(out.size):
        out[r] = np.float64(margin[r]) + t * np.float64(step[r])


def _line(margin, step_margin, t, y, weight, scratch):
    """See `Margins.line`; ``scratch``, float64, shape (3, STRIP), is working space."""
    total, slope = 0.0, 0.0
    for start in range(0, margin.size, STRIP):
        stop = min(start + STRIP, margin.size)
        rows = stop - start
        at, loss = scratch[0, :rows], scratch[1, :rows]
        step = step_margin[start:stop]
        _move(margin[start:stop], step, np.float64(t), at)
        _weigh(at, y[start:stop], weight[start:stop], loss, scratch[2, :rows])
        total += sum_of(loss)
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
def scale(factor, out):
    """out ← factor · out."""
    for r in range(out.size):
        out[r] *= factor[r]


@kernel()
def shift(dots, bias, out):
    """out ← dots + bias, float64, by way of the dtype of dots, in which margins are kept; dots ← 0."""
    for r in range(out.size):
        out[r] = dots[r] + bias
        dots[r] = 0


def _working_space(x):
    """(safe, scratch, dots, factor, totals, parameters, sums) of `_sweep`; its block of rows is as long as ``dots``."""
    features, itemsize = x.shape[1], x.itemsize
    block = max(8, min(STRIP, BLOCK_BYTES // max(1, features * itemsize) // 4 * 4))
    filled, safe = reaches(x)
    buffer = np.zeros(2 * filled + LINE_BYTES // itemsize, x.dtype)
    low = -buffer.__array_interface__["data"][0] % LINE_BYTES // itemsize  # vectors are not to cross lines
    parameters, sums = buffer[low : low + filled], buffer[low + filled : low + 2 * filled]
    return safe, np.empty((3, block)), *np.zeros((2, block), x.dtype), np.zeros(features), parameters, sums


def _sweep(
    curved, x, y, weight, w, bias, grad, margin, curvature, safe, scratch, dots, factor, totals, parameters, sums
):
    """The pass of `loss_and_grad` and, where it is ``curved``, of `product`: there ``weight`` holds curvatures.

    They are one kernel because compiling it takes seconds.  What follows ``curvature`` is `_working_space`.
    """
    rows, features = x.shape
    block = dots.size
    copy(w, parameters)
    loss, bias_grad, unfolded = 0.0, 0.0, 0
    for start in range(0, rows, block):
        stop = min(start + block, rows)
        count, reached = stop - start, max(0, min(stop, safe) - start) // 4 * 4
        _dots(x, start, reached, parameters, dots)
        for i in range(reached, count):
            dots[i] = _dot(x[start + i], w)
        z, losses, seconds = scratch[0, :count], scratch[1, :count], scratch[2, :count]
        shift(dots, x.dtype.type(bias), z)
        if margin.size:
            copy(z, margin[start:stop])
        if curved:
            scale(weight[start:stop], z)
        else:
            _weigh(z, y[start:stop], weight[start:stop], losses, seconds)
            loss += sum_of(losses)
            if curvature.size:
                copy(seconds, curvature[start:stop])
        bias_grad += sum_of(z)
        copy(z, factor)
        _gradient(x, start, reached, factor, sums)
        for i in range(reached, count):
            for j in range(features):
                sums[j] += factor[i] * x[start + i, j]
        unfolded += count
        if unfolded >= PART:
            fold(sums, totals)
            unfolded = 0
    fold(sums, totals)
    copy(totals, grad)
    return loss, bias_grad


class Margins:
    """The passes of one loss; each is compiled at its first call.

    ``x``, ``y``, weights and parameters must be read-only views in `loss_and_grad` and in `product` alike: for others
    the kernel that they share would be compiled once more.

    Attributes:
        weigh: the kernel `_weigh` of the loss.
    """

    def __init__(self, loss: PointLoss) -> None:
        self.weigh = specialise(
            _weigh, loss.name, {"point": point_of(loss)}, fastmath={"contract"}, error_model="numpy"
        )
        self._sweep = specialise(_sweep, loss.name, {"_weigh": self.weigh})
        self._line = specialise(_line, loss.name, {"_weigh": self.weigh}, fastmath=REORDER)

    def loss_and_grad(self, x, y, weight, w, bias, grad, margin, curvature):
        """Weighted sum of losses at the margins x w + bias, and its derivative by bias; grad ← its gradient by w.

        Each row's margin and weighted second derivative of its loss are left in ``margin`` and ``curvature``, shape
        (rows,), or nowhere where these are empty.
        """
        return self._sweep(False, x, y, weight, w, bias, grad, margin, curvature, *_working_space(x))

    def product(self, x, y, curvature, p, p_bias, out, step_margin):
        """out ← Xᵀ (curvature · (X p + p_bias)); returns the sum of the vector in brackets, the part of the bias.

        With the curvatures of `loss_and_grad` this is the Hessian's product with (p, p_bias).  The margins X p + p_bias
        are left in ``step_margin``, shape (rows,), unless it is empty.  ``y`` is not looked at.
        """
        none = step_margin[:0]
        return self._sweep(True, x, y, curvature, p, p_bias, out, step_margin, none, *_working_space(x))[1]

    def line(self, margin, step_margin, t, y, weight):
        """(loss, slope): weighted sum of the losses at the margins margin + t · step_margin, its derivative by t."""
        return self._line(margin, step_margin, t, y, weight, np.empty((3, STRIP)))


@lru_cache
def margins(loss: PointLoss) -> Any:
    """The `Margins` of this loss, made once."""
    return Margins(loss)
