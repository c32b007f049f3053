"""A start and a preconditioner from a sample of the rows, for linear models of few parameters.

Each rank solves the problem of its own part of the sample, rows at random from all ranks, and the mean of the
solutions is the start (Zhang, Duchi & Wainwright 2013, "Communication-efficient algorithms for statistical
optimization").  The mean of the Hessians there stands for that of all rows (Wang, Roosta, Xu & Mahoney 2018, "GIANT:
globally improved approximate Newton method for distributed optimization", takes each rank's).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ...backend import HOST
from ...data import Batch
from ...objective import Objective
from ...optim.preconditioner import Factored
from .full_batch import is_linear

Array = Any
MOST_DENSE = 1024  # parameters of a dense Hessian: its message is 4 MiB, its factor takes 25 ms
ROWS_PER_PARAMETER = 50  # in a sample: on 200,000 × 200 rows, 25 and 100 were as fast
LEAST_PER_PARAMETER = 5  # fewer would say little of the Hessian
PART = 8  # at most this part of the rows, or the sample's cost shows
MOST_STEPS = 15
ENOUGH = 1e-2  # of the first gradient's norm: chance makes the rest


class Sampled(NamedTuple):
    """This rank's part of a sampled start.

    Attributes:
        w: solution, float64, shape (n,).
        matrix: Hessian there, penalty included, float64, shape (n, n).
        weight: of the rows it is from; 0: there is no solution.
    """

    w: Array
    matrix: Array
    weight: float

    def message(self) -> Array:
        """What is summed over the ranks for `mean`."""
        triangle = self.matrix[np.tril_indices(self.w.size)]
        return np.concatenate([[self.weight], self.weight * self.w, self.weight * triangle])

    @staticmethod
    def mean(totals: Array, size: int) -> tuple[Array, Array] | None:
        """The means of the ranks' solutions and matrices; None where nobody has one.

        ``totals`` begin with the sums of their messages.
        """
        if not (totals[0] > 0 and np.isfinite(totals).all()):
            return None
        matrix = np.zeros((size, size))
        triangle = np.tril_indices(size)
        matrix[triangle] = totals[1 + size : 1 + size + triangle[0].size] / totals[0]
        return totals[1 : 1 + size] / totals[0], matrix + np.tril(matrix, -1).T


class Diagonals(NamedTuple):
    """This rank's part of a sampled diagonal of the Hessian, penalty not included, where a matrix would be too large.

    Attributes:
        diagonal: sums over its rows, float64, shape (n,).
        weight: of these rows.
    """

    diagonal: Array
    weight: float

    def message(self) -> Array:
        """What is summed over the ranks for `mean`."""
        return np.append(self.diagonal, self.weight)

    @staticmethod
    def mean(totals: Array, size: int) -> Array | None:
        """The mean over all rows, from the sum of the ranks' messages; None where there are no rows."""
        return totals[:size] / totals[size] if totals[size] > 0 and np.isfinite(totals).all() else None


