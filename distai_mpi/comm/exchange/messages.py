"""Exchanges by messages alone: the MPI library's own collectives, and those of `collectives`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ...params import Ownership
from ..collectives import ALGORITHMS, Algorithm
from ..tracing import traced
from ..vectors import Vectors
from ..wire import Array
from .base import VectorExchange, scaled


class MessageExchange(VectorExchange):
    """By one of `ALGORITHMS`.  Vectors may lie on a GPU, and travel through host memory.

    Args:
        vectors: see `VectorExchange`.
        name: of the algorithm.
    """

    def __init__(self, vectors: Vectors, name: str) -> None:
        super().__init__(vectors)
        self.name, self._named = name, ALGORITHMS[name]
        self._work, self._staging = vectors.work, vectors.staging

    def ownership(self, size: int, itemsize: int) -> Ownership:
        """See `VectorExchange`: replicated where the algorithm knows no slices."""
        if self._named.sliced:
            return Ownership.sharded(size, self._ranks.size, itemsize)
        return Ownership.replicate(size, self._ranks.size)

    def _algorithm(self, x: Array) -> Algorithm:
        """Of vectors like ``x``: the ring, which takes any table, where the MPI library cannot sum float16."""
        if self.name == "native" and x.dtype == np.float16 and not self._ranks.wire.sums_float16():
            return ALGORITHMS["ring"]
        return self._named

    def _traced(self, exchange: Callable[..., None] | None, owners: Ownership | None = None) -> Callable[..., None]:
        if exchange is None:
            raise ValueError("this algorithm knows no slices: its table is replicated (see ownership)")
        if owners is not None and self.name == "rabenseifner" and not owners.in_order:
            raise ValueError("this algorithm needs the slices that ownership() gives for it")
        return traced(self._ranks.recorder, self._ranks.wire.comm.Barrier, exchange)

    def _allreduce(self, x: Array, out: Array | None) -> None:
        whole = slice(0, x.size)
        host = self._staging.down(x, whole)
        self._traced(self._algorithm(x).allreduce)(self._ranks.wire, host, self._work)
        self._staging.up(host, x, [whole])
        self._copy(x, out)

    def _reduce(self, x: Array, owners: Ownership, scale: float) -> Iterator[slice]:
        exchange = self._traced(self._algorithm(x).reduce_scatter, owners)
        mine = owners.slices[self._ranks.rank]
        host = self._staging.down(x, slice(0, x.size))
        exchange(self._ranks.wire, host, owners.slices, self._work)
        self._staging.up(host, x, [mine])
        yield scaled(x, mine, scale)

    def _publish(self, x: Array, owners: Ownership, previous: Array | None) -> None:
        exchange = self._traced(self._algorithm(x).allgather, owners)
        mine = owners.slices[self._ranks.rank]
        host = self._staging.down(x, mine)
        exchange(self._ranks.wire, host, owners.slices, self._work)
        self._staging.up(host, x, [slice(0, mine.start), slice(mine.stop, x.size)])
