"""How far the nodes' clocks are apart.

Cristian 1989, "Probabilistic clock synchronization", Distributed Computing 3, 146-158: the clock of another machine,
asked for by a message, was read somewhere between the asking and the answer.  Of several times that it is asked the
quickest counts, for it leaves the least doubt.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from .wire import Wire

TRIPS = 50
MOST_SECONDS = 0.1  # for a node: on a slow network fewer trips do

Clock = Callable[[], int]


class Offset(NamedTuple):
    """A node's clock beside that of rank 0, in nanoseconds.

    Attributes:
        ahead: what it shows more.
        error: by how much this may be wrong: half the round trip.
        at: when it was measured, by the clock of rank 0.
    """

    ahead: int
    error: int
    at: int


def offsets(wire: Wire, leaders: Sequence[int], clock: Clock = time.perf_counter_ns) -> list[Offset]:
    """The clocks of the nodes whose first ranks are ``leaders``, rank 0 among them; rank 0 alone gets the answer.

    Collective, though nodes' other ranks have nothing to do.
    """
    if wire.rank == 0:
        return [Offset(0, 0, clock()), *(_ask(wire, leader, clock) for leader in leaders[1:])]
    if wire.rank in leaders:
        _answer(wire, clock)
    return []


def _ask(wire: Wire, leader: int, clock: Clock) -> Offset:
    more, answer = np.ones(1, np.int64), np.empty(1, np.int64)
    found: list[Offset] = []
    began = clock()
    while more[0]:
        more[0] = len(found) + 1 < TRIPS and clock() - began < MOST_SECONDS * 1e9
        asked = clock()
        wire.sendrecv(more, leader, None, leader)
        wire.sendrecv(None, leader, answer, leader)
        answered = clock()
        middle = (asked + answered) // 2
        found.append(Offset(int(answer[0]) - middle, -(-(answered - asked) // 2), middle))
    return min(found, key=lambda offset: offset.error)


def _answer(wire: Wire, clock: Clock) -> None:
    more, answer = np.ones(1, np.int64), np.empty(1, np.int64)
    while more[0]:
        wire.sendrecv(None, 0, more, 0)
        answer[0] = clock()
        wire.sendrecv(answer, 0, None, 0)
