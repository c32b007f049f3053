"""Which ranks share a node, and how a vector is shared out when nodes come first."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..params import Ownership
from ..params.ownership import ALIGNMENT

if TYPE_CHECKING:
    from mpi4py import MPI


@dataclass(frozen=True)
class Node:
    """The ranks that share memory with this one: their numbers, and this one's index among them."""

    ranks: tuple[int, ...]
    rank: int

    @property
    def size(self) -> int:
        """How many ranks share the node."""
        return len(self.ranks)


@dataclass(frozen=True)
class Plan:
    """How a vector travels when it is summed within nodes first, and then between them.

    The vector is cut into as many *columns* as the smallest node has ranks.  Rank number j of every node, j counting
    from 0 on each, carries column j between the nodes: these ranks together are *rail* j.  The nodes share a column out
    evenly; what a node gets of it belongs to its carrier and those of its further ranks that help with the column.

    Attributes:
        owners: the slice of each rank.
        columns: the range of each rail.
        by_node: for each rail the slices of its column, one a node, counted from the column's start.
        parts: for each rank, the range that it sums over its node's vectors: a part of its column.
    """

    owners: Ownership
    columns: tuple[slice, ...]
    by_node: tuple[tuple[slice, ...], ...]
    parts: tuple[slice, ...]


@dataclass(frozen=True)
class Topology:
    """The ranks of each node, ascending; nodes in the order of their lowest ranks."""

    nodes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, node_of: Sequence[int]) -> Topology:
        """From a number for each rank that ranks of one node have in common."""
        nodes: dict[int, list[int]] = {}
        for rank, node in enumerate(node_of):
            nodes.setdefault(node, []).append(rank)
        return cls(tuple(tuple(ranks) for ranks in nodes.values()))

    @cached_property
    def size(self) -> int:
        """How many ranks there are."""
        return sum(map(len, self.nodes))

    @cached_property
    def rails(self) -> int:
        """How many ranks of each node send messages to other nodes: all of the smallest."""
        return min(map(len, self.nodes))

    def node_of(self, rank: int) -> int:
        """The number of the node of ``rank``."""
        return next(number for number, ranks in enumerate(self.nodes) if rank in ranks)

    @lru_cache(maxsize=64)  # noqa: B019 - topologies are as few as communicators, and small
    def plan(self, size: int, itemsize: int) -> Plan:
        """How a vector of ``size`` elements of ``itemsize`` bytes travels; cut at multiples of 64 bytes."""
        unit = max(1, ALIGNMENT // itemsize)
        owned, parts = [slice(0, 0)] * self.size, [slice(0, 0)] * self.size
        columns = cut(slice(0, size), self.rails, unit)
        by_node = []
        for rail, column in enumerate(columns):
            slices = cut(column, len(self.nodes), unit)
            by_node.append(tuple(slice(s.start - column.start, s.stop - column.start) for s in slices))
            for ranks, node_slice in zip(self.nodes, slices, strict=True):
                helpers = ranks[rail :: self.rails]
                for rank, mine, part in zip(
                    helpers, cut(node_slice, len(helpers), unit), cut(column, len(helpers), unit), strict=True
                ):
                    owned[rank], parts[rank] = mine, part
        return Plan(Ownership(size, tuple(owned)), tuple(columns), tuple(by_node), tuple(parts))


def split_by_node(comm: MPI.Intracomm, nodes: Sequence[int] | MPI.Intracomm | None) -> Any:
    """The ranks that share memory with this one, or those that ``nodes`` or DISTAI_NODES declare to; collective.

    ``nodes`` may be a communicator of these ranks already, which is handed over.

    Raises:
        ConfigError: the ``nodes``, numbers of ranks, do not add up, or ranks declare others; on all of them.
    """
    from mpi4py import MPI

    if isinstance(nodes, MPI.Intracomm):
        return nodes
    if nodes is None:
        for rank, text in enumerate(asked := comm.allgather(os.environ.get("DISTAI_NODES", ""))):
            if text != asked[0]:
                raise ConfigError(
                    f"DISTAI_NODES is {asked[0]!r} on rank 0 and {text!r} on rank {rank}: set it alike on all"
                )
        nodes = declared_nodes(comm.size)
    real = comm.Split_type(MPI.COMM_TYPE_SHARED, comm.rank)
    if nodes is None:
        return real
    if sum(nodes) != comm.size or min(nodes) < 1:
        raise ConfigError(f"nodes of {', '.join(map(str, nodes))} ranks are not {comm.size} ranks")
    of_ranks = [node for node, ranks in enumerate(nodes) for _ in range(ranks)]
    declared = real.Split(of_ranks[comm.rank], comm.rank)
    real.Free()
    return declared


def declared_nodes(ranks: int, env: Mapping[str, str] | None = None) -> list[int] | None:
    """Ranks of each node by the variable DISTAI_NODES: numbers that add up to ``ranks``, or one for all nodes.

    Lets one machine stand for several, where nodes' memory is shared as on one and messages go between them.  None
    where the variable is not set.

    Raises:
        ConfigError: it says something else.
    """
    text = (os.environ if env is None else env).get("DISTAI_NODES", "")
    if not text:
        return None
    words = text.split(",")
    if all(word.strip().isdigit() and int(word) > 0 for word in words):
        counts = [int(word) for word in words]
        if len(counts) == 1 and ranks % counts[0] == 0:
            return counts * (ranks // counts[0])
        if sum(counts) == ranks:
            return counts
    raise ConfigError(f"DISTAI_NODES={text}: give the ranks of each node, as 2,2, adding up to {ranks}")


def cut(span: slice, parts: int, unit: int) -> list[slice]:
    """Cut a range into ``parts`` nearly equal ones, at multiples of ``unit`` elements from its start."""
    length = span.stop - span.start
    units = -(-length // unit)
    cuts = [span.start + min(length, units * part // parts * unit) for part in range(parts + 1)]
    return [slice(a, b) for a, b in pairwise(cuts)]
