"""Models that are cut between their layers into stages, which ranks hold one after another: what a stage offers.

Huang et al. 2019, "GPipe: Efficient Training of Giant Neural Networks using Pipeline Parallelism", section 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from ..data import Batch
from ..params import Layout
from .base import Number, Sums
from .losses import Loss
from .split import ActivationSums, Piece

Array = Any


class LayerCost(NamedTuple):
    """What a layer takes beside time, which is measured, by which cuts between layers are chosen.

    Attributes:
        parameters: how many there are.
        kept: numbers that are kept of a row from the forward to the backward pass.
        outputs: numbers of a row that the next layer takes.
    """

    parameters: int
    kept: int
    outputs: int


class Stage(Protocol):
    """Layers of a model, or one rank's part of each of them: passes over micro-batches.

    Several micro-batches are on their way at once; ``kept`` numbers from 0 up tell apart what is kept of them, and one
    is used again as soon as its micro-batch has been through `backward`.

    Attributes:
        layout, dtype: of this rank's parameters.
        pieces: where its slots lie in the whole model's, one for each slot.
    """

    layout: Layout
    dtype: np.dtype
    pieces: tuple[Piece, ...]

    def join(self, sums: ActivationSums) -> None:
        """Be given what the ranks that hold parts of the same layers exchange by, before the first pass."""
        ...

    def init(self, rng: np.random.Generator) -> Array:
        """This rank's part of the whole model's starting parameters, shape (layout.size,)."""
        ...

    def forward(self, w: Array, batch: Batch, x: Array, kept: int) -> Array:
        """Outputs of its last layer for the rows of ``batch``, shape (rows, outputs), alike on the ranks of all parts.

        ``x``, of such a shape, are the outputs of the layer before, None on the first stage, which takes the batch's
        rows.  Both hold until `backward`; what is returned until the next call.  Called again with the same arguments,
        it gives the same numbers: so activations are recomputed.  Of the last layer these are the model's outputs.
        """
        ...

    def losses(self, w: Array, batch: Batch, x: Array, kept: int) -> Sums:
        """As `forward`, on the stage that has the last layer: the sums of losses of the batch's rows."""
        ...

    def backward(self, w: Array, batch: Batch, x: Array, kept: int, delta: Array, grad: Array) -> Array | None:
        """Add to ``grad``, shape (layout.size,), the gradient of the sum of losses over the batch's rows.

        ``delta`` is the loss's derivative by the outputs that `forward` gave, None after `losses`; it may be
        overwritten.  Returns that by ``x``, until the next call; None on the first stage.
        """
        ...


@runtime_checkable
class SupportsStages(Protocol):
    """Can be cut between its layers into stages, for ranks that hold one each; `MLP` is such a model.

    Besides it is a `Model`, and shows ``loss_function`` and ``widths``, of which the last is the number of outputs, as
    `protocols.SupportsOutputs` says.
    """

    loss_function: Loss
    widths: tuple[int, ...]

    def layer_costs(self) -> Sequence[LayerCost]:
        """Of each layer, as far as cuts matter: there may be a stage for each, and not more."""
        ...

    def stage(self, first: int, stop: int, rank: int, shares: Sequence[float]) -> Stage:
        """Layers ``first`` to ``stop`` - 1; of each, part number ``rank`` of len(shares), as `SupportsSplit.split`.

        The pieces of all stages' parts together are the whole model's slots, each element once.

        Raises:
            ConfigError: the layers cannot be shared out in this way.
        """
        ...

    def score_outputs(self, outputs: Array, batch: Batch) -> tuple[Sums, Number]:
        """Sums of losses, and the weight of the rows whose label is predicted, from the ``outputs`` of the rows."""
        ...
