"""Numba kernels of sums of index-value pairs; importing this module loads Numba.

Pairs are ``columns``, shape (n,), unsigned, each once, and ``sums``, shape (n, outputs): column j stands for the
elements j · outputs to (j + 1) · outputs - 1 of a vector.
"""

from __future__ import annotations

import numba
import numpy as np

from ..jit import kernel


@numba.njit
def _part_of(element, starts):
    """The last of the parts, which begin at the ascending ``starts``, that begins at ``element`` or before."""
    low, high = 0, starts.size
    while high - low > 1:
        middle = (low + high) // 2
        if starts[middle] <= element:
            low = middle
        else:
            high = middle
    return low


@kernel()
def divide(columns, sums, starts, ends, new_columns, new_sums):
    """Copy pairs part by part: those of part i are ends[i] to ends[i + 1] - 1 then, in the order that they had.

    Part i has the elements from starts[i] to starts[i + 1] - 1.  A column that lies in several parts goes to each.
    """
    outputs = sums.shape[1]
    ends[:] = 0
    for p in range(columns.size):
        first = np.int64(columns[p]) * outputs
        for part in range(_part_of(first, starts), _part_of(first + outputs - 1, starts) + 1):
            ends[part + 1] += 1
    for part in range(1, ends.size):
        ends[part] += ends[part - 1]
    for p in range(columns.size):
        first = np.int64(columns[p]) * outputs
        for part in range(_part_of(first, starts), _part_of(first + outputs - 1, starts) + 1):
            at = ends[part]
            ends[part] += 1
            new_columns[at] = columns[p]
            for k in range(outputs):
                new_sums[at, k] = sums[p, k]
    for part in range(ends.size - 1, 0, -1):
        ends[part] = ends[part - 1]
    ends[0] = 0


@kernel()
def merge(columns, sums, found, out_columns, out_sums, slots):
    """Add pairs to the first ``found`` pairs of ``out_columns`` and ``out_sums``; return how many these are then.

    ``slots``, shape (columns of the vector,), uint32, is working space, whatever it holds: a column is there where its
    slot names it (Briggs & Torczon 1993, "An efficient representation for sparse sets").
    """
    for p in range(columns.size):
        column = columns[p]
        slot = slots[column]
        if slot < found and out_columns[slot] == column:
            for k in range(sums.shape[1]):
                out_sums[slot, k] += sums[p, k]
            continue
        slots[column] = found
        out_columns[found] = column
        for k in range(sums.shape[1]):
            out_sums[found, k] = sums[p, k]
        found += 1
    return found


@kernel()
def put(columns, values, start, out):
    """Write the values of pairs, where they lie in it, to a slice ``out`` that begins at ``start``."""
    outputs = values.shape[1]
    for p in range(columns.size):
        first = np.int64(columns[p]) * outputs - start
        for k in range(outputs):
            if 0 <= first + k < out.size:
                out[first + k] = values[p, k]


@kernel()
def of_slice(values, start, new_columns, new_sums):
    """Pairs of the elements ``values`` of a slice that begins at ``start`` that are not 0; return how many."""
    found, outputs = 0, new_sums.shape[1]
    for i in range(values.size):
        if values[i] != 0:
            column, k = (start + i) // outputs, (start + i) % outputs
            if found == 0 or new_columns[found - 1] != column:
                new_columns[found] = column
                new_sums[found] = 0
                found += 1
            new_sums[found - 1, k] = values[i]
    return found


@kernel()
def pick(columns, w, out):
    """out ← the elements of ``columns`` of the vector ``w``; shape (columns, outputs)."""
    outputs = out.shape[1]
    for p in range(columns.size):
        for k in range(outputs):
            out[p, k] = w[np.int64(columns[p]) * outputs + k]


@kernel()
def add(columns, values, out):
    """Add the values of pairs to the elements of ``columns`` of the vector ``out``."""
    outputs = values.shape[1]
    for p in range(columns.size):
        for k in range(outputs):
            out[np.int64(columns[p]) * outputs + k] += values[p, k]
