"""Exchanges that tell a recorder when this rank waits and when it sends."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..trace import EXCHANGE, WAIT, Recorder
from .clocks import Offset, offsets
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

    def trace(self, recorder: Recorder | None) -> None:
        """Let ``recorder`` hear from now on when this rank waits and when it sends; None: nobody; local.

        On all ranks or on none: before messages are exchanged, ranks that are heard meet in a barrier.
        """
        self.recorder = recorder
        self._sharing.trace(recorder)

    def _told(self, exchange: Callable[..., None]) -> Callable[..., None]:
        """``exchange`` among all ranks, of which the recorder hears, where there is one."""
        return told(self.recorder, self._comm.Barrier, exchange)

    def clock_offsets(self) -> list[Offset]:
        """How far the clock of each node is ahead of that of rank 0, which alone gets the answer; collective."""
        return offsets(MPIWire(self._comm), self.leaders)


def told(recorder: Recorder | None, meet: Callable[[], object], exchange: Callable[..., None]) -> Callable[..., None]:
    """``exchange``, of which ``recorder`` hears, where there is one.

    A rank that comes early waits inside of an exchange, where that cannot be told from the messages' own time.  While
    they are heard ranks ``meet`` first, in one barrier more.
    """
    if recorder is None:
        return exchange

    def call(*args: Any) -> None:
        before = recorder.mark(WAIT)
        meet()
        recorder.mark(EXCHANGE)
        exchange(*args)
        recorder.mark(before)

    return call
