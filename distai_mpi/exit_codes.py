"""Exit statuses of a run, in one place: batch scripts tell by them what to do next.

0 stands for a completed training alone, 2 for an error that the user can mend, 1 for a bug.
"""

from __future__ import annotations

EX_INTERRUPTED = 75  # ended by a signal, and will go on when it is started again: EX_TEMPFAIL of sysexits.h
EX_STUCK = 76  # a rank did not come, and the others gave up waiting: worth another start, as after a crash
EX_TERMINATED = 143  # SIGTERM came and nothing could be saved: as of a process that SIGTERM has killed
EX_ERROR = 2  # an error that the user can mend
