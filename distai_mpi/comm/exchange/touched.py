"""Vectors of which each node touches few elements, the same in every exchange: between nodes these alone travel.

So are gradients of sparse rows that stay with their ranks, and what such rows are multiplied by.
"""

from __future__ import annotations

from typing import Any

from ..touched import Touched, touched_allgather, touched_reduce_scatter
from ..wire import Array, MPIWire
from .base import VectorExchange
from .hierarchical import HierarchicalExchange

# Of the values of a dense exchange, up to which the touched ones are sent: to pick and add one takes about as long as
# 10 Gbit/s take to carry 2 bytes.
LONGEST = 0.6


class TouchedExchange(HierarchicalExchange):
    """As another exchange, but its rails carry only what nodes touch; see `of_touched`.

    `publish` leaves the elements that a node does not touch as they are there: it is for vectors that are read where
    they are touched.

    Args:
        plain: the exchange whose rails carry the values.
        touched: see `touched.agree`, of this rank's column; none where it carries none.
    """

    def __init__(self, plain: HierarchicalExchange, touched: Touched | None) -> None:
        super().__init__(plain._vectors, plain._messages)
        self._plain, self._touched = plain, touched

    @property
    def rail(self) -> MPIWire | None:
        """See `HierarchicalExchange`."""
        return self._plain.rail

    def free(self) -> None:
        """The rails belong to another exchange."""

    def _reduce_column(self, column: Array, slices: Any) -> None:
        assert self.rail is not None
        assert self._touched is not None
        touched_reduce_scatter(self.rail, column, self._touched, self._work)

    def _publish_column(self, column: Array, slices: Any, previous: Array | None) -> None:
        assert self.rail is not None
        assert self._touched is not None
        touched_allgather(self.rail, column, self._touched, self._work)


def of_touched(plain: VectorExchange, marks: Array) -> VectorExchange:
    """An exchange of vectors whose elements this rank touches where ``marks`` are not 0; collective.

    It is ``plain`` itself where that is not of several nodes, or where it takes little more: the values that the
    busiest rank would send or get are counted, once.

    Args:
        plain: of all other vectors of the run.
        marks: shape (n,), not negative, of the vectors' dtype, and shared as they are; overwritten.
    """
    if not isinstance(plain, HierarchicalExchange) or not plain.has(marks):
        return plain
    touched, topology = plain.touched(marks), plain.ranks.topology
    most = max(plain.ranks.allgather_object(0 if touched is None else touched.elements))
    nodes = len(topology.nodes)
    dense = marks.size / topology.rails * (nodes - 1) / nodes
    return plain if most > LONGEST * dense else TouchedExchange(plain, touched)
