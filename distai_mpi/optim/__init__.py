"""Optimizers on slices of a parameter vector; they know nothing of ranks."""

from .first_order import (
    FTRL,
    OPTIMIZERS,
    SGD,
    AdaGrad,
    Adam,
    AdamW,
    Elementwise,
    FirstOrder,
    GradientDescent,
    Momentum,
    Nesterov,
)
from .local_sgd import LocalSGD
from .schedules import SCHEDULES, Constant, Cosine, Schedule, Step, WarmUp
from .solvers.base import FullBatchSolver
from .solvers.lbfgs import LBFGS
from .solvers.line_search import Armijo, StrongWolfe
from .solvers.newton import Auto, Newton
from .solvers.newton_cg import NewtonCG

__all__ = [
    "FTRL",
    "LBFGS",
    "OPTIMIZERS",
    "SCHEDULES",
    "SGD",
    "AdaGrad",
    "Adam",
    "AdamW",
    "Armijo",
    "Auto",
    "Constant",
    "Cosine",
    "Elementwise",
    "FirstOrder",
    "FullBatchSolver",
    "GradientDescent",
    "LocalSGD",
    "Momentum",
    "Nesterov",
    "Newton",
    "NewtonCG",
    "Schedule",
    "Step",
    "StrongWolfe",
    "WarmUp",
]
