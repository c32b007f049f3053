"""The part of an MLP that one rank of a tensor-parallel group holds: a part of each of its layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data import Batch, LabelSummary
from ..data.rows import rows_of
from .base import Number, Sums
from .mlp_part import ByLayer, MLPPart
from .split import COLUMN, ROW

if TYPE_CHECKING:
    from .factors import Factors

Array = Any


class SplitMLP(MLPPart):
    """Part ``rank`` of ``whole``; see `split.PartOfModel`.

    Args:
        whole, rank, shares: see `MLPPart`.

    Raises:
        ConfigError: a layer has too few units for so many parts.
    """

    can_predict = True
    needs_warm_up = True

    def __init__(self, whole: Any, rank: int, shares: Sequence[float]) -> None:
        super().__init__(whole, 0, whole.layers, rank, shares)
        self.target_dtype, self.dropout = whole.target_dtype, whole.dropout
        self._table = self._factor_table()
        self._factors: Factors | None = None

    @property
    def takes_sparse(self) -> bool:
        """See `SupportsSparse`."""
        return self.whole.takes_sparse

    def _factor_table(self) -> Array:
        """See `kernels.factors`: biases of row-parallel layers, which are parts, are layers without inputs there."""
        slots = {slot.name: slot for slot in self.layout.slots}
        table = []
        for i, kind in self.kinds.items():
            matrix, bias = slots[f"layer{i + 1}.weight"], slots.get(f"layer{i + 1}.bias")
            start = -1 if bias is None else bias.start
            table.append((*matrix.shape, matrix.start, start if kind == COLUMN else -1))
            if kind == ROW and bias is not None:
                table.append((0, bias.shape[0], bias.start, bias.start))
        return np.array(table)

    @property
    def flops_per_row(self) -> int:
        """As `DenseModel.flops_per_row`, of this part."""
        products = [slot.shape[0] * slot.shape[1] for slot in self.layout.slots if len(slot.shape) == 2]
        return 6 * sum(products) - 2 * products[0]

    def check_data(self, labels: LabelSummary) -> None:
        """See `DenseModel.check_data`."""
        self.whole.check_data(labels)

    def limit_threads(self, threads: int) -> None:
        """See `DenseModel.limit_threads`."""

    # --- passes

    def loss_and_grad(self, w: Array, batch: Batch, grad: Array) -> Sums:
        """As `DenseModel.loss_and_grad`, of this part's parameters; collective over the parts' ranks."""
        inputs, slopes = self._kept_arrays(batch, None, 0)
        deltas = self._deltas(len(batch.y))
        weight_grads, bias_grads = self._arrays(grad)

        def finish(i: int) -> None:
            if i == 0:
                batch.rows.t_dot(deltas[0], out=weight_grads[0])
            else:
                np.dot(inputs[i].T, deltas[i], out=weight_grads[i])
            if self.whole.bias:
                np.add.reduce(self._own_columns(i, deltas[i]), axis=0, out=bias_grads[i])

        return self._sweep(w, batch, inputs, deltas, slopes, finish)

    @property
    def factor_size(self) -> int:
        """Numbers in the sufficient factors of one row of this part; see `models.factors`."""
        return int(self._table[:, :2].sum())

    def loss_and_factors(self, w: Array, batch: Batch, factors: Array) -> Sums:
        """See `DenseModel.loss_and_factors`."""
        inputs, deltas = self._factor_space().views(factors, len(batch.y))
        matrices = [number for number, row in enumerate(self._table) if row[0]]
        batch.rows.fill(inputs[matrices[0]])

        def finish(i: int) -> None:
            of_bias = matrices[i] + 1
            if self.kinds[i] == ROW and self.whole.bias:
                deltas[of_bias][:] = self._own_columns(i, deltas[matrices[i]])

        by_layer = [{i: views[number] for i, number in enumerate(matrices)} for views in (inputs, deltas)]
        _, slopes = self._kept_arrays(batch, None, 0)
        return self._sweep(w, batch, by_layer[0], by_layer[1], slopes, finish)

    def grad_of_factors(self, sources: Sequence[tuple[Array, int]], start: int, stop: int, out: Array) -> None:
        """See `DenseModel.grad_of_factors`."""
        self._factor_space().grad(sources, start, stop, out)

    def _sweep(
        self,
        w: Array,
        batch: Batch,
        inputs: ByLayer,
        deltas: ByLayer,
        slopes: ByLayer,
        finish: Callable[[int], None],
    ) -> Sums:
        """Forward and backward pass into the layers' ``inputs``, but the first, and ``deltas``, gradients by outputs.

        ``finish(i)`` is called, from the last layer to the first, as soon as those of layer i have their final values.
        """
        matrices, biases = self._arrays(w)
        last = self._last
        self._forward_all(matrices, biases, batch, inputs, slopes)
        sums = self._losses(matrices[last], biases[last], batch, inputs[last], deltas[last])
        for i in reversed(self.span):
            finish(i)
            if i > 0:
                self._backward(i, matrices[i], slopes[i - 1], deltas)
        return sums

    # --- answers

    def outputs(self, w: Array, x: Array) -> Array:
        """Outputs of the whole model for the rows of ``x``, shape (rows, outputs), until the next call; collective."""
        rows = rows_of(x).shape[0]
        return self.forward(w, Batch(x, np.empty(rows, np.int64), None, None, 0, train=False), None, 0)

    def loss(self, w: Array, batch: Batch) -> Sums:
        """See `DenseModel.loss`; collective."""
        return self.score(w, batch)[0]

    def score(self, w: Array, batch: Batch) -> tuple[Sums, Number]:
        """See `DenseModel.score`; collective."""
        return self.whole.score_outputs(self.outputs(w, batch.x), batch)

    def predict(self, w: Array, x: Array) -> Array:
        """The whole model's answers; collective."""
        return self.loss_function.predict(self.outputs(w, x))

    def _factor_space(self) -> Factors:
        if self._factors is None:
            from .factors import Factors  # loads Numba

            self._factors = Factors(self._table, self.dtype)
        return self._factors

    def __getstate__(self) -> dict[str, Any]:
        """See `MLPPart`."""
        return super().__getstate__() | {"_factors": None}
