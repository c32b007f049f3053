"""Optimizers on slices of a parameter vector; they know nothing of ranks."""

from .first_order import OPTIMIZERS, SGD, Adam, AdamW, FirstOrder, GradientDescent, Momentum, Nesterov

__all__ = ["OPTIMIZERS", "SGD", "Adam", "AdamW", "FirstOrder", "GradientDescent", "Momentum", "Nesterov"]
