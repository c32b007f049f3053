"""Sums by shared memory within nodes and by messages between them.

Within a node nothing is copied: each rank sums its stretch of the vector straight from where all ranks of the node have
theirs (`memory.Shared`), in the order of ranks, and what a node shares is published by a barrier.  Between nodes the
rails of `topology.Plan` run one of the algorithms of `collectives`, so that a node of any number of ranks sends
2 (K - 1) / K of the vector's bytes in an allreduce over K nodes.  On one node there are no messages at all.

The hierarchy is that of Karonis et al. 2000, "Exploiting hierarchy in parallel computer networks to optimize
collective operation performance"; for reductions that read the neighbours' memory see Jain et al. 2018, "Framework for
scalable intra-node collective operations using shared memory".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..params import Ownership
from ..trace import WAIT, Recorder
from .collectives import Algorithm
from .memory import Shared
from .topology import Plan, Topology
from .tracing import told
from .wire import Array, MPIWire
from .workspace import Workspace

if TYPE_CHECKING:
    from mpi4py import MPI

    from .half_messages import Changes, HalfMessages
    from .node_barrier import NodeBarrier

PART_BYTES = 256 << 10  # of the owned slice that is summed, and then used, at once: it stays in the second-level cache


class Hierarchical:
    """The exchange of shared vectors, for a rank's place among ranks and nodes.

    All methods are collective over all ranks.  Vectors are given by the array ``x`` that is this rank's, or its
    node's, and the set ``shared`` it belongs to.

    Args:
        comm: all ranks; collective over it.
        topology: which of them share nodes.
        barrier: of the node's ranks.
        flat: what the rails run.
        chunk_bytes: most bytes of a message.
    """

    def __init__(
        self, comm: MPI.Intracomm, topology: Topology, barrier: NodeBarrier, flat: Algorithm, chunk_bytes: int
    ) -> None:
        from mpi4py import MPI

        self.topology, self._flat = topology, flat
        self._recorder: Recorder | None = None
        self._unheard = barrier
        self.barrier: Callable[[], None] = barrier
        self._rank, self._node = comm.rank, topology.node_of(comm.rank)
        self._ranks = topology.nodes[self._node]
        self._local = self._ranks.index(comm.rank)
        self._rail = self._local % topology.rails
        self._several = len(topology.nodes) > 1
        self._helped = len(self._ranks) > topology.rails
        self._work = Workspace()
        self._wire: MPIWire | None = None
        self._rail_comm: Any = None
        self._plans: dict[tuple[int, int], Plan] = {}
        self._read = 0  # bytes of other ranks' vectors
        if self._several:
            carries = self._local < topology.rails
            self._rail_comm = comm.Split(self._local if carries else MPI.UNDEFINED, self._node)
            if carries:
                self._wire = MPIWire(self._rail_comm, chunk_bytes)

    def trace(self, recorder: Recorder | None) -> None:
        """Tell ``recorder`` from now on when this rank waits and when it sends; None: nobody."""
        self._recorder = recorder
        self.barrier = self._unheard if recorder is None else recorder.timed(WAIT, self._unheard)

    def free(self) -> None:
        """Give the rails back; collective."""
        if self._wire is not None:
            self._rail_comm.Free()
            self._wire = None

    def meet(self, advance: Callable[..., tuple[int, bool]], nbytes: int) -> int:
        """See `Communicator.meet`; returns how many times the ranks have met."""
        met = self._unheard.within(advance)
        self._read += met * nbytes
        return met

    @property
    def turn(self) -> int:
        """A number that changes with every exchange; local."""
        return self._unheard.turn + (0 if self._wire is None else self._wire.messages_sent)

    @property
    def bytes_sent(self) -> int:
        """Bytes that this rank has sent in messages, or read of other ranks' vectors."""
        return self._read + (0 if self._wire is None else self._wire.bytes_sent)

    def plan(self, x: Array) -> Plan:
        """How a vector like ``x`` travels."""
        plan = self._plans.get((x.size, x.itemsize))
        if plan is None:
            plan = self._plans[x.size, x.itemsize] = self.topology.plan(x.size, x.itemsize)
        return plan

    def reduce_scatter_parts(
        self, x: Array, shared: Shared, owners: Ownership, half: HalfMessages | None = None, scale: float = 1.0
    ) -> Iterator[slice]:
        """Leave the sum of this rank's slice over all ranks, times ``scale``, in ``x``, and yield it by stretches.

        They are counted from the slice's start; on one node a stretch is in the cache when it is yielded.  Other ranks
        may still read ``x`` afterwards, until the next barrier of the node.  With ``half`` numbers travel as float16.
        """
        mine = owners.slices[self._rank]
        self.barrier()  # all vectors are written
        if not self._several:
            step = max(1, PART_BYTES // x.itemsize)
            for start in range(mine.start, mine.stop, step):
                part = slice(start, min(start + step, mine.stop))
                self._sum(shared, part, x[part], scale)
                yield slice(part.start - mine.start, part.stop - mine.start)
        else:
            plan = self.plan(x)
            column, carrier = self._sum_column(x, shared, plan)
            if self._wire is not None:
                travel = half or self._flat
                self._told(travel.reduce_scatter)(self._wire, column, plan.by_node[self._rail], self._work)
            if self._helped:
                self.barrier()
                if carrier is not x:
                    x[mine] = carrier[mine]
            if scale != 1:
                x[mine] *= x.dtype.type(scale)
            yield slice(0, mine.stop - mine.start)

    def allgather(self, x: Array, shared: Shared, owners: Ownership, half: Changes | None = None) -> None:
        """Let all ranks have every rank's slice: in the node's one vector, or in a copy of their own.

        With ``half`` changes travel, as float16.
        """
        plan = self.plan(x)
        self.barrier()  # the node's slices are written
        if shared.once:
            if self._several:
                self._gather_column(x, plan, half)
                self.barrier()
            return
        if self._several:
            for rank, local in zip(self._ranks, range(len(self._ranks)), strict=True):
                if rank != self._rank and self._wire is not None and local % self.topology.rails == self._rail:
                    x[owners.slices[rank]] = shared.row(local)[owners.slices[rank]]
            self._gather_column(x, plan, half)
            self.barrier()
            self._copy_columns(x, shared, plan)
        else:
            for local, rank in enumerate(self._ranks):
                if rank != self._rank:
                    x[owners.slices[rank]] = shared.row(local)[owners.slices[rank]]
        self.barrier()  # nobody reads x any more

    def allreduce(self, x: Array, shared: Shared) -> None:
        """Sum over all ranks in place, on every rank."""
        self.barrier()
        plan = self.plan(x)
        if not self._several:
            self._sum_everywhere(x, shared, plan.parts[self._rank])
            self.barrier()
            return
        column, _ = self._sum_column(x, shared, plan)
        if self._wire is not None:
            self._told(self._flat.allreduce)(self._wire, column, self._work)
        self.barrier()
        self._copy_columns(x, shared, plan)
        self.barrier()

    def allreduce_once(self, x: Array, shared: Shared, out: Array) -> None:
        """Sum over all ranks into ``out``, of which each node has one."""
        self.barrier()
        plan = self.plan(x)
        part = plan.parts[self._rank]
        self._sum(shared, part, out[part])
        if self._several:
            self.barrier()
            if self._wire is not None:
                self._told(self._flat.allreduce)(self._wire, out[plan.columns[self._rail]], self._work)
        self.barrier()

    def prepared(self, shared: Shared, once: Shared | None) -> Callable[[], None]:
        """`allreduce` of the one node's vectors ``shared``, or `allreduce_once` into ``once``, as one compiled call."""
        from . import kernels

        itemsize = shared.dtype.itemsize
        part = self.topology.plan(shared.size, itemsize).parts[self._rank]
        way = kernels.EVERYWHERE if once is None else kernels.STREAM if shared.long else kernels.SUM
        out = 0 if once is None else once.address + part.start * itemsize
        like = np.empty(0, shared.dtype)
        where = (way, shared.address, shared.stride, shared.rows, part.start, part.stop, out, like)
        around, nbytes = self._unheard.around, (shared.rows - 1) * (part.stop - part.start) * itemsize

        def call() -> None:
            around(kernels.sum_between, *where)
            self._read += nbytes

        return call

    # --- within the node

    def _sum(self, shared: Shared, part: slice, out: Array, scale: float = 1.0) -> None:
        """out ← scale · the node's sum of the elements ``part``."""
        from . import kernels

        where = (shared.address, shared.stride, shared.rows, part.start, part.stop, out)
        if scale == 1 and shared.long and not _overlaps(shared, out):
            kernels.stream_rows(*where)
        else:
            kernels.sum_rows(*where, out.dtype.type(scale))
        self._read += (shared.rows - 1) * out.nbytes

    def _sum_everywhere(self, x: Array, shared: Shared, part: slice) -> None:
        """Put the node's sum of the elements ``part`` in all its vectors."""
        from . import kernels

        kernels.sum_everywhere(shared.address, shared.stride, shared.rows, part.start, part.stop, x)
        self._read += (shared.rows - 1) * (part.stop - part.start) * x.itemsize

    # --- between nodes

    def _told(self, exchange: Callable[..., None] | None) -> Callable[..., None]:
        """``exchange`` among the ranks of the rail."""
        assert exchange is not None  # the algorithm of rails has slices
        return told(self._recorder, self._rail_comm.Barrier, exchange)

    def _sum_column(self, x: Array, shared: Shared, plan: Plan) -> tuple[Array, Array]:
        """The node's sum of this rail's column, and the vector of the rank that carries it, where the column lies."""
        carrier = x if self._local == self._rail else shared.row(self._rail)
        part = plan.parts[self._rank]
        self._sum(shared, part, carrier[part])
        self.barrier()
        return carrier[plan.columns[self._rail]], carrier

    def _gather_column(self, x: Array, plan: Plan, half: Changes | None) -> None:
        """Get the other nodes' slices of this rail's column into ``x``, which has this node's."""
        if self._wire is not None:
            column, slices = plan.columns[self._rail], plan.by_node[self._rail]
            travel = self._flat if half is None else half.within(column)
            self._told(travel.allgather)(self._wire, x[column], slices, self._work)

    def _copy_columns(self, x: Array, shared: Shared, plan: Plan) -> None:
        """Copy the columns from those of the node that carry them."""
        for rail, column in enumerate(plan.columns):
            if rail != self._local:
                x[column] = shared.row(rail)[column]


def _overlaps(shared: Shared, out: Array) -> bool:
    """Whether ``out`` lies within the vectors, or does not start where whole cache lines do."""
    start = out.__array_interface__["data"][0]
    return shared.address <= start < shared.address + shared.stride * shared.rows or start % 64 != 0
