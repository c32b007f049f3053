"""Whether ranks have waited long enough, and for whom, by what all ranks tell of themselves; nothing here waits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..exit_codes import EX_STUCK
from ..settings import called, worded
from .processes import ENDED, STOPPED
from .watch_page import text_of
from .whereabouts import Activity
from .wire import Array

STOPPED_SECONDS = 30.0  # a process that is stopped or has ended is waited for no longer
LEFT_SECONDS = 5.0  # and one that has left the program
WORK_SECONDS = 3600.0  # the package's own work is waited for so long at least, while it goes on
FIRST_WORD = 300.0  # after so long a wait goes on with a warning
DOES = {
    Activity.UNKNOWN: "has not told what it does",
    Activity.WAITING: "waits",
    Activity.WORKING: "is at work",
    Activity.COMPILING: "compiles",
    Activity.USER: "runs code of the program's own",
    Activity.DEBUGGED: "is in a debugger",
}


class Verdict(NamedTuple):
    """How long ranks wait for those that are late.

    Attributes:
        limit: seconds after which they give up; infinite: never.
        warn_after: seconds after which they say so.
        status: exit status of the job then.
        reasons: for each late rank, what it does, in words.
    """

    limit: float
    warn_after: float
    status: int
    reasons: dict[int, str]

    def about(self, rank: int, host: str) -> str:
        """A late rank in words."""
        return f"rank {rank} on {host}, which {self.reasons[rank]}"

    @property
    def will_end(self) -> str:
        """What will come of it."""
        return "" if np.isinf(self.limit) else f"; the job ends after {self.limit:.0f} s ({called('watch')})"

    @property
    def advice(self) -> str:
        """The way out."""
        again = f"{worded('resume=True', '--resume')} goes on from the last checkpoint"
        return f"; {again}" if self.status == EX_STUCK else ""


def late_ranks(rows: Array, silent: Array) -> list[int]:
    """The ranks that others wait for: those in no communication call, and those that do not tell of themselves.

    ``rows`` are of `watch_page.ROW`; ``silent``: whether each rank's watch does not run; both by rank.
    """
    return np.flatnonzero((rows["activity"] != Activity.WAITING) | silent).tolist()


def judge(rows: Array, late: Sequence[int], silent: Array, seconds: float) -> Verdict:
    """How long to wait for the ``late`` ranks where the limit is ``seconds``."""
    limits, reasons, left = [], {}, bool(late)
    warn = FIRST_WORD
    for rank in late:
        row, state = rows[rank], chr(int(rows[rank]["state"])) if rows[rank]["state"] else ""
        activity, limit = Activity(int(row["activity"])), seconds
        if state and state in ENDED + STOPPED and activity is not Activity.LEFT:
            limit, warn = min(seconds, STOPPED_SECONDS), 5.0
        elif activity is Activity.LEFT:
            limit = min(seconds, LEFT_SECONDS)
        elif activity is Activity.DEBUGGED or state == "t":
            limit = float("inf")
        elif activity in (Activity.WORKING, Activity.COMPILING) and row["busy"] and (not silent[rank] or state):
            limit = max(seconds, WORK_SECONDS)
        left = left and activity is Activity.LEFT
        limits.append(limit)
        reasons[rank] = _reason(activity, state, bool(silent[rank]), text_of(row["location"]), int(row["step"]))
    # a fault ends the wait, whoever else is late for a good reason; a person in a debugger holds everybody
    limit = float("inf") if np.inf in limits else min(limits, default=seconds)
    return Verdict(limit, warn, 1 if left else EX_STUCK, reasons)


def _reason(activity: Activity, state: str, silent: bool, location: str, step: int) -> str:
    where = f"step {step}, {location}" if step >= 0 and activity is not Activity.LEFT else location
    if state and state in STOPPED:
        return f"is stopped (process state T), last seen in {where}"
    if state and state in ENDED and activity is not Activity.LEFT:
        return f"has died (process state {state}), last seen in {where}"
    if silent and not state:
        seen = f"last seen in {where}" if location else "never seen"
        return f"has not been heard of ({seen}): it is stopped, or its node is cut off"
    if state == "D":
        return f"waits for a device or a file system (process state D) in {where}"
    if activity is Activity.LEFT:
        return f"has left ({where})"
    return f"{DOES[activity]} in {where}"


def names(ranks: Sequence[int], most: int = 8) -> str:
    """Some ranks in words."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    shown = ", ".join(map(str, ranks[:most]))
    return f"ranks {shown}{f' and {len(ranks) - most} more' if len(ranks) > most else ''}"


def stall_text(late: Sequence[int], rows: Array, waited: float, size: int) -> str | None:
    """A wait in training that is over, in words; None outside of training, or where nobody was late."""
    steps = [int(row["step"]) for rank, row in enumerate(rows) if rank not in late]
    step = max(steps, default=-1)
    if step < 0 or not late:
        return None
    who = f"{'all other ranks' if len(late) < size else 'ranks'} waited {waited:.0f} s in step {step}"
    location = text_of(rows[late[0]]["location"])
    return f"{who} for {names(late)} ({location})"
