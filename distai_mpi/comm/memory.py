"""Memory that the ranks of a node share.

It belongs to an anonymous file of the kernel (memfd_create), which the node's lowest rank makes and the others open by
way of /proc.  The windows of MPI-3 (`MPI.Win.Allocate_shared`) are files in /dev/shm: small there in containers, and
left behind when a job is killed.  Anonymous memory has no name that could be left, no limit but the machine's memory,
and goes when the last array over it has gone.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..perf.machine import memory_left
from .wire import Array

if TYPE_CHECKING:
    from mpi4py import MPI

SMALL_BYTES = 16 << 20  # up to here nobody looks for what is left, which takes 1.4 ms
STREAM_BYTES = 8 << 20  # sums that are longer do not stay in a cache


def allocate(node: MPI.Intracomm, nbytes: int) -> mmap.mmap | str:
    """Map ``nbytes`` (> 0) of new memory, zeros, into every rank of ``node``; collective over it.

    Pages belong to nobody yet: the rank that touches one first gets it from its own part of the machine's memory.
    Returns why not where it cannot be had, on all ranks of the node or on some.
    """
    made: tuple[int, int, int] | str = _make(nbytes) if node.rank == 0 else ""
    made = node.bcast(made)
    if isinstance(made, str):
        return made
    pid, fd, inode = made
    try:
        return _map(pid, fd, inode, nbytes, node.rank == 0)
    except OSError as error:
        return f"memory of process {pid} cannot be mapped ({error.strerror or error})"
    finally:
        node.Barrier()
        if node.rank == 0:
            os.close(fd)


def _make(nbytes: int) -> tuple[int, int, int] | str:
    """(process, file descriptor, inode) of new memory, or why there is none."""
    if nbytes > SMALL_BYTES and nbytes > (left := memory_left()):
        return f"{nbytes:,} bytes are asked for and {left:,} left"
    fd = -1
    try:
        fd = os.memfd_create("distai-mpi")
        os.ftruncate(fd, nbytes)
        return os.getpid(), fd, os.fstat(fd).st_ino
    except (AttributeError, OSError, OverflowError) as error:  # another system than Linux, or its limits
        if fd >= 0:
            os.close(fd)
        return f"shared memory cannot be made ({error})"


def _map(pid: int, fd: int, inode: int, nbytes: int, own: bool) -> mmap.mmap:
    file = fd if own else os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR)
    try:
        if os.fstat(file).st_ino != inode:  # containers may count processes each for themselves
            raise OSError(f"/proc/{pid} is another process here")
        return mmap.mmap(file, nbytes)
    finally:
        if not own:
            os.close(file)


@dataclass(frozen=True)
class Shared:
    """Vectors of one length that the ranks of a node can read: one of each rank's, or one for all of them.

    Holds the memory weakly: it lives as long as there are arrays over it.

    Attributes:
        address: of the first vector's first element, in this process.
        stride: bytes from one vector to the next; whole pages.
        rows: how many there are: the ranks of the node, or 1.
        one_copy: whether the node has one in place of one of each rank's.
        size: elements of each.
        dtype: their type.
        calls: sums of them that an exchange has prepared, by the exchange, or by it and the address of the result.
    """

    address: int
    stride: int
    rows: int
    one_copy: bool
    size: int
    dtype: np.dtype[Any]
    _memory: weakref.ref[Array]
    calls: dict[Any, Callable[[], None]] = field(default_factory=dict, compare=False)

    @classmethod
    def over(cls, memory: Array, rows: int, one_copy: bool, size: int, dtype: np.dtype[Any]) -> Shared:
        """Lay ``rows`` vectors out in ``memory``, uint8, shape (rows · `stride_of`,)."""
        return cls(address(memory), memory.size // rows, rows, one_copy, size, dtype, weakref.ref(memory))

    def like(self, other: Shared) -> bool:
        """Whether vectors are alike in length and type."""
        return self.size == other.size and self.dtype == other.dtype

    @property
    def long(self) -> bool:
        """Whether a sum of several vectors is too long to stay in a cache, and so is stored past it."""
        return self.rows > 1 and self.size * self.dtype.itemsize > STREAM_BYTES

    def row(self, index: int) -> Array:
        """Vector number ``index``, shape (size,), writable."""
        memory = self._memory()
        assert memory is not None, "nobody holds the vector any more"
        start = index * self.stride
        return memory[start : start + self.size * self.dtype.itemsize].view(self.dtype)


def stride_of(size: int, dtype: np.dtype[Any]) -> int:
    """Bytes that a vector takes, in whole pages."""
    return -(-max(1, size * dtype.itemsize) // mmap.PAGESIZE) * mmap.PAGESIZE


def address(array: Array) -> int:
    """Where the first element lies in this process."""
    return array.__array_interface__["data"][0]


class Registry:
    """The shared vectors of a communicator, found by the memory that an array is a view of."""

    def __init__(self) -> None:
        self._found: dict[int, Shared] = {}  # by the identity of their memory

    def add(self, segment: mmap.mmap, rows: int, row: int | None, size: int, dtype: np.dtype[Any]) -> Array:
        """Enter ``rows`` vectors over the whole of ``segment``, until no array uses it any more; number ``row``.

        Without ``row`` they are one, that of the node.
        """
        memory = np.frombuffer(segment, np.uint8)
        self._found[id(memory)] = shared = Shared.over(memory, rows, row is None, size, dtype)
        weakref.finalize(memory, self._found.pop, id(memory), None).atexit = False
        return shared.row(row or 0)

    def find(self, x: Array) -> Shared | None:
        """The vectors one of which ``x`` is, whole; None for any other array.

        NumPy lets a view of a view refer to what owns the memory: it is one look, where the address costs 1 µs.
        """
        shared = self._found.get(id(getattr(x, "base", None)))  # device arrays need not have one
        return shared if shared is not None and shared.size == x.size and shared.dtype == x.dtype else None

    def forget_calls(self) -> None:
        """Forget the sums that are ready to be made again."""
        for shared in self._found.values():
            shared.calls.clear()