def sample_size(objective: Objective, asked: int | None) -> int:
    """Rows of the sample, over all ranks: 0 where there is none; the same on every rank."""
    model, rows = objective.model, objective.loader.share.rows
    size = model.layout.size
    if asked == 0 or not objective.whole or not is_linear(model):
        return 0
    if asked is not None:
        return min(asked, rows)
    if size > MOST_DENSE:
        return -(-rows // PART)
    count = min(ROWS_PER_PARAMETER * size, rows // PART)
    return count if count >= LEAST_PER_PARAMETER * size else 0


def solve_sample(objective: Objective, w: Array, count: int) -> Sampled:
    """This rank's part of the solution of ``count`` rows, from the parameters ``w``; collective, one exchange."""
    batch = _exchange(objective, _parts(objective, count))
    size, model = w.size, objective.model
    decay = np.zeros(size)
    for low, high in model.layout.decay_ranges(0, size):
        decay[low:high] = objective.l2
    nothing = Sampled(np.zeros(size), np.zeros((size, size)), 0.0)
    if not len(batch.x):
        return nothing
    weight = float(len(batch.x) if batch.weight is None else batch.weight.sum(dtype=np.float64))
    if not weight > 0:
        return nothing
    found = _newton(model, batch, w, decay, weight)
    return nothing if found is None else Sampled(*found, weight)


def warm_up(objective: Objective, w: Array) -> None:
    """Compile what a sample needs; local."""
    loader = objective.loader
    batch = loader.sample(min(4, loader.rows_of(objective.comm.rank)))
    if len(batch.x) and w.size <= MOST_DENSE:
        _newton(objective.model, batch, w, np.ones(w.size), 1.0)


def sample_diagonal(objective: Objective, w: Array, count: int) -> Diagonals:
    """This rank's part of the Hessian's diagonal on ``count`` rows at ``w``; local."""
    batch = objective.loader.sample(_parts(objective, count)[objective.comm.rank])
    diagonal = np.zeros(w.size)
    if not len(batch.x):
        return Diagonals(diagonal, 0.0)
    _, kept = objective.model.linearize(HOST.read_only(w), batch, np.empty_like(w))  # type: ignore[attr-defined]
    kept.add_diagonal(batch, diagonal)
    return Diagonals(diagonal, float(len(batch.x) if batch.weight is None else batch.weight.sum(dtype=np.float64)))


def _parts(objective: Objective, count: int) -> list[int]:
    """How many rows each rank gives."""
    loader = objective.loader
    rows = [loader.rows_of(rank) for rank in range(objective.comm.size)]
    ends = np.concatenate([[0], np.cumsum(rows)]) * min(count, sum(rows)) // sum(rows)
    return np.diff(ends).tolist()


def _exchange(objective: Objective, parts: Sequence[int]) -> Batch:
    """Give each rank a like share of every rank's part of the sample, so that all have rows of all kinds."""
    loader, comm = objective.loader, objective.comm
    batch = loader.sample(parts[comm.rank])
    if comm.size == 1:
        return batch
    features = batch.x.shape[1]
    columns = features + 1 + (batch.weight is not None)
    packed = np.empty((len(batch.x), columns), np.float64 if loader.dtype == np.float64 else np.float32)
    packed[:, :features], packed[:, features] = batch.x, batch.y
    if batch.weight is not None:
        packed[:, features + 1] = batch.weight
    order = np.argsort(np.arange(len(batch.x)) % comm.size, kind="stable")
    packed = packed[order]
    give = [len(range(rank, parts[comm.rank], comm.size)) * columns for rank in range(comm.size)]
    take = [len(range(comm.rank, part, comm.size)) * columns for part in parts]
    got = np.empty(sum(take), packed.dtype)
    comm.alltoallv(packed.ravel(), give, got, take)
    table = got.reshape(-1, columns)
    weight = None if batch.weight is None else table[:, features + 1].copy()
    x, y = np.ascontiguousarray(table[:, :features]), table[:, features].astype(batch.y.dtype)
    return batch._replace(x=x, y=y, weight=weight, ids=np.zeros(len(x), np.int64))


def _newton(model: Any, batch: Batch, start: Array, decay: Array, weight: float) -> tuple[Array, Array] | None:
    """Minimise the mean loss of the rows and the penalty by damped steps; local.  None: it cannot be.

    Two linearizations take turns: ``kept`` is that of w, and the next trial overwrites ``spare``.
    """
    w, grad, size = start.astype(np.float64), np.empty_like(start), start.size

    def look(w: Array, old: Any) -> tuple[float, Array, Any]:
        sums, kept = model.linearize(HOST.read_only(w.astype(start.dtype)), batch, grad, old)
        return sums.loss / weight + 0.5 * float(decay @ (w * w)), grad / weight + decay * w, kept

    value, slope, kept = look(w, None)
    spare, enough = None, ENOUGH * float(np.linalg.norm(slope))
    for turn in range(MOST_STEPS + 1):
        matrix = _matrix(kept, batch, decay, weight, size)
        if not (np.isfinite(value) and np.isfinite(matrix).all()):
            return None
        if float(np.linalg.norm(slope)) <= enough or turn == MOST_STEPS:
            break
        step = -slope
        Factored(matrix.copy(), start.dtype).solve(step)
        fall, t = float(slope @ step), 1.0
        while True:
            there, slope_there, kept_there = look(w + t * step, spare)
            if there <= value + 1e-4 * t * fall or t < 1e-3:
                break
            spare, t = kept_there, 0.25 * t
        if not there < value:
            break
        spare, kept = kept, kept_there
        w, value, slope = w + t * step, there, slope_there
    return w, matrix


def _matrix(kept: Any, batch: Batch, decay: Array, weight: float, size: int) -> Array:
    matrix = np.zeros((size, size))
    kept.add_matrix(batch, matrix)
    matrix /= weight
    matrix.flat[:: size + 1] += decay
    return matrix
