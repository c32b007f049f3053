"""What a communicator's ranks share of their nodes' memory: vectors, arrays, and the exchange that uses them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..messages import tell
from ..perf.machine import affinity
from ..trace import Recorder
from . import memory
from .collectives import ALGORITHMS
from .memory import Registry, Shared
from .topology import Topology
from .wire import Array

if TYPE_CHECKING:
    from mpi4py import MPI

    from .hierarchical import Hierarchical

Gather = Callable[[Any], list[Any]]  # one small object of each rank to all ranks


class Sharing:
    """The shared vectors of a communicator.

    All methods but `find`, `call`, `keep`, `forget_calls` and `trace` are collective over all its ranks.

    Args:
        comm: all ranks.
        node: those of this node.
        topology: which ranks share nodes.
        gather: hands one small object of each rank to all.
        chunk_bytes: most bytes of a message between nodes.

    Attributes:
        exchange: sums of shared vectors; None until the first of them is made, or where none can be.
        recorder: hears of exchanges; None: nobody does.
    """

    def __init__(
        self, comm: MPI.Intracomm, node: MPI.Intracomm, topology: Topology, gather: Gather, chunk_bytes: int
    ) -> None:
        self.topology, self.exchange = topology, None
        self._comm, self._node, self._gather, self._chunk_bytes = comm, node, gather, chunk_bytes
        self._registry = Registry()
        self._flags: Array | None = None
        self._warned = False
        self.recorder: Recorder | None = None

    exchange: Hierarchical | None

    def trace(self, recorder: Recorder | None) -> None:
        """Let ``recorder`` hear of exchanges from now on; None: nobody; local."""
        self.recorder = recorder
        if self.exchange is not None:
            self.exchange.trace(recorder)

    def free(self) -> None:
        """Give up the communicators in use; memory goes with the last array over it."""
        if self.exchange is not None:
            self.exchange.free()
            self.exchange = None

    def find(self, x: Array) -> Shared | None:
        """The shared vectors that ``x`` is one of; None for any other array."""
        return self._registry.find(x) if self.exchange is not None else None

    def call(self, x: Array, algorithm: str, out: Array | None) -> Callable[[], None] | None:
        """A sum that was made before with the same arguments, ready to be made again; None: go the long way.

        The long way costs 10 µs where a core's cache holds no more of Python, a third of a sum of 1 MiB.
        """
        shared = self.find(x)
        if shared is None or x.ndim != 1 or not x.flags.carray:
            return None
        if out is None:
            return shared.calls.get(algorithm)
        once = self._registry.find(out)
        if (
            once is None
            or out.ndim != 1
            or not out.flags.carray
            or once.size != shared.size
            or once.dtype != shared.dtype
        ):
            return None
        return shared.calls.get((algorithm, once.address))

    def keep(self, shared: Shared, algorithm: str, once: Shared | None, wanted: bool) -> None:
        """Have `call` find this sum, which was just made, where it is ``wanted`` and all of it is on one node."""
        if wanted and len(self.topology.nodes) == 1:
            assert self.exchange is not None
            key = algorithm if once is None else (algorithm, once.address)
            shared.calls[key] = self.exchange.prepared(shared, once)

    def forget_calls(self) -> None:
        """Have `call` find nothing: how sums are made may be chosen anew."""
        self._registry.forget_calls()

    def vector(self, size: int, dtype: np.dtype[Any], once: bool) -> Array | None:
        """A vector of zeros that the node's ranks can read: this rank's, or with ``once`` the only one of the node.

        None on all ranks where a node cannot give one: rank 0 says so, once.
        """
        if self.exchange is None and not self._begin():
            return None
        stride, rows = memory.stride_of(size, dtype), 1 if once else self._node.size
        made = self._allocate(stride * rows)
        if isinstance(made, str):
            self._warn(made)
            return None
        vector = self._registry.add(made, rows, None if once else self._node.rank, size, dtype)
        if once:
            self._touch(vector)
        else:
            vector[:] = 0  # its pages become this rank's
        self._node.Barrier()
        return vector

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """One uninitialised array for all ranks of the node.

        Raises:
            MemoryError: a node cannot give it; on all ranks.
        """
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        private = self._node.size == 1 or nbytes == 0
        made = self._allocate(0 if private else nbytes)
        if isinstance(made, str):
            raise MemoryError(made)
        array = np.empty(shape, dtype) if made is None else np.frombuffer(made, dtype).reshape(shape)
        if made is not None:
            self._touch(array.reshape(-1))
            self._node.Barrier()
        return array

    def _allocate(self, nbytes: int) -> Any:
        """Memory of each node, None where 0 bytes are asked for; on all ranks why not where any has none."""
        made = memory.allocate(self._node, nbytes) if nbytes else None
        refusals = [error for error in self._gather(made if isinstance(made, str) else None) if error is not None]
        return refusals[0] if refusals else made

    def _touch(self, vector: Array) -> None:
        """Take the pages of an array of zeros that belongs to the node, each rank a part of them.

        Memory that is asked for next must be really free.
        """
        share = vector.size // self._node.size
        start = share * self._node.rank
        vector[start : vector.size if self._node.rank == self._node.size - 1 else start + share] = 0

    def _begin(self) -> bool:
        """Set up the node's barrier and the rails; false on all ranks where a node cannot."""
        from .hierarchical import Hierarchical
        from .node_barrier import NodeBarrier

        made = self._allocate(NodeBarrier.size_of(self._node.size))
        if isinstance(made, str):
            self._warn(made)
            return False
        self._flags = np.frombuffer(made, np.uint8)
        cpus = set().union(*self._node.allgather(affinity()))
        crowded = len(cpus) < self._node.size
        barrier = NodeBarrier(memory.address(self._flags), self._node.rank, self._node.size, crowded, self._node.Iprobe)
        nodes = len(self.topology.nodes)
        flat = ALGORITHMS["rabenseifner" if nodes & (nodes - 1) == 0 else "ring"]
        self.exchange = Hierarchical(self._comm, self.topology, barrier, flat, self._chunk_bytes)
        self.exchange.trace(self.recorder)
        return True

    def _warn(self, reason: str) -> None:
        if not self._warned and self._comm.rank == 0:
            tell(f"ranks exchange gradients by messages: {reason}", warning=True)
        self._warned = True
