"""What a rank does when: the phases of a run, recorded at the cost of a clock's reading each.

A rank is in one phase at a time, and `Recorder.mark` says which one begins, so that phases neither overlap nor leave
gaps.  Those of a step:

* *compute*: batches are gathered, and the model gives losses and gradient
* *wait*: for ranks that come later
* *reduce*: gradients are summed where they lie in the memory of the node (or made from all rows' factors), and the
  sum becomes a mean with its penalty
* *exchange*: messages travel, and what they bring is added up
* *update*: the optimizer takes its step
* *publish*: the new parameters are handed to all ranks

and besides *evaluate*, *checkpoint* and *other*: callbacks, shuffling, and what else lies between steps.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

PHASES = ("compute", "wait", "reduce", "exchange", "update", "publish", "evaluate", "checkpoint", "other")
COMPUTE, WAIT, REDUCE, EXCHANGE, UPDATE, PUBLISH, EVALUATE, CHECKPOINT, OTHER = range(len(PHASES))
STEP, LEFT_OUT = len(PHASES), len(PHASES) + 1  # what else `Recorder.rows` tell of
PIECE = 4096  # marks that are put away together: few enough to take 0.2 ms

Array = Any


class Recorder:
    """Takes down the phases of one rank; local, and not for several threads.

    All count in ``sums``.  Of a long run the first and the last steps are kept one by one, as many as fit ``limit``.

    Args:
        limit: most rows that `rows` gives.
        clock: nanoseconds that never go back; on Linux the default is the same for all processes of a machine.

    Attributes:
        sums: seconds spent in each of `PHASES`, float64, shape (phases,); complete after `close`.
        steps_left_out: steps that `rows` does not tell of; complete after `close`.
    """

    def __init__(self, limit: int = 100_000, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self._half, self._clock = limit // 2, clock
        self._piece = max(1, min(PIECE, limit // 4))
        self.sums = np.zeros(len(PHASES))
        self.steps_left_out = 0
        self._first: list[Array] = []  # rows of the first steps, in pieces
        self._last: deque[Array] = deque()  # and of the last ones, from when the first ones' half is full
        self._rows_first = self._rows_last = 0
        self._gap: tuple[int, int] | None = None  # begin and end of what lay between them
        self._begin(clock(), OTHER)

    def _begin(self, now: int, phase: int) -> None:
        """An empty piece, in the midst of ``phase``."""
        # lists, which take an item in half the time of an array
        self._times, self._phases = [now], [phase]
        self._steps: list[int] = []  # for each step its number and the index of its first phase

    # --- while the run goes on

    def mark(self, phase: int) -> int:
        """The phase so far ends and ``phase`` begins; return the one that ended."""
        phases = self._phases
        before = phases[-1]
        self._times.append(self._clock())
        phases.append(phase)
        return before

    def step(self, number: int) -> None:
        """A step begins, with *compute*; it lasts until a phase *other*."""
        if len(self._phases) >= self._piece:
            self._put_away()
        self._steps += (number, len(self._phases))
        self.mark(COMPUTE)

    def timed(self, phase: int, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, the time of whose calls belongs to ``phase``; the phase before goes on afterwards."""

        def call(*args: Any) -> Any:
            before = self.mark(phase)
            result = function(*args)
            self.mark(before)
            return result

        return call

    def _put_away(self) -> None:
        """Add the piece to the sums, keep what is to be kept of it, and begin a new one."""
        now, phase = self._clock(), self._phases[-1]
        times, phases = np.array([*self._times, now]), np.array(self._phases)
        self.sums += np.bincount(phases, np.diff(times) * 1e-9, len(PHASES))
        rows = _rows(times, phases, np.array(self._steps, np.int64).reshape(-1, 2))
        self._begin(now, phase)
        if not self._last and self._rows_first + len(rows) <= self._half:
            self._first.append(rows)
            self._rows_first += len(rows)
            return
        self._last.append(rows)
        self._rows_last += len(rows)
        while self._last and self._rows_last - len(self._last[0]) >= self._half:
            self._drop(self._last.popleft())

    def _drop(self, rows: Array) -> None:
        self._rows_last -= len(rows)
        self.steps_left_out += int((rows[:, 0] == STEP).sum())
        if len(rows):
            self._gap = self._gap[0] if self._gap else int(rows[0, 2]), int(rows[:, 3].max())

    # --- afterwards

    def close(self) -> None:
        """The last phase ends."""
        self._put_away()
        surplus = self._rows_last - self._half
        if surplus > 0:  # of the oldest piece that is left: up to a step's beginning
            begins = np.flatnonzero(self._last[0][:, 0] == STEP)
            cut = next((int(i) for i in begins if i >= surplus), len(self._last[0]))
            oldest = self._last.popleft()
            self._drop(oldest[:cut])
            self._last.appendleft(oldest[cut:])

    def rows(self) -> Array:
        """What was kept, ordered by time: int64, shape (rows, 4).

        Columns: a phase other than *other*, or `STEP`, or `LEFT_OUT`; the number of the step, or how many were left
        out; begin and end by the clock.  A step comes before its first phase.
        """
        first, last = ([np.empty((0, 4), np.int64), *pieces] for pieces in (self._first, self._last))
        head, tail = np.concatenate(first), np.concatenate(last)
        if self._gap is None:
            return np.concatenate([head, tail])
        return np.concatenate([head, [(LEFT_OUT, self.steps_left_out, *self._gap)], tail])


def _rows(times: Array, phases: Array, steps: Array) -> Array:
    """The rows of a piece: ``phases`` begin and end at ``times``, one longer; ``steps`` are (number, first phase)."""
    number, first = steps.T
    named, others = np.flatnonzero(phases != OTHER), np.flatnonzero(phases == OTHER)
    following = np.append(first[1:], len(phases))[: len(first)]
    end = np.minimum(np.append(others, len(phases))[np.searchsorted(others, first)], following)
    rows = np.zeros((len(first) + len(named), 4), np.int64)
    at = np.arange(len(named)) + np.searchsorted(first, named, "right")
    for column, values in ((0, phases[named]), (2, times[named]), (3, times[named + 1])):
        rows[at, column] = values
    at = np.arange(len(first)) + np.searchsorted(named, first)
    for column, values in enumerate((STEP, number, times[first], times[end])):
        rows[at, column] = values
    return rows


@contextmanager
def during(recorder: Recorder | None, phase: int) -> Iterator[None]:
    """The block is of ``phase``, for whoever records; the phase before goes on afterwards."""
    if recorder is None:
        yield
        return
    before = recorder.mark(phase)
    yield
    recorder.mark(before)
