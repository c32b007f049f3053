"""Collectives that tell a recorder when this rank waits and when it sends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..trace import EXCHANGE, WAIT, Recorder
from .collectives import Algorithm


def traced(algorithm: Algorithm, recorder: Recorder) -> Algorithm:
    """``algorithm``, of which ``recorder`` hears.

    A rank that comes early waits inside of an exchange, where that cannot be told from the messages' own time.  Here
    the ranks meet first: that is one barrier more for each exchange.
    """
    exchanges = (algorithm.allreduce, algorithm.reduce_scatter, algorithm.allgather)
    return Algorithm(*(None if exchange is None else _timed(exchange, recorder) for exchange in exchanges))  # type: ignore[arg-type]


def _timed(exchange: Callable[..., None], recorder: Recorder) -> Callable[..., None]:
    def call(wire: Any, *args: Any) -> None:
        before = recorder.mark(WAIT)
        wire.comm.Barrier()
        recorder.mark(EXCHANGE)
        exchange(wire, *args)
        recorder.mark(before)

    return call
