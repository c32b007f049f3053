"""libsvm text: a label and the entries of a sparse row a line."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from . import codes
from .chunk import Chunk, Csr
from .text import HARD_NUMBERS, Scratch, TextFile, field_at, has_lone_return, whole

Array = Any


@dataclass(frozen=True)
class LibsvmFile(TextFile):
    """Lines ``label[:weight] [qid:number] index:value index:value ... [# comment]``.

    Indices ascend.  They count from 1, unless 0 is among those of the files that are read together (as scikit-learn
    does it).  Query ids are read over: nothing here ranks.  Rows without a weight weigh 1 where others have one.

    Attributes:
        dtype: type in which values are held, float32 or float64.
    """

    dtype: np.dtype

    @property
    def features(self) -> None:
        """Known when all was read."""
        return None

    def empty(self) -> Chunk:
        """A chunk without rows."""
        return Chunk(Csr(np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, self.dtype)), np.empty(0), None)

    def read(self, part: int, parts: int) -> Chunk:
        """Rows of the lines that begin in the ``part``-th of ``parts`` ranges of bytes."""
        blocks, entries, scratch = [], 0, Scratch()
        for block in self.blocks(part, parts):
            blocks.append(self._read_block(*block, scratch))
            blocks[-1].x.ends[:] += entries
            entries += blocks[-1].x.values.size
        none = self.empty()
        x = Csr(*(whole([block.x[i] for block in blocks], none.x[i]) for i in range(3)))
        weight = None
        if any(block.weight is not None for block in blocks):
            weight = np.concatenate([np.ones(block.rows) if block.weight is None else block.weight for block in blocks])
        return Chunk(x, whole([block.y for block in blocks], none.y), weight)

    def _read_block(self, text: Array, stop: int, position: int, scratch: Scratch) -> Chunk:
        fault, offset, block = self._parse(text, stop, scratch)
        if fault != codes.FINE and not self.returns and has_lone_return(text[:stop].tobytes()):
            text = np.frombuffer(text[:stop].tobytes().replace(b"\r", b"\n"), np.uint8)  # line ends of another kind
            return replace(self, returns=True)._read_block(text, stop, position, scratch)
        if fault != codes.FINE:
            self._explain(fault, text, offset, position)
        return block

    def _parse(self, text: Array, stop: int, scratch: Scratch) -> tuple[int, int, Chunk]:
        """The first fault, its byte, and the rows of a block, if there is none."""
        from .kernels.tables import read_libsvm

        lines, entries = (stop // 2 + 1,), (stop // 4 + 1,)  # of " 1:1" at least
        y, weight = scratch.array("y", lines, np.float64), scratch.array("weight", lines, np.float64)
        ends = scratch.array("ends", lines, np.int64)
        indices, values = scratch.array("indices", entries, np.int32), scratch.array("values", entries, self.dtype)
        capacity = HARD_NUMBERS
        while True:
            hard = np.empty((capacity, 4), np.int64)
            rows, taken, weighted, count, fault, offset = read_libsvm(
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
        x = Csr(ends[:rows].copy(), indices[:taken].copy(), values[:taken].copy())
        return fault, offset, Chunk(x, y[:rows].copy(), weight[:rows].copy() if weighted else None)

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
