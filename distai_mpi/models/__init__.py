"""Models over one flat parameter vector: by name, from a JAX loss, from a PyTorch module."""

from .adapters import from_jax, from_torch
from .base import Model, Number, Sums, Together
from .builtin import MLP, MODELS, Linear, Logistic, Softmax, build, from_config, to_config
from .curvature import Linearization
from .feedforward import FeedForward
from .losses import LOSSES, Loss
from .storage import load_model, save_model

__all__ = [
    "LOSSES",
    "MLP",
    "MODELS",
    "FeedForward",
    "Linear",
    "Linearization",
    "Logistic",
    "Loss",
    "Model",
    "Number",
    "Softmax",
    "Sums",
    "Together",
    "build",
    "from_config",
    "from_jax",
    "from_torch",
    "load_model",
    "save_model",
    "to_config",
]
