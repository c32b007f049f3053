"""What a step is: one gradient of all ranks together, or each rank's own step and now and then the average."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np

from ..backend import device_of, number
from ..data import Batch
from ..models import Sums
from ..objective import Objective, square
from ..optim import FirstOrder, ParameterAveraging

Array = Any


class Steps(Protocol):
    """The parameters of a run, the state of its optimizer, and how a global batch changes them.

    ``owned`` and ``private`` are all that has to be kept to go on later: nested dictionaries of arrays, which may
    be written to in place, and of numbers.  After such a change `restored` makes the rest follow.

    Attributes:
        gradient_norm: Euclidean norm of the last step's gradient of the objective, before clipping; nan where
            nobody asked for it.
    """

    gradient_norm: float

    @property
    def w(self) -> Array:
        """The parameters, shape (layout.size,), replicated; read-only."""
        ...

    @property
    def owned(self) -> dict[str, Any]:
        """State that lies in slices over the ranks: arrays of the owned slice's shape, and numbers alike on all."""
        ...

    @property
    def private(self) -> dict[str, Any]:
        """State that every rank has for itself."""
        ...

    def step(self, rows: int, weight: float, batches: Iterable[Batch], factor: float) -> Sums:
        """Take one step from a global batch; return this rank's sums of losses before it.

        The batch has ``rows`` rows of the expected total weight ``weight``; ``batches`` are this rank's.
        ``factor`` multiplies the learning rate.
        """
        ...

    def close_epoch(self) -> None:
        """Bring ``w`` up to date at the end of an epoch; collective."""
        ...

    def restored(self) -> None:
        """Make ``w`` follow from ``owned`` after it was written to; collective."""
        ...


class SynchronousSteps:
    """w → loss_and_grad → reduce_scatter → optimizer on the owned slice → allgather → w

    The owned slice goes into a second buffer, and the two are swapped when it is whole: until
    the step after the next, whoever holds ``w`` sees no half-updated parameters.

    Args:
        objective: what is minimised.
        optimizer: the method.
        start: the first parameters, shape (layout.size,), the same on every rank.
        clip_norm: gradients longer than this are shortened to it; None: they are not.
        measures_norm: whether somebody wants ``gradient_norm``.
    """

    def __init__(
        self,
        objective: Objective,
        optimizer: FirstOrder,
        start: Array,
        *,
        clip_norm: float | None = None,
        measures_norm: bool = False,
    ) -> None:
        layout = objective.model.layout
        self.objective, self.optimizer, self.clip_norm = objective, optimizer, clip_norm
        self._w = objective.empty()
        self._w_next = objective.empty()
        self._grad = objective.empty()
        _put(start, self._w)
        mine = objective.mine
        self.state = optimizer.init(self._w[mine], layout.decay_ranges(mine.start, mine.stop))
        self.gradient_norm = math.nan
        self._measures_norm = measures_norm or clip_norm is not None

    @property
    def w(self) -> Array:
        """See `Steps`."""
        return _read_only(self._w)

    @property
    def owned(self) -> dict[str, Any]:
        """See `Steps`."""
        return {"w": self._w[self.objective.mine], "optimizer": self.state}

    @property
    def private(self) -> dict[str, Any]:
        """See `Steps`."""
        return {}

    def step(self, rows: int, weight: float, batches: Iterable[Batch], factor: float) -> Sums:
        """See `Steps`."""
        objective, mine = self.objective, self.objective.mine
        sums = objective.sums_and_grad(self.w, batches, self._grad)
        owned = objective.reduce_grad(self._w, self._grad, weight)
        if self._measures_norm:
            self.gradient_norm = objective.norm(owned)
            _clip(owned, self.gradient_norm, self.clip_norm)
        self.optimizer.step(self._w[mine], owned, self.state, out=self._w_next[mine], factor=factor)
        objective.comm.allgather(self._w_next, objective.owners, objective.algorithm)
        self._w, self._w_next = self._w_next, self._w
        return sums

    def fused(self, batch: Batch, factor: float) -> Sums:
        """One-sample steps over the rows of ``batch`` in turn, fused by the model."""
        rate = factor * self.optimizer.lr
        return self.objective.model.sgd_step(self._w, batch, rate, self.objective.l2)  # type: ignore[attr-defined]

    def close_epoch(self) -> None:
        """See `Steps`: ``w`` is up to date after every step."""

    def restored(self) -> None:
        """See `Steps`."""
        self.objective.comm.allgather(self._w, self.objective.owners, self.objective.algorithm)

    def warm_up(self, row: Batch, fuses: bool) -> None:
        """Compile everything that a step on rows like the one of ``row`` needs; changes scratch arrays alone."""
        objective, scratch = self.objective, self._w_next
        objective.sums_and_grad(self.w, [row], self._grad)
        if fuses:
            scratch[:] = self._w
            objective.model.sgd_step(scratch, row, self.optimizer.lr, objective.l2)  # type: ignore[attr-defined]
        _warm_up(self.optimizer, scratch, self._grad)


