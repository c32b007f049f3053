"""Training rates on growing numbers of ranks, with fits of the laws of speed-up.

Strong scaling: the same work in all; weak scaling: the same work per rank; see `perf.laws`.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from . import laws

Kind = Literal["strong", "weak"]


@dataclass(frozen=True)
class Law:
    """A law of speed-up: its name, itself, its inverse and its fit."""

    name: str
    speedup: Any
    fraction: Any
    fit: Any


LAWS: dict[str, Law] = {
    "strong": Law("Amdahl", laws.amdahl, laws.amdahl_fraction, laws.fit_amdahl),
    "weak": Law("Gustafson", laws.gustafson, laws.gustafson_fraction, laws.fit_gustafson),
}


def default_counts(size: int) -> list[int]:
    """1, 2, 4, ... below ``size``, and ``size``."""
    return [*(1 << power for power in range((size - 1).bit_length())), size]


def packed(nodes: Sequence[int]) -> list[int]:
    """All ranks, node after node, in the order in which a growing run takes them.

    ``nodes[r]`` is the lowest rank of the node of rank ``r``.  Fewest nodes for any count: where a step
    over the network begins is then seen in the curve.
    """
    return sorted(range(len(nodes)), key=lambda rank: (nodes[rank], rank))


@dataclass(frozen=True)
class Point:
    """What was measured on ``ranks`` ranks, and what the laws say; rates in samples/s.

    Attributes:
        rate: median of ``rates``.
        speedup: median over the turns of the rate to that of one rank in the same turn.  With the same work
            for each rank that is the scaled speed-up: how much longer one rank would take for all of it.
        efficiency: speed-up for each rank.
        share: the parallel fraction p that explains this speed-up alone; None on one rank.  Outside [0, 1]
            where no fraction can: a speed-up above the number of ranks, or below 1.
        law: speed-up by the law, with the fraction fitted to all points.
        side_by_side: what so many ranks of the speed of one would reach without each other.
    """

    ranks: int
    rates: tuple[float, ...]
    rate: float
    speedup: float
    efficiency: float
    share: float | None
    law: float
    side_by_side: float


@dataclass(frozen=True)
class Curve:
    """A kind of scaling, measured: its points by growing count, and the parallel fraction fitted to them.

    ``share`` lies in [0, 1], for the law is made for these alone; ``at_bound`` is true where the best fit lay
    outside.
    """

    kind: Kind
    points: tuple[Point, ...]
    share: float
    at_bound: bool

    @property
    def law(self) -> Law:
        """The law of this kind."""
        return LAWS[self.kind]


def curve(kind: Kind, rates: dict[int, Sequence[float]]) -> Curve:
    """Make a curve of ``rates``: by number of ranks, 1 among them, the rate of each turn in samples/s.

    Raises:
        ValueError: rates of one rank are missing, or there are no others.
    """
    law, alone = LAWS[kind], rates.get(1)
    counts = sorted(rates)
    if alone is None or len(counts) < 2:
        raise ValueError(f"scaling needs the rates of one rank and of others, got those of {counts}")
    speedups = [statistics.median(a / b for a, b in zip(rates[n], alone, strict=True)) for n in counts]
    fitted = law.fit(counts, speedups)
    fractions = [law.fraction(n, speedup) if n > 1 else None for n, speedup in zip(counts, speedups, strict=True)]
    points = tuple(
        Point(
            ranks=n,
            rates=tuple(rates[n]),
            rate=statistics.median(rates[n]),
            speedup=speedup,
            efficiency=laws.efficiency(n, speedup),
            share=fraction,
            law=law.speedup(n, fitted),
            side_by_side=laws.throughput(n, statistics.median(alone)),
        )
        for n, speedup, fraction in zip(counts, speedups, fractions, strict=True)
    )
    outside = any(fraction is not None and not 0 <= fraction <= 1 for fraction in fractions)
    return Curve(kind, points, fitted, outside and fitted in (0.0, 1.0))
