"""The optimum of a hard problem by other means than the package's, and how far a run's parameters are from it.

The table is the one that the model was given: features rounded to the run's dtype or, where they are standardized,
standardized in float64 from the values as they stand in the file, and then rounded.  It is centred and scaled in
extended precision; Newton's method on the whole Hessian, solved by its eigenvalues, does the rest in float64.

Directions of the features in which the table varies by no more than the rounding of its numbers are no data (of
collinear columns, or of a column whose deviation is less than the spacing of floating-point numbers there): the
optimum does not use them, and nothing is asked of a run's coefficients along them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from hard_tables import Problem

Array = Any

# In units of half the spacing of the table's numbers: a direction that varies less is noise, one that varies more is
# data, and a problem with one in between is left out.
NOISE, DATA = 1.5, 5.0
LEAST_ROUNDING = 1e-13  # of deviations: finer than that float64 itself does not tell
NULL = 1e-14  # eigenvalues of a scaled Hessian below this fraction of the largest are 0
LEAST_CURVATURE = 1e-11  # likewise: an optimum flatter than this may as well lie at infinity
MOST_STEPS = 200


class Unfit(Exception):
    """A problem to be left out: it has no optimum (separable classes), or it is unclear what is noise."""


class Table(NamedTuple):
    """What a run's model is given, centred and scaled.

    Attributes:
        z: features less their mean, over their deviation, float64, shape (rows, columns); 0 where constant.
        mean, deviation: of the features, extended precision and float64, shape (columns,).
        rounding: of each column's numbers, half their spacing in deviations.
        fraction: of each row in the sum of weights, shape (rows,).
        y: targets less their mean over their deviation, or labels 0 to classes - 1.
        y_mean, y_deviation: of the targets; 0 and 1 for labels.
        rows: as many equally weighted rows tell as much (Kish 1965: the effective sample size).
    """

    z: Array
    mean: Array
    deviation: Array
    rounding: Array
    fraction: Array
    y: Array
    y_mean: Any
    y_deviation: Any
    rows: float


def as_read(problem: Problem) -> Table:
    """The table as the model of ``problem`` gets it."""
    dtype, weight = np.dtype(problem.dtype), problem.weight
    fraction = np.ones(len(problem.y)) if weight is None else weight.astype(dtype).astype(np.float64)
    effective = fraction.sum() ** 2 / (fraction**2).sum()
    fraction = fraction / fraction.sum()
    x, spacing = problem.x, np.zeros(problem.x.shape[1])
    if problem.standardize:
        spacing = np.spacing(np.abs(x).max(axis=0))
        z, _, deviation = _centred(x, fraction if weight is None else weight / weight.sum())
        x, spacing = z.astype(np.float64), spacing / np.where(deviation > 0, deviation, 1.0).astype(float)
    x = x.astype(dtype)
    spacing = spacing + np.spacing(np.abs(x).max(axis=0)).astype(float)
    z, mean, deviation = _centred(x, fraction)
    deviation = deviation.astype(np.float64)
    rounding = spacing / 2 / np.where(deviation > 0, deviation, np.inf)
    y, y_mean, y_deviation = problem.y, np.longdouble(0), 1.0
    if problem.model == "linear":
        y, y_mean, y_deviation = (part[..., 0] for part in _centred(y.astype(dtype)[:, None], fraction))
        y, y_deviation = y.astype(np.float64), float(y_deviation)
    elif problem.model == "logistic":
        y = (y > 0).astype(np.int64)
    return Table(z.astype(np.float64), mean, deviation, rounding, fraction, y, y_mean, y_deviation, effective)


def _centred(x: Array, fraction: Array) -> tuple[Array, Array, Array]:
    """Columns of ``x`` less their mean over their deviation, mean and deviation; all in extended precision.

    Everything is reckoned from the first row on, so that of a constant column the deviation is exactly 0.
    """
    wide, fraction = x.astype(np.longdouble), fraction.astype(np.longdouble)
    fraction = fraction / fraction.sum()
    first = wide[np.flatnonzero(fraction)[0]]
    away = wide - first
    mean = fraction @ away
    away[:] -= mean
    deviation = np.sqrt(fraction @ away**2)
    constant = (wide[fraction > 0] == first).all(axis=0)
    deviation = np.where(constant, np.longdouble(0), deviation)
    return away / np.where(constant, np.longdouble(1), deviation), first + mean, deviation


@dataclass
class Solution:
    """The optimum of a problem.

    Attributes:
        table: what it is of.
        value: the objective there, in units of the squared deviation of the targets.
        theta: parameters of centred and scaled columns, the bias last, shape (columns + 1, outputs).
        inverse: pseudo-inverse of the Hessian there, times the variance of a row over the number of rows: the
            covariance of ``theta``, shape (n, n) with theta.ravel().
        null: directions without curvature, shape (n, m).
        data: projects features on the directions that are data, shape (columns, columns).
    """

    problem: Problem
    table: Table
    value: float
    theta: Array
    inverse: Array
    null: Array
    data: Array

    @property
    def has_noise(self) -> bool:
        """Whether there are directions that only rounding tells of."""
        return not np.array_equal(self.data, np.eye(len(self.data)))

    def of_run(self, w: Array) -> Array:
        """A run's flat parameters as ``theta``."""
        table, (columns, outputs) = self.table, np.subtract(self.theta.shape, (1, 0))
        wide = np.asarray(w, np.longdouble)
        weight, bias = wide[: columns * outputs].reshape(columns, outputs), wide[columns * outputs :]
        constant = bias + table.mean @ weight - table.y_mean
        return np.vstack([weight * table.deviation[:, None], constant]).astype(np.float64) / table.y_deviation

    def gap(self, w: Array) -> float:
        """How much better the optimum is than a run's parameters, over the optimum's value."""
        penalty = _penalty(self.problem, self.table)
        theta = self.of_run(w)
        if not np.isfinite(theta).all():
            return float("inf")
        value = _value(self.problem, self.table, theta, penalty)
        if self.table.deviation.min() == 0 and self.problem.l2:  # constant columns have no deviation to scale by
            kept = np.asarray(w, np.float64)[: -theta.shape[1]].reshape(-1, theta.shape[1])[self.table.deviation == 0]
            value += 0.5 * self.problem.l2 * float((kept**2).sum()) / self.table.y_deviation**2
        return (value - self.value) / self.value

    def off(self, w: Array, other: Array | None = None) -> float:
        """How many standard errors a run's parameters are off the optimum, or those of two runs apart, at most.

        Each coefficient that the data tell is looked at, of softmax less the mean of the classes.  Where they do not
        tell all, also the outputs for rows, in the standard errors of these.
        """
        theta = self.of_run(w)
        if not np.isfinite(theta).all():
            return float("inf")
        apart = (theta - (self.theta if other is None else self.of_run(other))).ravel()
        outputs = self.theta.shape[1]
        contrast = np.eye(outputs) - (1 / outputs if outputs > 1 else 0)
        found = self._errors(np.kron(np.eye(len(theta)), contrast), apart)
        if self.has_noise or not found.size:
            z = (self.table.z[self.table.fraction > 0] @ self.data)[:200]
            rows = np.hstack([z, np.ones((len(z), 1))])
            found = np.append(found, self._errors(np.kron(rows, contrast), apart))
        return float(np.max(found, initial=0.0))

    def _errors(self, combinations: Array, apart: Array) -> Array:
        """Combinations of ``apart`` that the data tell, in their standard errors."""
        told = np.linalg.norm(combinations @ self.null, axis=1) < 1e-6 * np.linalg.norm(combinations, axis=1)
        combinations = combinations[told]
        error = np.sqrt(np.einsum("ij,jk,ik->i", combinations, self.inverse, combinations))
        return np.abs(combinations @ apart)[error > 0] / error[error > 0]


