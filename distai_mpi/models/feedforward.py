"""Dense layers ending in a loss: the multi-layer perceptron, and linear models as its case without hidden layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend import Device, device_of
from ..data import Batch, LabelSummary
from ..data.streams import stream_key
from ..errors import ConfigError, DataError
from ..params import Layout
from .base import Number, Sums, Together
from .curvature import LayerRows, Linearization, MarginRows
from .losses import Loss
from .passes import by_margins, by_outputs
from .workspace import Workspace

if TYPE_CHECKING:
    from .factors import Factors

Array = Any
ACTIVATIONS = {"relu": 0, "tanh": 1, "gelu": 2}  # codes of kernels.cpu
ALWAYS_KEEP = 1 << 32  # a dropout threshold that no 32-bit number reaches
# Up to so many rows a fused kernel makes their factors, above it BLAS.  Of the MNIST net: 3.7 and 12.5 µs for 1 row,
# 11 and 18 for 4, 22 and 27 for 8; but 26 and 17 for 4 rows without zeros among the inputs, 50 and 26 for 8.
FUSED_ROWS = 4


class FeedForward:
    """features → hidden[0] → ... → outputs, each layer dense, with a loss at the end.

    Args:
        features: width of the input.
        outputs: width of the output (1, or the number of classes).
        loss: one of `losses.LOSSES`.
        hidden: widths of the hidden layers.
        activation: of the hidden layers: ``relu``, ``tanh`` or ``gelu`` (Hendrycks & Gimpel 2016,
            in its tanh form).
        dropout: probability that a hidden unit is dropped in training; kept ones are scaled up
            by 1 / (1 - dropout) (Srivastava et al. 2014, section 10, "inverted").
        bias: whether layers have biases.
        dtype: float32 or float64, of parameters, features and gradient.

    The model is replicated: every rank builds the same one.  It computes where its arrays are, on the
    host or on a GPU (`backend`), and keeps scratch arrays there, so one instance serves one thread.
    """

    on_devices = True  # arrays of w and of batches may be a GPU's
    tells_ready = True  # loss_and_grad takes on_ready

    def __init__(
        self,
        features: int,
        outputs: int,
        loss: Loss,
        *,
        hidden: tuple[int, ...] = (),
        activation: str = "relu",
        dropout: float = 0.0,
        bias: bool = True,
        dtype: Any = np.float32,
    ) -> None:
        if activation not in ACTIVATIONS:
            raise ConfigError(f"unknown activation {activation!r}: choose one of {', '.join(ACTIVATIONS)}")
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout {dropout} must be at least 0 and below 1")
        if min((features, outputs, *hidden)) < 1:
            raise ConfigError(f"every layer needs at least one unit, got {features}, {hidden}, {outputs}")
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.float32, np.float64):
            raise ConfigError(f"dtype {self.dtype} is not supported: choose float32 or float64")
        self.loss_function, self.activation, self.dropout, self.bias = loss.of(outputs), activation, dropout, bias
        self.widths = (features, *hidden, outputs)
        self.layout = self._layout()
        self.target_dtype = loss.target_dtype(self.dtype)
        starts = {slot.name: slot.start for slot in self.layout.slots}
        self._places = np.array(  # of each layer: inputs, units, and where its matrix and its bias (-1: none) start
            [
                (inputs, units, starts[f"layer{i}.weight"], starts.get(f"layer{i}.bias", -1))
                for i, (inputs, units) in enumerate(pairwise(self.widths), start=1)
            ]
        )
        self._starts = [*self._places[:, 2].tolist(), self.layout.size]
        self.threads = 1
        self._workspaces: dict[Device, Workspace] = {}
        self._factors: Factors | None = None
        self._keys: tuple[int, Array] | None = None

    def _layout(self) -> Layout:
        parts: list[tuple[str, tuple[int, ...], bool]] = []
        for layer, shape in enumerate(pairwise(self.widths), start=1):
            parts.append((f"layer{layer}.weight", shape, True))
            if self.bias:
                parts.append((f"layer{layer}.bias", shape[1:], False))
        return Layout.of(parts)

    def limit_threads(self, threads: int) -> None:
        """Hear how many threads the rank may use; see `passes.by_margins`."""
        self.threads = threads

    @property
    def is_linear(self) -> bool:
        """Whether there are no hidden layers: the curvature is then the Hessian, and ``add_matrix`` gives it."""
        return self.layers == 1

    @property
    def has_margins(self) -> bool:
        """Whether the model is linear with one output: values along a line then follow from margins."""
        return self.is_linear and self.widths[-1] == 1 and self.loss_function.name in ("squared", "logistic")

    @property
    def layers(self) -> int:
        """Number of dense layers."""
        return len(self.widths) - 1

    @property
    def flops_per_row(self) -> int:
        """Floating-point operations of the matrix products of one row's loss and gradient.

        Two for each weight forward, two for its gradient, and two for the gradient of the
        layer's input, which the first layer does not need.
        """
        products = [a * b for a, b in pairwise(self.widths)]
        return 6 * sum(products) - 2 * products[0]

    def init(self, rng: np.random.Generator) -> Array:
        """Starting parameters, shape (layout.size,), replicated; biases, and a linear model as a whole, are 0.

        Hidden layers under relu and gelu: uniform, variance 1 / (3 fan_in) (He et al. 2015, equation 15
        with slope √5, PyTorch's choice).  Under tanh: uniform, variance 2 / (fan_in + fan_out) (Glorot & Bengio
        2010, equation 16).  The output layer of a net: a tenth of the latter's range, so that training
        starts with classes that are equally likely; that, and the smaller of the two common variances for
        hidden layers, gave MNIST 0.1 % more test accuracy after 5 and after 15 epochs.
        """
        w = np.zeros(self.layout.size, self.dtype)
        if self.layers == 1:
            return w
        slots = [slot for slot in self.layout.slots if slot.name.endswith(".weight")]
        for slot in slots:
            fan_in, fan_out = slot.shape
            limit = np.sqrt(6.0 / (fan_in + fan_out))
            if slot is slots[-1]:
                limit *= 0.1
            elif self.activation != "tanh":
                limit = np.sqrt(1.0 / fan_in)
            w[slot.start : slot.stop] = rng.uniform(-limit, limit, slot.shape).ravel()
        return w

    def check_data(self, labels: LabelSummary) -> None:
        """Raise `DataError` unless rows with these ``labels`` and so many features fit the model.

        The kernels index by label without a check, so this comes before any of them.
        """
        if labels.features != self.widths[0]:
            raise DataError(f"rows have {labels.features} features, but the model takes {self.widths[0]}")
        self.loss_function.check_labels(labels, self.widths[-1])

    def loss_and_grad(
        self, w: Array, batch: Batch, grad: Array, on_ready: Callable[[int, int], None] | None = None
    ) -> Sums:
        """Overwrite ``grad`` with the gradient, at ``w``, of Σ weight · loss over the rows of ``batch``.

        Both have shape (layout.size,) and the model's dtype; dropout acts where ``batch.train``.
        ``on_ready(start, stop)`` is called as soon as ``grad[start:stop]`` has its final value (on a GPU: in the
        order of the stream): for each layer, from last to first, its matrix and bias in one piece.
        """
        space, rows, last = self._workspace(w), len(batch.x), self.layers - 1
        if self.is_linear and space.xp is np:
            sums = self._linear(space, w, batch, grad)
            if on_ready is not None:
                on_ready(0, self.layout.size)
            return sums
        weight_grads, bias_grads = self.layers_of(grad, space.unused)
        inputs = [batch.x, *(space.rows("a", i, rows) for i in range(last))]
        deltas = [*(space.rows("delta", i, rows) for i in range(last)), space.rows("a", last, rows)]

        def finish(i: int) -> None:
            space.xp.dot(inputs[i].T, deltas[i], out=weight_grads[i])
            if on_ready is not None:
                on_ready(self._starts[i], self._starts[i + 1])

        return self._sweep(space, w, batch, inputs, deltas, bias_grads, finish)

    def linearize(
        self, w: Array, batch: Batch, grad: Array, old: Linearization | None = None
    ) -> tuple[Sums, Linearization]:
        """As `loss_and_grad`, on the host alone, and what products with the curvature at ``w`` need; see `curvature`.

        ``old``, of the same rows elsewhere, lends its arrays and is of no use afterwards.
        """
        space, rows, last = self._workspace(w), len(batch.x), self.layers - 1
        kept: Any = old
        if self.has_margins and kept is None:
            kept = MarginRows(self.loss_function.code, self.widths[0], self.bias, batch, self.threads)
        kept = kept or LayerRows(self, batch)
        if self.is_linear:
            return self._linear(space, w, batch, grad, kept), kept
        weight_grads, bias_grads = self.layers_of(grad, space.unused)
        inputs = [batch.x, *kept.inputs]
        deltas = [*(space.rows("delta", i, rows) for i in range(last)), kept.delta]

        def finish(i: int) -> None:
            space.xp.dot(inputs[i].T, deltas[i], out=weight_grads[i])

        return self._sweep(space, w, batch, inputs, deltas, bias_grads, finish, kept.slopes), kept

    def _linear(self, space: Workspace, w: Array, batch: Batch, grad: Array, kept: Any = None) -> Sums:
        """`loss_and_grad` without hidden layers on the host; ``kept`` is a linearization to be filled, or None."""
        weight = space.no_weights if batch.weight is None else batch.weight
        if self.has_margins:
            arrays = (space.no_weights, space.no_weights) if kept is None else (kept.margin, kept.curvature)
            loss = by_margins(self.loss_function.code, batch, weight, w, grad, arrays, self.threads)
            return Sums(loss, space.total_weight(batch))
        weights, biases = self.layers_of(w, space.no_bias)
        (weight_grad,), (bias_grad,) = self.layers_of(grad, space.unused)
        z = space.rows("a", 0, len(batch.x)) if kept is None else kept.delta
        kind, bias = self.loss_function.code, biases[0]
        loss = by_outputs(kind, batch, weight, weights[0], bias, z, weight_grad, bias_grad, self.threads)
        return Sums(loss, space.total_weight(batch))

    @property
    def factor_size(self) -> int:
        """Numbers in the sufficient factors of one row: inputs and outputs of all layers; see `models.factors`."""
        return sum(self.widths[:-1]) + sum(self.widths[1:])

    def loss_and_factors(self, w: Array, batch: Batch, factors: Array) -> Sums:
        """As `loss_and_grad`, but write the sufficient factors of the rows of ``batch``, and not the gradient.

        They are the first rows * factor_size elements of ``factors``, in the order told in `models.factors.Factors`;
        weights of rows are in them.  On the host alone.

        Raises:
            ValueError: ``factors`` is too short.
        """
        space, rows = self._workspace(w), len(batch.x)
        if rows <= FUSED_ROWS:
            from .kernels import rows as kernels

            self._factor_space().check(factors, rows)
            settings = self._row_settings(space, batch)
            loss = kernels.factor_rows(w, *settings, *space.row_scratch(), factors)
            return Sums(loss, space.total_weight(batch))
        inputs, deltas = self._factor_space().views(factors, rows)
        inputs[0][:] = batch.x
        return self._sweep(space, w, batch, inputs, deltas, space.unused, lambda i: None)

    def grad_of_factors(self, sources: Sequence[tuple[Array, int]], start: int, stop: int, out: Array) -> None:
        """Elements ``start`` to ``stop - 1`` of the gradient of all rows of ``sources``; see `models.factors.Factors`.

        To rounding these are the sums of what `loss_and_grad` gives for the rows of each source, (factors, rows).
        """
        self._factor_space().grad(sources, start, stop, out)

    def _sweep(
        self,
        space: Workspace,
        w: Array,
        batch: Batch,
        inputs: list[Array],
        deltas: list[Array],
        bias_grads: list[Array],
        finish: Callable[[int], None],
        slopes: list[Array] | None = None,
    ) -> Sums:
        """Forward and backward pass into the layers' ``inputs``, but the first, and ``deltas``, gradients by outputs.

        ``finish(i)`` is called as soon as ``inputs[i]``, ``deltas[i]`` and ``bias_grads[i]`` have their final values,
        for i from the last layer to the first.  ``slopes`` are the derivatives of hidden units.
        """
        xp, last, rows = space.xp, self.layers - 1, len(batch.x)
        weights, biases = self.layers_of(w, space.no_bias)
        slopes = slopes or [space.rows("slope", i, rows) for i in range(last)]
        for i in range(last):
            xp.dot(inputs[i], weights[i], out=inputs[i + 1])
            self._activate(space, inputs[i + 1], biases[i], slopes[i], i, batch)
        xp.dot(inputs[last], weights[last], out=deltas[last])
        sums = self._residual(space, deltas[last], biases[last], batch, bias_grads[last])
        for i in reversed(range(self.layers)):
            finish(i)
            if i > 0:
                xp.dot(deltas[i], weights[i].T, out=deltas[i - 1])
                space.kernels.backpropagate(deltas[i - 1], slopes[i - 1], bias_grads[i - 1])
        return sums

    def loss(self, w: Array, batch: Batch) -> Sums:
        """Σ weight · loss over the rows of ``batch`` at ``w``, without dropout."""
        return self.score(w, batch)[0]

    def score(self, w: Array, batch: Batch) -> tuple[Sums, Number]:
        """As `loss`, and the weight of the rows whose label is predicted (0 where targets are values)."""
        space, last = self._workspace(w), self.layers - 1
        outputs = self.outputs(w, batch.x)
        right = self.loss_function.right(outputs, batch.y)
        if batch.weight is not None:
            right = right * batch.weight
        correct = space.xp.sum(right, dtype=np.float64)
        return self._residual(space, outputs, space.no_bias[last], batch, space.unused[last]), correct

    def outputs(self, w: Array, x: Array) -> Array:
        """Margins or logits of the rows of ``x``, shape (rows, outputs), in a buffer of the model's own."""
        space = self._workspace(w)
        weights, biases = self.layers_of(w, space.no_bias)
        batch = Batch(x, None, None, None, 0, train=False)
        for i in range(self.layers):
            z = space.xp.dot(x, weights[i], out=space.rows("a", i, len(x)))
            if i < self.layers - 1:
                self._activate(space, z, biases[i], space.rows("slope", i, len(x)), i, batch)
            else:
                space.kernels.add_bias(z, biases[i])
            x = z
        return x

    def predict(self, w: Array, x: Array) -> Array:
        """Values (squared loss), 0/1 labels (logistic) or label numbers (softmax), shape (rows,)."""
        return self.loss_function.predict(self.outputs(w, x))

    @property
    def row_shape(self) -> tuple[int, int]:
        """(layers, width) of what ranks that take `sgd_step` together show each other of a row."""
        return self._workspace(self._places).row_shape

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
        """SGD on global batches of few rows, one after another: w ← w - rate · (mean gradient + l2 · w), in place.

        On the host alone.  The same updates as `loss_and_grad` and the step of `optim.SGD` for each of them, without
        forming the gradient; inputs that are zero cost nothing, unless l2 shrinks their weights too.

        Args:
            w: this rank's own parameters, shape (layout.size,), the same on all ranks before and after.
            batch: this rank's rows of all steps in turn; its position is that of the first global batch.
            rate, l2: the learning rate, and the strength of the penalty.
            carry: what rounding has taken from w so far, like w; is changed too.  None: updates are rounded into w row
                by row, and lost where they fall below its last bit, in little more than half the time.
            together: the ranks that share out global batches; None: this one alone, a row each.
            steps: how many; None: as many as there are rows, for one rank alone.

        Returns:
            The sums of this rank's rows, of each before its step.

        Raises:
            ValueError: so many steps have another number of rows.
        """
        from .kernels import rows

        space, number = self._workspace(w), self.dtype.type
        together = together or Together.alone(1, self.row_shape, self.dtype)
        count = len(batch.x) if steps is None else steps
        if len(batch.x) != together.rows * count:
            raise ValueError(f"{count} steps of {together.rows} rows of this rank are not {len(batch.x)} rows")
        settings, (scratch, _) = self._row_settings(space, batch), space.row_scratch()
        ours = (scratch, carry, number(rate), number(l2), together.indices, together.factors, together.starts)
        done, waits, loss = 0, False, 0.0

        def advance(*meeting: int) -> tuple[int, bool]:
            nonlocal done, waits, loss
            before = done
            done, waits, more = rows.sgd_rows(w, *settings, *ours, *meeting, count, done, waits)
            loss += more
            return done - before, waits

        together.meet(advance)
        return Sums(loss, space.total_weight(batch))

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes along: all but the scratch arrays."""
        return self.__dict__ | {"_workspaces": {}, "_factors": None}

    def _workspace(self, w: Array) -> Workspace:
        """The scratch arrays, and the functions for arrays, where ``w`` lives."""
        device = device_of(w)
        space = self._workspaces.get(device)
        if space is None:
            space = self._workspaces[device] = Workspace(device, self.widths, self.dtype)
        return space

    def _factor_space(self) -> Factors:
        if self._factors is None:
            from .factors import Factors  # loads Numba

            self._factors = Factors(self._places, self.dtype)
        return self._factors

    def _row_settings(self, space: Workspace, batch: Batch) -> tuple[Any, ...]:
        """What the kernels that go row by row are told of ``batch`` and the net, in the order of their arguments."""
        threshold, scale = self._keep(batch.train)
        weight = space.no_weights if batch.weight is None else batch.weight
        return (
            batch.x, batch.y, weight, self._places, self.loss_function.code, ACTIVATIONS[self.activation],
            self._layer_keys(batch.key), batch.position, np.uint64(threshold), scale,
        )  # fmt: skip

    def layers_of(self, flat: Array, absent: Sequence[Array] = ()) -> tuple[list[Array], list[Array]]:
        """Matrices and biases inside ``flat``; ``absent`` in place of biases where there are none."""
        views = list(self.layout.views(flat).values())
        return (views[::2], views[1::2]) if self.bias else (views, list(absent))

    def _keep(self, train: bool) -> tuple[int, Any]:
        """(threshold, scale) of dropout: keep a unit when 32 random bits fall below the threshold."""
        if not train or self.dropout == 0:
            return ALWAYS_KEEP, self.dtype.type(1)
        threshold = round((1 - self.dropout) * ALWAYS_KEEP)
        return threshold, self.dtype.type(ALWAYS_KEEP / threshold)

    def _layer_keys(self, key: int) -> Array:
        """The dropout streams of the layers for the epoch of stream ``key``, shape (layers,), uint64."""
        if self._keys is None or self._keys[0] != key:
            keys = [stream_key(key, "dropout", layer) for layer in range(self.layers)]
            self._keys = key, np.array(keys, np.uint64)
        return self._keys[1]

    def _activate(self, space: Workspace, z: Array, bias: Array, slope: Array, layer: int, batch: Batch) -> None:
        """z ← activation(z + bias) under dropout, slope ← the derivative by z; NumPy's tanh is vector code."""
        xp, kernels = space.xp, space.kernels
        threshold, scale = self._keep(batch.train)
        drops = threshold != ALWAYS_KEEP
        stream = (self._layer_keys(batch.key)[layer], batch.position, np.uint64(threshold), scale) if drops else ()
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

    def _residual(self, space: Workspace, z: Array, bias: Array, batch: Batch, bias_grad: Array) -> Sums:
        weight = space.no_weights if batch.weight is None else batch.weight
        loss = space.kernels.residual(self.loss_function.code, z, bias, batch.y, weight, bias_grad)
        return Sums(loss, space.total_weight(batch))
