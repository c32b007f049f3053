"""What linear models and nets of dense layers have in common: parameters, losses, answers, and steps of few rows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend import Device, device_of
from ..data import Batch, LabelSummary
from ..data.rows import DenseRows, Rows
from ..data.streams import stream_key
from ..errors import ConfigError, DataError
from ..params import Layout
from .base import Number, Sums, Together
from .curvature import Linearization
from .losses import Loss, loss_of
from .workspace import Workspace

if TYPE_CHECKING:
    from .factors import Factors

Array = Any
ALWAYS_KEEP = 1 << 32  # a dropout threshold that no 32-bit number reaches
# Up to so many rows a fused kernel makes their factors, above it BLAS.  Of the MNIST net: 3.7 and 12.5 µs for 1 row,
# 11 and 18 for 4, 22 and 27 for 8; but 26 and 17 for 4 rows without zeros among the inputs, 50 and 26 for 8.
FUSED_ROWS = 4


class DenseModel:
    """Dense layers, features → widths[1] → ... → outputs, with a loss at the end; see `LinearModel` and `MLP`.

    Args:
        widths: of the input and of every layer's output, one layer at least.
        loss: name of one of `losses.LOSSES`, or a loss of the user's own.
        bias: whether layers have biases.
        dtype: float32 or float64, of parameters, features and gradient.

    Subclasses give the passes over rows.  The model is replicated: every rank builds the same one.  It computes where
    its arrays are, on the host or on a GPU (`backend`), and keeps scratch arrays there, so one instance serves one
    thread.
    """

    on_devices = True  # arrays of w and of batches may be a GPU's
    tells_ready = True  # loss_and_grad takes on_ready
    takes_sparse = True  # batches may be of `SparseRows`, but for fused steps and factors
    activation, dropout = "relu", 0.0
    code = 0  # of the activation, among those of kernels.cpu

    def __init__(self, widths: Sequence[int], loss: str | Loss, *, bias: bool, dtype: Any) -> None:
        if min(widths) < 1:
            raise ConfigError(f"every layer needs at least one unit, got {', '.join(map(str, widths))}")
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.float32, np.float64):
            raise ConfigError(f"dtype {self.dtype} is not supported: choose float32 or float64")
        self.loss_function, self.bias, self.widths = loss_of(loss), bias, tuple(widths)
        self.loss_function.check_outputs(self.widths[-1])
        self.layout = self._layout()
        self.target_dtype = self.loss_function.target_dtype(self.dtype)
        starts = {slot.name: slot.start for slot in self.layout.slots}
        self._table = np.array(  # of each layer: inputs, units, and where its matrix and its bias (-1: none) start
            [
                (inputs, units, starts[f"layer{i}.weight"], starts.get(f"layer{i}.bias", -1))
                for i, (inputs, units) in enumerate(pairwise(self.widths), start=1)
            ]
        )
        self._starts = [*self._table[:, 2].tolist(), self.layout.size]
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
        return self._pass(w, batch, grad, on_ready, None)

    def linearize(
        self, w: Array, batch: Batch, grad: Array, old: Linearization | None = None
    ) -> tuple[Sums, Linearization]:
        """As `loss_and_grad`, on the host alone, and what products with the curvature at ``w`` need; see `curvature`.

        ``old``, of the same rows elsewhere, lends its arrays and is of no use afterwards.
        """
        kept = self._keep_rows(batch) if old is None else old
        return self._pass(w, batch, grad, None, kept), kept

    @abstractmethod
    def _pass(
        self, w: Array, batch: Batch, grad: Array, on_ready: Callable[[int, int], None] | None, kept: Any
    ) -> Sums:
        """See `loss_and_grad`; ``kept`` is None, or the linearization that is to be filled."""

    @abstractmethod
    def _keep_rows(self, batch: Batch) -> Linearization:
        """An empty linearization of the rows of ``batch``."""

    @abstractmethod
    def _fill_factors(self, space: Workspace, w: Array, batch: Batch, inputs: list[Array], deltas: list[Array]) -> Sums:
        """The layers' inputs into ``inputs``, of which the first are the rows, and gradients by outputs."""

    @abstractmethod
    def outputs(self, w: Array, x: Array) -> Array:
        """Margins or logits of the rows of ``x``, shape (rows, outputs), in a buffer of the model's own."""

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
        space, rows = self._workspace(w), len(batch.y)
        if rows <= FUSED_ROWS:
            from .kernels.rows import factor_rows

            self._factor_space().check(factors, rows)
            settings = self._row_settings(space, batch)
            loss = factor_rows(self.loss_function)(w, *settings, *space.row_scratch(), factors)
            return Sums(loss, space.total_weight(batch))
        inputs, deltas = self._factor_space().views(factors, rows)
        batch.rows.fill(inputs[0])
        return self._fill_factors(space, w, batch, inputs, deltas)

    def grad_of_factors(self, sources: Sequence[tuple[Array, int]], start: int, stop: int, out: Array) -> None:
        """Elements ``start`` to ``stop - 1`` of the gradient of all rows of ``sources``; see `models.factors.Factors`.

        To rounding these are the sums of what `loss_and_grad` gives for the rows of each source, (factors, rows).
        """
        self._factor_space().grad(sources, start, stop, out)

    def loss(self, w: Array, batch: Batch) -> Sums:
        """Σ weight · loss over the rows of ``batch`` at ``w``, without dropout."""
        return self.score(w, batch)[0]

    def score(self, w: Array, batch: Batch) -> tuple[Sums, Number]:
        """As `loss`, and the weight of the rows whose label is predicted (0 where targets are values)."""
        return self.score_outputs(self.outputs(w, batch.x), batch)

    def score_outputs(self, outputs: Array, batch: Batch) -> tuple[Sums, Number]:
        """As `score`, from the ``outputs`` of the rows, which are overwritten."""
        space = self._workspace(outputs)
        right = self.loss_function.right(outputs, batch.y)
        if batch.weight is not None:
            right = right * batch.weight
        correct = space.xp.sum(right, dtype=np.float64)
        return self._losses(space, outputs, batch), correct

    def _losses(self, space: Workspace, outputs: Array, batch: Batch) -> Sums:
        """The sums of `loss` at the ``outputs``, which may be overwritten."""
        return self._residual(space, outputs, space.no_bias[-1], batch, space.unused[-1])

    def predict(self, w: Array, x: Array) -> Array:
        """The loss's answers for the rows of ``x``, shape (rows,): values, 0/1 labels, or label numbers."""
        return self.loss_function.predict(self.outputs(w, x))

    @property
    def row_shape(self) -> tuple[int, int]:
        """(layers, width) of what ranks that take `sgd_step` together show each other of a row."""
        return self._workspace(self._table).row_shape

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
        from .kernels.rows import sgd_rows

        space, number = self._workspace(w), self.dtype.type
        together = together or Together.alone(1, self.row_shape, self.dtype)
        count = len(batch.y) if steps is None else steps
        if len(batch.y) != together.rows * count:
            raise ValueError(f"{count} steps of {together.rows} rows of this rank are not {len(batch.y)} rows")
        settings, (scratch, _) = self._row_settings(space, batch), space.row_scratch()
        ours = (scratch, carry, number(rate), number(l2), together.indices, together.factors, together.starts)
        kernel, done, waits, loss = sgd_rows(self.loss_function), 0, False, 0.0

        def advance(*meeting: int) -> tuple[int, bool]:
            nonlocal done, waits, loss
            before = done
            done, waits, more = kernel(w, *settings, *ours, *meeting, count, done, waits)
            loss += more
            return done - before, waits

        together.meet(advance)
        return Sums(loss, space.total_weight(batch))

    touches_columns = False  # whether a row's gradient is 0 in all parameters but those of its features and biases

    def loss_and_pairs(
        self, w: Array, batch: Batch, columns: Array, sums: Array, slots: Array, factor: float = 1.0
    ) -> tuple[Sums, int]:
        """As `loss_and_grad` of sparse rows, but write the gradient as index-value pairs; return how many there are.

        For models that `touches_columns` holds of.  Column j of ``columns`` stands for the parameters of feature j, and
        the last one for the bias; see `data.sparse_kernels.collect`.  The parameters are ``factor`` · w, but the bias.
        """
        from .columns import loss_and_pairs

        return loss_and_pairs(self, w, batch, columns, sums, slots, factor)

    def column_steps(
        self,
        w: Array,
        batch: Batch,
        ends: Array,
        scales: Array,
        rates: Array,
        l2: float,
        update: tuple[Any, tuple[Array, ...], tuple[Any, ...]] | None,
        pairs: tuple[Array, Array, Array],
    ) -> Sums:
        """Steps on sparse rows, one after another, of a model that `touches_columns` and has one output; in place.

        Args:
            w: the parameters, shape (layout.size,).
            batch: the rows of all steps, see `Loader.runs` for their ``ends``.
            scales, rates: of each step, what gradients are divided by, and the learning rate, float64.
            l2: strength of the penalty, of plain SGD alone.
            update: another method, as `optim.columns.ColumnStep`; None: plain SGD.
            pairs: columns, sums and slots of `loss_and_pairs`, to work in.

        Returns:
            The sums of the rows, of each before its step.
        """
        from .columns import column_steps

        return column_steps(self, w, batch, ends, scales, rates, l2, update, pairs)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes along: all but the scratch arrays."""
        return self.__dict__ | {"_workspaces": {}, "_factors": None}

    def _workspace(self, w: Array) -> Workspace:
        """The scratch arrays, and the functions for arrays, where ``w`` lives."""
        device = device_of(w)
        space = self._workspaces.get(device)
        if space is None:
            space = self._workspaces[device] = Workspace(device, self.widths, self.dtype, self.loss_function)
        return space

    def _factor_space(self) -> Factors:
        if self._factors is None:
            from .factors import Factors  # loads Numba

            self._factors = Factors(self._table, self.dtype)
        return self._factors

    def _row_settings(self, space: Workspace, batch: Batch) -> tuple[Any, ...]:
        """What the kernels that go row by row are told of ``batch`` and the net, in the order of their arguments."""
        threshold, scale = self._keep(batch.train)
        weight = space.no_weights if batch.weight is None else batch.weight
        return (
            dense(batch.rows), batch.y, weight, self._table, self.code,
            self._layer_keys(batch.key), batch.position, np.uint64(threshold), scale,
        )  # fmt: skip

    def mark_touched(self, batch: Batch, marks: Array) -> None:
        """See `SupportsTouches`: of the first layer the rows of their features, and all other parameters."""
        weights = self.layers_of(marks)[0][0]
        marks[weights.size :] = 1
        weights[batch.rows.touched] = 1

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

    def _residual(
        self, space: Workspace, z: Array, bias: Array, batch: Batch, bias_grad: Array, curvature: Array = None
    ) -> Sums:
        """Sums of the losses at the outputs z + bias; see `kernels.cpu`."""
        weight = space.no_weights if batch.weight is None else batch.weight
        curvature = space.no_weights if curvature is None else curvature
        loss = space.residual(z, bias, batch.y, weight, bias_grad, curvature)
        return Sums(loss, space.total_weight(batch))


def dense(rows: Rows) -> Array:
    """The array of dense ``rows``, for kernels that go row by row.

    Raises:
        TypeError: they are none.
    """
    if not isinstance(rows, DenseRows):
        raise TypeError(f"fused steps are for dense rows, not for {type(rows).__name__}")
    return rows.x
