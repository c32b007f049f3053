"""What every rank tells of itself, in a page of memory that the ranks of a node share.

A rank that waits inside of MPI can be neither asked nor told anything by MPI.  Here a thread of it writes a row now and
then, and reads those of the others; rows of other nodes' ranks come by datagrams (`NodeBeacon`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import memory
from .wire import Array

if TYPE_CHECKING:
    from mpi4py import MPI

    from .ranks import Ranks

LOCATION_BYTES = 184
ROW = np.dtype(
    [
        ("beat", "i8"),  # grows while the rank's watch runs
        ("exchanges", "i8"),  # changes whenever the rank exchanges anything
        ("activity", "i8"),  # of `whereabouts.Activity`
        ("step", "i8"),  # of training; -1 outside of it
        ("busy", "i8"),  # whether the process has used its processor lately, or moved data
        ("state", "i8"),  # letter of its state, as another rank of its node sees it; 0: nobody has looked
        ("pid", "i8"),
        ("alarm", "i8"),  # whether the rank has given up waiting
        ("still", "f8"),  # seconds for which it has exchanged nothing, by its own clock
        ("location", f"S{LOCATION_BYTES}"),
    ]
)


class Page:
    """The rows of all ranks, as this node knows them.

    Attributes:
        rows: of `ROW`, shape (ranks of the job,), by rank; shared by ``local``.
        local: ranks that share these rows, this one among them: those of the node, or where a node cannot share memory
            this rank alone.
        leader: whether this rank speaks for them to other nodes.
        hosts: name of each rank's machine.
    """

    def __init__(self, comm: Ranks, node: MPI.Intracomm) -> None:
        """Collective over all ranks; ``node`` are those of this node."""
        import os

        nbytes = comm.size * ROW.itemsize
        made: Any = memory.allocate(node, nbytes) if node.size > 1 else "alone"
        shared = all(node.allgather(not isinstance(made, str)))
        self.rows: Array = np.frombuffer(made, ROW) if shared else np.zeros(comm.size, ROW)
        self.local: tuple[int, ...] = comm.node.ranks if shared else (comm.rank,)
        self.leader = self.local[0] == comm.rank
        if self.leader:
            self.rows["step"] = -1
        self.hosts: Sequence[str] = comm.allgather_object(os.uname().nodename)


def text_of(location: Any) -> str:
    """The location of a row as text."""
    return bytes(location).decode(errors="replace")


def bytes_of(location: str) -> bytes:
    """A location as a row holds it."""
    return location.encode()[:LOCATION_BYTES]
