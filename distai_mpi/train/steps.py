"""What a step is: one gradient of all ranks together, or each rank's own step and now and then the average."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ..backend import device_of
from ..data import Batch, StepRows
from ..models import Sums
from ..objective import Objective
from ..optim import Elementwise, FirstOrder, LocalSGD
from ..trace import PUBLISH, REDUCE, UPDATE
from .gradient.base import Gradients
from .gradient.dense import DenseGradients
from .gradient.fused import FusedSteps
from .gradient.sparse import SparseSteps

Array = Any


class Steps(ABC):
    """The parameters of a run, the state of its optimizer, and how a global batch changes them.

    ``owned`` and ``private`` are all that has to be kept to go on later: nested dictionaries of arrays, which may
    be written to in place, and of numbers.  After such a change `restored` makes the rest follow.

    Parameters that change are written to a second buffer, and the two are swapped when it is whole: until the
    change after the next, whoever holds ``w`` sees no half-updated ones.

    Args:
        objective: what is minimised.
        start: the first parameters, shape (layout.size,), the same on every rank.
        clip_norm: gradients longer than this are shortened to it; None: they are not.

    Attributes:
        fused: what takes many small steps at once, by `take`; None: nothing does.
        gradient_norm: Euclidean norm of the last step's gradient of the objective, before clipping; nan where
            nobody asked for it.
    """

    fused: FusedSteps | SparseSteps | None = None
    gradient_norm = math.nan

    def __init__(self, objective: Objective, start: Array, clip_norm: float | None) -> None:
        self.objective, self.clip_norm = objective, clip_norm
        self._w, self._w_next = objective.empty(one_copy=True), objective.empty(one_copy=True)
        _put(start, self._w)

    @property
    def w(self) -> Array:
        """The parameters, shape (layout.size,), replicated; read-only."""
        return _read_only(self._w)

    @property
    @abstractmethod
    def owned(self) -> dict[str, Any]:
        """State that lies in slices over the ranks: arrays of the owned slice's shape, and numbers alike on all."""

    @property
    def private(self) -> dict[str, Any]:
        """State that every rank has for itself."""
        return {}

    @abstractmethod
    def step(self, rows: int, weight: float, batches: Iterable[Batch], factor: float) -> Sums:
        """Take one step from a global batch; return this rank's sums of losses before it.

        The batch has ``rows`` rows of the expected total weight ``weight``; ``batches`` are this rank's.
        ``factor`` multiplies the learning rate.
        """

    def take(self, run: StepRows, factors: Array) -> Sums:
        """Take fused steps from this rank's rows of all of them; return its sums of losses before each.

        ``factors``, float64, shape (steps,), multiply the learning rate.
        """
        raise NotImplementedError

    def close_epoch(self) -> None:  # noqa: B027 - mostly it is, after every step
        """Bring ``w`` up to date at the end of an epoch; collective."""

    @abstractmethod
    def warm_up(self, batch: Batch) -> None:
        """Compile everything that a step on batches like this one needs; changes scratch arrays alone."""

    @abstractmethod
    def settle(self, batch: Batch) -> None:
        """Exchange a gradient as steps on batches like this one do, and choose how; changes scratch; collective."""

    def restored(self) -> None:
        """Make ``w`` follow from ``owned`` after it was written to; collective."""
        self._spread(self._w)

    def _spread(self, w: Array) -> None:
        """Let all ranks have the owned slices of ``w``, exactly; collective."""
        self.objective.mark(PUBLISH)
        self.objective.exchange.publish(w, self.objective.owners)

    def _publish(self) -> None:
        """Let all ranks have the owned slices of the second buffer, and swap the two; collective."""
        objective = self.objective
        objective.mark(PUBLISH)
        objective.exchange.publish(self._w_next, objective.owners, self._w)
        self._w, self._w_next = self._w_next, self._w


