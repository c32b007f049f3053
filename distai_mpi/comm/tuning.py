"""What ``auto`` stands for: the exchange that is fastest here, for vectors of this length.

Vectors are classed by length, a power of two apart.  What has not been measured before (`findings`) is measured when it
is first asked for (`trial`), within a budget of seconds; what lies between two measured classes, or is asked for when
the budget is spent, follows from the classes next to it.  Rank 0 alone looks things up, measures and decides, and tells
the others: every rank takes the same path.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike

from ..backend import HOST, Device
from ..perf.machine import affinity
from . import trial
from .collectives import ALGORITHMS, SHARING
from .findings import Findings, Times, findings, host
from .memory import Shared
from .wire import Array

if TYPE_CHECKING:
    from .communicator import Communicator

# The first of these that is not slower than the fastest by more than MARGIN is taken, so that the noise of measurements
# does not change the choice from run to run, and with it the last bits of sums.  Nothing is taken that was slower than
# the library's own: noise, and the look-up at each sum, may then cost a tenth of its speed.
ORDER = ("shared", "hierarchical", "native", "rabenseifner", "ring", "recursive_doubling", "tree")
MARGIN = 0.1
REPLICATED = 1.25  # times which a step without slices must be faster: its update costs every rank the whole vector

TINY_BYTES = 4 << 10  # shorter vectors are the library's: of the microseconds they take, most are the interpreter's
HIGHEST = 23  # class; that of vectors of 2**(c - 1) to 2**c - 1 bytes is number c, and longer ones belong to this one
SHORT_BYTES = 64 << 10  # vectors up to here may travel whole at every step of an algorithm
RING_BYTES = 1 << 10  # of a slice: shorter ones are not worth a trip around the ring
STEP_SECONDS, SUM_SECONDS = 0.1, 0.03  # for one class
BUSY = 2.0  # processes that want to run, on average, beyond those of the job or the processors
LEAST_SECONDS = 0.002  # less is no measurement
# Where nothing can be measured, and where the machine was too busy to tell, vectors from here on are shared if they can
# be.  (On a busy machine ranks that wait in shared memory give way to others, and those that wait for messages do not:
# measured alone, that looks slow; in training on two busy cores it was 2 to 3 times faster.)
USUAL_BYTES = 8 << 10


@dataclass(frozen=True)
class Case:
    """What is to be exchanged.

    Attributes:
        steps: whether as a step of training does (reduce-scatter, update, allgather); else as a sum in place.
        kind: of numbers, see `kind_of`.
        shared: whether the vectors may lie (steps), or lie (sums), in memory that the ranks of a node share.
        level: the class of their length.
    """

    steps: bool
    kind: str
    shared: bool
    level: int

    @classmethod
    def of(cls, steps: bool, nbytes: int, dtype: np.dtype[Any], shared: bool) -> Case:
        """The case of vectors of ``nbytes``."""
        return cls(steps, kind_of(dtype), shared, min(HIGHEST, nbytes.bit_length()))

    @property
    def nbytes(self) -> int:
        """Length of the vectors that stand for the class: its shortest, where the library's own is at its best."""
        return 1 << self.level >> 1

    def __str__(self) -> str:
        words = ("step" if self.steps else "sum", self.kind, "shared" if self.shared else "private", str(self.level))
        return " ".join(words)

    def at(self, level: int) -> Case:
        """The like of another class."""
        return Case(self.steps, self.kind, self.shared, level)

    def candidates(self, nodes: Sequence[int]) -> list[str]:
        """The algorithms that may be fastest on nodes of so many ranks, in their `ORDER`."""
        ranks, names = sum(nodes), ["native"]
        if self.shared and self.kind != "half" and max(nodes) > 1:
            names.append("shared" if len(nodes) == 1 else "hierarchical")
        if ranks > 2:  # of two ranks each sends the same as in a ring
            names.append("rabenseifner")
        if self.nbytes >= RING_BYTES * ranks:
            names.append("ring")
        if self.nbytes <= SHORT_BYTES:
            names += ["recursive_doubling", "tree"] if ranks > 2 else ["recursive_doubling"]
        return [name for name in ORDER if name in names]

    def usual(self, nodes: Sequence[int]) -> str:
        """The algorithm that is fastest most of the time."""
        first = self.candidates(nodes)[0]
        return first if self.nbytes >= USUAL_BYTES else "native"


