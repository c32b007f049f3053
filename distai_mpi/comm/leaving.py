"""How the ranks of a job leave it together, or one of them ends it; never starts MPI."""

from __future__ import annotations

import sys
import time
from typing import Any

LEAVE_TAG = 31_000  # of the messages of `leave_together`; MPI has tags up to 32,767 at least
_goodbyes = 0
_words: list[bytearray] = []  # of messages that may never come; MPI keeps their addresses


def leave_together(seconds: float = 3.0) -> bool:
    """Wait for all ranks to come here; False if some have not come within ``seconds``.

    True at once where MPI is not running.  The exit of every rank that ends with a foreseeable error
    passes here: if all of them come, the job ends in order; if not, the others wait in a collective
    for one that will never come, and the caller must abort.

    Ranks tell rank 0, which answers when all have: a barrier of the library's would be taken for a part of the
    collective that others are in.
    """
    global _goodbyes
    MPI = _running_mpi()
    if MPI is None or MPI.COMM_WORLD.size == 1:
        return True
    comm, tag = MPI.COMM_WORLD, LEAVE_TAG + _goodbyes % 1000
    _goodbyes += 1
    deadline = time.monotonic() + seconds
    others = range(1, comm.size) if comm.rank == 0 else [0]
    words = [bytearray(1) for _ in range(len(others) + 1)]
    _words.extend(words)
    comes = [comm.Irecv(word, other, tag) for word, other in zip(words, others, strict=False)]
    told = [] if comm.rank == 0 else [comm.Isend(words[-1], 0, tag)]
    while not MPI.Request.Testall([*comes, *told]):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    if comm.rank == 0:
        MPI.Request.Waitall([comm.Isend(words[-1], other, tag) for other in others])
    return True


def abort(status: int) -> None:
    """End all ranks of the job with ``status``, if MPI is running."""
    MPI = _running_mpi()
    if MPI is not None:
        MPI.COMM_WORLD.Abort(status)


def connected() -> bool:
    """Whether MPI is running and has brought this process together with others."""
    MPI = _running_mpi()
    return MPI is not None and MPI.COMM_WORLD.size > 1


def _running_mpi() -> Any:
    """The module mpi4py.MPI between Init and Finalize, None otherwise; never starts MPI."""
    MPI = sys.modules.get("mpi4py.MPI")
    return MPI if MPI is not None and MPI.Is_initialized() and not MPI.Is_finalized() else None
