"""Numba kernels of sparse rows; importing this module loads Numba.

Rows are in compressed form: row r has the entries ``starts[r]`` to ``starts[r + 1] - 1`` of ``indices`` (uint32 or
uint64, of features) and of ``values``, which may be empty: then all are 1.  Unsigned indices are what an address takes
as they are: with signed ones a pass takes twice as long.
"""

from __future__ import annotations

import numba
import numpy as np

from ..jit import kernel

AHEAD = 64  # entries after what is read


@numba.njit(forceinline=True)
def value_of(values, entry):
    """The value of an entry."""
    return values[entry] if values.size else values.dtype.type(1)


@kernel()
def dot(starts, indices, values, w, out):
    """out ← X w for one output: ``w`` has shape (features,), ``out`` (rows,), both the dtype of ``values``."""
    for r in range(out.size):
        total = values.dtype.type(0)
        for entry in range(starts[r], starts[r + 1]):
            total += value_of(values, entry) * w[indices[entry]]
        out[r] = total


@kernel()
def t_dot(starts, indices, values, v, out):
    """out ← out + Xᵀ v for one output."""
    for r in range(v.size):
        factor = v[r]
        for entry in range(starts[r], starts[r + 1]):
            out[indices[entry]] += value_of(values, entry) * factor


@kernel()
def dot_outputs(starts, indices, values, w, out):
    """out ← X w for several outputs: ``w`` has shape (features, outputs), ``out`` (rows, outputs)."""
    for r in range(out.shape[0]):
        for k in range(out.shape[1]):
            out[r, k] = 0
        for entry in range(starts[r], starts[r + 1]):
            value, feature = value_of(values, entry), indices[entry]
            for k in range(out.shape[1]):
                out[r, k] += value * w[feature, k]


@kernel()
def t_dot_outputs(starts, indices, values, v, out):
    """out ← out + Xᵀ v for several outputs."""
    for r in range(v.shape[0]):
        for entry in range(starts[r], starts[r + 1]):
            value, feature = value_of(values, entry), indices[entry]
            for k in range(v.shape[1]):
                out[feature, k] += value * v[r, k]


@kernel()
def squares(starts, indices, values, scale, out):
    """out ← out + Σ scale[r, k] · x² over rows; ``scale`` has shape (rows, outputs), ``out`` (features, outputs)."""
    for r in range(scale.shape[0]):
        for entry in range(starts[r], starts[r + 1]):
            value, feature = value_of(values, entry), indices[entry]
            for k in range(scale.shape[1]):
                out[feature, k] += np.float64(scale[r, k]) * (np.float64(value) * value)


@kernel()
def gather(starts, indices, values, rows, factors, new_starts, new_indices, new_values):
    """Copy ``rows``, values multiplied by ``factors`` of their features, where there are any.

    ``new_starts`` says where; ``new_values`` may have another dtype than ``values``, and be empty where these are.
    """
    for r in range(rows.size):
        first, at = starts[rows[r]], new_starts[r]
        for i in range(new_starts[r + 1] - at):
            feature = indices[first + i]
            new_indices[at + i] = feature
            if new_values.size:
                value = np.float64(value_of(values, first + i))
                if factors.size:
                    value *= factors[feature]
                new_values[at + i] = value


@kernel()
def fill(starts, indices, values, rows, factors, out):
    """Write ``rows`` densely into ``out``, shape (rows, features), values multiplied as by `gather`."""
    for r in range(rows.size):
        for j in range(out.shape[1]):
            out[r, j] = 0
        for entry in range(starts[rows[r]], starts[rows[r] + 1]):
            value, feature = np.float64(value_of(values, entry)), indices[entry]
            if factors.size:
                value *= factors[feature]
            out[r, feature] = value


@kernel(fastmath=False)
def moments(starts, indices, values, weight, sums):
    """Add Σ weight · x and Σ weight · x² over rows to ``sums``, float64, shape (2, features).

    ``weight``, float64, has shape (rows,), or (0,) where all are 1.
    """
    for r in range(starts.size - 1):
        each = weight[r] if weight.size else 1.0
        for entry in range(starts[r], starts[r + 1]):
            value, feature = np.float64(value_of(values, entry)), indices[entry]
            sums[0, feature] += each * value
            sums[1, feature] += each * value * value
