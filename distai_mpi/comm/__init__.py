"""Communication between ranks: the only part of the package that imports mpi4py.

Its names are loaded when they are first used: `comm.launch` runs before NumPy, and so BLAS, is loaded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "ALGORITHMS": "collectives",
    "CHOICES": "exchange.settings",
    "Communicator": "communicator",
    "ActivationExchange": "activations",
    "Exchange": "exchange.settings",
    "Mesh": "mesh",
    "MeshShape": "mesh",
    "Node": "topology",
    "Pipeline": "mesh",
    "SHARING": "exchange.settings",
    "StageLinks": "stage_links",
    "VectorExchange": "exchange.base",
    "choose_exchange": "exchange.choice",
    "of_touched": "exchange.touched",
}
__all__ = [
    "ALGORITHMS",
    "CHOICES",
    "SHARING",
    "ActivationExchange",
    "Communicator",
    "Exchange",
    "Mesh",
    "MeshShape",
    "Node",
    "Pipeline",
    "StageLinks",
    "VectorExchange",
    "choose_exchange",
    "of_touched",
]

if TYPE_CHECKING:
    from .activations import ActivationExchange
    from .collectives import ALGORITHMS
    from .communicator import Communicator
    from .exchange.base import VectorExchange
    from .exchange.choice import choose_exchange
    from .exchange.settings import CHOICES, SHARING, Exchange
    from .exchange.touched import of_touched
    from .mesh import Mesh, MeshShape, Pipeline
    from .stage_links import StageLinks
    from .topology import Node


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'distai_mpi.comm' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    return value
