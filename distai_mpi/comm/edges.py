"""The edges of a run, MPI_Init and MPI_Finalize: a rank that is stopped there, where the watch cannot see it.

The others wait inside of MPI for a process that does not run, and MPI tells nobody of it.  So each process of a job has
a small one beside it, from before MPI starts until the process is gone.  That looks once a second whether its process
is stopped, says so after a while, and kills it: then the launcher ends the job, with a status that is not 0.  Between
the edges it sleeps: there the watch gives reasons, and ends the job in order.

This file is also the program of that small process, which imports nothing of the package.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys

STOPPED_SECONDS = 30  # or DISTAI_WATCH, where that is less; 0: for ever
SIGNALS = (1, 2, 10, 12, 15)  # HUP, INT, USR1, USR2, TERM: to the group they come, and are not for the small process
WITHIN, EDGE = b"w", b"e"

_pipe: int | None = None  # tells the small process where this one is; its end tells of this one's


def begin(rank: int, size: int) -> None:
    """Start the small process of this ``rank``, where there is none yet, several ranks, and Linux's /proc."""
    global _pipe
    seconds = _seconds()
    if _pipe is not None or size == 1 or seconds == 0 or not os.path.exists("/proc/self/stat"):
        return
    read, _pipe = os.pipe()
    words = [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(rank), str(seconds)]
    actions = [(os.POSIX_SPAWN_DUP2, read, 0)]
    with contextlib.suppress(OSError):  # a limit of processes: a run without it is better than none
        os.posix_spawn(sys.executable, words, os.environ, file_actions=actions, setsigmask=SIGNALS)
    os.close(read)
    atexit.register(tell, EDGE)


def tell(where: bytes) -> None:
    """Say that this process is at an edge, or `WITHIN` a part of the run that the watch sees."""
    if _pipe is not None:
        with contextlib.suppress(OSError):
            os.write(_pipe, where)


def end() -> None:
    """Let the small process end: stopped ranks are waited for."""
    global _pipe
    if _pipe is not None:
        os.close(_pipe)
        _pipe = None


def _seconds() -> int:
    text = os.environ.get("DISTAI_WATCH", "")
    with contextlib.suppress(ValueError, OverflowError):
        return max(int(min(float(text), STOPPED_SECONDS)), float(text) > 0)
    return STOPPED_SECONDS


def look_after(pid: int, rank: str, seconds: int) -> None:
    """Kill process ``pid``, the parent, once it has been stopped for so long at an edge; return when it is gone."""
    import select

    where, stopped = EDGE, 0
    while os.getppid() == pid:
        if select.select([0], [], [], 1.0 if where == EDGE else None)[0]:
            where, stopped = os.read(0, 1), 0
            if not where:
                return
            continue
        with open(f"/proc/{pid}/stat", "rb") as file:
            stopped = stopped + 1 if file.read().rpartition(b") ")[2][:1] == b"T" else 0
        if stopped >= seconds:
            who = f"rank {rank} on {os.uname().nodename} (process {pid})"
            why = f"has been stopped for {seconds} s (process state T) at the start or end of MPI"
            os.write(2, f"distai-mpi: error: {who} {why}: it is killed\n".encode())
            os.kill(pid, 9)


if __name__ == "__main__":
    with contextlib.suppress(OSError):
        look_after(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
