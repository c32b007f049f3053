"""What a probe tells of one node, of the code for several, and of solvers; as of the machine that is planned for."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from ..errors import ConfigError
from ..settings import called
from .machine import Link, Machine
from .network import Nodes, Travel, setup_travel, travel
from .workload import DENSE, SOLVER, Probe, Shape, Timing, Workload

UNSEEN = 0.15  # deviation of the logarithm that is taken where nothing alike was measured
ALONE = 0.1  # likewise, of a timing that has nothing to be compared with
LEAST = 0.25  # of the seconds of the fewest rows that were timed, for still fewer


class Known(NamedTuple):
    """Seconds, and by how much their logarithm may be off (one deviation)."""

    seconds: float
    error: float


def interpolate(timings: tuple[Timing, ...], rows: float) -> Known:
    """Seconds at ``rows`` rows, on lines between the medians of ``timings``, the last of which go on."""
    points = [(timing.rows, statistics.median(timing.seconds)) for timing in timings]
    error = max(_deviation(timing.seconds) for timing in timings)
    if len(points) == 1:
        return Known(points[0][1] * rows / points[0][0], error)
    above = next((i for i, (x, _) in enumerate(points) if x >= rows), len(points) - 1)
    (x0, t0), (x1, t1) = points[max(0, above - 1)], points[max(1, above)]
    seconds = t0 + max(0.0, (t1 - t0) / (x1 - x0)) * (rows - x0)
    return Known(max(seconds, LEAST * t0) if rows < x0 else seconds, error)


def _deviation(seconds: tuple[float, ...]) -> float:
    """Of the logarithms of several timings."""
    return statistics.stdev(math.log(s) for s in seconds) if len(seconds) > 1 else ALONE


@dataclass(frozen=True)
class Measured:
    """``probe`` as of ``machine``, whose cores may have another speed."""

    probe: Probe
    machine: Machine

    @property
    def work(self) -> Workload:
        """What was measured."""
        return self.probe.workload

    @cached_property
    def here(self) -> Machine:
        """The machine that was probed."""
        return Machine.from_dict(self.probe.machine)

    @property
    def factor(self) -> float:
        """Seconds of the target machine for one of the probed machine: by flops of nets, else by the memory's speed."""
        if self.work.dense:
            return self.here.flops / self.machine.flops
        return (self.here.bandwidth / self.here.cores) / (self.machine.bandwidth / self.machine.cores)

    # --- arrangements

    def _most(self, shapes: list[Shape]) -> Shape | None:
        return max((shape for shape in shapes if shape.timings), key=lambda shape: shape.ranks, default=None)

    @cached_property
    def alone(self) -> Shape:
        """Of one rank; `Probe.check` sees to it that there is one."""
        return self.probe.shapes[0]

    @cached_property
    def full(self) -> Shape | None:
        """Of most ranks of one node, more than one."""
        return self._most([one for one in self.probe.shapes if one.ranks > 1 and one.nodes == 1 and one.tensor == 1])

    @cached_property
    def several(self) -> Shape | None:
        """Of several nodes."""
        return self._most([shape for shape in self.probe.shapes if shape.nodes > 1])

    @cached_property
    def split(self) -> Shape | None:
        """Of a model that is split over ranks."""
        return self._most([shape for shape in self.probe.shapes if shape.tensor > 1])

    # --- one node

    def one(self, rows: float) -> Known:
        """Seconds of a step, or pass, of one rank with so many ``rows``."""
        return self._of(self.alone, rows)

    def _of(self, shape: Shape, rows: float) -> Known:
        found = interpolate(shape.timings, rows)
        return Known(found.seconds * self.factor, found.error)

    def on_node(self, ranks: int, rows: float) -> Known:
        """Seconds of ``ranks`` ranks of one node, each with so many ``rows`` of the whole model."""
        one, full = self.one(rows), self.full
        if ranks == 1:
            return one
        if full is None:
            return Known(one.seconds, math.hypot(one.error, UNSEEN))
        many = self._of(full, rows)
        if ranks <= full.ranks:
            part = (ranks - 1) / (full.ranks - 1)
            return Known((1 - part) * one.seconds + part * many.seconds, max(one.error, many.error))
        more = self.vector_seconds(ranks) - self.vector_seconds(full.ranks)
        barriers = 2 * self.machine.barrier * (math.log2(ranks) / math.log2(full.ranks) - 1)
        unseen = abs(math.log(many.seconds / one.seconds)) * (1 - full.ranks / ranks)  # contention of further ranks
        seconds = max(many.seconds + more + barriers, LEAST * many.seconds)
        return Known(seconds, math.hypot(many.error, unseen))

    def core_bandwidth(self, busy: int) -> float:
        """Bytes a second that a rank reads and writes while ``busy`` ranks of its node do."""
        return self.machine.bandwidth / min(busy, self.machine.cores)

    def vector_seconds(self, ranks: int) -> float:
        """Seconds in which a rank of a node reads and writes its slices of gradient, parameters and state."""
        if self.work.kind == SOLVER or self.work.route(self.work.batch, 1, ranks) != DENSE:
            return 0.0
        moved = self.work.bytes * (1 + (3 + 2 * self.work.states) / ranks)
        return moved / self.core_bandwidth(ranks) / self.work.sync_every

    def exchange_seconds(self, ranks: int) -> float:
        """Seconds of the exchange in a node's memory: two barriers, and the others' gradients are read."""
        if ranks == 1:
            return 0.0
        read = self.work.bytes * (ranks - 1) / ranks
        return (2 * self.machine.barrier + read / self.core_bandwidth(ranks)) / self.work.sync_every

    def split_seconds(self, rows: float) -> Known | None:
        """Seconds of the split model that was measured, with ``rows`` rows of its copy; None: none was."""
        return None if self.split is None else self._of(self.split, rows)

    # --- several nodes

    @property
    def link(self) -> Link:
        """The network between the nodes that are planned for.

        Raises:
            ConfigError: nothing is known of it.
        """
        if self.machine.network is None:
            raise ConfigError(
                f"nothing tells how fast messages between nodes are: give a {called('machine')} with a network, or a"
                f" {called('probe')} that 'distai-mpi bench probe' made on two nodes"
            )
        return self.machine.network

    def nodes(self, count: int, per_node: int) -> Nodes:
        """So many nodes that exchange."""
        return Nodes(count, per_node, self.link, self.core_bandwidth(self.machine.cores) / 3)

    def travel(self, count: int, per_node: int, batch: int, nbytes: float, compressed: bool) -> Travel:
        """What travels in a step of ``batch`` rows between so many nodes; the gradient has ``nbytes`` bytes."""
        if count == 1:
            return Travel()
        nodes, rounded = self.nodes(count, per_node), compressed or self.work.compressed
        return travel(self.work, batch, nodes, nbytes=nbytes, compressed=rounded, solved=self.several)

    def crowd(self, nodes: int, per_node: int) -> int:
        """Ranks that are at work on a node's cores, at least as many as where several nodes were measured.

        Nodes that are parts of one machine share its cores.  The code for several nodes was measured on ranks that
        shared a memory; what they would gain alone is not known.
        """
        if self.machine.emulated:
            return min(self.machine.cores, nodes * per_node)
        return max(per_node, self._crowd_of_probe()) if nodes > 1 and self.several is not None else per_node

    def _crowd_of_probe(self) -> int:
        assert self.several is not None
        together = self.several.local or self.here.emulated
        return min(self.here.cores, self.several.ranks) if together else self.several.ranks // self.several.nodes

    def paths(self, rows: float) -> Known:
        """Seconds that the code for several nodes takes more, at ``rows`` rows a rank; the error in seconds."""
        shape, link = self.several, self._measured_link()
        if shape is None or link is None:
            return Known(0.0, UNSEEN * self.one(rows).seconds)
        group = Nodes(shape.nodes, shape.ranks // shape.nodes, link, self.here.bandwidth / self.here.cores / 3)
        batch = self.work.batch if self.work.kind == SOLVER else max(1, round(rows * shape.ranks))
        rounded = self.work.compressed
        went = travel(self.work, batch, group, nbytes=self.work.bytes, compressed=rounded, solved=shape)
        seen = self._of(shape, rows)
        inside = self.on_node(self._crowd_of_probe(), rows)
        return Known(seen.seconds - inside.seconds - went.seconds, seen.error * seen.seconds)

    def _measured_link(self) -> Link | None:
        """What the measured shape of several nodes sent its messages by."""
        if self.several is None or not self.several.local:
            return self.here.network
        return None if self.probe.messages is None else Link(**self.probe.messages)

    # --- solvers

    def solved(self, ranks: int) -> list[Shape]:
        """Shapes of a solver: those that came to its end, if there are such, and of these those of so many ranks."""
        found = [shape for shape in self.probe.shapes if shape.iterations and shape.tensor == 1]
        found = [shape for shape in found if shape.ended] or found
        return [shape for shape in found if shape.ranks == ranks] or found

    def setup(self, nodes: int, per_node: int) -> float:
        """Seconds of a solver's start: what one rank takes, shared out as was measured, and its messages."""
        setup, ranks, full = self.alone.setup, nodes * per_node, self.full
        if full is not None and ranks > 1:  # a part p is shared out: t(n) = t(1) (1 - p + p / n)
            part = (1 - full.setup / max(setup, 1e-12)) / (1 - 1 / full.ranks)
            part = min(1.0, max(0.0, part))
            setup = full.setup if ranks == full.ranks else setup * (1 - part + part / ranks)
        setup *= self.factor
        if nodes > 1 and self.several is not None:
            setup += setup_travel(self.several, self.nodes(nodes, per_node)).seconds
        return setup
