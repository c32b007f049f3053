"""The ranks that train together, and how they exchange vectors."""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from ..backend import HOST, Device, as_host
from ..errors import ConfigError
from ..params import Ownership
from . import exchange, failure, launch, native, shared
from .collectives import ALGORITHMS, Algorithm
from .pending import Pending
from .staging import Staging
from .wire import CHUNK_BYTES, Array, MPIWire
from .workspace import Workspace

if TYPE_CHECKING:
    from mpi4py import MPI

LONG_WAIT_SECONDS = 0.01  # between two looks of `Communicator.barrier_asleep`


@dataclass(frozen=True)
class Node:
    """The ranks that share memory with this one: their numbers, and this one's index among them."""

    ranks: tuple[int, ...]
    rank: int

    @property
    def size(self) -> int:
        """How many ranks share the node."""
        return len(self.ranks)


class Communicator:
    """A private duplicate of an mpi4py communicator, for vectors of numbers.

    All methods but the properties and `ownership` are collective: every rank
    calls them in the same order.  Vectors are 1-D, contiguous NumPy arrays,
    alike in length and dtype on all ranks; those of `allreduce`, `reduce_scatter`,
    `allgather` and `bcast` may lie on a GPU, and travel through host memory.  A communicator
    of one rank does no MPI work.  ``algorithm`` names one of `ALGORITHMS`; None stands for the
    communicator's default.  ``chunk_bytes`` bounds a single message.

    ``rounds`` counts the collective exchanges of arrays that were made (none
    on one rank), ``bytes_sent`` the bytes this rank sent in them: exactly for
    the package's own algorithms, and for the library's what an optimal one
    sends on average, 2(N - 1)/N of an allreduced vector.
    """

    def __init__(self, mpi_comm: MPI.Intracomm, algorithm: str = "native", chunk_bytes: int = CHUNK_BYTES) -> None:
        from mpi4py import MPI

        self.default_algorithm = algorithm
        self._named(algorithm)
        self._comm = mpi_comm.Dup()
        self._node_comm: Any = self._comm.Split_type(MPI.COMM_TYPE_SHARED, self._comm.rank)
        self._wire = MPIWire(self._comm, chunk_bytes)
        self._work = Workspace()
        self._staging = Staging()
        self._windows: list[MPI.Win] = []
        self._aside: Any = None  # what `pending` travels on: made when first used
        self._pending: Pending | None = None  # the last, so that its buffers live as long as MPI uses them
        self._float16: bool | None = None  # whether the library sums float16: asked once, when first needed
        self.rank: int = self._comm.rank
        self.size: int = self._comm.size
        self.node = Node(tuple(self._node_comm.allgather(self.rank)), self._node_comm.rank)
        self.leaders: tuple[int, ...] = tuple(sorted(set(self._comm.allgather(self.node.ranks[0]))))
        self.rounds = 0

    def __enter__(self) -> Communicator:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if kind is None:  # after an error other ranks may not come: freeing would wait for them
            self.free()
        elif not issubclass(kind, Exception):  # this rank exits, which no hook sees
            done = isinstance(error, SystemExit) and error.code in (None, 0)
            if not launch.leave_together(30.0 if done else 3.0):
                launch.abort(1)

    def free(self) -> None:
        """Give back the shared arrays, which must not be used after, and the communicator.  Twice is harmless."""
        while self._windows:
            shared.release(self._windows.pop())
        for comm in (self._aside, self._node_comm, self._comm):
            if comm:
                comm.Free()

    @property
    def bytes_sent(self) -> int:
        """Bytes this rank has sent in collectives."""
        return self._wire.bytes_sent

    # --- sums over all ranks

    def allreduce(self, x: Array, algorithm: str | None = None) -> None:
        """Sum ``x``, shape (n,), over all ranks in place, in its own dtype; all ranks get the same bits."""
        chosen = self._choose(x, algorithm)
        if self.size > 1:
            self.rounds += 1
            self._sum_all(chosen, x)

    def _sum_all(self, chosen: Algorithm, x: Array) -> None:
        whole = slice(0, x.size)
        host = self._staging.down(x, whole)
        chosen.allreduce(self._wire, host, self._work)
        self._staging.up(host, x, [whole])

    def ownership(self, size: int, dtype: DTypeLike, algorithm: str | None = None) -> Ownership:
        """Share ``size`` elements out as the algorithm needs: sharded for a sliced one, else replicated."""
        if self._named(algorithm).sliced:
            return Ownership.sharded(size, self.size, np.dtype(dtype).itemsize)
        return Ownership.replicate(size, self.size)

    def reduce_scatter(self, x: Array, owners: Ownership, algorithm: str | None = None) -> Array:
        """Sum this rank's slice of ``x``, shape (n,), over all ranks; return it, a view of ``x``.

        The rest of ``x`` is scratch afterwards.  A replicated table makes it an `allreduce`.
        """
        chosen = self._choose(x, algorithm)
        self._check_owners(x, owners)
        if self.size > 1:
            self.rounds += 1
            if owners.replicated:
                self._sum_all(chosen, x)
            else:
                host = self._staging.down(x, slice(0, x.size))
                self._sliced(chosen.reduce_scatter)(self._wire, host, owners.slices, self._work)
                self._staging.up(host, x, [owners.slices[self.rank]])
        return x[owners.slices[self.rank]]

    def allgather(self, x: Array, owners: Ownership, algorithm: str | None = None) -> None:
        """Copy every rank's own slice of ``x``, shape (n,), to all ranks' ``x``.  Nothing for a replicated table."""
        chosen = self._choose(x, algorithm)
        self._check_owners(x, owners)
        if self.size > 1 and not owners.replicated:
            self.rounds += 1
            mine = owners.slices[self.rank]
            host = self._staging.down(x, mine)
            self._sliced(chosen.allgather)(self._wire, host, owners.slices, self._work)
            self._staging.up(host, x, [slice(0, mine.start), slice(mine.stop, x.size)])

    def sum(self, values: ArrayLike) -> Array:
        """Sum a few numbers (losses, counts) over ranks; return a new float64 array, shape (n,).

        Arrays of shape () on a GPU among ``values`` come to the host here.
        """
        if isinstance(values, (list, tuple)):
            values = [as_host(value) for value in values]
        total = np.array(values, np.float64, ndmin=1)
        self.allreduce(total, "native")
        return total

    def pending(self, values: ArrayLike) -> Pending:
        """Begin to sum a few numbers over ranks and return at once; `Pending.wait` gives the float64 sum.

        All ranks begin such sums in the same order, one at a time, but may make other calls before they wait:
        these travel apart.  Not counted in ``rounds``.
        """
        if self._aside is None:
            self._aside = self._comm.Dup()
        self._pending = Pending(self._aside, np.array(values, np.float64, ndmin=1))
        return self._pending

    # --- copies to all ranks

    def bcast(self, x: Array, root: int = 0) -> None:
        """Copy ``x`` (1-D, any dtype) of rank ``root`` into every rank's ``x``."""
        exchange.check_contiguous(x)
        if self.size > 1:
            self.rounds += 1
            whole = slice(0, x.size)
            host = self._staging.down(x, whole if self.rank == root else None)
            native.bcast(self._wire, host, root)
            self._staging.up(host, x, [] if self.rank == root else [whole])

    def scatterv(self, send: Array | None, counts: Sequence[int], recv: Array, root: int = 0) -> None:
        """Hand rank ``r`` the next ``counts[r]`` elements of ``send``, into its ``recv``.

        ``send``, shape (sum(counts),), matters on rank ``root`` alone, and is
        sent from where it lies; any dtype, the same for ``recv``, shape
        (counts[rank],).
        """
        exchange.scatterv(self._wire, send, counts, recv, root)
        self.rounds += self.size > 1

    def gatherv(self, send: Array, counts: Sequence[int], recv: Array | None, root: int = 0) -> None:
        """Collect ``counts[r]`` elements from each rank ``r``, one after another, in ``recv`` of rank ``root``.

        ``send`` has shape (counts[rank],); ``recv``, shape (sum(counts),), of the same dtype,
        matters on rank ``root`` alone.
        """
        exchange.gatherv(self._wire, send, counts, recv, root)
        self.rounds += self.size > 1

    def alltoallv(self, send: Array, send_counts: Sequence[int], recv: Array, recv_counts: Sequence[int]) -> None:
        """Hand each rank ``r`` the next ``send_counts[r]`` elements of ``send``; take ``recv_counts[r]`` from it.

        What comes lies in ``recv`` in the order of the ranks.  Both are of one dtype, any, and have shapes
        (sum(send_counts),) and (sum(recv_counts),); they must not overlap.  ``recv_counts[r]`` of this rank is
        ``send_counts[this rank]`` of rank ``r``.
        """
        exchange.alltoallv(self._wire, send, send_counts, recv, recv_counts)
        self.rounds += self.size > 1

    def bcast_object(self, obj: Any, root: int = 0) -> Any:
        """Return rank ``root``'s (small, picklable) object on all ranks."""
        return obj if self.size == 1 else self._comm.bcast(obj, root)

    def allgather_object(self, obj: Any) -> list[Any]:
        """Return every rank's (small, picklable) object, in the order of ranks, on all of them."""
        return [obj] if self.size == 1 else self._comm.allgather(obj)

    def barrier(self) -> None:
        """Wait for all ranks; what they wrote to node arrays before can be read after."""
        if self.size > 1:
            for window in self._windows:
                window.Sync()
            self._comm.Barrier()
            for window in self._windows:
                window.Sync()

    def barrier_asleep(self) -> None:
        """Wait for all ranks as `barrier` does, for long waits: asleep, and seeing no writes to node arrays.

        MPI libraries spin while they wait, at the cost of a core; here a rank looks 100 times a second.
        """
        if self.size > 1:
            request = self._comm.Ibarrier()
            while not request.Test():
                time.sleep(LONG_WAIT_SECONDS)

    def part(self, ranks: Sequence[int]) -> Communicator | None:
        """Make a communicator of some ``ranks``, numbered in this order; collective over all ranks.

        ``ranks`` are alike on all of them.  Returns None on those that are not among them; the others free
        what they get, as the end of a ``with`` block does.  To wait for such a part, use `barrier_asleep`.
        """
        from mpi4py import MPI

        if not ranks or len(set(ranks)) < len(ranks) or not set(ranks) <= set(range(self.size)):
            raise ValueError(f"{list(ranks)} are not some of {self.size} ranks, each once")
        inside = self.rank in ranks
        split: Any = self._comm.Split(0 if inside else MPI.UNDEFINED, ranks.index(self.rank) if inside else 0)
        if not inside:
            return None
        part = Communicator(split, self.default_algorithm, self._wire.chunk_bytes)
        split.Free()
        return part

    def agreed(self) -> AbstractContextManager[None]:
        """Make foreseeable errors raised inside the block on any rank reach all ranks; see `failure.agreed`."""
        return failure.agreed(self.allgather_object)

    # --- memory

    def empty(self, size: int, dtype: DTypeLike, shared: bool = True, device: Device = HOST) -> Array:
        """Make a vector of ``size`` zeros that starts on a page; collective where it is ``shared``.

        On another ``device`` than the host it is that device's.

        Memory shared by the node is not given out yet: the vector is private
        in either case, as it must be where the node cannot share.
        """
        dtype = np.dtype(dtype)
        if device is not HOST:
            return device.zeros(size, dtype)
        if size == 0:
            return np.empty(0, dtype)
        return np.frombuffer(mmap.mmap(-1, size * dtype.itemsize), dtype, size)

    def node_array(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Make one uninitialised array per node that all its ranks read and write, until `free`.

        After `free`, as at the end of a ``with`` block, the memory is gone: touching the array then
        ends the process.
        Writes are seen by the others after a `barrier`.  Raises MemoryError on
        all ranks where any node has too little shared memory.
        """
        dtype = np.dtype(dtype)
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        alone = self.node.size == 1
        private, error = None, None
        try:
            if alone or nbytes == 0:
                private = np.empty(shape, dtype)
            elif not shared.has_room(nbytes):
                raise MemoryError(f"{nbytes} bytes do not fit {shared.SHARED_FOLDER}")
        except MemoryError as caught:
            error = str(caught)
        errors = [e for e in self.allgather_object(error) if e is not None]
        if errors:
            raise MemoryError(errors[0])
        if private is not None:
            return private
        window, array = shared.allocate(self._node_comm, shape, dtype)
        self._windows.append(window)
        return array

    # --- choices and checks

    def _named(self, algorithm: str | None) -> Algorithm:
        name = self.default_algorithm if algorithm is None else algorithm
        try:
            return ALGORITHMS[name]
        except KeyError:
            raise ConfigError(f"unknown allreduce algorithm {name!r}: choose one of {', '.join(ALGORITHMS)}") from None

    def _choose(self, x: Array, algorithm: str | None) -> Algorithm:
        """Check ``x`` and pick its algorithm, the same on all ranks."""
        chosen = self._named(algorithm)
        exchange.check_contiguous(x)
        if x.dtype.kind not in "fiu":
            raise ValueError(f"cannot sum {x.dtype}: expected floats or integers")
        if x.dtype == np.float16 and chosen is ALGORITHMS["native"] and self.size > 1:
            if self._float16 is None:
                self._float16 = native.sums_float16(self._wire)
            if not self._float16:
                return ALGORITHMS["rabenseifner"]
        return chosen

    def _sliced(self, exchange: Callable[..., None] | None) -> Callable[..., None]:
        if exchange is None:
            raise ValueError("this algorithm knows no slices: its table is replicated (see ownership)")
        return exchange

    def _check_owners(self, x: Array, owners: Ownership) -> None:
        if owners.size != x.size or len(owners.slices) != self.size:
            raise ValueError(
                f"a table for {owners.size} elements on {len(owners.slices)} ranks "
                f"does not fit a vector of {x.size} on {self.size}"
            )
