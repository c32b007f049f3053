"""Sums of a vector over all ranks, as plain functions over a `Wire`.

Every function works in place on ``x``, a 1-D contiguous array of any length
(0 included) and any numeric dtype, alike on all ranks.  Sums are made in the
array's own dtype, as MPI makes them: float16 accumulates in float16, integers
wrap around.

*Sliced* algorithms leave each rank the sum of its owned slice
(`reduce_scatter`) and spread owned slices to all (`allgather`); their
allreduce is both.  Each element is summed on one rank alone and then copied,
or summed on two ranks from the same two operands, so that after an allreduce
all ranks hold **the same bits**.  Other algorithms and other numbers of ranks
add in another order and agree to rounding only.

The algorithms are those of Thakur, Rabenseifner & Gropp (2005), "Optimization
of collective communication operations in MPICH", Int. J. High Perform.
Comput. Appl. 19(1), 49-66; their costs are in ``perf/costs.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ..params import Ownership
from . import native
from .wire import Array, Wire
from .workspace import Workspace


@lru_cache(maxsize=64)
def even_slices(size: int, ranks: int, itemsize: int) -> tuple[slice, ...]:
    """Share a vector out among ``ranks`` as `Ownership.sharded` does; the table is kept."""
    return Ownership.sharded(size, ranks, itemsize).slices


def exchange_add(wire: Wire, work: Workspace, send: Array, dest: int, total: Array, source: int) -> None:
    """Send ``send`` to ``dest`` and add what ``source`` sends to ``total``; an empty side does nothing.

    Both travel in segments, so that ``total`` may be ``send`` itself.
    """
    scratch = work.segment(total.dtype)
    for start in range(0, max(send.size, total.size), scratch.size):
        part = total[start : start + scratch.size]
        received = scratch[: part.size]
        wire.sendrecv(send[start : start + scratch.size], dest, received, source)
        np.add(part, received, out=part)


# --- ring: long vectors on few ranks


def ring_reduce_scatter(wire: Wire, x: Array, slices: Sequence[slice], work: Workspace) -> None:
    """Leave the sum of slice ``rank`` there; partial sums go once around the ring."""
    right, left = (wire.rank + 1) % wire.size, (wire.rank - 1) % wire.size
    for step in range(1, wire.size):
        give, take = (wire.rank - step) % wire.size, (wire.rank - step - 1) % wire.size
        exchange_add(wire, work, x[slices[give]], right, x[slices[take]], left)


def ring_allgather(wire: Wire, x: Array, slices: Sequence[slice], work: Workspace) -> None:
    """Copy slice ``r`` of rank ``r`` to all ranks; every slice goes once around the ring."""
    right, left = (wire.rank + 1) % wire.size, (wire.rank - 1) % wire.size
    for step in range(wire.size - 1):
        give, take = (wire.rank - step) % wire.size, (wire.rank - step - 1) % wire.size
        wire.sendrecv(x[slices[give]], right, x[slices[take]], left)


def ring_allreduce(wire: Wire, x: Array, work: Workspace) -> None:
    """Sum ``x`` over all ranks: reduce-scatter, then allgather, over even slices."""
    slices = even_slices(x.size, wire.size, x.itemsize)
    ring_reduce_scatter(wire, x, slices, work)
    ring_allgather(wire, x, slices, work)


# --- binomial tree: the textbook scheme


def tree_allreduce(wire: Wire, x: Array, work: Workspace) -> None:
    """Sum ``x`` up a binomial tree to rank 0, then broadcast it down the same tree."""
    nothing = x[:0]
    mask = 1
    while mask < wire.size and not wire.rank & mask:
        if wire.rank + mask < wire.size:
            exchange_add(wire, work, nothing, 0, x, wire.rank + mask)
        mask <<= 1
    if mask < wire.size:  # rank 0 alone has climbed to the root
        exchange_add(wire, work, x, wire.rank - mask, nothing, 0)
        wire.sendrecv(None, 0, x, wire.rank - mask)
    while mask := mask >> 1:
        if wire.rank + mask < wire.size:
            wire.sendrecv(x, wire.rank + mask, None, 0)


# --- the fold: a power of two out of any number of ranks


@dataclass(frozen=True)
class Fold:
    """Who goes on when ``size`` ranks are folded to the power of two below.

    The first 2·``pairs`` ranks form pairs; each odd one hands its part to its
    even neighbour and waits.  Those who go on are numbered 0 to ``core - 1``.
    """

    size: int
    core: int
    pairs: int

    @classmethod
    def of(cls, size: int) -> Fold:
        core = 1 << (size.bit_length() - 1)
        return cls(size, core, size - core)

    def number(self, rank: int) -> int | None:
        """Return a rank's number among those who go on, None for one who waits."""
        if rank >= 2 * self.pairs:
            return rank - self.pairs
        return None if rank % 2 else rank // 2

    def rank(self, number: int) -> int:
        """Return the rank that has this number."""
        return 2 * number if number < self.pairs else number + self.pairs

    def merged(self, slices: Sequence[slice]) -> tuple[slice, ...]:
        """Return the slices of those who go on: their own and their waiting neighbour's."""
        pairs = range(0, 2 * self.pairs, 2)
        return (*(slice(slices[r].start, slices[r + 1].stop) for r in pairs), *slices[2 * self.pairs :])


# --- recursive doubling: short vectors