class SynchronousSteps(Steps):
    """w → loss and gradient → owned slice of its sum → optimizer → allgather → w

    Args:
        objective, start, clip_norm: see `Steps`.
        optimizer: the method.
        gradients: how gradients are exchanged; None: whole.
        fused: takes small steps in place of `step`, to the same result.
        measures_norm: whether somebody wants ``gradient_norm``.

    Attributes:
        timed: whether somebody wants ``local_seconds``.
        local_seconds: what this rank's rows of the last step took to be gathered and worked through, without waiting.
    """

    timed = False
    local_seconds = 0.0

    def __init__(
        self,
        objective: Objective,
        optimizer: FirstOrder,
        start: Array,
        *,
        gradients: Gradients | None = None,
        fused: FusedSteps | SparseSteps | None = None,
        clip_norm: float | None = None,
        measures_norm: bool = False,
    ) -> None:
        super().__init__(objective, start, clip_norm)
        mine, layout = objective.mine, objective.model.layout
        self.optimizer, self.gradients, self.fused = optimizer, gradients or DenseGradients(objective), fused
        self.state = optimizer.init(self._w[mine], layout.decay_ranges(mine.start, mine.stop))
        self._measures_norm = measures_norm or clip_norm is not None
        # who overrides `step` means it to be taken
        self._in_parts = isinstance(optimizer, Elementwise) and type(optimizer).step is Elementwise.step

    @property
    def owned(self) -> dict[str, Any]:
        """See `Steps`."""
        return {"w": self._w[self.objective.mine], "optimizer": self.state}

    def step(self, rows: int, weight: float, batches: Iterable[Batch], factor: float) -> Sums:
        """See `Steps`."""
        objective, mine = self.objective, self.objective.mine
        began = time.perf_counter()
        sums = self.gradients.local(self.w, batches)
        if self.timed:
            objective.device.synchronize()
            self.local_seconds = time.perf_counter() - began
        w, grad, w_next = self._w[mine], self.gradients.owned, self._w_next[mine]
        parts = self.gradients.parts(self._w, weight)
        if objective.everyone.recorder is not None:
            parts = self._marked(parts)
        if self._measures_norm or not self._in_parts:
            for _ in parts:
                pass
            if self._measures_norm:
                self.gradient_norm = objective.norm(grad)
                _clip(grad, self.gradient_norm, self.clip_norm)
            self.optimizer.step(w, grad, self.state, out=w_next, factor=factor)
        else:
            optimizer: Any = self.optimizer
            optimizer.advance(self.state)
            for part in parts:
                optimizer.update(w, grad, self.state, w_next, factor, part)
        self._publish()
        return sums

    def _marked(self, parts: Iterator[slice]) -> Iterator[slice]:
        """``parts``, of which a recorder hears when they are made and when they are used."""
        objective, size = self.objective, self.gradients.owned.size
        objective.mark(REDUCE)
        for part in parts:
            objective.mark(UPDATE)
            yield part
            if part.stop < size:
                objective.mark(REDUCE)
        if size == 0:
            objective.mark(UPDATE)

    def take(self, run: StepRows, factors: Array) -> Sums:
        """See `Steps`."""
        assert self.fused is not None
        sums = self.fused.take(self._w, self._w_next, self.state, run, self.optimizer.lr * factors)
        if self.fused.publishes:
            self._w, self._w_next = self._w_next, self._w
        else:
            self._publish()
        return sums

    def warm_up(self, batch: Batch) -> None:
        """See `Steps`."""
        self.gradients.local(self.w, [batch])
        if self.fused is not None:
            self.fused.warm_up(self._w_next, self.state, batch)
        _warm_up(self.optimizer, self._w_next, self.gradients.owned)

    def settle(self, batch: Batch) -> None:
        """See `Steps`."""
        self.gradients.prepare(self.w, batch)


