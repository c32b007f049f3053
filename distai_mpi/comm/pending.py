"""A small sum over the ranks that travels while they work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .wire import Array

if TYPE_CHECKING:
    from mpi4py import MPI


class Pending:
    """A sum of a few float64 numbers over all ranks, on its way; made by `Communicator.pending`.

    It needs no thread: every call of MPI moves it on.  Each must be waited for.
    """

    def __init__(self, comm: MPI.Intracomm, values: Array) -> None:
        self._values, self._total = values, values.copy()
        self._request = comm.Iallreduce(self._values, self._total) if comm.size > 1 else None

    def test(self) -> bool:
        """Whether `wait` would return at once; local."""
        return self._request is None or bool(self._request.Test())

    def wait(self) -> Array:
        """The sum, float64, shape (n,), the same bits on all ranks; waits for those that have not come yet."""
        if self._request is not None:
            self._request.Wait()
            self._request = None
        return self._total
