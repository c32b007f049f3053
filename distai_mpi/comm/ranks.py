"""Who takes part: ranks and their nodes, how they synchronize, and counters of what they exchange."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from ..trace import WAIT, Recorder
from . import failure
from .clocks import Offset, offsets
from .topology import Node, Topology, split_by_node
from .wire import MPIWire

if TYPE_CHECKING:
    from mpi4py import MPI

    from .node_barrier import NodeBarrier

LONG_WAIT_SECONDS = 0.01  # between two looks of `Ranks.barrier_asleep`


class Ranks:
    """A private duplicate of an mpi4py communicator: what its ranks know of each other.

    Args:
        mpi_comm: the ranks; it is duplicated.
        chunk_bytes: bounds a single message.
        nodes: see `topology.split_by_node`.

    Attributes:
        rank, size: this rank's number, and how many there are.
        node: the ranks that share memory with this one.
        topology: the ranks of all nodes.
        leaders: the lowest rank of each node.
        wire: point-to-point messages among all ranks.
        wires: ``wire``, and those among some of the ranks that exchanges have made for themselves.
        calls: collective exchanges of arrays, how many of each kind.
        synchronizations: all others: barriers, and exchanges of objects.
        bytes_read: what this rank has read of other ranks' vectors in shared memory.
        compares: whether ranks compare, at each exchange of vectors, what they ask for (DISTAI_CHECK=1 on any).
        recorder: called back when this rank waits and when it sends; None: nothing is traced.  Set by `trace`.
        node_barrier: of the node's ranks in shared memory; None until they share a vector.
        synchronize_node: the same, traced where there is a recorder.
    """

    def __init__(
        self, mpi_comm: MPI.Intracomm, chunk_bytes: int, nodes: Sequence[int] | MPI.Intracomm | None = None
    ) -> None:
        self._comm: Any = mpi_comm.Dup()
        self._node_comm: Any = split_by_node(self._comm, nodes)
        self.rank: int = self._comm.rank
        self.size: int = self._comm.size
        self.node = Node(tuple(self._node_comm.allgather(self.rank)), self._node_comm.rank)
        compares = os.environ.get("DISTAI_CHECK", "") not in ("", "0")  # launchers may set it on one node
        everywhere = self._comm.allgather((self.node.ranks[0], compares))
        self.topology = Topology.of([node for node, _ in everywhere])
        self.leaders: tuple[int, ...] = tuple(ranks[0] for ranks in self.topology.nodes)
        self.compares = any(compares for _, compares in everywhere)
        self.wire = MPIWire(self._comm, chunk_bytes)
        self.wires = [self.wire]
        self.calls: Counter[str] = Counter()
        self.synchronizations = self.bytes_read = 0
        self.recorder: Recorder | None = None
        self.node_barrier: NodeBarrier | None = None
        self.synchronize_node: Callable[[], None] = lambda: None

    @property
    def rounds(self) -> int:
        """Collective exchanges of arrays so far, of all kinds."""
        return self.calls.total()

    @property
    def bytes_sent(self) -> int:
        """Bytes this rank has sent in collectives, or read of other ranks' vectors in shared memory."""
        return self.bytes_read + sum(wire.bytes_sent for wire in self.wires)

    @property
    def exchanges(self) -> int:
        """A number that changes with everything that this rank exchanges; local, and for any thread."""
        turn = 0 if self.node_barrier is None else self.node_barrier.turn
        return self.rounds + self.synchronizations + turn + sum(wire.messages_sent for wire in self.wires)

    def going_on(self) -> None:
        """Say that this rank, which keeps the others waiting, does so for a reason; local."""
        self.synchronizations += 1

    # --- small objects

    def bcast_object(self, obj: Any, root: int = 0) -> Any:
        """Return rank ``root``'s (small, picklable) object on all ranks."""
        if self.size == 1:
            return obj
        self.synchronizations += 1
        return self._comm.bcast(obj, root)

    def allgather_object(self, obj: Any) -> list[Any]:
        """Return every rank's (small, picklable) object, in the order of ranks, on all of them."""
        if self.size == 1:
            return [obj]
        self.synchronizations += 1
        return self._comm.allgather(obj)

    def agreed(self) -> AbstractContextManager[None]:
        """Make foreseeable errors raised inside the block on any rank reach all ranks; see `failure.agreed`."""
        return failure.agreed(self.allgather_object)

    # --- synchronization

    def barrier(self) -> None:
        """Wait for all ranks; what they wrote to node arrays before can be read after."""
        if self.size > 1:
            self.synchronizations += 1
            self._comm.Barrier()  # its messages order memory too: they are released and acquired one after another

    def barrier_asleep(self) -> None:
        """Wait for all ranks as `barrier` does, for long waits: asleep, and seeing no writes to node arrays.

        MPI libraries spin while they wait, at the cost of a core; here a rank looks 100 times a second.
        """
        if self.size > 1:
            self.synchronizations += 1
            request = self._comm.Ibarrier()
            while not request.Test():
                time.sleep(LONG_WAIT_SECONDS)

    def set_node_barrier(self, barrier: NodeBarrier) -> None:
        """Synchronize the node's ranks by ``barrier`` from now on."""
        self.node_barrier = barrier
        self.trace(self.recorder)

    def synchronize(self, advance: Callable[..., tuple[int, bool]], nbytes: int) -> None:
        """Let compiled code synchronize the ranks of one node, and read then what they wrote to shared vectors.

        ``advance(flags, rank, turn, spins, yields)`` does so by the kernels of `shared_barrier` from number ``turn`` +
        1 on, and returns how often it has, and whether it gave up waiting in the next one, to be called again when MPI
        has been looked at.  Each is a round, in which this rank reads ``nbytes`` of the others.
        """
        assert self.node_barrier is not None
        rounds = self.node_barrier.within(advance)
        self.calls["synchronization"] += rounds
        self.bytes_read += rounds * nbytes

    @property
    def can_synchronize(self) -> bool:
        """Whether `synchronize` works: all ranks are on one node, and have made a shared vector."""
        return len(self.leaders) == 1 and self.node_barrier is not None

    def split(self, color: int | None, key: int) -> Any:
        """An mpi4py communicator of the ranks of this ``color``, ordered by ``key``; None where it is; collective."""
        from mpi4py import MPI

        made = self._comm.Split(MPI.UNDEFINED if color is None else color, key)
        return None if color is None else made

    # --- tracing

    def trace(self, recorder: Recorder | None) -> None:
        """Call ``recorder`` back from now on when this rank waits and when it sends; None: nothing is traced; local.

        On all ranks or on none: before messages are exchanged, traced ranks wait for each other in a barrier.
        """
        self.recorder = recorder
        if self.node_barrier is not None:
            plain = self.node_barrier
            self.synchronize_node = plain if recorder is None else recorder.timed(WAIT, plain)

    def clock_offsets(self) -> list[Offset]:
        """How far the clock of each node is ahead of that of rank 0, which alone gets the answer; collective."""
        return offsets(MPIWire(self._comm), self.leaders)
