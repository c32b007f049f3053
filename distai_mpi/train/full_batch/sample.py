"""A start and a preconditioner from a sample of the rows, for linear models of few parameters.

Each rank solves the problem of its own part of the sample, rows at random from all ranks, and the mean of the
solutions is the start (Zhang, Duchi & Wainwright 2013, "Communication-efficient algorithms for statistical
optimization").  The mean of the Hessians there stands for that of all rows (Wang, Roosta, Xu & Mahoney 2018, "GIANT:
globally improved approximate Newton method for distributed optimization", takes each rank's).

Of some columns a sample tells little: of those that are rarely not 0, or where few rows have weight.  It is seen by the
columns' second moments over all rows, see `spread_of`.  Such columns stay near 0 in the
solution, and are shrunk towards the diagonal in the Hessian (Ledoit & Wolf 2004, "A well-conditioned estimator for
large-dimensional covariance matrices", by column).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...backend import HOST
from ...data import Batch
from ...data.batch import zeros_row
from ...models import Abilities
from ...objective import Objective
from ...optim.solvers.preconditioner import NO_NULL_SPACE, Factored

if TYPE_CHECKING:
    from ...comm import Communicator

Array = Any
MOST_DENSE = 1024  # parameters of a dense Hessian: its message is 4 MiB, its factor takes 25 ms
ROWS_PER_PARAMETER = 50  # in a sample: on 200,000 × 200 rows, 25 and 100 were as fast
LEAST_PER_PARAMETER = 5  # fewer would say little of the Hessian
# Of a column that so many rows tell of, or that part of the number of parameters, half is unknown; of one that KNOWN
# times as many tell of, and whose moment is more than NEAR times that of all rows or less than their inverse, nothing.
FEW_ROWS, FEW_PER_PARAMETER, KNOWN, NEAR = 8, 1 / 8, 5, 0.5
PART = 8  # at most this part of the rows, or the sample's cost shows
MOST_STEPS = 15
CHEAP_PRODUCTS = 4e8  # of a Hessian on a rank: 30 ms in float64
ENOUGH = 1e-2  # of the first gradient's norm: chance makes the rest


def is_linear(model: Any) -> bool:
    """Whether the matrix of the curvature of ``model`` can be had, and is the Hessian."""
    return Abilities.of(model).linear is not None


def null_space(model: Any, penalty: Array) -> Array:
    """Indices of parameters that may all grow alike without a change of the objective, shape (groups, members).

    Of softmax regression the parameters of all classes that belong to one column, where nothing penalises them; of
    other linear models none.

    Args:
        penalty: of all parameters, shape (layout.size,).
    """
    if not model.loss_function.several:
        return NO_NULL_SPACE
    columns = np.arange(model.layout.size).reshape(-1, model.widths[-1])
    return columns[penalty[columns[:, 0]] == 0]


class Moments(NamedTuple):
    """Second moments of the columns that parameters belong to; a bias has the column 1.

    Attributes:
        square: Σ weight · x² over rows, float64, shape (n,), for every parameter.
        fourth: Σ (weight · x²)².
        weight: of the rows.
    """

    square: Array
    fourth: Array
    weight: float

    def unknown(self, everywhere: Array) -> Array:
        """How little rows with these moments tell of each column, from 0 to 1, where it has the mean ``everywhere``.

        As many rows tell of a column as would, all alike, have these two sums (Kish 1965, "Survey sampling": the
        effective size of a sample).  In arithmetic that every processor does alike, as in `Estimate.of`.
        """
        size = len(self.square)
        rows = np.divide(self.square**2, self.fourth, out=np.zeros(size), where=self.fourth > 0)
        own = self.square / self.weight
        few, larger = max(FEW_ROWS, FEW_PER_PARAMETER * size), np.maximum(own, everywhere)
        near = np.divide(np.minimum(own, everywhere), larger, out=np.ones(size), where=larger > 0)
        by_rows = np.where(rows < KNOWN * few, 1.0 / (1.0 + (rows / few) * (rows / few)), 0.0)
        return np.maximum(by_rows, np.where(near < NEAR, 1.0 - near, 0.0))


class Sampled(NamedTuple):
    """This rank's part of a sampled start.

    Attributes:
        w: solution, float64, shape (n,).
        matrix: sum of the rows' Hessians there, without the penalty, float64, shape (n, n).
        moments: of these rows; of weight 0: there is no solution.
        everywhere: mean second moments over all rows of all ranks, shape (n,).
    """

    w: Array
    matrix: Array
    moments: Moments
    everywhere: Array

    def message(self) -> Array:
        """What is summed over the ranks for `Estimate.of`."""
        square, fourth, weight = self.moments
        triangle = self.matrix[np.tril_indices(self.w.size)]
        return np.concatenate([[weight], weight * self.w, square, fourth, triangle])


class Estimate(NamedTuple):
    """What the samples of all ranks say; the same on every rank.

    Attributes:
        w: start, float64, shape (n,).
        matrix: Hessian there, without the penalty, float64, shape (n, n).
    """

    w: Array
    matrix: Array

    @staticmethod
    def of(totals: Array, everywhere: Array) -> Estimate | None:
        """From the sums of the ranks' messages, with which ``totals`` begin; None where nobody has a solution."""
        if not (totals[0] > 0 and np.isfinite(totals).all()):
            return None
        size, weight = len(everywhere), totals[0]
        w, square, fourth, triangle = np.split(totals[1:], [size, 2 * size, 3 * size])
        matrix, indices = np.zeros((size, size)), np.tril_indices(size)
        matrix[indices] = triangle[: indices[0].size] / weight
        matrix += np.tril(matrix, -1).T
        unknown = Moments(square, fourth, weight).unknown(everywhere)
        known = np.sqrt(1.0 - unknown)
        curved, squares = ((1.0 - unknown) * each for each in (matrix.diagonal(), square / weight))
        curvature = math.fsum(curved) / (math.fsum(squares) or 1.0)  # of an average row
        matrix *= known * known[:, None]
        matrix.flat[:: size + 1] += unknown * (curvature or 1.0) * everywhere
        return Estimate(w / weight, matrix)


