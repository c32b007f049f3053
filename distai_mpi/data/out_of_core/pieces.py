"""Files in pieces that fit in memory: each rank reads its own, or rank 0 reads all of them and deals out the rows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from ...errors import DataError, DistaiError
from ..array_rows import ArrayRows
from ..parsed import lacking_rows
from ..partition import even_range
from ..readers.chunk import Chunk, ChunkedFile, Csr
from ..readers.csv_text import CsvFile
from ..readers.libsvm_text import LibsvmFile
from ..readers.text import TextFile, Unsplittable
from .spool import Spool

Array = Any


def read_pieces(file: ChunkedFile, spool: Spool, comm: Any, reads: bool, piece_bytes: int, drops: bool) -> None:
    """Read the rows of ``file`` into the ranks' spools; collective.

    Args:
        file: where they are.
        spool: of this rank.
        reads: whether every rank may read its part; else rank 0 reads all.
        piece_bytes: of the file at a time.
        drops: whether rows that lack a value are left out.

    Raises:
        DataError, OSError: on all ranks, for the first rank that has met one.
        Unsplittable: on all ranks, where the file must be read from its beginning, and was not.
    """
    if reads and not file.sequential:
        fault = None
        with comm.agreed():
            try:
                _read_own(file, spool, comm.rank, comm.size, piece_bytes, drops)
            except DataError as error:
                fault = error
        faults = [error for error in comm.allgather_object(fault) if error is not None]
        if faults:
            worst = next((error for error in faults if isinstance(error, Unsplittable)), faults[0])
            raise type(worst)(str(worst))
        return
    _deal(file, spool, comm, piece_bytes, drops)


def _read_own(file: ChunkedFile, spool: Spool, rank: int, ranks: int, piece_bytes: int, drops: bool) -> None:
    """The pieces of this rank; rows are numbered from its own first one on."""
    parts = max(1, -(-_size(file) // (ranks * piece_bytes)))
    for part in range(rank * parts, (rank + 1) * parts):
        chunk = _kept(file.read(part, ranks * parts), spool, drops)
        spool.add(chunk, spool.facts.rows)


def _size(file: ChunkedFile) -> int:
    """Bytes of the file, unpacked where it is text that is read in ranges."""
    return file.size if isinstance(file, TextFile) else sum(map(os.path.getsize, file.files))


def _kept(chunk: Chunk, spool: Spool, drops: bool) -> Chunk:
    if not drops:
        return chunk
    lacking = lacking_rows(chunk)
    spool.facts.dropped += int(np.count_nonzero(lacking))
    return chunk.take(~lacking)


def _deal(file: ChunkedFile, spool: Spool, comm: Any, piece_bytes: int, drops: bool) -> None:
    """Rank 0 reads pieces, and every rank gets an even range of the rows of each."""
    chunks, first = _all_pieces(file, piece_bytes) if comm.rank == 0 else iter(()), 0
    while True:
        chunk: Chunk | None = None
        error: Exception | None = None
        if comm.rank == 0:
            try:
                chunk = next(chunks, None)
                chunk = chunk and _kept(chunk, spool, drops)
            except (DistaiError, OSError, MemoryError) as raised:
                error = raised
        header = comm.bcast_object(error if error is not None else chunk and _described(chunk))
        if isinstance(header, Exception):
            raise header
        if header is None:
            return
        rows = header[0]
        own = _own_part(chunk, header, comm)
        with comm.agreed():
            spool.add(own, first + even_range(rows, comm.size, comm.rank)[0])
        first += rows


def _described(chunk: Chunk) -> tuple[Any, ...]:
    """Rows, dtypes, width or None, and label names of a chunk."""
    if isinstance(chunk.x, Csr):
        x: tuple[Any, ...] = (None, chunk.x.indices.dtype.str, chunk.x.values.dtype.str)
    else:
        x = (chunk.x.shape[1], chunk.x.dtype.str, "")
    return chunk.rows, chunk.y.dtype.str, chunk.weight is not None, chunk.label_names, x


def _own_part(chunk: Chunk | None, header: tuple[Any, ...], comm: Any) -> Chunk:
    """This rank's rows of the chunk that rank 0 has; collective."""
    rows, y_dtype, weighted, names, (width, dtype, values_dtype) = header
    ends = [even_range(rows, comm.size, rank)[1] for rank in range(comm.size)]
    counts = np.diff([0, *ends])

    def scatter(array: Any, dtype: Any, counts: Array) -> Array:
        own = np.empty(int(counts[comm.rank]), dtype)
        comm.scatterv(None if array is None else np.ascontiguousarray(array), counts.tolist(), own)
        return own

    y = scatter(None if chunk is None else chunk.y, y_dtype, counts)
    weight = scatter(None if chunk is None else chunk.weight, np.float64, counts) if weighted else None
    if width is not None:
        x = scatter(None if chunk is None else chunk.x.reshape(-1), dtype, counts * width)
        return Chunk(x.reshape(-1, width), y, weight, names)
    table = None if chunk is None else chunk.x
    row_ends = scatter(None if table is None else table.ends, np.int64, counts)
    cuts = comm.bcast_object(None if table is None else [int(table.ends[end - 1]) if end else 0 for end in ends])
    entries = np.diff([0, *cuts])
    indices = scatter(None if table is None else table.indices, dtype, entries)
    values = scatter(None if table is None else table.values, values_dtype, entries)
    return Chunk(Csr(row_ends - (cuts[comm.rank] - entries[comm.rank]), indices, values), y, weight, names)


def _all_pieces(file: ChunkedFile, piece_bytes: int) -> Iterator[Chunk]:
    """All rows of ``file``, piece by piece where its format can be read so; else at once."""
    if isinstance(file, LibsvmFile | CsvFile):
        yield from file.pieces(0, 1, piece_bytes)
    elif isinstance(file, ArrayRows):
        yield from file.pieces(piece_bytes)
    elif file.sequential:
        yield file.read(0, 1)
    else:
        parts = max(1, -(-_size(file) // piece_bytes))
        for part in range(parts):
            yield file.read(part, parts)


def from_the_beginning(file: ChunkedFile) -> ChunkedFile | None:
    """``file``, which has turned out to be `Unsplittable`, read as such by one rank; None: it was already."""
    if isinstance(file, CsvFile) and not file.multiline:
        return replace(file, multiline=True)
    return None


__all__ = ["Unsplittable", "from_the_beginning", "read_pieces"]
