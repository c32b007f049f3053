"""What a model is: a flat parameter vector, and weighted sums of losses and gradients over rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..data import Batch
from ..params import Layout

Array = Any  # numpy.ndarray, or on a GPU cupy.ndarray
Number = Any  # a float, or on a GPU an array of shape (): fetching it there would wait for all that was started


class Sums(NamedTuple):
    """Sums over the rows of a batch, local to the rank, in float64.

    On a GPU they stay there, as arrays of shape (), until `Communicator.sum` asks for them.

    Attributes:
        loss: Σ weight · loss.
        weight: Σ weight (the number of rows where rows carry no weights).
    """

    loss: Number
    weight: Number

    def __add__(self, other: tuple) -> Sums:
        return Sums(self.loss + other[0], self.weight + other[1])


class Together(NamedTuple):
    """Ranks that take steps of few rows together, each with parameters of its own; see `DenseModel.sgd_step`.

    Attributes:
        indices, factors: where they show each other the factors of their rows, the same memory for all of them: int32
            of shape (2, rows of a global batch, layers, width), and of the model's dtype (2, rows, 2, layers, width),
            where (layers, width) is the model's ``row_shape``.
        starts: the rows of a global batch that each rank takes begin here, int64, shape (ranks + 1,).
        meet: lets compiled code meet the other ranks, see `Communicator.meet`.
        rows: how many of a global batch are this rank's.
    """

    indices: Array
    factors: Array
    starts: Array
    meet: Callable[[Callable[..., tuple[int, bool]]], None]
    rows: int

    @classmethod
    def alone(cls, rows: int, row_shape: tuple[int, int], dtype: np.dtype) -> Together:
        """One rank that takes all ``rows`` of its global batches."""
        indices, factors = np.empty((2, rows, *row_shape), np.int32), np.empty((2, rows, 2, *row_shape), dtype)
        return cls(indices, factors, np.array([0, rows]), _meet_nobody, rows)


def _meet_nobody(advance: Callable[..., tuple[int, bool]]) -> None:
    advance(0, 0, 0, 0, 0)


class Model(Protocol):
    """The least that a model has to offer; a user's own class needs no base class.

    Losses and gradients are sums over the rows of the batch, times their weights, and never
    means: ranks hold different numbers of rows, and `Objective` divides by the global weight once.
    What more it can do is told by the protocols of `models.protocols`, by ``target_dtype``, the dtype of ``batch.y``
    (where it is absent, whole numbers come as int64 and others in ``dtype``), and by flags: see `protocols.Abilities`.
    Parameters are handed out read-only, but for ``sgd_step``.
    """

    layout: Layout
    dtype: np.dtype

    def init(self, rng: np.random.Generator) -> Array:
        """Starting parameters, shape (layout.size,); the same on every rank for the same ``rng`` state."""
        ...

    def loss_and_grad(self, w: Array, batch: Batch, grad: Array) -> Sums:
        """Overwrite ``grad``, shape (layout.size,), with the gradient of the sum of losses at ``w``."""
        ...

    def loss(self, w: Array, batch: Batch) -> Sums:
        """The sum of losses at ``w`` without dropout and the like."""
        ...

    def predict(self, w: Array, x: Array) -> Array:
        """Labels or values for the rows of ``x``, shape (rows, features)."""
        ...
