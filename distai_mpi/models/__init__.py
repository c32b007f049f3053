"""Models over one flat parameter vector: by name, from a JAX loss, from a PyTorch module."""

from .adapters import from_jax, from_torch
from .base import Model, Number, Sums, Together
from .builtin import MODELS, build, from_config, loss_of_model, name_of, to_config
from .curvature import Linearization
from .dense import DenseModel
from .linear import Linear, LinearModel, Logistic, Softmax
from .losses import LOSSES, Loss, PointLoss, TwoClassLoss
from .mlp import MLP
from .protocols import Abilities
from .storage import load_model, save_model

__all__ = [
    "LOSSES",
    "MLP",
    "MODELS",
    "Abilities",
    "DenseModel",
    "Linear",
    "LinearModel",
    "Linearization",
    "Logistic",
    "Loss",
    "Model",
    "Number",
    "PointLoss",
    "Softmax",
    "Sums",
    "Together",
    "TwoClassLoss",
    "build",
    "from_config",
    "from_jax",
    "from_torch",
    "load_model",
    "loss_of_model",
    "name_of",
    "save_model",
    "to_config",
]
