"""Copies of batches on a device."""

from __future__ import annotations

from typing import Any

from ..backend import Device
from .batch import Batch

Array = Any


class Upload:
    """Copies features, targets and weights of batches to ``device``, into buffers that the next batch takes over."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._held: dict[str, Array] = {}

    def __call__(self, batch: Batch) -> Batch:
        """``batch`` with x, y and weight on the device; ids, which no model needs to compute, stay on the host."""
        x, y = self._copy("x", batch.x), self._copy("y", batch.y)
        weight = None if batch.weight is None else self._copy("weight", batch.weight)
        return batch._replace(x=x, y=y, weight=weight)

    def _copy(self, name: str, host: Array) -> Array:
        held = self._held.get(name)
        if held is None or len(held) < len(host) or held.dtype != host.dtype:
            held = self._held[name] = self._device.zeros(host.shape, host.dtype)
        out = held[: len(host)]
        self._device.put(host, out)
        return out
