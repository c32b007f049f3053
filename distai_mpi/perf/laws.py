"""Laws of scaling, and the parallel fraction that explains a measurement.

``n`` is the number of nodes (or ranks), ``p`` the parallel fraction of the work, between 0 and 1, in both
laws of speed-up.  Texts differ: some write Gustafson's law with the letter for the *serial* fraction; here
(1 - p) + n·p is the speed-up of work whose parallel fraction, as timed on the n nodes, is p.

    throughput   T = n · rate                    nodes side by side
    Amdahl       S = 1 / ((1 - p) + p / n)       the same work on more nodes (strong scaling)
    Gustafson    S = (1 - p) + n · p             n times the work on n nodes (weak scaling)
    pipeline     L = n · d                       an item on its way through n stages of d seconds

Amdahl 1967, "Validity of the single processor approach to achieving large scale computing
capabilities", AFIPS 30; Gustafson 1988, "Reevaluating Amdahl's law", CACM 31(5).
All functions take and return plain numbers.  They raise ValueError for numbers outside their range.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence


def throughput(n: float, rate: float) -> float:
    """Items per second of ``n`` nodes side by side, each of which handles ``rate`` items per second."""
    return _count(n) * _positive(rate, "rate")


def amdahl(n: float, p: float) -> float:
    """Speed-up over one node when the same work, of parallel fraction ``p``, runs on ``n`` nodes."""
    return 1 / ((1 - _fraction(p)) + p / _count(n))


def amdahl_limit(p: float) -> float:
    """Speed-up on infinitely many nodes, 1 / (1 - p); infinity for p = 1."""
    return math.inf if _fraction(p) == 1 else 1 / (1 - p)


def amdahl_fraction(n: float, speedup: float) -> float:
    """The parallel fraction that explains a measured ``speedup`` on ``n`` > 1 nodes: the inverse of `amdahl`.

    Above 1 where the speed-up is greater than n, below 0 where it is smaller than 1: no fraction explains those.
    """
    return (1 - 1 / _positive(speedup, "speedup")) / (1 - 1 / _several(n))


def gustafson(n: float, p: float) -> float:
    """Scaled speed-up on ``n`` nodes: how much longer one node would take for the work that they do.

    ``p`` is the parallel fraction of the time on the n nodes.
    """
    return (1 - _fraction(p)) + _count(n) * p


def gustafson_fraction(n: float, speedup: float) -> float:
    """The parallel fraction that explains a scaled ``speedup`` on ``n`` > 1 nodes: the inverse of `gustafson`."""
    return (_positive(speedup, "speedup") - 1) / (_several(n) - 1)


def efficiency(n: float, speedup: float) -> float:
    """Speed-up for each node, 1 where scaling is perfect."""
    return _positive(speedup, "speedup") / _count(n)


def fit_amdahl(counts: Sequence[float], speedups: Sequence[float]) -> float:
    """The parallel fraction, between 0 and 1, that fits several speed-ups of the same work best.

    Least squares on 1/S = 1 - p (1 - 1/n), which is linear in p; counts of 1 tell nothing and do not matter.
    """
    return _fit(counts, speedups, lambda n: 1 - 1 / n, lambda speedup: 1 - 1 / speedup)


def fit_gustafson(counts: Sequence[float], speedups: Sequence[float]) -> float:
    """As `fit_amdahl`, for scaled speed-ups: least squares on S - 1 = p (n - 1)."""
    return _fit(counts, speedups, lambda n: n - 1, lambda speedup: speedup - 1)


def pipeline_latency(n: float, d: float) -> float:
    """Seconds that an item takes through ``n`` stages, the slowest of which takes ``d`` seconds for it."""
    return _count(n) * _positive(d, "time of a stage")


def pipeline_seconds(n: float, m: float, d: float) -> float:
    """Seconds that ``m`` items take through ``n`` stages of ``d`` seconds: the last one comes m - 1 stage times later.

    Huang et al. 2019, "GPipe", section 2.3: stages stand idle for (n - 1) / (m + n - 1) of it.
    """
    return (_count(n) + m - 1) * _positive(d, "time of a stage")


def _fit(
    counts: Sequence[float],
    speedups: Sequence[float],
    regressor: Callable[[float], float],
    response: Callable[[float], float],
) -> float:
    if len(counts) != len(speedups):
        raise ValueError(f"{len(counts)} counts do not fit {len(speedups)} speed-ups")
    x = [regressor(_count(n)) for n in counts]
    y = [response(_positive(speedup, "speedup")) for speedup in speedups]
    square = sum(a * a for a in x)
    if square == 0:
        raise ValueError("a fit needs a speed-up on more than one node")
    return min(1.0, max(0.0, sum(a * b for a, b in zip(x, y, strict=True)) / square))


def _count(n: float) -> float:
    if not n >= 1:
        raise ValueError(f"the number of nodes must be at least 1, got {n}")
    return n


def _several(n: float) -> float:
    if not n > 1:
        raise ValueError(f"one node tells nothing of the parallel fraction; need more than 1, got {n}")
    return n


def _fraction(p: float) -> float:
    if not 0 <= p <= 1:
        raise ValueError(f"the parallel fraction must lie between 0 and 1, got {p}")
    return p


def _positive(value: float, name: str) -> float:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"the {name} must be a positive number, got {value}")
    return value
