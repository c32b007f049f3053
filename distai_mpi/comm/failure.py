"""Foreseeable errors of one rank become errors of all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..errors import ConfigError, DistaiError

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