class AveragingSteps:
    """Every rank trains parameters of its own on its own rows; now and then their weighted mean becomes ``w``.

    Between two averages nothing is exchanged, and ``w`` stays what it was after the last one.

    Args:
        objective: what is minimised.
        method: the inner and the outer method, and how often.
        start: the first parameters, shape (layout.size,), the same on every rank.
        clip_norm: a rank's own gradients longer than this are shortened to it; None: they are not.
    """

    def __init__(
        self, objective: Objective, method: ParameterAveraging, start: Array, *, clip_norm: float | None = None
    ) -> None:
        layout = objective.model.layout
        self.objective, self.method, self.clip_norm = objective, method, clip_norm
        self._w = objective.empty()
        self._w_next = objective.empty()
        self._grad = objective.empty(shared=False)
        self._local = objective.empty(shared=False)
        _put(start, self._w)
        self._local[:] = self._w
        self._decay = layout.decay_ranges(0, layout.size)
        mine = objective.mine
        self.state = method.outer.init(self._w[mine], layout.decay_ranges(mine.start, mine.stop))
        self.inner_state = method.inner.init(self._local, self._decay)
        self.since = {"steps": 0, "rows": 0}  # since the last average: steps, and rows of this rank
        self.gradient_norm = math.nan

    @property
    def w(self) -> Array:
        """See `Steps`: the last average."""
        return _read_only(self._w)

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
        if own:
            objective.local_grad(self._local, self._grad, weight * own / rows)
            if self.clip_norm is not None:
                _clip(self._grad, math.sqrt(number(square(self._grad))), self.clip_norm)
            self.method.inner.step(self._local, self._grad, self.inner_state, factor=factor)
        self.since["steps"] += 1
        if self.since["steps"] == self.method.sync_every:
            self._average()
        return sums

    def _counted(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self.since["rows"] += len(batch.x)
            yield batch

    def _average(self) -> None:
        """The outer step; collective."""
        objective, comm, mine = self.objective, self.objective.comm, self.objective.mine
        total = comm.sum([self.since["rows"]])[0]
        share = self._grad.dtype.type(self.since["rows"] / total)
        self._grad[:] = self._w
        self._grad -= self._local
        self._grad *= share
        owned = comm.reduce_scatter(self._grad, objective.owners, objective.algorithm)
        self.method.outer.step(self._w[mine], owned, self.state, out=self._w_next[mine])
        comm.allgather(self._w_next, objective.owners, objective.algorithm)
        self._w, self._w_next = self._w_next, self._w
        self._local[:] = self._w
        if not self.method.keep_state:
            self.inner_state = self.method.inner.init(self._local, self._decay)
        self.since.update(steps=0, rows=0)

    def close_epoch(self) -> None:
        """See `Steps`: what ranks have learned since the last average counts too."""
        if self.since["steps"]:
            self._average()

    def restored(self) -> None:
        """See `Steps`."""
        self.objective.comm.allgather(self._w, self.objective.owners, self.objective.algorithm)

    def warm_up(self, row: Batch, fuses: bool) -> None:
        """Compile everything that a step on rows like the one of ``row`` needs; changes scratch arrays alone."""
        self.objective.sums_and_grad(self.w, [row], self._grad)
        for method in (self.method.inner, self.method.outer):
            _warm_up(method, self._w_next, self._grad)


def _warm_up(optimizer: FirstOrder, w: Array, grad: Array) -> None:
    optimizer.step(w[:0], grad[:0], optimizer.init(w[:0]), out=w[:0])


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
