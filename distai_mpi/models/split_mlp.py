"""The part of an MLP that one rank of a tensor-parallel group holds: columns or rows of every matrix.

Every parameter belongs to one rank.  A layer's bias is cut as its units are, also where the matrix is cut by rows: each
rank adds its part to its own columns of the sum.  Results equal those of the whole model to rounding, under dropout
too, whose masks are keyed by a unit's number in the whole layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend import HOST
from ..data import Batch, LabelSummary
from ..data.rows import rows_of
from ..params import Layout
from .base import Number, Sums
from .losses import Loss
from .losses.softmax import Softmax
from .split import COLUMN, ROW, ActivationSums, Piece, choose_kinds, cut_units
from .workspace import Workspace

if TYPE_CHECKING:
    from .factors import Factors

Array = Any


class SplitMLP:
    """Part ``rank`` of ``whole``; see `split.PartOfModel`.

    Args:
        whole: the `MLP`, the same on all ranks of the group.
        rank: which part this is.
        shares: how large each part is, in proportion.

    Attributes:
        kinds: of each layer, whether its matrix is cut by columns or by rows; see `split.choose_kinds`.
        cuts: of the units of each layer's output, counted from 0.

    Raises:
        ConfigError: a layer has too few units for so many parts.
    """

    can_predict = True
    needs_warm_up = True

    def __init__(self, whole: Any, rank: int, shares: Sequence[float]) -> None:
        self.whole, self.rank, self.parts = whole, rank, len(shares)
        self.dtype, self.target_dtype, self.widths = whole.dtype, whole.target_dtype, whole.widths
        self.takes_sparse, self.dropout = whole.takes_sparse, whole.dropout
        self.layers = whole.layers
        self.kinds = choose_kinds(self.widths, isinstance(whole.loss_function, Softmax))
        self.cuts = [self._cut(i, shares) for i in range(self.layers)]
        self.own = [slice(cuts[rank], cuts[rank + 1]) for cuts in self.cuts]
        self.layout, self.pieces = self._lay_out()
        self._table = self._factor_table()
        self._space = Workspace(HOST, self.widths, self.dtype, whole.loss_function)
        self._held: dict[tuple[str, int], Array] = {}
        self._factors: Factors | None = None
        self._sums: ActivationSums | None = None

    def _cut(self, layer: int, shares: Sequence[float]) -> list[int]:
        units, last = self.widths[layer + 1], layer == self.layers - 1
        if last and self.kinds[layer] == ROW and units < self.parts:  # of few outputs the first ranks have the biases
            return [min(part, units) for part in range(self.parts)] + [units]
        return cut_units(units, shares, f"layer {layer + 1} of {self.layers}")

    def _lay_out(self) -> tuple[Layout, tuple[Piece, ...]]:
        """The arrays of this part, and where they lie in those of the whole model."""
        arrays: list[tuple[str, tuple[int, ...], bool]] = []
        pieces: list[Piece] = []
        for i, kind in enumerate(self.kinds):
            inputs, units = slice(0, self.widths[i]), slice(0, self.widths[i + 1])
            if kind == COLUMN:
                units = self.own[i]
            else:
                inputs = self.own[i - 1]
            arrays.append((f"layer{i + 1}.weight", (_length(inputs), _length(units)), True))
            pieces.append(Piece(len(pieces), (inputs, units)))
            if self.whole.bias:
                arrays.append((f"layer{i + 1}.bias", (_length(self.own[i]),), False))
                pieces.append(Piece(len(pieces), (self.own[i],)))
        return Layout.of(arrays), tuple(pieces)

    def _factor_table(self) -> Array:
        """See `kernels.factors`: biases of row-parallel layers, which are parts, are layers without inputs there."""
        slots = {slot.name: slot for slot in self.layout.slots}
        table = []
        for i, kind in enumerate(self.kinds):
            matrix, bias = slots[f"layer{i + 1}.weight"], slots.get(f"layer{i + 1}.bias")
            start = -1 if bias is None else bias.start
            table.append((*matrix.shape, matrix.start, start if kind == COLUMN else -1))
            if kind == ROW and bias is not None:
                table.append((0, bias.shape[0], bias.start, bias.start))
        return np.array(table)

    def join(self, sums: ActivationSums) -> None:
        """See `split.PartOfModel`."""
        self._sums = sums

    @property
    def loss_function(self) -> Loss:
        """The loss of the whole model."""
        return self.whole.loss_function

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

    def init(self, rng: np.random.Generator) -> Array:
        """This part of `MLP.init`, which is never made whole; shape (layout.size,)."""
        w = np.zeros(self.layout.size, self.dtype)
        matrices = self.layout.views(w)
        names = [slot.name for slot in self.whole.layout.slots]
        indices = {piece.slot: piece.ranges for piece in self.pieces}
        for (slot, first), drawn in self.whole.draw(rng):
            rows, columns = indices[slot]
            low, high = max(first, rows.start), min(first + len(drawn), rows.stop)
            if low < high:
                into = matrices[names[slot]][low - rows.start : high - rows.start]
                into[:] = drawn[low - first : high - first, columns]
        return w

    # --- passes

    def loss_and_grad(self, w: Array, batch: Batch, grad: Array) -> Sums:
        """As `DenseModel.loss_and_grad`, of this part's parameters; collective over the parts' ranks."""
        rows = len(batch.y)
        inputs = [batch.rows, *(self._scratch("a", i, rows, self._input(i)) for i in range(1, self.layers))]
        deltas = [self._scratch("delta", i, rows, self._units(i)) for i in range(self.layers)]
        weight_grads, bias_grads = self._arrays(grad)

        def finish(i: int) -> None:
            if i == 0:
                batch.rows.t_dot(deltas[0], out=weight_grads[0])
            else:
                np.dot(inputs[i].T, deltas[i], out=weight_grads[i])
            if self.whole.bias:
                np.add.reduce(self._own_columns(i, deltas[i]), axis=0, out=bias_grads[i])

        return self._sweep(w, batch, inputs, deltas, finish)

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

        layer_inputs, layer_deltas = ([views[number] for number in matrices] for views in (inputs, deltas))
        return self._sweep(w, batch, layer_inputs, layer_deltas, finish)

    def grad_of_factors(self, sources: Sequence[tuple[Array, int]], start: int, stop: int, out: Array) -> None:
        """See `DenseModel.grad_of_factors`."""
        self._factor_space().grad(sources, start, stop, out)

    def _sweep(
        self, w: Array, batch: Batch, inputs: list[Array], deltas: list[Array], finish: Callable[[int], None]
    ) -> Sums:
        """Forward and backward pass into the layers' ``inputs``, but the first, and ``deltas``, gradients by outputs.

        ``finish(i)`` is called, from the last layer to the first, as soon as those of layer i have their final values.
        """
        matrices, biases = self._arrays(w)
        rows, last = len(batch.y), self.layers - 1
        slopes = [self._scratch("slope", i, rows, self._kept(i)) for i in range(last)]
        for i in range(last):
            self._forward(i, matrices[i], biases[i], batch, inputs, slopes[i])
        sums = self._losses(matrices[last], biases[last], batch, inputs[last], deltas[last])
        for i in reversed(range(self.layers)):
            finish(i)
            if i > 0:
                self._backward(i, matrices[i], slopes[i - 1], deltas)
        return sums

    def _forward(self, i: int, matrix: Array, bias: Array, batch: Batch, inputs: list[Array], slope: Array) -> None:
        """The input of layer i + 1, as that layer needs it, from that of layer i."""
        assert self._sums is not None, "join() comes first"
        out, rows, units = inputs[i + 1], len(batch.y), self.widths[i + 1]
        if self.kinds[i] == COLUMN:
            own = out if self.kinds[i + 1] == ROW else self._scratch("own", i, rows, _length(self.own[i]))
            self._dot(i, batch, inputs[i], matrix, own)
            self._activate(own, bias, slope, i, batch, self.own[i].start)
            if own is not out:
                self._sums.gather(2 * i, own, self.cuts[i], out)
            return
        if self.kinds[i + 1] == ROW:
            partial = self._scratch("partial", i, rows, units)
            self._dot(i, batch, inputs[i], matrix, partial)
            self._sums.scatter(2 * i, partial, self.cuts[i], out)
            self._activate(out, bias, slope, i, batch, self.own[i].start)
            return
        out[:] = self._summed(i, batch, inputs[i], matrix, bias)
        self._activate(out, self._space.no_bias[i], slope, i, batch, 0)

    def _backward(self, i: int, matrix: Array, slope: Array, deltas: list[Array]) -> None:
        """The gradient by the outputs of layer i - 1 from that of layer i."""
        assert self._sums is not None
        delta, before, rows = deltas[i], deltas[i - 1], len(deltas[i])
        slot, cuts = 2 * i + 1, self.cuts[i - 1]
        if self.kinds[i] == ROW:
            own = before if self.kinds[i - 1] == COLUMN else self._scratch("own", i - 1, rows, _length(self.own[i - 1]))
            np.dot(delta, matrix.T, out=own)
            own *= slope
            if own is not before:
                self._sums.gather(slot, own, cuts, before)
            return
        if self.kinds[i - 1] == COLUMN:
            partial = self._scratch("partial", i - 1, rows, self.widths[i])
            np.dot(delta, matrix.T, out=partial)
            self._sums.scatter(slot, partial, cuts, before)
        else:
            partial = self._sums.partial(slot, rows, self.widths[i])
            np.dot(delta, matrix.T, out=partial)
            before[:] = self._sums.sum(partial)
        before *= slope

    def _dot(self, i: int, batch: Batch, x: Array, matrix: Array, out: Array) -> None:
        """out ← x · matrix, of the first layer from the rows as they are held."""
        if i == 0:
            batch.rows.dot(matrix, out=out)
        else:
            np.dot(x, matrix, out=out)

    def _summed(self, i: int, batch: Batch, x: Array, matrix: Array, bias: Array) -> Array:
        """The whole output of a row-parallel layer, with its bias."""
        assert self._sums is not None
        partial = self._sums.partial(2 * i, len(batch.y), self.widths[i + 1])
        self._dot(i, batch, x, matrix, partial)
        if self.whole.bias:
            self._own_columns(i, partial)[:] += bias
        return self._sums.sum(partial)

    def _activate(self, z: Array, bias: Array, slope: Array, layer: int, batch: Batch, first: int) -> None:
        self.whole._activate(self._space, z, bias, slope, layer, batch, first)

    # --- the last layer

    def _losses(self, matrix: Array, bias: Array, batch: Batch, x: Array, delta: Array) -> Sums:
        """The sums of losses, and their gradient by this rank's outputs into ``delta``."""
        last, space = self.layers - 1, self._space
        if self.kinds[last] == COLUMN:
            self._dot(last, batch, x, matrix, delta)
            delta += bias
            return self._split_softmax(delta, batch)
        delta[:] = self._summed(last, batch, x, matrix, bias)
        weight = space.no_weights if batch.weight is None else batch.weight
        none = space.no_bias[last], batch.y, weight, space.unused[last], space.no_weights
        return Sums(space.residual(delta, *none), space.total_weight(batch))

    def _split_softmax(self, z: Array, batch: Batch) -> Sums:
        """`losses.Softmax` of outputs of which ``z`` are this rank's; they become the derivatives by them.

        Of each row the parts exchange their largest output, the sum of exponentials beside it, and the label's output.
        """
        assert self._sums is not None
        own, rows = self.own[-1], len(z)
        mine = np.flatnonzero((batch.y >= own.start) & (batch.y < own.stop))
        labels = batch.y[mine] - own.start
        told = np.zeros((rows, 3))
        told[:, 0] = z.max(axis=1, initial=-np.inf)
        with np.errstate(invalid="ignore"):  # a row without a finite output shows in the loss
            told[:, 1] = np.exp(z - told[:, :1].astype(z.dtype)).sum(axis=1, dtype=np.float64)
        told[mine, 2] = z[mine, labels]
        heard = np.empty((rows, 3 * self.parts))
        self._sums.gather(2 * self.layers, told, range(0, 3 * self.parts + 1, 3), heard)
        tops, sums, at_label = (heard[:, k::3] for k in range(3))
        top = tops.max(axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):
            total = (sums * np.exp(tops - top)).sum(axis=1)
            losses = np.log(total) + top[:, 0] - at_label.sum(axis=1)
            z -= top.astype(z.dtype)
        np.exp(z, out=z)
        z *= (1.0 / total).astype(z.dtype)[:, None]
        z[mine, labels] -= 1
        if batch.weight is not None:
            losses = losses * batch.weight
            z *= batch.weight[:, None].astype(z.dtype)
        return Sums(float(losses.sum()), self._space.total_weight(batch))

    # --- answers

    def outputs(self, w: Array, x: Array) -> Array:
        """Outputs of the whole model for the rows of ``x``, shape (rows, outputs), until the next call; collective."""
        rows = rows_of(x).shape[0]
        batch = Batch(x, np.empty(rows, np.int64), None, None, 0, train=False)
        matrices, biases = self._arrays(w)
        inputs = [batch.rows, *(self._scratch("a", i, rows, self._input(i)) for i in range(1, self.layers))]
        last = self.layers - 1
        for i in range(last):
            slope = self._scratch("slope", i, rows, self._kept(i))
            self._forward(i, matrices[i], biases[i], batch, inputs, slope)
        if self.kinds[last] == ROW:
            return self._summed(last, batch, inputs[last], matrices[last], biases[last])
        assert self._sums is not None
        own = self._scratch("delta", last, rows, self._units(last))
        self._dot(last, batch, inputs[last], matrices[last], own)
        own += biases[last]
        out = self._scratch("outputs", last, rows, self.widths[-1])
        self._sums.gather(2 * last, own, self.cuts[last], out)
        return out

    def loss(self, w: Array, batch: Batch) -> Sums:
        """See `DenseModel.loss`; collective."""
        return self.score(w, batch)[0]

    def score(self, w: Array, batch: Batch) -> tuple[Sums, Number]:
        """See `DenseModel.score`; collective."""
        return self.whole.score_outputs(self.outputs(w, batch.x), batch)

    def predict(self, w: Array, x: Array) -> Array:
        """The whole model's answers; collective."""
        return self.loss_function.predict(self.outputs(w, x))

    # --- arrays

    def _arrays(self, flat: Array) -> tuple[list[Array], list[Array]]:
        views = list(self.layout.views(flat).values())
        return (views[::2], views[1::2]) if self.whole.bias else (views, self._no_biases())

    def _no_biases(self) -> list[Array]:
        return [zeros[own] for zeros, own in zip(self._space.no_bias, self.own, strict=True)]

    def _input(self, i: int) -> int:
        """The width of layer i's input as this rank holds it."""
        return self.widths[i] if self.kinds[i] == COLUMN else _length(self.own[i - 1])

    def _units(self, i: int) -> int:
        """The columns of layer i's matrix."""
        return _length(self.own[i]) if self.kinds[i] == COLUMN else self.widths[i + 1]

    def _kept(self, i: int) -> int:
        """The units of layer i whose activation this rank computes: all after a sum on every rank, else its own."""
        summed = self.kinds[i] == ROW and self.kinds[i + 1] == COLUMN
        return self.widths[i + 1] if summed else _length(self.own[i])

    def _own_columns(self, i: int, of_layer: Array) -> Array:
        """This rank's units of an array of a layer's outputs, which has these alone or all."""
        return of_layer if self.kinds[i] == COLUMN else of_layer[:, self.own[i]]

    def _scratch(self, name: str, layer: int, rows: int, units: int) -> Array:
        held = self._held.get((name, layer))
        if held is None or len(held) < rows:
            held = self._held[name, layer] = np.empty((rows, units), self.dtype)
        return held[:rows]

    def _factor_space(self) -> Factors:
        if self._factors is None:
            from .factors import Factors  # loads Numba

            self._factors = Factors(self._table, self.dtype)
        return self._factors

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes along: all but the scratch arrays."""
        return self.__dict__ | {"_held": {}, "_factors": None, "_sums": None}


def _length(indices: slice) -> int:
    return indices.stop - indices.start
