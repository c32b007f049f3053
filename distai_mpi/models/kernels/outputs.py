"""Numba kernels of linear models with several outputs: whole passes over the rows; importing this module loads Numba.

As `linear`, of which the arrays have shapes and types: X is read once, in blocks of rows that stay in the second-level
cache between their products with the parameters and their part in the gradient.  BLAS, which copies both factors of a
product before it begins, takes about twice as long where there are few outputs.

Outputs are taken `GROUP` at a time, so that a vector of a row that is loaded serves all of them, and the sums stay in
registers.  Parameters and gradients lie with the outputs first here, in rows filled up to whole vectors and groups.
"""

from __future__ import annotations

import math

import numpy as np

from ...data.row_kernels import PART, fold, reaches
from ...jit import kernel
from ...vectors import add_sums, address, fma, increase, length, load, prefetch, spread
from .arithmetic import exp_of_negative
from .curvature import curve

GROUP = 5  # outputs: for two rows ten vectors of sums, as many as hide the time that a product takes
BLOCK_BYTES = 1 << 17  # of X in a block
MOST_ROWS = 256  # of a block


@kernel()
def _outputs(x, start, pairs, parameters, out):
    """out[k, r] += row start + r of x · parameters[k], for pairs of rows; the rows that follow them are asked for."""
    flat, w, to = address(x), address(parameters), address(out)
    lanes, zero = length(flat), spread(x.dtype.type(0))
    f, filled, columns = np.uintp(x.shape[1]), np.uintp(parameters.shape[1]), np.uintp(out.shape[1])
    ahead = np.uintp(2 * pairs) * f
    for pair in range(pairs):
        a = np.uintp(start + 2 * pair) * f
        for k in range(0, parameters.shape[0], GROUP):
            w0, at = np.uintp(k) * filled, np.uintp(k) * columns + np.uintp(2 * pair)
            w1, w2, w3, w4 = w0 + filled, w0 + filled * 2, w0 + filled * 3, w0 + filled * 4
            s00 = s01 = s02 = s03 = s04 = s10 = s11 = s12 = s13 = s14 = zero
            j = np.uintp(0)
            while j < f:
                if k == 0:
                    prefetch(flat, a + j + ahead)
                    prefetch(flat, a + f + j + ahead)
                u, v = load(flat, a + j, f - j), load(flat, a + f + j, f - j)
                part = load(w, w0 + j, lanes)
                s00, s10 = fma(u, part, s00), fma(v, part, s10)
                part = load(w, w1 + j, lanes)
                s01, s11 = fma(u, part, s01), fma(v, part, s11)
                part = load(w, w2 + j, lanes)
                s02, s12 = fma(u, part, s02), fma(v, part, s12)
                part = load(w, w3 + j, lanes)
                s03, s13 = fma(u, part, s03), fma(v, part, s13)
                part = load(w, w4 + j, lanes)
                s04, s14 = fma(u, part, s04), fma(v, part, s14)
                j += lanes
            add_sums(s00, s10, to, at)
            add_sums(s01, s11, to, at + columns)
            add_sums(s02, s12, to, at + columns * 2)
            add_sums(s03, s13, to, at + columns * 3)
            add_sums(s04, s14, to, at + columns * 4)


@kernel()
def _gradient(x, start, rows, factors, out):
    """out[k] += Σ factors[k, r] · row start + r of x; beyond the last feature ``out`` gets anything."""
    flat, factor, to = address(x), address(factors), address(out)
    lanes, zero = length(flat), spread(x.dtype.type(0))
    f, filled, columns = np.uintp(x.shape[1]), np.uintp(out.shape[1]), np.uintp(factors.shape[1])
    for k in range(0, out.shape[0], GROUP):
        z0, w0 = np.uintp(k) * columns, np.uintp(k) * filled
        z1, z2, z3, z4 = z0 + columns, z0 + columns * 2, z0 + columns * 3, z0 + columns * 4
        j = np.uintp(0)
        while j < f:
            s0 = s1 = s2 = s3 = s4 = zero
            a = np.uintp(start) * f + j
            for r in range(np.uintp(rows)):
                u = load(flat, a, lanes)
                s0 = fma(u, spread(factor[z0 + r]), s0)
                s1 = fma(u, spread(factor[z1 + r]), s1)
                s2 = fma(u, spread(factor[z2 + r]), s2)
                s3 = fma(u, spread(factor[z3 + r]), s3)
                s4 = fma(u, spread(factor[z4 + r]), s4)
                a += f
            increase(to, w0 + j, s0)
            increase(to, w0 + filled + j, s1)
            increase(to, w0 + filled * 2 + j, s2)
            increase(to, w0 + filled * 3 + j, s3)
            increase(to, w0 + filled * 4 + j, s4)
            j += lanes


@kernel()
def _last_outputs(x, start, first, stop, parameters, out):
    """As `_outputs` for rows ``first`` to ``stop`` - 1 of the block, one number after another."""
    for r in range(first, stop):
        for k in range(parameters.shape[0]):
            total = x.dtype.type(0)
            for j in range(x.shape[1]):
                total += x[start + r, j] * parameters[k, j]
            out[k, r] = total


@kernel()
def _last_gradient(x, start, first, stop, factors, out):
    """As `_gradient` for rows ``first`` to ``stop`` - 1 of the block, one number after another."""
    for r in range(first, stop):
        for k in range(out.shape[0]):
            for j in range(x.shape[1]):
                out[k, j] += factors[k, r] * x[start + r, j]


