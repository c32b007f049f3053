"""The function that is minimised: the mean loss over all rows of all ranks, plus a penalty.

    f(w) = Σ weight · loss / Σ weight  +  ½ l2 ‖w‖²  +  l1 ‖w‖₁    (norms over slots with decay: no biases)

Models give sums over the rows of a rank.  Here alone they are summed over the ranks and divided by
the global weight, so that ranks may hold different numbers of rows, or none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .backend import HOST, Device, device_of, namespace, number
from .comm import Exchange, choose_exchange, of_touched
from .data import Batch
from .errors import ConfigError
from .models import Abilities, Model, Number, Sums
from .params import Layout, Ownership

if TYPE_CHECKING:
    from .comm import Communicator, Mesh
    from .data import Loader

Array = Any


class DistributedSum:
    """A sum over ranks divided by its weight, plus penalties: how its vectors lie and travel, not what is summed.

    Args:
        layout, dtype: of the parameters.
        comm: the ranks whose parts are summed: those that share the rows.  Each owns a slice of all vectors.
        mesh: of ranks that hold parts of a model, of which ``layout`` is this rank's; ``comm`` is its data group.
            None: every rank of ``comm`` has the whole.
        device: where vectors live.
        l2: strength of the penalty ½ l2 ‖w‖² over slots with decay.
        l1: strength of the penalty l1 ‖w‖₁ over slots with decay.  It has no gradient: values contain it, gradients do
            not, and solvers take account of it.
        asked: how gradients and parameters travel; None: by the communicator's default algorithm.
        whole: every rank owns the whole of all vectors, which are short.

    Attributes:
        everyone: the ranks that hold the parameters of all parts: those of the mesh, or of ``comm``.
        exchange: what ``asked`` has come to, see `comm.choose_exchange`.
        row_exchange: of vectors that rows alone make, or are multiplied by: gradients, and directions.  The same,
            unless somebody knows that each node's rows touch few elements, see `Objective.exchange_touched`.
        owners, mine: the slices of the ranks, and this rank's.
        strengths: what l2 is multiplied by for each parameter, float64, shape (layout.size,), for parameters in other
            units than those of the penalty; None: by 1.  On the host.

    Raises:
        ConfigError: the exchange cannot be had, see `comm.choose_exchange`.

    Every method that returns a value for all ranks is collective: call it on all of them.
    """

    def __init__(
        self,
        layout: Layout,
        dtype: Any,
        comm: Communicator,
        *,
        mesh: Mesh | None = None,
        device: Device = HOST,
        l2: float = 0.0,
        l1: float = 0.0,
        asked: Exchange | None = None,
        whole: bool = False,
    ) -> None:
        self.layout, self.dtype, self.device = layout, np.dtype(dtype), device
        self.comm, self.l2, self.l1, self.whole, self.asked = comm, l2, l1, whole, asked or Exchange()
        self.mesh, self.everyone = mesh, comm if mesh is None else mesh.comm
        if whole:
            self.exchange = comm.exchange("native")
            self.owners = Ownership.replicate(layout.size, comm.size)
        else:
            self.exchange = choose_exchange(comm, self.asked, layout.size, self.dtype, device)
            self.owners = self.exchange.ownership(layout.size, self.dtype.itemsize)
        self.row_exchange = self.exchange
        self.mine = self.owners.slices[comm.rank]
        self.strengths: Array | None = None
        self._decay = layout.decay_ranges(self.mine.start, self.mine.stop) if l2 else []
        self._penalty: Array | None = None  # l2 · w of a block

    def empty(self, shared: bool = True, one_copy: bool = False) -> Array:
        """A vector of zeros for parameters or a gradient, shape (layout.size,), where batches are; collective.

        Shared with the ranks of the node where the exchange uses that, and with ``one_copy`` the only one of the node;
        private without ``shared``.
        """
        shared = shared and self.exchange.shares
        return self.comm.empty(self.layout.size, self.dtype, shared, self.device, one_copy and shared)

    def mark(self, phase: int) -> None:
        """Tell the recorder of the run, where there is one, that this rank turns to ``phase``, and is done before."""
        recorder = self.everyone.recorder
        if recorder is not None:
            if self.device is not HOST:
                self.device.synchronize()
            recorder.mark(phase)

    @property
    def rounds(self) -> int:
        """Collective calls that this rank has made so far."""
        return sum(comm.rounds for comm in self.comms)

    @property
    def bytes_moved(self) -> int:
        """Bytes that this rank has sent in collectives so far."""
        return sum(comm.bytes_sent for comm in self.comms)

    @property
    def comms(self) -> tuple[Communicator, ...]:
        """All communicators that a step may use."""
        return (self.comm,) if self.mesh is None else (self.everyone, *self.mesh.groups)

    def reduce_grad(self, w: Array, grad: Array, weight: float) -> Array:
        """The owned slice of the gradient of f, from every rank's gradient of its sum of losses.

        ``grad``, shape (layout.size,), local on entry, is overwritten: the result is its slice
        ``mine``, divided by the global ``weight`` and with the penalty's l2 · w added.  The rest of it must not be
        written before the ranks have met again, as in an allgather.
        """
        for _ in self.reduce_grad_parts(w, grad, weight):
            pass
        return grad[self.mine]

    def reduce_grad_parts(self, w: Array, grad: Array, weight: float) -> Iterator[slice]:
        """As `reduce_grad`, yielding ranges of the owned slice, counted from its start, as they are ready."""
        owned, w_owned = grad[self.mine], w[self.mine]
        for part in self.row_exchange.reduce(grad, self.owners, 1.0 / weight):
            self._add_penalty(owned, w_owned, self._decay, part)
            yield part

    def mean_grad(self, owned: Array, w: Array, weight: float, part: slice) -> None:
        """Make elements ``part`` of the slice ``owned`` of a sum of gradients those of f, in place; local."""
        owned[part] *= owned.dtype.type(1.0 / weight)
        self._add_penalty(owned, w[self.mine], self._decay, part)

    def local_grad(self, w: Array, grad: Array, weight: float) -> Array:
        """As `reduce_grad` from this rank's rows alone: all of ``grad`` becomes that of their mean loss and penalty."""
        decay = self.layout.decay_ranges(0, w.size) if self.l2 else []
        grad *= grad.dtype.type(1.0 / weight)
        self._add_penalty(grad, w, decay, slice(0, w.size))
        return grad

    def _add_penalty(self, grad: Array, w: Array, decay: Sequence[tuple[int, int]], part: slice) -> None:
        """Add l2 · w to the elements ``part`` of ``grad`` in the ranges ``decay``; in place."""
        device, number = device_of(grad), grad.dtype.type
        strengths = self.strengths
        if strengths is not None and w.size < strengths.size:
            strengths = strengths[self.mine]
        for low, high in decay:
            start, stop = max(low, part.start), min(high, part.stop)
            for i in range(start, stop, device.block):
                block = slice(i, min(i + device.block, stop))
                if self._penalty is None:
                    self._penalty = device.xp.empty(min(device.block, self.layout.size), grad.dtype)
                penalty = device.xp.multiply(w[block], number(self.l2), out=self._penalty[: block.stop - i])
                if strengths is not None:
                    np.multiply(penalty, strengths[block], out=penalty, casting="same_kind")
                grad[block] += penalty

    def mean(self, w: Array, local: Sums) -> tuple[float, float]:
        """The mean of the ranks' ``local`` sums plus the penalties at ``w``, and the global weight; alike everywhere.

        Each rank adds up the penalties of its own slice: one reduced sum, the same bits on all ranks.
        """
        (loss, weight), norms = self.sums([*local], self.owned_norms(w))
        return loss / weight + self.penalty(norms), weight

    def owned_norms(self, w: Array) -> list[Number]:
        """This rank's parts of the sums over slices that `penalty` is made of; local."""
        return [self.owned_square(w), *([self.owned_absolute(w)] if self.l1 else [])]

    def penalty(self, norms: Sequence[float]) -> float:
        """½ l2 ‖w‖² + l1 ‖w‖₁, where ``norms`` are `owned_norms` over all ranks; local."""
        return 0.5 * self.l2 * norms[0] + sum(norms[1:])

    def sums(self, of_rows: Any, of_slices: Any) -> tuple[list[float], list[float]]:
        """Sums over the ranks that share rows, and over all that own slices; one message, the same bits everywhere."""
        # All parts of a copy have the same sums over its rows, of which one counts: all ranks then get the same bits.
        first = self.mesh is None or self.mesh.copy_group.rank == 0
        totals = self.everyone.sum([*(value if first else 0.0 for value in of_rows), *of_slices]).tolist()
        return totals[: len(of_rows)], totals[len(of_rows) :]

    def norm(self, owned: Array) -> float:
        """Euclidean norm of a vector of which ``owned`` is this rank's slice, in float64; the same on every rank."""
        return math.sqrt(self.everyone.sum([square(owned) if self.counts else 0.0])[0])

    def norm_of_copy(self, grad: Array) -> float:
        """Euclidean norm of a vector that each copy of the model has for itself, of which ``grad`` is this rank's part.

        In float64; collective over the ranks of the copy.
        """
        own = square(grad)
        return math.sqrt(number(own) if self.mesh is None else self.mesh.copy_group.sum([own])[0])

    @property
    def counts(self) -> bool:
        """Whether this rank's slice belongs to sums over slices: of replicated ones rank 0's alone does."""
        return self.comm.rank == 0 or not self.owners.replicated

    def owned_square(self, w: Array) -> Number:
        """‖w‖² over the slots with decay in the owned slice, this rank's part of a sum over ranks; local."""
        if not self.counts:
            return 0.0
        owned = w[self.mine]
        return sum(self.decay_product(owned, owned, start, stop) for start, stop in self._decay)

    def owned_absolute(self, w: Array) -> Number:
        """l1 ‖w‖₁ over the slots with decay in the owned slice, this rank's part of a sum over ranks; local."""
        return inner(self.thresholds(), np.abs(w[self.mine])) if self.counts else 0.0

    def thresholds(self) -> Array:
        """What |w| is multiplied by in the penalty, for each parameter of the owned slice, float64; local.

        That is l1, or 0 of slots without decay; in other units, see `strengths`, l1 times the factor of |w|.
        """
        found = np.zeros(self.mine.stop - self.mine.start)
        for low, high in self.layout.decay_ranges(self.mine.start, self.mine.stop):
            found[low:high] = self.l1
        return found if self.strengths is None else found * np.sqrt(self.strengths[self.mine])

    def decay_product(self, a: Array, b: Array, start: int, stop: int) -> Number:
        """aᵀb of elements ``start`` to ``stop`` - 1 of owned slices, times `strengths` where there are; local."""
        if self.strengths is None:
            return inner(a[start:stop], b[start:stop])
        return inner(a[start:stop] * self.strengths[self.mine][start:stop], b[start:stop])


