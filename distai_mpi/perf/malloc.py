"""Settings of glibc's malloc: whether large blocks that are freed go back to the kernel or are kept.

A library that allocates scratch memory in a call and frees it again pays a page fault for every 4 KiB, in each call,
unless malloc keeps what is freed.  By default it keeps pieces up to 32 MiB once it has seen one of them freed (its
thresholds follow what is freed), and gives back longer ones.  `keep` does to a running process what the environment
``MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000`` does to a new one.  Measured by the page faults of an
Allreduce of 256 KiB to 256 MiB in Open MPI 5.0: the same with either, none; by default, and after `give_back`, one for
every 8 KiB from 32 MiB up.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # malloc.h
DEFAULT_MMAP_MAX = 65536
LARGEST_THRESHOLD = 32 << 20  # up to which the default one grows; that of trimming is twice as much
VARIABLES = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")

_kept = False  # the last setting of malloc


def why_not(env: Mapping[str, str] | None = None) -> str | None:
    """Why malloc cannot be set, or should not; None where it can."""
    env = os.environ if env is None else env
    chosen = [name for name in VARIABLES if name in env]
    if "glibc.malloc" in env.get("GLIBC_TUNABLES", ""):
        chosen.append("GLIBC_TUNABLES")
    if chosen:
        return f"malloc does what {', '.join(chosen)} says"
    libc = ctypes.CDLL(None)
    if not (hasattr(libc, "gnu_get_libc_version") and hasattr(libc, "mallopt")):
        return "malloc is not glibc's"
    return None


def keep() -> None:
    """Let malloc keep all memory that is freed; only where `why_not` knows no reason."""
    global _kept
    if not _kept:
        _tell({MMAP_MAX: 0, TRIM_THRESHOLD: -1})  # -1: never
    _kept = True


def give_back() -> None:
    """Undo `keep`, if it was called: what a default malloc comes to after large pieces were freed; trim its memory."""
    global _kept
    if _kept:
        thresholds = {MMAP_THRESHOLD: LARGEST_THRESHOLD, TRIM_THRESHOLD: 2 * LARGEST_THRESHOLD}
        _tell({MMAP_MAX: DEFAULT_MMAP_MAX, **thresholds})
        ctypes.CDLL(None).malloc_trim(0)
    _kept = False


def _tell(parameters: Mapping[int, int]) -> None:
    libc = ctypes.CDLL(None)
    for parameter, value in parameters.items():
        if libc.mallopt(parameter, value) != 1:
            raise OSError(f"mallopt({parameter}, {value}) was refused")
