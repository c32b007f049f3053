"""Products that are added to what a matrix holds, which NumPy does not have; loads SciPy's BLAS."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg.blas import dgemm, sgemm

Array = Any


def add_t_dot(x: Array, v: Array, out: Array) -> None:
    """out ← out + xᵀ v in place, without a temporary where all are C-contiguous.

    Args:
        x, v: shapes (rows, inputs) and (rows, units), float32 or float64.
        out: shape (inputs, units), C-contiguous, of the same dtype.
    """
    gemm = dgemm if out.dtype == np.float64 else sgemm
    gemm(1.0, v.T, x.T, 1.0, out.T, trans_b=True, overwrite_c=True)  # of the transposes, which BLAS takes as they lie
