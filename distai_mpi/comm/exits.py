"""How a rank leaves the job: with the others, or so that they do not wait for it for ever.

MPI gives a rank that ends by an exception, or by ``sys.exit``, no way to tell the others: they wait in their next
collective call, and the rank itself waits for them in ``MPI_Finalize``.  The hooks of this module end the job there.
They come with `Communicator`, whatever communicator of mpi4py it is made of, and act only where MPI runs with several
ranks; in an interactive session (``python -i``, IPython, a notebook's kernel) an error ends nothing, and they do not
act at all.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, NoReturn

from . import leaving

# mpiexec passes on what a rank has written when it next looks, and drops what is left when the job is aborted
FORWARDING_SECONDS = 0.3
GRACE_SECONDS = 3.0  # in which the others may leave as well
DONE_SECONDS = 30.0  # the same for a rank that leaves without an error: the others may have more to do
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class Asked(NamedTuple):
    """A call of ``sys.exit``: the status it stands for, and how many exchanges this rank had made."""

    status: int
    exchanges: int


_asked: Asked | None = None
_installed = False
_owner: int | None = None  # the thread that made the last communicator
_exchanges: Callable[[], int] = int  # how often this process has exchanged anything
_sys_exit = sys.exit


def install() -> None:
    """Have uncaught exceptions and exits of this process looked at; twice is harmless.

    An exception that nothing catches ends the job with that rank's traceback, each line marked with the rank, and
    status 1; Ctrl-C with one line and status 130.  It counts in the main thread and in one that has made a
    `Communicator`: in other threads Python prints it, as ever.  ``sys.exit(status)`` with an error ends the job with
    that status unless all ranks leave within `GRACE_SECONDS`.
    """
    global _installed
    if _installed:
        return
    _installed = True
    sys.excepthook, threading.excepthook = _hook(sys.excepthook), _thread_hook(threading.excepthook)
    sys.exit = _exit
    atexit.register(_at_exit)


def owned_by_this_thread(exchanges: Callable[[], int]) -> None:
    """Say that the calling thread exchanges with other ranks, and how to learn how often this process has."""
    global _owner, _exchanges
    _owner, _exchanges = threading.get_ident(), exchanges


def _hook(before: Any) -> Callable[..., None]:
    def hook(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
        if not _acts():
            before(kind, error, trace)
            return
        own = before is not sys.__excepthook__
        if own:  # somebody else's hook: it tells what there is to tell in its own way
            before(kind, error, trace)
        _end(kind, error, None if own else trace)

    return hook


def _thread_hook(before: Any) -> Callable[[Any], None]:
    def hook(args: Any) -> None:
        if args.thread is None or args.thread.ident != _owner or issubclass(args.exc_type, SystemExit) or not _acts():
            before(args)
            return
        _end(args.exc_type, args.exc_value, args.exc_traceback)

    return hook


def _acts() -> bool:
    """Whether there are ranks to be told, and no person who types."""
    return leaving.connected() and not (sys.flags.interactive or hasattr(sys, "ps1"))


def _end(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> NoReturn:
    """End the job because of an exception, and say which."""
    interrupted = issubclass(kind, KeyboardInterrupt)
    text = "interrupted" if interrupted else "".join(traceback.format_exception(kind, error, trace)).rstrip()
    abort(text, INTERRUPTED if interrupted else 1)


def abort(text: str, status: int) -> NoReturn:
    """End all ranks of the job with ``status`` (the launcher's may be another), and say why on this one's account."""
    try:
        sys.stdout.flush()
        sys.stderr.write(marked(text))  # one write, so that the lines of ranks that fail together stay whole
        sys.stderr.flush()
        time.sleep(FORWARDING_SECONDS)
    finally:
        leaving.abort(status)
    os._exit(status)  # not reached where MPI runs


def marked(text: str) -> str:
    """``text`` with every line marked with this rank."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    mark = f"[rank {comm.rank} of {comm.size} on {os.uname().nodename}] "
    return "".join(f"{mark}{line}\n" for line in text.splitlines())


def leave(error: SystemExit) -> None:
    """See that all ranks leave by `SystemExit`, as this one does; ends the job where they do not."""
    status = status_of(error.code)
    if not leaving.leave_together(GRACE_SECONDS if status else DONE_SECONDS):
        _end_alone(status, None if isinstance(error.code, int) else error.code)


def status_of(code: object) -> int:
    """The exit status that Python makes of what ``sys.exit`` is given."""
    if code is None:
        return 0
    return code & 0xFF if isinstance(code, int) else 1


def _end_alone(status: int, message: object) -> NoReturn:
    told = [] if message is None else [str(message)]
    told.append(f"left by sys.exit (status {status}) while other ranks go on; the job ends with it")
    abort("\n".join(told), status or 1)


def _exit(status: Any = None, /) -> NoReturn:
    """``sys.exit``, of which `_at_exit` hears: nothing else tells it that the interpreter ends by one."""
    global _asked
    if threading.current_thread() is threading.main_thread():
        _asked = Asked(status_of(status), _exchanges())
    _sys_exit(status)


def _at_exit() -> None:
    """When Python ends: see that nobody waits for a rank that left with an error.

    A rank that exchanged anything after ``sys.exit`` was called has caught that exit, and ends for another reason.  A
    rank that ends in order does nothing here: it waits for the others in ``MPI_Finalize``.
    """
    asked = _asked
    if asked is None or asked.status == 0 or asked.exchanges != _exchanges() or not _acts():
        return
    if not leaving.leave_together(GRACE_SECONDS):
        _end_alone(asked.status, None)
