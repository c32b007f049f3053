"""Vectors of a communicator's ranks: private ones, and those that the ranks of a node share."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any

import numpy as np

from ..messages import tell
from ..perf.machine import affinity
from . import memory
from .memory import Registry, Shared
from .ranks import Ranks
from .staging import Staging
from .wire import Array
from .workspace import Workspace


class Vectors:
    """Makes vectors, and knows those that a node shares.

    All methods but `private`, `find`, `prepared` and `free` are collective over all ranks.

    Args:
        ranks: whose vectors they are.
        node: an mpi4py communicator of the ranks of this node.

    Attributes:
        work, staging: scratch memory of exchanges, and of vectors on their way from a device or to it.
    """

    def __init__(self, ranks: Ranks, node: Any) -> None:
        self.ranks, self._node = ranks, node
        self.work, self.staging = Workspace(), Staging()
        self._registry = Registry()
        self._flags: Array | None = None
        self._warned = self._freed = False

    def free(self) -> None:
        """Share nothing more; memory goes with the last array over it."""
        self._freed = True
        self._registry.forget_calls()

    def find(self, x: Array) -> Shared | None:
        """The shared vectors that ``x`` is one of; None for any other array."""
        return None if self._freed else self._registry.find(x)

    def prepared(self, owner: object, x: Array, out: Array | None) -> Callable[[], None] | None:
        """The sum that ``owner`` has prepared for these arrays (see `Shared.calls`), ready to be made again, or None.

        Going the long way costs 10 µs where a core's cache holds no more of Python, a third of a sum of 1 MiB.
        """
        shared = self.find(x)
        if shared is None or x.ndim != 1 or not x.flags.carray:
            return None
        if out is None:
            return shared.calls.get(owner)
        result = self._registry.find(out)
        if result is None or out.ndim != 1 or not out.flags.carray:
            return None
        return shared.calls.get((owner, result.address)) if result.like(shared) else None

    @staticmethod
    def private(size: int, dtype: np.dtype[Any]) -> Array:
        """A vector of zeros of this rank alone, which starts on a page."""
        if size == 0:
            return np.empty(0, dtype)
        return np.frombuffer(mmap.mmap(-1, size * dtype.itemsize), dtype, size)

    def shared(self, size: int, dtype: np.dtype[Any], one_copy: bool) -> Array | None:
        """A vector of zeros that the node's ranks can read: this rank's, or with ``one_copy`` the only one of the node.

        None on all ranks where a node cannot give one: rank 0 says so, once.
        """
        if self.ranks.node_barrier is None and not self._begin():
            return None
        stride, rows = memory.stride_of(size, dtype), 1 if one_copy else self._node.size
        made = self._allocate(stride * rows)
        if isinstance(made, str):
            self._warn(made)
            return None
        vector = self._registry.add(made, rows, None if one_copy else self._node.rank, size, dtype)
        if one_copy:
            self._touch(vector)
        else:
            vector[:] = 0  # its pages become this rank's
        self._node.Barrier()
        return vector

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any], touch: bool = True) -> Array:
        """One uninitialised array for all ranks of the node; ``touch``: see `Communicator.node_array`.

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
            if touch:
                self._touch(array.reshape(-1))
            self._node.Barrier()
        return array

    def _allocate(self, nbytes: int) -> Any:
        """Memory of each node, None where 0 bytes are asked for; on all ranks why not where any has none."""
        made = memory.allocate(self._node, nbytes) if nbytes else None
        errors = self.ranks.allgather_object(made if isinstance(made, str) else None)
        return next((error for error in errors if error is not None), made)

    def _touch(self, vector: Array) -> None:
        """Take the pages of an array of zeros that belongs to the node, each rank a part of them.

        Memory that is asked for next must be really free.
        """
        part = vector.size // self._node.size
        start = part * self._node.rank
        vector[start : vector.size if self._node.rank == self._node.size - 1 else start + part] = 0

    def _begin(self) -> bool:
        """Set up the barrier of each node's ranks; false on all ranks where a node cannot."""
        from .node_barrier import NodeBarrier  # loads Numba

        made = self._allocate(NodeBarrier.size_of(self._node.size))
        if isinstance(made, str):
            self._warn(made)
            return False
        self._flags = np.frombuffer(made, np.uint8)
        cpus = set().union(*self._node.allgather(affinity()))
        crowded = len(cpus) < self._node.size
        address = memory.address(self._flags)
        self.ranks.set_node_barrier(NodeBarrier(address, self._node.rank, self._node.size, crowded, self._node.Iprobe))
        return True

    def _warn(self, reason: str) -> None:
        if not self._warned and self.ranks.rank == 0:
            tell(f"ranks exchange gradients by messages: {reason}", warning=True)
        self._warned = True
