"""The stage of a model that one rank of a pipeline holds: micro-batches in one-forward-one-backward order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..data import Batch, LabelSummary
from ..data.rows import rows_of
from .base import Number, Sums
from .losses import Loss
from .split import ActivationSums
from .stages import Stage

Array = Any
PASSES = 1000  # of which times are kept


class StageLinks(Protocol):
    """How the stages of one copy of a model hand activations on, and their gradients back; see `comm.stage_links`.

    Attributes:
        stage, stages: the number of this one, and how many there are.
    """

    stage: int
    stages: int

    def send(self, stage: int, x: Array) -> None:
        """Send ``x``, C-contiguous, to another stage, without waiting for it; ``x`` may be changed afterwards."""
        ...

    def receive(self, stage: int, out: Array) -> Array:
        """Wait for what another stage has sent, in the order in which it was, into ``out``; return this."""
        ...

    def flush(self) -> None:
        """Wait until all has come that was sent."""
        ...

    def give_up(self) -> None:
        """Look after messages no more: an error has ended the pass; local."""
        ...

    def from_last(self, x: Array) -> Array:
        """``x`` ← that of the last stage, on all of them; C-contiguous; collective over them."""
        ...


class PassTimes(NamedTuple):
    """Seconds of one call of `loss_and_grad` on this rank.

    Attributes:
        micro_batches: how many there were.
        total: of the call.
        first: from its begin until the first micro-batch has been back and forth.
        busy: that this stage has computed, for a micro-batch.
    """

    micro_batches: int
    total: float
    first: float
    busy: float


def one_forward_one_backward(stage: int, stages: int, micro_batches: int) -> Iterator[tuple[bool, int]]:
    """What a stage does in a step, in this order: (whether forward, number of the micro-batch).

    The stage goes ahead by as many micro-batches as stages follow it, then takes one forward and one backward in turn,
    and in the end those backward that are left: Narayanan et al. 2021, "Memory-Efficient Pipeline-Parallel DNN
    Training", section 3.2 (PipeDream-Flush).  All of a step have come back before parameters change.
    """
    ahead = min(stages - stage - 1, micro_batches)
    for number in range(ahead):
        yield True, number
    for number in range(ahead, micro_batches):
        yield True, number
        yield False, number - ahead
    for number in range(micro_batches - ahead, micro_batches):
        yield False, number


class PipelinedModel:
    """The ``stage`` that this rank holds of the model ``whole``, as a `split.PartOfModel`.

    A batch is cut into micro-batches, whose sums of gradients are added up: results are those of the whole model to
    rounding.  All its passes are collective over the ranks that hold the stages, and give all of them the same sums and
    outputs.

    Args:
        whole: the model, which `SupportsStages`.
        stage: this rank's layers.
        bounds: of them: the first, and the one after the last.
        links: to the other stages.
        micro_batches: of each batch; of fewer rows as many as there are rows.
        recompute: whether stages keep their inputs alone, and compute activations again for the backward pass (Chen,
            Xu, Zhang & Guestrin 2016, "Training Deep Nets with Sublinear Memory Cost", section 3).

    Attributes:
        passes: times of the last calls of `loss_and_grad`.
    """

    def __init__(
        self,
        whole: Any,
        stage: Stage,
        bounds: tuple[int, int],
        links: StageLinks,
        micro_batches: int,
        recompute: bool,
    ) -> None:
        self.whole, self.stage, self.links = whole, stage, links
        self.micro_batches, self.recompute = micro_batches, recompute
        self.layout, self.dtype, self.pieces = stage.layout, stage.dtype, stage.pieces
        self.widths, self.dropout = whole.widths, getattr(whole, "dropout", 0.0)
        costs = whole.layer_costs()
        self._inputs, self._units = costs[bounds[0] - 1].outputs, costs[bounds[1] - 1].outputs
        self._is_first, self._is_last = links.stage == 0, links.stage == links.stages - 1
        self._in_flight = max(1, min(links.stages - links.stage, micro_batches))
        self._held: dict[tuple[str, int], Array] = {}
        self.passes: deque[PassTimes] = deque(maxlen=PASSES)
        self._busy = 0.0

    # --- of the whole model

    @property
    def loss_function(self) -> Loss:
        """The loss of the whole model."""
        return self.whole.loss_function

    @property
    def takes_sparse(self) -> bool:
        """See `SupportsSparse`."""
        return getattr(self.whole, "takes_sparse", False)

    @property
    def target_dtype(self) -> np.dtype | None:
        """See `Abilities`."""
        return getattr(self.whole, "target_dtype", None)

    def check_data(self, labels: LabelSummary) -> None:
        """See `SupportsDataCheck`."""
        if hasattr(self.whole, "check_data"):
            self.whole.check_data(labels)

    def join(self, sums: ActivationSums) -> None:
        """See `split.PartOfModel`."""
        self.stage.join(sums)

    def init(self, rng: np.random.Generator) -> Array:
        """This rank's part of the whole model's starting parameters, shape (layout.size,)."""
        return self.stage.init(rng)

    # --- training

    def loss_and_grad(self, w: Array, batch: Batch, grad: Array) -> Sums:
        """As `Model.loss_and_grad`, of this rank's parameters; collective over the stages."""
        grad[:] = 0
        parts = self._cut(batch)
        if not parts:
            return Sums(0.0, 0.0)
        sums, began, first, self._busy = Sums(0.0, 0.0), time.perf_counter(), 0.0, 0.0
        try:
            for forward, number in one_forward_one_backward(self.links.stage, self.links.stages, len(parts)):
                if forward:
                    sums += self._forward(w, parts[number], number)
                    continue
                self._backward(w, parts[number], number, grad)
                if number == 0:
                    first = time.perf_counter() - began
        except BaseException:
            self.links.give_up()
            raise
        self.links.flush()
        loss, weight = self.links.from_last(np.array(sums, np.float64)).tolist()
        self.passes.append(PassTimes(len(parts), time.perf_counter() - began, first, self._busy / len(parts)))
        return Sums(loss, weight)

    def _forward(self, w: Array, batch: Batch, number: int) -> Sums:
        kept, x = self._kept(number), self._received(batch, number)
        if self._is_last:
            return self._timed(self.stage.losses, w, batch, x, kept)
        self.links.send(self.links.stage + 1, self._timed(self.stage.forward, w, batch, x, kept))
        return Sums(0.0, 0.0)

    def _backward(self, w: Array, batch: Batch, number: int, grad: Array) -> None:
        kept, rows, delta = self._kept(number), len(batch.y), None
        x = None if self._is_first else self._scratch("x", number % self._in_flight, rows, self._inputs)
        if not self._is_last:
            if self.recompute:  # while the gradient is on its way
                self._timed(self.stage.forward, w, batch, x, kept)
            delta = self.links.receive(self.links.stage + 1, self._scratch("delta", 0, rows, self._units))
        before = self._timed(self.stage.backward, w, batch, x, kept, delta, grad)
        if not self._is_first:
            self.links.send(self.links.stage - 1, before)

    def _kept(self, number: int) -> int:
        return 0 if self.recompute else number % self._in_flight

    def _received(self, batch: Batch, number: int) -> Array | None:
        """What the stage before has made of micro-batch ``number``."""
        if self._is_first:
            return None
        into = self._scratch("x", number % self._in_flight, len(batch.y), self._inputs)
        return self.links.receive(self.links.stage - 1, into)

    def _timed(self, function: Callable[..., Any], *args: Any) -> Any:
        began = time.perf_counter()
        result = function(*args)
        self._busy += time.perf_counter() - began
        return result

    def _cut(self, batch: Batch) -> list[Batch]:
        """The micro-batches of ``batch``, of nearly equal numbers of rows and none without any."""
        rows = len(batch.y)
        count = min(self.micro_batches, rows)
        ends = [rows * number // count for number in range(count + 1)] if count else []
        return [batch.take(slice(low, high)) for low, high in pairwise(ends)]

    # --- answers

    def score(self, w: Array, batch: Batch) -> tuple[Sums, Number]:
        """Sums of losses without dropout, and the weight of the rows whose label is predicted; collective."""
        totals = np.zeros(3)
        for part, outputs in self._outputs(w, batch):
            sums, correct = self.whole.score_outputs(outputs, part)
            totals += (*sums, correct)
        if len(batch.y):
            self.links.from_last(totals)
        loss, weight, right = totals.tolist()
        return Sums(loss, weight), right

    def loss(self, w: Array, batch: Batch) -> Sums:
        """See `Model.loss`; collective."""
        return self.score(w, batch)[0]

    def outputs(self, w: Array, x: Array) -> Array:
        """Outputs of the whole model for the rows of ``x``, shape (rows, widths[-1]), until the next call; collective.

        Every stage gets them.
        """
        rows = rows_of(x).shape[0]
        none = np.zeros(rows, np.int64)
        out, at = self._scratch("outputs", 0, rows, self.widths[-1]), 0
        for part, outputs in self._outputs(w, Batch(x, none, None, none, 0, train=False)):
            out[at : at + len(part.y)] = outputs
            at += len(part.y)
        return self.links.from_last(out) if rows else out

    def predict(self, w: Array, x: Array) -> Array:
        """The whole model's answers; collective."""
        return self.loss_function.predict(self.outputs(w, x))

    def _outputs(self, w: Array, batch: Batch) -> Iterator[tuple[Batch, Array]]:
        """Take a batch forward; on the last stage yields micro-batches and the model's outputs for them."""
        for part in self._cut(batch._replace(train=False)):
            outputs = self.stage.forward(w, part, self._received(part, 0), 0)
            if self._is_last:
                yield part, outputs
            else:
                self.links.send(self.links.stage + 1, outputs)
        self.links.flush()

    def _scratch(self, name: str, number: int, rows: int, units: int) -> Array:
        held = self._held.get((name, number))
        if held is None or len(held) < rows:
            held = self._held[name, number] = np.empty((rows, units), self.dtype)
        return held[:rows]


def bounds_of(cuts: Sequence[int], layers: int, stage: int) -> tuple[int, int]:
    """The first layer of a stage, and the one after its last, where stages begin at ``cuts``."""
    all_bounds = (0, *cuts, layers)
    return all_bounds[stage], all_bounds[stage + 1]
