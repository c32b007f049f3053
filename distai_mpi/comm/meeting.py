"""How the ranks of a communicator wait for each other."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .sharing import Sharing

LONG_WAIT_SECONDS = 0.01  # between two looks of `Meeting.barrier_asleep`


class Meeting:
    """The part of a communicator that is about waiting for each other.

    Attributes:
        calls: collective exchanges of arrays, how many of each kind.
    """

    size: int
    calls: Counter[str]
    leaders: tuple[int, ...]
    _comm: Any
    _sharing: Sharing

    @property
    def rounds(self) -> int:
        """Collective exchanges of arrays so far, of all kinds."""
        return self.calls.total()

    def barrier(self) -> None:
        """Wait for all ranks; what they wrote to node arrays before can be read after."""
        if self.size > 1:
            self._comm.Barrier()  # its messages order memory too: they are released and acquired one after another

    def barrier_asleep(self) -> None:
        """Wait for all ranks as `barrier` does, for long waits: asleep, and seeing no writes to node arrays.

        MPI libraries spin while they wait, at the cost of a core; here a rank looks 100 times a second.
        """
        if self.size > 1:
            request = self._comm.Ibarrier()
            while not request.Test():
                time.sleep(LONG_WAIT_SECONDS)

    def meet(self, advance: Callable[..., tuple[int, bool]], nbytes: int) -> None:
        """Let compiled code meet the other ranks of one node, and see then what they wrote to shared vectors.

        ``advance(flags, rank, turn, spins, yields)`` meets them by the kernels of `flags` from number ``turn`` + 1 on,
        and returns how often it has, and whether it gave up waiting in the next one, to be called again when MPI has
        been looked at.  Each is a round, in which this rank reads ``nbytes`` of the others.
        """
        exchange = self._sharing.exchange
        assert exchange is not None
        self.calls["meeting"] += exchange.meet(advance, nbytes)

    @property
    def meets(self) -> bool:
        """Whether `meet` works: all ranks share a node's memory, and have made a shared vector."""
        return len(self.leaders) == 1 and self._sharing.exchange is not None
