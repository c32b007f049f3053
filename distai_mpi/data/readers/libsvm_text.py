"""libsvm text: a label and the entries of a sparse row a line."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..sparse_rows import MOST_DENSE
from . import codes
from .chunk import Chunk, Csr
from .text import HARD_NUMBERS, Block, Growing, TextFile, field_at, with_newlines

Array = Any


class _Rows:
    """The rows of a range of bytes, as far as they are read; see `Csr`.

    With ``rounds`` values are rounded to float32 as they come, unless many are not 0, or one is beyond its range.
    """

    def __init__(self, dtype: np.dtype, rounds: bool) -> None:
        self.y, self.weight, self.ends = (Growing((), own) for own in (np.float64, np.float64, np.int64))
        self.dtype, self.rounds = dtype, rounds and dtype != np.float32
        self.indices, self.values = Growing((), np.int32), Growing((), np.float32 if self.rounds else dtype)
        self._read = np.empty(0, dtype)  # values of a block, before they are rounded
        self.by_row, self.weighted = (self.y, self.weight, self.ends), False

    def chunk(self) -> Chunk:
        """What was read."""
        x = Csr(self.ends.filled, self.indices.filled, self.values.filled)
        return Chunk(x, self.y.filled, self.weight.filled if self.weighted else None)

    def room_of_values(self, entries: int, progress: float) -> Array:
        """Where so many values are to be written, in ``dtype``."""
        if not self.rounds:
            return self.values.room(entries, progress)
        if self._read.size < entries:
            self._read = np.empty(entries, self.dtype)
        return self._read[:entries]

    def keep(self, rows: int, indices: Array, values: Array, progress: float) -> None:
        """Keep so many rows, and the entries with these ``indices`` and ``values``, which lie in the room for them."""
        self.ends.room(rows, progress)[:] += len(self.values.filled)
        for array in self.by_row:
            array.keep(rows)
        if self.rounds and len(values):
            first = not len(self.values.filled)
            dense = first and len(values) > MOST_DENSE * rows * (float(indices.max()) + 1)
            if dense or np.abs(values).max() > np.finfo(np.float32).max:
                before, self.rounds, self.values = self.values.filled, False, Growing((), self.dtype)
                for part in (before, values):
                    self.values.room(len(part), progress)[:] = part
                    self.values.keep(len(part))
                self.indices.keep(len(indices))
                return
            self.values.room(len(values), progress)[:] = values
        self.indices.keep(len(indices))
        self.values.keep(len(values))


@dataclass(frozen=True)
class LibsvmFile(TextFile):
    """Lines ``label[:weight] [qid:number] index:value index:value ... [# comment]``.

    Indices ascend.  They count from 1, unless 0 is among those of the files that are read together (as scikit-learn
    does it).  Query ids are read over: nothing here ranks.  Rows without a weight weigh 1 where others have one.

    Attributes:
        dtype: type in which values are held, float32 or float64.
        rounds: hold them in float32 in any case, unless the first rows have many values that are not 0.
    """

    dtype: np.dtype
    rounds: bool = field(default=False, kw_only=True)

    @property
    def features(self) -> None:
        """Known when all was read."""
        return None

    def empty(self) -> Chunk:
        """A chunk without rows."""
        return Chunk(Csr(np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, self.dtype)), np.empty(0), None)

    def read(self, part: int, parts: int) -> Chunk:
        """Rows of the lines that begin in the ``part``-th of ``parts`` ranges of bytes."""
        return next(self.pieces(part, parts))

    def pieces(self, part: int, parts: int, most_bytes: float = math.inf) -> Iterator[Chunk]:
        """The rows of `read` in chunks of about ``most_bytes`` of text, one of them at least."""
        rows, held = _Rows(self.dtype, self.rounds), 0
        for block in self.blocks(part, parts):
            if held >= most_bytes:
                yield rows.chunk()
                rows, held = _Rows(self.dtype, self.rounds), 0
            self._read_block(block, rows)
            held += block.stop
        yield rows.chunk()

    def _read_block(self, block: Block, out: _Rows) -> None:
        fault, offset = self._parse(block, out)
        if fault != codes.FINE and not self.returns and (mended := with_newlines(block)):
            replace(self, returns=True)._read_block(mended, out)
        elif fault != codes.FINE:
            self._explain(fault, block.text, offset, block.position)

    def _parse(self, block: Block, out: _Rows) -> tuple[int, int]:
        """Add the rows of a block to ``out`` or, if there is a fault, tell the first one and its byte."""
        from .kernels.tables import read_libsvm

        text, stop, _, progress = block
        lines, most, capacity = stop // 2 + 1, stop // 4 + 1, HARD_NUMBERS  # an entry is " 1:1" at least
        y, weight, ends = (array.room(lines, progress) for array in out.by_row)
        indices, values = out.indices.room(most, progress), out.room_of_values(most, progress)
        while True:
            hard = np.empty((capacity, 4), np.int64)
            rows, entries, weighted, count, fault, offset = read_libsvm(
                text, 0, stop, y, weight, ends, indices, values, hard
            )
            if count <= capacity:
                break
            capacity = count
        for begin, end, row, slot in hard[:count].tolist():
            target, at = {codes.LABEL: (y, row), codes.WEIGHT: (weight, row)}.get(slot, (values, slot))
            with np.errstate(over="ignore"):
                target[at] = float(text[begin:end].tobytes())
            if np.isinf(target[at]):
                fault, offset = codes.TOO_LARGE, begin
                break
        if fault != codes.FINE:
            return fault, offset
        out.keep(rows, indices[:entries], values[:entries], progress)
        out.weighted |= weighted
        return codes.FINE, 0

    def _explain(self, fault: int, text: Array, offset: int, position: int) -> None:
        """Raise the DataError about ``fault`` at byte ``offset`` of ``text``, which is at ``position`` of the file."""
        found, line = field_at(text, offset, b" \t\r#"), "a line is: label index:value index:value ..."
        message = {
            codes.NO_NUMBER: f"{found} is no finite number; {line}",
            codes.NEGATIVE: f"{found} is a weight below 0; weights are 0 or more",
            codes.TOO_LARGE: f"{found} is beyond the range of {self.dtype}; mend or remove the line",
            codes.NO_INDEX: f"{found} does not begin with an index, a whole number of 0 or more; {line}",
            codes.NO_COLON: f"there is no colon behind the index of {found}; {line}",
            codes.NOT_ASCENDING: f"the index of {found} is not greater than the one before; indices must ascend",
            codes.HUGE_INDEX: f"the index of {found} is greater than {codes.LARGEST_INDEX}",
        }[fault]
        self.fail(position + offset, f": {message}")
