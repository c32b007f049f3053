"""The ranks that train together: plain collectives, and vectors in the memory of nodes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from ..backend import HOST, Device, as_host
from ..errors import ConfigError
from ..params import Ownership
from ..settings import called
from . import exits, native, uneven
from . import watch as watching
from .checks import check_contiguous, check_same, check_size
from .collectives import ALGORITHMS
from .exchange.base import VectorExchange
from .exchange.hierarchical import HierarchicalExchange
from .exchange.messages import MessageExchange
from .exchange.node import NodeExchange
from .exchange.settings import CHOICES
from .pending import Pending
from .ranks import Ranks
from .vectors import Vectors
from .wire import CHUNK_BYTES, Array

AT_ONCE = 2  # sums that may be on their way: of checkpoints, and of speeds

if TYPE_CHECKING:
    from mpi4py import MPI

exits.install()  # with the class, for an error may come before the first communicator is made

SHARED_BYTES = 4 << 10  # under ``auto`` shorter vectors are summed by the MPI library


class Communicator(Ranks):
    """A private duplicate of an mpi4py communicator, for vectors of numbers.

    All methods but the properties and `ownership` are collective: every rank
    calls them in the same order.  Vectors are 1-D, contiguous NumPy arrays,
    alike in length and dtype on all ranks; those of `allreduce`, `reduce_scatter`,
    `allgather` and `bcast` may lie on a GPU, and travel through host memory.  A communicator
    of one rank does no MPI work.

    ``algorithm`` names one of `CHOICES`; None stands for the communicator's default.  ``shared`` and ``hierarchical``
    sum vectors of `empty` where they lie in the memory of a node; other arrays travel by messages all the same.
    ``auto`` does so too, but sums shorter ones than `SHARED_BYTES` by the MPI library; for steps of training see
    `exchange.choice`.

    ``calls`` counts the collective exchanges of arrays that were made, by kind, and ``rounds`` all of them (none
    on one rank), ``bytes_sent`` the bytes this rank sent in them: exactly for
    the package's own algorithms, and for the library's what an optimal one
    sends on average, 2(N - 1)/N of an allreduced vector.  In shared memory the bytes count that it read of others'
    vectors.

    Args:
        mpi_comm: the ranks; it is duplicated.
        algorithm: the default one.
        chunk_bytes: bounds a single message.
        nodes: how many ranks each node has, one node after another, to try on one machine what is meant for
            several; None: ranks that share memory are a node, or what DISTAI_NODES says (``2,2``).  Or a communicator
            of the ranks of this node.
        watch: seconds that ranks may wait for one that does not come before the job ends with status 76 and all
            ranks' stacks; 0: for ever.  None: what an earlier communicator or DISTAI_WATCH says, else 600.  Rank 0's
            counts, for communicators of all ranks of the job; see `comm.watch`.

    With DISTAI_CHECK=1 in any rank's environment all compare, at each exchange of vectors, what they ask for.
    """

    def __init__(
        self,
        mpi_comm: MPI.Intracomm,
        algorithm: str = "auto",
        chunk_bytes: int = CHUNK_BYTES,
        nodes: Sequence[int] | MPI.Intracomm | None = None,
        watch: float | None = None,
    ) -> None:
        super().__init__(mpi_comm, chunk_bytes, nodes)
        self.default_algorithm = algorithm
        self._aside: Any = None  # what `pending` travels on: made when first used
        self._pending: deque[Pending] = deque(maxlen=AT_ONCE)  # so that buffers live as long as MPI uses them
        self.vectors = Vectors(self, self._node_comm)
        self._exchanges = self._make_exchanges()
        self.exchange()
        exits.owned_by_this_thread(watching.exchanges)
        self.watch = watching.join(self, self._node_comm, self._comm.bcast(watching.asked(watch)))

    def _make_exchanges(self) -> dict[str, VectorExchange]:
        """One of each name; local."""
        made: dict[str, VectorExchange] = {name: MessageExchange(self.vectors, name) for name in ALGORITHMS}
        kind = NodeExchange if len(self.leaders) == 1 else HierarchicalExchange
        messages = made["native"]
        assert isinstance(messages, MessageExchange)
        made["hierarchical"] = kind(self.vectors, messages)
        made["auto"] = kind(self.vectors, messages, SHARED_BYTES)
        if kind is NodeExchange:
            made["shared"] = made["hierarchical"]
        return made

    def __enter__(self) -> Communicator:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if kind is None:  # after an error other ranks may not come: freeing would wait for them
            self.free()
        elif isinstance(error, SystemExit) and self.size > 1:
            exits.leave(error)

    def free(self) -> None:
        """Give back the communicator; arrays stay what they are.  Twice is harmless."""
        for exchange in self._exchanges.values():
            exchange.free()
        self.vectors.free()
        for comm in (self._aside, self._node_comm, self._comm):
            if comm:
                comm.Free()

    # --- sums over all ranks

    def exchange(self, algorithm: str | None = None) -> VectorExchange:
        """The exchange by an algorithm of `CHOICES`, always the same object; local.

        Raises:
            ConfigError: there is none of the name, or not among these ranks.
        """
        name = self.default_algorithm if algorithm is None else algorithm
        found = self._exchanges.get(name)
        if found is None:
            if name in CHOICES:
                raise ConfigError(
                    f"{called('algorithm', '--allreduce')} {name} is for one node, not {len(self.leaders)}:"
                    " choose hierarchical or auto"
                )
            raise ConfigError(f"unknown allreduce algorithm {name!r}: choose one of {', '.join(CHOICES)}")
        return found

    def allreduce(self, x: Array, algorithm: str | None = None, out: Array | None = None) -> None:
        """Sum ``x``, shape (n,), over all ranks in its own dtype; all ranks get the same bits.

        In place, or into ``out``, which is like ``x`` and may be a vector of which the node has one copy: all of its
        ranks find the sum there, and each element of it was written once.  What ``x`` then holds is undefined.
        """
        self.exchange(algorithm).allreduce(x, out)

    def ownership(self, size: int, dtype: DTypeLike, algorithm: str | None = None) -> Ownership:
        """Share ``size`` elements out as the algorithm needs: sharded for a sliced one, else replicated."""
        return self.exchange(algorithm).ownership(size, np.dtype(dtype).itemsize)

    def reduce_scatter(
        self, x: Array, owners: Ownership, algorithm: str | None = None, *, release: bool = True
    ) -> Array:
        """Sum this rank's slice of ``x``, shape (n,), over all ranks; return it, a view of ``x``.

        The rest of ``x`` is scratch afterwards.  A replicated table makes it an `allreduce`.  Without ``release``
        other ranks may go on reading the rest of a shared ``x``: it must not be written before the next `allgather`
        or `barrier`, which a step of training makes anyway.
        """
        for _ in self.exchange(algorithm).reduce(x, owners):
            pass
        if release and self.shares(x):
            self.synchronize_node()
        return x[owners.slices[self.rank]]

    def allgather(self, x: Array, owners: Ownership, algorithm: str | None = None) -> None:
        """Copy every rank's own slice of ``x``, shape (n,), to all ranks' ``x``.  Nothing for a replicated table.

        Where the node has one copy of ``x``, its ranks' slices are there already, and seen by all of them afterwards.
        """
        self.exchange(algorithm).publish(x, owners)

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

        All ranks begin such sums in the same order, `AT_ONCE` at a time, but may make other calls before they wait:
        these travel apart.  Not counted in ``rounds``.
        """
        if self._aside is None:
            self._aside = self._comm.Dup()
        self._pending.append(Pending(self._aside, np.array(values, np.float64, ndmin=1)))
        return self._pending[-1]

    # --- copies to all ranks

    def bcast(self, x: Array, root: int = 0) -> None:
        """Copy ``x`` (1-D, any dtype) of rank ``root`` into every rank's ``x``."""
        check_contiguous(x)
        if self.compares:
            check_same(self.allgather_object, f"{x.size:,} {x.dtype}", "vectors of bcast")
        if self.size > 1:
            self.calls["bcast"] += 1
            whole = slice(0, x.size)
            host = self.vectors.staging.down(x, whole if self.rank == root else None)
            native.bcast(self.wire, host, root)
            self.vectors.staging.up(host, x, [] if self.rank == root else [whole])

    def scatterv(self, send: Array | None, counts: Sequence[int], recv: Array, root: int = 0) -> None:
        """Hand rank ``r`` the next ``counts[r]`` elements of ``send``, into its ``recv``.

        ``send``, shape (sum(counts),), matters on rank ``root`` alone, and is
        sent from where it lies; any dtype, the same for ``recv``, shape
        (counts[rank],).
        """
        uneven.scatterv(self.wire, send, counts, recv, root)
        self.calls["scatter"] += self.size > 1

    def gatherv(self, send: Array, counts: Sequence[int], recv: Array | None, root: int = 0) -> None:
        """Collect ``counts[r]`` elements from each rank ``r``, one after another, in ``recv`` of rank ``root``.

        ``send`` has shape (counts[rank],); ``recv``, shape (sum(counts),), of the same dtype,
        matters on rank ``root`` alone.
        """
        uneven.gatherv(self.wire, send, counts, recv, root)
        self.calls["gather"] += self.size > 1

    def alltoallv(self, send: Array, send_counts: Sequence[int], recv: Array, recv_counts: Sequence[int]) -> None:
        """Hand each rank ``r`` the next ``send_counts[r]`` elements of ``send``; take ``recv_counts[r]`` from it.

        What comes lies in ``recv`` in the order of the ranks.  Both are of one dtype, any, and have shapes
        (sum(send_counts),) and (sum(recv_counts),); they must not overlap.  ``recv_counts[r]`` of this rank is
        ``send_counts[this rank]`` of rank ``r``.
        """
        uneven.alltoallv(self.wire, send, send_counts, recv, recv_counts)
        self.calls["alltoall"] += self.size > 1

    def part(self, ranks: Sequence[int]) -> Communicator | None:
        """Make a communicator of some ``ranks``, numbered in this order; collective over all ranks.

        ``ranks`` are alike on all of them.  Returns None on those that are not among them; the others free
        what they get, as the end of a ``with`` block does.  To wait for such a part, use `barrier_asleep`.
        """
        if not ranks or len(set(ranks)) < len(ranks) or not set(ranks) <= set(range(self.size)):
            raise ValueError(f"{list(ranks)} are not some of {self.size} ranks, each once")
        inside = self.rank in ranks
        return self._split(0 if inside else None, ranks.index(self.rank) if inside else 0)

    def group(self, color: int, key: int) -> Communicator:
        """Make a communicator of the ranks with the same ``color``, ordered by ``key``; collective over all ranks.

        Each is freed by its ranks, as `part` tells.
        """
        made = self._split(color, key)
        assert made is not None
        return made

    def _split(self, color: int | None, key: int) -> Communicator | None:
        from mpi4py import MPI

        of = MPI.UNDEFINED if color is None else color
        split: Any = self._comm.Split(of, key)
        node = self._node_comm.Split(of, key)  # nodes stay what they are, declared ones too
        if color is None:
            return None
        made = Communicator(split, self.default_algorithm, self.wire.chunk_bytes, node)
        split.Free()
        return made

    # --- memory

    def empty(
        self, size: int, dtype: DTypeLike, shared: bool = True, device: Device = HOST, one_copy: bool = False
    ) -> Array:
        """Make a vector of ``size`` zeros that starts on a page; collective where it is ``shared``.

        A shared vector is this rank's own, but the other ranks of the node can read it; with ``one_copy`` the node has
        one for all its ranks, each of which writes its own slice.  `reduce_scatter`, `allgather` and `allreduce`
        by ``shared`` or ``hierarchical`` use them where they lie.  Where a node cannot share memory, all ranks get
        private vectors, and rank 0 says so once.  On another ``device`` than the host it is that device's.

        Raises:
            ConfigError: the ranks ask for different vectors; on all of them.
            ValueError, TypeError: ``size`` is no whole number from 0 up.
        """
        size, dtype = check_size(size), np.dtype(dtype)
        if device is not HOST:
            return device.zeros(size, dtype)
        vector = None
        if shared and self.size > 1:
            asked = f"{size:,} {dtype}{', one copy a node' if one_copy else ''}"
            check_same(self.allgather_object, asked, "vectors made by empty")
            vector = self.vectors.shared(size, dtype, one_copy) if size else None
        return self.vectors.private(size, dtype) if vector is None else vector

    def shares(self, x: Array) -> bool:
        """Whether ``x`` is a vector that the ranks of this node share; local."""
        return self.vectors.find(x) is not None

    def node_array(self, shape: tuple[int, ...], dtype: DTypeLike, touch: bool = True) -> Array:
        """Make one uninitialised array per node that all its ranks read and write.

        Unless ``touch``, it takes memory only where it is written to, from then on.  Writes are seen by the others
        after a `barrier`.  Raises MemoryError on all ranks where any node has too little memory, or cannot share it.
        """
        return self.vectors.array(shape, np.dtype(dtype), touch)

    @contextmanager
    def watched(self, position: Callable[[], int]) -> Iterator[None]:
        """In the block ``position()`` is the step of training that this rank is in, which the watch names."""
        if self.watch is None:
            yield
            return
        self.watch.position = position
        try:
            yield
        finally:
            self.watch.position = None
