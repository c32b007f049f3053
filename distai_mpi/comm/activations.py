"""What the ranks that hold parts of a model exchange in its passes: sums and columns of matrices of activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from ..params import Ownership
from .communicator import Communicator
from .wire import Array


class ActivationExchange:
    """Matrices of shape (rows, units), summed or put together over the ranks of ``comm``; see `models.split`.

    On one node they are summed where they lie in its memory, else by messages.  Memory is kept for each slot and number
    of rows, twice: exchanges of a slot use it in turn, so that one may begin while another rank still reads the last.

    Args:
        comm: the ranks, each of which holds a part of the model.
        dtype: of activations.
        afterwards: called after each exchange; see `StageLinks.progress`.
    """

    def __init__(self, comm: Communicator, dtype: np.dtype, afterwards: Callable[[], None] = lambda: None) -> None:
        self._comm, self._dtype, self._afterwards = comm, np.dtype(dtype), afterwards
        self._exchange = comm.exchange("auto")
        self._vectors: dict[tuple, Array] = {}
        self._turns: dict[tuple, int] = {}

    def partial(self, slot: int, rows: int, units: int) -> Array:
        """Where this rank writes what `sum` adds up; shape (rows, units), contents undefined."""
        return self._vector("sum", slot, rows * units, self._dtype).reshape(rows, units)

    def sum(self, partial: Array) -> Array:
        """The sum over the ranks of their matrices from `partial`, in place."""
        if partial.size:
            self._exchange.allreduce(partial.reshape(-1))
            self._afterwards()
        return partial

    def scatter(self, slot: int, partial: Array, cuts: Sequence[int], out: Array) -> None:
        """``out``, shape (rows, own columns) ← this rank's columns of the sum of all ranks' ``partial``."""
        rows, units = partial.shape
        if not partial.size:
            return
        owners = _blocks(rows, cuts)
        packed = self._vector("scatter", slot, rows * units, self._dtype)
        for block, (low, high) in zip(owners.slices, pairwise(cuts), strict=True):
            packed[block].reshape(rows, high - low)[:] = partial[:, low:high]
        for _ in self._exchange.reduce(packed, owners):
            pass
        out[:] = packed[owners.slices[self._comm.rank]].reshape(out.shape)
        self._afterwards()

    def gather(self, slot: int, own: Array, cuts: Sequence[int], out: Array) -> None:
        """``out``, shape (rows, units) ← the columns of all ranks, of which ``own`` are this one's."""
        rows, units = out.shape
        if not out.size:
            return
        owners = _blocks(rows, cuts)
        packed = self._vector("gather", slot, rows * units, out.dtype)
        packed[owners.slices[self._comm.rank]].reshape(own.shape)[:] = own
        self._exchange.publish(packed, owners)
        for block, (low, high) in zip(owners.slices, pairwise(cuts), strict=True):
            out[:, low:high] = packed[block].reshape(rows, high - low)
        self._afterwards()

    def _vector(self, kind: str, slot: int, size: int, dtype: np.dtype) -> Array:
        turn = self._turns[kind, slot] = 1 - self._turns.get((kind, slot), 1)
        key = (kind, slot, turn, size, dtype)
        found = self._vectors.get(key)
        if found is None:
            # between nodes slices would have to be those of `Topology.plan`: vectors of one rank travel by messages
            one_node = len(self._comm.leaders) == 1
            shared = self._exchange.shares and self._comm.size > 1 and (kind == "sum" or one_node)
            found = self._comm.empty(size, dtype, shared, one_copy=shared and kind == "gather")
            self._vectors[key] = found
        return found


def _blocks(rows: int, cuts: Sequence[int]) -> Ownership:
    """The table of a matrix whose columns are stored part by part."""
    return Ownership(rows * cuts[-1], tuple(slice(rows * low, rows * high) for low, high in pairwise(cuts)))
