"""Stochastic gradient descent in steps of few rows, many of them in one compiled loop, on the ranks of one node.

A step of one row takes less time than Python needs to ask for it, or than ranks need to pass each other's slices of
the parameters.  So each rank has parameters of its own, and applies the factors of all rows to all of them (Xie et al.
2016, see `gradients.FactorGradients`): all ranks come to the same numbers, and meet once a step in place of twice.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..comm import SHARING
from ..data import Batch, Loader
from ..models import Sums, Together
from ..objective import Objective
from ..optim import SGD, Constant, FirstOrder, Schedule
from .gradients import FactorGradients, Gradients, defined_together

Array = Any
# Up to so many rows of a global batch, and bytes of parameters, which every rank works through.  On 2 ranks and 2 cores
# nets 784-128-10 to 784-2048-10 were 2.1 to 6.7 times as fast as by plain steps, for 2 to 16 rows; on 1 rank 2 to 13.
MOST_ROWS, MOST_BYTES = 16, 8 << 20


class FusedSteps:
    """Steps on full global batches, each of at most `MOST_ROWS` rows; making one is collective.

    Args:
        objective: its model has ``sgd_step``.
    """

    def __init__(self, objective: Objective) -> None:
        comm, model, size = objective.comm, objective.model, objective.loader.global_batch_size
        layers, width = shape = model.row_shape  # type: ignore[attr-defined]
        self._objective, self._local = objective, None
        if comm.size == 1:
            self._together = Together.alone(size, shape, model.dtype)
            return
        self._local = objective.empty(shared=False)
        indices = comm.empty(2 * size * layers * width, np.int32, once=True).reshape(2, size, layers, width)
        factors = comm.empty(4 * size * layers * width, model.dtype, once=True).reshape(2, size, 2, layers, width)
        starts = np.array([*(objective.loader.stretch_of(rank)[0] for rank in range(comm.size)), size])
        nbytes = (size - objective.loader.rows_of_step(comm.rank)) * model.factor_size * model.dtype.itemsize  # type: ignore[attr-defined]
        self._together = Together(indices, factors, starts, lambda advance: comm.meet(advance, nbytes))

    def take(self, w: Array, w_next: Array, rate: float, batch: Batch, steps: int) -> Sums:
        """Take ``steps`` steps from ``w``, of which ``w_next`` gets this rank's slice (on one rank both are the same).

        ``batch`` has this rank's rows of all these steps; returns the sums of their losses.  Collective.
        """
        objective = self._objective
        model: Any = objective.model
        if self._local is None:
            return model.sgd_step(w, batch, rate, objective.l2, self._together, steps)
        self._local[:] = w
        sums = model.sgd_step(self._local, batch, rate, objective.l2, self._together, steps)
        w_next[objective.mine] = self._local[objective.mine]
        return sums


def make_fused(
    objective: Objective,
    optimizer: FirstOrder,
    gradients: Gradients,
    schedule: Schedule,
    clip_norm: float | None,
    algorithm: str | None,
) -> FusedSteps | None:
    """Fused steps where they are the plain ones to rounding, and faster; collective.

    ``algorithm`` is what was asked for: ranks share nothing where another than theirs was.
    """
    model, comm = objective.model, objective.comm
    if not (type(optimizer) is SGD and isinstance(schedule, Constant) and clip_norm is None):
        return None
    if not defined_together(model, "loss_and_grad", "sgd_step") or not _fit(objective.loader):
        return None
    if comm.size > 1:
        asked = algorithm or comm.default_algorithm
        small = model.layout.size * model.dtype.itemsize <= MOST_BYTES
        if not (isinstance(gradients, FactorGradients) and small and asked in ("auto", *SHARING)):
            return None
    fused = FusedSteps(objective)
    return fused if comm.size == 1 or comm.meets else None


def _fit(loader: Loader) -> bool:
    """Whether rows are on the host, have no weights, and are few in a step that is a stretch of one order."""
    share, size = loader.share, loader.global_batch_size
    ordered = share.shuffle == "global" or loader.ranks == size == 1
    return (
        ordered and loader.device.compiled and share.total_weight == share.rows and size <= min(MOST_ROWS, share.rows)
    )
