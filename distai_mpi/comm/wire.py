"""Point-to-point messages between ranks: all that the package's own collectives need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mpi4py import MPI

Array = NDArray[Any]

CHUNK_BYTES = 1 << 30  # counts of 2**31 and more fail in Open MPI 5.0


class Wire(Protocol):
    """A rank's connection to its peers: numbers 0 to ``size - 1``, messages in order for each pair."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def sendrecv(self, send: Array | None, dest: int, recv: Array | None, source: int) -> None:
        """Send ``send`` to ``dest`` while receiving ``recv`` from ``source``; return when both are done.

        Both arrays are 1-D, contiguous and do not overlap; the two ends of a
        message agree on its length.  A side that is None or empty sends or
        receives nothing, and its peer must not take part in it either.
        """


class MPIWire:
    """A `Wire` over an mpi4py communicator, which it does not own.

    Messages travel as bytes, so any dtype will do, in pieces of at most
    ``chunk_bytes``.  ``bytes_sent`` and ``messages_sent`` count what this rank
    has sent; a piece is a message.
    """

    def __init__(self, comm: MPI.Intracomm, chunk_bytes: int = CHUNK_BYTES) -> None:
        from mpi4py import MPI

        if not 0 < chunk_bytes < 1 << 31:
            raise ValueError(f"chunk_bytes must be between 1 and 2**31 - 1, got {chunk_bytes}")
        self.comm = comm
        self.rank: int = comm.rank
        self.size: int = comm.size
        self.chunk_bytes = chunk_bytes
        self.bytes_sent = 0
        self.messages_sent = 0
        self._byte = MPI.BYTE
        self._float16: bool | None = None

    def sums_float16(self) -> bool:
        """Whether every rank's library sums float16 (Open MPI 4.1: no; 5.0 and MPICH: yes); asked once; collective."""
        if self._float16 is None:
            self._float16 = all(self.comm.allgather(_library_sums_float16()))
        return self._float16

    def sendrecv(self, send: Array | None, dest: int, recv: Array | None, source: int) -> None:
        """Do as `Wire.sendrecv` says, piece by piece."""
        out = 0 if send is None else send.nbytes
        into = 0 if recv is None else recv.nbytes
        longest = max(out, into)
        if longest > self.chunk_bytes:
            for start in range(0, longest, self.chunk_bytes):
                piece = slice(start, start + self.chunk_bytes)
                self.sendrecv(_bytes(send, piece), dest, _bytes(recv, piece), source)
            return
        if out and into:
            self.comm.Sendrecv((send, self._byte), dest, 0, (recv, self._byte), source, 0)
        elif out:
            self.comm.Send((send, self._byte), dest, 0)
        elif into:
            self.comm.Recv((recv, self._byte), source, 0)
        if out:
            self.bytes_sent += out
            self.messages_sent += 1


def _library_sums_float16() -> bool:
    from mpi4py import MPI

    one, two = np.ones(1, np.float16), np.full(1, 2, np.float16)
    try:
        MPI.SUM.Reduce_local(one, two)  # a local call: a refusal harms nobody
    except (MPI.Exception, KeyError, TypeError, ValueError, NotImplementedError):
        return False
    return float(two[0]) == 3.0


def _bytes(x: Array | None, piece: slice) -> Array | None:
    return None if x is None else x.view("u1")[piece]
