"""The loss of Poisson regression."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...backend import namespace
from ...data import LabelSummary
from ...errors import DataError
from .arithmetic import exp
from .base import PointLoss

Array = Any


class Poisson(PointLoss):
    """exp(z) - y z, for counts y of the mean exp(z) (McCullagh & Nelder 1989, "Generalized linear models", 6.2).

    It is the negative log-likelihood without log y!, which no parameter changes; it may be negative.
    """

    name = "poisson"
    unattained = True  # where y is 0
    deviance_name = "poisson_deviance"  # McCullagh & Nelder 1989, section 2.3: 2 (y log(y / mean) - (y - mean))

    def curvature_at_zero(self, outputs: int) -> float:
        """See `Loss.curvature_at_zero`."""
        return 1.0

    @staticmethod
    def point(z: Any, y: Any) -> tuple[Any, Any, Any]:
        """See `PointLoss.point`."""
        mean = exp(z)
        return mean - y * z, mean - y, mean

    def _check(self, labels: LabelSummary, found: str, outputs: int | None) -> None:
        if labels.low < 0:
            raise DataError(f"poisson loss needs targets from 0 up, such as counts, but {found}; linear takes any")
        if labels.high == 0:
            raise DataError("poisson loss needs targets above 0, but all are 0: there is no rate to be told")

    def least(self, y: Array) -> Array:
        """See `Loss.least`: y - y log y, at the mean y."""
        wide = y.astype(np.float64)
        return wide - wide * np.log(np.where(wide > 0, wide, 1.0))

    def predict(self, outputs: Array) -> Array:
        """See `Loss.predict`: the means exp(z)."""
        return namespace(outputs).exp(outputs[:, 0])


LOSS = Poisson()
