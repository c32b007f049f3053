"""The watch: ends a job whose ranks wait for one that does not come.

A thread of every rank looks once a second at what its rank does (`whereabouts`), writes that where the others can read
it (`watch_page`), and reads theirs.  Nothing is added to the calls themselves.  Only a rank that waits in a
communication call judges, and only the time counts in which no rank has exchanged anything.  How long it goes on
depends on those that are late:

* a process that is stopped or has ended: `STOPPED_SECONDS`, or the limit where that is less
* the package's own reading, computing, compiling or writing, while the process uses a processor or moves data: at least
  `WORK_SECONDS`
* one in a debugger: for ever
* anything else, such as code of the user's, a file system that does not answer, or ranks in different calls: the limit

Time in which the watch itself does not run (a job that Slurm has suspended) does not count.
"""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ConfigError
from ..exit_codes import EX_STUCK
from . import alarm, edges, processes
from .node_beacon import STILL_SECONDS, NodeBeacon
from .verdict import Verdict, judge, late_ranks, names, stall_text
from .watch_page import Page, bytes_of, text_of
from .whereabouts import Activity, look_at
from .wire import Array

if TYPE_CHECKING:
    from .ranks import Ranks

DEFAULT_SECONDS = 600.0
LOOK_SECONDS = 1.0  # between two looks; a tenth of a shorter limit
TOLD_SECONDS = 10.0  # a wait that was longer is told when it is over
MOST_TOLD = 10  # such waits
GAP_SECONDS = 2.0  # by which a look is late when the process did not run

_communicators: weakref.WeakSet[Ranks] = weakref.WeakSet()
_watch: Watch | None = None


def exchanges() -> int:
    """A number that changes whenever this process exchanges anything by a `Communicator`."""
    while True:
        with contextlib.suppress(RuntimeError):  # one was made in this moment
            return sum(comm.exchanges for comm in list(_communicators))


def asked(seconds: float | None) -> float | str | None:
    """The limit that ``seconds`` stand for, or DISTAI_WATCH where they are None, which may not be set; or why not."""
    text = os.environ.get("DISTAI_WATCH", "") if seconds is None else seconds
    if text == "":
        return None
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = -1.0
    if 0 <= value < float("inf"):
        return value
    what = "DISTAI_WATCH" if seconds is None else "watch"
    return f"{what} is {text!r}: give the seconds that ranks may wait for one that does not come, or 0 for ever"


def join(comm: Ranks, node: Any, seconds: float | str | None) -> Watch | None:
    """The watch of this job for ``comm``, where that is of all its ranks; collective.

    There is one in a process, begun by the first such communicator.  ``seconds`` are what `asked` says on rank 0; None
    asks for no change, or for the default.

    Raises:
        ConfigError: they are no limit; on all ranks.
    """
    if isinstance(seconds, str):
        raise ConfigError(seconds)
    global _watch
    _communicators.add(comm)
    from mpi4py import MPI

    if comm.size == 1 or comm.size != MPI.COMM_WORLD.size:
        return None
    if _watch is None:
        if seconds == 0:
            edges.end()
            return None
        _watch = Watch(comm, node)
    if seconds is not None:
        _watch.seconds = seconds
    _watch.thread = threading.get_ident()
    return _watch


