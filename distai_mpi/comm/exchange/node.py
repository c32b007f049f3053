"""Sums on one node, by its shared memory.

Nothing is copied: each rank sums its range of the vector straight from where all ranks of the node have theirs
(`memory.Shared`), in the order of ranks, and what a node shares is published by a barrier.  See Jain et al. 2018,
"Framework for scalable intra-node collective operations using shared memory".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ...params import Ownership
from ..memory import Shared
from ..vectors import Vectors
from ..wire import Array
from .base import VectorExchange
from .messages import MessageExchange

PART_BYTES = 256 << 10  # of the owned slice that is summed, and then used, at once: it stays in the second-level cache


class NodeExchange(VectorExchange):
    """Of vectors that all ranks share in the memory of their one node; other vectors travel by messages.

    Args:
        vectors: see `VectorExchange`.
        messages: takes the vectors that are not shared.
        least: bytes of the shortest vectors that are summed by `allreduce` in shared memory.
    """

    name = "shared"
    shares = True

    def __init__(self, vectors: Vectors, messages: MessageExchange, least: int = 0) -> None:
        super().__init__(vectors)
        self._messages, self._least = messages, least
        self._topology = vectors.ranks.topology

    def ownership(self, size: int, itemsize: int) -> Ownership:
        """See `VectorExchange`."""
        return self._topology.plan(size, itemsize).owners

    def summed_by(self, x: Array) -> str:
        """See `VectorExchange`."""
        return self.name if self._summed_here(x) else self._messages.name

    def _summed_here(self, x: Array) -> Shared | None:
        return None if x.nbytes < self._least else self._shared(x)

    def allreduce(self, x: Array, out: Array | None = None) -> None:
        """See `VectorExchange`.  The second sum of the same arrays is one compiled call between two barriers."""
        call = self._vectors.prepared(self, x, out) if self._ranks.recorder is None else None
        if call is None:
            super().allreduce(x, out)
        else:
            self._ranks.calls["allreduce"] += 1
            call()

    def _allreduce(self, x: Array, out: Array | None) -> None:
        shared = self._summed_here(x)
        if shared is None:
            self._messages._allreduce(x, out)
            return
        result = None if out is None else self._vectors.find(out)
        if result is not None and result.one_copy:
            self._allreduce_once(x, shared, out)  # type: ignore[arg-type]
        else:
            self._allreduce_shared(x, shared)
            if out is not None:
                out[:] = x
                return
        self._prepare(shared, result)

    def _reduce(self, x: Array, owners: Ownership, scale: float) -> Iterator[slice]:
        shared = self._shared(x)
        if shared is None:
            return self._messages._reduce(x, owners, scale)
        return self._reduce_shared(x, shared, owners, scale)

    def _publish(self, x: Array, owners: Ownership, previous: Array | None) -> None:
        shared = self._vectors.find(x)
        if shared is None:
            self._messages._publish(x, owners, previous)
        else:
            self._publish_shared(x, shared, owners, previous)

    # --- of shared vectors

    def _reduce_shared(self, x: Array, shared: Shared, owners: Ownership, scale: float) -> Iterator[slice]:
        mine, step = owners.slices[self._ranks.rank], max(1, PART_BYTES // x.itemsize)
        self._ranks.synchronize_node()  # all vectors are written
        for start in range(mine.start, mine.stop, step):
            part = slice(start, min(start + step, mine.stop))
            self._sum(shared, part, x[part], scale)
            yield slice(part.start - mine.start, part.stop - mine.start)

    def _publish_shared(self, x: Array, shared: Shared, owners: Ownership, previous: Array | None) -> None:
        self._ranks.synchronize_node()  # the node's slices are written
        if not shared.one_copy:
            for local, rank in enumerate(self._ranks.node.ranks):
                if rank != self._ranks.rank:
                    x[owners.slices[rank]] = shared.row(local)[owners.slices[rank]]
            self._ranks.synchronize_node()  # nobody reads x any more

    def _allreduce_shared(self, x: Array, shared: Shared) -> None:
        from .. import kernels

        part = self._topology.plan(x.size, x.itemsize).parts[self._ranks.rank]
        self._ranks.synchronize_node()
        kernels.sum_everywhere(shared.address, shared.stride, shared.rows, part.start, part.stop, x)
        self._ranks.bytes_read += (shared.rows - 1) * (part.stop - part.start) * x.itemsize
        self._ranks.synchronize_node()

    def _allreduce_once(self, x: Array, shared: Shared, out: Array) -> None:
        part = self._topology.plan(x.size, x.itemsize).parts[self._ranks.rank]
        self._ranks.synchronize_node()
        self._sum(shared, part, out[part])
        self._ranks.synchronize_node()

    def _prepare(self, shared: Shared, result: Shared | None) -> None:
        """Have the next sum of these arrays be made by one compiled call, which nothing checks or compares."""
        if not self._ranks.compares:
            shared.calls[self if result is None else (self, result.address)] = self._prepared(shared, result)

    def _prepared(self, shared: Shared, result: Shared | None) -> Callable[[], None]:
        """The sum of the node's vectors ``shared`` in all of them, or in ``result``, as one compiled call."""
        from .. import kernels

        barrier, ranks = self._ranks.node_barrier, self._ranks
        assert barrier is not None
        itemsize = shared.dtype.itemsize
        part = self._topology.plan(shared.size, itemsize).parts[ranks.rank]
        way = kernels.EVERYWHERE if result is None else kernels.STREAM if shared.long else kernels.SUM
        out = 0 if result is None else result.address + part.start * itemsize
        like = np.empty(0, shared.dtype)
        where = (way, shared.address, shared.stride, shared.rows, part.start, part.stop, out, like)
        around, nbytes = barrier.around, (shared.rows - 1) * (part.stop - part.start) * itemsize

        def call() -> None:
            around(kernels.sum_between, *where)
            ranks.bytes_read += nbytes

        return call

    def _sum(self, shared: Shared, part: slice, out: Array, scale: float = 1.0) -> None:
        """out ← scale · the node's sum of the elements ``part``."""
        from .. import kernels

        where = (shared.address, shared.stride, shared.rows, part.start, part.stop, out)
        if scale == 1 and shared.long and not _overlaps(shared, out):
            kernels.stream_rows(*where)
        else:
            kernels.sum_rows(*where, out.dtype.type(scale))
        self._ranks.bytes_read += (shared.rows - 1) * out.nbytes


def _overlaps(shared: Shared, out: Array) -> bool:
    """Whether ``out`` lies within the vectors, or does not start where whole cache lines do."""
    start = out.__array_interface__["data"][0]
    return shared.address <= start < shared.address + shared.stride * shared.rows or start % 64 != 0
