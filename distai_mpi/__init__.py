"""Distributed training on MPI: one flat vector, contiguous slices, any optimizer.

Importing the package starts no MPI and compiles nothing; the names below are
loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .version import __version__

_HOME = {
    "Checkpoint": "distai_mpi.train",
    "Communicator": "distai_mpi.comm",
    "EarlyStopping": "distai_mpi.train",
    "Exchange": "distai_mpi.comm",
    "Objective": "distai_mpi.objective",
    "Trace": "distai_mpi.train",
    "fit": "distai_mpi.train",
    "minimize": "distai_mpi.train",
    "data": "distai_mpi.data",
    "models": "distai_mpi.models",
    "optim": "distai_mpi.optim",
    "world": "distai_mpi.comm.launch",
}
__all__ = [
    "Checkpoint",
    "Communicator",
    "EarlyStopping",
    "Exchange",
    "Objective",
    "Trace",
    "__version__",
    "data",
    "fit",
    "minimize",
    "models",
    "optim",
    "world",
]

if TYPE_CHECKING:
    from . import data, models, optim
    from .comm import Communicator, Exchange
    from .comm.launch import world
    from .objective import Objective
    from .train import Checkpoint, EarlyStopping, Trace, fit, minimize


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'distai_mpi' has no attribute {name!r}")
    module = importlib.import_module(_HOME[name])
    value = module if module.__name__ == f"distai_mpi.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
