"""Losses of a model's outputs, each with the targets that fit it.

An output is a row's margin or logits z, before any link function.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = Any


@dataclass(frozen=True)
class Loss:
    """A loss by name; its arithmetic is `kernels.cpu.residual`.

    Attributes:
        name: ``squared``, ``logistic`` or ``softmax``.
        code: its number among the kernels.
        classifies: whether targets are labels.
    """

    name: str
    code: int
    classifies: bool

    def target_dtype(self, dtype: np.dtype) -> np.dtype:
        """The dtype in which targets are handed to the model: int64 labels, or values in ``dtype``."""
        return np.dtype(np.int64) if self.classifies else np.dtype(dtype)

    def right(self, outputs: Array, y: Array) -> Array:
        """Which rows, shape (rows,), bool, get the label ``y``; none where targets are values."""
        if self.name == "logistic":
            return (outputs[:, 0] > 0) == (y > 0)  # labels may be 0/1 or -1/+1
        return self.predict(outputs) == y if self.classifies else np.zeros(len(y), bool)

    def predict(self, outputs: Array) -> Array:
        """Values, 0/1 labels or label numbers for outputs of shape (rows, outputs)."""
        if self.name == "softmax":
            return outputs.argmax(axis=1)
        if self.name == "logistic":
            return (outputs[:, 0] > 0).astype(np.int64)
        return outputs[:, 0].copy()


# The codes are those of kernels.cpu, repeated here so that naming a loss loads no compiler.
SQUARED = Loss("squared", 0, classifies=False)
LOGISTIC = Loss("logistic", 1, classifies=True)
SOFTMAX = Loss("softmax", 2, classifies=True)
LOSSES = {loss.name: loss for loss in (SQUARED, LOGISTIC, SOFTMAX)}
