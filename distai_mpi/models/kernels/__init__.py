"""The inner loops of the models, one module per kind of processor, with the same functions."""

from __future__ import annotations

from types import ModuleType

from ...backend import Device


def kernels_of(device: Device) -> ModuleType:
    """The loops that read arrays of ``device``: Numba's for the host, which are loaded here, else array functions."""
    if device.compiled:
        from . import cpu

        return cpu
    from . import array

    return array
