"""The cross-entropy of the softmax, of any number of classes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...backend import namespace
from ...data import LabelSummary
from ...errors import DataError
from .base import Loss

Array = Any
MAX_CLASSES = 1_000_000  # more than that is a column of numbers taken for labels


class Softmax(Loss):
    """-log p of the label, p = exp(z) / Σ exp(z) (Bishop 2006, "Pattern recognition and machine learning", 4.3.4).

    The derivatives by the outputs are p - (1 where the label is); the second are diag(p) - p pᵀ.
    """

    name = "softmax"
    several = classifies = unattained = True
    curvature_scale = 0.25

    def _check(self, labels: LabelSummary, found: str, outputs: int | None) -> None:
        if labels.classes is None:
            raise DataError(
                f"softmax needs labels 0, 1, ..., classes - 1, but {found}; linear takes real values, and"
                " data.encode_labels makes classes of any labels"
            )
        if outputs is None and labels.classes > MAX_CLASSES:
            raise DataError(f"softmax would have {labels.classes:,} classes ({found}); linear takes real values")
        if outputs is not None and labels.classes > outputs:
            raise DataError(f"the model knows labels 0 to {outputs - 1}, but {found}")

    def curvature_at_zero(self, outputs: int) -> float:
        """See `Loss.curvature_at_zero`: p (1 - p) of like probabilities p."""
        return (outputs - 1) / outputs**2

    def predict(self, outputs: Array) -> Array:
        """See `Loss.predict`: the class with the largest output."""
        return outputs.argmax(axis=1)

    def probabilities(self, outputs: Array) -> Array:
        """See `Loss.probabilities`."""
        z = outputs.astype(np.float64)
        z -= z.max(axis=1, keepdims=True)
        p = namespace(z).exp(z)
        return p / p.sum(axis=1, keepdims=True)

    def of_rows(self, z: Array, y: Array) -> tuple[Array, Array]:
        """See `Loss.of_rows`."""
        xp = namespace(z)
        rows = xp.arange(len(z))
        z -= xp.max(z, axis=1, keepdims=True)
        at_label = z[rows, y].astype(np.float64)
        xp.exp(z, out=z)
        total = xp.sum(z, axis=1, dtype=np.float64)
        z *= (1.0 / total).astype(z.dtype)[:, None]
        z[rows, y] -= 1
        return xp.log(total) - at_label, xp.zeros(len(z))

    @staticmethod
    def of_row(z: Array, y: int) -> tuple[float, float]:
        """As `of_rows` for one row, ``z`` of shape (outputs,); to be compiled."""
        top = z[0]
        for j in range(1, z.size):
            top = max(top, z[j])
        label = np.int64(y)
        shifted = np.float64(z[label] - top)
        total = 0.0
        for j in range(z.size):
            power = math.exp(z[j] - top)
            z[j] = power
            total += power
        inverse = z.dtype.type(1.0 / total)
        for j in range(z.size):
            z[j] *= inverse
        z[label] -= z.dtype.type(1)
        return math.log(total) - shifted, 0.0


LOSS = Softmax()
