"""How the ranks of a communicator wait for each other, and hand each other small objects."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .sharing import Sharing
    from .topology import Node
    from .watch import Watch
    from .wire import MPIWire

LONG_WAIT_SECONDS = 0.01  # between two looks of `Meeting.barrier_asleep`


class Meeting:
    """The part of a communicator that is about waiting for each other, and about small objects.

    Attributes:
        calls: collective exchanges of arrays, how many of each kind.
        meetings: all others: barriers, and exchanges of objects.
    """

    size: int
    calls: Counter[str]
    meetings = 0
    leaders: tuple[int, ...]
    watch: Watch | None  # over all ranks of the job, where this communicator is of all of them
    rank: int
    node: Node
    _comm: Any
    _node_comm: Any
    _wire: MPIWire
    _sharing: Sharing

    @property
    def rounds(self) -> int:
        """Collective exchanges of arrays so far, of all kinds."""
        return self.calls.total()

    @property
    def exchanges(self) -> int:
        """A number that changes with everything that this rank exchanges; local, and for any thread."""
        exchange = self._sharing.exchange
        return self.rounds + self.meetings + self._wire.messages_sent + (exchange.turn if exchange is not None else 0)

    @contextmanager
    def watched(self, seconds: float | None, position: Callable[[], int]) -> Iterator[None]:
        """Let ranks wait for one that does not come for at most ``seconds`` in the block; collective at its start.

        None: as long as before.  ``position()`` is the step of training that this rank is in.  See `Communicator`.
        """
        from . import watch

        before = self.watch.seconds if self.watch is not None else 0.0
        if seconds is not None:
            self.watch = watch.join(self, self._node_comm, self.bcast_object(watch.asked(seconds)))
        if self.watch is None:
            yield
            return
        self.watch.position = position
        try:
            yield
        finally:
            self.watch.seconds, self.watch.position = before, None

    def going_on(self) -> None:
        """Say that this rank, which keeps the others waiting, does so for a reason; local."""
        self.meetings += 1

    def bcast_object(self, obj: Any, root: int = 0) -> Any:
        """Return rank ``root``'s (small, picklable) object on all ranks."""
        if self.size == 1:
            return obj
        self.meetings += 1
        return self._comm.bcast(obj, root)

    def allgather_object(self, obj: Any) -> list[Any]:
        """Return every rank's (small, picklable) object, in the order of ranks, on all of them."""
        if self.size == 1:
            return [obj]
        self.meetings += 1
        return self._comm.allgather(obj)

    def barrier(self) -> None:
        """Wait for all ranks; what they wrote to node arrays before can be read after."""
        if self.size > 1:
            self.meetings += 1
            self._comm.Barrier()  # its messages order memory too: they are released and acquired one after another

    def barrier_asleep(self) -> None:
        """Wait for all ranks as `barrier` does, for long waits: asleep, and seeing no writes to node arrays.

        MPI libraries spin while they wait, at the cost of a core; here a rank looks 100 times a second.
        """
        if self.size > 1:
            self.meetings += 1
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
