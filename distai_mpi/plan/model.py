"""Seconds, bytes and memory of a run on ranks that it was not measured on.

Per step of B rows on K nodes of r ranks, with D copies of the model, each of T ranks:

    step = on_node(r, B / D / T) + split(T) + paths(B) + travel(K, r, B) - hidden

* on_node: what ranks of one node take, their exchange in its memory included.  It was measured with one rank and with
  all, in batches of several sizes, between which it is interpolated: linear in the rows of a rank, and in the ranks.
* split: sums of activations, where T > 1: two barriers a call, and the bytes read of other ranks.
* paths: what code for several nodes takes more than that for one, measured on nodes that are declared ones.
* travel: closed form of messages, see `network`.
* hidden: of the gradient's way what may overlap with the backward pass, two thirds of the arithmetic.

Of a solver the step is a pass over its rows, a gradient or a product with the curvature; its run is its setup and as
many passes as were measured or learned.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from ..comm.mesh import MeshShape
from .machine import Machine
from .measured import LEAST, Known, Measured, interpolate
from .workload import DENSE, SOLVER, Probe, Workload

WORTH = 0.95  # overlap is used where steps take at most this part of the time, as in `train.gradient.overlapped`
BACKWARD = 2 / 3  # of the arithmetic of a dense net: two of three products
ROOM = 0.9  # of a node's memory that ranks may take
DEVIATIONS = 2.0  # of the logarithm, that error bars reach: 95 of 100
ACTIVATIONS = 4  # matrices of a layer's outputs that a pass keeps: inputs, slopes, gradients by outputs, dropout


class Candidate(NamedTuple):
    """A way to run: nodes, ranks of each, their mesh, rows of a step, and what messages between nodes are of."""

    nodes: int
    per_node: int
    mesh: MeshShape
    batch: int
    wire: str = "float32"

    @property
    def ranks(self) -> int:
        """Of all nodes."""
        return self.nodes * self.per_node


@dataclass(frozen=True)
class Prediction:
    """What is predicted of a candidate.

    Attributes:
        epoch_seconds: of an epoch, or iteration of a solver.
        seconds: of the whole run, from loaded data and compiled kernels on; ``low`` and ``high`` bound it.
        communication: part of the time that goes into the exchange.
        efficiency: speed-up over one rank, for each rank.
        weak_speedup: of as many rows a rank, over one rank; see `perf.laws`.
        memory: bytes of a rank.
        rounds, bytes_moved: of an epoch or iteration: exchanges, and bytes between nodes.
        early: whether messages are to overlap with the backward pass.
    """

    candidate: Candidate
    epoch_seconds: float
    seconds: float
    low: float
    high: float
    communication: float
    efficiency: float
    weak_speedup: float
    memory: float
    rounds: float
    bytes_moved: float
    early: bool = False

    @property
    def speedup(self) -> float:
        """Over one rank, of the same work."""
        return self.efficiency * self.candidate.ranks

    @property
    def node_hours(self) -> float:
        """Node hours that the run may take, at ``high`` seconds."""
        return self.candidate.nodes * self.high / 3600


@dataclass(frozen=True)
class Learned:
    """What earlier runs tell.

    Attributes:
        shift, error: of the logarithm of measured over predicted seconds: its median and deviation.
        runs: how many there were.
        iterations: of a solver, the median; None: nothing is known.
        points: of each run ranks, nodes, and measured and predicted seconds of an epoch.
    """

    shift: float = 0.0
    error: float = 0.0
    runs: int = 0
    iterations: float | None = None
    points: tuple[tuple[int, int, float, float], ...] = field(default=())


class Step(NamedTuple):
    """A step: its seconds, those of the exchange in it, bytes between nodes, and whether messages are to overlap."""

    known: Known
    exchange: float
    bytes: float
    early: bool


@dataclass(frozen=True)
class Planner:
    """Predicts runs of what ``probe`` measured on ``machine``, which may be another one, as ``learned`` corrects it."""

    probe: Probe
    machine: Machine
    learned: Learned = Learned()

    @cached_property
    def measured(self) -> Measured:
        """The probe, as of the machine."""
        return Measured(self.probe, self.machine)

    @property
    def work(self) -> Workload:
        """What is planned."""
        return self.probe.workload

    def predict(self, candidate: Candidate) -> Prediction:
        """What the run will take.

        Raises:
            ConfigError: nothing tells how fast messages between nodes are.
        """
        solver, ratio = self.work.kind == SOLVER, math.exp(self.learned.shift)
        rows = self.work.rows if solver else candidate.batch
        step, one = self.step(candidate), self.measured.one
        passes, epochs, _ = self.solver_counts(candidate.ranks) if solver else (1.0, self.work.epochs, "")
        setup = self.measured.setup(candidate.nodes, candidate.per_node) if solver else 0.0
        steps = self.work.steps(candidate.batch) * passes
        epoch = step.known.seconds * steps * ratio
        seconds = setup * ratio + epoch * epochs
        bar = math.exp(DEVIATIONS * math.hypot(step.known.error, self.learned.error))
        several = self.measured.several or self.measured.full
        rounds = several.calls if several is not None and candidate.ranks > 1 else 0.0
        return Prediction(
            candidate,
            epoch_seconds=epoch,
            seconds=seconds,
            low=seconds / bar,
            high=seconds * bar,
            communication=min(1.0, max(0.0, step.exchange / step.known.seconds)),
            efficiency=one(rows).seconds / (step.known.seconds * candidate.ranks),
            weak_speedup=candidate.ranks * one(rows / candidate.ranks).seconds / step.known.seconds,
            memory=self.memory(candidate),
            rounds=rounds * steps,
            bytes_moved=step.bytes * steps,
            early=step.early,
        )

    def step(self, candidate: Candidate) -> Step:
        """Of a step, or of a pass of a solver."""
        work, measured, (nodes, per_node, mesh, batch, wire) = self.work, self.measured, candidate
        rows = (work.rows if work.kind == SOLVER else batch) / mesh.data / mesh.tensor
        inside = measured.on_node(measured.crowd(nodes, per_node), rows)
        split = self._split(candidate, rows * mesh.tensor, inside.seconds)
        paths = measured.paths(rows) if nodes > 1 else Known(0.0, 0.0)
        copies = max(1, nodes // max(1, mesh.tensor // per_node))  # nodes that share rows of the same part out
        sent = work.bytes * min(per_node, mesh.tensor) / mesh.tensor
        moved = measured.travel(copies, per_node, batch, sent, wire == "float16")
        local = max(inside.seconds + split + paths.seconds, LEAST * inside.seconds)
        seconds, early = local + moved.seconds, False
        hidden = min(BACKWARD * inside.seconds, moved.reduce * (1 - work.first_slot))
        dense = work.route(batch, nodes, candidate.ranks) == DENSE
        if work.overlaps and dense and nodes > 1 and seconds - hidden <= WORTH * seconds:
            seconds, early = seconds - hidden, True
        exchange = seconds - local + max(0.0, paths.seconds) + split + measured.exchange_seconds(per_node)
        return Step(Known(seconds, math.hypot(inside.error, paths.error / seconds)), exchange, moved.bytes, early)

    def _split(self, candidate: Candidate, rows: float, inside: float) -> float:
        """Seconds that a model which is split over ranks takes more than a part of the whole one's rows."""
        parts, seen = candidate.mesh.tensor, self.measured.split_seconds(rows)
        if parts == 1:
            return 0.0
        extra = self._activations(candidate.per_node, parts, rows, candidate.nodes)
        if seen is None or self.measured.split is None:
            return extra
        shape = self.measured.split
        alike = self.measured.on_node(shape.ranks, rows / shape.tensor).seconds
        alike += self._activations(shape.ranks, shape.tensor, rows, 1)
        return (inside + extra) * seen.seconds / alike - inside

    def _activations(self, per_node: int, parts: int, rows: float, nodes: int) -> float:
        """Seconds of the sums of activations of ``rows`` rows."""
        numbers, calls = self.work.split_numbers()
        nbytes = numbers * rows * self.work.itemsize * (parts - 1) / parts
        if parts <= per_node or nodes == 1:
            return calls * 2 * self.machine.barrier + nbytes / self.measured.core_bandwidth(per_node)
        link, hops = self.measured.link, math.ceil(math.log2(parts / per_node))
        return 2 * calls * hops * link.latency + nbytes / link.bandwidth * (nodes if link.shared else 1)

    # --- solvers

    def solver_counts(self, ranks: int = 1) -> tuple[float, float, str]:
        """Passes of an iteration, iterations, and where these are from."""
        shapes = self.measured.solved(ranks)
        passes = statistics.median(shape.passes / shape.iterations for shape in shapes)
        if self.learned.iterations is not None:
            return passes, self.learned.iterations, "as many as earlier runs made"
        ended = [shape.iterations for shape in shapes if shape.ended]
        if ended:
            return passes, float(statistics.median(ended)), "as many as the probe made"
        return passes, float(self.work.epochs), "the most there may be"

    # --- memory

    def memory(self, candidate: Candidate) -> float:
        """Bytes of a rank: what one rank was seen to take, with parameters, state and rows shared out."""
        alone = Candidate(1, 1, MeshShape(1, 1, 1), self.work.batch)
        base = max(0.0, self.measured.alone.peak_memory - self._holdings(alone))
        return base + self._holdings(candidate)

    def _holdings(self, candidate: Candidate) -> float:
        """Bytes of a rank's part of the node's two copies of the parameters, its gradient, state, rows, activations."""
        work, mesh, per_node = self.work, candidate.mesh, candidate.per_node
        own = work.bytes / mesh.tensor
        copies = 2 * own * min(mesh.tensor, per_node) / per_node
        state = work.states * own / mesh.data
        rows = work.rows * work.row_bytes / (per_node if work.replicated_rows else candidate.ranks)
        units = 0.0 if work.kind == SOLVER else sum(work.widths) / mesh.tensor
        return copies + own + state + rows + ACTIVATIONS * candidate.batch / mesh.data * units * work.itemsize

    def fits(self, candidate: Candidate) -> bool:
        """Whether a node has the memory."""
        return self.memory(candidate) * candidate.per_node <= ROOM * self.machine.memory

    # --- for charts

    def measured_speedups(self) -> list[tuple[int, float]]:
        """Ranks and speed-up over one rank of the probe's steps of the same work, and of earlier runs."""
        whole = self.work.rows if self.work.kind == SOLVER else self.work.batch
        one, found = interpolate(self.measured.alone.timings, whole).seconds, []
        for shape in self.probe.shapes:
            if shape.tensor == 1 and shape.timings:
                found.append((shape.ranks, one / interpolate(shape.timings, whole / shape.ranks).seconds))
        alone = [measured for ranks, _, measured, _ in self.learned.points if ranks == 1]
        if alone:
            base = statistics.median(alone)
            found += [(ranks, base / measured) for ranks, _, measured, _ in self.learned.points]
        return sorted(found)
