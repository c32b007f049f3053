"""Linear models: x · weight + bias, with any loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..data import Batch
from ..data.rows import rows_of
from .base import Sums
from .curvature import Linearization, MarginRows, SoftmaxRows
from .dense import DenseModel
from .losses import Loss
from .passes import by_margins, by_outputs, read_only
from .workspace import Workspace

Array = Any


class LinearModel(DenseModel):
    """x · weight + bias, one output or one a class, with a loss.

    Args:
        features: width of the input.
        outputs: 1, or with softmax the number of classes.
        loss: see `DenseModel`; default: that of the class.
        bias, dtype: see `DenseModel`.
    """

    usual_loss = "squared"
    touches_columns = True
    is_linear = True  # the curvature is the Hessian (or what stands for it), and ``add_matrix`` gives it

    def __init__(
        self, features: int, outputs: int = 1, *, loss: str | Loss = "", bias: bool = True, dtype: Any = np.float32
    ) -> None:
        super().__init__((features, outputs), loss or self.usual_loss, bias=bias, dtype=dtype)
        self.threads = 1

    def limit_threads(self, threads: int) -> None:
        """Hear how many threads the rank may use; see `passes.by_margins`."""
        self.threads = threads

    @property
    def has_margins(self) -> bool:
        """Whether there is one output: values along a line then follow from margins."""
        return not self.loss_function.several

    def init(self, rng: np.random.Generator) -> Array:
        """Zeros, shape (layout.size,), replicated; ``rng`` is not used."""
        return np.zeros(self.layout.size, self.dtype)

    def _losses(self, space: Workspace, outputs: Array, batch: Batch) -> Sums:
        """See `DenseModel._losses`; of margins by a kernel that full-batch solvers compile anyway."""
        if space.xp is not np or not self.has_margins:
            return super()._losses(space, outputs, batch)
        from .kernels.linear import margins

        margin, weight = outputs[:, 0], space.no_weights if batch.weight is None else batch.weight
        value, _ = margins(self.loss_function).line(margin, margin, 0.0, *read_only(batch.y, weight))
        return Sums(value, space.total_weight(batch))

    def _keep_rows(self, batch: Batch) -> Linearization:
        if self.has_margins:
            return MarginRows(self.loss_function, self.widths[0], self.bias, batch, self.threads)  # type: ignore[arg-type]
        return SoftmaxRows(self, batch)

    def _pass(
        self, w: Array, batch: Batch, grad: Array, on_ready: Callable[[int, int], None] | None, kept: Any
    ) -> Sums:
        space = self._workspace(w)
        sums = self._on_host(space, w, batch, grad, kept) if space.xp is np else self._on_device(space, w, batch, grad)
        if on_ready is not None:
            on_ready(0, self.layout.size)
        return sums

    def _on_device(self, space: Workspace, w: Array, batch: Batch, grad: Array) -> Sums:
        (weight_grad,), (bias_grad,) = self.layers_of(grad, space.unused)
        delta = space.rows("a", 0, len(batch.y))
        sums = self._fill_factors(space, w, batch, [], [delta], bias_grad)
        batch.rows.t_dot(delta, out=weight_grad)
        return sums

    def _on_host(self, space: Workspace, w: Array, batch: Batch, grad: Array, kept: Any) -> Sums:
        """In one reading of the rows."""
        weight, loss = space.no_weights if batch.weight is None else batch.weight, self.loss_function
        if self.has_margins:
            arrays = (space.no_weights, space.no_weights) if kept is None else (kept.margin, kept.curvature)
            value = by_margins(loss, batch, weight, w, grad, arrays, self.threads)  # type: ignore[arg-type]
            return Sums(value, space.total_weight(batch))
        (weights,), (bias,) = self.layers_of(w, space.no_bias)
        (weight_grad,), (bias_grad,) = self.layers_of(grad, space.unused)
        z = space.rows("a", 0, len(batch.y)) if kept is None else kept.delta
        value = by_outputs(batch, weight, weights, bias, z, weight_grad, bias_grad, self.threads, space.residual)
        return Sums(value, space.total_weight(batch))

    def _fill_factors(
        self,
        space: Workspace,
        w: Array,
        batch: Batch,
        inputs: list[Array],
        deltas: list[Array],
        bias_grad: Array = None,
    ) -> Sums:
        (weights,), (bias,) = self.layers_of(w, space.no_bias)
        batch.rows.dot(weights, out=deltas[0])
        return self._residual(space, deltas[0], bias, batch, space.unused[0] if bias_grad is None else bias_grad)

    def outputs(self, w: Array, x: Array) -> Array:
        """See `DenseModel.outputs`."""
        space, rows = self._workspace(w), rows_of(x)
        (weights,), (bias,) = self.layers_of(w, space.no_bias)
        z = rows.dot(weights, out=space.rows("a", 0, rows.shape[0]))
        z += bias
        return z


class Linear(LinearModel):
    """Linear regression: squared loss."""


class Logistic(LinearModel):
    """Logistic regression on two classes: logistic loss."""

    usual_loss = "logistic"


class Softmax(LinearModel):
    """Multinomial logistic regression: cross-entropy of the softmax, labels 0 to outputs - 1."""

    usual_loss = "softmax"