def doubling_allreduce(wire: Wire, x: Array, work: Workspace) -> None:
    """Sum ``x`` by exchanging whole vectors with partners at distance 1, 2, 4, ..."""
    fold = Fold.of(wire.size)
    number = fold.number(wire.rank)
    nothing = x[:0]
    if number is None:
        exchange_add(wire, work, x, wire.rank - 1, nothing, 0)
        wire.sendrecv(None, 0, x, wire.rank - 1)
        return
    if number < fold.pairs:
        exchange_add(wire, work, nothing, 0, x, wire.rank + 1)
    mask = 1
    while mask < fold.core:
        partner = fold.rank(number ^ mask)
        exchange_add(wire, work, x, partner, x, partner)
        mask <<= 1
    if number < fold.pairs:
        wire.sendrecv(x, wire.rank + 1, None, 0)


# --- Rabenseifner: recursive halving, then recursive doubling


def _fold_halves(wire: Wire, x: Array, middle: int, work: Workspace) -> None:
    """Sum over a pair, each rank one half; then the odd rank hands its half over."""
    low, high = x[:middle], x[middle:]
    if wire.rank % 2 == 0:
        exchange_add(wire, work, high, wire.rank + 1, low, wire.rank + 1)
        wire.sendrecv(None, 0, high, wire.rank + 1)
    else:
        exchange_add(wire, work, low, wire.rank - 1, high, wire.rank - 1)
        wire.sendrecv(high, wire.rank - 1, None, 0)


def _halving(wire: Wire, x: Array, fold: Fold, slices: Sequence[slice], work: Workspace) -> None:
    """Reduce-scatter among those who go on: fold, then swap halves of what is left, farthest partner first."""
    if wire.rank < 2 * fold.pairs:
        _fold_halves(wire, x, slices[fold.core // 2].start, work)
    number = fold.number(wire.rank)
    if number is None:
        return
    mask = fold.core >> 1
    while mask:
        partner = number ^ mask
        keep, give = _block(x, slices, number, mask), _block(x, slices, partner, mask)
        exchange_add(wire, work, give, fold.rank(partner), keep, fold.rank(partner))
        mask >>= 1


def _doubling(wire: Wire, x: Array, fold: Fold, slices: Sequence[slice]) -> None:
    """Allgather among those who go on, nearest partner first; then tell those who wait."""
    number = fold.number(wire.rank)
    if number is None:
        wire.sendrecv(None, 0, x, wire.rank - 1)
        return
    mask = 1
    while mask < fold.core:
        partner = number ^ mask
        give, take = _block(x, slices, number, mask), _block(x, slices, partner, mask)
        wire.sendrecv(give, fold.rank(partner), take, fold.rank(partner))
        mask <<= 1
    if number < fold.pairs:
        wire.sendrecv(x, wire.rank + 1, None, 0)


def _block(x: Array, slices: Sequence[slice], number: int, width: int) -> Array:
    """Return the range of the aligned block of ``width`` slices that holds slice ``number``."""
    first = number & -width
    return x[slices[first].start : slices[first + width - 1].stop]


def rabenseifner_reduce_scatter(wire: Wire, x: Array, slices: Sequence[slice], work: Workspace) -> None:
    """Leave the sum of slice ``rank`` there, by recursive halving; ranks that waited get theirs last."""
    fold = Fold.of(wire.size)
    _halving(wire, x, fold, fold.merged(slices), work)
    if wire.rank < 2 * fold.pairs:
        if wire.rank % 2:
            wire.sendrecv(None, 0, x[slices[wire.rank]], wire.rank - 1)
        else:
            wire.sendrecv(x[slices[wire.rank + 1]], wire.rank + 1, None, 0)


def rabenseifner_allgather(wire: Wire, x: Array, slices: Sequence[slice], work: Workspace) -> None:
    """Copy slice ``r`` of rank ``r`` to all ranks, by recursive doubling."""
    fold = Fold.of(wire.size)
    if wire.rank < 2 * fold.pairs:
        if wire.rank % 2:
            wire.sendrecv(x[slices[wire.rank]], wire.rank - 1, None, 0)
        else:
            wire.sendrecv(None, 0, x[slices[wire.rank + 1]], wire.rank + 1)
    _doubling(wire, x, fold, fold.merged(slices))


def rabenseifner_allreduce(wire: Wire, x: Array, work: Workspace) -> None:
    """Sum ``x`` by recursive halving and doubling over even slices of the ranks that go on."""
    fold = Fold.of(wire.size)
    slices = even_slices(x.size, fold.core, x.itemsize)
    _halving(wire, x, fold, slices, work)
    _doubling(wire, x, fold, slices)


# --- the registry: a new algorithm is an entry here, and every test runs on it


@dataclass(frozen=True)
class Algorithm:
    """One way to sum over ranks.  ``reduce_scatter`` and ``allgather`` are None where there are no slices."""

    allreduce: Callable[[Any, Array, Workspace], None]
    reduce_scatter: Callable[[Any, Array, Sequence[slice], Workspace], None] | None = None
    allgather: Callable[[Any, Array, Sequence[slice], Workspace], None] | None = None

    @property
    def sliced(self) -> bool:
        """Whether it leaves every rank a slice of the sum, to be spread later."""
        return self.reduce_scatter is not None


ALGORITHMS: dict[str, Algorithm] = {
    "native": Algorithm(native.allreduce, native.reduce_scatter, native.allgather),
    "ring": Algorithm(ring_allreduce, ring_reduce_scatter, ring_allgather),
    "tree": Algorithm(tree_allreduce),
    "recursive_doubling": Algorithm(doubling_allreduce),
    "rabenseifner": Algorithm(rabenseifner_allreduce, rabenseifner_reduce_scatter, rabenseifner_allgather),
}
