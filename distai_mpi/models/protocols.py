"""What a model may offer beyond `Model`: each ability is a protocol, asked for once, when a run is bound.

An ability that says how the gradient is made, or used, counts only where one class gives a model both it and
``loss_and_grad``: who overrides or wraps that one alone means something else by it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ..data import Batch, LabelSummary
from .base import Model, Number, Sums, Together
from .curvature import Linearization
from .losses import Loss
from .split import SupportsSplit
from .stages import SupportsStages

Array = Any


@runtime_checkable
class SupportsDataCheck(Protocol):
    """Tells before any pass whether rows fit it."""

    def check_data(self, labels: LabelSummary) -> None:
        """Raise `DataError` unless rows with these ``labels`` and so many features fit the model."""
        ...


@runtime_checkable
class SupportsScore(Protocol):
    """Gives loss and right answers in one pass."""

    def score(self, w: Array, batch: Batch) -> tuple[Sums, Number]:
        """As ``loss``, and the weight of the rows whose label is predicted; nan if it predicts no labels."""
        ...


@runtime_checkable
class SupportsOutputs(Protocol):
    """Shows the margins or logits that its loss is a function of."""

    loss_function: Loss
    widths: tuple[int, ...]

    def outputs(self, w: Array, x: Array) -> Array:
        """Outputs of the rows of ``x``, shape (rows, widths[-1]); hold until the next call."""
        ...


@runtime_checkable
class SupportsThreads(Protocol):
    """May compute with several threads."""

    def limit_threads(self, threads: int) -> None:
        """Hear how many the rank may use."""
        ...


@runtime_checkable
class SupportsSparse(Protocol):
    """Computes with any `data.rows.Rows` as ``batch.x`` (``takes_sparse`` is true); else that is an array."""

    takes_sparse: bool


@runtime_checkable
class SupportsOverlap(Protocol):
    """Its gradient may travel before it is whole: ``loss_and_grad`` takes ``on_ready``, None or a function.

    It calls ``on_ready(start, stop)`` as soon as grad[start:stop] has its final value, for ranges that cover the vector
    once, also where there are no rows.  ``tells_ready`` is true.
    """

    tells_ready: bool


@runtime_checkable
class SupportsFactors(Protocol):
    """The sufficient factors of rows in place of their gradient, and the gradient from them; see `models.factors`."""

    @property
    def factor_size(self) -> int:
        """Numbers in the factors of one row."""
        ...

    def loss_and_factors(self, w: Array, batch: Batch, factors: Array) -> Sums:
        """As ``loss_and_grad``, but write the factors of the rows to the beginning of ``factors``."""
        ...

    def grad_of_factors(self, sources: Sequence[tuple[Array, int]], start: int, stop: int, out: Array) -> None:
        """Elements ``start`` to ``stop - 1`` of the gradient of all rows of ``sources``, (factors, rows) of ranks."""
        ...


@runtime_checkable
class SupportsFusedSteps(SupportsFactors, Protocol):
    """Takes steps of plain SGD of few rows in one call, in place; see `DenseModel.sgd_step`."""

    @property
    def row_shape(self) -> tuple[int, int]:
        """(layers, width) of what ranks that take steps together show each other of a row."""
        ...

    def sgd_step(
        self,
        w: Array,
        batch: Batch,
        rate: float,
        l2: float = 0.0,
        carry: Array | None = None,
        together: Together | None = None,
        steps: int | None = None,
    ) -> Sums:
        """Take ``steps`` steps; return the sums of this rank's rows, of each before its step."""
        ...


@runtime_checkable
class SupportsColumns(Protocol):
    """Of sparse rows it gives the gradient as index-value pairs, where ``touches_columns`` is true.

    Column j stands for the parameters j · outputs to (j + 1) · outputs - 1, see `DenseModel.loss_and_pairs`; with one
    output it takes steps, see `DenseModel.column_steps`.
    """

    touches_columns: bool
    widths: tuple[int, ...]

    def loss_and_pairs(
        self, w: Array, batch: Batch, columns: Array, sums: Array, slots: Array, factor: float = 1.0
    ) -> tuple[Sums, int]:
        """As ``loss_and_grad``, and how many pairs were written to ``columns`` and ``sums``."""
        ...

    def column_steps(
        self, w: Array, batch: Batch, ends: Array, scales: Array, rates: Array, l2: float, update: Any, pairs: Any
    ) -> Sums:
        """Take steps in one call; return the sums of their rows, of each before its step."""
        ...


@runtime_checkable
class SupportsTouches(Protocol):
    """Tells which parameters rows touch: those that they read, and in which gradient and curvature may not be 0."""

    def mark_touched(self, batch: Batch, marks: Array) -> None:
        """Let ``marks``, shape (layout.size,), be 1 where the rows of ``batch`` touch a parameter; in place."""
        ...


@runtime_checkable
class SupportsCurvature(Protocol):
    """Keeps of a pass what products with the curvature need."""

    def linearize(
        self, w: Array, batch: Batch, grad: Array, old: Linearization | None = None
    ) -> tuple[Sums, Linearization]:
        """As ``loss_and_grad``, and the linearization at ``w``; ``old``, of the same rows, lends its arrays."""
        ...


