"""Our own networks written once more in JAX and in PyTorch, and how their parameters correspond."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import pytest

from distai_mpi import models

LIBRARIES = [
    pytest.param(name, marks=pytest.mark.skipif(find_spec(name) is None, reason=f"not available: {name}"))
    for name in ("jax", "torch")
]


class Twin(NamedTuple):
    """A model of another library and its parameters: ``into(w)`` are the twin's for those of our own."""

    model: Any
    into: Callable[[np.ndarray], np.ndarray]


def twin(library: str, own: models.DenseModel, dropout: float = 0.0) -> Twin:
    """``own`` without its dropout, or with ``dropout`` by the library's own means."""
    return {"jax": _jax, "torch": _torch}[library](own, dropout)


def _jax(own: models.DenseModel, dropout: float) -> Twin:
    import jax
    import jax.numpy as jnp

    activation = {"relu": jax.nn.relu, "tanh": jnp.tanh, "gelu": jax.nn.gelu}[own.activation]

    def outputs(params: Any, x: Any, key: Any = None) -> Any:
        for layer in range(1, own.layers + 1):
            x = x @ params[f"layer{layer}"]["weight"] + params[f"layer{layer}"]["bias"]
            if layer < own.layers:
                x = activation(x)
                if layer == 1 and dropout and key is not None:
                    kept = jax.vmap(lambda row, units=x.shape[1]: jax.random.bernoulli(row, 1 - dropout, (units,)))(key)
                    x = jnp.where(kept, x / (1 - dropout), 0)
        return x

    def losses(params: Any, x: Any, y: Any, key: Any) -> Any:
        z = outputs(params, x, key)
        name = own.loss_function.name
        if name == "squared":
            return 0.5 * (z[:, 0] - y) ** 2
        if name == "logistic":
            return jnp.logaddexp(0, -jnp.where(y > 0, 1, -1) * z[:, 0])
        return -jnp.take_along_axis(jax.nn.log_softmax(z), y[:, None], 1)[:, 0]

    def predict(params: Any, x: Any) -> Any:
        z = outputs(params, x)
        return {"squared": z[:, 0], "logistic": z[:, 0] > 0}.get(own.loss_function.name, z)

    def params(w: np.ndarray) -> Any:
        views = own.layout.views(w)
        return {
            f"layer{i}": {kind: views[f"layer{i}.{kind}"] for kind in ("weight", "bias")}
            for i in range(1, own.layers + 1)
        }

    start = own.init(np.random.default_rng(0))
    model = models.from_jax(losses, params(start), predict=predict, dtype=own.dtype, target_dtype=own.target_dtype)

    def into(w: np.ndarray) -> np.ndarray:
        views = own.layout.views(w)
        return np.concatenate([views[slot.name].ravel() for slot in model.layout.slots])

    return Twin(model, into)


def _torch(own: models.DenseModel, dropout: float) -> Twin:
    import torch
    from torch import nn

    parts: list[nn.Module] = []
    for layer in range(own.layers):
        parts.append(nn.Linear(*own.widths[layer : layer + 2]))
        if layer < own.layers - 1:
            parts += [{"relu": nn.ReLU(), "tanh": nn.Tanh()}.get(own.activation, nn.GELU("tanh")), nn.Dropout(dropout)]
    losses = {
        "squared": lambda z, y: 0.5 * (z[:, 0] - y) ** 2,
        "logistic": lambda z, y: nn.functional.softplus(-torch.where(y > 0, 1, -1) * z[:, 0]),
        "softmax": nn.CrossEntropyLoss(reduction="none"),
    }
    module = nn.Sequential(*parts).to({"float32": torch.float32, "float64": torch.float64}[own.dtype.name])
    model = models.from_torch(module, losses[own.loss_function.name], target_dtype=own.target_dtype)

    def into(w: np.ndarray) -> np.ndarray:
        return np.concatenate([view.T.ravel() for view in own.layout.views(w).values()])

    model.load(into(own.init(np.random.default_rng(0))))
    # built again, to start where our own model does
    return Twin(models.from_torch(module, losses[own.loss_function.name], target_dtype=own.target_dtype), into)
