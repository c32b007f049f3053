"""The scratch arrays of a model, kept between calls, on the device where it computes."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend import Device
from ..data import Batch
from .base import Number
from .kernels import kernels_of
from .losses import Loss

Array = Any


class Workspace:
    """What a net needs beside its parameters to compute on ``device``.

    Args:
        device: where arrays live.
        widths: of the input and of every layer's output.
        dtype: of all arrays.
        loss: of the outputs.

    Attributes:
        xp: the namespace of array functions.
        kernels: the inner loops.
        residual: that of the loss.
        no_bias: zeros of shape (units,) for each layer, read-only as biases are: kernels are compiled once for both.
        unused: as many arrays of these shapes, for sums over rows that nobody asked for.
        no_weights: an empty array, which stands for rows of weight 1.
    """

    def __init__(self, device: Device, widths: tuple[int, ...], dtype: np.dtype, loss: Loss) -> None:
        self.xp, self.kernels, self._widths, self._dtype = device.xp, kernels_of(device), widths, dtype
        self.residual = self.kernels.residual_of(loss)
        self.no_bias = [device.read_only(self.xp.zeros(width, dtype)) for width in widths[1:]]
        self.unused = [self.xp.empty(width, dtype) for width in widths[1:]]
        self.no_weights = self.xp.empty(0, dtype)
        self._held: dict[tuple[str, int], Array] = {}
        self._row_scratch: tuple[Array, Array] | None = None

    def rows(self, name: str, layer: int, count: int) -> Array:
        """Scratch called ``name`` for the units of a layer in ``count`` rows, shape (count, units)."""
        held = self._held.get((name, layer))
        if held is None or len(held) < count:
            held = self._held[name, layer] = self.xp.empty((count, self._widths[layer + 1]), self._dtype)
        return held[:count]

    def total_weight(self, batch: Batch) -> Number:
        """The weight of the rows of ``batch``."""
        return float(len(batch.y)) if batch.weight is None else self.xp.sum(batch.weight, dtype=np.float64)

    def row_scratch(self) -> tuple[Array, Array]:
        """What the kernels that go row by row work in; see `kernels.rows.factor_rows`."""
        if self._row_scratch is None:
            shape = self.row_shape
            self._row_scratch = self.xp.empty((4, *shape), self._dtype), self.xp.empty(shape, np.int32)
        return self._row_scratch

    @property
    def row_shape(self) -> tuple[int, int]:
        """(layers, width) of the arrays of `kernels.rows`, in whole pairs of cache lines."""
        return len(self._widths) - 1, (max(self._widths) // 32 + 1) * 32
