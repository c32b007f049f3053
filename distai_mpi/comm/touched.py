"""Vectors of which ranks touch few elements, as messages of values alone: plain functions over a `Wire`.

Which elements a rank touches is agreed once.  From then on both ends of a message know what its values stand for, and
no indices travel with them, as they do with the pairs of Renggli et al. 2019 (`pairs`).  Slices go directly from rank
to rank; what that sends is in ``perf/costs.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .pairs import PAIRS, Message, swap
from .wire import Array, Wire
from .workspace import Workspace

INDEX = np.dtype(np.int64)  # NumPy and Numba take these as they are


class Touched(NamedTuple):
    """Positions in a vector, int64, ascending.

    Attributes:
        here: by rank, what this rank touches of the slice that that one owns; none of its own.
        there: by rank, what that one touches of this rank's slice.
    """

    here: tuple[Array, ...]
    there: tuple[Array, ...]

    @property
    def elements(self) -> int:
        """How many values this rank sends, or gets, in an exchange: whichever are more."""
        return max(sum(part.size for part in parts) for parts in self)


def agree(wire: Wire, marks: Array, slices: Sequence[slice]) -> Touched:
    """What the ranks touch: elements whose ``marks``, shape (n,), are not 0; ``slices`` are those that they own."""
    none = np.empty(0, INDEX)
    here = [none if r == wire.rank else s.start + np.flatnonzero(marks[s]) for r, s in enumerate(slices)]
    others = [rank for rank in range(wire.size) if rank != wire.rank]
    messages = {rank: Message(np.array([PAIRS, here[rank].nbytes]), here[rank].view(np.uint8)) for rank in others}
    came = swap(wire, messages, others)
    there = [came[rank].payload.view(INDEX) if rank in came else none for rank in range(wire.size)]
    return Touched(tuple(here), tuple(there))


def touched_reduce_scatter(wire: Wire, x: Array, touched: Touched, work: Workspace) -> None:
    """Leave the sum of this rank's slice of ``x`` there, of summands that are 0 where their rank touches nothing.

    It is made in a fixed order, from the rank's own summand down the ranks.
    """
    from .pair_kernels import add, pick

    _exchange(wire, x, touched.here, touched.there, pick, add, work)


def touched_allgather(wire: Wire, x: Array, touched: Touched, work: Workspace) -> None:
    """Copy every rank's own slice of ``x`` to those elements of the others' ``x`` that these touch."""
    from .pair_kernels import pick, put

    _exchange(wire, x, touched.there, touched.here, pick, lambda *given: put(*given[:2], 0, given[2]), work)


def _exchange(
    wire: Wire, x: Array, outgoing: Sequence[Array], incoming: Sequence[Array], pick, take, work: Workspace
) -> None:
    """Send each rank the elements ``outgoing`` of ``x``, and let ``take`` what comes from it for ``incoming``."""
    segment = work.segment(x.dtype)
    half = segment.size // 2
    for shift in range(1, wire.size):
        dest, source = (wire.rank + shift) % wire.size, (wire.rank - shift) % wire.size
        out, into = outgoing[dest], incoming[source]
        for start in range(0, max(out.size, into.size), half):
            sent, got = out[start : start + half], into[start : start + half]
            values, received = segment[: sent.size, None], segment[half : half + got.size, None]
            pick(sent, x, values)
            wire.sendrecv(values[:, 0], dest, received[:, 0], source)
            take(got, received, x)
