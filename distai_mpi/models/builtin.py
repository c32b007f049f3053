"""The models that the command line knows by name."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..data import LabelSummary
from ..errors import ConfigError
from .feedforward import FeedForward
from .losses import LOGISTIC, SOFTMAX, SQUARED


class Linear(FeedForward):
    """Linear regression: loss ½ (x·weight + bias - y)² for each row."""

    def __init__(self, features: int, *, bias: bool = True, dtype: Any = np.float32) -> None:
        super().__init__(features, 1, SQUARED, bias=bias, dtype=dtype)


class Logistic(FeedForward):
    """Logistic regression on two classes: loss log(1 + exp(-s (x·weight + bias))), s = +1 where y > 0, else -1."""

    def __init__(self, features: int, *, bias: bool = True, dtype: Any = np.float32) -> None:
        super().__init__(features, 1, LOGISTIC, bias=bias, dtype=dtype)


class Softmax(FeedForward):
    """Multinomial logistic regression: cross-entropy of softmax(x·weight + bias), labels 0 to classes - 1."""

    def __init__(self, features: int, classes: int, *, bias: bool = True, dtype: Any = np.float32) -> None:
        super().__init__(features, classes, SOFTMAX, bias=bias, dtype=dtype)


class MLP(FeedForward):
    """Multi-layer perceptron for classification: features → hidden → ... → classes, cross-entropy of the softmax.

    The default is the MNIST network 784 → 128 (relu, dropout 0.2) → 10 for ``MLP(784, 10)``.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        hidden: tuple[int, ...] = (128,),
        *,
        activation: str = "relu",
        dropout: float = 0.2,
        bias: bool = True,
        dtype: Any = np.float32,
    ) -> None:
        super().__init__(
            features, classes, SOFTMAX, hidden=hidden, activation=activation, dropout=dropout, bias=bias, dtype=dtype
        )


MODELS: dict[str, type[FeedForward]] = {"linear": Linear, "logistic": Logistic, "softmax": Softmax, "mlp": MLP}


def build(name: str, labels: LabelSummary, **settings: Any) -> FeedForward:
    """The model called ``name`` for data with these ``labels``; ``settings`` as its class takes them.

    Raises:
        ConfigError: there is no such model, or a setting cannot work.
        DataError: the labels do not fit the model.
    """
    if name not in MODELS:
        raise ConfigError(f"unknown model {name!r}: choose one of {', '.join(MODELS)}")
    {"linear": SQUARED, "logistic": LOGISTIC}.get(name, SOFTMAX).check_labels(labels)
    if name in ("softmax", "mlp"):
        settings["classes"] = labels.classes
    return MODELS[name](labels.features, **settings)


def to_config(model: FeedForward) -> dict[str, Any]:
    """What it takes to build ``model`` again with `from_config`; plain JSON values."""
    name = next((name for name, kind in MODELS.items() if type(model) is kind), None)
    if name is None:
        raise ConfigError(f"{type(model).__name__} is not one of the models known by name: {', '.join(MODELS)}")
    features, *hidden, outputs = model.widths
    config: dict[str, Any] = {"model": name, "features": features, "bias": model.bias, "dtype": model.dtype.name}
    if name in ("softmax", "mlp"):
        config["classes"] = outputs
    if name == "mlp":
        config |= {"hidden": hidden, "activation": model.activation, "dropout": model.dropout}
    return config


def from_config(config: dict[str, Any]) -> FeedForward:
    """The model that `to_config` described."""
    arguments = dict(config)
    name = arguments.pop("model", None)
    if name not in MODELS:
        raise ConfigError(f"unknown model {name!r}: choose one of {', '.join(MODELS)}")
    if "hidden" in arguments:
        arguments["hidden"] = tuple(arguments["hidden"])
    return MODELS[name](**arguments)
