"""What every exchange of vectors can do: sum them over the ranks, whole or slice by slice, and spread owned slices."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from ...params import Ownership
from ..checks import check_alike, check_contiguous, check_numbers, check_same, check_table
from ..memory import Shared
from ..ranks import Ranks
from ..vectors import Vectors
from ..wire import Array


class VectorExchange(ABC):
    """A way to exchange vectors, made once for a run or a communicator.

    A step of training calls `reduce`, changes the owned slice, and calls `publish`.  Calls and bytes are counted by
    the ranks (`Ranks.calls`, `Ranks.bytes_sent`).  All methods but `ownership` are collective.  Vectors are 1-D,
    contiguous, and alike in length and dtype on all ranks.

    Args:
        vectors: the ranks, and the vectors that they share.

    Attributes:
        name: as in ``--allreduce``.
        shares: whether vectors that the ranks of a node share are summed where they lie.
        dtype: of the numbers that travel between nodes where they are rounded, ``float16``; else None.
        state: what a run needs to go on with the same bits: by name, a range of a vector that is as long as the
            parameters, and where the range starts.  Arrays may be written to in place.
    """

    name: str
    shares = False
    dtype: str | None = None

    def __init__(self, vectors: Vectors) -> None:
        self._vectors, self._ranks = vectors, vectors.ranks
        self.state: dict[str, tuple[Array, int]] = {}

    @property
    def ranks(self) -> Ranks:
        """Who takes part."""
        return self._ranks

    @abstractmethod
    def ownership(self, size: int, itemsize: int) -> Ownership:
        """How a vector of ``size`` elements of ``itemsize`` bytes is shared out: sharded, or replicated; local."""

    def summed_by(self, x: Array) -> str:
        """The name of the exchange that makes the sums of `allreduce` of vectors like ``x``; local."""
        return self.name

    def allreduce(self, x: Array, out: Array | None = None) -> None:
        """Sum ``x``, shape (n,), over all ranks in its own dtype, in place or into ``out``; the same bits on all ranks.

        ``out`` is like ``x``, and may be a vector of which the node has one copy.  What ``x`` then holds is undefined.
        """
        self._check(x, "allreduce")
        if out is not None:
            check_alike(x, out)
        if self._ranks.size > 1:
            self._ranks.calls["allreduce"] += 1
            self._allreduce(x, out)
        elif out is not None:
            out[:] = x

    def reduce(self, x: Array, owners: Ownership, scale: float = 1.0) -> Iterator[slice]:
        """Leave the sum of this rank's slice of ``x``, shape (n,), over all ranks there, times ``scale``.

        Yields ranges of the slice one by one as they are summed, counted from its start, and covering it: what is done
        with one at once finds it in the cache.  All must be taken.  The rest of ``x`` is scratch afterwards; other
        ranks may go on reading it until the next `publish` or barrier.
        """
        if scale != 1 and x.dtype.kind != "f":
            raise ValueError(f"sums of {x.dtype} cannot be scaled")
        self._check(x, "reduce_scatter")
        check_table(owners, x, self._ranks.size)
        mine = owners.slices[self._ranks.rank]
        if self._ranks.size > 1:
            self._ranks.calls["reduce_scatter"] += 1
            if not owners.replicated:
                yield from self._reduce(x, owners, scale)
                return
            self._allreduce(x, None)
        yield scaled(x, mine, scale)

    def publish(self, x: Array, owners: Ownership, previous: Array | None = None) -> None:
        """Copy every rank's own slice of ``x``, shape (n,), to all ranks' ``x``.  Nothing for a replicated table.

        Where the node has one copy of ``x``, its ranks' slices are there already, and seen by all of them afterwards.
        ``previous``, shape (n,), is what all ranks hold already and ``x`` has followed from: an exchange that rounds
        sends the difference.  Without it nothing is rounded.
        """
        self._check(x, "allgather")
        check_table(owners, x, self._ranks.size)
        if self._ranks.size > 1 and not owners.replicated:
            self._ranks.calls["allgather"] += 1
            self._publish(x, owners, previous)

    def free(self) -> None:
        """Give back what the exchange has of MPI; collective."""
        return

    @abstractmethod
    def _allreduce(self, x: Array, out: Array | None) -> None: ...

    @abstractmethod
    def _reduce(self, x: Array, owners: Ownership, scale: float) -> Iterator[slice]: ...

    @abstractmethod
    def _publish(self, x: Array, owners: Ownership, previous: Array | None) -> None: ...

    def _check(self, x: Array, call: str) -> None:
        """Refuse what cannot be exchanged; and on all ranks what they ask for differently, where they compare that."""
        check_contiguous(x)
        check_numbers(x)
        shared = self._vectors.find(x)
        if shared is not None and shared.one_copy and call != "allgather":
            raise ValueError("a vector of which a node has one copy is no summand: its ranks have none of their own")
        if self._ranks.compares:
            where = "" if shared is None else ", shared"
            asked = f"{x.size:,} {x.dtype}{where} by {self.name}"
            check_same(self._ranks.allgather_object, asked, f"vectors of {call}")

    def _copy(self, x: Array, out: Array | None) -> None:
        """Copy ``x``, the same on all ranks, to ``out``, into which one rank of a node writes if there is one copy."""
        if out is None:
            return
        result = self._vectors.find(out)
        several = result is not None and result.one_copy and self._ranks.node.size > 1
        if not several or self._ranks.node.rank == 0:
            out[:] = x
        if several:
            self._ranks.synchronize_node()

    def _shared(self, x: Array) -> Shared | None:
        """The shared vectors that ``x`` is one of, where compiled sums take them; else None."""
        return None if x.dtype.char in "eg" else self._vectors.find(x)


def scaled(x: Array, mine: slice, scale: float) -> slice:
    """Multiply the range ``mine`` of ``x`` by ``scale`` in place; all of it, counted from its start."""
    if scale != 1:
        x[mine] *= x.dtype.type(scale)
    return slice(0, mine.stop - mine.start)
