"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from .errors import ConfigError

LOCK = ".lock"
TRIES = 100  # to lock a file that others may be removing


class Unwritable(ConfigError):
    """A file that cannot be written, now: a disk may be full, a quota used up, a file server away."""


def write_whole(path: str, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, make it durable, and put it in the place of ``path``.

    Raises:
        Unwritable: it cannot be written; what was at ``path`` is then still there, and nothing else.
    """
    temporary = f"{path}.tmp"
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        if isinstance(error, OSError):
            raise _unwritable(path, error) from None
        raise


def write_json(path: str, value: Any) -> None:
    """Write ``value`` as indented JSON by `write_whole`."""
    write_whole(path, lambda file: file.write((json.dumps(value, indent=2) + "\n").encode()))


def write_patiently(
    write: Callable[[], object],
    seconds: float,
    pause: float,
    tell: Callable[[str], object],
    going_on: Callable[[], object],
) -> None:
    """Call ``write`` again and again, with a ``pause`` between, until it succeeds or ``seconds`` are over.

    ``tell`` is called with the message of the first failure; ``going_on`` is called before each further try.

    Raises:
        Unwritable: as ``write`` raised it the last time.
    """
    end, reported = time.monotonic() + seconds, False
    while True:
        try:
            write()
            return
        except Unwritable as error:
            left = end - time.monotonic()
            if left <= 0:
                raise
            if not reported:
                tell(f"{error}; trying again for {seconds:.0f} s")
                reported = True
        time.sleep(min(pause, left))
        going_on()


def check_writable(path: str) -> None:
    """Raise `ConfigError` unless `write_whole` can make a file at ``path``; leaves nothing there."""
    if os.path.isdir(path):
        raise ConfigError(f"{path}: cannot be written, for it is a folder; name a file")
    temporary = f"{path}.tmp"
    try:
        open(temporary, "wb").close()
        os.remove(temporary)
    except OSError as error:
        raise _unwritable(path, error) from None


@contextlib.contextmanager
def claimed(folder: str) -> Iterator[None]:
    """Make ``folder`` if it is missing, and keep other processes from claiming it for as long as the block runs.

    The claim is a lock on a file there, which ends with the process, however that ends.  On a file system without
    locks there is none.  (filelock leaves its file behind, and a killed run would keep its claim on such file systems.)

    Raises:
        ConfigError: the folder cannot be made or written to, or another process holds it.
    """
    path, new = os.path.join(folder, LOCK), not os.path.exists(folder)
    file = next(filter(None, (_locked(folder, path) for _ in range(TRIES))), None)
    if file is None:
        raise ConfigError(f"{path}: cannot be made, for others make and remove it at the same time; start again")
    with file:
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.remove(path)
                if new:  # and nothing was written to it
                    os.rmdir(folder)


def _locked(folder: str, path: str) -> BinaryIO | None:
    """The file at ``path`` in ``folder``, made and locked; None where its last holder has just removed it."""
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be made ({error.strerror}); name a folder of your own") from None
    try:
        file = open(path, "wb")
    except FileNotFoundError:  # the folder as well
        return None
    except OSError as error:
        raise _unwritable(path, error) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ConfigError(f"{folder}: another run writes to this folder now; name another one, or wait") from None
    except OSError:
        return file  # no locks here
    with contextlib.suppress(OSError):
        if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            return file
    file.close()
    return None


def _unwritable(path: str, error: OSError) -> Unwritable:
    return Unwritable(f"{path}: cannot be written ({error.strerror}); make room or name another place")
