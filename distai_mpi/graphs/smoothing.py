"""Correct and Smooth: predictions of nodes, made better by the labels of other nodes.

Huang, He, Singh, Lim & Benson 2020, "Combining Label Propagation and Simple Models Out-performs Graph Neural
Networks", section 2.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from ..errors import ConfigError, DataError
from ..params import Ownership
from .adjacency import NodeRows, adjacency
from .edges import EdgeList, check_labels

Array = Any
CORRECTION_ALPHA, SMOOTHING_ALPHA, ITERATIONS = 0.8, 0.8, 50


def correct_and_smooth(
    edges: EdgeList,
    predictions: NodeRows,
    labels: Array,
    comm: Any,
    *,
    correction_alpha: float = CORRECTION_ALPHA,
    smoothing_alpha: float = SMOOTHING_ALPHA,
    iterations: int = ITERATIONS,
    scale: float | None = None,
) -> NodeRows:
    """``predictions`` with errors corrected that nodes with labels show, and then smoothed over the graph; collective.

    With S = D^-1/2 A D^-1/2, A the symmetric matrix of the edges' weights and D the sums of its rows:

    * correct (section 2.2): the errors E, label minus prediction at nodes with labels and else 0, are spread by
      E' ← (1 - α) E + α S E'.  Without ``scale`` ("autoscale") the errors of a node without a label are scaled to the
      mean 1-norm of those of nodes with one, and added to its predictions.  With one ("FDiff-scale") errors are spread
      by E' ← D^-1 A E' from nodes with labels, where they stay E, and ``scale`` · E' is added.
    * smooth (section 2.3): G is the label where there is one, and else the corrected prediction;
      G' ← (1 - α) G + α S G'.

    A node without edges keeps its label or prediction, times a positive number.

    Args:
        edges: this rank's edges.
        predictions: probabilities of the classes of the nodes that this rank owns, shape (own nodes, classes),
            float32 or float64.
        labels: classes of all nodes from 0, -1 where there is none, integers, shape (nodes,), replicated.
        comm: the ranks, a `comm.Communicator`.
        correction_alpha, smoothing_alpha: 0 to 1, how much of a step comes from the neighbours.
        iterations: of each of the two.
        scale: of the errors; None: by autoscale.

    Returns:
        Scores of the same nodes and dtype: the largest is the class.

    Raises:
        DataError: labels are no such codes, there is none, or predictions do not fit; on all ranks.
        ConfigError: a setting is out of range.
    """
    for name, alpha in (("correction_alpha", correction_alpha), ("smoothing_alpha", smoothing_alpha)):
        if not 0 <= alpha <= 1:
            raise ConfigError(f"{name} must lie between 0 and 1, not {alpha}")
    values, first = predictions.values, predictions.first
    bounds = [*comm.allgather_object(first), edges.nodes]
    with comm.agreed():
        codes = check_labels(labels, edges.nodes, edges.name)
        _check(codes, values, bounds, comm.rank, edges)
    own = codes[first : first + len(values)]
    known = own >= 0
    propagate = _Propagation(edges, bounds, values, comm)
    target = np.zeros_like(values)
    target[known, own[known]] = 1
    error = np.where(known[:, None], target - values, 0)
    corrected = values.astype(np.float64)
    if scale is None:
        spread = propagate(error, correction_alpha, iterations)
        mean, count = comm.sum([np.abs(error).sum(dtype=np.float64), known.sum()])
        size = np.abs(spread).sum(axis=1, keepdims=True)
        corrected += np.divide(mean / count * spread, size, out=np.zeros_like(spread), where=size > 0)
    else:
        corrected += scale * propagate.diffuse(error, known, iterations)
    start = np.where(known[:, None], target, corrected)
    return NodeRows(first, propagate(start, smoothing_alpha, iterations).astype(values.dtype))


def _check(codes: Array, values: Array, bounds: list[int], rank: int, edges: EdgeList) -> None:
    shape = (bounds[rank + 1] - bounds[rank],)
    if values.ndim != 2 or values.shape[:1] != shape or values.dtype.kind != "f":
        raise DataError(
            f"{edges.name}: predictions of {values.dtype}, shape {values.shape}, do not fit {shape[0]:,} nodes of this"
            " rank; give each the probabilities of the classes"
        )
    largest = codes.max()
    if largest < 0 or largest >= values.shape[1]:
        raise DataError(
            f"{edges.name}: labels of nodes go up to {largest}, and predictions are of {values.shape[1]} classes"
        )


class _Propagation:
    """Sums over neighbours of the nodes of all ranks, each of which writes its own nodes' rows.

    Ranks of a single node read one copy of all rows where they lie; else rows travel by messages.
    """

    def __init__(self, edges: EdgeList, bounds: list[int], like: Array, comm: Any) -> None:
        self.comm, classes = comm, like.shape[1]
        self.matrix = adjacency(edges, bounds, comm).astype(np.float64)
        degree = np.asarray(self.matrix.sum(axis=1)).reshape(-1)
        self.degree, self.root = degree, np.sqrt(degree)
        self.rows = slice(bounds[comm.rank], bounds[comm.rank + 1])
        slices = tuple(slice(classes * a, classes * b) for a, b in pairwise(bounds))
        self.owners = Ownership(edges.nodes * classes, slices)
        shared = len(comm.leaders) == 1  # rows of unequal ranks travel between nodes by the library's messages alone
        self.algorithm = None if shared else "native"
        self.all = comm.empty(edges.nodes * classes, np.float64, shared=shared, one_copy=shared)

    def neighbours(self, values: Array) -> Array:
        """A · the ``values`` of all nodes, of which this rank gives its own, shape (own nodes, classes)."""
        whole = self.all.reshape(-1, values.shape[1])
        self.comm.barrier()  # nobody reads the last values any more
        whole[self.rows] = values
        self.comm.allgather(self.all, self.owners, self.algorithm)
        return self.matrix @ whole

    def __call__(self, start: Array, alpha: float, iterations: int) -> Array:
        """X ← (1 - alpha) start + alpha S X, from ``start`` on."""
        inverse = np.divide(1, self.root, out=np.zeros_like(self.root), where=self.root > 0)[:, None]
        values = start
        for _ in range(iterations):
            values = (1 - alpha) * start + alpha * inverse * self.neighbours(inverse * values)
        return values

    def diffuse(self, start: Array, fixed: Array, iterations: int) -> Array:
        """X ← D^-1 A X, but ``start`` where ``fixed``."""
        inverse = np.divide(1, self.degree, out=np.zeros_like(self.degree), where=self.degree > 0)[:, None]
        values = start
        for _ in range(iterations):
            values = np.where(fixed[:, None], start, inverse * self.neighbours(values))
        return values
