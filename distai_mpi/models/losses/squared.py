"""Half the squared error."""

from __future__ import annotations

from typing import Any

from .base import PointLoss


class Squared(PointLoss):
    """½ (z - y)²: least squares (Hastie, Tibshirani & Friedman 2009, "The elements of statistical learning", 3.2)."""

    name = "squared"
    quadratic = of_difference = True

    def curvature_at_zero(self, outputs: int) -> float:
        """See `Loss.curvature_at_zero`."""
        return 1.0

    @staticmethod
    def point(z: Any, y: Any) -> tuple[Any, Any, Any]:
        """See `PointLoss.point`."""
        off = z - y
        return 0.5 * off * off, off, 1.0


LOSS = Squared()
