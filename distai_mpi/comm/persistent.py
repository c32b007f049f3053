"""The MPI library's persistent Allreduce: set up once for a vector, started as often as one likes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .wire import CHUNK_BYTES, Array

if TYPE_CHECKING:
    from mpi4py import MPI


class PersistentAllreduce:
    """Sums ``x``, shape (n,), over all ranks in place whenever it is called.

    ``Allreduce_init`` is in MPI 4.0, and in some libraries of older standards.  Making one and `free` are collective.

    Raises:
        NotImplementedError: the library has none, or not for such a vector; says why.
    """

    def __init__(self, mpi_comm: MPI.Intracomm, x: Array) -> None:
        from mpi4py import MPI

        if x.nbytes > CHUNK_BYTES:
            raise NotImplementedError(f"one message holds at most {CHUNK_BYTES:,} bytes")
        if not hasattr(mpi_comm, "Allreduce_init"):
            raise NotImplementedError("this mpi4py has no Allreduce_init")
        try:
            self._request = mpi_comm.Allreduce_init(MPI.IN_PLACE, x)
        except (MPI.Exception, NotImplementedError, KeyError) as error:  # as mpi4py says what its library lacks
            raise NotImplementedError(f"the MPI library has no Allreduce_init for it ({error})") from None
        start, wait = self._request.Start, self._request.Wait

        def call() -> None:
            start()
            wait()

        self.call: Callable[[], None] = call

    def free(self) -> None:
        """Give the request back."""
        self._request.Free()