class Objective(DistributedSum):
    """Mean loss of ``model`` over the rows of ``loader`` on all ranks of ``comm``, with penalties.

    Args:
        model: the same on every rank, or on a mesh this rank's part of it.
        loader: this rank's rows, which may be none.
        comm, mesh, l2, l1, asked, whole: see `DistributedSum`.

    Attributes:
        abilities: of the model, asked once.

    Raises:
        ConfigError: see `DistributedSum`.
        DataError: the model can tell that the rows do not fit it.
    """

    def __init__(self, model: Model, loader: Loader, comm: Communicator, **given: Any) -> None:
        self.abilities = Abilities.of(model)
        if self.abilities.data_check is not None:
            self.abilities.data_check.check_data(loader.shard.labels)
        super().__init__(model.layout, model.dtype, comm, device=loader.device, **given)
        self.model, self.loader = model, loader
        self._block_grad: Array | None = None

    def exchange_touched(self) -> None:
        """Exchange gradients by what this rank's rows touch, where that is little; collective.

        For who goes through the rows of `Loader.sequential` alone, which are the same each time.
        """
        touches = self.abilities.touches
        if touches is None or not self.loader.sparse or self.mesh is not None or self.owners.replicated:
            return
        marks = self.empty()
        for batch in self.loader.sequential():
            touches.mark_touched(batch, marks)
        self.row_exchange = of_touched(self.exchange, marks)

    def value(self, w: Array) -> float:
        """f(w) for ``w``, shape (layout.size,), replicated; the same on every rank."""
        local = Sums(0.0, 0.0)
        for batch in self.loader.sequential():
            local += self.model.loss(w, batch)
        return self.mean(w, local)[0]

    def value_and_grad(self, w: Array, grad: Array) -> float:
        """f(w), and its gradient without that of l1 into ``grad``; shape (layout.size,) and replicated."""
        local = self.sums_and_grad(w, self.loader.sequential(), grad)
        value, weight = self.mean(w, local)
        self.reduce_grad(w, grad, weight)
        self.exchange.publish(grad, self.owners)
        return value

    def sums_and_grad(
        self,
        w: Array,
        batches: Iterable[Batch],
        grad: Array,
        by: Callable[[Array, Batch, Array], Sums] | None = None,
    ) -> Sums:
        """Sums of losses and of weights over ``batches``, and the losses' gradient into ``grad``; local to the rank.

        ``by`` is what is summed, if not the model's ``loss_and_grad``.
        """
        by = by or self.model.loss_and_grad
        total = Sums(0.0, 0.0)
        first = True
        for batch in batches:
            if first:
                total += by(w, batch, grad)
                first = False
                continue
            if self._block_grad is None:
                self._block_grad = namespace(grad).empty_like(grad)
            total += by(w, batch, self._block_grad)
            grad += self._block_grad
        if first:
            grad[:] = 0
        return total

    def check_weight(self, weight: float) -> None:
        """Raise `ConfigError` unless ``weight``, by the model that of all rows of all ranks, is theirs; local."""
        shard, total = self.loader.shard, self.loader.total_weight
        rounding = 1e3 * float(np.finfo(self.dtype).eps)  # of sums; means in their place are off by far more
        if not math.isclose(weight, total, rel_tol=max(1e-9, rounding)):
            raise ConfigError(
                f"the model gives {shard.rows:,} rows the weight {weight:.9g} in place of {total:.9g};"
                " Sums.weight must be the sum of the rows' weights, 1 a row where they have none"
            )


def square(x: Array) -> Number:
    """x·x, summed in float64 block by block; local, and an array of shape () on the device of ``x``."""
    return inner(x, x)


def inner(x: Array, y: Array) -> Number:
    """x·y, summed in float64 block by block; local, and an array of shape () on the device of ``x``."""
    device = device_of(x)
    total = 0.0
    for start in range(0, x.size, device.block):
        block = slice(start, start + device.block)
        part = x[block].astype(np.float64)
        total += device.xp.dot(part, part if y is x else y[block].astype(np.float64))
    return total
