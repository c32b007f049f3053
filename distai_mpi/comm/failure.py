"""What happens on all ranks when something goes wrong on one."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import ConfigError, DistaiError

if TYPE_CHECKING:
    from mpi4py import MPI

# mpiexec passes on what a rank has written when it next looks, and drops what is left when the job is aborted
FORWARDING_SECONDS = 0.3

Failure = tuple[type[DistaiError], str]


@contextmanager
def agreed(exchange: Callable[[Failure | None], list[Failure | None]]) -> Iterator[None]:
    """Turn a foreseeable error of any rank in the block into the same error on all ranks at its end.

    ``exchange`` hands one object per rank to all ranks.  `DistaiError` keeps
    its class; `OSError` and `MemoryError` become plain `DistaiError`.  The
    message is that of the lowest failing rank, which is named unless all ranks
    failed or the error is a `ConfigError`.
    Other exceptions are bugs and leave at once: they abort the job.
    No collective may be called inside, for a failed rank would not join it.
    """
    error: Exception | None = None
    try:
        yield
    except (DistaiError, MemoryError, OSError) as caught:
        error = caught
    failures = exchange(None if error is None else _describe(error))
    failed = [rank for rank, failure in enumerate(failures) if failure is not None]
    if failed:
        kind, message = failures[failed[0]]  # type: ignore[misc]
        everywhere = len(failed) == len(failures) or issubclass(kind, ConfigError)  # a setting is no rank's own
        raise kind(message if everywhere else f"rank {failed[0]}: {message}") from error


def _describe(error: Exception) -> Failure:
    if isinstance(error, DistaiError):
        return type(error), str(error)
    if isinstance(error, MemoryError):
        return DistaiError, f"not enough memory: {error}" if str(error) else "not enough memory"
    name = f"{error.filename}: " if isinstance(error, OSError) and error.filename is not None else ""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return DistaiError, f"{name}{reason}"


def install_abort_hook(comm: MPI.Intracomm) -> None:
    """Make an uncaught exception on any rank end the whole job with that rank's traceback.

    Without it the other ranks would wait for the failed one for ever.  Every
    line is marked with the rank; Ctrl-C gives one line and status 130, all
    else status 1.  Holds for threads too.  Alone, a rank keeps Python's hooks.
    """
    if comm.size == 1:
        return
    mark = f"[rank {comm.rank} of {comm.size} on {os.uname().nodename}] "

    def abort(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> NoReturn:
        interrupted = issubclass(kind, KeyboardInterrupt)
        text = "interrupted" if interrupted else "".join(traceback.format_exception(kind, error, trace)).rstrip()
        try:
            sys.stdout.flush()
            # one write, so that the lines of ranks that fail together stay whole
            sys.stderr.write("".join(f"{mark}{line}\n" for line in text.splitlines()))
            sys.stderr.flush()
            time.sleep(FORWARDING_SECONDS)
        finally:
            comm.Abort(130 if interrupted else 1)
        raise SystemExit(1)  # not reached

    def abort_thread(args: Any) -> None:
        if not issubclass(args.exc_type, SystemExit):
            abort(args.exc_type, args.exc_value, args.exc_traceback)

    sys.excepthook = abort
    threading.excepthook = abort_thread
