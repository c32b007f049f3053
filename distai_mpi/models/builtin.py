"""The models that the command line knows by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ..data import LabelSummary
from ..errors import ConfigError
from ..options import LOSSES_OF_MODELS
from .dense import DenseModel
from .linear import Linear, LinearModel, Logistic, Softmax
from .losses import LOSSES, Loss
from .mlp import MLP

MODELS: dict[str, Callable[..., DenseModel]] = {
    **{name: partial(LinearModel, loss=loss) for name, loss in LOSSES_OF_MODELS.items()},
    "linear": Linear,
    "logistic": Logistic,
    "softmax": Softmax,
    "mlp": MLP,
}
LINEAR = (LinearModel, Linear, Logistic, Softmax)


def loss_of_model(name: str) -> Loss:
    """The loss of the model called ``name``.

    Raises:
        ConfigError: there is no such model.
    """
    if name not in MODELS:
        raise ConfigError(f"unknown model {name!r}: choose one of {', '.join(MODELS)}")
    return LOSSES[LOSSES_OF_MODELS.get(name, "softmax")]


def build(name: str, labels: LabelSummary, **settings: Any) -> DenseModel:
    """The model called ``name`` for data with these ``labels``; ``settings`` as its class takes them.

    Raises:
        ConfigError: there is no such model, or a setting cannot work.
        DataError: the labels do not fit the model.
    """
    loss = loss_of_model(name)
    loss.check_labels(labels)
    outputs = labels.classes if loss.several else 1
    return MODELS[name](labels.features, outputs, **settings)


def name_of(model: Any) -> str | None:
    """The name by which `build` makes models like this one; None of others, such as those with a loss of a user's."""
    if type(model) not in (MLP, *LINEAR) or model.loss_function not in LOSSES.values():
        return None
    loss = model.loss_function
    if type(model) is MLP:
        return "mlp" if loss.several else None
    return next(name for name, its in LOSSES_OF_MODELS.items() if its == loss.name)


def to_config(model: Any) -> dict[str, Any]:
    """What it takes to build ``model`` again with `from_config`; plain JSON values."""
    name = name_of(model)
    if name is None:
        raise ConfigError(f"{type(model).__name__} is not one of the models known by name: {', '.join(MODELS)}")
    features, *hidden, outputs = model.widths
    config: dict[str, Any] = {"model": name, "features": features, "bias": model.bias, "dtype": model.dtype.name}
    if model.loss_function.several:
        config["classes"] = outputs
    if name == "mlp":
        config |= {"hidden": hidden, "activation": model.activation, "dropout": model.dropout}
    return config


def from_config(config: dict[str, Any]) -> DenseModel:
    """The model that `to_config` described."""
    arguments = dict(config)
    name = arguments.pop("model", None)
    if name not in MODELS:
        raise ConfigError(f"unknown model {name!r}: choose one of {', '.join(MODELS)}")
    if "hidden" in arguments:
        arguments["hidden"] = tuple(arguments["hidden"])
    return MODELS[name](arguments.pop("features"), arguments.pop("classes", 1), **arguments)