def kind_of(dtype: np.dtype[Any]) -> str:
    """``float``, ``integer``, or ``half`` for float16, which only messages sum."""
    if dtype.kind != "f":
        return "integer"
    return "half" if dtype.itemsize == 2 else "float"


@dataclass(frozen=True)
class Choice:
    """An algorithm, and why: seconds by algorithm for vectors of ``nbytes``, and where these are from."""

    name: str
    times: Times
    nbytes: int
    source: str

    def __str__(self) -> str:
        if not self.times:
            return f"{self.name} ({self.source})"
        others = sorted(self.times.items(), key=lambda item: item[1])
        told = ", ".join(f"{name} {microseconds(seconds)}" for name, seconds in others)
        more = " or more" if self.nbytes >= 1 << HIGHEST >> 1 else ""
        return f"{self.name} (µs for {length(self.nbytes)}{more}: {told}; {self.source})"


def microseconds(seconds: float) -> str:
    """Microseconds in a few digits."""
    return f"{seconds * 1e6:,.0f}" if seconds >= 1e-5 else f"{seconds * 1e6:.1f}"


def length(nbytes: int) -> str:
    """Bytes in the unit that makes them a small number."""
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if nbytes >= unit:
            return f"{nbytes / unit:g} {name}"
    return f"{nbytes} bytes"


def pick(times: Times, steps: bool) -> str:
    """The algorithm to take of those measured; see `ORDER`."""
    weighed = {
        name: seconds * (1.0 if not steps or name in SHARING or ALGORITHMS[name].sliced else REPLICATED)
        for name, seconds in times.items()
    }
    most = min(min(weighed.values()) * (1 + MARGIN), times["native"])
    return next(name for name in ORDER if weighed.get(name, math.inf) <= most)


def between(level: int, low: tuple[int, Times], high: tuple[int, Times]) -> Times:
    """Times at ``level`` from those at a lower and a higher one, along a straight line of the logarithms."""
    share = (level - low[0]) / (high[0] - low[0])
    return {name: low[1][name] ** (1 - share) * high[1][name] ** share for name in low[1] if name in high[1]}


def inferred(case: Case, known: Findings, reach: int, beyond: int = 0) -> Times | None:
    """Times from classes known at most ``reach`` below and above, or on one side at most ``beyond``; None without."""
    sides = []
    for step in (-1, 1):
        for distance in range(1, reach + 1):
            found = known.get(str(case.at(case.level + step * distance)))
            if found is not None and found.sure:
                sides.append((case.level + step * distance, found.times))
                break
    if len(sides) == 2:
        return between(case.level, *sides)
    return next((times for level, times in sides if abs(level - case.level) <= beyond), None)


Measure = Callable[..., trial.Verdict]


