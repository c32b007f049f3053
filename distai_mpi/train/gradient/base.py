"""What all ways have in common by which gradients come to the ranks that own their slices."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

from ...data import Batch
from ...models import Sums
from ...objective import Objective

Array = Any


class Gradients(ABC):
    """Gradients of global batches, one after another.

    Attributes:
        owned: this rank's slice of the mean gradient, shape (owned,), where `parts` leaves it.
        overlaps: whether gradients start to travel before they are whole.
        most_rows: of a rank in a step; None: any number.
    """

    owned: Array
    overlaps = False
    most_rows: int | None = None

    def prepare(self, w: Array, batch: Batch) -> None:
        """Make a gradient of ``batch``, which is like a step's, at ``w``, and choose what is left to; collective.

        Before the first step, which then finds all compiled, and ranks connected.
        """
        self.local(w, [batch])
        for _ in self.parts(w, 1.0):
            pass

    @abstractmethod
    def local(self, w: Array, batches: Iterable[Batch]) -> Sums:
        """Work through this rank's rows of a global batch at ``w``; return its sums of losses.  Local."""

    @abstractmethod
    def parts(self, w: Array, weight: float) -> Iterator[slice]:
        """Make the owned slice of the gradient of the objective at ``w``, part by part as it is ready; collective.

        ``weight`` is that of the global batch.  Parts are counted from the slice's start, and all must be taken.
        Afterwards `local` must not be called before the ranks have met again, as they do to publish parameters.
        """


def most_rows(objective: Objective) -> int:
    """Most rows that any rank takes in a step."""
    loader = objective.loader
    return max(loader.rows_of_step(rank) for rank in range(objective.comm.size))
