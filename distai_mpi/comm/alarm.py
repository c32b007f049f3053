"""What a rank does once ranks have given up waiting: it writes its stacks, and the job ends."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence

from . import exits, leaving
from .whereabouts import stacks

DUMP_SECONDS = 2.0  # in which all ranks write their stacks, and a launcher passes them on
ABORT_SECONDS = 10.0  # for the launcher to end this process
# Ignored where nobody listens.  A rank whose interpreter is held by compiled code can write its stack by a handler
# alone, which needs no interpreter.
WAKE = signal.SIGURG


def listen() -> None:
    """Let `WAKE` write this process's Python stacks, unless something else listens to it."""
    with contextlib.suppress(ValueError, OSError, AttributeError):  # a stderr without a file, as under a test runner
        if sys.__stderr__ is not None and signal.getsignal(WAKE) in (signal.SIG_DFL, signal.SIG_IGN):
            faulthandler.register(WAKE, file=sys.__stderr__, all_threads=True)


def write(text: str) -> None:
    """Write a message to standard error."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"distai-mpi: {text}\n")
        sys.stderr.flush()


def answer(status: int, wake: Sequence[int] = (), last_words: str | None = None) -> None:
    """Write this rank's stacks and end: at once with ``last_words`` where this rank speaks, else when others have not.

    ``wake``: processes of this node that may write theirs by a signal.
    """
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(exits.marked(stacks()))
        sys.stderr.flush()
    for pid in wake:
        with contextlib.suppress(OSError):
            os.kill(pid, WAKE)
    if last_words is None:
        time.sleep(DUMP_SECONDS + ABORT_SECONDS)
    else:
        time.sleep(DUMP_SECONDS)
        write(last_words)
        time.sleep(exits.FORWARDING_SECONDS)
        threading.Thread(target=leaving.abort, args=(status,), daemon=True).start()  # it may hang as well
        time.sleep(ABORT_SECONDS)
    os._exit(status)
