"""Makes the cache: rows are parsed once, and written as the blocks that passes read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from ..array_rows import ArrayRows
from ..classes import merge_words
from ..date_orders import order_dates
from ..parsed import Parsed, check_parsed, note_dropped, read_chunk
from ..readers.chunk import Chunk, ChunkedFile, Column, Csr, held_sparse
from ..readers.text import Unsplittable
from ..sharding_plan import ShardingPlan
from ..sources import Source
from ..sparse_rows import MOST_DENSE, SparseRows
from .cache_file import CacheWriter, Kind
from .pieces import from_the_beginning, read_pieces
from .spool import Facts, Spool, unwritable

Array = Any


@dataclass(frozen=True)
class Rules:
    """How files become blocks; the same on all ranks.

    Attributes:
        features: least number of features of libsvm rows; base: number of their first one, None: as the rows tell.
        dense: hold all rows densely.
        drops: leave out rows that lack a value.
        dtype: of sparse values, where it can hold them.
        reads: whether every rank may read its part of a file; else rank 0 reads all.
        piece_bytes: of a file at a time; block_bytes: of a block.
    """

    features: int
    base: int | None
    dense: bool
    drops: bool
    dtype: np.dtype
    reads: bool
    piece_bytes: int
    block_bytes: int


class Build:
    """One making of the cache in a folder of this rank; its methods are collective.

    Args:
        found: the files by the set that they hold.
        comm, folder, rules: see above.
    """

    def __init__(self, found: dict[str, Any], comm: Any, folder: str, rules: Rules) -> None:
        self.comm, self.folder, self.rules = comm, folder, rules
        self.files: dict[str, ChunkedFile] = {
            name: ArrayRows(file.arrays, rules.drops) if isinstance(file, Source) else file
            for name, file in found.items()
        }
        self._spools: dict[str, Spool] = {}
        self._writers: list[CacheWriter] = []

    def read(self) -> dict[str, Parsed]:
        """Parse all files into spools; what is known of their rows then, labels included.

        Raises:
            DataError: on all ranks, as `parsed.read_chunks` does.
        """
        comm, rules, names = self.comm, self.rules, list(self.files)

        def asked(file: ChunkedFile) -> Chunk:
            return read_chunk(file, comm, range(comm.size) if rules.reads and not file.sequential else [0])

        self.files = dict(zip(names, order_dates(list(self.files.values()), asked, comm), strict=True))
        for name in names:
            self._read_file(name)
        facts = {name: comm.allgather_object(self._spools[name].facts) for name in names}
        self._settle(facts)
        parsed = {name: self._parsed(name, facts[name]) for name in names}
        for each in parsed.values():
            check_parsed(each, comm, None)
        return parsed

    def _read_file(self, name: str) -> None:
        file: ChunkedFile | None = self.files[name]
        reads = self.rules.reads
        while file is not None:
            self._spools[name] = self._spool(name)
            try:
                read_pieces(file, self._spools[name], self.comm, reads, self.rules.piece_bytes, self.rules.drops)
                self.files[name] = file
                return
            except Unsplittable:
                self._spools.pop(name).close()
                again = from_the_beginning(file)
                if again is None and not reads:
                    raise
                file, reads = again or file, False

    def _spool(self, name: str) -> Spool:
        with self.comm.agreed():
            return Spool(os.path.join(self.folder, f"{name}.spool"), self.rules.dtype)

    def _settle(self, facts: dict[str, list[Facts]]) -> None:
        """Decide on base, features and kind of the rows, from the facts of all ranks; local."""
        rules, merged = self.rules, {}
        for name, parts in facts.items():
            total = Facts()
            for part in parts:
                total = total.merged(part)
            merged[name] = total
        sparse = {name: total for name, total in merged.items() if total.sparse}
        numbered = [sparse[name] for name in sparse if self.files[name].features is None]
        base = min([1, *(total.low for total in numbered)]) if rules.base is None else rules.base
        known = [file.features for file in self.files.values() if file.features is not None]
        width = max([rules.features, *known, *(total.high + 1 - base for total in numbered)])
        self.widths = {name: width if file.features is None else file.features for name, file in self.files.items()}
        self.bases = {name: base if file.features is None else None for name, file in self.files.items()}
        values = sum(total.rows * self.widths[name] for name, total in sparse.items())
        dense = rules.dense or sum(total.entries for total in sparse.values()) > MOST_DENSE * values
        self.kinds: dict[str, Kind] = {}
        self.merged = merged
        for name, total in merged.items():
            if total.sparse and not dense:
                dtype = np.dtype(np.float64 if total.wide else np.float32)
                self.kinds[name] = Kind(True, self.widths[name], dtype, total.plain)
            else:
                self.kinds[name] = Kind(False, self.widths[name], self.files[name].dtype)

    def _parsed(self, name: str, facts: Sequence[Facts]) -> Parsed:
        """Everything but the features; labels and weights of this rank's rows as its chunk."""
        comm, file, total = self.comm, self.files[name], self.merged[name]
        base = self.bases[name]
        if base is not None and total.entries and total.low < base:
            self._below(name, base)
        chunk = self._spools[name].labels(file.empty())
        y, words = merge_words(chunk.label_names, chunk.y, comm, file.path)
        notes = [*getattr(file, "notes", ())]
        if self.rules.drops:
            own = self._spools[name].facts
            notes += note_dropped(own.dropped, own.rows + own.dropped, file.path, comm)
        kind = self.kinds[name]
        x = np.empty((0, 0), kind.dtype)
        counts = tuple(part.rows for part in facts)
        weight = chunk.weight if not total.weighted or chunk.weight is not None else np.ones(len(y))
        return Parsed(
            *(file, Chunk(x, y, weight, None), counts, kind.features, base, total.weighted, words),
            *(tuple(notes), total.entries if kind.sparse else 0),
        )

    def _below(self, name: str, base: int) -> None:
        """Raise the error about the first feature with a number below ``base``, on all ranks."""
        from ..parsed import below_base

        found = None
        for first, x in self._spools[name].chunks():
            at = x.first_below(base)
            if at is not None:
                found = self._number(name) + first + at[0], at[1]
                break
        row, index = min(each for each in self.comm.allgather_object(found) if each is not None)
        raise below_base(self.files[name].path, row, index, base)

    def _number(self, name: str) -> int:
        """What is added to numbers of rows of this rank: ranks that read their own parts count from 0."""
        if not self.dealt(name):
            counts = self.comm.allgather_object(self._spools[name].facts.rows)
            return (0, *accumulate(counts))[self.comm.rank]
        return 0

    def dealt(self, name: str) -> bool:
        """Whether rank 0 has read the file."""
        file = self.files[name]
        return not self.rules.reads or file.sequential or getattr(file, "multiline", False)

    def write(self, name: str, parsed: Parsed, plan: ShardingPlan, sets: Sequence[str]) -> list[int]:
        """Write the rows of the file of set ``name``, each to the one of ``sets`` that ``plan`` has it in.

        Returns this rank's rows of each.

        Raises:
            Unwritable: on all ranks, where one cannot write, as on a full disk.
        """
        shift = self._number(name)
        with self.comm.agreed():
            try:
                return self._write(name, parsed, plan, sets, shift)
            except OSError as error:
                raise unwritable(self.folder, error) from None

    def _write(self, name: str, parsed: Parsed, plan: ShardingPlan, sets: Sequence[str], shift: int) -> list[int]:
        kind, spool = self.kinds[name], self._spools[name]
        paths = [os.path.join(self.folder, f"{each}.rows") for each in sets]
        writers = [CacheWriter(path, kind, self.rules.block_bytes) for path in paths]
        self._writers += writers
        firsts, owners = np.array([plan.first(which) for which in range(len(sets))]), []
        for first, x in spool.chunks():
            rows = self._rows_of(x, name, kind)
            owner: Array = np.zeros(len(rows), np.int8)
            if len(sets) > 1:
                assert plan.order is not None
                numbers = np.arange(shift + first, shift + first + len(rows))
                owner = (np.searchsorted(firsts, plan.order.inverse(numbers), side="right") - 1).astype(np.int8)
            owners.append(owner)
            for which, writer in enumerate(writers):
                own = np.flatnonzero(owner == which)
                if len(own) == len(rows):
                    writer.add(rows)
                elif len(own):
                    writer.add(rows.gathered(own, rows.dtype) if isinstance(rows, SparseRows) else rows[own])
        whole: Array = np.concatenate([np.empty(0, np.int8), *owners])
        chunk = parsed.chunk
        for which, writer in enumerate(writers):
            mine = whole == which
            writer.finish(chunk.y[mine], None if chunk.weight is None else chunk.weight[mine])
        spool.close()
        return [int(np.count_nonzero(whole == which)) for which in range(len(sets))]

    def _rows_of(self, x: Any, name: str, kind: Kind) -> Any:
        """Features of a spool's chunk as the ``kind`` has them."""
        if not isinstance(x, Csr):
            return x.astype(kind.dtype, copy=False)
        if not x.values.size:
            x = x._replace(values=np.ones(x.indices.size, np.float32))
        base = self.bases[name] or 0
        if kind.sparse:
            return held_sparse(x, kind.features, base).astype(kind.dtype, copy=False)
        dense = np.empty((len(x.ends), kind.features), kind.dtype)
        Column("x", x, kind.features, kind.dtype, base).copy(0, len(dense), dense)
        return dense

    def clear(self) -> None:
        """Remove what is not whole; local."""
        for spool in self._spools.values():
            spool.close()
        for writer in self._writers:
            writer.abandon()