@runtime_checkable
class SupportsLinear(SupportsCurvature, SupportsOutputs, Protocol):
    """A linear model (``is_linear`` is true): its linearizations give the Hessian's diagonal and matrix.

    Where ``has_margins`` is true they give values along lines too: see `curvature.MarginRows`.
    """

    is_linear: bool
    bias: bool

    @property
    def has_margins(self) -> bool:
        """Whether there is one output."""
        ...

    def layers_of(self, flat: Array, absent: Sequence[Array] = ()) -> tuple[list[Array], list[Array]]:
        """Matrices and biases inside ``flat``, one each; ``absent`` in place of biases where there are none."""
        ...


@runtime_checkable
class SupportsHessian(Protocol):
    """Gives products with its Hessian, and keeps nothing for them."""

    def curvature_at(self, w: Array, batch: Batch) -> Callable[[Array, Array], None]:
        """A function ``product(v, out)``: out ← the Hessian of the batch's sum of losses, times v."""
        ...


@dataclass(frozen=True)
class Abilities:
    """What one model can do; None, or False, stands for what it cannot.

    Attributes:
        sparse: whether batches may be of sparse rows; else these are handed out densely.
        predicts: whether ``predict`` works; a model says ``can_predict = False`` where it does not.
        labels: whether it gives labels where targets are whole numbers; else it says ``tells_labels = False``.
        on_devices: whether it can be trained on a GPU.
        warm_up: whether passes are compiled at their first call; else the model says ``needs_warm_up = False``.
        target_dtype: of ``batch.y``; None: int64 of whole numbers, else the model's dtype.
    """

    data_check: SupportsDataCheck | None
    score: SupportsScore | None
    outputs: SupportsOutputs | None
    threads: SupportsThreads | None
    overlap: bool
    factors: SupportsFactors | None
    fused: SupportsFusedSteps | None
    columns: SupportsColumns | None
    touches: SupportsTouches | None
    curvature: SupportsCurvature | None
    linear: SupportsLinear | None
    hessian: SupportsHessian | None
    split: SupportsSplit | None
    stages: SupportsStages | None
    sparse: bool
    predicts: bool
    labels: bool
    on_devices: bool
    warm_up: bool
    target_dtype: np.dtype | None

    @classmethod
    def of(cls, model: Model) -> Abilities:
        """The abilities of ``model``."""

        def has(protocol: Any, *names: str) -> Any:
            whole = not names or defined_together(model, "loss_and_grad", *names)
            return model if whole and all(hasattr(model, name) for name in members(protocol)) else None

        def says(name: str, default: Any) -> Any:
            return getattr(model, name, default)

        factors = ("loss_and_factors", "grad_of_factors")
        linear = has(SupportsLinear, "linearize")
        columns = has(SupportsColumns, "loss_and_pairs", "column_steps")
        dtype = says("target_dtype", None)
        return cls(
            data_check=has(SupportsDataCheck),
            score=has(SupportsScore),
            outputs=has(SupportsOutputs),
            threads=has(SupportsThreads),
            overlap=bool(has(SupportsOverlap, "tells_ready") and says("tells_ready", False)),
            factors=has(SupportsFactors, *factors),
            fused=has(SupportsFusedSteps, "sgd_step", "row_shape", *factors),
            columns=columns if columns is not None and columns.touches_columns else None,
            touches=has(SupportsTouches, "mark_touched"),
            curvature=has(SupportsCurvature, "linearize"),
            linear=linear if linear is not None and linear.is_linear else None,
            hessian=has(SupportsHessian),
            split=has(SupportsSplit),
            stages=has(SupportsStages),
            sparse=bool(has(SupportsSparse, "takes_sparse") and says("takes_sparse", False)),
            predicts=says("can_predict", True),
            labels=says("tells_labels", True),
            on_devices=says("on_devices", False),
            warm_up=says("needs_warm_up", True),
            target_dtype=None if dtype is None else np.dtype(dtype),
        )

    @property
    def loss(self) -> Loss | None:
        """The loss, where it is one of known form."""
        return None if self.outputs is None else self.outputs.loss_function

    @property
    def margins(self) -> bool:
        """Whether values along a line follow from margins."""
        return self.linear is not None and self.linear.has_margins


def members(protocol: type) -> set[str]:
    """The names that a class must have to fit ``protocol``; `isinstance` looks past a ``__getattr__`` from 3.12 on."""
    found = [{*vars(kind), *vars(kind).get("__annotations__", ())} for kind in protocol.__mro__]
    return {name for names in found[:-2] for name in names if not name.startswith("_")}


def defined_together(model: Any, *names: str) -> bool:
    """Whether one class gives ``model`` all of these.

    Who overrides or wraps one of them means it to be used, and knows nothing of the others.
    """
    owners = [next((kind for kind in type(model).__mro__ if name in vars(kind)), None) for name in names]
    return owners[0] is not None and len(set(owners)) == 1 and not set(names) & set(vars(model))
