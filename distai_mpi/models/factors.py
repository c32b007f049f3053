"""Sufficient factors: few numbers that the gradients of dense layers are made of, and the gradient that they make.

The gradient of a layer's matrix is Σ outer(a, d) over the rows of a batch, a the row's inputs of the layer and d
the gradient of its loss by the layer's outputs; that of the bias is Σ d.  Where rows are few, these vectors are shorter
than the gradient, and ranks exchange them instead (Xie, Kim, Zhou, Ho, Kumar, Yu & Xing 2016, "Lighter-Communication
Distributed Machine Learning via Sufficient Factor Broadcasting", section 2).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .kernels import factors as kernels

Array = Any
# Up to so many rows one kernel makes the whole slice, above it BLAS does.  A slice of 50,000 elements of the MNIST net
# took 4 to 5 µs from 1 to 4 rows and 7 to 12 µs from 8, where storing zeros took 4 µs; BLAS took 9 to 12 µs from 1 to
# 4 rows, 13 from 8 and 21 from 16.
FEW_ROWS = 8
HEIGHTS = (0, 1, 2, 4, 4, 8, 8, 8, 8)  # rows that the kernel computes with for so many; the others are zeros


class Factors:
    """Where the factors of a net's rows lie in a flat vector, and the gradient of its parameters from them.

    The factors of R rows are [a_0 | d_0 | a_1 | d_1 | ...]: for each layer its inputs, shape (R, inputs), and the
    gradient by its outputs, shape (R, units), both in C order.  Host arrays alone.  Keeps a scratch array, so one
    instance serves one thread.

    Args:
        table: of the layers, shape (layers, 4); see `kernels.factors`.
        dtype: of factors and gradient.
    """

    def __init__(self, table: Array, dtype: np.dtype) -> None:
        self._table, self._layers = table, table.tolist()
        self._size = int(table[:, :2].sum())  # numbers per row
        self._stack = np.empty(0, dtype)

    def views(self, flat: Array, rows: int) -> tuple[list[Array], list[Array]]:
        """The layers' inputs and the gradients by their outputs inside ``flat``, factors of ``rows`` rows."""
        self.check(flat, rows)
        views, at = [], 0
        for layer in self._layers:
            for units in layer[:2]:
                views.append(flat[at : at + rows * units].reshape(rows, units))
                at += rows * units
        return views[::2], views[1::2]

    def grad(self, sources: Sequence[tuple[Array, int]], start: int, stop: int, out: Array) -> None:
        """Elements ``start`` to ``stop - 1`` of the gradient summed over all rows of ``sources`` into ``out``.

        Args:
            sources: (flat factors, rows) of every rank; rows may be 0.  They are summed in this order.
            start, stop: of the slice, anywhere in the flat vector of parameters.
            out: shape (stop - start,), C-contiguous.

        Raises:
            ValueError: ``out`` or factors are of another size.
        """
        if out.shape != (stop - start,):
            raise ValueError(f"elements {start} to {stop - 1} do not go into an array of shape {out.shape}")
        filled = [source for source in sources if source[1]]
        rows = sum([count for _, count in filled])
        if rows == 0:
            out[:] = 0
        elif rows <= FEW_ROWS:
            height = HEIGHTS[rows]
            stack = self._gather(filled, height, rows < height, start, stop)
            kernels.sum_outer(stack, height, self._table, start, stop, out)
        else:
            # stacked, all rows take one product; without it every source but the first would need another and a sum
            stack = filled[0][0] if len(filled) == 1 else self._gather(filled, rows, False, start, stop)
            self._multiply(stack, rows, start, stop, out)

    def _gather(self, sources: list[tuple[Array, int]], height: int, clear: bool, start: int, stop: int) -> Array:
        """Factors of ``height`` rows: those of all ``sources``, as far as the slice needs them, zeros after them."""
        if self._stack.size < height * self._size:
            self._stack = np.empty(height * self._size, self._stack.dtype)
        stack = self._stack
        if clear:
            stack[: height * self._size] = 0
        at = 0
        for flat, rows in sources:
            self.check(flat, rows)
            kernels.gather(flat, rows, stack, height, at, self._table, start, stop)
            at += rows
        return stack

    def _multiply(self, stack: Array, rows: int, start: int, stop: int, out: Array) -> None:
        """As `kernels.factors.sum_outer`, with BLAS and for any number of rows."""
        for (inputs, units, matrix, bias), a, d in zip(self._layers, *self.views(stack, rows), strict=True):
            low, high = max(start, matrix), min(stop, matrix + inputs * units)
            at = low - start
            for i, j in _pieces(low - matrix, high - matrix, units):
                left, right = a[:, i], d[:, j]
                size = left.shape[1] * right.shape[1]
                np.dot(left.T, right, out=out[at : at + size].reshape(left.shape[1], right.shape[1]))
                at += size
            low, high = max(start, bias), min(stop, bias + units)
            if bias >= 0 and low < high:
                np.add.reduce(d[:, low - bias : high - bias], axis=0, out=out[low - start : high - start])

    def check(self, flat: Array, rows: int) -> None:
        """Raise `ValueError` unless ``flat`` has room for the factors of ``rows`` rows."""
        if flat.size < rows * self._size:
            raise ValueError(f"factors of {rows} rows are {rows * self._size} numbers, got {flat.size}")


def _pieces(low: int, high: int, units: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the elements ``low`` to ``high - 1`` of a matrix with rows of ``units`` elements.

    At most three blocks: the end of a row, whole rows, and the beginning of a row.
    """
    while low < high:
        row, column = divmod(low, units)
        rows = 1 if column else max(1, (high - low) // units)
        width = min(units - column, high - low)
        yield slice(row, row + rows), slice(column, column + width)
        low += rows * width
