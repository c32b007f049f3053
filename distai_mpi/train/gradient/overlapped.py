"""Gradients that travel between nodes while the backward pass goes on (wait-free backpropagation)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ...backend import HOST
from ...comm.exchange import overlap
from ...data import Batch
from ...models import Sums
from ...objective import Objective
from ...settings import called
from .base import most_rows
from .dense import DenseGradients

Array = Any
TRIALS = 3  # gradients that are timed each way
GAIN = 1.05  # times faster that overlap must be


class OverlappedGradients(DenseGradients):
    """As `DenseGradients`, but between nodes layers travel as soon as the backward pass has finished them.

    The model's ``loss_and_grad`` tells what is ready.  Parameters change when all ranks' gradients are whole, as ever:
    the result is the same to rounding, and on two nodes, where nothing travels as float16, to the last bit.

    Args:
        objective: what is minimised.
        wanted: whether to; None: where measurements of `prepare` find it faster.

    Attributes:
        overlaps: whether they do; not before `prepare`.
    """

    def __init__(self, objective: Objective, wanted: bool | None) -> None:
        super().__init__(objective)
        self.overlaps = False
        self._wanted = wanted
        self._sums: overlap.OverlappedReduction | None = None

    def local(self, w: Array, batches: Iterable[Batch]) -> Sums:
        """See `Gradients.local`; all rows are one Batch."""
        if not self.overlaps:
            return super().local(w, batches)
        assert self._sums is not None
        sums, grad = None, self._grad
        try:
            for batch in batches:
                assert sums is None, "overlap is for steps of one batch"
                sums = self._objective.model.loss_and_grad(w, batch, grad, on_ready=self._sums.ready)  # type: ignore[call-arg]
        except BaseException:
            self._sums.give_up()
            raise
        if sums is None:
            grad[:] = 0
        return sums or Sums(0.0, 0.0)

    def parts(self, w: Array, weight: float) -> Iterator[slice]:
        """See `Gradients.parts`."""
        if not self.overlaps:
            yield from super().parts(w, weight)
            return
        assert self._sums is not None
        self._sums.finish()
        whole = slice(0, self.owned.size)
        self._objective.mean_grad(self.owned, w, weight, whole)
        yield whole

    def prepare(self, w: Array, batch: Batch) -> None:
        """Choose whether to overlap, by gradients of ``batch`` at ``w`` made either way; collective."""
        objective, ranges = self._objective, []
        objective.model.loss_and_grad(w, batch, self._grad, on_ready=lambda *span: ranges.append(span))  # type: ignore[call-arg]
        self._sums = overlap.overlapped(objective.exchange, self._grad, ranges)
        if self._sums is not None and self._wanted is None:
            self.overlaps = self._is_faster(w, batch)
        else:
            self.overlaps = self._sums is not None
            super().prepare(w, batch)
        self.most_rows = objective.loader.block_rows if self.overlaps else None

    def _is_faster(self, w: Array, batch: Batch) -> bool:
        """Whether the slowest rank gains by overlap; the same on all ranks."""
        seconds = np.array([[self._seconds(w, batch, on) for on in (False, True)] for _ in range(1 + TRIALS)])
        medians = np.median(seconds[1:], axis=0)  # the first ones connect ranks, and compile
        plain, overlapped = np.max(self._objective.comm.allgather_object(medians), axis=0)
        return bool(plain >= GAIN * overlapped)

    def _seconds(self, w: Array, batch: Batch, on: bool) -> float:
        self.overlaps = on
        self._objective.comm.barrier()  # nobody reads the last gradient any more
        start = time.perf_counter()
        self.local(w, [batch])
        for _ in self.parts(w, 1.0):
            pass
        return time.perf_counter() - start


def find_obstacle(objective: Objective) -> str | None:
    """Why gradients cannot overlap with the backward pass; None where they can, the same on all ranks.  Collective."""
    loader = objective.loader
    if loader.device is not HOST:
        return "overlap is for the CPU"
    if objective.exchange.name != "hierarchical":
        return (
            f"overlap is for {called('algorithm', '--allreduce')} hierarchical or auto, not {objective.exchange.name}"
        )
    if not objective.abilities.overlap:
        return "this model does not tell which parts of its gradient are ready"
    if most_rows(objective) > loader.block_rows:
        return f"a rank takes more than {loader.block_rows:,} rows a step, which are several batches"
    return overlap.find_obstacle(objective.comm)
