"""Exchanges that are tried out to see which is fastest: one rank measures and decides, all take part."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..params import Ownership
from .collectives import SHARING
from .wire import Array

if TYPE_CHECKING:
    from .communicator import Communicator
    from .findings import Times

WINDOW_SECONDS = 2e-4  # of exchanges timed together: long against the clock, short against what disturbs
MOST_REPEATS = 32  # of an exchange in a window
LOOKS, TURNS = 3, 20  # windows of each candidate, at least and at most
AGREED = 1.15  # windows that differ no more were not disturbed; when the best `LOOKS` of a candidate agree it is done
GIVE_UP = 2.0  # a candidate that surely takes so many times the best's time is left alone
LATE = 2.0  # times the seconds granted, after which fewer than `LOOKS` windows have to do
PILOT_BYTES = 64 << 10  # of the vectors that tell how long larger ones may take
WARM_UP_ELEMENTS = 256


class Verdict(NamedTuple):
    """The least seconds of an exchange by each algorithm, for disturbances only add to them; and whether they are sure.

    ``settled`` is false where the machine was too busy to tell: the windows of a candidate differ.
    """

    times: Times
    settled: bool


class Trial:
    """Vectors as ranks exchange them, and the exchange of them by any of ``names``; making one is collective.

    Args:
        comm: the ranks.
        steps: whether steps of training are tried, with the plainest of updates in the middle; else sums in place.
        size, dtype: of the vectors.
        shared: whether sums are of vectors that the ranks of a node share; in steps the algorithm tells.
        names: the algorithms.

    Attributes:
        names: those that can be tried: without `SHARING` where a node has no memory to share.
    """

    def __init__(
        self, comm: Communicator, steps: bool, size: int, dtype: np.dtype[Any], shared: bool, names: Sequence[str]
    ) -> None:
        self._comm, self._steps, self._size, self._dtype = comm, steps, size, dtype
        self._vectors: dict[bool, tuple[Array, Array] | None] = {}
        self._ready: dict[str, tuple[Array, Array, Ownership]] = {}
        for name in names:
            vectors = self._take(name in SHARING if steps else shared)
            if vectors is None and name not in SHARING:
                vectors = self._take(False)
            if vectors is not None:
                self._ready[name] = *vectors, comm.ownership(size, dtype, name)
        self.names = list(self._ready)

    def _take(self, share: bool) -> tuple[Array, Array] | None:
        """A gradient and parameters; None where they cannot be shared."""
        if share not in self._vectors:
            x = self._comm.empty(self._size, self._dtype, share)
            failed = share and self._comm._sharing.find(x) is None
            w = self._comm.empty(self._size, self._dtype, share, once=share) if self._steps and not failed else x
            for vector in () if share else (x, w):
                vector[:] = 0  # shared ones have been written to: fresh pages would all be one, and lie in the cache
            self._vectors[share] = None if failed else (x, w)
        return self._vectors[share]

    def run(self, name: str, repeats: int) -> None:
        """Exchange ``repeats`` times; collective."""
        comm, (x, w, owners) = self._comm, self._ready[name]
        grad, parameters = x[owners.slices[comm.rank]], w[owners.slices[comm.rank]]
        for _ in range(repeats):
            if self._steps:
                for part in comm.reduce_scatter_parts(x, owners, name):
                    np.subtract(parameters[part], grad[part], out=parameters[part])
                comm.allgather(w, owners, name)
            else:
                comm.allreduce(x, name)


@contextlib.contextmanager
def uncounted(comm: Communicator) -> Iterator[None]:
    """Let what the ranks exchange inside the block count nowhere, be heard by nobody, and not be checked."""
    calls, sent, check, recorder = comm.calls.copy(), comm.bytes_sent, comm._check, comm.recorder
    comm._check = False
    comm.trace(None)
    try:
        yield
    finally:
        comm.trace(recorder)
        comm.calls, comm._check = calls, check
        comm._uncounted += comm.bytes_sent - sent


def measure(
    comm: Communicator,
    steps: bool,
    nbytes: int,
    dtype: np.dtype[Any],
    shared: bool,
    names: Sequence[str],
    seconds: float,
) -> Verdict:
    """Time an exchange of ``nbytes`` by each algorithm of ``names``, ``native`` among them; collective.

    It takes about ``seconds``, not counting what is compiled at the first use on a machine: where messages are slow,
    smaller vectors stand for large ones.
    """

    def trial(nbytes: int, names: Sequence[str]) -> Trial:
        return Trial(comm, steps, max(1, nbytes // dtype.itemsize), dtype, shared, names)

    with uncounted(comm):
        warm_up = trial(WARM_UP_ELEMENTS * dtype.itemsize, names)
        for name in warm_up.names:
            warm_up.run(name, 1)
        tried = nbytes
        if nbytes > PILOT_BYTES:
            pilot = contest(comm, ["native"], trial(PILOT_BYTES, ["native"]).run, seconds / 30)
            most = seconds / ((LOOKS + 1) * len(names) * pilot.times["native"]) * PILOT_BYTES
            tried = int(min(nbytes, max(PILOT_BYTES, most)))
        final = trial(tried, warm_up.names)
        verdict = contest(comm, final.names, final.run, seconds)
    return Verdict({name: least * nbytes / tried for name, least in verdict.times.items()}, verdict.settled)


def contest(
    comm: Any,
    names: Sequence[str],
    run: Callable[[str, int], None],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Verdict:
    """Let all ranks ``run(name, repeats)`` in turn as rank 0 orders, which times them between barriers.

    Collective; every rank gets rank 0's verdict.
    """
    referee = orders(names, seconds, clock)
    order = comm.bcast_object(next(referee) if comm.rank == 0 else None)
    while not isinstance(order, Verdict):
        name, repeats = order
        comm.barrier()
        began = clock()
        run(name, repeats)
        comm.barrier()
        order = comm.bcast_object(referee.send(clock() - began) if comm.rank == 0 else None)
    return order


def orders(
    names: Sequence[str], seconds: float, clock: Callable[[], float]
) -> Generator[tuple[str, int] | Verdict, float, None]:
    """Say who is to run how often, and be sent how long that took; at last give the verdict."""
    first = {}  # in cold caches, and pages nobody has touched
    for name in names:
        first[name] = yield name, 1
    windows: dict[str, list[float]] = {name: [] for name in names}
    least, began = dict(first), clock()
    for turn in range(TURNS):
        hopeful = [name for name in names if may_win(name, least) or not agree(windows[name])]
        if all(agree(windows[name]) for name in hopeful):
            break
        for name in hopeful:
            if clock() - began > seconds * (LATE if turn < LOOKS else 1.0):
                yield Verdict(least, False)
                return
            repeats = int(min(MOST_REPEATS, max(1.0, WINDOW_SECONDS / least[name])))
            elapsed = yield name, repeats
            windows[name].append(elapsed / repeats)
            least[name] = min(windows[name])
    yield Verdict(least, all(agree(windows[name]) for name in names))


def may_win(name: str, least: Times) -> bool:
    """Whether a candidate is not too far behind; the library's own stays to be compared with."""
    return name == "native" or least[name] <= GIVE_UP * min(least.values())


def agree(windows: Sequence[float]) -> bool:
    """Whether the best `LOOKS` windows took nearly the same time."""
    best = sorted(windows)[:LOOKS]
    return len(best) == LOOKS and best[-1] <= AGREED * best[0]
