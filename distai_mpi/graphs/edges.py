"""Edges of a graph, of which each rank holds a part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DataError
from ..perf.machine import memory_left

Array = Any
MOST_NODES = 1 << 32  # whose numbers fit four bytes
SRC_NAMES, DST_NAMES, WEIGHT_NAMES = ("src", "source", "from"), ("dst", "target", "to"), ("weight",)  # of columns
NODES_ADVICE = "nodes are numbered by integers from 0 up"


@dataclass(frozen=True)
class EdgeList:
    """This rank's edges of a graph; the edges of all ranks together are the graph's.

    An edge that is there twice counts twice: weights are summed.  An edge may join a node to itself.

    Attributes:
        src, dst: the nodes that edges join, numbers from 0 to ``nodes`` - 1, uint32, shape (edges,); local.
        weight: of the edges, float32, finite and not negative, shape (edges,); local.  None: all are 1, on all ranks.
        nodes: of the graph, replicated; of some there need be no edge.
        name: what the user calls the graph, for messages.
    """

    src: Array
    dst: Array
    weight: Array | None
    nodes: int
    name: str = "edges"

    def __len__(self) -> int:
        return len(self.src)

    @property
    def weights(self) -> Array:
        """``weight``; empty where all are 1, as kernels take it."""
        return np.empty(0, np.float32) if self.weight is None else self.weight


def edges_from_local(
    src: Array,
    dst: Array,
    comm: Any,
    *,
    weight: Array | None = None,
    nodes: int | None = None,
    name: str = "edges",
) -> EdgeList:
    """The graph of the edges that the ranks hold, of which some may hold none; collective.

    Args:
        src, dst: the nodes that this rank's edges join, integers (or floats without fractions), shape (edges,).
        comm: the ranks, a `comm.Communicator`.
        weight: of the edges, finite and not negative, shape (edges,); held in float32.  None: all are 1.
        nodes: how many there are; None: one more than the largest number that any edge names.
        name: what the user calls the graph, for messages.

    Raises:
        DataError: numbers of nodes are negative, not whole or out of range, weights are not finite or negative,
            lengths differ, some ranks give weights and others do not, or there is no node; on all ranks.
    """
    with comm.agreed():
        src, dst = (_numbers(values, what, name) for values, what in ((src, "src"), (dst, "dst")))
        if len(src) != len(dst):
            raise DataError(f"{name}: {len(src):,} src and {len(dst):,} dst do not fit; every edge joins two nodes")
        weight = None if weight is None else _weights(weight, len(src), name)
    facts = comm.allgather_object((len(src), max(_largest(src), _largest(dst)), weight is not None))
    weighted = {has for edges, _, has in facts if edges}
    if len(weighted) > 1:
        raise DataError(f"{name}: some ranks give their edges weights, and others do not; give all edges one")
    if weighted == {True} and weight is None:
        weight = np.empty(0, np.float32)
    least = 1 + max(largest for _, largest, _ in facts)
    count = _node_count(nodes, least, name)
    return EdgeList(src.astype(np.uint32, copy=False), dst.astype(np.uint32, copy=False), weight, count, name)


def _node_count(nodes: int | None, least: int, name: str) -> int:
    count = least if nodes is None else int(nodes)
    if count < least:
        raise DataError(f"{name}: an edge names node {least - 1}, but there are {count:,} nodes, counted from 0")
    if count == 0:
        raise DataError(f"{name}: there are no edges, which would tell how many nodes there are; give their number")
    if count > MOST_NODES:
        raise DataError(f"{name}: node {count - 1} is named, but numbers of nodes must be below 2^32: renumber them")
    return count


def check_memory(nodes: int, replicated: int, sharded: int, name: str, comm: Any) -> None:
    """Refuse numbers of nodes that arrays of all nodes do not fit in memory for; collective.

    Args:
        nodes: how many the largest number says that there are.
        replicated, sharded: bytes a node that each rank holds, and that all ranks hold together.
        name: what the user calls the file, for the message.
        comm: the ranks, a `comm.Communicator`.

    Raises:
        DataError: on all ranks.
    """
    need = nodes * (replicated + sharded / comm.size) * comm.node.size
    if any(comm.allgather_object(need > memory_left())):
        raise DataError(
            f"{name}: node {nodes - 1} is named, and nodes from 0 up to it need {need / 2**30:,.1f} GiB of memory, more"
            " than is free: renumber the nodes without gaps"
        )


def _largest(numbers: Array) -> int:
    return int(numbers.max()) if len(numbers) else -1


def _numbers(values: Array, what: str, name: str) -> Array:
    """Numbers of nodes as integers, shape (edges,)."""
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "iuf":
        raise DataError(f"{name}: {what} of {array.dtype}, shape {array.shape}: {NODES_ADVICE}, in one axis")
    if array.dtype.kind == "f":
        bad = np.flatnonzero(~((array >= 0) & (array < 2.0**53) & (array == np.floor(array))))
        if bad.size:
            raise DataError(f"{name}: {what} holds {array[bad[0]]} in edge {bad[0]} (counted from 0); {NODES_ADVICE}")
        return array.astype(np.int64)
    if array.size and array.dtype.kind == "i" and array.min() < 0:
        where = int(np.argmax(array < 0))
        raise DataError(f"{name}: {what} holds {array[where]} in edge {where} (counted from 0); {NODES_ADVICE}")
    return np.ascontiguousarray(array)


def _weights(values: Array, edges: int, name: str) -> Array:
    array = np.ascontiguousarray(values, np.float32)
    if array.shape != (edges,):
        raise DataError(f"{name}: weight of shape {array.shape} does not fit {edges:,} edges; give one number an edge")
    bad = np.flatnonzero(~((array >= 0) & (array < np.inf)))
    if bad.size:
        raise DataError(
            f"{name}: weight is {array[bad[0]]} in edge {bad[0]} (counted from 0); weights are finite and at least 0"
        )
    return array


def check_labels(labels: Array, nodes: int, name: str) -> Array:
    """``labels`` of all nodes, codes of classes from 0 and -1 where there is none, as int64, shape (nodes,).

    Raises:
        DataError: they are no such codes; say it within `Ranks.agreed`.
    """
    array = np.asarray(labels)
    if array.shape != (nodes,) or array.dtype.kind not in "iu":
        raise DataError(
            f"{name}: labels of {array.dtype}, shape {array.shape}, do not fit {nodes:,} nodes; give each an integer,"
            " from 0 up, and -1 where there is no label"
        )
    if array.size and array.min() < -1:
        where = int(np.argmax(array < -1))
        raise DataError(f"{name}: the label of node {where} is {array[where]}; give -1 where there is no label")
    return array
