"""A linear model at one l1 penalty after another: the regularisation path."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data import ShardedDataset
from ..errors import ConfigError
from ..files import write_whole
from ..models import Abilities, Model
from ..optim import NewtonCG
from ..options import OPTIONS
from ..perf.machine import limited_blas, node_cpus
from ..settings import called
from .checks import check_alike, check_range, check_rows, check_settings
from .evaluation import evaluate, make_loader
from .working_set import WorkingSets

if TYPE_CHECKING:
    from ..comm import Communicator

Array = Any
POINTS, MIN_RATIO = 20, 1e-3
SLACK = 64  # roundings of the dtype, relative to the penalty, by which a gradient may exceed it


@dataclass
class PathPoint:
    """A model of the path; the same on every rank.

    Attributes:
        l1: the penalty's strength.
        objective: its value, penalties included.
        indices, values: of the parameters that are not 0, ascending, int64, and what they are, in the model's dtype.
        size: of the parameters.
        nonzeros: weights, without biases, that are not 0.
        iterations: of the solver.
        converged: whether the solver's tolerance was met, and no feature that was left out violates its condition.
        valid_loss, valid_accuracy, test_loss, test_accuracy: without penalties; None without such rows.
    """

    l1: float
    objective: float
    indices: Array
    values: Array
    size: int
    nonzeros: int
    iterations: int
    converged: bool
    valid_loss: float | None = None
    valid_accuracy: float | None = None
    test_loss: float | None = None
    test_accuracy: float | None = None

    @property
    def params(self) -> Array:
        """All parameters, shape (layout.size,)."""
        w = np.zeros(self.size, self.values.dtype)
        w[self.indices] = self.values
        return w

    def figures(self) -> dict[str, Any]:
        """All but the parameters, as plain JSON values."""
        return {name: value for name, value in vars(self).items() if name not in ("indices", "values", "size")}


def l1_path(
    model: Model,
    data: ShardedDataset,
    comm: Communicator,
    *,
    l1: Sequence[float] | None = None,
    n: int = POINTS,
    min_ratio: float = MIN_RATIO,
    l2: float = 0.0,
    solver: NewtonCG | None = None,
    valid: ShardedDataset | None = None,
    test: ShardedDataset | None = None,
) -> list[PathPoint]:
    """The minimisers of mean loss + ½ l2 ‖w‖² + l1 ‖w‖₁ for falling penalties l1, each begun at the last; collective.

    Biases are not penalised.  Each is minimised over a working set of features alone, which begins with those that are
    not 0 or whose gradients exceed the penalty at the solution before.  Then the optimality conditions of all features
    are looked at, and those that violate theirs join, until none does (after Tibshirani et al. 2012, "Strong rules for
    discarding predictors in lasso-type problems", section 7).

    Args:
        model: a linear model of this package, alike on every rank.
        data, comm: see `fit`.
        l1: the penalties; None: ``n`` of them, evenly spaced by their logarithm from the least at which all weights are
            0 to ``min_ratio`` times it.
        l2: see `fit`.
        solver: whose limit and tolerance hold for each penalty; default ``NewtonCG()``.
        valid, test: this rank's shards of rows on which each model is evaluated.

    Returns:
        A model for each penalty, from the largest to the least.

    Raises:
        ConfigError, DataError: see `fit`; the model is not linear, or no penalty makes a difference.
    """
    solver = NewtonCG() if solver is None else solver
    given = None if l1 is None else tuple(float(one) for one in l1)
    check_alike(comm, l1=given, n=n, min_ratio=min_ratio, l2=l2, solver=solver, data=data.rows)
    _check(model, given, n, min_ratio, solver)
    check_settings(data, solver, None, None, None, l2, 0)
    sets = {"valid": valid, "test": test}
    for name, shard in {"training": data, "validation": valid, "test": test}.items():
        if shard is not None:
            check_rows(model, shard, name)
            check_range(model, shard, name, comm)
    with (
        limited_blas(comm.node.size, node_cpus(comm)) as threads,
        np.errstate(over="ignore", invalid="ignore"),
        ExitStack() as held,
    ):
        if (threaded := Abilities.of(model).threads) is not None:
            threaded.limit_threads(threads)
        watched = {name: make_loader(model, shard, comm) for name, shard in sets.items() if shard is not None}
        points: list[PathPoint] = []
        held.enter_context(comm.watched(lambda: len(points)))
        for point in _points(WorkingSets(model, data, comm, l2), given, n, min_ratio, solver):
            for name, loader in watched.items():
                loss, accuracy, _ = evaluate(model, point.params, loader, comm)
                point = replace(point, **{f"{name}_loss": loss, f"{name}_accuracy": accuracy})
            points.append(point)
    return points


def _check(model: Any, l1: Sequence[float] | None, n: Any, min_ratio: Any, solver: Any) -> None:
    """Raise `ConfigError` at what cannot work; the same on every rank."""
    if not getattr(model, "is_linear", False):
        raise ConfigError("the path of l1 penalties is for linear models: logistic, softmax, linear and the like")
    if not isinstance(solver, NewtonCG):
        raise ConfigError(f"the path of l1 penalties takes optim.NewtonCG(), and not {solver!r}")
    OPTIONS["l1_path"].check(called("n", "--l1-path"), n)
    OPTIONS["l1_min_ratio"].check("min_ratio", min_ratio)
    if l1 is not None and not l1:
        raise ConfigError("l1 is empty: give a penalty at least")
    for one in l1 or ():
        OPTIONS["l1"].check("l1", one)
        if one == 0:
            raise ConfigError("l1 of a path must be above 0; give the last model to fit(start=...) for none")


def _points(sets: WorkingSets, given: Sequence[float] | None, n: int, min_ratio: float, solver: NewtonCG) -> Any:
    """Yield the path's models, not evaluated; collective."""
    w = np.zeros(sets.model.layout.size, sets.model.dtype)
    if sets.model.bias:
        largest = float(np.finfo(w.dtype).max) ** 0.5  # at which no weight moves
        w, _, _ = sets.minimise(np.zeros(1, np.int64), w, largest, solver)
    _, grad = sets.look(w)
    if given is None:
        most = float(grad.max())
        if not most > 0:
            raise ConfigError("all weights stay 0 without a penalty: features or labels tell nothing; give l1 yourself")
        given = (most * np.logspace(0.0, np.log10(min_ratio), n)).tolist()
    assert given is not None
    for l1 in sorted((float(one) for one in given), reverse=True):
        w, grad, value, iterations, converged = _minimise(sets, w, grad, l1, solver)
        weights, indices = sets.weights_of(w), np.flatnonzero(w)
        value += l1 * float(np.abs(weights).sum(dtype=np.float64))
        yield PathPoint(l1, value, indices, w[indices], w.size, int(np.count_nonzero(weights)), iterations, converged)


def _minimise(
    sets: WorkingSets, w: Array, grad: Array, l1: float, solver: NewtonCG
) -> tuple[Array, Array, float, int, bool]:
    """The minimiser at ``l1``, `WorkingSets.look`'s gradients and value there, iterations, and convergence.

    ``grad`` are those at ``w``, where it begins.
    """
    chosen = sets.weights_of(w).any(axis=1) | (grad > l1)
    chosen[int(np.argmax(grad))] = True  # a model has a feature at least
    limit, iterations = l1 * (1 + SLACK * float(np.finfo(w.dtype).eps)), 0
    while True:
        w, state, more = sets.minimise(np.flatnonzero(chosen), w, l1, solver)
        iterations += more
        value, grad = sets.look(w)
        violated = (grad > limit) & ~chosen
        if not violated.any():
            return w, grad, value, iterations, bool(state.met)
        chosen |= violated


def best_of(points: Sequence[PathPoint]) -> PathPoint:
    """The model of the least loss on the validation rows, without these on the test rows, without any the last."""
    for name in ("valid_loss", "test_loss"):
        known = [point for point in points if getattr(point, name) is not None]
        if known:
            return min(known, key=lambda point: getattr(point, name))
    return points[-1]


def save_path(file: str | os.PathLike, points: Sequence[PathPoint]) -> None:
    """Write the path to an .npz file, readable without pickle: a matrix of a row a model in compressed form (CSR).

    ``indices``, ``indptr``, ``data`` and ``shape`` are as `scipy.sparse.csr_array` takes them, and columns are
    parameters in the order of the model's layout.  Figures are arrays of a number a model, nan where there is none.
    """
    starts = np.cumsum([0, *(point.indices.size for point in points)])
    figures = {name: np.array([point.figures()[name] for point in points], float) for name in points[0].figures()}
    arrays: dict[str, Any] = {
        "data": np.concatenate([point.values for point in points]),
        "indices": np.concatenate([point.indices for point in points]),
        "indptr": starts,
        "shape": np.array([len(points), points[0].size]),
        **figures,
    }
    write_whole(os.fspath(file), lambda out: np.savez(out, **arrays))
