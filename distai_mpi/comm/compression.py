"""float32 vectors as float16 messages: half the bytes of a sliced allreduce, with its sums in float32.

Plain functions over a `Wire`, like those of `collectives`; their traffic is in ``perf/costs.py``.  A message scales
its numbers by powers of two, block by block, so that none overflows (`compression_kernels`); infinity and NaN arrive as
what they are.  Slices go directly from rank to rank, not around a ring, where partial sums would be rounded on
every rank they come by.

A summand is rounded once, by 2**-11 of itself at most (or 2**-39 of its block's largest).  Parameters travel as
their *change*, so that what is rounded is the step, not the parameter; and the owner keeps what rounding took for
the next step ("error feedback": Seide et al. 2014, "1-bit stochastic gradient descent and its application to
data-parallel distributed training of speech DNNs"; Karimireddy et al. 2019, "Error feedback fixes SignSGD and other
gradient compression schemes", algorithm 2).  Gradients go without feedback: it would take a float32 vector of their
full length on every rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import numpy as np

from .wire import Array, Wire
from .workspace import Workspace


def compressed_reduce_scatter(wire: Wire, x: Array, slices: Sequence[slice], work: Workspace) -> None:
    """Leave the sum of slice ``rank`` there: the rank's own summand as it is, the others' rounded to float16.

    ``x`` is float32, shape (n,), and keeps its other slices.  The sum is made in float32 and in a fixed order, from
    the rank's own summand down the ranks: it depends on nothing but the vectors and the table.
    """
    kernels = _kernels(x)
    outgoing, incoming, length = _buffers(work)
    mine = x[slices[wire.rank]]
    for step in range(1, wire.size):
        dest, source = (wire.rank + step) % wire.size, (wire.rank - step) % wire.size
        theirs = x[slices[dest]]
        for start in range(0, max(theirs.size, mine.size), length):
            part, total = theirs[start : start + length], mine[start : start + length]
            send, received = outgoing[: words(part.size)], incoming[: words(total.size)]
            kernels.pack(part, send)
            wire.sendrecv(send, dest, received, source)
            kernels.add(received, total)


def compressed_allgather(
    wire: Wire, x: Array, base: Array, residual: Array, slices: Sequence[slice], work: Workspace
) -> None:
    """Give all ranks the same new ``x``: ``base`` plus each owner's change, rounded to float16.

    Args:
        wire: the ranks.
        x: float32, shape (n,).  In: the slice that this rank owns, as it should be.  Out: the same bits on all ranks,
            the owner's included, if ``base`` had.
        base: float32, shape (n,): what all ranks hold already, such as the last parameters; apart from ``x``.
        residual: float32, the owned slice's shape.  In: what the owned slice of ``x`` lacks, and is sent besides.  Out:
            what the new one lacks.  Nothing is lost if it is handed in again at the next step, unchanged; or if
            the optimizer adds it to its next update, as the ``carry`` of compensated sums is.
        slices: the ranks' own slices; what none of them covers is left alone.
        work: scratch memory, of the same size on all ranks.

    One rank rounds as several do.  Where a change overflows float32, or is not finite, so is the new ``x``.
    """
    kernels = _kernels(x, base, residual)
    outgoing, incoming, length = _buffers(work)
    mine = slices[wire.rank]
    longest = max((s.stop - s.start for s in slices), default=0)
    for start in range(0, longest, length):
        own = _piece(mine, start, length)
        send = outgoing[: words(own.stop - own.start)]
        lacks = residual[start : start + length]
        kernels.pack_change(x[own], base[own], lacks, send)
        for step in range(1, wire.size):
            dest, source = (wire.rank + step) % wire.size, (wire.rank - step) % wire.size
            part = _piece(slices[source], start, length)
            received = incoming[: words(part.stop - part.start)]
            wire.sendrecv(send, dest, received, source)
            kernels.shift(received, base[part], x[part])


def words(size: int) -> int:
    """How many uint16 words the message for ``size`` elements takes."""
    from .compression_kernels import BLOCK

    return size + -(-size // BLOCK)


def _buffers(work: Workspace) -> tuple[Array, Array, int]:
    """A buffer for what is sent, one for what is received, and the elements whose message fills one."""
    from .compression_kernels import BLOCK

    segment = work.segment(np.dtype(np.uint16))
    middle = segment.size // 2
    # whole blocks where possible: how numbers are rounded then does not depend on the size of the buffer
    return segment[:middle], segment[middle:], middle // (BLOCK + 1) * BLOCK or middle - 1


def _piece(part: slice, start: int, length: int) -> slice:
    """At most ``length`` elements of slice ``part``, from its element ``start`` on; empty beyond its end."""
    return slice(min(part.start + start, part.stop), min(part.start + start + length, part.stop))


def _kernels(*vectors: Array) -> ModuleType:
    """The compiled kernels, loaded when first needed; refuses vectors that they are not made for."""
    for x in vectors:
        if x.dtype != np.float32:
            raise ValueError(f"float16 messages stand for float32 vectors, not {x.dtype}")
    from . import compression_kernels

    return compression_kernels
