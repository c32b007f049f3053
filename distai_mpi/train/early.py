"""Gradients that start to travel between nodes while the backward pass goes on."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ..backend import HOST
from ..comm import early as sums_of
from ..data import Batch
from ..errors import ConfigError
from ..models import Sums
from ..objective import Objective
from .gradients import WholeGradients, most_rows

Array = Any
TRIALS = 3  # gradients that are timed each way
GAIN = 1.05  # times faster that an early start must be


class EarlyGradients(WholeGradients):
    """As `WholeGradients`, but between nodes layers travel as soon as the backward pass has finished them.

    The model's ``loss_and_grad`` tells what is ready.  Parameters change when all ranks' gradients are whole, as ever:
    the result is the same to rounding, and on two nodes, where nothing travels as float16, to the last bit.

    Args:
        objective: what is minimised.
        wanted: whether to; None: where measurements of `settle` find it faster.

    Attributes:
        early: whether gradients start early; not before `settle`.
    """

    def __init__(self, objective: Objective, wanted: bool | None) -> None:
        super().__init__(objective)
        self.early = False
        self._wanted = wanted
        self._sums: sums_of.EarlySums | None = None

    def local(self, w: Array, batches: Iterable[Batch]) -> Sums:
        """See `Gradients.local`; all rows are one Batch."""
        if not self.early:
            return super().local(w, batches)
        assert self._sums is not None
        sums, grad = None, self._grad
        try:
            for batch in batches:
                assert sums is None, "an early start is for steps of one batch"
                sums = self._objective.model.loss_and_grad(w, batch, grad, on_ready=self._sums.ready)  # type: ignore[call-arg]
        except BaseException:
            self._sums.give_up()
            raise
        if sums is None:
            grad[:] = 0
        return sums or Sums(0.0, 0.0)

    def parts(self, w: Array, weight: float) -> Iterator[slice]:
        """See `Gradients.parts`."""
        if not self.early:
            yield from super().parts(w, weight)
            return
        assert self._sums is not None
        self._sums.finish()
        whole = slice(0, self.owned.size)
        self._objective.mean_grad(self.owned, w, weight, whole)
        yield whole

    def settle(self, w: Array, batch: Batch) -> None:
        """Choose whether to start early, by gradients of ``batch`` at ``w`` made either way; collective."""
        objective, stretches = self._objective, []
        objective.model.loss_and_grad(w, batch, self._grad, on_ready=lambda *stretch: stretches.append(stretch))  # type: ignore[call-arg]
        self._sums = sums_of.early_sums(objective.comm, self._grad, stretches, objective.half is not None)
        if self._sums is not None and self._wanted is None:
            self.early = self._is_faster(w, batch)
        else:
            self.early = self._sums is not None
            super().settle(w, batch)

    def _is_faster(self, w: Array, batch: Batch) -> bool:
        """Whether the slowest rank gains by an early start; the same on all ranks."""
        seconds = np.array([[self._seconds(w, batch, on) for on in (False, True)] for _ in range(1 + TRIALS)])
        medians = np.median(seconds[1:], axis=0)  # the first ones connect ranks, and compile
        plain, early = np.max(self._objective.comm.allgather_object(medians), axis=0)
        return bool(plain >= GAIN * early)

    def _seconds(self, w: Array, batch: Batch, on: bool) -> float:
        self.early = on
        self._objective.comm.barrier()  # nobody reads the last gradient any more
        start = time.perf_counter()
        self.local(w, [batch])
        for _ in self.parts(w, 1.0):
            pass
        return time.perf_counter() - start


def make_whole(objective: Objective, early: bool | None) -> WholeGradients:
    """Whole gradients, which start to travel early if ``early``, or if that is None and it is faster; collective.

    On one node nothing travels, and nothing starts early.

    Raises:
        ConfigError: they are to start early, and cannot.
    """
    if early is False or len(objective.comm.leaders) == 1:
        return WholeGradients(objective)
    obstacle = find_obstacle(objective)
    if early and obstacle:
        raise ConfigError(f"--early: {obstacle}; leave it out")
    return WholeGradients(objective) if obstacle else EarlyGradients(objective, early)


def find_obstacle(objective: Objective) -> str | None:
    """Why gradients cannot start to travel early; None where they can, the same on all ranks.  Collective."""
    loader = objective.loader
    if loader.device is not HOST:
        return "an early start is for the CPU"
    if objective.algorithm != "hierarchical":
        return f"an early start is for --allreduce hierarchical or auto, not {objective.algorithm}"
    if not objective.abilities.overlap:
        return "this model does not tell which parts of its gradient are ready"
    if most_rows(objective) > loader.block_rows:
        return f"a rank takes more than {loader.block_rows:,} rows a step, which are several batches"
    return sums_of.find_obstacle(objective.comm)
