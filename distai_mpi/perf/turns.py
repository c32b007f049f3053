"""Times calls that all ranks make together, in turn, so that drifts of the machine's speed do not bias them.

A *sample* is the time of one call.  Before it every rank writes its own vector anew, untimed, and the ranks pass a
barrier: that is how gradients come, just written, with their cache lines in their owner's cache.  For calls so short
that barrier and clock would be felt, it is the mean of a few calls in a row.  It is the slowest rank's that counts,
where each rank counts from its own beginning.  A *visit* takes one sample that does not count, and a few more, of which
it keeps the median: others that use the machine disturb only some of them.  In every *turn* all candidates are visited,
and what is reported is the median over the turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..comm import Communicator

VISIT_SECONDS = 2e-3  # that the samples of a visit take together, where more than one can
MOST_SAMPLES = 15  # of a visit
FEWEST_TURNS, MOST_TURNS = 3, 31
Times = list[list[list[float]]]  # seconds by candidate, turn and sample


def nothing() -> None:
    """For candidates that need no preparation."""


@dataclass
class Candidate:
    """A call that is timed, and how long it took.

    Attributes:
        name: distinguishes it.
        call: what is timed, on all ranks at once.
        rewrite: makes what the call works on anew; local.
        prepare: is called before a visit; local.
        seconds: one for each turn, alike on all ranks once `in_turn` is done.
    """

    name: str
    call: Callable[[], object]
    rewrite: Callable[[], object]
    prepare: Callable[[], object] = nothing
    seconds: list[float] = field(default_factory=list)

    @property
    def fastest(self) -> float:
        """Seconds of a call: the least of the turns, for machines that others use."""
        return min(self.seconds)

    @property
    def median(self) -> float:
        """Seconds of a call: the median over the turns."""
        return statistics.median(self.seconds)

    def ratio(self, other: Candidate) -> float:
        """Its time as a multiple of the other's.

        Of both medians, for they are shown beside it.  The median of the turns' own ratios is steadier where the
        machine drifts, but need not agree with them, which readers take for an error.
        """
        return self.median / other.median


def in_turn(
    comm: Communicator,
    candidates: Sequence[Candidate],
    seconds: float,
    *,
    calls: int = 1,
    fewest: int = FEWEST_TURNS,
    most: int = MOST_TURNS,
) -> None:
    """Time all ``candidates`` for about ``seconds`` in ``fewest`` to ``most`` turns, ``calls`` a sample; collective."""
    pilots = [_pilot(comm, candidate, calls) for candidate in candidates]
    samples = [max(1, min(MOST_SAMPLES, int(VISIT_SECONDS / pilot))) for pilot in pilots]
    times: Times = [[] for _ in candidates]
    end, going = time.perf_counter() + seconds, True
    while going:
        for candidate, count, own in zip(candidates, samples, times, strict=True):
            own.append(_visit(comm, candidate, count, calls))
        turns = len(times[0])
        going = comm.bcast_object(turns < fewest or (turns < most and time.perf_counter() < end))
    for candidate, slowest in zip(candidates, merged(comm.allgather_object(times)), strict=True):
        candidate.seconds = slowest


def merged(ranks: Sequence[Times]) -> list[list[float]]:
    """Seconds by candidate and turn, from those of every rank: the median over a visit's samples on the slowest."""
    return [
        [statistics.median(map(max, zip(*samples, strict=True))) for samples in zip(*turns, strict=True)]
        for turns in zip(*ranks, strict=True)
    ]


def _pilot(comm: Communicator, candidate: Candidate, calls: int) -> float:
    """Roughly the seconds of a sample, alike on all ranks; compiles what there is to compile."""
    _visit(comm, candidate, 1, calls)
    return comm.bcast_object(_visit(comm, candidate, 1, calls)[0] * calls)


def _visit(comm: Communicator, candidate: Candidate, samples: int, calls: int) -> list[float]:
    """This rank's seconds of a call, in ``samples`` of ``calls`` in a row."""
    candidate.prepare()
    times = []
    for _ in range(samples + 1):
        candidate.rewrite()
        comm.barrier()
        began = time.perf_counter()
        for _ in range(calls):
            candidate.call()
        times.append((time.perf_counter() - began) / calls)
    return times[1:]
