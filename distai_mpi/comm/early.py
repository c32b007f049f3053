"""Sums between nodes that begin while the vectors are still being made, stretch by stretch.

Backward passes finish a gradient layer by layer, from its end to its start.  What is finished can be summed within the
node, and travel to the nodes that own it, while processors work on the rest; only messages of the last layers are
waited for (Poseidon: Zhang et al. 2017, "Poseidon: An Efficient Communication Architecture for Distributed Deep
Learning on GPU Clusters", section 3.1, "wait-free backpropagation"; Li et al. 2020, "PyTorch Distributed: Experiences
on Accelerating Data Parallel Training", section 3.2.3).

MPI libraries move most messages only while somebody calls them.  A thread of its own looks after them now and then, and
sleeps in between.  It never runs while its rank's main thread calls MPI.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .half import words
from .node_barrier import YIELDS
from .tracing import told
from .wire import Array

if TYPE_CHECKING:
    from .communicator import Communicator

PAUSE = 1e-3  # seconds between two looks of the thread: 0.2 ms and 0.5 ms slowed the backward pass, 2 ms the messages
PIECE_BYTES = 1 << 20  # of a message: short enough that the next stretch need not wait long
LEAST_BYTES = 256 << 10  # of a stretch: shorter ones are taken together
THREAD = "distai-mpi early sums"  # its name
TAG = 1  # other messages of a rail have tag 0


def find_obstacle(comm: Communicator) -> str | None:
    """Why nothing can begin early among these ranks, the same on all of them; None where it can.  Collective."""
    from mpi4py import MPI

    if len({len(ranks) for ranks in comm.topology.nodes}) > 1:
        return "nodes have different numbers of ranks"
    if min(comm.allgather_object(MPI.Query_thread())) < MPI.THREAD_SERIALIZED:
        return "the MPI library lets no second thread call it"
    return None


def merged(stretches: Sequence[tuple[int, int]], size: int, least: int) -> list[tuple[int, int]] | None:
    """Neighbours taken together until each stretch but the last has ``least`` elements.

    None where ``stretches`` do not run from the end of a vector of ``size`` elements to its start, one by one.
    """
    stops = [size, *(start for start, _ in stretches)]
    if not stretches or [stop for _, stop in stretches] != stops[:-1] or stops[-1] != 0:
        return None
    found, stop = [], size
    for start, _ in stretches:
        if stop - start >= least or start == 0:
            found.append((start, stop))
            stop = start
    return found


@dataclass(frozen=True)
class Stage:
    """What happens to a stretch when the node's ranks have made it.

    Attributes:
        column: the part of it that this rank's rail carries, and this rank sums over the node.
        sends: pieces of that: the node that owns one, where it lies, and the message that stands for it.
    """

    column: slice
    sends: list[tuple[int, Array, Array]]


class EarlySums:
    """Reduces ``x`` over all ranks to the slices of `Topology.plan`, beginning with what is ready first.

    For each vector in turn: `ready` for its parts as they are made, which is local, and then `finish`.
    Summands are added in a fixed order, the rank's own node first, then down the nodes.

    Args:
        comm: all ranks; several nodes of as many ranks each.
        x: a vector of `Communicator.empty`, float32 or float64.
        stretches: (start, stop) in the order in which they become ready; together all of ``x``.
        half: whether numbers travel as float16.
    """

    def __init__(self, comm: Communicator, x: Array, stretches: Sequence[tuple[int, int]], half: bool) -> None:
        exchange, shared = comm._sharing.exchange, comm._sharing.find(x)
        assert exchange is not None
        assert exchange._wire is not None
        assert shared is not None
        self._comm, self._exchange, self._x, self._shared, self._half = comm, exchange, x, shared, half
        self._wire, self._rail = exchange._wire, exchange._rail_comm
        self._stretches, self._several = list(stretches), comm.node.size > 1
        self._set_flags()
        self._lay_out(exchange.plan(x), comm.node.rank)
        self._before = 0  # stretches of all vectors before this one
        self._thread: threading.Thread | None = None
        self._reset()

    def _set_flags(self) -> None:
        """One flag for each rank of the node, on cache lines of their own: the stretches that it has made."""
        from ..flags import LINE
        from .memory import address

        node = self._comm.node
        self._flags = self._comm.node_array((node.size * LINE,), np.dtype(np.uint8))
        self._flags[node.rank * LINE : (node.rank + 1) * LINE] = 0
        self._place = address(self._flags)
        self._comm.barrier()

    def _lay_out(self, plan: Any, rail: int) -> None:
        """The pieces that are sent and received, and the memory that they need."""
        column, me, nodes = plan.columns[rail], self._rail.rank, self._rail.size
        shares = [slice(column.start + s.start, column.start + s.stop) for s in plan.by_node[rail]]
        self._stages: list[Stage] = []
        self._receives: list[tuple[int, Array]] = []
        added: dict[int, list[tuple[Array, Array]]] = {}  # by the number of nodes that they are away
        for stretch in (slice(start, stop) for start, stop in self._stretches):
            sends = []
            for away in range(1, nodes):
                dest, source = (me + away) % nodes, (me - away) % nodes
                for piece in self._pieces(stretch, shares[dest]):
                    sends.append((dest, self._x[piece], self._message(piece) if self._half else self._x[piece]))
                for piece in self._pieces(stretch, shares[me]):
                    message = self._message(piece)
                    self._receives.append((source, message))
                    added.setdefault(away, []).append((message, self._x[piece]))
            self._stages.append(Stage(_common(stretch, column), sends))
        self._added = [pair for away in sorted(added) for pair in added[away]]

    def _pieces(self, stretch: slice, share: slice) -> Iterator[slice]:
        part, step = _common(stretch, share), max(1, PIECE_BYTES // self._x.itemsize)
        for start in range(part.start, part.stop, step):
            yield slice(start, min(start + step, part.stop))

    def _message(self, piece: slice) -> Array:
        size = piece.stop - piece.start
        return np.empty(words(size), np.uint16) if self._half else np.empty(size, self._x.dtype)

    def _reset(self) -> None:
        self._made = self._sent = 0  # stretches of this vector
        self._front = self._x.size  # all from there on is ready
        self._requests: list[Any] = []
        self._error: BaseException | None = None

    # --- the main thread

    def ready(self, start: int, stop: int) -> None:
        """Say that this rank's elements ``start`` to ``stop - 1`` have their final values."""
        if stop < self._front:
            return  # what lies between is not ready: `finish` sees to all of it
        self._front, made = min(self._front, start), self._made
        while made < len(self._stretches) and self._front <= self._stretches[made][0]:
            made += 1
        self._say(made)
        if made and self._thread is None:
            self._stop = threading.Event()
            self._thread = threading.Thread(target=self._look_after, name=THREAD, daemon=True)
            self._thread.start()

    def finish(self) -> None:
        """Leave the sum of this rank's slice there, in ``x``.

        Other ranks of the node may go on reading the rest of it until their next barrier.
        """
        self.stop()
        self._say(len(self._stretches))
        self._receive()
        told(self._comm.recorder, self._comm.barrier, self._complete)()
        self._comm.calls["reduce_scatter"] += 1
        self._before += len(self._stretches)
        self._reset()

    def _complete(self) -> None:
        """Send what is left, and take what comes."""
        from mpi4py import MPI

        while self._sent < len(self._stages):
            if self._node_has_next(YIELDS):
                self._send_next()
            else:
                MPI.Request.Testall(self._requests)
        MPI.Request.Waitall(self._requests)
        for message, total in self._added:
            self._add(message, total)

    def _say(self, made: int) -> None:
        from ..flags import announce

        self._made = made
        if self._several:
            announce(self._place, self._comm.node.rank, self._before + made)

    def give_up(self) -> None:
        """End the thread, and take back what was to come: the pass has failed, and others may not send."""
        self.stop()
        for request in self._requests[: len(self._receives)]:  # sends cannot be taken back
            if request:  # else it has come already
                request.Cancel()
                request.Free()

    def stop(self) -> None:
        """End the thread, if there is one, and raise what it died of."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None
        if self._error is not None:
            raise self._error

    def _add(self, message: Array, total: Array) -> None:
        if self._half:
            from . import half_kernels

            half_kernels.add(message, total)
        else:
            total += message

    # --- the thread, and after it the main thread

    def _look_after(self) -> None:
        """Do what can be done, again and again, until the backward pass has ended."""
        from mpi4py import MPI

        try:
            self._receive()
            while True:
                while self._sent < len(self._stages) and self._node_has_next(0):
                    self._send_next()
                MPI.Request.Testall(self._requests)
                if self._stop.wait(PAUSE):
                    return
        except BaseException as error:  # the main thread raises it: then the job ends as with any other
            self._error = error

    def _receive(self) -> None:
        """Let the other nodes' messages come; the first thing that is asked for."""
        if not self._requests:
            self._requests += [self._rail.Irecv((message, _byte()), node, TAG) for node, message in self._receives]

    def _node_has_next(self, yields: int) -> bool:
        """Whether all ranks of the node have made the next stretch."""
        if not self._several:
            return self._made > self._sent
        from ..flags import wait_for

        return wait_for(self._place, self._comm.node.size, self._before + self._sent + 1, 0, yields)

    def _send_next(self) -> None:
        stage = self._stages[self._sent]
        self._sent += 1
        if self._several:
            self._exchange._sum(self._shared, stage.column, self._x[stage.column])
        for node, piece, message in stage.sends:
            if self._half:
                from . import half_kernels

                half_kernels.pack(piece, message)
            self._requests.append(self._rail.Isend((message, _byte()), node, TAG))
            self._wire.bytes_sent += message.nbytes
            self._wire.messages_sent += 1


def early_sums(comm: Communicator, x: Array, stretches: Sequence[tuple[int, int]], half: bool) -> EarlySums | None:
    """The sums of ``x`` that begin early, where its node's ranks share it; else None, on all ranks.

    See `EarlySums`, whose ``stretches`` are those of rank 0, and None where they are no way through the vector from its
    end to its start; collective.
    """
    found = merged(comm.bcast_object(list(stretches)), x.size, LEAST_BYTES // x.itemsize)
    if found is None or comm._sharing.find(x) is None or len(comm.leaders) == 1:
        return None
    return EarlySums(comm, x, found, half)


def _common(a: slice, b: slice) -> slice:
    """Where two stretches overlap; empty where they do not."""
    start = max(a.start, b.start)
    return slice(start, max(start, min(a.stop, b.stop)))


def _byte() -> Any:
    from mpi4py import MPI

    return MPI.BYTE
