"""What the rows of a batch keep of a model at w, so that products with its curvature need no second forward pass.

The curvature is the Gauss-Newton matrix Σ weight · Jᵀ (∂²loss/∂z²) J, J the derivative of a row's outputs z by the
parameters (Schraudolph 2002, "Fast curvature matrix-vector products for second-order gradient descent", section 3).
It is never indefinite; of linear models it is the Hessian.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from ..data import Batch
from ..data.rows import blocks
from .losses import PointLoss
from .passes import curved_by_margins, curved_by_outputs, read_only

Array = Any
# Of few features, blocks of the matrix for two classes are cheaper all at once, in twice the operations: 5,000 rows
# with 100 classes took 13 ms in place of 270 with 3 features, 20,000 with 3 classes 126 ms in place of 63 with 200.
NARROW = 32


class Linearization(Protocol):
    """A model at w on the rows of one batch; local to the rank.

    Sums over the rows are not divided by anything; the penalty is not in them.
    """

    def product(self, w: Array, batch: Batch, v: Array, out: Array) -> None:
        """out ← curvature · v; all of shape (layout.size,), ``w`` and ``batch`` those of the linearization."""
        ...


class HessianRows:
    """Of a model that has ``curvature_at`` (see `adapters`): nothing is kept; products are those with its Hessian."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def product(self, w: Array, batch: Batch, v: Array, out: Array) -> None:
        """See `Linearization`."""
        self.model.curvature_at(w, batch)(v, out)


class MarginRows:
    """Of a linear model with one output: the margins, and the second derivatives of the losses by them.

    Args:
        loss: of the margins.
        features: width of the input.
        bias: whether the last parameter is one.
        threads: see `passes.by_margins`.

    Attributes:
        margin, curvature: shape (rows,), in the model's dtype; weights of rows are in the curvature.
        y, weight: copies of the batch's; ``weight`` is empty where it has none.
    """

    def __init__(self, loss: PointLoss, features: int, bias: bool, batch: Batch, threads: int = 1) -> None:
        rows, dtype = len(batch.y), batch.rows.dtype
        self.loss, self.features, self.bias, self.threads = loss, features, bias, threads
        self.margin, self.curvature = np.empty(rows, dtype), np.empty(rows, dtype)
        self.y, self.weight = batch.y.copy(), copy_of_weights(batch)

    def product(self, w: Array, batch: Batch, v: Array, out: Array) -> None:
        """See `Linearization`."""
        curved_by_margins(self.loss, batch, self.curvature, v, out, self.threads)

    def line(self, other: MarginRows, t: float) -> tuple[float, float]:
        """(loss, slope) of the rows at the fraction ``t`` of the way to ``other``, and its derivative by ``t``."""
        from .kernels.linear import margins

        return margins(self.loss).line(self.margin, other.margin - self.margin, t, *read_only(self.y, self.weight))

    def add_diagonal(self, batch: Batch, out: Array) -> None:
        """Add the diagonal of the curvature to ``out``, float64, shape (layout.size,)."""
        diagonal = np.empty(self.features, batch.rows.dtype)
        batch.rows.squares(self.curvature, diagonal)
        out[: self.features] += diagonal
        if self.bias:
            out[self.features] += self.curvature.sum(dtype=np.float64)

    def add_matrix(self, batch: Batch, out: Array, dtype: Any = None) -> None:
        """Add the curvature to ``out``, float64, shape (layout.size, layout.size).

        Products are summed in ``dtype``, or where it is None in that of x.
        """
        batch.rows.scaled_gram(np.sqrt(self.curvature), self.bias, out, dtype)


class LayerRows:
    """Of a net: the inputs of its layers, slopes of its units, and derivatives of the losses by the outputs.

    Attributes:
        inputs: of every layer but the first, whose input is the batch's x; shape (rows, units).
        slopes: derivatives of hidden units by their arguments, like ``inputs``.
        delta: derivatives of the weighted losses by the outputs, shape (rows, outputs).
        curvature: of a loss of one output the weighted second derivatives, shape (rows,); empty for the softmax, of
            which they follow from ``delta``, see `kernels.curvature`.
    """

    def __init__(self, model: Any, batch: Batch) -> None:
        rows, dtype = len(batch.y), batch.rows.dtype
        self.model = model
        self.inputs = [np.empty((rows, width), dtype) for width in model.widths[1:-1]]
        self.slopes = [np.empty_like(one) for one in self.inputs]
        self.delta = np.empty((rows, model.widths[-1]), dtype)
        self.curvature = np.empty(0 if model.loss_function.several else rows, dtype)
        self.y = batch.y.copy()
        self.weight = copy_of_weights(batch)

    def product(self, w: Array, batch: Batch, v: Array, out: Array) -> None:
        """See `Linearization`: forward with derivatives along ``v``, through the loss, and back."""
        from .kernels.curvature import curve

        weights, _ = self.model.layers_of(w)
        ways, bias_ways = self.model.layers_of(v)
        outs, bias_outs = self.model.layers_of(out)
        rows, last = batch.rows, len(self.inputs)
        u: Array = None  # derivative of the layer's output along v, later of the loss by it
        for i in range(last + 1):
            z = rows.dot(ways[0]) if i == 0 else self.inputs[i - 1] @ ways[i]
            if i > 0:
                z += u @ weights[i]
            if bias_ways:
                z += bias_ways[i]
            u = z if i == last else np.multiply(z, self.slopes[i], out=z)
        if self.curvature.size:
            u *= self.curvature[:, None]
        else:
            curve(self.delta, self.y, self.weight, u)
        for i in reversed(range(last + 1)):
            if i > 0:
                np.dot(self.inputs[i - 1].T, u, out=outs[i])
            else:
                rows.t_dot(u, out=outs[0])
            if bias_outs:
                np.sum(u, axis=0, out=bias_outs[i])
            if i > 0:
                u = (u @ weights[i].T) * self.slopes[i - 1]


