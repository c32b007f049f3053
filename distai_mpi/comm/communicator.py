"""The ranks that train together, and how they exchange vectors."""

from __future__ import annotations

import mmap
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from ..backend import HOST, Device, as_host
from ..errors import ConfigError
from ..params import Ownership
from . import exchange, exits, failure, native
from . import watch as watching
from .collectives import ALGORITHMS, CHOICES, SHARING, Algorithm
from .meeting import Meeting
from .memory import Shared
from .pending import Pending
from .sharing import Sharing
from .staging import Staging
from .topology import Node, Topology, split_by_node
from .tracing import Traceable
from .tuning import Tuner
from .wire import CHUNK_BYTES, Array, MPIWire
from .workspace import Workspace

if TYPE_CHECKING:
    from mpi4py import MPI

    from .half_messages import Changes, HalfMessages
    from .hierarchical import Hierarchical


exits.install()  # with the class, for an error may come before the first communicator is made


class Communicator(Meeting, Traceable):
    """A private duplicate of an mpi4py communicator, for vectors of numbers.

    All methods but the properties and `ownership` are collective: every rank
    calls them in the same order.  Vectors are 1-D, contiguous NumPy arrays,
    alike in length and dtype on all ranks; those of `allreduce`, `reduce_scatter`,
    `allgather` and `bcast` may lie on a GPU, and travel through host memory.  A communicator
    of one rank does no MPI work.

    ``algorithm`` names one of `CHOICES`; None stands for the communicator's default.  ``shared`` and ``hierarchical``
    sum vectors of `empty` where they lie in the memory of a node; other arrays travel by messages all the same.
    ``auto`` is what is fastest here for an `allreduce` of vectors of this length, measured at the first of them (see
    `tuning`); for the halves of one it is ``hierarchical``: ask `resolve` what is fastest, and name that.

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
        self.default_algorithm = algorithm
        self._comm = mpi_comm.Dup()
        self._node_comm: Any = split_by_node(self._comm, nodes)
        self._wire = MPIWire(self._comm, chunk_bytes)
        self._work = Workspace()
        self._staging = Staging()
        self._aside: Any = None  # what `pending` travels on: made when first used
        self._pending: Pending | None = None  # the last, so that its buffers live as long as MPI uses them
        self.rank: int = self._comm.rank
        self.size: int = self._comm.size
        self.node = Node(tuple(self._node_comm.allgather(self.rank)), self._node_comm.rank)
        check = os.environ.get("DISTAI_CHECK", "") not in ("", "0")  # launchers may tell some of the nodes alone
        told = self._comm.allgather((self.node.ranks[0], check, watching.asked(watch)))
        self.topology = Topology.of([node for node, _, _ in told])
        self.leaders: tuple[int, ...] = tuple(ranks[0] for ranks in self.topology.nodes)
        self._sharing = Sharing(self._comm, self._node_comm, self.topology, self.allgather_object, chunk_bytes)
        self._check = any(check for _, check, _ in told)
        self.calls: Counter[str] = Counter()
        self._uncounted = 0  # bytes that measurements have sent
        self.tuning = Tuner(self)
        self._named(algorithm)
        exits.owned_by_this_thread(watching.exchanges)
        self.watch = watching.join(self, self._node_comm, told[0][2])

    def __enter__(self) -> Communicator:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if kind is None:  # after an error other ranks may not come: freeing would wait for them
            self.free()
        elif isinstance(error, SystemExit) and self.size > 1:
            exits.leave(error)

    def free(self) -> None:
        """Give back the communicator; arrays stay what they are.  Twice is harmless."""
        self._sharing.free()
        for comm in (self._aside, self._node_comm, self._comm):
            if comm:
                comm.Free()

    @property
    def bytes_sent(self) -> int:
        """Bytes this rank has sent in collectives."""
        exchange = self._sharing.exchange
        return self._wire.bytes_sent + (exchange.bytes_sent if exchange is not None else 0) - self._uncounted

    # --- sums over all ranks

    def allreduce(self, x: Array, algorithm: str | None = None, out: Array | None = None) -> None:
        """Sum ``x``, shape (n,), over all ranks in its own dtype; all ranks get the same bits.

        In place, or into ``out``, which is like ``x`` and may be a vector that the node has once: all of its ranks
        find the sum there, and each element of it was written once.  What ``x`` then holds is undefined.
        """
        call = self._sharing.call(x, algorithm or self.default_algorithm, out)
        if call is not None and self.recorder is None:
            self.calls["allreduce"] += 1
            call()
            return
        chosen, shared = self._choose(x, algorithm, "allreduce")
        once = None
        if out is not None:
            exchange.check_alike(x, out)
            once = self._sharing.find(out)
        if self.size > 1:
            self.calls["allreduce"] += 1
            if shared is None:
                self._sum_all(chosen, x)
            elif once is not None and once.once:
                self._exchange.allreduce_once(x, shared, out)  # type: ignore[arg-type]
                self._sharing.keep(shared, algorithm or self.default_algorithm, once, not self._check)
                return
            else:
                self._exchange.allreduce(x, shared)
                self._sharing.keep(shared, algorithm or self.default_algorithm, None, not self._check and out is None)
        if out is not None:
            self._publish(x, out, once)

    def _sum_all(self, chosen: Algorithm, x: Array) -> None:
        whole = slice(0, x.size)
        host = self._staging.down(x, whole)
        self._told(chosen.allreduce)(self._wire, host, self._work)
        self._staging.up(host, x, [whole])

    def _publish(self, x: Array, out: Array, once: Shared | None) -> None:
        """Copy ``x``, the same on all ranks, to ``out``, into which one rank of a node writes if there is but one."""
        several = once is not None and once.once and self.node.size > 1
        if not several or self.node.rank == 0:
            out[:] = x
        if several:
            self._exchange.barrier()

    def ownership(self, size: int, dtype: DTypeLike, algorithm: str | None = None) -> Ownership:
        """Share ``size`` elements out as the algorithm needs: sharded for a sliced one, else replicated."""
        itemsize = np.dtype(dtype).itemsize
        name = self._named(algorithm)
        if name in SHARING or name == "auto":
            return self.topology.plan(size, itemsize).owners
        if ALGORITHMS[name].sliced:
            return Ownership.sharded(size, self.size, itemsize)
        return Ownership.replicate(size, self.size)

    def reduce_scatter(
        self, x: Array, owners: Ownership, algorithm: str | None = None, *, release: bool = True
    ) -> Array:
        """Sum this rank's slice of ``x``, shape (n,), over all ranks; return it, a view of ``x``.

        The rest of ``x`` is scratch afterwards.  A replicated table makes it an `allreduce`.  Without ``release``
        other ranks may go on reading the rest of a shared ``x``: it must not be written before the next `allgather`
        or `barrier`, which a step of training makes anyway.
        """
        for _ in self.reduce_scatter_parts(x, owners, algorithm):
            pass
        if release and self._sharing.find(x) is not None:
            self._exchange.barrier()
        return x[owners.slices[self.rank]]

    def reduce_scatter_parts(
        self,
        x: Array,
        owners: Ownership,
        algorithm: str | None = None,
        half: HalfMessages | None = None,
        scale: float = 1.0,
    ) -> Iterator[slice]:
        """As `reduce_scatter` without ``release``, yielding stretches of the slice one by one as they are summed.

        They are counted from the slice's start, and cover it.  What is done with a stretch at once finds it in the
        cache.  All of them must be taken.  Sums of floats are multiplied by ``scale``.  With ``half`` numbers travel as
        float16.
        """
        if scale != 1 and x.dtype.kind != "f":
            raise ValueError(f"sums of {x.dtype} cannot be scaled")
        chosen, shared = self._choose(x, algorithm, "reduce_scatter")
        self._check_owners(x, owners, chosen, shared)
        mine = owners.slices[self.rank]
        if self.size > 1:
            self.calls["reduce_scatter"] += 1
            if shared is not None and not owners.replicated:
                yield from self._exchange.reduce_scatter_parts(x, shared, owners, half, scale)
                return
            if shared is not None:
                self._exchange.allreduce(x, shared)
            elif owners.replicated:
                self._sum_all(chosen, x)
            else:
                host = self._staging.down(x, slice(0, x.size))
                travel = exchange.check_sliced((half or chosen).reduce_scatter)
                self._told(travel)(self._wire, host, owners.slices, self._work)
                self._staging.up(host, x, [mine])
        if scale != 1:
            x[mine] *= x.dtype.type(scale)
        yield slice(0, mine.stop - mine.start)

    def allgather(self, x: Array, owners: Ownership, algorithm: str | None = None, half: Changes | None = None) -> None:
        """Copy every rank's own slice of ``x``, shape (n,), to all ranks' ``x``.  Nothing for a replicated table.

        Where the node has ``x`` once, its ranks' slices are there already, and seen by all of them afterwards.
        With ``half`` changes travel, as float16.
        """
        chosen, shared = self._choose(x, algorithm, "allgather")
        self._check_owners(x, owners, chosen, shared)
        if self.size > 1 and not owners.replicated:
            self.calls["allgather"] += 1
            if shared is not None:
                self._exchange.allgather(x, shared, owners, half)
                return
            mine = owners.slices[self.rank]
            host = self._staging.down(x, mine)
            travel = exchange.check_sliced((half or chosen).allgather)
            self._told(travel)(self._wire, host, owners.slices, self._work)
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
        if self._check:
            exchange.check_same(self.allgather_object, f"{x.size:,} {x.dtype}", "vectors of bcast")
        if self.size > 1:
            self.calls["bcast"] += 1
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
        self.calls["scatter"] += self.size > 1

    def gatherv(self, send: Array, counts: Sequence[int], recv: Array | None, root: int = 0) -> None:
        """Collect ``counts[r]`` elements from each rank ``r``, one after another, in ``recv`` of rank ``root``.

        ``send`` has shape (counts[rank],); ``recv``, shape (sum(counts),), of the same dtype,
        matters on rank ``root`` alone.
        """
        exchange.gatherv(self._wire, send, counts, recv, root)
        self.calls["gather"] += self.size > 1

    def alltoallv(self, send: Array, send_counts: Sequence[int], recv: Array, recv_counts: Sequence[int]) -> None:
        """Hand each rank ``r`` the next ``send_counts[r]`` elements of ``send``; take ``recv_counts[r]`` from it.

        What comes lies in ``recv`` in the order of the ranks.  Both are of one dtype, any, and have shapes
        (sum(send_counts),) and (sum(recv_counts),); they must not overlap.  ``recv_counts[r]`` of this rank is
        ``send_counts[this rank]`` of rank ``r``.
        """
        exchange.alltoallv(self._wire, send, send_counts, recv, recv_counts)
        self.calls["alltoall"] += self.size > 1

    def part(self, ranks: Sequence[int]) -> Communicator | None:
        """Make a communicator of some ``ranks``, numbered in this order; collective over all ranks.

        ``ranks`` are alike on all of them.  Returns None on those that are not among them; the others free
        what they get, as the end of a ``with`` block does.  To wait for such a part, use `barrier_asleep`.
        """
        from mpi4py import MPI

        if not ranks or len(set(ranks)) < len(ranks) or not set(ranks) <= set(range(self.size)):
            raise ValueError(f"{list(ranks)} are not some of {self.size} ranks, each once")
        inside = self.rank in ranks
        color, key = (0, ranks.index(self.rank)) if inside else (MPI.UNDEFINED, 0)
        split: Any = self._comm.Split(color, key)
        node = self._node_comm.Split(color, key)  # nodes stay what they are, declared ones too
        if not inside:
            return None
        part = Communicator(split, self.default_algorithm, self._wire.chunk_bytes, node)
        split.Free()
        return part

    def agreed(self) -> AbstractContextManager[None]:
        """Make foreseeable errors raised inside the block on any rank reach all ranks; see `failure.agreed`."""
        return failure.agreed(self.allgather_object)

    # --- memory

    def empty(
        self, size: int, dtype: DTypeLike, shared: bool = True, device: Device = HOST, once: bool = False
    ) -> Array:
        """Make a vector of ``size`` zeros that starts on a page; collective where it is ``shared``.

        A shared vector is this rank's own, but the other ranks of the node can read it; with ``once`` the node has
        one for all its ranks, each of which writes its own slice.  `reduce_scatter`, `allgather` and `allreduce` by
        ``shared`` or ``hierarchical`` use them where they lie.  Where a node cannot share memory, all ranks
        get private vectors, and rank 0 says so once.  On another ``device`` than the host it is that device's.

        Raises:
            ConfigError: the ranks ask for different vectors; on all of them.
            ValueError, TypeError: ``size`` is no whole number from 0 up.
        """
        size, dtype = exchange.check_size(size), np.dtype(dtype)
        if device is not HOST:
            return device.zeros(size, dtype)
        if shared and self.size > 1:
            exchange.check_same(
                self.allgather_object, f"{size:,} {dtype}{', once a node' if once else ''}", "vectors made by empty"
            )
            vector = self._sharing.vector(size, dtype, once) if size else None
            if vector is not None:
                return vector
        if size == 0:
            return np.empty(0, dtype)
        return np.frombuffer(mmap.mmap(-1, size * dtype.itemsize), dtype, size)

    def shares(self, x: Array) -> bool:
        """Whether ``x`` is a vector that the ranks of this node share; local."""
        return self._sharing.find(x) is not None

    def node_array(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Make one uninitialised array per node that all its ranks read and write.

        Writes are seen by the others after a `barrier`.  Raises MemoryError on
        all ranks where any node has too little memory, or cannot share it.
        """
        return self._sharing.array(shape, np.dtype(dtype))

    # --- choices and checks

    def resolve(self, algorithm: str | None, size: int, dtype: DTypeLike, device: Device = HOST) -> str:
        """The algorithm for steps of training with gradients of this size and type; collective.

        ``auto`` becomes what is fastest here, see `tuning`.  On a GPU vectors travel through host memory, which no rank
        shares.
        """
        name = self._named(algorithm)
        if name == "auto":
            name = self.tuning.step(size, dtype, device)
        return "shared" if name == "hierarchical" and len(self.leaders) == 1 else name

    def _named(self, algorithm: str | None) -> str:
        name = self.default_algorithm if algorithm is None else algorithm
        if name not in CHOICES:
            raise ConfigError(f"unknown allreduce algorithm {name!r}: choose one of {', '.join(CHOICES)}")
        if name == "shared" and len(self.leaders) > 1:
            raise ConfigError(
                f"--allreduce shared is for one node, not {len(self.leaders)}: choose hierarchical or auto"
            )
        return name

    @property
    def _exchange(self) -> Hierarchical:
        exchange = self._sharing.exchange
        assert exchange is not None
        return exchange

    def _choose(self, x: Array, algorithm: str | None, call: str) -> tuple[Algorithm, Shared | None]:
        """Check ``x``; how its messages travel, and the shared vectors it is one of; alike on all ranks."""
        name = self._named(algorithm)
        exchange.check_contiguous(x)
        exchange.check_numbers(x)
        found = self._sharing.find(x)
        if found is not None and found.once and call != "allgather":
            raise ValueError("a vector that the node has once is no summand: its ranks have none of their own")
        if self._check:
            where = "" if found is None else ", shared"
            exchange.check_same(self.allgather_object, f"{x.size:,} {x.dtype}{where} by {name}", f"vectors of {call}")
        shared = None
        if name == "auto" and call == "allreduce":
            name, shared = self.tuning.allreduce(x)
        elif name == "auto" or name in SHARING:
            name, shared = "native", found
        if x.dtype.char in "eg" and call != "allgather":  # sums of shared memory are compiled, which these cannot be
            shared = None
        if x.dtype == np.float16 and self.size > 1 and name == "native" and not self._wire.sums_float16():
            name = "ring"  # which takes any table
        return ALGORITHMS[name], shared

    def _check_owners(self, x: Array, owners: Ownership, chosen: Algorithm, shared: Shared | None) -> None:
        exchange.check_table(owners, x, self.size)
        if shared is not None:
            fits = len(self.leaders) == 1 or owners == self.topology.plan(x.size, x.itemsize).owners
        else:
            fits = chosen is not ALGORITHMS["rabenseifner"] or owners.in_order
        if not (fits or owners.replicated):
            raise ValueError("this algorithm needs the slices that ownership() gives for it")
