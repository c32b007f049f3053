"""Numba kernels of linear models over sparse rows: whole passes; importing this module loads Numba.

As `linear`, of which y, weights and what is kept have shapes and types: blocks of rows stay in the caches between their
dots with the parameters and their part in the gradient.  Rows are in compressed form, see `data.sparse_kernels`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from ...data.row_kernels import copy
from ...data.sparse_kernels import dot, t_dot_many
from ...data.sparse_rows import SparseRows, add_totals
from ...jit import specialise
from ..losses import PointLoss
from .linear import STRIP, margins, scale, shift, sum_of

# Of rows in a block at least; else as many as of parameters and gradient, which each block brings into the cache anew:
# 200,000 × 100,000 numbers, 30 in a row, took 13.4 ms in blocks of 256 rows, 12.3 in such of 4096, 15.8 all at once.
BLOCK_BYTES = 1 << 17
LEAST_ROWS, MOST_ROWS = 16, 1 << 16  # of a block


def _sweep(
    curved, starts, indices, values, y, weight, w, bias, grad, margin, curvature, scratch, dots, frequent, reach, totals
):
    """As `linear._sweep`; for ``frequent`` and what follows see `data.frequent`."""
    rows, block = starts.size - 1, dots.size
    loss, bias_grad = 0.0, 0.0
    for start in range(0, rows, block):
        stop = min(start + block, rows)
        part = starts[start : stop + 1]
        dot(part, indices, values, w, dots[: stop - start])
        for first in range(start, stop, STRIP):
            last = min(first + STRIP, stop)
            count, factor = last - first, dots[first - start : last - start]
            z, losses, seconds = scratch[0, :count], scratch[1, :count], scratch[2, :count]
            shift(factor, values.dtype.type(bias), z)
            if margin.size:
                copy(z, margin[first:last])
            if curved:
                scale(weight[first:last], z)
            else:
                _weigh(z, y[first:last], weight[first:last], losses, seconds)  # type: ignore[name-defined]  # noqa: F821
                loss += sum_of(losses)
                if curvature.size:
                    copy(seconds, curvature[first:last])
            bias_grad += sum_of(z)
            copy(z, factor)
        t_dot_many(part, indices, values, dots[: stop - start], start, frequent, reach, totals, grad)
    return loss, bias_grad


class SparseMargins:
    """As `linear.Margins`, the passes of one loss, compiled at their first call; y and weights are read-only views."""

    def __init__(self, loss: PointLoss) -> None:
        self._sweep = specialise(_sweep, loss.name, {"_weigh": margins(loss).weigh})

    def loss_and_grad(self, rows: SparseRows, y, weight, w, bias, grad, margin, curvature):
        """See `linear.Margins.loss_and_grad`."""
        return self._pass(False, rows, y, weight, w, bias, grad, margin, curvature)

    def product(self, rows: SparseRows, y, curvature, p, p_bias, out, step_margin):
        """See `linear.Margins.product`."""
        return self._pass(True, rows, y, curvature, p, p_bias, out, step_margin, step_margin[:0])[1]

    def _pass(self, curved, rows, y, weight, w, bias, grad, margin, curvature):
        size = max(BLOCK_BYTES, 2 * w.nbytes) // rows.row_bytes
        scratch = np.empty((3, STRIP))
        dots = np.empty(min(max(size, LEAST_ROWS), MOST_ROWS, max(1, len(rows))), rows.dtype)
        frequent = rows.frequent
        totals = np.zeros(len(frequent.features))
        grad[:] = 0
        found = self._sweep(
            curved, *rows.arrays, y, weight, w, bias, grad, margin, curvature,
            scratch, dots, frequent.features, frequent.reach, totals,
        )  # fmt: skip
        add_totals(frequent, totals, grad)
        return found


@lru_cache
def sparse_margins(loss: PointLoss) -> Any:
    """The `SparseMargins` of this loss, made once."""
    return SparseMargins(loss)
