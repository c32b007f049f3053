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
from typing import NamedTuple

from ..comm.mesh import MeshShape
from ..errors import ConfigError
from .machine import Link, Machine
from .network import Nodes, Travel, setup_travel, travel
from .workload import DENSE, SOLVER, Probe, Shape, Timing

WORTH = 0.95  # overlap is used where steps take at most this part of the time, as in `train.gradient.overlapped`
BACKWARD = 2 / 3  # of the arithmetic of a dense net: two of three products
UNSEEN = 0.15  # deviation of the logarithm that is taken where nothing alike was measured
ROOM = 0.9  # of a node's memory that ranks may take
DEVIATIONS = 2.0  # of the logarithm, that error bars reach: 95 of 100


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
        node_hours: at ``high`` seconds.
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
    def node_hours(self) -> float:
        """Node hours that the run may take."""
        return self.candidate.nodes * self.high / 3600


class Known(NamedTuple):
    """Seconds, and by how much their logarithm may be off (one deviation)."""

    seconds: float
    error: float


@dataclass(frozen=True)
class Learned:
    """What earlier runs tell: the logarithm of measured over predicted seconds, its deviation, and a solver's passes.

    ``runs``: how many; ``points``: of each its ranks, nodes, and measured and predicted seconds of an epoch.
    """

    shift: float = 0.0
    error: float = 0.0
    runs: int = 0
    iterations: float | None = None
    points: tuple[tuple[int, int, float, float], ...] = field(default=())


