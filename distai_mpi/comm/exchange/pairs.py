"""Gradients that travel as index-value pairs, of the columns that rows touch alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...params import Ownership
from ...params.ownership import ALIGNMENT
from ..communicator import Communicator
from ..pairs import Message, as_pairs, as_slice, message_of, pairs_of, swap

Array = Any


class PairExchange:
    """Sums of sparse gradients, each slice on the rank that owns it, and parameters back to those that read them.

    Ranks that have one copy of the parameters in their node's memory show each other their pairs there; between copies
    messages travel, of pairs or of whole slices, whichever is shorter.  Sums are made in the order of the ranks.

    Args:
        comm: the ranks.
        owners: the slices of the vector, of which each rank owns one; they cover it.
        outputs: elements of a column: column j has the elements j · outputs to (j + 1) · outputs - 1.
        most: most pairs of any rank in a step, alike on all ranks.
        dtype, index: of values, and of columns.
        one_copy: whether the ranks of a node have one copy of the parameters; else each has its own.

    Attributes:
        columns, sums: this rank's pairs, for it to write: shape (most,) and (most, outputs).
        slots: working space of who writes them, shape (columns,), uint32.
        usable: whether ranks of a node share what they have to; alike on all of them.
    """

    def __init__(
        self,
        comm: Communicator,
        owners: Ownership,
        outputs: int,
        most: int,
        dtype: np.dtype,
        index: np.dtype,
        one_copy: bool,
    ) -> None:
        self._comm, self._mine, self._outputs, self._dtype, self._index = (
            comm, owners.slices[comm.rank], outputs, dtype, index
        )  # fmt: skip
        rank = comm.rank
        groups = comm.topology.nodes if one_copy else tuple((rank,) for rank in range(comm.size))
        self._group = next(group for group in groups if rank in group)
        self._local = self._group.index(rank)
        self._meets = len(self._group) > 1
        # the ranks by the order of their slices, empty ones first: see `pair_kernels.divide`
        self._order = sorted(range(comm.size), key=lambda r: (owners.slices[r].start, owners.slices[r].stop))
        self._place = {owner: place for place, owner in enumerate(self._order)}
        self._starts = np.array([owners.slices[r].start for r in self._order])
        self._slices = owners.slices
        self._others = [group for group in groups if group is not self._group]
        count = -(-owners.size // outputs)
        most = min(most, count)
        self.columns, self.sums = np.empty(most, index), np.empty((most, outputs), dtype)
        self.slots = np.zeros(count, np.uint32)
        self._allocate(min(most + comm.size, 2 * count), max(map(len, groups)), count)

    def _allocate(self, most: int, size: int, count: int) -> None:
        """What the ranks of a node, up to ``size``, show each other, and the sums of the owned slice."""
        comm, outputs, line = self._comm, self._outputs, ALIGNMENT // 4
        stride = -(-most // line) * line
        ends = -(-(comm.size + 1) // 8) * 8

        def shown(elements: int, dtype: Any) -> Array:
            return comm.empty(size * elements, dtype, size > 1, one_copy=True).reshape(size, elements)

        self._ends, self._shown = shown(ends, np.int64), shown(stride, self._index)
        self._shown_sums = shown(stride * outputs, self._dtype).reshape(size, stride, outputs)
        shared = size == 1 or all(map(comm.shares, (self._ends, self._shown, self._shown_sums)))
        self.usable = all(comm.allgather_object(shared))
        owned = min(count, (self._mine.stop - self._mine.start) // outputs + 2)
        self._found, self._found_sums = np.empty(owned, self._index), np.empty((owned, outputs), self._dtype)

    @property
    def work(self) -> tuple[Array, Array, Array]:
        """``columns``, ``sums`` and ``slots``."""
        return self.columns, self.sums, self.slots

    def warm_up(self) -> tuple[Array, Array]:
        """Compile what `reduce` needs, by no pairs at all; return none; local."""
        none = self.columns[:0], self.sums[:0]
        if self._comm.size > 1:
            from ..pair_kernels import divide, merge

            ends = np.zeros(self._comm.size + 1, np.int64)
            divide(*none, self._starts, ends, *none)
            merge(*none, 0, self._found, self._found_sums, self.slots)
        return none

    def reduce(self, count: int) -> tuple[Array, Array]:
        """The sums over all ranks of what the first ``count`` pairs of each hold of this rank's slice; collective.

        They hold until the next call.  Of a column that lies in several slices all elements are there, and those of
        others' slices are to be left alone.
        """
        columns, sums = self.columns[:count], self.sums[:count]
        if self._comm.size == 1:
            return columns, sums
        from ..pair_kernels import divide, merge, of_slice

        comm, local = self._comm, self._local
        divide(
            columns, sums, self._starts, self._ends[local, : comm.size + 1], self._shown[local], self._shown_sums[local]
        )
        comm.calls["reduce_scatter"] += 1
        self._meet()
        came = self._swap_gradients()
        found, place, read = 0, self._place[comm.rank], 0
        for source in range(comm.size):
            if source in self._group:
                at = self._group.index(source)
                low, high = self._ends[at, place], self._ends[at, place + 1]
                pairs = self._shown[at, low:high], self._shown_sums[at, low:high]
                read += 0 if source == comm.rank else int(high - low) * self._pair_bytes
            elif came[source].is_slice:
                values = came[source].payload.view(self._dtype)
                part, part_sums = np.empty_like(self._found), np.empty_like(self._found_sums)
                some = of_slice(values, self._mine.start, part, part_sums)
                pairs = part[:some], part_sums[:some]
            else:
                pairs = pairs_of(came[source], self._outputs, self._index, self._dtype)
            found = merge(*pairs, found, self._found, self._found_sums, self.slots)
        comm.bytes_read += read
        return self._found[:found], self._found_sums[:found]

    def publish(self, columns: Array, w: Array) -> None:
        """Let all copies of ``w`` have the ``columns`` of this rank's slice, which it has changed there; collective."""
        if self._comm.size == 1:
            return
        self._comm.calls["allgather"] += 1
        if not self._others:
            self._meet()
            return
        from ..pair_kernels import pick, put

        mine, values = self._mine, np.empty((columns.size, self._outputs), self._dtype)
        pick(columns, w, values)
        owned = w[mine]
        message = as_pairs(columns, values) if self._pairs_are_shorter(columns.size, mine) else as_slice(owned)
        comm, local = self._comm, self._local
        readers = [group[local % len(group)] for group in self._others]
        sources = [
            rank for group in self._others for at, rank in enumerate(group) if at % len(self._group) == local
        ]  # fmt: skip
        for source, came in swap(comm.wire, dict.fromkeys(readers, message), sources).items():
            span = self._slices[source]
            if came.is_slice:
                w[span] = came.payload.view(self._dtype)
            else:
                put(*pairs_of(came, self._outputs, self._index, self._dtype), span.start, w[span])
        self._meet()

    def meet(self) -> None:
        """Wait for the ranks that have this rank's copy of the parameters, and see what they wrote to it."""
        self._meet()

    def _meet(self) -> None:
        if self._meets:
            self._comm.synchronize_node()

    @property
    def _pair_bytes(self) -> int:
        return self._index.itemsize + self._outputs * self._dtype.itemsize

    def _pairs_are_shorter(self, count: int, span: slice) -> bool:
        return count * self._pair_bytes < (span.stop - span.start) * self._dtype.itemsize

    def _swap_gradients(self) -> dict[int, Message]:
        """Send their parts of this rank's pairs to the owners that read them nowhere; what all these have sent here."""
        if not self._others:
            return {}
        outgoing, local = {}, self._local
        for owner in (rank for group in self._others for rank in group):
            place, span = self._place[owner], self._slices[owner]
            low, high = self._ends[local, place], self._ends[local, place + 1]
            columns, sums = self._shown[local, low:high], self._shown_sums[local, low:high]
            outgoing[owner] = message_of(columns, sums, span)
        return swap(self._comm.wire, outgoing, list(outgoing))
