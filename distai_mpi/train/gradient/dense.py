"""Gradients that every rank makes whole, of its own rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ...data import Batch
from ...models import Sums
from ...objective import Objective
from .base import Gradients

Array = Any


class DenseGradients(Gradients):
    """Each rank makes the whole gradient of its rows; their sum is scattered over the ranks."""

    def __init__(self, objective: Objective) -> None:
        self._objective, self._grad = objective, objective.empty()
        self.owned = self._grad[objective.mine]

    def local(self, w: Array, batches: Iterable[Batch]) -> Sums:
        """See `Gradients.local`."""
        return self._objective.sums_and_grad(w, batches, self._grad)

    def parts(self, w: Array, weight: float) -> Iterator[slice]:
        """See `Gradients.parts`."""
        return self._objective.reduce_grad_parts(w, self._grad, weight)
