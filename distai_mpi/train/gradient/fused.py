"""Stochastic gradient descent in steps of few rows, many of them in one compiled loop, on the ranks of one node.

A step of one row takes less time than Python needs to ask for it, or than ranks need to pass each other's slices of
the parameters.  So each rank has parameters of its own, and applies the factors of all rows to all of them (Xie et al.
2016, see `FactorGradients`): all ranks come to the same numbers, and synchronize once a step in place of twice.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...comm import SHARING, Exchange
from ...data import Batch, Loader, StepRows
from ...models import Sums, Together
from ...objective import Objective
from ...optim import SGD, Constant, FirstOrder, Schedule
from .base import Gradients
from .factors import FactorGradients

Array = Any
# Up to so many rows of a global batch, on several ranks and on one, and bytes of parameters, which every rank works
# through.  Nets 784-128-10 and 784-1024-10 were faster than by plain steps, on 2 ranks of 2 cores for 2, 4, 8 and 16
# rows 5.3, 4.6, 2.0, 1.2 and 7.3, 4.4, 3.0, 1.7 times where half of the inputs were zero, 2.5, 1.3, 0.9, 0.6 and 2.0,
# 2.3, 2.0, 1.2 times where none was; the first on 1 rank for 1, 2, 4, 8 rows 6.2, 3.8, 2.2, 1.5 and 3.1, 1.9, 1.3, 0.7.
MOST_ROWS, MOST_ROWS_ALONE, MOST_BYTES = 8, 4, 8 << 20


class FusedSteps:
    """Steps on full global batches of few rows; making one is collective.

    Args:
        objective: its model has ``sgd_step``.

    Attributes:
        run_rows: rows of all ranks that one call takes: enough to hide Python, few enough to show progress.
        usable: whether the ranks share what they have to; alike on all of them.
        publishes: whether all ranks have all parameters after `take`; here each has written its slice.
    """

    run_rows = 256
    publishes = False

    def __init__(self, objective: Objective) -> None:
        comm, model, size = objective.comm, objective.model, objective.loader.global_batch_size
        layers, width = shape = model.row_shape  # type: ignore[attr-defined]
        self._objective, self._single, self.usable = objective, comm.size == 1, True
        if self._single:
            self._together = Together.alone(size, shape, model.dtype)
            return
        self._local, self._carry = objective.empty(shared=False), objective.empty(shared=False)
        self._carries = comm.empty(model.layout.size, model.dtype, one_copy=True)  # the owners', for all to read
        indices = comm.empty(2 * size * layers * width, np.int32, one_copy=True)
        factors = comm.empty(4 * size * layers * width, model.dtype, one_copy=True)
        self.usable = comm.can_synchronize and all(comm.shares(x) for x in (self._carries, indices, factors))
        starts = np.array([*(objective.loader.range_of(rank)[0] for rank in range(comm.size)), size])
        rows = objective.loader.rows_of_step(comm.rank)
        nbytes = (size - rows) * model.factor_size * model.dtype.itemsize  # type: ignore[attr-defined]
        self._together = Together(
            indices.reshape(2, size, layers, width),
            factors.reshape(2, size, 2, layers, width),
            starts,
            lambda advance: comm.synchronize(advance, nbytes),
            rows,
        )

    def warm_up(self, scratch: Array, state: dict[str, Any], batch: Batch) -> None:
        """Compile what `take` needs for batches like this one, by no step at all; local."""
        model: Any = self._objective.model
        w, kept = (scratch, self._kept(state["carry"])) if self._single else (self._local, self._carry)
        model.sgd_step(w, batch.take(slice(0)), 0.0, self._objective.l2, kept, self._together, 0)

    def _kept(self, carry: Array) -> Array | None:
        """``carry``, but for the classic method, a row a step on one rank, None: there speed is worth more."""
        return None if self._together.rows == 1 else carry

    def take(self, w: Array, w_next: Array, state: dict[str, Any], run: StepRows, rates: Array) -> Sums:
        """Take the steps of ``run`` from ``w``, into this rank's slice of ``w_next``; return the sums of its rows.

        What rounding has taken from this rank's slice is in ``state``, and is changed.  The learning rate is that of
        the first step for all.  Collective.
        """
        carry, rate, batch, steps = state["carry"], float(rates[0]), run.batch, run.steps
        objective, mine = self._objective, self._objective.mine
        model: Any = objective.model
        if self._single:
            w_next[:] = w
            return model.sgd_step(w_next, batch, rate, objective.l2, self._kept(carry), self._together, steps)
        self._local[:] = w
        self._carries[mine] = carry
        objective.comm.barrier()
        self._carry[:] = self._carries
        sums = model.sgd_step(self._local, batch, rate, objective.l2, self._carry, self._together, steps)
        w_next[mine], carry[:] = self._local[mine], self._carry[mine]
        return sums


def make_fused(
    objective: Objective,
    optimizer: FirstOrder,
    gradients: Gradients,
    schedule: Schedule,
    clip_norm: float | None,
    asked: Exchange,
) -> FusedSteps | None:
    """Fused steps where they are the plain ones to rounding, and small; collective.

    Ranks share nothing where another algorithm than theirs was ``asked`` for.
    """
    if not (type(optimizer) is SGD and type(schedule) is Constant and clip_norm is None):
        return None
    if objective.abilities.fused is None or objective.loader.sparse:
        return None
    if not _few(objective.loader) or not _small(objective):
        return None
    if objective.comm.size > 1:
        name = asked.algorithm or objective.comm.default_algorithm
        sharded = isinstance(gradients, FactorGradients) and not objective.owners.replicated
        if not sharded or name not in ("auto", *SHARING):
            return None
    fused = FusedSteps(objective)
    return fused if fused.usable else None


def _few(loader: Loader) -> bool:
    """Whether rows, of weight 1 on average, are few in a step, and steps are ranges of one order."""
    shard, size = loader.shard, loader.global_batch_size
    ordered = shard.shuffle == "global" or loader.ranks == size == 1
    most = min(MOST_ROWS_ALONE if loader.ranks == 1 else MOST_ROWS, shard.rows)
    ordered &= loader.stored is None  # else rows come by blocks
    return ordered and loader.device.compiled and shard.total_weight == shard.rows and size <= most


def _small(objective: Objective) -> bool:
    """Whether parameters, and what ranks show each other of their rows, are short."""
    model: Any = objective.model
    layers, width = model.row_shape
    itemsize = model.dtype.itemsize
    shown = 2 * objective.loader.global_batch_size * layers * width * (4 + 2 * itemsize)
    return max(model.layout.size * itemsize, shown) <= MOST_BYTES
