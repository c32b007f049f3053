"""Floors: the least reads and writes of a sum in shared memory, done in private memory, and of a pass over rows.

Of the sums ``x``, shape (k, m) with k > 1, stands for the k ranks' slices, of m elements, that one of them sums; its
rows start on cache lines.  No rank waits for another, and no cache line comes from another core: this measures the
memory alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np

from ..comm.kernels import stream_rows
from ..jit import kernel

Array = Any
Loops = Sequence[Callable[..., Any]]
BLOCK = 2048  # elements: 8 or 16 KiB stay in the first-level cache


@numba.njit(inline="always")
def _sum_block(x, low, high, total):
    """total ← the sum of the rows' elements ``low`` to ``high - 1``."""
    first, second = x[0, low:high], x[1, low:high]
    for i in range(high - low):
        total[i] = first[i] + second[i]
    for row in range(2, x.shape[0]):
        part = x[row, low:high]
        for i in range(high - low):
            total[i] += part[i]


@kernel()
def sum_once(x, out):
    """out ← the sum of the rows of ``x``: k slices are read and one is written.  ``out`` has shape (m,)."""
    for low in range(0, out.size, BLOCK):
        high = min(low + BLOCK, out.size)
        _sum_block(x, low, high, out[low:high])


@kernel(fastmath={"reassoc", "nsz", "contract"})
def total(x):
    """The sum of ``x``, shape (m,): one reading of it."""
    found = x.dtype.type(0)
    for i in range(x.size):
        found += x[i]
    return found


@kernel()
def sum_in_place(x):
    """Put the sum of the rows of ``x`` into each of them: k slices are read and k are written."""
    if x.shape[0] == 2:
        first, second = x[0], x[1]
        for i in range(first.size):
            value = first[i] + second[i]
            first[i] = value
            second[i] = value
        return
    total = np.empty(BLOCK, x.dtype)
    for low in range(0, x.shape[1], BLOCK):
        high = min(low + BLOCK, x.shape[1])
        _sum_block(x, low, high, total)
        for row in range(x.shape[0]):
            part = x[row, low:high]
            for i in range(part.size):
                part[i] = total[i]


def stream_once(x: Array, out: Array) -> None:
    """As `sum_once`, stored past the cache: faster where ``out``, which starts on a line, would not stay."""
    address, stride = x.__array_interface__["data"][0], x.shape[1] * x.itemsize
    stream_rows(address, stride, x.shape[0], 0, out.size, out)


def numpy_once(x: Array, out: Array) -> None:
    """As `sum_once`, by NumPy."""
    np.add(x[0], x[1], out=out)
    for row in x[2:]:
        np.add(out, row, out=out)


def numpy_in_place(x: Array) -> None:
    """As `sum_in_place`, by NumPy."""
    np.add(x[0], x[1], out=x[0])
    for row in x[2:]:
        np.add(x[0], row, out=x[0])
    for row in x[1:]:
        row[:] = x[0]


def loops(dtype: np.dtype[Any]) -> tuple[Loops, Loops]:
    """The loops (x, out) for results that are there once, and (x) for those in place; Numba knows no float16."""
    if dtype == np.float16:
        return (numpy_once,), (numpy_in_place,)
    return (sum_once, stream_once), (sum_in_place,)
