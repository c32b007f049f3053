"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from typing import BinaryIO

from .errors import ConfigError

LOCK = ".lock"


def write_whole(path: str, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, make it durable, and put it in the place of ``path``.

    Raises:
        ConfigError: it cannot be written; what was at ``path`` is then still there, and nothing else.
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
    locks there is none.

    Raises:
        ConfigError: the folder cannot be made or written to, or another process holds it.
    """
    path, new = os.path.join(folder, LOCK), not os.path.exists(folder)
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be made ({error.strerror}); name a folder of your own") from None
    try:
        file = open(path, "w")
    except OSError as error:
        raise _unwritable(path, error) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{folder}: another run writes to this folder now; name another one, or wait") from None
        except OSError:
            pass  # no locks here
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.remove(path)
                if new:  # and nothing was written to it
                    os.rmdir(folder)


def _unwritable(path: str, error: OSError) -> ConfigError:
    return ConfigError(f"{path}: cannot be written ({error.strerror}); make room or name another place")
