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


@kernel(no_cpython_wrapper=True)  # which would not know pointers
def _outputs(flat, a, features, pairs, parameters, out):
    """out[k, r] += row r of x · parameters[k], for pairs of rows; the rows that follow them are asked for.

    ``flat`` points to x, and ``a`` is the index there of the first row.
    """
    w, to, f = address(parameters), address(out), np.uintp(features)
    lanes, zero = length(flat), spread(parameters.dtype.type(0))
    filled, columns = np.uintp(parameters.shape[1]), np.uintp(out.shape[1])
    ahead = np.uintp(2 * pairs) * f
    for pair in range(pairs):
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
        a += f + f


@kernel(no_cpython_wrapper=True)
def _gradient(flat, first, features, rows, factors, out):
    """out[k] += Σ factors[k, r] · row r of x, as of `_outputs`; beyond the last feature ``out`` gets anything."""
    factor, to, f = address(factors), address(out), np.uintp(features)
    lanes, zero = length(flat), spread(factors.dtype.type(0))
    filled, columns = np.uintp(out.shape[1]), np.uintp(factors.shape[1])
    for k in range(0, out.shape[0], GROUP):
        z0, w0 = np.uintp(k) * columns, np.uintp(k) * filled
        z1, z2, z3, z4 = z0 + columns, z0 + columns * 2, z0 + columns * 3, z0 + columns * 4
        j = np.uintp(0)
        while j < f:
            s0 = s1 = s2 = s3 = s4 = zero
            a = first + j
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


@kernel(error_model="numpy", fastmath={"contract"}, no_cpython_wrapper=True)
def _residual(z, bias, y, weight, start, rows, scratch):
    """Weighted sum of the cross-entropies of softmax at the outputs z + bias, and z ← its derivative by them.

    z has shape (outputs, rows or more), of the rows from ``start`` on, and ``scratch`` (outputs + 2, rows or more),
    float64.
    """
    outputs, loss = bias.size, 0.0
    top, total = scratch[outputs], scratch[outputs + 1]
    for r in range(rows):
        top[r] = -np.inf
        total[r] = 0
    for k in range(outputs):
        for r in range(rows):
            value = z[k, r] + bias[k]
            z[k, r] = value
            top[r] = top[r] if top[r] > value else value
    for k in range(outputs):
        for r in range(rows):
            power = exp_of_negative(np.float64(z[k, r]) - top[r])
            scratch[k, r] = power
            total[r] += power
    for r in range(rows):
        label, factor = y[start + r], np.float64(weight[start + r]) if weight.size else 1.0
        loss += factor * (math.log(total[r]) - (np.float64(z[label, r]) - top[r]))
        scratch[label, r] -= total[r]
        total[r] = factor / total[r]
    for k in range(outputs):
        for r in range(rows):
            z[k, r] = scratch[k, r] * total[r]
    return loss


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
    main = min(safe, len(x)) // 2 * 2  # rows that are read in pairs and by whole vectors where they lie
    last = np.zeros((len(x) - main + 2 + filled // max(1, features), features), x.dtype)
    last[: len(x) - main] = x[main:]
    value = _sweep(
        curved, x, last, main, y, weight, bias, delta, z, parameters, sums, turned, totals, scratch, bias_total
    )
    grad[:], bias_grad[:] = totals.T, bias_total
    return value


@kernel()
def _sweep(curved, x, last, main, y, weight, bias, delta, z, parameters, sums, turned, totals, scratch, bias_total):
    """The pass of `sweep`, one kernel for both because compiling it takes seconds.

    Of the rows after the first ``main`` there are copies in ``last``, with zeros behind them.
    """
    rows, outputs, block, features = x.shape[0], bias.size, turned.shape[1], x.shape[1]
    loss, unfolded, stop = 0.0, 0, 0
    while stop < rows:
        start = stop
        if start < main:
            flat, first, stop = address(x), np.uintp(start) * np.uintp(features), min(start + block, main)
        else:
            flat, first, stop = address(last), np.uintp(0), rows
        count = stop - start
        turned[:] = 0
        _outputs(flat, first, features, (count + 1) // 2, parameters, turned)
        if curved:
            out = z[start:stop]
            for r in range(count):
                for k in range(outputs):
                    out[r, k] = turned[k, r] + bias[k]
            curve(delta[start:stop], y[start:stop], weight[start:stop], out)
            for k in range(outputs):
                for r in range(count):
                    turned[k, r] = out[r, k]
        else:
            # with ``start``, at first a literal, for its argument it would be compiled twice
            loss += _residual(turned, bias, y, weight, stop - count, count, scratch)
            for r in range(count):
                for k in range(outputs):
                    z[start + r, k] = turned[k, r]
        for k in range(outputs):
            for r in range(count):
                bias_total[k] += turned[k, r]
        _gradient(flat, first, features, count, turned, sums)
        unfolded += count
        if unfolded >= PART or stop == rows:
            for k in range(outputs):
                fold(sums[k], totals[k])
            unfolded = 0
    return loss
