"""Exchanges that call a recorder back when this rank waits and when it sends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..trace import EXCHANGE, WAIT, Recorder


def traced(
    recorder: Recorder | None, synchronize: Callable[[], object], exchange: Callable[..., None]
) -> Callable[..., None]:
    """``exchange``, which calls ``recorder`` back, where there is one.

    A rank that comes early waits inside of an exchange, where that cannot be told from the messages' own time.  While
    they are traced ranks ``synchronize`` first, in one barrier more.
    """
    if recorder is None:
        return exchange

    def call(*args: Any) -> None:
        before = recorder.mark(WAIT)
        synchronize()
        recorder.mark(EXCHANGE)
        exchange(*args)
        recorder.mark(before)

    return call
