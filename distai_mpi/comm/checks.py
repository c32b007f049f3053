"""What an exchange refuses, on all ranks alike."""

from __future__ import annotations

import operator
from collections.abc import Callable

from ..backend import HOST, device_of
from ..errors import ConfigError
from ..params import Ownership
from .wire import Array


def check_vector(x: Array) -> None:
    """Refuse what cannot be sent from where it lies."""
    check_contiguous(x)
    if device_of(x) is not HOST:
        raise ValueError("expected a vector in host memory, got one on a GPU: copy it first (backend.as_host)")


def check_same(gather: Callable[[str], list[str]], asked: str, what: str) -> None:
    """Raise `ConfigError` on all ranks where one asks for something else than rank 0; ``gather`` hands all to all."""
    answers = gather(asked)
    for rank, answer in enumerate(answers):
        if answer != answers[0]:
            raise ConfigError(f"{what} differ: rank 0 has {answers[0]}, rank {rank} has {answer}")


def check_alike(x: Array, out: Array) -> None:
    """Refuse an ``out`` that is no place for a sum of vectors like ``x``."""
    check_contiguous(out)
    if out.size != x.size or out.dtype != x.dtype:
        raise ValueError(f"cannot sum {x.size} {x.dtype} into {out.size} {out.dtype}")


def check_table(owners: Ownership, x: Array, ranks: int) -> None:
    """Refuse a table that is not for vectors like ``x`` on so many ranks."""
    if owners.size != x.size or len(owners.slices) != ranks:
        raise ValueError(
            f"a table for {owners.size} elements on {len(owners.slices)} ranks "
            f"does not fit a vector of {x.size} on {ranks}"
        )


def check_size(size: int) -> int:
    """Refuse what is no number of elements."""
    if (size := operator.index(size)) < 0:
        raise ValueError(f"a vector cannot have {size} elements")
    return size


def check_numbers(x: Array) -> None:
    """Refuse what has no sum, or cannot take it."""
    if x.dtype.kind not in "fiu" or not x.dtype.isnative:
        raise ValueError(f"cannot sum {x.dtype.str}: expected floats or integers in this machine's byte order")
    if not getattr(x.flags, "writeable", True):  # CuPy's arrays always are
        raise ValueError("expected a vector that can be written to, got a read-only one")


def check_contiguous(x: Array) -> None:
    """Refuse what is no vector, or has gaps."""
    if x.ndim != 1 or not x.flags.c_contiguous:
        raise ValueError(f"expected a contiguous vector, got shape {x.shape} with strides {x.strides}")
