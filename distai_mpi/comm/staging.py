"""The way of device vectors through host memory: MPI libraries here are not asked to read a GPU's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..backend import HOST, device_of
from .wire import Array


class Staging:
    """One host buffer for each dtype, page-locked where the device has such, kept from call to call.

    A vector on the host is its own buffer, and nothing is copied.
    """

    def __init__(self) -> None:
        self._held: dict[np.dtype[Any], Array] = {}

    def down(self, x: Array, part: slice | None) -> Array:
        """A host vector of x's length and dtype that holds ``part`` of ``x`` (None: nothing yet)."""
        device = device_of(x)
        if device is HOST:
            return x
        held = self._held.get(x.dtype)
        if held is None or held.size < x.size:
            held = self._held[x.dtype] = device.host_empty(x.size, x.dtype)
        host = held[: x.size]
        if part is not None and x[part].size:
            device.get(x[part], host[part])
        return host

    @staticmethod
    def up(host: Array, x: Array, parts: Iterable[slice]) -> None:
        """Copy ``parts`` of what `down` gave back to ``x``."""
        if host is x:
            return
        device = device_of(x)
        for part in parts:
            if x[part].size:
                device.put(host[part], x[part])
