"""Inner products of vectors of which every rank has the slice that it owns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Array = Any
# Elements of a vector that are multiplied at once: short enough for the second-level cache where several products share
# them, and for float32 sums to be exact to 1e-6; long enough to hide the interpreter.
BLOCK = 1 << 14


class VectorSpace:
    """Vectors of one length over all ranks, sharded or replicated.

    Args:
        total: sums a small float64 array over the ranks, the same bits on all of them; None where every rank has whole
            vectors.
    """

    def __init__(self, total: Callable[[Array], Array] | None = None) -> None:
        self._total = total

    def gram(self, a: Array, b: Array) -> Array:
        """All inner products of the rows of ``a``, shape (k, n), with those of ``b``, (m, n), slices of one dtype.

        A new float64 array, shape (k, m), the same on every rank; one reduction, or none for replicated vectors.
        """
        products = local_gram(a, b)
        return products if self._total is None else self._total(products)


def local_gram(a: Array, b: Array) -> Array:
    """As `VectorSpace.gram`, over this rank's slices alone: products of blocks in their dtype, summed in float64."""
    products = np.zeros((len(a), len(b)))
    for start in range(0, a.shape[1], BLOCK):
        block = slice(start, start + BLOCK)
        products += np.dot(a[:, block], b[:, block].T)
    return products
