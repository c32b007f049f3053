"""Scratch memory of the collectives."""

from __future__ import annotations

from typing import Any

import numpy as np

from .wire import Array

SEGMENT_BYTES = 1 << 20


class Workspace:
    """The buffer that summands are received into, one segment at a time, kept from call to call.

    A fresh temporary per call would cost a page fault for every 4 KiB, and a
    segment that stays in the cache is added without a trip to memory.
    ``segment_bytes`` must be the same on all ranks, and a multiple of the item size.
    """

    def __init__(self, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._buffer = np.empty(segment_bytes, np.uint8)
        self._views: dict[np.dtype[Any], Array] = {}

    def segment(self, dtype: np.dtype[Any]) -> Array:
        """Return the whole buffer as a vector of ``dtype``; what it holds is undefined."""
        view = self._views.get(dtype)
        if view is None:
            view = self._views[dtype] = self._buffer.view(dtype)
        return view