class Watch:
    """This rank's part of the watch; making one is collective over all ranks.

    Attributes:
        seconds: that ranks may wait for one that does not come; 0: for ever.
        thread: identity of the thread that is watched: the one that exchanges.
        position: says which step of training this rank is in, in training.
        gaps: begin and end, by `time.perf_counter_ns`, of times in which this process did not run.
    """

    def __init__(self, comm: Ranks, node: Any) -> None:
        self.rank, self.size, self.seconds = comm.rank, comm.size, DEFAULT_SECONDS
        self.thread = threading.get_ident()
        self.position: Callable[[], int] | None = None
        self.gaps: list[tuple[int, int]] = []
        self._page = Page(comm, node)
        self._beacon = NodeBeacon(comm, self._page)
        self._unmoved, self._silent = np.zeros(self.size), np.zeros(self.size)  # seconds by rank, as seen from here
        self._seen: Array = np.zeros((2, self.size), np.int64)
        self._waited, self._exchanges = 0.0, -1
        self._process: tuple[processes.Process, float] | None = None
        self._others: dict[int, tuple[processes.Process, float]] = {}
        self._told, self._warned = 0, False
        self._stalled: tuple[int, list[int], Array] | None = None
        self._left = False
        self._page.rows[self.rank]["pid"] = os.getpid()
        self._tell(*look_at(self.thread))
        alarm.listen()
        comm.barrier()
        atexit.register(self.leave)
        run = contextvars.copy_context().run  # by which errors name flags where the command made this
        threading.Thread(target=run, args=(self._run,), name="distai-mpi watch", daemon=True).start()
        edges.tell(edges.WITHIN)

    def leave(self) -> None:
        """Say that this rank has come to its end."""
        edges.tell(edges.EDGE)
        self._left = True
        self._tell(Activity.LEFT, "its program has ended")

    # --- the thread

    def _run(self) -> None:
        before = time.perf_counter()
        while True:
            pause = min(LOOK_SECONDS, self.seconds / 10) if self.seconds else LOOK_SECONDS
            time.sleep(max(0.02, pause))
            now = time.perf_counter()
            if now - before > pause + GAP_SECONDS:
                self.gaps.append((int(before * 1e9), int(now * 1e9)))
            try:
                self._look(min(now - before, 3 * pause))
            except Exception as error:  # a watch that fails must not end what it watches
                if not sys.is_finalizing():
                    sys.stderr.write(f"distai-mpi: warning: rank {self.rank} is no longer watched: {error!r}\n")
                return
            before = now

    def _look(self, passed: float) -> None:
        """Tell of this rank, hear of the others, and judge; ``passed``: seconds since the last look that count."""
        if self._left:
            self._page.rows[self.rank]["beat"] += 1
        else:
            found = look_at(self.thread)
            self._tell(found.activity, found.location, passed)
        if self._page.leader:
            self._beacon.receive()
        self._observe(passed)
        if self._page.leader:
            self._beacon.send(self._unmoved)
        if self._page.rows["alarm"].any():
            alarm.answer(EX_STUCK)
            return
        waits = int(self._page.rows[self.rank]["activity"]) == Activity.WAITING
        if not self.seconds or not waits:
            self._end_of_stall()
            self._waited = 0.0
            return
        if self._unmoved.min() < self._waited:
            self._end_of_stall()
        self._waited = float(self._unmoved.min())
        self._judge()

    def _tell(self, activity: Activity, location: str, passed: float = 0.0) -> None:
        row, count = self._page.rows[self.rank], exchanges()
        still = row["still"] + passed if count == self._exchanges else 0.0
        self._exchanges = count
        row["busy"] = self._is_busy() if still >= 1 else 1
        row["location"] = bytes_of(location)
        row["step"] = self.position() if self.position is not None else -1
        row["activity"], row["exchanges"], row["still"] = activity, count, still
        row["beat"] += 1

    def _is_busy(self) -> bool:
        found, now = processes.look_up(os.getpid()), time.monotonic()
        before, at = self._process or (found, now - 1)
        busy = found.busy_since(before, now - at)
        if self._process is None or now - at >= 1:
            self._process = (found, now)
            return busy
        return bool(self._page.rows[self.rank]["busy"])

    def _observe(self, passed: float) -> None:
        """Count for how long each rank has neither moved nor told of itself."""
        rows = self._page.rows
        for seconds, column, before in zip(
            (self._unmoved, self._silent), ("exchanges", "beat"), self._seen, strict=True
        ):
            now = rows[column].copy()
            seconds += passed
            seconds[now != before] = 0
            before[:] = now
        self._silent[self.rank] = 0
        silent = self._silent >= self._silence()
        if self._acting(silent):
            for rank in self._page.local:
                if silent[rank]:
                    self._look_up(rank)
                elif rows[rank]["state"]:
                    rows[rank]["state"] = 0
                    self._others.pop(rank, None)

    def _silence(self) -> float:
        """Seconds after which a rank that does not tell of itself is looked at."""
        return max(0.5, min(STILL_SECONDS, self.seconds / 2))

    def _acting(self, silent: Array) -> bool:
        """Whether this rank looks after the others of its node: the lowest one whose watch runs."""
        return next(rank for rank in self._page.local if not silent[rank]) == self.rank

    def _look_up(self, rank: int) -> None:
        """Look at the process of a ``rank`` of this node that does not tell of itself."""
        row, now = self._page.rows[rank], time.monotonic()
        found = processes.look_up(int(row["pid"]))
        row["state"] = ord(found.state)
        before, at = self._others.get(rank, (found, now))
        if now - at >= 1:
            row["busy"] = found.busy_since(before, now - at)
        if rank not in self._others or now - at >= 1:
            self._others[rank] = (found, now)

    # --- what follows from it

    def _judge(self) -> None:
        rows, silent = self._page.rows, self._silent >= self._silence()
        late = late_ranks(rows, silent)
        waiting = [rank for rank in range(self.size) if rank not in late]
        turn = waiting.index(self.rank) if self.rank in waiting else 0
        verdict = judge(rows, late, silent, self.seconds)
        self._stalled = (turn, late, rows.copy()) if turn == 0 else None
        if turn == 0 and verdict.warn_after <= self._waited < verdict.limit and not self._warned:
            self._warned = True
            alarm.write(f"warning: {self._describe(verdict, late)}{verdict.will_end}")
        pause = max(0.02, min(LOOK_SECONDS, self.seconds / 10))
        if self._waited >= verdict.limit + min(turn, 5) * 3 * pause:  # one speaks for all that wait
            rows[self.rank]["alarm"] = 1
            if self._page.leader:
                self._beacon.send(self._unmoved)
            alarm.write(f"error: {self._describe(verdict, late)}")
            to_wake = [int(rows[r]["pid"]) for r in late if r in self._page.local and silent[r]]
            alarm.answer(verdict.status, to_wake, f"the job ends with status {verdict.status}{verdict.advice}")

    def _describe(self, verdict: Verdict, late: list[int]) -> str:
        rows, hosts = self._page.rows, self._page.hosts
        waiting = [rank for rank in range(self.size) if rank not in late]
        step = max((int(rows[rank]["step"]) for rank in waiting), default=-1)
        told = f"{names(waiting)} {'has' if len(waiting) == 1 else 'have'} waited {self._waited:.0f} s"
        told += f" in step {step}" if step >= 0 else ""
        if not late:
            calls = sorted({f"{text_of(rows[rank]['location'])} (rank {rank})" for rank in waiting[:8]})
            return f"{told} for each other: in {'; in '.join(calls)}"
        told += f" in {text_of(rows[self.rank]['location'])} for "
        return told + "; for ".join(verdict.about(rank, hosts[rank]) for rank in late[:8])

    def _end_of_stall(self) -> None:
        """Tell of a long wait in training that has come to its end."""
        stalled, waited = self._stalled, self._waited
        self._stalled, self._warned = None, False
        if stalled is None or waited < TOLD_SECONDS or self._told >= MOST_TOLD:
            return
        text = stall_text(*stalled[1:], waited, self.size)
        if text is not None:
            self._told += 1
            alarm.write(text + (" (further waits are not told)" if self._told == MOST_TOLD else ""))
