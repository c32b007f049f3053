"""The Huber loss."""

from __future__ import annotations

from typing import Any

from .arithmetic import absolute, where
from .base import PointLoss

FRACTION = 1.0 / 64  # see `Huber`


class Huber(PointLoss):
    """½ a² up to |a| = 1, and |a| - ½ beyond, a = z - y (Huber 1964, "Robust estimation of a location parameter").

    Beyond 1 the second derivative is 0, and a Hessian of such rows alone would be singular.  What stands for it there
    is `FRACTION` of the weight 1 / |a| by which iteratively reweighted least squares majorises the loss (Holland &
    Welsch 1977, "Robust regression using iteratively reweighted least-squares"): the whole of it would make Newton's
    method converge as slowly as that one does, and so little leaves the directions near the optimum those of Newton's
    method.  Line searches and trust regions do the rest.
    """

    name = "huber"
    of_difference = True

    @staticmethod
    def point(z: Any, y: Any) -> tuple[Any, Any, Any]:
        """See `PointLoss.point`."""
        off = z - y
        size = absolute(off)
        far = size > 1.0
        weight = 1.0 / where(far, size, 1.0 + 0.0 * size)
        return where(far, size - 0.5, 0.5 * off * off), off * weight, where(far, FRACTION * weight, 1.0)


LOSS = Huber()
