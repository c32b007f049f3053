"""Seconds that messages between nodes take in a step, by the closed forms of `perf.costs`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..perf import costs
from .machine import Link
from .workload import AVERAGE, FACTORS, PAIRS, SOLVER, Shape, Workload

INDEX_BYTES = 4  # of the index in an index-value pair


@dataclass(frozen=True)
class Travel:
    """What travels between nodes in a step, or in a pass of a solver.

    Attributes:
        reduce: seconds until sums are where they belong, which may overlap with the backward pass.
        publish: seconds until all nodes have the new parameters.
        bytes: that all nodes send.
    """

    reduce: float = 0.0
    publish: float = 0.0
    bytes: float = 0.0

    @property
    def seconds(self) -> float:
        """Of both together."""
        return self.reduce + self.publish

    def __add__(self, other: Travel) -> Travel:
        return Travel(self.reduce + other.reduce, self.publish + other.publish, self.bytes + other.bytes)

    def times(self, factor: float) -> Travel:
        """``factor`` times as much."""
        return Travel(self.reduce * factor, self.publish * factor, self.bytes * factor)


@dataclass(frozen=True)
class Nodes:
    """Nodes that exchange: how many, with how many ranks each, by which link.

    ``sum_rate``: bytes a second that one of the ranks sums.
    """

    count: int
    ranks: int
    link: Link
    sum_rate: float

    def slices(self, collective: str, nbytes: float) -> tuple[float, float]:
        """Seconds of a ``collective`` of a vector of which each rail carries a column; bytes that all nodes send.

        The rails of `comm.topology.Plan` work side by side, and share their node's bandwidth.
        """
        algorithm = "rabenseifner" if self.count & (self.count - 1) == 0 else "ring"
        path = costs.path(collective, algorithm, self.count, nbytes / self.ranks)
        seconds = path.seconds(self.link.latency, self.bandwidth / self.ranks, self.sum_rate)
        return seconds, path.sent * self.ranks * self.count

    @property
    def bandwidth(self) -> float:
        """Bytes a second that each node sends while all of them do."""
        return self.link.bandwidth / (self.count if self.link.shared else 1)


def travel(
    work: Workload, batch: int, nodes: Nodes, *, nbytes: float, compressed: bool, solved: Shape | None
) -> Travel:
    """What travels in a step of ``batch`` rows whose gradient has ``nbytes`` bytes; nothing on one node.

    ``solved`` is a measured shape of several nodes, of whose passes the calls and bytes are known.
    """
    if nodes.count == 1:
        return Travel()
    if work.kind == SOLVER:
        return _counted(solved.calls, solved.bytes, solved, nodes) if solved is not None else Travel()
    route = work.route(batch, nodes.count, nodes.count * nodes.ranks)
    if route == PAIRS:
        return _pairs(work, batch, nodes)
    up, sent_up = nodes.slices("allgather", nbytes * (0.5 if compressed else 1.0))
    if route == FACTORS:
        factors = batch * work.factor_size * work.itemsize
        path = costs.path("allgather", "ring", nodes.count, factors)
        down, sent_down = path.seconds(nodes.link.latency, nodes.bandwidth, math.inf), path.sent * nodes.count
    else:
        down, sent_down = nodes.slices("reduce_scatter", nbytes * (0.5 if compressed else 1.0))
    whole = Travel(down, up, sent_up + sent_down)
    if work.kind != AVERAGE:
        return whole
    return (whole + _small_sum(nodes)).times(1 / work.sync_every)


def setup_travel(solved: Shape, nodes: Nodes) -> Travel:
    """What travels before and besides a solver's passes."""
    return Travel() if nodes.count == 1 else _counted(solved.setup_calls, solved.setup_bytes, solved, nodes)


def _small_sum(nodes: Nodes) -> Travel:
    return Travel(reduce=math.ceil(math.log2(nodes.count)) * nodes.link.latency)


def _counted(calls: float, nbytes: float, solved: Shape, nodes: Nodes) -> Travel:
    """So many ``calls`` of ``nbytes`` in all, counted on the nodes of ``solved``, among other nodes.

    Of N ranks a rank sends (N - 1)/N of a reduced vector and as much of a gathered one: by this bytes are scaled.
    """
    here = (solved.nodes - 1) / solved.nodes
    of_node = nbytes / solved.nodes * ((nodes.count - 1) / nodes.count) / here
    seconds = calls * math.ceil(math.log2(nodes.count)) * nodes.link.latency + of_node / nodes.bandwidth
    return Travel(reduce=seconds, bytes=of_node * nodes.count)


def _pairs(work: Workload, batch: int, nodes: Nodes) -> Travel:
    """Index-value pairs to the owners of slices, or slices where these are shorter, and parameters back.

    Renggli et al. 2019, section 5.3, as `perf.costs.pairs_sent` counts messages; rows are taken to meet columns evenly.
    """
    ranks, count = nodes.ranks * nodes.count, nodes.count
    pair, piece = INDEX_BYTES + work.outputs * work.itemsize, work.bytes // ranks
    pairs = max(1, round(batch / ranks * work.entries / ranks))  # of a rank in a slice
    sent = costs.pairs_sent([[pairs] * ranks] * ranks, [piece] * ranks, pair)[0]
    outside = (ranks - nodes.ranks) / (ranks - 1)  # of what is sent, to other nodes
    down = sent.bytes * outside * nodes.ranks
    changed = min(work.bytes / ranks, pairs * ranks * pair)  # of a slice, for every node
    up = changed * nodes.ranks * (count - 1)
    messages = sent.messages * outside
    return Travel(
        reduce=messages * nodes.link.latency + down / nodes.bandwidth,
        publish=(count - 1) * nodes.link.latency + up / nodes.bandwidth,
        bytes=(down + up) * count,
    )