def sample_size(objective: Objective, asked: int | None) -> int:
    """Rows of the sample, over all ranks: 0 where there is none; the same on every rank."""
    model, rows = objective.model, objective.loader.shard.rows
    size = model.layout.size
    if asked == 0 or not objective.whole or not is_linear(model):
        return 0
    if asked is not None:
        return min(asked, rows)
    if size > MOST_DENSE:
        return rows
    count = min(ROWS_PER_PARAMETER * size, rows // PART)
    return count if count >= LEAST_PER_PARAMETER * size else 0


def solve_sample(objective: Objective, count: int, spread: Array, penalty: Array) -> Sampled:
    """This rank's part of the solution of ``count`` rows; collective, one exchange.

    Args:
        objective: of the model.
        count: rows of all ranks.
        spread: see `spread_of`.
        penalty: l2 where parameters decay, else 0; shape (layout.size,).
    """
    model = objective.model
    size, dtype = model.layout.size, model.dtype
    everywhere = by_parameter(model, np.square(spread), 1.0)
    batch = _exchange(objective, _parts(objective, count))
    moments = moments_of(model, batch)
    none = Moments(np.zeros(size), np.zeros(size), 0.0)
    nothing = Sampled(np.zeros(size), np.zeros((size, size)), none, everywhere)
    if not moments.weight > 0:
        return nothing
    found = _newton(model, batch, np.zeros(size, dtype), penalty, moments, everywhere)
    return nothing if found is None else Sampled(*found, moments, everywhere)


def moments_of(model: Any, batch: Batch) -> Moments:
    """Moments of the rows of a sample, in units in which fourth powers do not overflow: see `in_other_units`."""
    rows = batch.rows
    weight = np.ones(rows.shape[0], rows.dtype) if batch.weight is None else batch.weight
    x, found = np.empty(rows.shape, rows.dtype), []
    rows.fill(x)
    for factor in (weight, np.square(weight)):
        columns = np.empty(rows.shape[1], rows.dtype)
        _squares(batch._replace(x=x, weight=factor), columns)
        np.square(x, out=x)
        found.append(by_parameter(model, columns, float(factor.sum(dtype=np.float64))))
    return Moments(found[0], found[1], float(weight.sum(dtype=np.float64)))


def by_parameter(model: Any, columns: Array, bias: float) -> Array:
    """What features, shape (features,), and biases have, for each parameter; shape (n,)."""
    found = np.empty(model.layout.size)
    weights, biases = model.layers_of(found)
    weights[0][:] = columns[:, None]
    for part in biases:
        part[:] = bias
    return found


def warm_up(objective: Objective) -> None:
    """Compile what a sample needs; local."""
    model, loader = objective.model, objective.loader
    batch = loader.sample(min(4, loader.rows_of(objective.comm.rank)))
    if not len(batch.y):
        return
    size = model.layout.size
    if size <= MOST_DENSE:
        moments = moments_of(model, batch)._replace(weight=1.0)
        _newton(model, batch, np.zeros(size, model.dtype), np.ones(size), moments, np.ones(size))
    else:
        _add_diagonal(model, batch, np.zeros(size))


def compile_passes(objective: Objective) -> None:
    """Compile what `spread_of` and `diagonal_of_all` need, on a row of zeros, and what takes a sample; local."""
    model, loader = objective.model, objective.loader
    row = zeros_row(loader)
    _squares(row, np.empty(loader.shard.features, loader.dtype))
    _add_diagonal(model, row, np.zeros(model.layout.size))
    loader.sample(0)


def diagonal_of_all(objective: Objective) -> Array:
    """The Hessian's diagonal on this rank's rows at parameters of 0, a sum without the penalty, shape (n,); local."""
    diagonal = np.zeros(objective.model.layout.size)
    for batch in objective.loader.sequential():
        _add_diagonal(objective.model, batch, diagonal)
    return diagonal


def hessian_of_all(objective: Objective, w: Array, penalty: Array, dtype: Any) -> Array:
    """The Hessian of the objective at ``w``, shape (n,), over all rows of all ranks; collective, one sum.

    Args:
        objective: of a linear model.
        w: parameters, replicated.
        penalty: l2 where parameters decay, else 0; shape (n,).
        dtype: in which products of rows are summed.

    Returns:
        Float64, shape (n, n), symmetric; the same bits on every rank.
    """
    model: Any = objective.model
    matrix, grad, at = np.zeros((w.size, w.size)), np.empty_like(w), HOST.read_only(w)
    for batch in objective.loader.sequential():
        model.linearize(at, batch, grad)[1].add_matrix(batch, matrix, dtype)
    return symmetric(objective.comm.sum(triangle_of(matrix)) / objective.loader.total_weight, penalty)


def triangle_of(matrix: Array) -> Array:
    """The lower triangle of a symmetric ``matrix``, row after row."""
    return matrix[np.tril_indices(len(matrix))]


def symmetric(triangle: Array, diagonal: Array) -> Array:
    """The symmetric matrix of which `triangle_of` gives ``triangle``, and ``diagonal`` added to its diagonal."""
    matrix = np.zeros((diagonal.size, diagonal.size))
    matrix[np.tril_indices(diagonal.size)] = triangle
    matrix += np.tril(matrix, -1).T
    matrix.flat[:: diagonal.size + 1] += diagonal
    return matrix


def precise(objective: Objective) -> np.dtype:
    """The dtype in which products of rows are summed for a Hessian: float64 where it costs little.

    In float32 what is left of a column beside those before it can be told to a fraction of 1e-6 alone.
    """
    size, rows = objective.model.layout.size, objective.loader.shard.rows / objective.comm.size
    quadratic = objective.model.loss_function.quadratic  # type: ignore[attr-defined]
    if quadratic or rows * size * size <= CHEAP_PRODUCTS:  # of a quadratic loss it is made once
        return np.dtype(np.float64)
    return np.dtype(objective.model.dtype)


def _add_diagonal(model: Any, batch: Batch, out: Array) -> None:
    w = np.zeros(out.size, model.dtype)
    _, kept = model.linearize(HOST.read_only(w), batch, np.empty_like(w))
    kept.add_diagonal(batch, out)


def _squares(batch: Batch, out: Array) -> None:
    """out ← Σ weight · x² over the rows, shape (features,), in the dtype of x."""
    weight = np.ones(len(batch.y), batch.rows.dtype) if batch.weight is None else batch.weight
    batch.rows.squares(weight, out)


def spread_of(objective: Objective) -> Array:
    """Roots of the mean squares of features over all rows, float64, shape (features,); collective, one sum.

    The same bits on every rank.  Squares beyond the dtype of the rows make them infinite, and smaller ones 0.
    """
    loader = objective.loader
    total, weight = np.zeros(loader.shard.features + 1), 0.0
    part = np.empty(loader.shard.features, loader.dtype)
    for batch in loader.sequential():
        _squares(batch, part)
        total[:-1] += part
        weight += float(len(batch.y) if batch.weight is None else batch.weight.sum(dtype=np.float64))
    total[-1] = weight
    total = objective.comm.sum(total)
    return np.sqrt(total[:-1] / (total[-1] or 1.0))


def _parts(objective: Objective, count: int) -> list[int]:
    """How many rows each rank gives."""
    loader = objective.loader
    rows = [loader.rows_of(rank) for rank in range(objective.comm.size)]
    ends = np.concatenate([[0], np.cumsum(rows)]) * min(count, sum(rows)) // sum(rows)
    return np.diff(ends).tolist()


def _exchange(objective: Objective, parts: Sequence[int]) -> Batch:
    """Give each rank a like part of every rank's rows of the sample, so that all have rows of all kinds."""
    loader, comm = objective.loader, objective.comm
    batch = loader.sample(parts[comm.rank])
    features = batch.rows.shape[1]
    columns = features + 1 + (batch.weight is not None)
    sent = np.empty((len(batch.y), columns), np.float64 if loader.dtype == np.float64 else np.float32)
    give, take = ([len(range(way, part, comm.size)) for way, part in ways] for ways in _ways(comm, parts))
    for rank, lines in enumerate(_blocks(sent, give)):
        part = slice(rank, None, comm.size)
        batch.rows.take(part).fill(lines[:, :features])
        lines[:, features] = batch.y[part]
        if batch.weight is not None:
            lines[:, features + 1] = batch.weight[part]
    got = np.empty((sum(take), columns), sent.dtype) if comm.size > 1 else sent
    if comm.size > 1:
        comm.alltoallv(sent.ravel(), [n * columns for n in give], got.ravel(), [n * columns for n in take])
    x, y = np.ascontiguousarray(got[:, :features]), got[:, features].astype(batch.y.dtype)
    weight = None if batch.weight is None else got[:, features + 1].copy()
    return batch._replace(x=x, y=y, weight=weight, ids=np.zeros(len(x), np.int64))


def _ways(comm: Communicator, parts: Sequence[int]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(which rows of every so many, of how many) go from this rank to each, and come from each to this one."""
    return [(rank, parts[comm.rank]) for rank in range(comm.size)], [(comm.rank, part) for part in parts]


def _blocks(table: Array, counts: Sequence[int]) -> list[Array]:
    """Views of so many lines, one after another."""
    ends = np.cumsum(counts)
    return [table[end - count : end] for end, count in zip(ends, counts, strict=True)]


def _newton(
    model: Any, batch: Batch, start: Array, decay: Array, moments: Moments, everywhere: Array
) -> tuple[Array, Array] | None:
    """Minimise the mean loss of the rows and the penalty by damped steps; local.  None: it cannot be.

    Parameters of unknown columns are penalised as much as the loss would curve if these were known.  Returns w and the
    sum of Hessians there.  Two linearizations take turns: ``kept`` is that of w, and the next trial overwrites
    ``spare``.
    """
    w, grad, size, weight = start.astype(np.float64), np.empty_like(start), start.size, moments.weight
    unknown = moments.unknown(everywhere)

    def look(w: Array, old: Any) -> tuple[float, Array, Any]:
        sums, kept = model.linearize(HOST.read_only(w.astype(start.dtype)), batch, grad, old)
        return sums.loss / weight + 0.5 * float(decay @ (w * w)), grad / weight + decay * w, kept

    if unknown.any():
        _, kept = model.linearize(HOST.read_only(start), batch, grad)
        curved = np.zeros(size)
        kept.add_diagonal(batch, curved)
        curvature = curved.sum() / (moments.square.sum() or 1.0)
        decay = decay + unknown * curvature * everywhere
    free = null_space(model, decay)
    dtype = np.float64 if len(batch.y) * size * size <= CHEAP_PRODUCTS / 10 else start.dtype
    value, slope, kept = look(w, None)
    spare, enough = None, ENOUGH * float(np.linalg.norm(slope))
    for turn in range(MOST_STEPS + 1):
        matrix = np.zeros((size, size))
        kept.add_matrix(batch, matrix, dtype)
        if not (np.isfinite(value) and np.isfinite(matrix).all()):
            return None
        if float(np.linalg.norm(slope)) <= enough or turn == MOST_STEPS:
            break
        step = -slope
        Factored(matrix / weight + np.diag(decay), dtype, free).solve(step)
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
