"""The multi-layer perceptron: dense layers with an activation between them, and a loss at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data import Batch
from ..data.rows import rows_of
from ..data.streams import GOLDEN, MASK
from ..errors import ConfigError
from .base import Sums
from .curvature import LayerRows
from .dense import ALWAYS_KEEP, DenseModel
from .losses import Loss
from .workspace import Workspace

if TYPE_CHECKING:
    from .mlp_part import MLPPart
    from .split_mlp import SplitMLP
    from .stages import LayerCost

Array = Any
DRAWN = 1 << 18  # numbers of a matrix that are drawn at once
ACTIVATIONS = {"relu": 0, "tanh": 1, "gelu": 2}  # codes of kernels.cpu


class MLP(DenseModel):
    """Multi-layer perceptron: features → hidden → ... → outputs.

    The default is the MNIST network 784 → 128 (relu, dropout 0.2) → 10 for ``MLP(784, 10)``.

    Args:
        features: width of the input.
        outputs: width of the output: the number of classes, or 1 with a loss of one output.
        hidden: widths of the hidden layers.
        activation: of the hidden layers: ``relu``, ``tanh`` or ``gelu`` (Hendrycks & Gimpel 2016,
            in its tanh form).
        dropout: probability that a hidden unit is dropped in training; kept ones are scaled up
            by 1 / (1 - dropout) (Srivastava et al. 2014, section 10, "inverted").
        bias, dtype, loss: see `DenseModel`.
    """

    is_linear = has_margins = False

    def __init__(
        self,
        features: int,
        outputs: int,
        hidden: tuple[int, ...] = (128,),
        *,
        activation: str = "relu",
        dropout: float = 0.2,
        bias: bool = True,
        dtype: Any = np.float32,
        loss: str | Loss = "softmax",
    ) -> None:
        if activation not in ACTIVATIONS:
            raise ConfigError(f"unknown activation {activation!r}: choose one of {', '.join(ACTIVATIONS)}")
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout {dropout} must be at least 0 and below 1")
        if not hidden:
            raise ConfigError("an mlp needs at least one hidden layer: a model without any is softmax")
        super().__init__((features, *hidden, outputs), loss, bias=bias, dtype=dtype)
        self.activation, self.dropout, self.code = activation, dropout, ACTIVATIONS[activation]

    def init(self, rng: np.random.Generator) -> Array:
        """Starting parameters, shape (layout.size,), replicated; biases are 0.

        Hidden layers under relu and gelu: uniform, variance 1 / (3 fan_in) (He et al. 2015, equation 15
        with slope √5, PyTorch's choice).  Under tanh: uniform, variance 2 / (fan_in + fan_out) (Glorot & Bengio
        2010, equation 16).  The output layer: a tenth of the latter's range, so that training
        starts with classes that are equally likely; that, and the smaller of the two common variances for
        hidden layers, gave MNIST 0.1 % more test accuracy after 5 and after 15 epochs.
        """
        w = np.zeros(self.layout.size, self.dtype)
        for (weights, first), drawn in self.draw(rng):
            slot = self.layout.slots[weights]
            start = slot.start + first * slot.shape[1]
            w[start : start + drawn.size] = drawn.ravel()
        return w

    def draw(self, rng: np.random.Generator) -> Iterator[tuple[tuple[int, int], Array]]:
        """The matrices that `init` starts with, some rows at a time: for who needs a part of them alone.

        Yields ((number of the slot, first row), rows, float64); what is not yielded starts as 0.
        """
        matrices = [number for number, slot in enumerate(self.layout.slots) if slot.name.endswith(".weight")]
        for number in matrices:
            fan_in, fan_out = self.layout.slots[number].shape
            limit = np.sqrt(6.0 / (fan_in + fan_out))
            if number == matrices[-1]:
                limit *= 0.1
            elif self.activation != "tanh":
                limit = np.sqrt(1.0 / fan_in)
            step = max(1, DRAWN // fan_out)
            for first in range(0, fan_in, step):
                yield (number, first), rng.uniform(-limit, limit, (min(step, fan_in - first), fan_out))

    def split(self, rank: int, shares: Sequence[float]) -> SplitMLP:
        """See `SupportsSplit`."""
        from .split_mlp import SplitMLP

        return SplitMLP(self, rank, shares)

    def layer_costs(self) -> list[LayerCost]:
        """See `SupportsStages`."""
        from .stages import LayerCost

        last = self.layers - 1
        return [  # what is kept: an output and its slope; the last layer's outputs become gradients where they are
            LayerCost(a * b + self.bias * b, b if i == last else 2 * b, b)
            for i, (a, b) in enumerate(pairwise(self.widths))
        ]

    def stage(self, first: int, stop: int, rank: int, shares: Sequence[float]) -> MLPPart:
        """See `SupportsStages`."""
        from .mlp_part import MLPPart

        return MLPPart(self, first, stop, rank, shares)

    def _keep_rows(self, batch: Batch) -> LayerRows:
        return LayerRows(self, batch)

    def _pass(
        self, w: Array, batch: Batch, grad: Array, on_ready: Callable[[int, int], None] | None, kept: Any
    ) -> Sums:
        space, rows, last = self._workspace(w), len(batch.y), self.layers - 1
        weight_grads, bias_grads = self.layers_of(grad, space.unused)
        deltas = [space.rows("delta", i, rows) for i in range(last)]
        inputs = [batch.rows, *([space.rows("a", i, rows) for i in range(last)] if kept is None else kept.inputs)]
        deltas.append(space.rows("a", last, rows) if kept is None else kept.delta)

        def finish(i: int) -> None:
            if i == 0:
                batch.rows.t_dot(deltas[0], out=weight_grads[0])
            else:
                space.xp.dot(inputs[i].T, deltas[i], out=weight_grads[i])
            if on_ready is not None:
                on_ready(self._starts[i], self._starts[i + 1])

        return self._sweep(space, w, batch, inputs, deltas, bias_grads, finish, kept)

    def _fill_factors(self, space: Workspace, w: Array, batch: Batch, inputs: list[Array], deltas: list[Array]) -> Sums:
        return self._sweep(space, w, batch, inputs, deltas, space.unused, lambda i: None)

    def _sweep(
        self,
        space: Workspace,
        w: Array,
        batch: Batch,
        inputs: list[Array],
        deltas: list[Array],
        bias_grads: list[Array],
        finish: Callable[[int], None],
        kept: LayerRows | None = None,
    ) -> Sums:
        """Forward and backward pass into the layers' ``inputs``, but the first, and ``deltas``, gradients by outputs.

        ``finish(i)`` is called as soon as ``inputs[i]``, ``deltas[i]`` and ``bias_grads[i]`` have their final values,
        for i from the last layer to the first.  Slopes and curvatures go into ``kept``, where it is not None.
        """
        xp, last, rows = space.xp, self.layers - 1, len(batch.y)
        weights, biases = self.layers_of(w, space.no_bias)
        slopes = [space.rows("slope", i, rows) for i in range(last)] if kept is None else kept.slopes
        for i in range(last):
            if i == 0:
                batch.rows.dot(weights[0], out=inputs[1])
            else:
                xp.dot(inputs[i], weights[i], out=inputs[i + 1])
            self._activate(space, inputs[i + 1], biases[i], slopes[i], i, batch)
        xp.dot(inputs[last], weights[last], out=deltas[last])
        sums = self._residual(space, deltas[last], biases[last], batch, bias_grads[last], kept and kept.curvature)
        for i in reversed(range(self.layers)):
            finish(i)
            if i > 0:
                xp.dot(deltas[i], weights[i].T, out=deltas[i - 1])
                space.kernels.backpropagate(deltas[i - 1], slopes[i - 1], bias_grads[i - 1])
        return sums

    def outputs(self, w: Array, x: Array) -> Array:
        """See `DenseModel.outputs`."""
        space, rows = self._workspace(w), rows_of(x)
        weights, biases = self.layers_of(w, space.no_bias)
        count, z = rows.shape[0], None
        batch = Batch(x, None, None, None, 0, train=False)
        for i in range(self.layers):
            out = space.rows("a", i, count)
            z = rows.dot(weights[0], out=out) if i == 0 else space.xp.dot(z, weights[i], out=out)
            if i < self.layers - 1 and self.activation != "relu":
                self._activate(space, z, biases[i], space.rows("slope", i, count), i, batch)
                continue
            z += biases[i]
            if i < self.layers - 1:  # without a kernel of its own, which would find slopes for nothing
                space.xp.maximum(z, 0, out=z)
        return z

    def _activate(
        self, space: Workspace, z: Array, bias: Array, slope: Array, layer: int, batch: Batch, first: int = 0
    ) -> None:
        """z ← activation(z + bias) under dropout, slope ← the derivative by z; NumPy's tanh is vector code.

        ``z`` are the layer's units from number ``first`` on.
        """
        xp, kernels = space.xp, space.kernels
        threshold, scale = self._keep(batch.train)
        drops = threshold != ALWAYS_KEEP
        stream: tuple[Any, ...] = ()
        if drops:
            key = np.uint64((int(self._layer_keys(batch.key)[layer]) + GOLDEN * first) & MASK)
            stream = (key, batch.position, self.widths[layer + 1], np.uint64(threshold), scale)
        if self.activation == "relu":
            if drops:
                kernels.relu_dropout(z, bias, slope, *stream)
            else:
                kernels.relu(z, bias, slope)
            return
        if self.activation == "tanh":
            kernels.add_bias(z, bias)
            xp.tanh(z, out=z)
            kernels.tanh_slope(z, slope)
        else:
            kernels.gelu_argument(z, bias, slope)
            xp.tanh(slope, out=slope)
            kernels.gelu(z, slope)
        if drops:
            kernels.dropout(z, slope, *stream)
