"""What a model must know of the labels before it can be built, the same on every rank."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Array = Any


@dataclass(frozen=True)
class LabelSummary:
    """Labels or targets of a data set; replicated.

    Attributes:
        rows: number of rows looked at.
        features: features of a row.
        low: least label (inf where there are no rows).
        high: greatest label (-inf where there are no rows).
        integral: whether all are whole numbers.
        zero_one: whether all are 0 or 1.
        plus_minus: whether all are -1 or +1.
    """

    rows: int
    features: int
    low: float
    high: float
    integral: bool
    zero_one: bool
    plus_minus: bool

    @property
    def classes(self) -> int | None:
        """Number of classes 0 .. K-1 that the labels can name; None where they are no such labels."""
        return int(self.high) + 1 if self.rows and self.integral and self.low >= 0 else None


def summarize(y: Array, features: int) -> LabelSummary:
    """Summary of ``y``, shape (rows,), finite, any real type; local to the rank."""
    low, high = (float(y.min()), float(y.max())) if y.size else (math.inf, -math.inf)
    integral = y.dtype.kind in "iu" or bool((y == y.round()).all())
    ends_only = bool(((y == low) | (y == high)).all())
    return LabelSummary(
        rows=int(y.size),
        features=features,
        low=low,
        high=high,
        integral=integral,
        zero_one=ends_only and {low, high} <= {0.0, 1.0, math.inf, -math.inf},
        plus_minus=ends_only and {low, high} <= {-1.0, 1.0, math.inf, -math.inf},
    )


def merge(parts: Iterable[LabelSummary]) -> LabelSummary:
    """Summary of the rows of all ``parts``, at least one."""
    parts = list(parts)
    return LabelSummary(
        rows=sum(part.rows for part in parts),
        features=parts[0].features,
        low=min(part.low for part in parts),
        high=max(part.high for part in parts),
        integral=all(part.integral for part in parts),
        zero_one=all(part.zero_one for part in parts),
        plus_minus=all(part.plus_minus for part in parts),
    )
