"""Numba kernels of linear models over sparse rows: whole passes; importing this module loads Numba.

As `linear`, of which y, weights and what is kept have shapes and types: strips of rows stay in the caches between their
dots with the parameters, their losses, which are vector code, and their part in the gradient.  Rows are in compressed
form, see `data.sparse_kernels`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from ...data.row_kernels import PART, copy
from ...data.sparse_kernels import carry, dot, t_dot
from ...data.sparse_rows import SparseRows, add_totals
from ...jit import specialise
from ..losses import PointLoss
from .linear import STRIP, margins, scale, shift, sum_of

MOST_ENTRIES = 1 << 14  # of a strip, which lie in the second-level cache; strips of `LEAST_ROWS` may have more
LEAST_ROWS = 16


def _sweep(
    curved, starts, indices, values, y, weight, w, bias, grad, margin, curvature,
    scratch, dots, factor, frequent, reach, totals,
):  # fmt: skip
    """As `linear._sweep`; the gradient is added to ``grad``, and for what follows ``factor`` see `data.frequent`."""
    rows, block = starts.size - 1, dots.size
    loss, bias_grad, start, turn, uncarried = 0.0, 0.0, 0, 0, 0
    while start < rows:
        stop = min(start + block, rows)
        while stop - start > LEAST_ROWS and starts[stop] - starts[start] > MOST_ENTRIES:
            stop = start + (stop - start) // 2
        entries = starts[stop] - starts[start]
        count, strip = stop - start, starts[start : stop + 1]
        dot(strip, indices, values, w, dots[:count])
        z, losses, seconds = scratch[0, :count], scratch[1, :count], scratch[2, :count]
        shift(dots, values.dtype.type(bias), z)
        if margin.size:
            copy(z, margin[start:stop])
        if curved:
            scale(weight[start:stop], z)
        else:
            _weigh(z, y[start:stop], weight[start:stop], losses, seconds)  # type: ignore[name-defined]  # noqa: F821
            loss += sum_of(losses)
            if curvature.size:
                copy(seconds, curvature[start:stop])
        bias_grad += sum_of(z)
        copy(z, factor)
        t_dot(strip, indices, values, factor[:count], entries, grad)
        uncarried += count
        if uncarried >= PART:
            turn, uncarried = turn + 1, 0
            carry(turn, frequent, reach, grad, totals)
        start = stop
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
        scratch, (dots, factor) = np.empty((3, STRIP)), np.zeros((2, STRIP), rows.dtype)
        frequent = rows.frequent
        totals = np.zeros(len(frequent.features))
        grad[:] = 0
        found = self._sweep(
            curved, *rows.arrays, y, weight, w, bias, grad, margin, curvature,
            scratch, dots, factor, frequent.features, frequent.reach, totals,
        )  # fmt: skip
        add_totals(frequent, totals, grad)
        return found


@lru_cache
def sparse_margins(loss: PointLoss) -> Any:
    """The `SparseMargins` of this loss, made once."""
    return SparseMargins(loss)
