"""Distributed training on MPI: one flat vector, contiguous slices, any optimizer.

Importing the package starts no MPI and compiles nothing; the names below are
loaded when they are first used.
"""

from __future__ import annotations

from .version import __version__

_HOME = {
    "Balance": "distai_mpi.train",
    "Checkpoint": "distai_mpi.train",
    "Communicator": "distai_mpi.comm",
    "EarlyStopping": "distai_mpi.train",
    "Exchange": "distai_mpi.comm",
    "Mesh": "distai_mpi.comm",
    "Objective": "distai_mpi.objective",
    "Pipeline": "distai_mpi.comm",
    "Predictor": "distai_mpi.predictor",
    "Trace": "distai_mpi.train",
    "fit": "distai_mpi.train",
    "l1_path": "distai_mpi.train",
    "load": "distai_mpi.predictor",
    "minimize": "distai_mpi.train",
    "data": "distai_mpi.data",
    "graphs": "distai_mpi.graphs",
    "models": "distai_mpi.models",
    "optim": "distai_mpi.optim",
    "world": "distai_mpi.comm.launch",
}
__all__ = [
    "Balance",
    "Checkpoint",
    "Communicator",
    "EarlyStopping",
    "Exchange",
    "Mesh",
    "Objective",
    "Pipeline",
    "Predictor",
    "Trace",
    "__version__",
    "data",
    "fit",
    "graphs",
    "l1_path",
    "load",
    "minimize",
    "models",
    "optim",
    "world",
]

TYPE_CHECKING = False  # not that of typing, which takes longer to import than all that is here
if TYPE_CHECKING:
    from . import data, graphs, models, optim
    from .comm import Communicator, Exchange, Mesh, Pipeline
    from .comm.launch import world
    from .objective import Objective
    from .predictor import Predictor, load
    from .train import Balance, Checkpoint, EarlyStopping, Trace, fit
    from .train.l1_path import l1_path  # of their modules: mypy takes the names of the package for these
    from .train.minimize import minimize


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'distai_mpi' has no attribute {name!r}")
    import importlib

    module = importlib.import_module(_HOME[name])
    value = module if module.__name__ == f"distai_mpi.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
