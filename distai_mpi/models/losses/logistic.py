"""The logistic loss of two classes."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...backend import namespace
from .arithmetic import absolute, exp_of_negative, log1p, where
from .base import TwoClassLoss


class Logistic(TwoClassLoss):
    """log(1 + exp(-s z)), s = +1 where y > 0, else -1 (Hastie, Tibshirani & Friedman 2009, equation 10.16)."""

    name = "logistic"
    unattained = True
    curvature_scale = 0.25

    def curvature_at_zero(self, outputs: int) -> float:
        """See `Loss.curvature_at_zero`."""
        return 0.25

    @staticmethod
    def point(z: Any, y: Any) -> tuple[Any, Any, Any]:
        """See `PointLoss.point`; without overflow, and exact where the loss is tiny."""
        sign = where(y > 0, 1.0, -1.0)
        margin = sign * z
        tail = exp_of_negative(-absolute(margin))
        inverse = 1.0 / (1.0 + tail)
        loss = log1p(tail) + where(margin >= 0, 0.0, -margin)
        return loss, -sign * where(margin >= 0, tail, 1.0) * inverse, tail * inverse * inverse

    def probabilities(self, outputs: Any) -> Any:
        """See `Loss.probabilities`: 1 / (1 + exp(-z)) of the second class."""
        z = outputs[:, 0].astype(np.float64)
        tail = exp_of_negative(-absolute(z))
        smaller, larger = tail / (1.0 + tail), 1.0 / (1.0 + tail)
        return namespace(z).stack([where(z > 0, smaller, larger), where(z > 0, larger, smaller)], axis=1)


LOSS = Logistic()
