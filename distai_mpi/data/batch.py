"""A block of rows, as a loader hands it to a model."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .rows import Rows, rows_of
from .sparse_rows import empty_rows


class Batch(NamedTuple):
    """Rows of a global batch that one rank works on; local to the rank.

    The arrays may be the loader's own buffers: they hold until the next batch is asked for.  Where training
    is on a GPU, x, y and weight are there.

    Attributes:
        x: features, shape (rows, features), in the model's dtype, C-contiguous; or `SparseRows`, of which models hear
            that say they take them (``takes_sparse``).  See also `rows`.
        y: targets, shape (rows,): int64 labels, or values in the model's dtype.
        weight: weight of each row, shape (rows,), in the model's dtype, or None where all are 1.
        ids: number of each row in the data set, shape (rows,), int64.
        position: of the first row in the epoch's order of all rows; the others follow it.
            Random numbers of a row are keyed by it, and so do not depend on the number of ranks.
        train: whether dropout and the like are on.
        key: stream key of (seed, epoch), an unsigned 64-bit integer; see `data.streams`.
    """

    x: Any
    y: Any
    weight: Any | None
    ids: Any
    position: int
    train: bool
    key: int = 0

    @property
    def rows(self) -> Rows:
        """``x`` as what models compute with, whatever way it is stored."""
        return rows_of(self.x)

    def take(self, rows: slice) -> Batch:
        """These of the rows; views, of ``x`` too."""
        x = self.x[rows] if self.rows is not self.x else self.rows.take(rows)
        weight = None if self.weight is None else self.weight[rows]
        first = rows.indices(len(self.y))[0]
        return self._replace(x=x, y=self.y[rows], weight=weight, ids=self.ids[rows], position=self.position + first)


class StepRows(NamedTuple):
    """This rank's rows of several steps.

    Attributes:
        batch: the rows, step after step; its position is that of the first row of the first step on any rank.
        ends: step k has the rows ends[k] to ends[k + 1] - 1, int64, shape (steps + 1,).
        rows: of each step on all ranks together, int64, shape (steps,).
    """

    batch: Batch
    ends: Any
    rows: Any

    @property
    def steps(self) -> int:
        """How many there are."""
        return len(self.rows)


def zeros_row(loader: Any) -> Batch:
    """A row of zeros, as ``loader`` would hand it out."""
    features, y = loader.shard.features, np.zeros(1, loader.target_dtype)
    x = empty_rows(1, features, loader.dtype) if loader.sparse else np.zeros((1, features), loader.dtype)
    return Batch(x, y, None, np.zeros(1, np.int64), 0, train=True)
