"""Optimizers on slices of a parameter vector; they know nothing of ranks."""

from .first_order import OPTIMIZERS, SGD, FirstOrder, GradientDescent, Momentum

__all__ = ["OPTIMIZERS", "SGD", "FirstOrder", "GradientDescent", "Momentum"]
