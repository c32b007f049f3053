"""Kernels are compiled once per kind of processor: one process does it, the others read what it left in the cache.

Numba keeps compiled kernels in files, but lets every process that finds none compile for itself: N ranks of a node
then spend N times what one spends.  Here a process that misses a kernel takes the lock of its file, looks again, and
compiles only if the kernel is still missing.  The kernel frees the lock (flock) of a process that dies, whoever waits
then compiles.  Files are named by the kind of processor, so that unlike nodes may share a folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import time
import zlib
from collections.abc import Callable
from typing import Any

from .messages import tell

LONGEST_WAIT = 300.0  # seconds for another process, which may be stopped, before this one compiles, too
FIRST_PAUSE, LONGEST_PAUSE = 0.002, 0.05  # seconds between two looks at a lock
PATIENCE = 1.0  # seconds of compiling before anything is told


class Compiling:
    """What this process has compiled, or waited for, and who is told of it."""

    def __init__(self) -> None:
        self.kernels = 0  # compiled, or read after another process had compiled them
        self.seconds = 0.0  # from the misses of these to their ends
        self.folder: str | None = None  # that of the last one; None where it could not be kept
        self.told: Callable[[Compiling], None] | None = None  # called after each of them
        self._began: float | None = None  # where one is being compiled; it may need others, which do not count

    def begin(self) -> bool:
        """A kernel is missing; whether it is counted, and `end` is to be called."""
        if self._began is not None:
            return False
        self._began = time.monotonic()
        return True

    def end(self, folder: str | None) -> None:
        """The kernel that `begin` counted is there, and kept in ``folder``."""
        assert self._began is not None
        self.seconds += time.monotonic() - self._began
        self.kernels, self.folder, self._began = self.kernels + 1, folder, None
        if self.told:
            self.told(self)


compiling = Compiling()  # of this process


class Progress:
    """Tells of compilation on standard error once it takes longer than `PATIENCE`, each time after twice as long.

    Args:
        expected: about how many kernels there are to compile; 0: unknown.
    """

    def __init__(self, expected: int = 0) -> None:
        self.expected, self._next = expected, PATIENCE

    def __call__(self, state: Compiling) -> None:
        if state.seconds < self._next:
            return
        self._next = 2 * state.seconds
        of = f"of about {max(self.expected, state.kernels + 1)}" if self.expected else "so far"
        kept = "once" if state.folder else "not kept: name a folder that can be written by NUMBA_CACHE_DIR"
        tell(f"compiling kernels for this machine ({kept}): {state.kernels} {of} after {state.seconds:.0f} s ...")


class _Lock:
    """A lock file among the processes of the machine; where the file system has no locks there is none."""

    useful = True  # false once something could not be kept: waiting for others is in vain then

    def __init__(self, path: str) -> None:
        self.path, self._file = path, -1

    def take(self) -> None:
        """Wait until it is free, for `LONGEST_WAIT` at most; nothing where this process has it."""
        if self._file >= 0 or not _Lock.useful:
            return
        pause, until = FIRST_PAUSE, time.monotonic() + LONGEST_WAIT
        try:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError:
            return
        while time.monotonic() < until:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            except OSError:
                break
            else:
                self._file = file
                return
        os.close(file)

    def free(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def compiled_once(dispatcher: Any) -> Any:
    """``dispatcher``, of a function with a cache, compiling what no process of the machine has compiled yet.

    What cannot be read from the cache, or kept there, is compiled: failures of the cache are none of the program's.
    Numba has no public way to this; the seams are the dispatcher's ``compile`` and the cache's ``load_overload`` and
    ``save_overload``, which it calls.
    """
    from numba.core.compiler_lock import global_compiler_lock

    cache, compile_ = dispatcher._cache, dispatcher.compile
    load, save, lock, kept = cache.load_overload, cache.save_overload, _Lock(""), False

    def read(signature: Any, target: Any) -> Any:
        with contextlib.suppress(Exception):  # a file that a crash has cut short fails in many ways
            return load(signature, target)

    def load_or_lock(signature: Any, target: Any) -> Any:
        nonlocal lock, kept
        if not lock.path:
            lock = _Lock(_by_processor(cache, target.codegen()))
        found = read(signature, target)
        if found is None:
            missed.append(compiling.begin())
            lock.take()
            found = read(signature, target)
            kept = found is not None
            if not kept:  # compiling makes little garbage, and looking for it takes a tenth of the time
                gc.disable()
        return found

    def keep(signature: Any, result: Any) -> None:
        nonlocal kept
        try:
            save(signature, result)
            kept = True
        except Exception:
            _Lock.useful = False

    def compile_one(signature: Any) -> Any:
        with global_compiler_lock:  # Numba's own, that it takes inside: threads share what is noted here
            misses, collects = len(missed), gc.isenabled()
            try:
                return compile_(signature)
            finally:
                if collects:
                    gc.enable()
                while len(missed) > misses:
                    lock.free()
                    if missed.pop():
                        compiling.end(cache.cache_path if kept else None)

    missed: list[bool] = []
    cache.load_overload, cache.save_overload, dispatcher.compile = load_or_lock, keep, compile_one
    return dispatcher


def _by_processor(cache: Any, codegen: Any) -> str:
    """Let ``cache`` name its files by the kind of processor; the path of their lock, "" where nothing can be kept.

    A damaged index is as good as none.  Data are written before the index that names them: readers take no lock.
    """
    files = getattr(cache, "_cache_file", None)
    if files is None:
        return ""
    kind = zlib.crc32(repr(codegen.magic_tuple()).encode())
    base = f"{cache._impl.filename_base}-{kind:08x}"
    cache._cache_file = files = type(files)(files._cache_path, base, files._source_stamp)
    load_index = files._load_index

    def index() -> dict[Any, str]:
        try:
            return load_index()
        except Exception:
            return {}

    def save(key: Any, data: Any) -> None:
        overloads = index()
        names = (files._data_name(number) for number in range(1, len(overloads) + 2))
        name = overloads.get(key) or next(name for name in names if name not in overloads.values())
        files._save_data(name, data)
        files._save_index(overloads | {key: name})

    files._load_index, files.save = index, save
    return os.path.join(files._cache_path, f"{base}.lock")
