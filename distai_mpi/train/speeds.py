"""When ranks should take other numbers of rows, from the seconds that each needs for a row: logic without messages.

A rank's speed is the median over its last steps: over `SHORT` of them, which shows a large change soon, and over
`LONG`, which shows a small one surely.  The medians' standard errors tell noise from change: the largest of N normal
deviates is at most √(2 ln N) standard deviations on average (Boucheron, Lugosi & Massart 2013, "Concentration
Inequalities", theorem 2.5), and a change counts where its gain exceeds that and `SURE` more of them, and `GAIN`, at
`LOOKS` looks in a row.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..data.partition import Partition, capped_counts

Array = Any
SHORT, LONG = 8, 64  # steps that a median is of
LOOKS = 3  # in a row that must ask for a change
SOON, LATE = 4, 16  # steps between two looks while a change is asked for, and at most while none is
APART = 0.03  # seconds of computing between two looks while no change is asked for: short steps pay for few of them
GAIN = 0.05  # least fraction of the compute time of a step that a change must save
SURE = 2.0  # standard errors beyond those that the slowest of so many ranks has by chance
DIGITS = 3  # of a weight: more would be noise
FIGURES = 4  # of a `SpeedWindow.summary`


class SpeedWindow:
    """Seconds per row of one rank in its last steps.  A rank that has no rows any more keeps its last summary."""

    def __init__(self) -> None:
        self._rates: deque[float] = deque(maxlen=LONG)
        self._last = [0.0] * FIGURES

    def add(self, seconds: float, rows: float) -> None:
        """Take in a step of ``rows`` rows; none tell nothing."""
        if rows > 0:
            self._rates.append(seconds / rows)

    def clear(self) -> None:
        """Forget all steps: they were of other numbers of rows."""
        self._last = self.summary()
        self._rates.clear()

    def summary(self) -> list[float]:
        """Median seconds per row and its relative standard error, of the last `SHORT` and of the last `LONG` steps."""
        if not self._rates:
            return self._last
        rates = list(self._rates)
        return [*_median(rates[-SHORT:]), *_median(rates)]


def _median(rates: list[float]) -> tuple[float, float]:
    """The median, and its standard error as a fraction of it, from the median absolute deviation.

    Of a normal distribution the deviation is 1.4826 times that, and the median's error √(π/2) times the mean's
    (Rousseeuw & Croux 1993, "Alternatives to the Median Absolute Deviation").
    """
    middle = statistics.median(rates)
    deviation = 1.4826 * statistics.median(abs(rate - middle) for rate in rates)
    return middle, math.sqrt(math.pi / 2 / len(rates)) * deviation / middle if middle > 0 else 0.0


class Change(NamedTuple):
    """Another partition of rows, and why.

    Attributes:
        partition: the new one.
        seconds: what the slowest rank computes, now and as predicted.
        why: a sentence.
    """

    partition: Partition
    seconds: tuple[float, float]
    why: str


def better(summaries: Array, counts: Sequence[int], caps: Sequence[int], what: str = "rank") -> Change | None:
    """The partition that ends the slowest rank's work soonest, where that is surely better than now; else None.

    Args:
        summaries: of all ranks, see `SpeedWindow.summary`; float64, shape (ranks, 4).
        counts: rows of each rank now.
        caps: most rows of each rank, by its memory.
        what: word for those that share the rows.
    """
    rows, present = sum(counts), np.array(counts, np.float64)
    for seconds, errors in ((summaries[:, 0], summaries[:, 1]), (summaries[:, 2], summaries[:, 3])):
        weights = tuple(float(f"{1 / s:.{DIGITS}g}") if s > 0 else 0.0 for s in seconds.tolist())
        if not any(weights) or any(count and not weight for count, weight in zip(counts, weights, strict=True)):
            continue
        partition = Partition(weights)
        found = capped_counts(weights, rows, caps)
        if found != partition.counts(rows):  # some are full: whole numbers say it exactly
            partition = Partition(found)
        now, then = float((seconds * present).max()), float((seconds * np.array(found)).max())
        chance = math.sqrt(2 * math.log(len(weights))) + SURE
        if 1 - then / now > GAIN + chance * float(errors.max()):
            return Change(partition, (now, then), _why(what, seconds * present, now, then))
    return None


def _why(what: str, seconds: Array, now: float, then: float) -> str:
    slow = int(seconds.argmax())
    others = statistics.median(np.delete(seconds, slow).tolist())
    return (
        f"{what} {slow} computed {1e3 * now:.3g} ms, the others {1e3 * others:.3g} ms (median);"
        f" {1e3 * then:.3g} ms expected"
    )


class LookPolicy:
    """At which steps ranks look at their speeds, and when they act; alike on ranks that are told alike."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew, after a change: a look needs `SHORT` steps."""
        self._steps, self._next, self._pause, self._streak = 0, SHORT, SOON, 0

    def step(self) -> bool:
        """Count a step; whether the ranks tell each other their speeds after it."""
        self._steps += 1
        return self._steps >= self._next

    def decide(self, change: Change | None, seconds: float = math.inf) -> Change | None:
        """What a look came to: ``change`` itself where it is the last of `LOOKS` in a row that asked for one.

        ``seconds`` is what the slowest rank computes in a step, alike on all ranks.
        """
        self._streak = self._streak + 1 if change else 0
        self._pause = SOON if change else min(2 * self._pause, max(LATE, int(APART / max(seconds, 1e-6))))
        self._next = self._steps + self._pause
        return change if self._streak >= LOOKS else None