@kernel()
def _turn(source, out):
    """out ← the transpose of ``source``, as far as both reach."""
    for r in range(min(source.shape[1], out.shape[0])):
        for k in range(min(source.shape[0], out.shape[1])):
            out[r, k] = source[k, r]


@kernel()
def _add_bias(z, bias, top):
    """z ← z + bias, and top ← max(top, z)."""
    for r in range(z.size):
        value = z[r] + bias
        z[r] = value
        top[r] = top[r] if top[r] > value else value


@kernel(fastmath={"contract"})
def _powers(z, top, power, total):
    """power ← exp_of_negative(z - top), and total ← total + power; float64 but z."""
    for r in range(z.size):
        value = exp_of_negative(np.float64(z[r]) - top[r])
        power[r] = value
        total[r] += value


@kernel()
def _scaled(power, factor, out):
    """out ← power · factor."""
    for r in range(out.size):
        out[r] = power[r] * factor[r]


@kernel(error_model="numpy")
def _residual(z, bias, y, weight, scratch):
    """Weighted sum of the cross-entropies of softmax at the outputs z + bias, and z ← its derivative by them.

    z has shape (outputs, rows), and ``scratch`` (outputs + 2, rows or more), float64.
    """
    outputs, rows = bias.size, y.size
    top, total, loss = scratch[outputs, :rows], scratch[outputs + 1, :rows], 0.0
    top[:] = -np.inf
    total[:] = 0
    for k in range(outputs):
        _add_bias(z[k, :rows], bias[k], top)
    for r in range(rows):
        factor = np.float64(weight[r]) if weight.size else 1.0
        loss -= factor * (np.float64(z[y[r], r]) - top[r])
    for k in range(outputs):
        _powers(z[k, :rows], top, scratch[k, :rows], total)
    for r in range(rows):
        factor = np.float64(weight[r]) if weight.size else 1.0
        loss += factor * math.log(total[r])
        scratch[y[r], r] -= total[r]
        total[r] = factor / total[r]
    for k in range(outputs):
        _scaled(scratch[k, :rows], total, z[k, :rows])
    return loss


@kernel()
def _sum(z):
    total = 0.0
    for r in range(z.size):
        total += z[r]
    return total


def sweep(curved, arrays, delta, z, grad, bias_grad):
    """Loss and gradient of softmax regression or, where it is ``curved``, a product with the Hessian.

    ``arrays`` are x, y, weight, w and bias, read-only.  ``w`` and ``grad`` have shape (features, outputs), ``bias``
    and ``bias_grad`` (outputs,), ``delta`` and ``z`` (rows, outputs).

    Not curved: returns the weighted sum of the cross-entropies of softmax(x w + bias) and the labels y; (grad,
    bias_grad) ← its gradient by (w, bias), and z ← the derivatives by the outputs.  ``delta`` is not looked at.

    Curved: (grad, bias_grad) ← the Hessian's product with (w, bias), at the point that has left ``delta`` in z; returns
    0.  z ← the products of the second derivatives by the outputs with x w + bias.
    """
    x, y, weight, w, bias = arrays
    features, outputs = w.shape
    block = max(8, min(MOST_ROWS, BLOCK_BYTES // max(1, features * x.itemsize) // 2 * 2))
    filled, safe = reaches(x)
    grouped = outputs + -outputs % GROUP
    parameters, sums = np.zeros((2, grouped, filled), x.dtype)
    parameters[:outputs, :features] = w.T
    turned, totals = np.zeros((grouped, block), x.dtype), np.zeros((outputs, features))
    scratch, bias_total = np.empty((outputs + 2, block)), np.zeros(outputs)
    value = _sweep(curved, x, y, weight, bias, delta, z, safe, parameters, sums, turned, totals, scratch, bias_total)
    grad[:], bias_grad[:] = totals.T, bias_total
    return value


@kernel()
def _sweep(curved, x, y, weight, bias, delta, z, safe, parameters, sums, turned, totals, scratch, bias_total):
    """The pass of `sweep`, one kernel for both because compiling it takes seconds."""
    rows, outputs, block = x.shape[0], bias.size, turned.shape[1]
    loss, unfolded = 0.0, 0
    for start in range(0, rows, block):
        stop = min(start + block, rows)
        count, pairs = stop - start, max(0, min(stop, safe) - start) // 2
        turned[:] = 0
        _outputs(x, start, pairs, parameters, turned)
        _last_outputs(x, start, 2 * pairs, count, parameters, turned)
        out, labels, weights = z[start:stop], y[start:stop], weight[start:stop]
        if curved:
            _turn(turned, out)
            for r in range(count):
                for k in range(outputs):
                    out[r, k] += bias[k]
            curve(delta[start:stop], labels, weights, out)
            _turn(out, turned)
        else:
            loss += _residual(turned, bias, labels, weights, scratch)
            _turn(turned, out)
        for k in range(outputs):
            bias_total[k] += _sum(turned[k, :count])
        _gradient(x, start, 2 * pairs, turned, sums)
        _last_gradient(x, start, 2 * pairs, count, turned, sums)
        unfolded += count
        if unfolded >= PART or stop == rows:
            for k in range(outputs):
                fold(sums[k], totals[k])
            unfolded = 0
    return loss