def solve(problem: Problem) -> Solution:
    """The optimum of ``problem``.

    Raises:
        Unfit: it is to be left out.
    """
    table = as_read(problem)
    data, rank = _data(table)
    clean = table._replace(z=table.z @ data)
    penalty = _penalty(problem, table)
    theta, hessian = _newton(problem, clean, penalty)
    scale = 1 / np.sqrt(1 + penalty.ravel())
    values, vectors = np.linalg.eigh(hessian * scale[:, None] * scale)
    kept = values > NULL * values[-1]
    if problem.model != "linear" and not problem.l2:
        told = (rank + 1) * max(1, problem.classes - 1)
        if kept.sum() != told or values[kept][0] < LEAST_CURVATURE * values[-1]:
            raise Unfit("separable classes, or nearly so")
    inverse = (vectors[:, kept] / values[kept]) @ vectors[:, kept].T * scale[:, None] * scale
    variance = 1.0
    if problem.model == "linear":
        mean_square = 2 * _value(problem, clean, theta, np.zeros_like(penalty))
        variance = mean_square * table.rows / max(1.0, table.rows - kept.sum())
    null = vectors[:, ~kept] * scale[:, None]
    value = _value(problem, table, theta, penalty)
    return Solution(problem, table, value, theta, inverse * variance / table.rows, null, data)


