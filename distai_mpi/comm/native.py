"""The MPI library's own collectives, cut into pieces whose counts it can take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from .wire import Array, MPIWire
from .workspace import Workspace

# One `Reduce` per owner in pieces of 1 MiB needs no large temporaries inside the library.  Open MPI 5.0, 2 cores:
# on 2 ranks it took 0.4 to 0.6 of `Reduce_scatter`'s time for vectors of 64 KiB to 4 MiB, on 3 ranks 0.9 to 1.1
# below 4 MiB and 0.6 to 0.7 above.  Shorter slices are a matter of latency, where `Reduce_scatter` wins.
SMALL_SLICE_BYTES = 16 << 10
REDUCE_BYTES = 1 << 20


def allreduce(wire: MPIWire, x: Array, work: Workspace) -> None:
    """Sum ``x`` over all ranks in place."""
    from mpi4py import MPI

    for piece in _pieces(x, wire.chunk_bytes):
        wire.comm.Allreduce(MPI.IN_PLACE, piece)
    _count(wire, 2 * x.nbytes)


def reduce_scatter(wire: MPIWire, x: Array, slices: Sequence[slice], work: Workspace) -> None:
    """Leave the sum of slice ``rank`` there."""
    from mpi4py import MPI

    counts = [s.stop - s.start for s in slices]
    scratch = work.segment(x.dtype)
    small = min(SMALL_SLICE_BYTES, scratch.nbytes)
    in_order = all(a.stop == b.start for a, b in pairwise(slices))
    if in_order and max(counts) * x.itemsize <= small and x.nbytes <= wire.chunk_bytes:
        # received aside: with IN_PLACE the result lies at the front of x, and it is slower besides
        result = scratch[: counts[wire.rank]]
        wire.comm.Reduce_scatter(x, result, counts)
        x[slices[wire.rank]] = result
    else:
        for owner, part in enumerate(slices):
            for piece in _pieces(x[part], min(REDUCE_BYTES, wire.chunk_bytes)):
                if owner == wire.rank:
                    wire.comm.Reduce(MPI.IN_PLACE, piece, root=owner)
                else:
                    wire.comm.Reduce(piece, None, root=owner)
    _count(wire, x.nbytes)


def allgather(wire: MPIWire, x: Array, slices: Sequence[slice], work: Workspace) -> None:
    """Copy slice ``r`` of rank ``r`` to all ranks."""
    from mpi4py import MPI

    if x.nbytes <= wire.chunk_bytes:
        counts, starts = [s.stop - s.start for s in slices], [s.start for s in slices]
        wire.comm.Allgatherv(MPI.IN_PLACE, (x, counts, starts, None))
    else:
        for owner, part in enumerate(slices):
            for piece in _pieces(x[part], wire.chunk_bytes):
                wire.comm.Bcast((piece, MPI.BYTE), root=owner)
    _count(wire, x.nbytes)


def bcast(wire: MPIWire, x: Array, root: int) -> None:
    """Copy ``x`` of rank ``root`` to all ranks; any dtype."""
    from mpi4py import MPI

    for piece in _pieces(x, wire.chunk_bytes):
        wire.comm.Bcast((piece, MPI.BYTE), root=root)
    _count(wire, x.nbytes)


def _pieces(x: Array, chunk_bytes: int) -> Iterator[Array]:
    """Cut a vector into views of at most ``chunk_bytes`` (and at least one element)."""
    if 0 < x.nbytes <= chunk_bytes:
        yield x
        return
    step = max(1, chunk_bytes // x.itemsize)
    for start in range(0, x.size, step):
        yield x[start : start + step]


def _count(wire: MPIWire, nbytes: int) -> None:
    """Count what a bandwidth-optimal algorithm makes this rank send: (N - 1)/N of ``nbytes``, on average."""
    wire.bytes_sent += nbytes * (wire.size - 1) // wire.size
