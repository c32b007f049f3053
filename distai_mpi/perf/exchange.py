"""Seconds of sums over all ranks: the package's own, the MPI library's, and the floors of the memory.

All contenders sum vectors of one length and type, in turn (see `turns`).  Those that send messages, and the library's
Allreduce, sum private vectors in place.  ``shared`` and ``hierarchical`` sum vectors of `Communicator.empty`, in place
on every rank, or, with ``-once`` behind the name, into a vector that each node has once.  ``native-kept`` is the
library's with a malloc that keeps what is freed (see `malloc`), ``native-persistent`` its Allreduce_init.  A *floor* is
the least that the ranks of a node must read and write for such a result, all at once and each in private memory (see
`floors`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..comm import ALGORITHMS, SHARING
from ..errors import DistaiError
from . import malloc, pattern
from .machine import memory_left
from .turns import Candidate, in_turn

if TYPE_CHECKING:
    from ..comm import Communicator

Array = Any
Row = dict[str, Any]
KEPT, PERSISTENT, ONCE = "native-kept", "native-persistent", "-once"
NAMES = (*ALGORITHMS, KEPT, PERSISTENT, *(name + how for name in SHARING for how in ("", ONCE)), "auto")
SHORT_BYTES, CALLS = 32 << 10, 10  # up to this length, where native takes about 20 µs, a sample is of several calls


@dataclass
class Contender(Candidate):
    """A way to sum over ranks.

    Attributes:
        x: this rank's summand, shape (n,).
        result: where the sum lies afterwards, shape (n,): ``x`` itself, or the node's vector.
        resolved: the algorithm at work, by name.
    """

    x: Array = None
    result: Array = None
    resolved: str = ""

    @property
    def once(self) -> bool:
        """Whether each node has the result once, and not every rank."""
        return self.name.endswith(ONCE)


@dataclass
class Floor(Candidate):
    """Reads and writes of private memory.

    Attributes:
        once: the kind of result it stands for, see `Contender.once`.
        traffic: bytes that a rank reads and writes.
    """

    once: bool = False
    traffic: int = 0


def default_names(comm: Communicator) -> list[str]:
    """All contenders that apply: ``shared`` on one node, ``hierarchical`` on several."""
    absent = SHARING[len(comm.leaders) == 1]
    return [name for name in NAMES if name.removesuffix(ONCE) != absent]


def lengths(least: int, most: int, factor: int) -> list[int]:
    """``least``, ``factor`` times as much, and so on, and ``most``."""
    found = []
    while least < most:
        found.append(least)
        least *= factor
    return [*found, most]


def lacking_memory(comm: Communicator, nbytes: int) -> str | None:
    """The reason why vectors of ``nbytes`` do not fit the memory of some node; None where they fit; collective.

    Each rank has a private and a shared one, and the MPI library two as scratch; the node has one more.
    """
    needed, left = (4 * comm.node.size + 1) * nbytes, memory_left()
    reason = f"{needed:,} bytes are needed on a node, and {left:,} left" if needed > left else None
    return next(filter(None, comm.allgather_object(reason)), None)


def measure(
    comm: Communicator, mpi_comm: Any, nbytes: int, dtype: np.dtype[Any], names: Sequence[str], seconds: float
) -> tuple[list[Row], list[Row], dict[str, str]]:
    """Check contenders ``names`` on vectors of ``nbytes``, and time them for about ``seconds``; collective.

    ``mpi_comm`` is the library's communicator of the same ranks, for what the library offers by itself.  Returns the
    contenders' rows, the floors' (see `rows`), and why contenders were left out, by name.

    Raises:
        DistaiError: a sum is wrong; on all ranks.
    """
    size, k = nbytes // dtype.itemsize, max(map(len, comm.topology.nodes))
    with contextlib.ExitStack() as stack:
        slices = _slices(comm, k, size, dtype)
        contenders, skipped = _contenders(comm, mpi_comm, slices.reshape(-1)[:size], names, stack)
        floors = _floors(comm, slices) if k > 1 else []
        for contender in contenders:
            check(comm, contender)
        calls = CALLS if nbytes <= SHORT_BYTES else 1
        in_turn(comm, [*contenders, *floors], seconds, calls=calls)
        facts = {"ranks": comm.size, "nodes": len(comm.leaders), "bytes": nbytes, "dtype": str(dtype)}
        return *rows(contenders, floors, facts | {"calls": calls}), skipped


def _slices(comm: Communicator, k: int, size: int, dtype: np.dtype[Any]) -> Array:
    """A private vector of at least ``size`` elements, shape (k, m): k slices that start on cache lines."""
    unit = max(1, 64 // dtype.itemsize)
    m = -(-size // (k * unit)) * unit
    return comm.empty(k * m, dtype, shared=False).reshape(k, m)


def _contenders(
    comm: Communicator, mpi_comm: Any, private: Array, names: Sequence[str], stack: contextlib.ExitStack
) -> tuple[list[Contender], dict[str, str]]:
    """The contenders ``names`` that there are, and why there are no others; collective.

    Messages are for the vector ``private``, shape (n,).  ``stack`` frees what must be freed.
    """
    size, dtype = private.size, private.dtype
    shared, once = comm.empty(size, dtype), comm.empty(size, dtype, one_copy=True)
    stack.callback(malloc.give_back)
    contenders: list[Contender] = []
    skipped: dict[str, str] = {}
    for name in names:
        base = {KEPT: "native", PERSISTENT: "native"}.get(name, name.removesuffix(ONCE))
        exchange = comm.exchange(base)
        x = shared if exchange.shares else private
        out = once if name.endswith(ONCE) else None
        call: Callable[[], object] | None = partial(comm.allreduce, x, base, out)
        if name == PERSISTENT:
            call = _persistent(mpi_comm, x, skipped, stack)
        elif name == KEPT and (reasons := [why for why in comm.allgather_object(malloc.why_not()) if why]):
            skipped[name], call = reasons[0], None
        if call is not None:
            prepare = malloc.keep if name == KEPT else malloc.give_back
            result = x if out is None else out
            by = exchange.summed_by(x)
            contenders.append(Contender(name, call, partial(x.fill, 0), prepare, x=x, result=result, resolved=by))
    return contenders, skipped


def _persistent(
    mpi_comm: Any, x: Array, skipped: dict[str, str], stack: contextlib.ExitStack
) -> Callable[[], object] | None:
    from ..comm.persistent import PersistentAllreduce

    try:
        persistent = PersistentAllreduce(mpi_comm, x)
    except NotImplementedError as error:
        skipped[PERSISTENT] = str(error)
        return None
    stack.callback(persistent.free)
    return persistent.call


def _floors(comm: Communicator, x: Array) -> list[Floor]:
    """All loops that read and write as much as the sum of the k slices ``x``, shape (k, m), on one of k ranks."""
    from . import floors

    out = comm.empty(x.shape[1], x.dtype, shared=False)
    once, in_place = floors.loops(x.dtype)
    made: list[Floor] = []
    for kind, loops, arrays, traffic in (
        (True, once, (x, out), x.nbytes + out.nbytes),
        (False, in_place, (x,), 2 * x.nbytes),
    ):
        made += (
            Floor(loop.__name__, partial(loop, *arrays), partial(x.fill, 0), once=kind, traffic=traffic)
            for loop in loops
        )
    return made


def check(comm: Communicator, contender: Contender) -> None:
    """Sum a pattern that differs between ranks; collective.

    Raises:
        DistaiError: the sum is wrong somewhere; on all ranks.
    """
    x = contender.x
    pattern.write(x, comm.rank)
    contender.prepare()
    contender.call()
    with comm.agreed():  # and no rank goes on to write while others read the node's vector
        if not pattern.repeats(contender.result, pattern.total(comm.size, x.dtype)):
            raise DistaiError(f"{contender.name}: the sum of {x.nbytes:,} bytes of {x.dtype} is wrong")


def rows(
    contenders: Sequence[Contender], floors: Sequence[Floor], facts: Mapping[str, Any]
) -> tuple[list[Row], list[Row]]:
    """What was measured, a row for each contender, and one for each kind of floor: its fastest loop.

    ``ratio_to_native`` and ``ratio_to_floor`` are times as multiples of the library's Allreduce, with a malloc that
    keeps memory or gives it back, whichever is faster, and of the floor for that kind of result: quotients of the
    ``seconds`` beside them.  None where there is nothing to compare with.
    """
    natives = [contender for contender in contenders if contender.name in ("native", KEPT)]
    native = min(natives, key=lambda one: one.median, default=None)
    kinds = {floor.once for floor in floors}
    best = {once: min((f for f in floors if f.once == once), key=lambda f: f.median) for once in kinds}
    found = []
    for one in contenders:
        floor = best.get(one.once)
        measured = {
            "algorithm": one.name,
            "seconds": one.median,
            "fastest": one.fastest,
            "out": "once" if one.once else "in place",
            "resolved": one.resolved,
            "turns": len(one.seconds),
            "bytes_per_second": facts["bytes"] / one.median,
            "ratio_to_native": native and one.ratio(native),
            "floor_seconds": floor and floor.median,
            "ratio_to_floor": floor and one.ratio(floor),
        }
        found.append({**facts, **measured})
    memory = [
        {
            **facts,
            "out": "once" if once else "in place",
            "loop": floor.name,
            "seconds": floor.median,
            "bytes_per_second_of_a_rank": floor.traffic / floor.median,
        }
        for once, floor in best.items()
    ]
    return found, memory