@dataclass(frozen=True)
class Planner:
    """Predicts runs of what ``probe`` measured on ``machine``, which may be another one."""

    probe: Probe
    machine: Machine
    learned: Learned = Learned()

    def predict(self, candidate: Candidate) -> Prediction:
        """What the run will take.

        Raises:
            ConfigError: nothing tells how fast messages between nodes are.
        """
        work, batch = self.probe.workload, candidate.batch
        step, early, exchange, moved = self._step(candidate)
        alone = self._one(batch / candidate.mesh.tensor if work.kind != SOLVER else work.rows)
        steps, setup, passes = work.steps(batch), 0.0, 1.0
        if work.kind == SOLVER:
            passes, setup = self._passes(), self._setup(candidate)
        epochs = self._iterations() if work.kind == SOLVER else work.epochs
        ratio = math.exp(self.learned.shift)
        epoch = step.seconds * steps * passes * ratio
        seconds = setup * ratio + epoch * epochs
        bar = math.exp(DEVIATIONS * math.hypot(step.error, self.learned.error))
        whole = self._one(batch if work.kind != SOLVER else work.rows).seconds
        weak = self._one(batch / candidate.ranks if work.kind != SOLVER else work.rows / candidate.ranks).seconds
        several = self._several()
        counted = several.calls if several is not None else 0.0
        return Prediction(
            candidate,
            epoch_seconds=epoch,
            seconds=seconds,
            low=seconds / bar,
            high=seconds * bar,
            communication=min(1.0, max(0.0, exchange / step.seconds)),
            efficiency=whole / (step.seconds * candidate.ranks),
            weak_speedup=candidate.ranks * min(weak, alone.seconds) / step.seconds,
            memory=self.memory(candidate),
            rounds=0.0 if candidate.ranks == 1 else counted * steps * passes,
            bytes_moved=moved * steps * passes,
            early=early,
        )

    def _step(self, candidate: Candidate) -> tuple[Known, bool, float, float]:
        """Seconds of a step; whether to overlap; seconds of the exchange in it; bytes between nodes."""
        work, (nodes, per_node, mesh, batch, wire) = self.probe.workload, candidate
        rows = (work.rows if work.kind == SOLVER else batch) / mesh.data / mesh.tensor
        busy = min(self.machine.cores, candidate.ranks) if self.machine.emulated else per_node
        inside = self._on_node(busy, rows)
        split = self._split(candidate, rows * mesh.tensor, inside.seconds)
        paths = self._paths(rows) if nodes > 1 else Known(0.0, 0.0)
        copies = max(1, nodes // max(1, mesh.tensor // per_node))  # nodes that share rows of the same part out
        sent = work.bytes * min(per_node, mesh.tensor) / mesh.tensor
        moved = self._travel(copies, per_node, batch, sent, wire == "float16")
        fixed = max(inside.seconds + split + paths.seconds, 0.5 * inside.seconds)
        seconds = fixed + moved.seconds
        hidden, early = min(BACKWARD * inside.seconds, moved.reduce * (1 - work.first_slot)), False
        dense = work.route(batch, nodes, candidate.ranks) == DENSE
        if work.overlaps and dense and nodes > 1 and seconds - hidden <= WORTH * seconds:
            seconds, early = seconds - hidden, True
        local = self._exchange_on_node(per_node) if per_node > 1 else 0.0
        exchange = moved.seconds + max(0.0, paths.seconds) + split + local - (hidden if early else 0.0)
        error = math.hypot(inside.error, paths.error / seconds)
        return Known(seconds, error), early, exchange, moved.bytes

    # --- what was measured

    def shape(self, ranks: int | None, nodes: int = 1, tensor: int = 1) -> Shape | None:
        """The measured shape; ``ranks`` None: of the most ranks, but more than one; 0 ``nodes``: of several."""
        found = [
            shape
            for shape in self.probe.shapes
            if shape.timings
            and (shape.nodes > 1 if nodes == 0 else shape.nodes == nodes)
            and shape.tensor == tensor
            and (shape.ranks > 1 if ranks is None else shape.ranks == ranks)
        ]
        return max(found, key=lambda shape: shape.ranks, default=None)

    def _several(self) -> Shape | None:
        return self.shape(None, 0) or self.shape(None)

    @property
    def factor(self) -> float:
        """Seconds of the target machine for one of the probed machine: by flops of nets, else by the memory's speed."""
        here = Machine.from_dict(self.probe.machine)
        if self.probe.workload.dense:
            return here.flops / self.machine.flops
        return (here.bandwidth / here.cores) / (self.machine.bandwidth / self.machine.cores)

    def _one(self, rows: float) -> Known:
        shape = self.shape(1)
        assert shape is not None
        found = interpolate(shape.timings, rows)
        return Known(found.seconds * self.factor, found.error)

    def _on_node(self, ranks: int, rows: float) -> Known:
        """Seconds of ``ranks`` ranks of one node, each with so many ``rows`` of the whole model."""
        one, full = self._one(rows), self.shape(None)
        if ranks == 1:
            return one
        if full is None:
            return Known(one.seconds, math.hypot(one.error, UNSEEN))
        all_of = interpolate(full.timings, rows)
        many = Known(all_of.seconds * self.factor, all_of.error)
        if ranks <= full.ranks:
            part = (ranks - 1) / (full.ranks - 1)
            return Known((1 - part) * one.seconds + part * many.seconds, max(one.error, many.error))
        more = self._vector_seconds(ranks) - self._vector_seconds(full.ranks)
        barriers = 2 * self.machine.barrier * (math.log2(ranks) / math.log2(full.ranks) - 1)
        seconds = max(many.seconds + more + barriers, 0.5 * many.seconds)
        unseen = abs(math.log(many.seconds / one.seconds)) * (1 - full.ranks / ranks)  # contention of further ranks
        return Known(seconds, math.hypot(many.error, unseen))

    def _vector_seconds(self, ranks: int) -> float:
        """Seconds in which a rank of a node reads and writes its slices of gradient, parameters and state."""
        work = self.probe.workload
        if work.kind == SOLVER or work.route(work.batch, 1, ranks) != DENSE:
            return 0.0
        moved = work.bytes * (1 + (3 + 2 * work.states) / ranks)
        return moved / (self.machine.bandwidth / min(ranks, self.machine.cores)) / work.sync_every

    def _exchange_on_node(self, ranks: int) -> float:
        """Seconds of the exchange in a node's memory: two barriers, and the others' gradients are read."""
        work = self.probe.workload
        rate = self.machine.bandwidth / min(ranks, self.machine.cores)
        return (2 * self.machine.barrier + work.bytes * (ranks - 1) / ranks / rate) / work.sync_every

    def _split(self, candidate: Candidate, rows: float, inside: float) -> float:
        """Seconds that a model which is split over ranks takes more than a part of the whole one's rows."""
        parts = candidate.mesh.tensor
        if parts == 1:
            return 0.0
        extra = self._activations(candidate.per_node, parts, rows, candidate.nodes)
        measured = self.shape(None, tensor=self.measured_parts)
        if measured is None:
            return extra
        seen = interpolate(measured.timings, rows).seconds * self.factor
        alike = self._on_node(measured.ranks, rows / measured.tensor).seconds
        alike += self._activations(measured.ranks, measured.tensor, rows, 1)
        return (inside + extra) * seen / alike - inside

    @property
    def measured_parts(self) -> int:
        """Ranks of the split model that was measured; 1: none was."""
        return max((shape.tensor for shape in self.probe.shapes if shape.timings), default=1)

    def _activations(self, per_node: int, parts: int, rows: float, nodes: int) -> float:
        """Seconds of the sums of activations of ``rows`` rows."""
        numbers, calls = self.probe.workload.split_numbers()
        nbytes = numbers * rows * self.probe.workload.itemsize * (parts - 1) / parts
        if parts <= per_node or nodes == 1:
            rate = self.machine.bandwidth / min(per_node, self.machine.cores)
            return calls * 2 * self.machine.barrier + nbytes / rate
        link = self.link()
        hops = math.ceil(math.log2(parts / per_node))
        return 2 * calls * hops * link.latency + nbytes / link.bandwidth * (nodes if link.shared else 1)

    # --- between nodes

    def link(self) -> Link:
        if self.machine.network is None:
            raise ConfigError(
                "--max-nodes: nothing tells how fast messages between nodes are: give --machine FILE.toml with a table"
                " [network], or measure it on two nodes by 'srun -N 2 ... distai-mpi bench probe --json FILE' and give"
                " --probe FILE"
            )
        return self.machine.network

    def _travel(self, nodes: int, per_node: int, batch: int, nbytes: float, compressed: bool) -> Travel:
        if nodes == 1:
            return Travel()
        group = Nodes(nodes, per_node, self.link(), self.machine.bandwidth / self.machine.cores / 3)
        work, several = self.probe.workload, self.shape(None, 0)
        return travel(work, batch, group, nbytes=nbytes, compressed=compressed or work.compressed, solved=several)

    def _paths(self, rows: float) -> Known:
        """Seconds that the code for several nodes takes more, at ``rows`` rows a rank, and their error in seconds."""
        shape, link = self.shape(None, 0), self._measured_link()
        if shape is None or link is None:
            return Known(0.0, UNSEEN * self._one(rows).seconds)
        here = Machine.from_dict(self.probe.machine)
        per_node = shape.ranks // shape.nodes
        work = self.probe.workload
        batch = work.batch if work.kind == SOLVER else max(1, round(rows * shape.ranks))
        group = Nodes(shape.nodes, per_node, link, here.bandwidth / here.cores / 3)
        went = travel(work, batch, group, nbytes=work.bytes, compressed=work.compressed, solved=shape)
        busy = min(here.cores, shape.ranks) if shape.local or here.emulated else per_node
        seen = interpolate(shape.timings, rows)
        extra = seen.seconds * self.factor - self._on_node(busy, rows).seconds - went.seconds
        return Known(extra, seen.error * seen.seconds)

    def _measured_link(self) -> Link | None:
        """What the measured shape of several nodes sent its messages by."""
        shape = self.shape(None, 0)
        if shape is None:
            return None
        if shape.local:
            return None if self.probe.messages is None else Link(**self.probe.messages)
        return Machine.from_dict(self.probe.machine).network

    # --- solvers

    def _passes(self) -> float:
        """Passes of an iteration."""
        shapes = [shape for shape in self.probe.shapes if shape.iterations]
        return statistics.median(shape.passes / shape.iterations for shape in shapes)

    def _iterations(self) -> float:
        """Those of earlier runs, else of the probe where it came to the end, else the most there may be."""
        if self.learned.iterations is not None:
            return self.learned.iterations
        ended = [shape.iterations for shape in self.probe.shapes if shape.ended]
        return float(statistics.median(ended)) if ended else float(self.probe.workload.epochs)

    def solver_counts(self) -> tuple[float, float, str]:
        """Passes of an iteration, iterations, and where these are from."""
        how = (
            "as many as the probe made" if any(shape.ended for shape in self.probe.shapes) else "the most there may be"
        )
        how = "as many as earlier runs made" if self.learned.iterations is not None else how
        return self._passes(), self._iterations(), how

    def measured_speedups(self) -> list[tuple[int, float]]:
        """Ranks and speed-up over one rank of the probe's steps of the same work, and of earlier runs."""
        work = self.probe.workload
        whole = work.rows if work.kind == SOLVER else work.batch
        one = self._one(whole).seconds
        found = []
        for shape in self.probe.shapes:
            if shape.tensor == 1 and shape.timings:
                rows = whole / shape.ranks
                found.append((shape.ranks, one / (interpolate(shape.timings, rows).seconds * self.factor)))
        alone = [measured for ranks, _, measured, _ in self.learned.points if ranks == 1]
        if alone:
            base = statistics.median(alone)
            found += [(ranks, base / measured) for ranks, _, measured, _ in self.learned.points]
        return sorted(found)

    def _setup(self, candidate: Candidate) -> float:
        """Seconds of a solver's start: what one rank takes, shared out as was measured, and its messages."""
        one, full, several = self.shape(1), self.shape(None), self.shape(None, 0)
        assert one is not None
        setup, ranks = one.setup, candidate.ranks
        if full is not None and ranks > 1:  # a part p that is shared out: t(n) = t(1) (1 - p + p / n)
            shared = min(1.0, max(0.0, (1 - full.setup / max(one.setup, 1e-12)) / (1 - 1 / full.ranks)))
            setup = full.setup if ranks == full.ranks else one.setup * (1 - shared + shared / ranks)
        setup *= self.factor
        if candidate.nodes > 1 and several is not None:
            sum_rate = self.machine.bandwidth / self.machine.cores / 3
            setup += setup_travel(several, Nodes(candidate.nodes, candidate.per_node, self.link(), sum_rate)).seconds
        return setup

    # --- memory

    def memory(self, candidate: Candidate) -> float:
        """Bytes of a rank: what one rank was seen to take, with parameters, state and rows shared out."""
        one = self.shape(1)
        alone = Candidate(1, 1, MeshShape(1, 1, 1), self.probe.workload.batch)
        base = max(0.0, (one.peak_memory if one else 0) - self._holdings(alone))
        return base + self._holdings(candidate)

    def _holdings(self, candidate: Candidate) -> float:
        """Bytes of a rank's part of the node's two copies of the parameters, its gradient, state, rows, activations."""
        work, mesh, per_node = self.probe.workload, candidate.mesh, candidate.per_node
        own = work.bytes / mesh.tensor
        copies = 2 * own * min(mesh.tensor, per_node) / per_node
        state = work.states * own / mesh.data
        rows = work.rows * work.row_bytes / (per_node if work.replicated_rows else candidate.ranks)
        units = sum(work.widths) / mesh.tensor
        act = 0.0 if work.kind == SOLVER else 4 * candidate.batch / mesh.data * units * work.itemsize
        return copies + own + state + rows + act

    def fits(self, candidate: Candidate) -> bool:
        """Whether a node has the memory."""
        return self.memory(candidate) * candidate.per_node <= ROOM * self.machine.memory


def interpolate(timings: tuple[Timing, ...], rows: float) -> Known:
    """Seconds at ``rows`` rows by lines between medians, the last of which go on; never less than a share of them."""
    points = [(timing.rows, statistics.median(timing.seconds)) for timing in timings]
    error = max(_deviation(timing.seconds) for timing in timings)
    if len(points) == 1:
        return Known(points[0][1] * rows / points[0][0], error)
    above = next((i for i, (x, _) in enumerate(points) if x >= rows), len(points) - 1)
    (x0, t0), (x1, t1) = points[max(0, above - 1)], points[max(1, above)]
    slope = max(0.0, (t1 - t0) / (x1 - x0))
    return Known(max(t0 + slope * (rows - x0), 0.25 * min(t0, t1) if rows < x0 else 0.0), error)


def _deviation(seconds: tuple[float, ...]) -> float:
    """Of the logarithms of several timings; of one alone nothing is known, and 10 % are taken."""
    if len(seconds) < 2:
        return 0.1
    return statistics.stdev(math.log(max(s, 1e-12)) for s in seconds)
