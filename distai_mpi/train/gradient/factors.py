"""Gradients that are exchanged as the factors of their rows, where rows are few."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ...backend import HOST
from ...data import Batch
from ...models import Sums
from ...objective import Objective
from ...params import Ownership
from ...params.ownership import ALIGNMENT
from .base import Gradients, most_rows

Array = Any
PART_BYTES = 256 << 10  # of the owned slice that is made, and then used, at once: it stays in the second-level cache


class FactorGradients(Gradients):
    """Ranks exchange their rows' sufficient factors, and make the slices they own from those of all rows.

    Xie et al. 2016, "Lighter-Communication Distributed Machine Learning via Sufficient Factor Broadcasting": where rows
    are few, factors are shorter than the gradient, and nobody makes the whole of it.  The node has one copy
    of the factors of all rows; otherwise they travel by messages.

    Args:
        objective: its model has factors.
        rows: most rows of a rank in a step, alike on all ranks.

    Attributes:
        shared: whether the node has one copy of the factors.
    """

    def __init__(self, objective: Objective, rows: int) -> None:
        comm, model, mine = objective.comm, objective.model, objective.mine
        self._objective, self._model = objective, model
        line = ALIGNMENT // model.dtype.itemsize
        stride = line * (1 + -(-rows * model.factor_size // line))  # type: ignore[attr-defined]
        self.most_rows = rows
        self.shared = shared = objective.exchange.name == "shared"
        self._algorithm = "shared" if shared else "native"
        self._all = comm.empty(comm.size * stride, model.dtype, shared, one_copy=shared)
        slices = [slice(rank * stride, (rank + 1) * stride) for rank in range(comm.size)]
        self._owners = Ownership(self._all.size, tuple(slices))
        self._counts = [self._all[s.start : s.start + 1] for s in slices]  # rows of each rank
        self._factors = [self._all[s.start + line : s.stop] for s in slices]
        self.owned = np.zeros(mine.stop - mine.start, model.dtype)

    def local(self, w: Array, batches: Iterable[Batch]) -> Sums:
        """See `Gradients.local`; all rows are one Batch."""
        rank, rows, sums = self._objective.comm.rank, 0, Sums(0.0, 0.0)
        for batch in batches:
            assert rows == 0, "factors are for steps of one batch"
            rows = len(batch.y)
            sums = self._model.loss_and_factors(w, batch, self._factors[rank])  # type: ignore[attr-defined]
        self._counts[rank][0] = rows
        return sums

    def parts(self, w: Array, weight: float) -> Iterator[slice]:
        """See `Gradients.parts`."""
        objective, owned = self._objective, self.owned
        objective.comm.allgather(self._all, self._owners, self._algorithm)
        sources = [(flat, int(count[0])) for flat, count in zip(self._factors, self._counts, strict=True)]
        first, step = objective.mine.start, PART_BYTES // owned.itemsize
        for start in range(0, owned.size, step):
            part = slice(start, min(start + step, owned.size))
            self._model.grad_of_factors(sources, first + part.start, first + part.stop, owned[part])  # type: ignore[attr-defined]
            objective.mean_grad(owned, w, weight, part)
            yield part


def find_obstacle(objective: Objective) -> str | None:
    """Why factors cannot be exchanged; None where they can, the same on all ranks."""
    loader = objective.loader
    if objective.abilities.factors is None:
        return "this model's gradient has no factors"
    if loader.device is not HOST:
        return "factors are for the CPU"
    if loader.sparse:
        return "factors would hold the rows densely, which are sparse"
    if most_rows(objective) > loader.block_rows:
        return (
            f"a rank takes {most_rows(objective):,} rows a step, which above {loader.block_rows:,} are several batches"
        )
    return None


def are_shorter(objective: Objective) -> bool:
    """Whether the factors of a global batch are shorter than what the ranks exchange of its gradient.

    On one node a rank reads the other ranks' factors, (N - 1)/N of all, in place of its slice of their gradients,
    (N - 1)/N of a vector's length.  Between K nodes either travels: factors to K - 1 nodes, gradients to the owners of
    slices and parameters back, 2 (K - 1)/K of that length; as float16 numbers half as much.
    """
    model = objective.model
    exchanged = 1 if len(objective.comm.leaders) == 1 or objective.exchange.dtype is not None else 2
    return objective.loader.global_batch_size * model.factor_size < exchanged * model.layout.size  # type: ignore[attr-defined]
