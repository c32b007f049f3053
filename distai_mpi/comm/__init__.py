"""Communication between ranks: the only part of the package that imports mpi4py.

Its names are loaded when they are first used: `comm.launch` runs before NumPy, and so BLAS, is loaded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "ALGORITHMS": "collectives",
    "CHOICES": "collectives",
    "Communicator": "communicator",
    "Exchange": "settings",
    "HalfMessages": "half_messages",
    "Node": "topology",
    "SHARING": "collectives",
    "choose_messages": "half_messages",
}
__all__ = [
    "ALGORITHMS",
    "CHOICES",
    "SHARING",
    "Communicator",
    "Exchange",
    "HalfMessages",
    "Node",
    "choose_messages",
]

if TYPE_CHECKING:
    from .collectives import ALGORITHMS, CHOICES, SHARING
    from .communicator import Communicator
    from .half_messages import HalfMessages, choose_messages
    from .settings import Exchange
    from .topology import Node


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'distai_mpi.comm' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    return value
