"""The objective restricted to some features, the others' parameters being 0: problems of an l1 penalty that are short.

Rows that are reduced to the features at hand take so much less time in every pass.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend import HOST
from ..comm import Exchange
from ..data import Dataset, ShardedDataset
from ..data.sparse_rows import SparseRows, join
from ..models import LinearModel
from ..objective import Objective
from ..optim import NewtonCG
from ..perf.machine import memory_left
from .evaluation import make_loader
from .full_batch import bind, keeps_whole

if TYPE_CHECKING:
    from ..comm import Communicator
    from ..models import Model

Array = Any
HELD = 4  # rows that have to be converted are held so where that takes this part of the memory left


class WorkingSets:
    """The rows of all ranks, of which problems on some of the features are made.

    Args:
        model: a `LinearModel`.
        shard: this rank's shard of the rows.
        comm: the ranks.
        l2: see `Objective`.

    Attributes:
        objective: of all features, without the l1 penalty.
    """

    def __init__(self, model: Model, shard: ShardedDataset, comm: Communicator, l2: float) -> None:
        loader = make_loader(model, shard, comm)
        loader.hold(memory_left() // (HELD * comm.node.size))
        self.model: Any = model
        self.shard, self.comm, self.l2 = shard, comm, l2
        self.objective = Objective(model, loader, comm, l2=l2)
        self._grad = self.objective.empty()
        targets = [(b.y.copy(), None if b.weight is None else b.weight.astype(np.float64)) for b in loader.sequential()]
        self._y = np.concatenate([y for y, _ in targets]) if targets else np.empty(0, loader.target_dtype)
        weights = [weight for _, weight in targets if weight is not None]
        weighted = shard.dataset.weight is not None
        self._weight = (np.concatenate(weights) if weights else np.empty(0)) if weighted else None
        self._counts = tuple(loader.rows_of(rank) for rank in range(comm.size))

    def weights_of(self, flat: Array) -> Array:
        """The weights among parameters, shape (features, outputs); a view."""
        return self.model.layers_of(flat)[0][0]

    def look(self, w: Array) -> tuple[float, Array]:
        """The objective without l1 at ``w``, replicated, and of each feature the largest gradient of its weights.

        That is an absolute value, shape (features,); collective, the same on every rank.
        """
        value = self.objective.value_and_grad(HOST.read_only(w), self._grad)
        largest = np.abs(self.weights_of(self._grad)).max(axis=1)
        self.comm.barrier()  # others may still read this rank's part of the gradient
        return value, largest

    def minimise(self, features: Array, w: Array, l1: float, solver: NewtonCG) -> tuple[Array, Any, int]:
        """The minimiser over the parameters of these ``features``, ascending, and biases, from those of ``w``.

        Returns parameters of all features, shape (layout.size,), replicated, the solver's state, and iterations.
        """
        model = self.model
        part = LinearModel(len(features), model.widths[1], loss=model.loss_function, bias=model.bias, dtype=model.dtype)
        part.limit_threads(model.threads)
        loader = make_loader(part, self._reduced(features), self.comm)
        whole = keeps_whole(part.layout.size, self.comm, Exchange())
        objective = Objective(part, loader, self.comm, l2=self.l2, l1=l1, whole=whole)
        start = np.empty(part.layout.size, part.dtype)
        for (weights, biases), (own, own_biases) in ((model.layers_of(w), part.layers_of(start)),):
            own[0][:] = weights[0][features]
            for bias, other in zip(own_biases, biases, strict=True):
                bias[:] = other
        run = bind(objective, solver, start)
        state, iterations = run.state, 0
        while not state.met and state.stop_reason is None and iterations < solver.max_iter:
            state.step()
            iterations += 1
        found = np.zeros_like(w)
        for (weights, biases), (own, own_biases) in ((model.layers_of(found), part.layers_of(run.w)),):
            weights[0][features] = own[0]
            for bias, other in zip(biases, own_biases, strict=True):
                bias[:] = other
        self.comm.barrier()  # others may still read parameters that a node has once
        return found, state, iterations

    def _reduced(self, features: Array) -> ShardedDataset:
        """This rank's rows with these ``features`` alone."""
        loader, shard = self.objective.loader, self.shard
        parts: list[Any] = [batch.rows.columns(features) for batch in loader.sequential()]
        if loader.sparse:
            x: Any = join([part for part in parts if isinstance(part, SparseRows)], len(features), loader.dtype)
        else:
            x = np.concatenate(parts) if parts else np.empty((0, len(features)), loader.dtype)
        return ShardedDataset(
            Dataset(x, self._y, self._weight),
            self._counts,
            self.comm.rank,
            "local",
            replace(shard.labels, features=len(features), words=False),
            name=shard.name,
            summed_weight=None if self._weight is None else loader.total_weight,
        )
