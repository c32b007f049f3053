"""Optimizers on slices of a parameter vector; they know nothing of ranks."""

from .averaging import ParameterAveraging
from .first_order import OPTIMIZERS, SGD, Adam, AdamW, Elementwise, FirstOrder, GradientDescent, Momentum, Nesterov
from .schedules import SCHEDULES, Constant, Cosine, Schedule, Step, WarmUp

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "SGD",
    "Adam",
    "AdamW",
    "Constant",
    "Cosine",
    "Elementwise",
    "FirstOrder",
    "GradientDescent",
    "Momentum",
    "Nesterov",
    "ParameterAveraging",
    "Schedule",
    "Step",
    "WarmUp",
]
