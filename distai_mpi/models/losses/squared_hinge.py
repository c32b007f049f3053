"""The squared hinge loss of two classes."""

from __future__ import annotations

from typing import Any

from .arithmetic import where
from .base import TwoClassLoss


class SquaredHinge(TwoClassLoss):
    """max(0, 1 - s z)², s = +1 where y > 0, else -1: the L2-SVM (Keerthi & DeCoste 2005, "A modified finite Newton
    method for fast solution of large scale linear SVMs", equation 2, of twice this loss).

    The second derivative is the generalised one of that paper, 2 where the loss is not 0.
    """

    name = "squared_hinge"
    curvature_scale = 2.0

    def curvature_at_zero(self, outputs: int) -> float:
        """See `Loss.curvature_at_zero`."""
        return 2.0

    @staticmethod
    def point(z: Any, y: Any) -> tuple[Any, Any, Any]:
        """See `PointLoss.point`."""
        sign = where(y > 0, 1.0, -1.0)
        short = where(sign * z < 1.0, 1.0 - sign * z, 0.0 * z)  # of NaN NaN
        return short * short, -2.0 * sign * short, where(short > 0.0, 2.0, 0.0)


LOSS = SquaredHinge()
