"""Vectors of unequal lengths between ranks: from one to all, from all to one, and from all to all."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from .checks import check_vector
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
