"""Signals that ask a run to end, heard from the first moment on and acted on when that becomes possible.

Python calls its handlers between two of its own instructions, never while a process waits inside of MPI or compiled
code.  So a thread hears of every signal too, and ends a process that cannot act on one.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from .exit_codes import EX_INTERRUPTED, EX_TERMINATED

ASKING = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGTERM") if hasattr(signal, name))
PATIENCE = 30.0  # seconds: as many as Slurm leaves between SIGTERM and SIGKILL unless told otherwise
LOOKS = 5  # times the longest pause between two looks at the signals that may pass in addition
_QUIT = 0  # no signal has this number

_current: Signals | None = None


@contextlib.contextmanager
def listening() -> Iterator[Signals]:
    """The `Signals` of this process: those of an outer block of this kind, else new ones for this block."""
    if _current is not None:
        yield _current
        return
    with Signals() as signals:
        yield signals


class Signals:
    """Within its ``with`` block SIGUSR1 and SIGTERM do nothing but set ``received``.

    Ranks have to agree before they can save, and after SIGTERM they may be unable to: where one task of a step has
    died, Slurm (26.05 and later) sends SIGTERM to all others, which then wait for the dead one.  So a process in which
    SIGTERM is not answered within `PATIENCE` ends with `EX_TERMINATED`, like one that has crashed.  SIGUSR1 comes from
    people and batch systems alone.  Before training it ends the process as late with `EX_INTERRUPTED`, for nothing is
    lost then; afterwards it waits for the ranks for as long as they take.

    Python handles signals in the main thread alone: in another one the block changes nothing.

    Attributes:
        received: the name of the first signal that came; None: none did.
        training: whether the first step has been reached: from then on there is something to lose.
        answered: set once the ranks have agreed what to do about a signal, or the run ends by itself.
        longest: seconds, the longest pause so far between two moments at which this rank could have acted.
        on_leave: called with the exit status just before the process is ended.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self.training = False
        self.answered = threading.Event()
        self.longest = 0.0
        self.on_leave: Callable[[int], None] | None = None
        self._looked = math.nan
        self._before: dict[int, Any] = {}
        self._pipe: tuple[int, int] | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Signals:
        global _current
        if threading.current_thread() is threading.main_thread():
            self._listen()
            for number in ASKING:
                self._before[number] = signal.signal(number, self._handle)
            _current = self
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()
        if self._thread is not None and self._pipe is not None:
            signal.set_wakeup_fd(-1)
            os.write(self._pipe[1], bytes([_QUIT]))
            self._thread.join()
            for end in self._pipe:
                os.close(end)

    def look(self) -> str | None:
        """``received``, at a moment at which this rank can act on it."""
        now = time.monotonic()
        if now - self._looked > self.longest:
            self.longest = now - self._looked
        self._looked = now
        return self.received

    def begin(self) -> None:
        """Training begins: from here on `look` is called again and again."""
        self.training, self._looked = True, time.monotonic()

    def save_nothing(self) -> None:
        """There is nowhere to save the run to: let SIGTERM end it as it ends any program, and SIGUSR1 do nothing.

        The latter comes before the end of the job's time, of which the run may still make good use.
        """
        if not self._before:
            return
        self.answered.set()
        signal.signal(signal.SIGTERM, self._before[signal.SIGTERM] or signal.SIG_DFL)
        if self.received == "SIGTERM":
            signal.raise_signal(signal.SIGTERM)

    def _restore(self) -> None:
        """Let signals do what they did before the block."""
        global _current
        if _current is self:
            _current = None
        for number, handler in self._before.items():  # None: a handler that was not installed from Python
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _in_child(self) -> None:
        """In a process that was forked within the block, as by `multiprocessing`: its signals are its own.

        Without this SIGTERM would not end it, and would be taken, by the pipe that both have, for one to this process.
        """
        if self._pipe is not None:
            signal.set_wakeup_fd(-1)
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number).name

    def _listen(self) -> None:
        """Start the thread, unless somebody else is told of signals in this way already."""
        read, write = os.pipe()
        os.set_blocking(write, False)
        if (other := signal.set_wakeup_fd(write, warn_on_full_buffer=False)) != -1:
            signal.set_wakeup_fd(other)
            os.close(read)
            os.close(write)
            return
        self._pipe = read, write
        self._thread = threading.Thread(target=self._hear, args=(read,), name="signals", daemon=True)
        self._thread.start()

    def _hear(self, pipe: int) -> None:
        """Wait for signals and count the seconds since; in the thread."""
        came: dict[int, float] = {}
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        while True:
            if poll.poll(200 if came else None):  # in milliseconds
                number = os.read(pipe, 1)[0]
                if number == _QUIT:
                    return
                if number in ASKING:
                    self._handle(number, None)
                    came.setdefault(number, time.monotonic())
            for number, since in list(came.items()):
                if self.answered.is_set():
                    came.clear()
                elif time.monotonic() - since > self._patience(number):
                    self._leave(number)

    def _patience(self, number: int) -> float:
        """Seconds that a signal may stay unanswered."""
        if self.training and number != signal.SIGTERM:
            return math.inf
        return PATIENCE + LOOKS * self.longest

    def _leave(self, number: int) -> None:
        """End this process, whose main thread waits for something that does not come."""
        name, terminated = signal.Signals(number).name, number == signal.SIGTERM
        status = EX_TERMINATED if terminated else EX_INTERRUPTED
        why = (
            "the ranks could not agree to save: one of them may have died"
            if self.training
            else "training has not begun"
        )
        with contextlib.suppress(Exception):
            if self.on_leave is not None:
                self.on_leave(status)
            waited = f"{self._patience(number):.0f} s"
            print(f"distai-mpi: {os.uname().nodename}, process {os.getpid()}: {name} came {waited} ago, and {why}; "
                  f"ending with status {status}", file=sys.stderr, flush=True)  # fmt: skip
        os._exit(status)


def _after_fork() -> None:
    if _current is not None:
        _current._in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
