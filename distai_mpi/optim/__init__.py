"""Optimizers on slices of a parameter vector; they know nothing of ranks."""

from .deterministic import Deterministic
from .first_order import OPTIMIZERS, SGD, Adam, AdamW, Elementwise, FirstOrder, GradientDescent, Momentum, Nesterov
from .lbfgs import LBFGS
from .line_search import Armijo, StrongWolfe
from .local_sgd import LocalSGD
from .newton import Auto, Newton, NewtonCG
from .schedules import SCHEDULES, Constant, Cosine, Schedule, Step, WarmUp

__all__ = [
    "LBFGS",
    "OPTIMIZERS",
    "SCHEDULES",
    "SGD",
    "Adam",
    "AdamW",
    "Armijo",
    "Auto",
    "Constant",
    "Cosine",
    "Deterministic",
    "Elementwise",
    "FirstOrder",
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
