"""Searches along a direction for a step that decreases the objective enough; they see values and slopes alone.

With φ(t) = f(w + t d): the decrease is sufficient where φ(t) ≤ φ(0) + decrease · t φ'(0) (Armijo), and the slope is
flat enough where |φ'(t)| ≤ curvature · |φ'(0)| (strong Wolfe; Nocedal & Wright 2006, equations 3.7).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from ...errors import ConfigError

Evaluate = Callable[[float], tuple[float, float]]  # t to φ(t) and φ'(t)


class Point(NamedTuple):
    """A step along the direction, and the objective and its slope there."""

    t: float
    value: float
    slope: float


class Found(NamedTuple):
    """What a search came to.

    Attributes:
        point: the best that was seen; the start where nothing was better.
        good: whether it meets the search's conditions.
        last: whether it is the one that was evaluated last.
        evaluations: how many there were.
    """

    point: Point
    good: bool
    last: bool
    evaluations: int


class Search(Protocol):
    """A line search."""

    def find(self, evaluate: Evaluate, start: Point, t: float, precision: float) -> Found:
        """Search from ``start``, t = 0, first at ``t``.

        ``precision`` is how exact values are, as a fraction of them: smaller differences are rounding.  Values that are
        not finite count as too large.
        """
        ...


@dataclass(frozen=True)
class StrongWolfe:
    """Bracketing and zooming by cubic interpolation (Nocedal & Wright 2006, algorithms 3.5 and 3.6).

    Where values differ by rounding alone they cannot tell a sufficient decrease: there slopes decide, by the
    approximate Wolfe conditions (Hager & Zhang 2005, "A new conjugate gradient method with guaranteed descent and an
    efficient line search", equation 4.1).

    Attributes:
        decrease, curvature: the constants of the conditions, 0 < decrease < curvature < 1.
        most: evaluations.
    """

    decrease: float = 1e-4
    curvature: float = 0.9
    most: int = 20

    def __post_init__(self) -> None:
        if not 0 < self.decrease < self.curvature < 1:
            raise ConfigError(
                f"a Wolfe search needs 0 < decrease < curvature < 1, got {self.decrease}, {self.curvature}"
            )
        if self.most < 1:
            raise ConfigError(f"a line search needs at least 1 evaluation, got {self.most}")

    def find(self, evaluate: Evaluate, start: Point, t: float, precision: float) -> Found:
        """See `Search.find`."""
        low, high, best, point = start, None, start, start
        for count in range(1, self.most + 1):
            point = Point(t, *evaluate(t))
            if not (math.isfinite(point.value) and math.isfinite(point.slope)):
                high, t = point._replace(value=math.inf), low.t + 0.1 * (t - low.t)
                if _narrow(low, high):
                    break
                continue
            if self._good(start, point, precision):
                return Found(point, True, True, count)
            if point.value < best.value:
                best = point
            if self._too_high(start, point, low, precision):
                high = point
            else:
                if (high is not None and point.slope * (high.t - low.t) >= 0) or (high is None and point.slope >= 0):
                    high = low
                low = point
            if high is None:
                t = _beyond(low, start)
            elif _narrow(low, high):
                break
            else:
                t = _between(low, high)
        return Found(best, False, best is point, count)

    def _good(self, start: Point, point: Point, precision: float) -> bool:
        flat = abs(point.slope) <= -self.curvature * start.slope
        if point.value <= start.value + self.decrease * point.t * start.slope:
            return flat
        close = point.value <= start.value + precision * abs(start.value)
        return close and (2 * self.decrease - 1) * start.slope >= point.slope >= self.curvature * start.slope

    def _too_high(self, start: Point, point: Point, low: Point, precision: float) -> bool:
        """Whether the step is too long: values do not fall enough, or where that is rounding the slope is positive."""
        if abs(point.value - start.value) <= precision * abs(start.value):
            return point.slope > 0
        return point.value > start.value + self.decrease * point.t * start.slope or point.value >= low.value


@dataclass(frozen=True)
class Armijo:
    """Backtracking until the decrease is sufficient (Nocedal & Wright 2006, algorithm 3.1), by quadratic interpolation.

    Attributes:
        decrease: the constant of the condition, between 0 and 1.
        most: evaluations.
    """

    decrease: float = 1e-4
    most: int = 30

    def __post_init__(self) -> None:
        if not 0 < self.decrease < 1:
            raise ConfigError(f"an Armijo search needs 0 < decrease < 1, got {self.decrease}")
        if self.most < 1:
            raise ConfigError(f"a line search needs at least 1 evaluation, got {self.most}")

    def find(self, evaluate: Evaluate, start: Point, t: float, precision: float) -> Found:
        """See `Search.find`."""
        for count in range(1, self.most + 1):
            point = Point(t, *evaluate(t))
            slack = precision * abs(start.value)
            if math.isfinite(point.slope) and point.value <= start.value + self.decrease * t * start.slope:
                return Found(point, True, True, count)
            if point.value <= start.value + slack and abs(point.slope) < abs(start.slope):
                return Found(point, True, True, count)  # values are rounding: the slope tells that it is nearer
            rise = point.value - start.value - t * start.slope
            t *= min(0.5, max(0.1, -t * start.slope / (2 * rise))) if math.isfinite(rise) and rise > 0 else 0.1
        return Found(start, False, False, count)


def _narrow(low: Point, high: Point) -> bool:
    """Whether there is nothing between two points."""
    return abs(high.t - low.t) <= 1e-12 * max(abs(low.t), abs(high.t))


def _beyond(low: Point, start: Point) -> float:
    """A longer step than ``low``, where the objective still falls: by the secant of slopes, 2 to 10 times as long."""
    gain = low.slope - start.slope
    secant = low.t - low.slope * (low.t - start.t) / gain if gain > 0 else math.inf
    return min(max(secant, 2 * low.t), 10 * low.t)


def _between(low: Point, high: Point) -> float:
    """The minimiser of the cubic through both points, kept off the ends (Nocedal & Wright 2006, equation 3.59)."""
    width = high.t - low.t
    if not math.isfinite(high.value):
        return low.t + 0.1 * width
    d1 = low.slope + high.slope - 3 * (low.value - high.value) / (low.t - high.t)
    square = d1 * d1 - low.slope * high.slope
    t = math.nan
    if square >= 0:
        d2 = math.copysign(math.sqrt(square), width)
        scale = high.slope - low.slope + 2 * d2
        if scale != 0:
            t = high.t - width * (high.slope + d2 - d1) / scale
    edge = 0.1 * abs(width)
    if math.isnan(t):
        return low.t + 0.5 * width
    return min(max(t, min(low.t, high.t) + edge), max(low.t, high.t) - edge)