class AveragingSteps(Steps):
    """Every rank trains parameters of its own on its own rows; now and then their weighted mean becomes ``w``.

    Between two averages nothing is exchanged, and ``w`` stays what it was after the last one.

    Args:
        objective, start: see `Steps`.
        method: the inner and the outer method, and how often.
        clip_norm: a rank's own gradients longer than this are shortened to it; None: they are not.
    """

    def __init__(self, objective: Objective, method: LocalSGD, start: Array, *, clip_norm: float | None = None) -> None:
        super().__init__(objective, start, clip_norm)
        mine, layout = objective.mine, objective.model.layout
        self.method = method
        self._grad, self._local = objective.empty(), objective.empty(shared=False)
        self._local[:] = self._w
        self.state = method.outer.init(self._w[mine], layout.decay_ranges(mine.start, mine.stop))
        self.inner_state = method.inner.init(self._local, layout.decay_ranges(0, layout.size))
        self.since = {"steps": 0, "rows": 0}  # since the last average: steps, and rows of this rank

    @property
    def owned(self) -> dict[str, Any]:
        """See `Steps`."""
        return {"w": self._w[self.objective.mine], "outer": self.state}

    @property
    def private(self) -> dict[str, Any]:
        """See `Steps`."""
        return {"local": self._local, "inner": self.inner_state, "since": self.since}

    def step(self, rows: int, weight: float, batches: Iterable[Batch], factor: float) -> Sums:
        """See `Steps`: this rank's own step, from the mean over its own rows of the batch (none: no step)."""
        objective, before = self.objective, self.since["rows"]
        sums = objective.sums_and_grad(_read_only(self._local), self._counted(batches), self._grad)
        own = self.since["rows"] - before
        objective.mark(UPDATE)
        if own:
            objective.local_grad(self._local, self._grad, weight * own / rows)
            if self.clip_norm is not None:
                _clip(self._grad, objective.norm_of_copy(self._grad), self.clip_norm)
            self.method.inner.step(self._local, self._grad, self.inner_state, factor=factor)
        self.since["steps"] += 1
        if self.since["steps"] == self.method.sync_every:
            self._average()
        return sums

    def _counted(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self.since["rows"] += len(batch.y)
            yield batch

    def _average(self) -> None:
        """The outer step; collective."""
        objective, comm, mine = self.objective, self.objective.comm, self.objective.mine
        total = comm.sum([self.since["rows"]])[0]
        fraction = self._grad.dtype.type(self.since["rows"] / total)
        self._grad[:] = self._w
        self._grad -= self._local
        self._grad *= fraction
        objective.mark(REDUCE)
        self._reduce()
        objective.mark(UPDATE)
        self.method.outer.step(self._w[mine], self._grad[mine], self.state, out=self._w_next[mine])
        self._publish()
        self._local[:] = self._w
        if not self.method.keep_state:
            _reset(self.inner_state)
        self.since.update(steps=0, rows=0)

    def _reduce(self) -> None:
        """Sum the scratch gradient over the ranks, each its slice; collective."""
        for _ in self.objective.exchange.reduce(self._grad, self.objective.owners):
            pass

    def close_epoch(self) -> None:
        """See `Steps`: what ranks have learned since the last average counts too."""
        if self.since["steps"]:
            self._average()

    def warm_up(self, batch: Batch) -> None:
        """See `Steps`."""
        self.objective.sums_and_grad(self.w, [batch], self._grad)
        for method in (self.method.inner, self.method.outer):
            _warm_up(method, self._w_next, self._grad)

    def settle(self, batch: Batch) -> None:
        """See `Steps`."""
        self._reduce()


def _warm_up(optimizer: FirstOrder, w: Array, grad: Array) -> None:
    optimizer.step(w[:0], grad[:0], optimizer.init(w[:0]), out=w[:0])


def _reset(state: dict[str, Any]) -> None:
    """Set a first-order method's state to what it begins with, zeros, in the memory that it has."""
    for name, value in state.items():
        if isinstance(value, int):
            state[name] = 0
        elif not isinstance(value, tuple):
            value[:] = 0


def _clip(grad: Array, norm: float, most: float | None) -> None:
    """Scale ``grad``, whose Euclidean norm over all slices is ``norm``, down to the norm ``most``.

    Pascanu, Mikolov & Bengio 2013, "On the difficulty of training recurrent neural networks", algorithm 1.
    """
    if most is not None and norm > most:
        grad *= grad.dtype.type(most / norm)


def _put(start: Array, w: Array) -> None:
    """Copy the parameters ``start``, which are on the host, to ``w``."""
    device_of(w).put(np.ascontiguousarray(start, w.dtype), w)


def _read_only(w: Array) -> Array:
    return device_of(w).read_only(w)
