"""Index-value pairs as messages: plain functions over a `Wire`.

Renggli et al. 2019, "SparCML: high-performance sparse communication for machine learning", section 5.3: a sparse vector
is reduced slice by slice by the ranks that own them, and each message is a list of pairs, or the slice itself where
that is no longer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np

from .wire import Array, Wire

PAIRS, SLICE = 0, 1  # kinds of messages


class Message(NamedTuple):
    """Part of a sparse vector: ``header``, int64, has its kind and the bytes of the ``payload``."""

    header: Array
    payload: Array

    @property
    def is_slice(self) -> bool:
        """Whether it is all elements of the slice, and not pairs."""
        return int(self.header[0]) == SLICE


def as_pairs(columns: Array, values: Array) -> Message:
    """The message of ``columns``, shape (n,), and ``values``, shape (n, outputs)."""
    payload = np.empty(columns.nbytes + values.nbytes, np.uint8)
    payload[: columns.nbytes] = columns.view(np.uint8)
    payload[columns.nbytes :] = values.reshape(-1).view(np.uint8)
    return Message(np.array([PAIRS, payload.size]), payload)


def as_slice(values: Array) -> Message:
    """The message of all elements of a slice, shape (n,)."""
    return Message(np.array([SLICE, values.nbytes]), values.view(np.uint8))


def message_of(columns: Array, sums: Array, span: slice) -> Message:
    """Pairs of a vector that lie in its slice ``span``, as the shorter of both kinds; elements without one are 0."""
    elements = span.stop - span.start
    if columns.nbytes + sums.nbytes < elements * sums.itemsize:
        return as_pairs(columns, sums)
    from .pair_kernels import put

    values = np.zeros(elements, sums.dtype)
    put(columns, sums, span.start, values)
    return as_slice(values)


def pairs_of(message: Message, outputs: int, index: np.dtype, dtype: np.dtype) -> tuple[Array, Array]:
    """Columns and values of a message of pairs; views."""
    count = message.payload.size // (index.itemsize + outputs * dtype.itemsize)
    cut = count * index.itemsize
    columns, values = message.payload[:cut].view(index), message.payload[cut:]
    if values.ctypes.data % dtype.itemsize:  # 4-byte indices, an odd number of them, and 8-byte values
        values = values.copy()
    return columns, values.view(dtype).reshape(count, outputs)


def swap(wire: Wire, outgoing: Mapping[int, Message], sources: Collection[int]) -> dict[int, Message]:
    """Send a message to each rank of ``outgoing``; return those that the ranks ``sources`` have sent to this one.

    Both are sent in the order of distance, headers ahead, so that lengths need no agreement.
    """
    came: dict[int, Message] = {}
    for shift in range(1, wire.size):
        dest, source = (wire.rank + shift) % wire.size, (wire.rank - shift) % wire.size
        out = outgoing.get(dest)
        header = np.zeros(2, np.int64) if source in sources else None
        wire.sendrecv(None if out is None else out.header, dest, header, source)
        payload = None if header is None else np.empty(int(header[1]), np.uint8)
        wire.sendrecv(None if out is None else out.payload, dest, payload, source)
        if header is not None and payload is not None:
            came[source] = Message(header, payload)
    return came
