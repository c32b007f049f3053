"""Random regression and classification problems that are hard to get right, each known by (seed, number).

Nothing here knows the package: the tables are drawn in float64, and come out alike in every process.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = Any

MODELS = ("linear", "logistic", "softmax")
METHODS = ("lbfgs", "newton", "newton-cg", "auto")
KINDS = tuple(itertools.product(MODELS, METHODS, ("float32", "float64"), (False, True)))
FEEDS = ("shards", "whole", "csv", "npz")  # how a table comes to the ranks
FEWEST = 8  # rows with weight of every class: fewer are separated by chance
FURTHEST_TARGET = 5.0  # decades of deviations that targets may lie off 0: float32 tells 1e5 from 1e5 + 0.01


@dataclass(frozen=True)
class Problem:
    """A table, and how it is to be fitted.

    Attributes:
        seed, number, attempt: what it was drawn from; attempts before were left out, see `hard_solutions`.
        model, method, dtype, standardize, l2: settings of the run.
        feed: one of `FEEDS`.
        x: features, shape (rows, columns), float64.
        y: targets, float64, or labels (0 to classes - 1, or -1 and 1), int64; shape (rows,).
        weight: shape (rows,), float64, or None.
        traits: what makes it hard, in words.
    """

    seed: int
    number: int
    attempt: int
    model: str
    method: str
    dtype: str
    standardize: bool
    l2: float
    feed: str
    x: Array
    y: Array
    weight: Array | None
    traits: tuple[str, ...]

    @property
    def classes(self) -> int:
        """Outputs of the model: classes of softmax, else 1."""
        return int(self.y.max()) + 1 if self.model == "softmax" else 1

    def __str__(self) -> str:
        settings = [self.model, self.method, self.dtype, *["standardize"] * self.standardize]
        settings += [f"l2 {self.l2:.1e}"] * bool(self.l2)
        return f"{' '.join(settings)}, {self.x.shape[0]} x {self.x.shape[1]}, {self.feed}: {', '.join(self.traits)}"


def draw(seed: int, number: int, attempt: int = 0) -> Problem | None:
    """Problem ``number`` of ``seed``; None where this attempt has too few rows of some class.

    Every 48 problems in a row are of all models, methods and dtypes, with and without standardizing.
    """
    block, position = divmod(number, len(KINDS))
    order = np.random.default_rng([seed, block]).permutation(len(KINDS))
    model, method, dtype, standardize = KINDS[order[position]]
    rng = np.random.default_rng([seed, number, attempt])
    rows, columns = int(10 ** rng.uniform(np.log10(200), np.log10(3000))), int(rng.integers(1, 13))
    traits: list[str] = []
    base, free = _base(rng, rows, columns, traits)
    x = _scaled(rng, base, free, traits)
    deviation = base.std(axis=0)
    score = (base - base.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
    if model == "linear":
        y = _targets(rng, score, traits)
    else:
        y = _labels(rng, score, 2 if model == "logistic" else int(rng.integers(3, 6)), traits)
    weight = _weights(rng, rows, traits)
    if model != "linear":
        counted = y if weight is None else y[weight > 0]
        if np.bincount(counted, minlength=int(y.max()) + 1).min() < FEWEST:
            return None
    if model == "logistic" and rng.random() < 0.3:
        y = 2 * y - 1
    l2 = float(10 ** rng.uniform(-6, -1)) if rng.random() < 0.4 else 0.0
    feed = str(rng.choice(FEEDS))
    return Problem(
        seed, number, attempt, model, method, dtype, standardize, l2, feed, x, y, weight, tuple(traits) or ("plain",)
    )


def _base(rng: np.random.Generator, rows: int, columns: int, traits: list[str]) -> tuple[Array, Array]:
    """Columns of a deviation near 1, some of them collinear, and which of them may be scaled and shifted."""
    base = np.empty((rows, columns))
    for j in range(columns):
        base[:, j] = {
            "normal": lambda: rng.normal(size=rows),
            "uniform": lambda: rng.uniform(-1.7, 1.7, rows),
            "skewed": lambda: rng.lognormal(0, 0.8, rows),
            "tails": lambda: rng.standard_t(4, rows),
            "rare": lambda: (rng.random(rows) < rng.uniform(0.05, 0.5)).astype(float),
            "counts": lambda: rng.poisson(2.0, rows).astype(float),
        }[rng.choice(["normal", "normal", "uniform", "skewed", "tails", "rare", "counts"])]()
    free = np.ones(columns, bool)
    if columns < 3 or rng.random() > 0.35:
        return base, free
    kind = str(rng.choice(["twice", "sum", "dummies", "constant", "nearly"]))
    first, second, third = rng.permutation(columns)[:3]
    if kind == "twice":
        base[:, first] = base[:, second]
    elif kind == "sum":
        base[:, first] = base[:, second] + 2 * base[:, third]
    elif kind == "constant":
        base[:, first] = 1.0
    elif kind == "nearly":
        base[:, first] = base[:, second] + 10 ** rng.uniform(-3, -1) * rng.normal(size=rows)
    else:  # one of three columns is 1: with the bias they are collinear
        chosen = [first, second, third]
        base[:, chosen] = np.eye(3)[rng.choice(3, rows, p=[0.5, 0.3, 0.2])]
        free[chosen] = False
    traits.append(f"collinear ({kind})")
    return base, free


def _scaled(rng: np.random.Generator, base: Array, free: Array, traits: list[str]) -> Array:
    """The columns in units of 1e-12 to 1e12, shifted by up to 1e9 deviations."""
    columns = base.shape[1]
    wide = rng.random() < 0.5
    scale = 10 ** rng.uniform(-12, 12, columns) if wide else 10 ** rng.uniform(-1, 1, columns)
    offset = np.zeros(columns)
    if rng.random() < 0.5:
        far = rng.random(columns) < 0.5
        far[rng.integers(columns)] = True
        offset[far] = (10 ** rng.uniform(0, 9, columns) * rng.choice([-1, 1], columns))[far]
    offset[~free], scale[~free] = 0.0, 1.0
    traits += ["scales 1e±12"] * wide
    if offset.any():
        traits.append(f"offset {np.abs(offset).max():.0e}")
    return scale * (base + offset)


def _targets(rng: np.random.Generator, score: Array, traits: list[str]) -> Array:
    """Values of a linear rule with noise, perhaps far from 0."""
    rows, columns = score.shape
    signal = score @ rng.normal(size=columns)
    strength = 10 ** rng.uniform(-1, 1.5)
    noise = rng.normal(size=rows) if rng.random() < 0.7 else rng.standard_t(4, rows)
    y = strength * signal / (signal.std() or 1.0) + noise
    if rng.random() < 0.5:
        off = 10 ** rng.uniform(1, FURTHEST_TARGET) * rng.choice([-1, 1])
        traits.append(f"targets {abs(off):.0e} off")
        y = y / y.std() + off
    return 10 ** rng.uniform(-6, 6) * y if rng.random() < 0.5 else y


def _labels(rng: np.random.Generator, score: Array, classes: int, traits: list[str]) -> Array:
    """Labels 0 to classes - 1 of a linear rule, as a logit model has them; some classes may be rare."""
    outputs = score @ rng.normal(size=(score.shape[1], classes))
    outputs *= rng.uniform(0.3, 2.0) / (outputs.std(axis=0) + 1e-300)
    rare = rng.random() < 0.4
    if rare:
        traits.append("rare classes")
        outputs[:, rng.integers(classes)] -= rng.uniform(2, 5)
    return (outputs + rng.gumbel(size=outputs.shape)).argmax(axis=1)


def _weights(rng: np.random.Generator, rows: int, traits: list[str]) -> Array | None:
    """Weights that differ, a tenth of them 0, in a unit of their own."""
    if rng.random() > 0.35:
        return None
    traits.append("weighted")
    unit = 10 ** rng.uniform(-6, 6) if rng.random() < 0.5 else 1.0
    return unit * rng.exponential(size=rows) * (rng.random(rows) > 0.1)
