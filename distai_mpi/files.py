"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import BinaryIO

from .errors import ConfigError


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


def _unwritable(path: str, error: OSError) -> ConfigError:
    return ConfigError(f"{path}: cannot be written ({error.strerror}); make room or name another place")
