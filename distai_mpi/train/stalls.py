"""Stalls: times in which all ranks of a traced run, or all but one, waited for the same one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ..trace import EXCHANGE, STEP, WAIT

LEAST_SECONDS, LEAST_STEPS = 1.0, 10.0  # a stall is as long as that, and as so many steps
MOST_TOLD = 3

Array = Any
Span = tuple[int, int]


class Stall(NamedTuple):
    """Ranks that wait.

    Attributes:
        begin, end: by the clock of the rows it was found in.
        step: in which they wait.
        rank: for which.
        waits: whether that one waited as well: it was stopped in the midst of a wait, or its messages were held up.
    """

    begin: int
    end: int
    step: int
    rank: int
    waits: bool

    def text(self, tick: float) -> str:
        """In words; ``tick``: seconds of the clock's unit."""
        who = "all ranks" if self.waits else "all other ranks"
        return f"{who} waited {(self.end - self.begin) * tick:.3g} s in step {self.step} for rank {self.rank}"


def find_stalls(of_ranks: Sequence[Array], tick: float, gaps: Sequence[Sequence[Span]]) -> list[Stall]:
    """The stalls in ``of_ranks``, the rows of `Recorder.rows` by rank, in the order of time.

    The times of all ranks are by one clock, whose unit is ``tick`` seconds.  ``gaps`` are the times, by rank, in which
    a process is known not to have run.  Where none is, and all ranks wait, it is for the one whose wait began first:
    the others had its word by then that it had come to it, and wait for the next.
    """
    if len(of_ranks) == 1:
        return []
    least = _least(of_ranks, tick)
    waits = []
    for rank, rows in enumerate(of_ranks):
        long = np.isin(rows[:, 0], (WAIT, EXCHANGE)) & (rows[:, 3] - rows[:, 2] >= least)
        waits += [(int(begin), int(end), rank) for begin, end in rows[long, 2:]]
    found: list[Stall] = []
    for begin, end in pairwise(sorted({time for wait in waits for time in wait[:2]})):
        active = {rank: first for first, last, rank in waits if first <= begin and last >= end}
        if len(active) < len(of_ranks) - 1:
            continue
        all_wait = len(active) == len(of_ranks)
        late = _late((begin, end), active, len(of_ranks), gaps)
        if found and found[-1].end == begin and found[-1].rank == late:
            found[-1] = found[-1]._replace(end=end, waits=found[-1].waits or all_wait)
        else:
            found.append(Stall(begin, end, _step_at(of_ranks, late, begin), late, all_wait))
    return [stall for stall in found if stall.end - stall.begin >= least]


def longest(stalls: Sequence[Stall]) -> list[Stall]:
    """Those of them that are reported, in the order of time."""
    return sorted(sorted(stalls, key=lambda stall: stall.begin - stall.end)[:MOST_TOLD])


def _least(of_ranks: Sequence[Array], tick: float) -> float:
    """The length from which a wait is a stall, in ticks."""
    lengths = [rows[rows[:, 0] == STEP] for rows in of_ranks]
    steps = np.concatenate([rows[:, 3] - rows[:, 2] for rows in lengths])
    usual = float(np.median(steps)) if len(steps) else 0.0
    return max(LEAST_SECONDS / tick, LEAST_STEPS * usual)


def _late(span: Span, active: dict[int, int], ranks: int, gaps: Sequence[Sequence[Span]]) -> int:
    """Whom the ranks ``active``, by when they began to, wait for in ``span``."""
    half = (span[1] - span[0]) / 2
    asleep = [
        rank
        for rank, times in enumerate(gaps)
        if any(min(end, span[1]) - max(begin, span[0]) > half for begin, end in times)
    ]
    if len(asleep) == 1:
        return asleep[0]
    missing = set(range(ranks)) - set(active)
    return missing.pop() if missing else min(active, key=lambda rank: active[rank])


def _step_at(of_ranks: Sequence[Array], late: int, time: int) -> int:
    """The step in which those that wait are at a ``time``."""
    numbers = [0]
    for rank, rows in enumerate(of_ranks):
        if rank != late:
            numbers += rows[(rows[:, 0] == STEP) & (rows[:, 2] <= time), 1][-1:].tolist()
    return max(numbers)
