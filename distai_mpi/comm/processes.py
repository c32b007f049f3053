"""What the operating system knows of a process of this machine, Linux's /proc; nothing elsewhere."""

from __future__ import annotations

from typing import NamedTuple

ENDED = "ZXx"  # letters of a process that has ended
STOPPED = "T"  # by SIGSTOP or SIGTSTP; one that a debugger holds has "t"
MOVED_BYTES = 64 << 10  # that tell of reading or writing


class Process(NamedTuple):
    """State and use of a process.

    Attributes:
        state: the letter of /proc/PID/stat; ``X`` where there is no such process; ``?`` where it cannot be seen.
        ticks: clock ticks of processor time that it has used.
        moved: bytes that it has read and written.
    """

    state: str
    ticks: int = 0
    moved: int = 0

    def busy_since(self, before: Process, seconds: float) -> bool:
        """Whether it has used a fifth of a processor since ``before``, so long ago, or moved data."""
        return self.ticks - before.ticks >= 20 * seconds or self.moved - before.moved > MOVED_BYTES


def look_up(pid: int) -> Process:
    """What is known of process ``pid``."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()
    except FileNotFoundError:
        return Process("X" if _has_proc() else "?")
    except OSError:
        return Process("?")
    return Process(fields[0].decode(), int(fields[11]) + int(fields[12]), _moved(pid))


def _has_proc() -> bool:
    try:
        open("/proc/self/stat", "rb").close()
    except OSError:
        return False
    return True


def _moved(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/io", "rb") as file:
            return sum(int(line.split()[1]) for line in file if line.startswith((b"rchar", b"wchar", b"read_bytes")))
    except OSError:  # another user's
        return 0
