"""Layers of an MLP, or one rank's part of each of them: columns or rows of its matrix.

Every parameter belongs to one rank.  A layer's bias is cut as its units are, also where the matrix is cut by rows: each
rank adds its part to its own columns of the sum.  Results equal those of the whole model to rounding, under dropout
too, whose masks are keyed by a unit's number in the whole layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backend import HOST
from ..data import Batch
from ..data.rows import DenseRows
from ..params import Layout
from .base import Sums
from .losses import Loss
from .losses.softmax import Softmax
from .split import COLUMN, ROW, ActivationSums, Piece, choose_kinds, cut_units
from .workspace import Workspace

Array = Any
ByLayer = dict[int, Array]


class MLPPart:
    """Part ``rank`` of layers ``first`` to ``stop`` - 1 of ``whole``; see `stages.Stage`.

    Args:
        whole: the `MLP`, the same on all ranks.
        first, stop: which layers, counted from 0.
        rank: which part of them this is.
        shares: how large each part is, in proportion.

    Attributes:
        span: the numbers of the layers, by which all else is found.
        kinds: of each layer, whether its matrix is cut by columns or by rows; see `split.choose_kinds`.
        cuts: of the units of each layer's output, counted from 0; also of the input, where the first layer is cut by
            rows.
        own: this part's units among them.

    Raises:
        ConfigError: a layer has too few units for so many parts.
    """

    def __init__(self, whole: Any, first: int, stop: int, rank: int, shares: Sequence[float]) -> None:
        self.whole, self.span, self.rank, self.parts = whole, range(first, stop), rank, len(shares)
        self.dtype, self.widths, self._last = whole.dtype, whole.widths, whole.layers - 1
        self.kinds = self._choose_kinds()
        self.cuts = {i: self._cut(i, shares) for i in self.span}
        if self.kinds[first] == ROW:
            self.cuts[first - 1] = cut_units(self.widths[first], shares, f"layer {first} of {whole.layers}")
        self.own = {i: slice(cuts[rank], cuts[rank + 1]) for i, cuts in self.cuts.items()}
        self.layout, self.pieces = self._lay_out()
        self._space = Workspace(HOST, self.widths, self.dtype, whole.loss_function)
        self._held: dict[tuple[str, int, int], Array] = {}
        self._sums: ActivationSums | None = None

    def _choose_kinds(self) -> dict[int, str]:
        given, passed_on = self.span.start > 0, self.span.stop <= self._last
        if self.parts == 1:
            return dict.fromkeys(self.span, COLUMN)
        widths = self.widths[self.span.start : self.span.stop + 1]
        softmax = isinstance(self.whole.loss_function, Softmax)
        return dict(zip(self.span, choose_kinds(widths, softmax, given, passed_on), strict=True))

    def _cut(self, layer: int, shares: Sequence[float]) -> list[int]:
        units = self.widths[layer + 1]
        if layer == self._last and self.kinds[layer] == ROW and units < self.parts:
            return [min(part, units) for part in range(self.parts)] + [units]  # the first ranks have the biases
        return cut_units(units, shares, f"layer {layer + 1} of {self.whole.layers}")

    def _lay_out(self) -> tuple[Layout, tuple[Piece, ...]]:
        """The arrays of this part, and where they lie in those of the whole model."""
        arrays: list[tuple[str, tuple[int, ...], bool]] = []
        pieces: list[Piece] = []
        before = self.span.start * (2 if self.whole.bias else 1)  # slots
        for i, kind in self.kinds.items():
            inputs, units = slice(0, self.widths[i]), slice(0, self.widths[i + 1])
            if kind == COLUMN:
                units = self.own[i]
            else:
                inputs = self.own[i - 1]
            arrays.append((f"layer{i + 1}.weight", (length(inputs), length(units)), True))
            pieces.append(Piece(before + len(pieces), (inputs, units)))
            if self.whole.bias:
                arrays.append((f"layer{i + 1}.bias", (length(self.own[i]),), False))
                pieces.append(Piece(before + len(pieces), (self.own[i],)))
        return Layout.of(arrays), tuple(pieces)

    def join(self, sums: ActivationSums) -> None:
        """See `split.PartOfModel`."""
        self._sums = sums

    @property
    def loss_function(self) -> Loss:
        """The loss of the whole model."""
        return self.whole.loss_function

    def init(self, rng: np.random.Generator) -> Array:
        """This part of `MLP.init`, which is never made whole; shape (layout.size,)."""
        w = np.zeros(self.layout.size, self.dtype)
        matrices = self.layout.views(w)
        names = [slot.name for slot in self.whole.layout.slots]
        indices = {piece.slot: piece.ranges for piece in self.pieces}
        for (slot, first), drawn in self.whole.draw(rng):
            if slot not in indices:
                continue
            rows, columns = indices[slot]
            low, high = max(first, rows.start), min(first + len(drawn), rows.stop)
            if low < high:
                into = matrices[names[slot]][low - rows.start : high - rows.start]
                into[:] = drawn[low - first : high - first, columns]
        return w

    # --- passes over micro-batches

    def forward(self, w: Array, batch: Batch, x: Array, kept: int) -> Array:
        """See `stages.Stage`."""
        inputs, slopes = self._kept_arrays(batch, x, kept)
        matrices, biases = self._arrays(w)
        self._forward_all(matrices, biases, batch, inputs, slopes)
        last = self._last
        if last not in self.span:
            return inputs[self.span.stop]
        return self._outputs(matrices[last], biases[last], batch, inputs[last])

    def losses(self, w: Array, batch: Batch, x: Array, kept: int) -> Sums:
        """See `stages.Stage`."""
        inputs, slopes = self._kept_arrays(batch, x, kept)
        matrices, biases = self._arrays(w)
        self._forward_all(matrices, biases, batch, inputs, slopes)
        last = self._last
        return self._losses(matrices[last], biases[last], batch, inputs[last], self._deltas(len(batch.y))[last])

    def backward(self, w: Array, batch: Batch, x: Array, kept: int, delta: Array, grad: Array) -> Array | None:
        """See `stages.Stage`."""
        from .blas import add_t_dot  # loads SciPy

        inputs, slopes = self._kept_arrays(batch, x, kept)
        matrices, _ = self._arrays(w)
        weight_grads, bias_grads = self._arrays(grad)
        first, top, rows = self.span.start, self.span.stop - 1, len(batch.y)
        deltas = self._deltas(rows)
        if delta is not None:
            own = delta[:, self.own[top]] if self.kinds[top] == COLUMN else delta
            np.multiply(own, slopes[top], out=deltas[top])
        for i in reversed(self.span):
            if i > 0:
                add_t_dot(inputs[i], deltas[i], weight_grads[i])
            elif isinstance(batch.rows, DenseRows):
                add_t_dot(batch.rows.x, deltas[0], weight_grads[0])
            else:
                weight_grads[0] += batch.rows.t_dot(deltas[0])
            if self.whole.bias:
                bias_grads[i] += np.add.reduce(self._own_columns(i, deltas[i]), axis=0)
            if i > first:
                self._backward(i, matrices[i], slopes[i - 1], deltas)
        if first == 0:
            return None
        deltas[first - 1] = self._scratch("delta", first - 1, rows, self.widths[first])
        self._backward(first, matrices[first], None, deltas)
        return deltas[first - 1]

    def _kept_arrays(self, batch: Batch, x: Array, kept: int) -> tuple[ByLayer, ByLayer]:
        """The layers' inputs, of which the first is ``x`` or the batch's rows, and slopes of their activations."""
        rows, first, stop = len(batch.y), self.span.start, self.span.stop
        inputs = {i: self._scratch("a", i, rows, self._input(i), kept) for i in self.span[1:]}
        inputs[first] = batch.rows if x is None else x
        if self.kinds[first] == ROW:
            inputs[first] = self._scratch("a", first, rows, self._input(first), kept)
            inputs[first][:] = x[:, self.own[first - 1]]
        if stop <= self._last:
            inputs[stop] = self._scratch("a", stop, rows, self.widths[stop], kept)
        slopes = {i: self._scratch("slope", i, rows, self._kept(i), kept) for i in self.span if i < self._last}
        return inputs, slopes

    def _deltas(self, rows: int) -> ByLayer:
        """Where gradients by the layers' outputs go."""
        return {i: self._scratch("delta", i, rows, self._units(i)) for i in self.span}

    # --- layers

    def _forward_all(self, matrices: ByLayer, biases: ByLayer, batch: Batch, inputs: ByLayer, slopes: ByLayer) -> None:
        """All layers but the last of the model, into ``inputs`` and ``slopes``."""
        for i in slopes:
            self._forward(i, matrices[i], biases[i], batch, inputs, slopes[i])

    def _forward(self, i: int, matrix: Array, bias: Array, batch: Batch, inputs: ByLayer, slope: Array) -> None:
        """The input of layer i + 1, as that layer needs it, from that of layer i."""
        assert self._sums is not None, "join() comes first"
        out, rows, units = inputs[i + 1], len(batch.y), self.widths[i + 1]
        takes_all = self.kinds.get(i + 1, COLUMN) == COLUMN  # the next stage does
        if self.kinds[i] == COLUMN:
            apart = takes_all and self.parts > 1
            own = self._scratch("own", i, rows, length(self.own[i])) if apart else out
            self._dot(i, batch, inputs[i], matrix, own)
            self._activate(own, bias, slope, i, batch, self.own[i].start)
            if apart:
                self._sums.gather(2 * i, own, self.cuts[i], out)
            return
        if not takes_all:
            partial = self._scratch("partial", i, rows, units)
            self._dot(i, batch, inputs[i], matrix, partial)
            self._sums.scatter(2 * i, partial, self.cuts[i], out)
            self._activate(out, bias, slope, i, batch, self.own[i].start)
            return
        out[:] = self._summed(i, batch, inputs[i], matrix, bias)
        self._activate(out, self._space.no_bias[i], slope, i, batch, 0)

    def _backward(self, i: int, matrix: Array, slope: Array | None, deltas: ByLayer) -> None:
        """The gradient by the outputs of layer i - 1 from that of layer i; without a ``slope`` by activations."""
        assert self._sums is not None
        delta, before, rows = deltas[i], deltas[i - 1], len(deltas[i])
        slot, wants_all = 2 * i + 1, self.kinds.get(i - 1, ROW) == ROW  # the stage before does
        if self.kinds[i] == ROW:
            own = self._scratch("own", i - 1, rows, length(self.own[i - 1])) if wants_all else before
            np.dot(delta, matrix.T, out=own)
            if slope is not None:
                own *= slope
            if wants_all:
                self._sums.gather(slot, own, self.cuts[i - 1], before)
            return
        if self.parts == 1:
            np.dot(delta, matrix.T, out=before)
        elif wants_all:
            partial = self._sums.partial(slot, rows, self.widths[i])
            np.dot(delta, matrix.T, out=partial)
            before[:] = self._sums.sum(partial)
        else:
            partial = self._scratch("partial", i - 1, rows, self.widths[i])
            np.dot(delta, matrix.T, out=partial)
            self._sums.scatter(slot, partial, self.cuts[i - 1], before)
        if slope is not None:
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

    # --- the last layer of the model

    def _outputs(self, matrix: Array, bias: Array, batch: Batch, x: Array) -> Array:
        """The whole model's outputs, until the next call."""
        last, rows = self._last, len(batch.y)
        if self.kinds[last] == ROW:
            return self._summed(last, batch, x, matrix, bias)
        own = self._scratch("delta", last, rows, self._units(last))
        self._dot(last, batch, x, matrix, own)
        own += bias
        if self.parts == 1:
            return own
        assert self._sums is not None
        out = self._scratch("outputs", last, rows, self.widths[-1])
        self._sums.gather(2 * last, own, self.cuts[last], out)
        return out

    def _losses(self, matrix: Array, bias: Array, batch: Batch, x: Array, delta: Array) -> Sums:
        """The sums of losses, and their gradient by this rank's outputs into ``delta``."""
        last, space = self._last, self._space
        if self.kinds[last] == COLUMN:
            self._dot(last, batch, x, matrix, delta)
            delta += bias
            if self.parts > 1:
                return self._split_softmax(delta, batch)
        else:
            delta[:] = self._summed(last, batch, x, matrix, bias)
        weight = space.no_weights if batch.weight is None else batch.weight
        none = space.no_bias[last], batch.y, weight, space.unused[last], space.no_weights
        return Sums(space.residual(delta, *none), space.total_weight(batch))

    def _split_softmax(self, z: Array, batch: Batch) -> Sums:
        """`losses.Softmax` of outputs of which ``z`` are this rank's; they become the derivatives by them.

        Of each row the parts exchange their largest output, the sum of exponentials beside it, and the label's output.
        """
        assert self._sums is not None
        own, rows = self.own[self._last], len(z)
        mine = np.flatnonzero((batch.y >= own.start) & (batch.y < own.stop))
        labels = batch.y[mine] - own.start
        told = np.zeros((rows, 3))
        told[:, 0] = z.max(axis=1, initial=-np.inf)
        with np.errstate(invalid="ignore"):  # a row without a finite output shows in the loss
            told[:, 1] = np.exp(z - told[:, :1].astype(z.dtype)).sum(axis=1, dtype=np.float64)
        told[mine, 2] = z[mine, labels]
        heard = np.empty((rows, 3 * self.parts))
        self._sums.gather(2 * self._last + 2, told, range(0, 3 * self.parts + 1, 3), heard)
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

    # --- arrays

    def _arrays(self, flat: Array) -> tuple[ByLayer, ByLayer]:
        """Matrices and biases inside ``flat``; zeros in place of biases where there are none."""
        views = list(self.layout.views(flat).values())
        matrices = views[::2] if self.whole.bias else views
        biases = views[1::2] if self.whole.bias else [self._space.no_bias[i][self.own[i]] for i in self.span]
        return dict(zip(self.span, matrices, strict=True)), dict(zip(self.span, biases, strict=True))

    def _input(self, i: int) -> int:
        """The width of layer i's input as this rank holds it."""
        return self.widths[i] if self.kinds[i] == COLUMN else length(self.own[i - 1])

    def _units(self, i: int) -> int:
        """The columns of layer i's matrix."""
        return length(self.own[i]) if self.kinds[i] == COLUMN else self.widths[i + 1]

    def _kept(self, i: int) -> int:
        """The units of layer i whose activation this rank computes: all after a sum on every rank, else its own."""
        summed = self.kinds[i] == ROW and self.kinds.get(i + 1, COLUMN) == COLUMN
        return self.widths[i + 1] if summed else length(self.own[i])

    def _own_columns(self, i: int, of_layer: Array) -> Array:
        """This rank's units of an array of a layer's outputs, which has these alone or all."""
        return of_layer if self.kinds[i] == COLUMN else of_layer[:, self.own[i]]

    def _scratch(self, name: str, layer: int, rows: int, units: int, kept: int = 0) -> Array:
        held = self._held.get((name, layer, kept))
        if held is None or len(held) < rows:
            held = self._held[name, layer, kept] = np.empty((rows, units), self.dtype)
        return held[:rows]

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes along: all but the scratch arrays."""
        return self.__dict__ | {"_held": {}, "_sums": None}


def length(indices: slice) -> int:
    """How many elements there are in a range."""
    return indices.stop - indices.start
