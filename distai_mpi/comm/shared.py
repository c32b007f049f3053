"""Arrays that the ranks of a node hold once, in MPI shared memory."""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

import numpy as np

from .wire import Array

if TYPE_CHECKING:
    from mpi4py import MPI

SHARED_FOLDER = "/dev/shm"  # where Open MPI and MPICH keep shared windows on Linux
SPARE_BYTES = 1 << 20  # left for the library's own headers


def has_room(nbytes: int) -> bool:
    """Tell whether a window of ``nbytes`` fits this node's shared memory now."""
    try:
        free = os.statvfs(SHARED_FOLDER)
    except OSError:  # another system: let the library try
        return True
    return nbytes + SPARE_BYTES <= free.f_bavail * free.f_frsize


def allocate(node: MPI.Intracomm, shape: tuple[int, ...], dtype: np.dtype) -> tuple[MPI.Win, Array]:
    """Make one array for all ranks of ``node``, in memory of the lowest; collective over the node.

    The window stays locked for all, so that plain loads and stores and
    `MPI.Win.Sync` are all it takes to use it; `release` undoes both.
    """
    from mpi4py import MPI

    nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    window = MPI.Win.Allocate_shared(nbytes if node.rank == 0 else 0, 1, comm=node)
    memory, _ = window.Shared_query(0)
    # take the pages now, each rank a part: free space that is asked for next must be really free
    pages = np.ndarray(nbytes, np.uint8, memory)[:: mmap.PAGESIZE]  # type: ignore[arg-type]
    pages[len(pages) * node.rank // node.size : len(pages) * (node.rank + 1) // node.size] = 0
    node.Barrier()
    window.Lock_all(MPI.MODE_NOCHECK)
    return window, np.ndarray(shape, dtype, memory)  # type: ignore[arg-type]


def release(window: MPI.Win) -> None:
    """Free a window made by `allocate`; collective over its node, and its array is gone."""
    window.Unlock_all()
    window.Free()