def _data(table: Table) -> tuple[Array, int]:
    """A projection of features on the directions in which they vary by more than their rounding, and its rank."""
    rounding = np.maximum(table.rounding, LEAST_ROUNDING)
    scaled = table.z * np.sqrt(table.fraction)[:, None] / rounding
    _, sizes, directions = np.linalg.svd(scaled, full_matrices=False)
    if ((sizes > NOISE) & (sizes < DATA)).any():
        raise Unfit("a direction that may be data or rounding")
    kept = directions[sizes >= DATA]
    if len(kept) == len(rounding):
        return np.eye(len(rounding)), len(kept)
    return (kept.T / rounding[:, None]) @ (kept * rounding), len(kept)


def _penalty(problem: Problem, table: Table) -> Array:
    """l2 as it is of ``theta``, shape (columns + 1, outputs)."""
    squared = np.where(table.deviation > 0, table.deviation, np.inf) ** 2
    return np.append(problem.l2 / squared, 0.0)[:, None].repeat(problem.classes, axis=1)


def _value(problem: Problem, table: Table, theta: Array, penalty: Array) -> float:
    """The objective at ``theta``."""
    loss, _ = _losses(problem.model, table.z @ theta[:-1] + theta[-1], table.y)
    return float(table.fraction @ loss + 0.5 * (penalty * theta**2).sum())


def _losses(model: str, outputs: Array, y: Array) -> tuple[Array, Array]:
    """Loss of each row, shape (rows,), and its derivative by the outputs, shape (rows, outputs)."""
    if model == "linear":
        off = outputs[:, 0] - y
        return 0.5 * off**2, off[:, None]
    if model == "logistic":
        sign = 2.0 * y - 1
        margin = sign * outputs[:, 0]
        return np.logaddexp(0, -margin), (-sign * np.exp(-np.logaddexp(0, margin)))[:, None]
    top = outputs.max(axis=1, keepdims=True)
    total = top + np.log(np.exp(outputs - top).sum(axis=1, keepdims=True))
    chance = np.exp(outputs - total)
    rows = np.arange(len(y))
    loss = (total - outputs)[rows, y]
    chance[rows, y] -= 1
    return loss, chance


def _hessian(model: str, table: Table, outputs: Array, penalty: Array) -> Array:
    """The Hessian of the objective by theta.ravel(), shape (n, n)."""
    rows = np.hstack([table.z, np.ones((len(table.z), 1))])
    fraction, classes = table.fraction, outputs.shape[1]
    if model == "linear":
        blocks = {(0, 0): fraction}
    elif model == "logistic":
        chance = np.exp(-np.logaddexp(0, -outputs[:, 0]))
        other = np.exp(-np.logaddexp(0, outputs[:, 0]))
        blocks = {(0, 0): fraction * chance * other}
    else:
        top = outputs.max(axis=1, keepdims=True)
        chance = np.exp(outputs - top)
        chance /= chance.sum(axis=1, keepdims=True)
        blocks = {
            (a, b): fraction * chance[:, a] * ((a == b) - chance[:, b]) for a in range(classes) for b in range(classes)
        }
    size = rows.shape[1]
    found = np.empty((size, classes, size, classes))
    for (a, b), curvature in blocks.items():
        found[:, a, :, b] = (rows * curvature[:, None]).T @ rows
    found = found.reshape(size * classes, size * classes)
    found.flat[:: len(found) + 1] += penalty.ravel()
    return (found + found.T) / 2


def _newton(problem: Problem, table: Table, penalty: Array) -> tuple[Array, Array]:
    """The minimum by Newton's method with halved steps, and the Hessian there."""
    theta = np.zeros(penalty.shape)
    rows = np.hstack([table.z, np.ones((len(table.z), 1))])
    scale = 1 / np.sqrt(1 + penalty.ravel())
    value = _value(problem, table, theta, penalty)
    for _ in range(MOST_STEPS):
        outputs = rows @ theta
        _, slope = _losses(problem.model, outputs, table.y)
        gradient = (rows.T @ (slope * table.fraction[:, None]) + penalty * theta).ravel() * scale
        hessian = _hessian(problem.model, table, outputs, penalty)
        values, vectors = np.linalg.eigh(hessian * scale[:, None] * scale)
        kept = values > NULL * values[-1]
        along = vectors[:, kept].T @ gradient
        decrement = float(along**2 @ (1 / values[kept]))
        step = -(vectors[:, kept] @ (along / values[kept]) * scale).reshape(theta.shape)
        if decrement <= 1e-22 * value:
            return theta, hessian
        part = 1.0
        while part > 1e-9 and not _value(problem, table, theta + part * step, penalty) < value + 1e-15 * value:
            part /= 2
        theta = theta + part * step
        now = _value(problem, table, theta, penalty)
        if decrement <= 1e-15 * value and not now < value:  # rounding alone is left
            return theta, hessian
        value = now
    raise Unfit("no optimum was found: separable classes, perhaps")
