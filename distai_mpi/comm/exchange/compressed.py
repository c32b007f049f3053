"""Gradient compression: between nodes numbers travel as float16, with error feedback."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..compression import compressed_allgather, compressed_reduce_scatter, words
from ..wire import Array, MPIWire
from .hierarchical import HierarchicalExchange


class CompressedExchange(HierarchicalExchange):
    """As another exchange, but what its rails carry is rounded: gradients, and the changes of parameters.

    Of one run, for the remainder that rounding leaves of one step's change is added to the next one: it is ``state``.

    Args:
        plain: the exchange whose rails carry the numbers.
        size: elements of a vector, float32.
    """

    dtype = "float16"

    def __init__(self, plain: HierarchicalExchange, size: int) -> None:
        super().__init__(plain._vectors, plain._messages)
        self._plain = plain
        if self._carries:
            plan = self._topology.plan(size, np.dtype(np.float32).itemsize)
            owned = plan.by_node[self._rail_number][self._node_number]
            start = plan.columns[self._rail_number].start + owned.start
            self.state["remainder"] = np.zeros(owned.stop - owned.start, np.float32), start
        _compile()

    @property
    def rail(self) -> MPIWire | None:
        """See `HierarchicalExchange`."""
        return self._plain.rail

    def free(self) -> None:
        """The rails belong to another exchange."""

    def _reduce_column(self, column: Array, slices: Any) -> None:
        assert self.rail is not None
        compressed_reduce_scatter(self.rail, column, slices, self._work)

    def _publish_column(self, column: Array, slices: Any, previous: Array | None) -> None:
        if previous is None:
            super()._publish_column(column, slices, previous)
        else:
            assert self.rail is not None
            compressed_allgather(self.rail, column, previous, self.state["remainder"][0], slices, self._work)


def _compile() -> None:
    """Compile the kernels before the first step is timed."""
    from .. import compression_kernels as kernels

    x, base, residual = np.zeros((3, 1), np.float32)
    message = np.zeros(words(1), np.uint16)
    kernels.pack(x, message)
    kernels.add(message, x)
    kernels.pack_change(x, base, residual, message)
    kernels.shift(message, base, x)