class Tuner:
    """Chooses for the ranks of ``comm``; made where nothing has to be measured or read yet.

    Args:
        comm: the ranks.
        measure: see `trial.measure`.
    """

    def __init__(self, comm: Communicator, measure: Measure = trial.measure) -> None:
        self._comm, self._measure, self._find = comm, measure, comm._sharing.find
        self._chosen: dict[tuple[int, str, bool], str] = {}  # of sums: asked at every one of them

    def allreduce(self, x: Array) -> tuple[str, Shared | None]:
        """How a sum of vectors like ``x`` travels: by messages, or as one of shared vectors; collective."""
        nbytes = x.nbytes
        if nbytes < TINY_BYTES:
            return "native", None
        shared = self._find(x)
        key = (nbytes.bit_length(), x.dtype.char, shared is None)
        name = self._chosen.get(key)
        if name is None:
            case = Case.of(False, nbytes, x.dtype, shared is not None)
            name = self._chosen[key] = self._choose(case, x.dtype)
        return ("native", shared) if name in SHARING else (name, None)

    def named(self, x: Array) -> str:
        """The name of the algorithm that `allreduce` takes for ``x``; collective."""
        name, shared = self.allreduce(x)
        if shared is None:
            return name
        return "shared" if len(self._nodes) == 1 else "hierarchical"

    def step(self, size: int, dtype: DTypeLike, device: Device = HOST) -> str:
        """The algorithm for steps of training with ``size`` parameters; collective.

        Vectors on a GPU go by way of private ones on the host.
        """
        return self._choose(self._step_case(size, dtype, device), np.dtype(dtype))

    def forget(self) -> None:
        """Measure anew what is asked for next; collective where that is."""
        self._chosen.clear()
        self._comm._sharing.forget_calls()
        if self._comm.rank == 0:
            self._findings.forget()

    def explain(self, size: int, dtype: DTypeLike, device: Device = HOST) -> Choice | None:
        """What `step` gives, and why, where it needs no measurement; None where it does.  For rank 0, and local."""
        case = self._step_case(size, dtype, device)
        return None if self._comm.size == 1 or case.nbytes < TINY_BYTES else self._recall(case)

    @staticmethod
    def _step_case(size: int, dtype: DTypeLike, device: Device) -> Case:
        dtype = np.dtype(dtype)
        return Case.of(True, size * dtype.itemsize, dtype, device is HOST)

    def _choose(self, case: Case, dtype: np.dtype[Any]) -> str:
        """Recall on rank 0, or measure."""
        comm = self._comm
        if comm.size == 1 or case.nbytes < TINY_BYTES:
            return "native"
        known, seconds, name = self._findings if comm.rank == 0 else None, 0.0, None
        if known is not None:
            choice = self._recall(case)
            seconds = min(known.left, STEP_SECONDS if case.steps else SUM_SECONDS)
            if choice is None and seconds < LEAST_SECONDS:
                choice = self._guess(case)
            name = choice.name if choice else None
        name, seconds = comm.bcast_object((name, seconds))
        if name is not None:
            return name
        began = time.perf_counter()
        names = case.candidates(self._nodes)
        times, settled = self._measure(comm, case.steps, case.nbytes, dtype, case.shared, names, seconds)
        if known is not None:
            known.left -= min(seconds, time.perf_counter() - began)  # compiling is not what is to be bounded
            sure = settled and names[0] in times and not self._busy()  # without the first memory could not be shared
            known.add(str(case), times, sure=sure)
            name = self._recall(case).name  # type: ignore[union-attr]
        return comm.bcast_object(name)

    def _recall(self, case: Case) -> Choice | None:
        """The choice from what is known of the case, or of the classes next to it on both sides."""
        known, name = self._findings, str(case)
        found = known.get(name)
        if found is None:
            return self._infer(case, reach=2)
        source = "in an earlier run" if name in known.earlier else "measured now"
        usual = case.usual(self._nodes)
        if found.sure or usual not in found.times:
            return Choice(pick(found.times, case.steps), found.times, case.nbytes, source)
        return Choice(usual, found.times, case.nbytes, f"{source}, too busy to tell")

    def _guess(self, case: Case) -> Choice:
        """The choice where nothing can be measured any more."""
        usual = Choice(case.usual(self._nodes), {}, case.nbytes, "not measured")
        return self._infer(case, reach=HIGHEST, beyond=4) or usual

    def _infer(self, case: Case, reach: int, beyond: int = 0) -> Choice | None:
        times = inferred(case, self._findings, reach, beyond) or {}
        times = {name: seconds for name, seconds in times.items() if name in case.candidates(self._nodes)}
        return Choice(pick(times, case.steps), times, case.nbytes, "from other lengths") if times else None

    def _busy(self) -> bool:
        """Whether others use this machine: what is measured then says little."""
        return os.getloadavg()[0] > max(len(affinity()), self._comm.node.size) + BUSY

    @cached_property
    def _findings(self) -> Findings:
        """For rank 0 alone."""
        return findings(host(self._nodes, self._comm._wire.chunk_bytes))

    @property
    def _nodes(self) -> list[int]:
        """Ranks of each node."""
        return [len(ranks) for ranks in self._comm.topology.nodes]
