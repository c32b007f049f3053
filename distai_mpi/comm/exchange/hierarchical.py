"""Sums by shared memory within nodes and by messages between them.

Between nodes the rails of `topology.Plan` run one of the algorithms of `collectives`, so that a node of any number of
ranks sends 2 (K - 1) / K of the vector's bytes in an allreduce over K nodes.  The hierarchy is that of Karonis et al.
2000, "Exploiting hierarchy in parallel computer networks to optimize collective operation performance".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

from ...params import Ownership
from ..collectives import ALGORITHMS
from ..memory import Shared
from ..topology import Plan
from ..touched import Touched, agree
from ..tracing import traced
from ..vectors import Vectors
from ..wire import Array, MPIWire
from .base import scaled
from .messages import MessageExchange
from .node import NodeExchange


class HierarchicalExchange(NodeExchange):
    """Of vectors that the ranks of each node share, on several nodes; other vectors travel by messages.

    The rails are made at the first exchange.

    Args:
        vectors, messages, least: see `NodeExchange`.
    """

    name = "hierarchical"

    def __init__(self, vectors: Vectors, messages: MessageExchange, least: int = 0) -> None:
        super().__init__(vectors, messages, least)
        ranks, topology, nodes = self._ranks, self._topology, len(self._topology.nodes)
        self._node_number = topology.node_of(ranks.rank)
        self._work, self._rail_number = vectors.work, ranks.node.rank % topology.rails
        self._carries = ranks.node.rank < topology.rails  # the others help their node's carrier of the same rail
        self._helped = ranks.node.size > topology.rails
        self._between = ALGORITHMS["rabenseifner" if nodes & (nodes - 1) == 0 else "ring"]

    @cached_property
    def rail(self) -> MPIWire | None:
        """Messages between the ranks of this rail, one of each node; None on ranks that help; collective at first."""
        made = self._ranks.split(self._ranks.node.rank if self._carries else None, self._node_number)
        if made is None:
            return None
        wire = MPIWire(made, self._ranks.wire.chunk_bytes)
        self._ranks.wires.append(wire)
        return wire

    def free(self) -> None:
        """See `VectorExchange`."""
        wire = self.__dict__.pop("rail", None)
        if wire is not None:
            self._ranks.wires.remove(wire)
            wire.comm.Free()

    def has(self, x: Array) -> bool:
        """Whether the ranks of each node share ``x``; local."""
        return self._vectors.find(x) is not None

    def plan(self, x: Array) -> Plan:
        """How a vector like ``x`` travels."""
        return self._topology.plan(x.size, x.itemsize)

    def touched(self, marks: Array) -> Touched | None:
        """What each node touches of vectors like ``marks``, which it shares: where a rank's are not 0; collective.

        Positions in this rank's column; None on ranks that carry none.  The marks are overwritten.
        """
        shared, plan = self._vectors.find(marks), self.plan(marks)
        assert shared is not None
        self._ranks.synchronize_node()
        column, _ = self._sum_column(marks, shared, plan)
        found = None if self.rail is None else agree(self.rail, column, plan.by_node[self._rail_number])
        self._ranks.barrier()  # nobody reads the marks any more
        return found

    def _publish(self, x: Array, owners: Ownership, previous: Array | None) -> None:
        self._check_owners(x, owners)
        super()._publish(x, owners, previous)

    def _reduce(self, x: Array, owners: Ownership, scale: float) -> Iterator[slice]:
        self._check_owners(x, owners)
        return super()._reduce(x, owners, scale)

    def _check_owners(self, x: Array, owners: Ownership) -> None:
        if self._vectors.find(x) is not None and owners != self.plan(x).owners:
            raise ValueError("this algorithm needs the slices that ownership() gives for it")

    # --- of shared vectors

    def _reduce_shared(self, x: Array, shared: Shared, owners: Ownership, scale: float) -> Iterator[slice]:
        mine, plan = owners.slices[self._ranks.rank], self.plan(x)
        self._ranks.synchronize_node()  # all vectors are written
        column, carrier = self._sum_column(x, shared, plan)
        if self.rail is not None:
            self._traced(self._reduce_column)(column, plan.by_node[self._rail_number])
        if self._helped:
            self._ranks.synchronize_node()
            if carrier is not x:
                x[mine] = carrier[mine]
        yield scaled(x, mine, scale)

    def _publish_shared(self, x: Array, shared: Shared, owners: Ownership, previous: Array | None) -> None:
        plan, ranks = self.plan(x), self._ranks
        ranks.synchronize_node()  # the node's slices are written
        if not shared.one_copy and self.rail is not None:
            for local, rank in enumerate(ranks.node.ranks):
                if rank != ranks.rank and local % self._topology.rails == self._rail_number:
                    x[owners.slices[rank]] = shared.row(local)[owners.slices[rank]]
        if self.rail is not None:
            column = plan.columns[self._rail_number]
            before = None if previous is None else previous[column]
            self._traced(self._publish_column)(x[column], plan.by_node[self._rail_number], before)
        ranks.synchronize_node()
        if not shared.one_copy:
            self._copy_columns(x, shared, plan)
            ranks.synchronize_node()  # nobody reads x any more

    def _allreduce_shared(self, x: Array, shared: Shared) -> None:
        self._ranks.synchronize_node()
        plan = self.plan(x)
        column, _ = self._sum_column(x, shared, plan)
        self._allreduce_column(column)
        self._ranks.synchronize_node()
        self._copy_columns(x, shared, plan)
        self._ranks.synchronize_node()

    def _allreduce_once(self, x: Array, shared: Shared, out: Array) -> None:
        self._ranks.synchronize_node()
        plan = self.plan(x)
        part = plan.parts[self._ranks.rank]
        self._sum(shared, part, out[part])
        self._ranks.synchronize_node()
        self._allreduce_column(out[plan.columns[self._rail_number]])
        self._ranks.synchronize_node()

    def _prepare(self, shared: Shared, result: Shared | None) -> None:
        """See `NodeExchange`: messages are not compiled."""

    # --- between nodes

    def _traced(self, exchange: Callable[..., None]) -> Callable[..., None]:
        """``exchange`` among the ranks of the rail."""
        assert self.rail is not None
        return traced(self._ranks.recorder, self.rail.comm.Barrier, exchange)

    def _reduce_column(self, column: Array, slices: Any) -> None:
        """Leave the sum of this node's slice of the rail's ``column`` there."""
        self._between.reduce_scatter(self.rail, column, slices, self._work)  # type: ignore[misc]

    def _publish_column(self, column: Array, slices: Any, previous: Array | None) -> None:
        """Get the other nodes' slices of the rail's ``column``, which has this node's."""
        self._between.allgather(self.rail, column, slices, self._work)  # type: ignore[misc]

    def _allreduce_column(self, column: Array) -> None:
        if self.rail is not None:
            self._traced(self._between.allreduce)(self.rail, column, self._work)

    def _sum_column(self, x: Array, shared: Shared, plan: Plan) -> tuple[Array, Array]:
        """The node's sum of this rail's column, and the vector of the rank that carries it, where the column lies."""
        carrier = x if self._carries else shared.row(self._rail_number)
        part = plan.parts[self._ranks.rank]
        self._sum(shared, part, carrier[part])
        self._ranks.synchronize_node()
        return carrier[plan.columns[self._rail_number]], carrier

    def _copy_columns(self, x: Array, shared: Shared, plan: Plan) -> None:
        """Copy the columns from those of the node that carry them."""
        for rail, column in enumerate(plan.columns):
            if rail != self._ranks.node.rank:
                x[column] = shared.row(rail)[column]
