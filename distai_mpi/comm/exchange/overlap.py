"""Wait-free backpropagation: sums between nodes that begin while the vectors are still being made, range by range.

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
from typing import Any

import numpy as np

from ..compression import words
from ..ranks import Ranks
from ..tracing import traced
from ..wire import Array
from .base import VectorExchange
from .hierarchical import HierarchicalExchange

PAUSE = 1e-3  # seconds between two looks of the thread: 0.2 ms and 0.5 ms slowed the backward pass, 2 ms the messages
PIECE_BYTES = 1 << 20  # of a message: short enough that the next range need not wait long
LEAST_BYTES = 256 << 10  # of a range: shorter ones are taken together
THREAD = "distai-mpi overlap"  # its name
TAG = 1  # other messages of a rail have tag 0


def find_obstacle(ranks: Ranks) -> str | None:
    """Why nothing can overlap among these ranks, the same on all of them; None where it can.  Collective."""
    from mpi4py import MPI

    if len({len(node) for node in ranks.topology.nodes}) > 1:
        return "nodes have different numbers of ranks"
    if min(ranks.allgather_object(MPI.Query_thread())) < MPI.THREAD_SERIALIZED:
        return "the MPI library lets no second thread call it"
    return None


def merged(ranges: Sequence[tuple[int, int]], size: int, least: int) -> list[tuple[int, int]] | None:
    """Neighbours taken together until each range but the last has ``least`` elements.

    None where ``ranges`` do not run from the end of a vector of ``size`` elements to its start, one by one.
    """
    stops = [size, *(start for start, _ in ranges)]
    if not ranges or [stop for _, stop in ranges] != stops[:-1] or stops[-1] != 0:
        return None
    found, stop = [], size
    for start, _ in ranges:
        if stop - start >= least or start == 0:
            found.append((start, stop))
            stop = start
    return found


@dataclass(frozen=True)
class Stage:
    """What happens to a range when the node's ranks have made it.

    Attributes:
        column: the part of it that this rank's rail carries, and this rank sums over the node.
        sends: pieces of that: the node that owns one, where it lies, and the message that stands for it.
    """

    column: slice
    sends: list[tuple[int, Array, Array]]


class OverlappedReduction:
    """Reduces ``x`` over all ranks to the slices of `Topology.plan`, beginning with what is ready first.

    For each vector in turn: `ready` for its parts as they are made, which is local, and then `finish`.
    Summands are added in a fixed order, the rank's own node first, then down the nodes.

    Args:
        exchange: among several nodes of as many ranks each; its ``dtype`` says whether numbers travel as float16.
        x: a vector of `Communicator.empty`, float32 or float64.
        ranges: (start, stop) in the order in which they become ready; together all of ``x``.
    """

    def __init__(self, exchange: HierarchicalExchange, x: Array, ranges: Sequence[tuple[int, int]]) -> None:
        shared, wire = exchange._vectors.find(x), exchange.rail
        assert wire is not None
        assert shared is not None
        self._ranks, self._exchange, self._x, self._shared = exchange.ranks, exchange, x, shared
        self._compressed = exchange.dtype is not None
        self._wire, self._rail = wire, wire.comm
        self._ranges, self._several = list(ranges), self._ranks.node.size > 1
        self._set_flags()
        self._lay_out(exchange.plan(x), self._ranks.node.rank)
        self._before = 0  # ranges of all vectors before this one
        self._thread: threading.Thread | None = None
        self._reset()

    def _set_flags(self) -> None:
        """One flag for each rank of the node, on cache lines of their own: the ranges that it has made."""
        from ...shared_barrier import LINE
        from ..memory import address

        node = self._ranks.node
        self._flags = self._exchange._vectors.array((node.size * LINE,), np.dtype(np.uint8))
        self._flags[node.rank * LINE : (node.rank + 1) * LINE] = 0
        self._address = address(self._flags)
        self._ranks.barrier()

    def _lay_out(self, plan: Any, rail: int) -> None:
        """The pieces that are sent and received, and the memory that they need."""
        column, me, nodes = plan.columns[rail], self._rail.rank, self._rail.size
        slices = [slice(column.start + s.start, column.start + s.stop) for s in plan.by_node[rail]]
        self._stages: list[Stage] = []
        self._receives: list[tuple[int, Array]] = []
        added: dict[int, list[tuple[Array, Array]]] = {}  # by the number of nodes that they are away
        for span in (slice(start, stop) for start, stop in self._ranges):
            sends = []
            for away in range(1, nodes):
                dest, source = (me + away) % nodes, (me - away) % nodes
                for piece in self._pieces(span, slices[dest]):
                    sends.append((dest, self._x[piece], self._message(piece) if self._compressed else self._x[piece]))
                for piece in self._pieces(span, slices[me]):
                    message = self._message(piece)
                    self._receives.append((source, message))
                    added.setdefault(away, []).append((message, self._x[piece]))
            self._stages.append(Stage(_common(span, column), sends))
        self._added = [pair for away in sorted(added) for pair in added[away]]

    def _pieces(self, span: slice, owned: slice) -> Iterator[slice]:
        part, step = _common(span, owned), max(1, PIECE_BYTES // self._x.itemsize)
        for start in range(part.start, part.stop, step):
            yield slice(start, min(start + step, part.stop))

    def _message(self, piece: slice) -> Array:
        size = piece.stop - piece.start
        return np.empty(words(size), np.uint16) if self._compressed else np.empty(size, self._x.dtype)

    def _reset(self) -> None:
        self._made = self._sent = 0  # ranges of this vector
        self._front = self._x.size  # all from there on is ready
        self._requests: list[Any] = []
        self._error: BaseException | None = None

    # --- the main thread

    def ready(self, start: int, stop: int) -> None:
        """Say that this rank's elements ``start`` to ``stop - 1`` have their final values."""
        if stop < self._front:
            return  # what lies between is not ready: `finish` sees to all of it
        self._front, made = min(self._front, start), self._made
        while made < len(self._ranges) and self._front <= self._ranges[made][0]:
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
        self._say(len(self._ranges))
        self._receive()
        traced(self._ranks.recorder, self._ranks.barrier, self._complete)()
        self._ranks.calls["reduce_scatter"] += 1
        self._before += len(self._ranges)
        self._reset()

    def _complete(self) -> None:
        """Send what is left, and take what comes."""
        from mpi4py import MPI

        from ..node_barrier import YIELDS  # loads Numba

        while self._sent < len(self._stages):
            if self._node_has_next(YIELDS):
                self._send_next()
            else:
                MPI.Request.Testall(self._requests)
        MPI.Request.Waitall(self._requests)
        for message, total in self._added:
            self._add(message, total)

    def _say(self, made: int) -> None:
        from ...shared_barrier import announce

        self._made = made
        if self._several:
            announce(self._address, self._ranks.node.rank, self._before + made)

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
        if self._compressed:
            from .. import compression_kernels as kernels

            kernels.add(message, total)
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
        """Whether all ranks of the node have made the next range."""
        if not self._several:
            return self._made > self._sent
        from ...shared_barrier import wait_for

        return wait_for(self._address, self._ranks.node.size, self._before + self._sent + 1, 0, yields)

    def _send_next(self) -> None:
        stage = self._stages[self._sent]
        self._sent += 1
        if self._several:
            self._exchange._sum(self._shared, stage.column, self._x[stage.column])
        for node, piece, message in stage.sends:
            if self._compressed:
                from .. import compression_kernels as kernels

                kernels.pack(piece, message)
            self._requests.append(self._rail.Isend((message, _byte()), node, TAG))
            self._wire.bytes_sent += message.nbytes
            self._wire.messages_sent += 1


def overlapped(exchange: VectorExchange, x: Array, ranges: Sequence[tuple[int, int]]) -> OverlappedReduction | None:
    """Sums of ``x`` by ``exchange`` that overlap with the backward pass, where ranks share it; else None, on all ranks.

    See `OverlappedReduction`, whose ``ranges`` are those of rank 0, and None where they are no way through the vector
    from its end to its start; collective.
    """
    found = merged(exchange.ranks.bcast_object(list(ranges)), x.size, LEAST_BYTES // x.itemsize)
    if found is None or not isinstance(exchange, HierarchicalExchange) or not exchange.has(x):
        return None
    return OverlappedReduction(exchange, x, found)


def _common(a: slice, b: slice) -> slice:
    """Where two ranges overlap; empty where they do not."""
    start = max(a.start, b.start)
    return slice(start, max(start, min(a.stop, b.stop)))


def _byte() -> Any:
    from mpi4py import MPI

    return MPI.BYTE
