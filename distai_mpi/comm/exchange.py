"""Vectors of unequal lengths between ranks: from one to all, from all to one, and from all to all."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from itertools import accumulate

from ..backend import HOST, device_of
from ..errors import ConfigError
from ..params import Ownership
from .wire import Array, Wire


def scatterv(wire: Wire, send: Array | None, counts: Sequence[int], recv: Array, root: int) -> None:
    """See `Communicator.scatterv`."""
    check_vector(recv)
    if len(counts) != wire.size or recv.size != counts[wire.rank]:
        raise ValueError(f"counts {list(counts)} do not fit {wire.size} ranks and a buffer of {recv.size}")
    if wire.rank != root:
        wire.sendrecv(None, root, recv, root)
        return
    if send is None:
        raise ValueError("the root of scatterv needs the array to send")
    check_vector(send)
    if send.size != sum(counts) or send.dtype != recv.dtype:
        raise ValueError(f"cannot scatter {send.size} {send.dtype} as {sum(counts)} {recv.dtype}")
    stop = 0
    for rank, count in enumerate(counts):
        start, stop = stop, stop + count
        if rank == root:
            recv[:] = send[start:stop]
        else:
            wire.sendrecv(send[start:stop], rank, None, rank)


def gatherv(wire: Wire, send: Array, counts: Sequence[int], recv: Array | None, root: int) -> None:
    """See `Communicator.gatherv`."""
    check_vector(send)
    if len(counts) != wire.size or send.size != counts[wire.rank]:
        raise ValueError(f"counts {list(counts)} do not fit {wire.size} ranks and a vector of {send.size}")
    if wire.rank != root:
        wire.sendrecv(send, root, None, root)
        return
    if recv is None or recv.size != sum(counts) or recv.dtype != send.dtype:
        raise ValueError(f"the root of gatherv needs an array for {sum(counts)} {send.dtype}")
    stop = 0
    for rank, count in enumerate(counts):
        start, stop = stop, stop + count
        if rank == root:
            recv[start:stop] = send
        else:
            wire.sendrecv(None, rank, recv[start:stop], rank)


def alltoallv(wire: Wire, send: Array, send_counts: Sequence[int], recv: Array, recv_counts: Sequence[int]) -> None:
    """See `Communicator.alltoallv`."""
    check_vector(send)
    check_vector(recv)
    sends, receives = [0, *accumulate(send_counts)], [0, *accumulate(recv_counts)]
    fit = len(sends) == len(receives) == wire.size + 1 and sends[-1] == send.size and receives[-1] == recv.size
    if not fit or send.dtype != recv.dtype or send_counts[wire.rank] != recv_counts[wire.rank]:
        raise ValueError(
            f"counts {list(send_counts)} and {list(recv_counts)} do not fit {wire.size} ranks and vectors of "
            f"{send.size} {send.dtype} and {recv.size} {recv.dtype}"
        )
    for shift in range(wire.size):
        dest, source = (wire.rank + shift) % wire.size, (wire.rank - shift) % wire.size
        out, into = send[sends[dest] : sends[dest + 1]], recv[receives[source] : receives[source + 1]]
        if shift == 0:
            into[:] = out
        else:
            wire.sendrecv(out, dest, into, source)


def check_vector(x: Array) -> None:
    """Refuse what cannot be sent from where it lies."""
    check_contiguous(x)
    if device_of(x) is not HOST:
        raise ValueError("expected a vector in host memory, got one on a GPU: copy it first (backend.as_host)")


def check_same(gather: Callable[[str], list[str]], told: str, what: str) -> None:
    """Raise `ConfigError` on all ranks where one tells something else than rank 0; ``gather`` hands all to all."""
    answers = gather(told)
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


def check_sliced(call: Callable[..., None] | None) -> Callable[..., None]:
    """Return an algorithm's exchange of slices, which there may be none of."""
    if call is None:
        raise ValueError("this algorithm knows no slices: its table is replicated (see ownership)")
    return call


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