class SoftmaxRows:
    """Of softmax regression: first derivatives of the losses by the outputs, from which the second follow.

    They are weight · (diag(p) - p pᵀ) of a row, p the probabilities of the classes.

    Attributes:
        delta: derivatives of the weighted losses by the outputs, shape (rows, outputs).
    """

    def __init__(self, model: Any, batch: Batch) -> None:
        self.model = model
        self.delta = np.empty((len(batch.y), model.widths[-1]), batch.rows.dtype)
        self._u: Array = None  # scratch of products, like delta
        self.y = batch.y.copy()
        self.weight = copy_of_weights(batch)

    def product(self, w: Array, batch: Batch, v: Array, out: Array) -> None:
        """See `Linearization`; reads the rows once."""
        if self._u is None:
            self._u = np.empty_like(self.delta)
        nothing = np.zeros((2, self.delta.shape[1]), v.dtype)  # where the model has no biases
        (way,), (bias_way,) = self.model.layers_of(v, nothing[:1])
        (weight_out,), (bias_out,) = self.model.layers_of(out, nothing[1:])
        kept = self.weight, self.delta
        curved_by_outputs(batch, kept, way, bias_way, self._u, weight_out, bias_out, self.model.threads)

    def add_diagonal(self, batch: Batch, out: Array) -> None:
        """As `MarginRows.add_diagonal`."""
        weights, biases = self.model.layers_of(out)
        weight, p = self._probabilities()
        factors = (weight * p * (1.0 - p)).astype(batch.rows.dtype)
        squares = np.empty_like(weights[0])
        batch.rows.squares(factors, squares)
        weights[0] += squares
        for bias in biases:
            bias += factors.sum(axis=0, dtype=np.float64)

    def add_matrix(self, batch: Batch, out: Array, dtype: Any = None) -> None:
        """As `MarginRows.add_matrix`."""
        features, outputs = self.model.widths
        columns = features + self.model.bias
        tall = out.reshape(columns, outputs, columns, outputs)  # where parameters lie: layers_of says so
        weight, p = self._probabilities()
        narrow = features < NARROW
        if narrow:
            self._subtract_products(batch, np.sqrt(weight) * p, tall, dtype)
        block = np.empty((columns, columns))
        for k in range(outputs):
            for other in (k,) if narrow else range(k + 1):
                factor = p[:, other] if other < k else 1.0 - p[:, k]  # p - p² would lose figures
                scale = np.sqrt(weight[:, 0] * p[:, k] * factor).astype(dtype or batch.rows.dtype)
                block[:] = 0
                batch.rows.scaled_gram(scale, self.model.bias, block, dtype)
                if other < k:
                    tall[:, other, :, k] -= block
                    np.negative(block, out=block)
                tall[:, k, :, other] += block

    def _subtract_products(self, batch: Batch, roots: Array, tall: Array, dtype: Any) -> None:
        """Subtract the blocks of ``tall`` for different classes, all of them at once.

        ``roots``, shape (rows, outputs), are the factors whose products stand in these blocks.
        """
        from .kernels.curvature import row_products

        dtype = np.dtype(dtype or batch.rows.dtype)
        roots, size = roots.astype(dtype), tall.shape[0] * tall.shape[1]
        for part in blocks(len(roots), size, dtype.itemsize):
            few, a = batch.rows.take(part), np.empty((part.stop - part.start, size), dtype)
            x = np.empty(few.shape, few.dtype)
            few.fill(x)
            row_products(*read_only(x, roots[part]), a)
            square = np.dot(a.T, a).reshape(tall.shape)
            for k in range(roots.shape[1]):
                square[:, k, :, k] = 0
            tall -= square

    def _probabilities(self) -> tuple[Array, Array]:
        """Weights of the rows, shape (rows, 1), and probabilities of classes, (rows, outputs), float64.

        From ``delta``, as in `kernels.curvature`; of rows of weight 0 all probabilities are 0.
        """
        rows = len(self.y)
        weight = (self.weight if self.weight.size else np.ones(rows)).astype(np.float64)[:, None]
        p = np.divide(self.delta, weight, out=np.zeros(self.delta.shape), where=weight > 0)
        p[np.arange(rows), self.y] += weight[:, 0] > 0
        return weight, np.clip(p, 0.0, 1.0, out=p)


def copy_of_weights(batch: Batch) -> Array:
    """The weights of the rows, empty where all are 1."""
    return np.empty(0, batch.rows.dtype) if batch.weight is None else batch.weight.copy()
