"""Exchanges that tell a recorder when this rank waits and when it sends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..trace import EXCHANGE, WAIT, Recorder
from .clocks import Offset, offsets
from .collectives import ALGORITHMS, Algorithm
from .wire import MPIWire

if TYPE_CHECKING:
    from .sharing import Sharing


class Traceable:
    """The part of a communicator that is about recorders.

    Attributes:
        recorder: hears when this rank waits and when it sends; None: nobody does.  Set by `trace`.
    """

    recorder: Recorder | None = None
    leaders: tuple[int, ...]
    _comm: Any
    _sharing: Sharing
    _algorithms: Mapping[str, Algorithm] = ALGORITHMS

    def trace(self, recorder: Recorder | None) -> None:
        """Let ``recorder`` hear from now on when this rank waits and when it sends; None: nobody; local.

        On all ranks or on none: before messages are exchanged, ranks that are heard meet in a barrier.
        """
        self.recorder = recorder
        self._sharing.trace(recorder)
        self._algorithms = ALGORITHMS
        if recorder is not None:
            self._algorithms = {name: traced(algorithm, recorder) for name, algorithm in ALGORITHMS.items()}

    def _heard(self, exchange: Callable[..., None]) -> Callable[..., None]:
        """``exchange``, of which the recorder hears if there is one."""
        return exchange if self.recorder is None else timed(exchange, self.recorder)

    def clock_offsets(self) -> list[Offset]:
        """How far the clock of each node is ahead of that of rank 0, which alone gets the answer; collective."""
        return offsets(MPIWire(self._comm), self.leaders)


def traced(algorithm: Algorithm, recorder: Recorder) -> Algorithm:
    """``algorithm``, of which ``recorder`` hears.

    A rank that comes early waits inside of an exchange, where that cannot be told from the messages' own time.  Here
    the ranks meet first: that is one barrier more for each exchange.
    """
    exchanges = (algorithm.allreduce, algorithm.reduce_scatter, algorithm.allgather)
    return Algorithm(*(None if exchange is None else timed(exchange, recorder) for exchange in exchanges))  # type: ignore[arg-type]


def timed(exchange: Callable[..., None], recorder: Recorder) -> Callable[..., None]:
    """``exchange``, of which ``recorder`` hears as told at `traced`."""

    def call(wire: Any, *args: Any) -> None:
        before = recorder.mark(WAIT)
        wire.comm.Barrier()
        recorder.mark(EXCHANGE)
        exchange(wire, *args)
        recorder.mark(before)

    return call
