"""Files of which every rank has parsed a chunk: a source of rows that are already in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Literal

import numpy as np

from ..errors import DataError
from .classes import merge_words
from .date_orders import order_dates
from .encoding import Encoding
from .learn_encoding import is_encoded, learn_encoding
from .readers.chunk import Chunk, ChunkedFile, Column, Csr, held_sparse
from .readers.columns import Columns
from .readers.libsvm_text import LibsvmFile
from .readers.text import Unsplittable
from .sparse_rows import MOST_DENSE, SparseRows, index_dtype, rounded

Array = Any
Drops = Literal["nothing", "rows", "labels"]


@dataclass(frozen=True)
class Parsed:
    """Rows of a file, of which this rank holds a chunk.

    Attributes:
        file: where they come from.
        chunk: those that this rank has read, features as an array, as `Csr` that becomes dense, or as `SparseRows`;
            local.
        counts: rows that each rank has read; replicated, as all that follows.
        features: features of a row.
        base: number of the first feature, where rows are sparse; else None.
        weighted: whether rows have weights.
        label_names: the words that the labels are codes of, on all ranks; None: labels are numbers.
        notes: for the user.
        entries: of all rows, where they are held sparse; else None.
        encoding: how columns of categories and documents have become features; None: there are none.
    """

    file: ChunkedFile
    chunk: Chunk
    counts: tuple[int, ...]
    features: int
    base: int | None
    weighted: bool
    label_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    entries: int | None = None
    encoding: Encoding | None = None
    mappable = sliceable = False

    @property
    def rows(self) -> int:
        """Number of rows on all ranks."""
        return sum(self.counts)

    @property
    def name(self) -> str:
        """The file, for messages."""
        return self.file.path

    @property
    def starts(self) -> tuple[int, ...]:
        """The file's row that is the first one of each rank."""
        return (0, *accumulate(self.counts))[:-1]

    @property
    def scale(self) -> float:
        """What features are multiplied by."""
        return self.file.scale

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        dense = self.rows * sum(column.width * column.dtype.itemsize for column in self.columns)
        if self.entries is None:
            return dense
        of_entry = index_dtype(self.features).itemsize + self.chunk.x.dtype.itemsize
        return dense + 8 * self.rows + self.entries * of_entry

    @property
    def columns(self) -> tuple[Column, ...]:
        """x, unless it is held sparse, y and, where there is one, weight, of this rank's chunk."""
        chunk, file = self.chunk, self.file
        x = () if self.entries is not None else (Column("x", chunk.x, self.features, file.dtype, self.base or 0),)
        y = Column("y", chunk.y, 1, file.target_dtype if self.label_names is None else np.dtype(np.float64))
        if not self.weighted:
            return *x, y
        weight = np.ones(chunk.rows) if chunk.weight is None else chunk.weight
        return *x, y, Column("weight", weight, 1, np.dtype(np.float64))

    def error(self, message: str) -> DataError:
        """A DataError that names the file."""
        return DataError(f"{self.file.path}: {message}")


def read_chunks(
    files: Sequence[ChunkedFile],
    comm: Any,
    readers: Sequence[int],
    memory_limit: int | None,
    features: int = 0,
    base: int | None = None,
    drops: Drops = "nothing",
    dense: bool = False,
    columns: Columns | None = None,
    encoding: Encoding | None = None,
    sparse_dtype: Any = np.float64,
) -> list[Parsed]:
    """Read ``files``, each rank of ``readers`` its chunk of each; collective.

    Sparse files get as many features as the one of them that has most, and at least ``features``; the numbers of
    features count from ``base``; None: from 1, or from 0 where one of the files uses it.  ``memory_limit`` is for
    sparse files: bytes that their rows, held densely, may take on a node; None: any.  ``drops`` says which rows are
    left out: of all files those that lack a value, or of the first one, the training rows, those without a label.
    Sparse rows are held so where no more than a part `MOST_DENSE` of the values of all of them are not 0, unless
    ``dense``; their values are rounded to ``sparse_dtype``, but those of encoded columns.  Columns of categories and
    documents are encoded by ``encoding`` or, where there is none, as the first file and ``columns`` say, see
    `learn_encoding`.

    Raises:
        DataError: on all ranks, for the first fault in the first file that has one; a file without rows; a feature
            with a number below ``base``; sparse rows that are too many to be held densely.
    """
    given = files
    if np.dtype(sparse_dtype) == np.float32 and not dense:
        files = [replace(file, rounds=True) if isinstance(file, LibsvmFile) else file for file in files]
    files = order_dates(files, lambda file: read_chunk(file, comm, [0] if file.sequential else readers), comm)
    first_base, chunks, label_names, notes = base, [], [], []
    for file in files:
        chunk = read_chunk(file, comm, [0] if file.sequential else readers)
        y, words = merge_words(chunk.label_names, chunk.y, comm, file.path)
        chunk, file_notes = chunk._replace(y=y), list(getattr(file, "notes", ()))
        if is_encoded(file) and encoding is None:
            encoding, said = learn_encoding(file, chunk, columns or Columns(), comm)
            file_notes += said
        if encoding is not None:
            chunk = encoding.encoded(chunk, file.path)
        if drops == "rows" or (drops == "labels" and file is files[0]):
            chunk, dropped = _without_missing(chunk, drops, file.path, comm)
            file_notes += dropped
        chunks.append(chunk)
        label_names.append(words)
        notes.append(file_notes)
    facts = [comm.allgather_object(_facts(chunk)) for chunk in chunks]
    sparse = [fact for file, parts in zip(files, facts, strict=True) if file.features is None for fact in parts]
    for file, chunk, parts in zip(files, chunks, facts, strict=True):
        if base is not None and file.features is None and min(low for _, _, low, *_ in parts) < base:
            row, index = _first_below(base, chunk, [rows for rows, *_ in parts], comm)
            raise below_base(file.path, row, index, base)
    base = min([1, *(low for _, _, low, *_ in sparse)]) if base is None else base
    width = max([features, *(high + 1 - base for *_, high, _ in sparse)])
    widths = [width if file.features is None else file.features for file in files]
    widths = widths if encoding is None else [encoding.features] * len(files)
    weighed = columns is not None and columns.tfidf  # words are weighed in sparse rows
    if not dense and not weighed and _is_dense(chunks, facts, widths):
        dense = True
        if any(getattr(file, "rounds", False) for file in files):  # they did not look so where they begin
            return read_chunks(
                given, comm, readers, memory_limit, features, first_base, drops, dense, columns, encoding, np.float64
            )
    parsed = []
    for file, chunk, parts, own_width, words, file_notes in zip(
        files, chunks, facts, widths, label_names, notes, strict=True
    ):
        counts = tuple(rows for rows, *_ in parts)
        weighted = any(has for _, has, *_ in parts)
        first = base if file.features is None else None
        entries = None
        if isinstance(chunk.x, Csr) and not dense:
            dtype = np.dtype(sparse_dtype if encoding is None else np.float64)
            chunk, entries = _held_sparse(chunk, own_width, first or 0, dtype, comm), sum(each for *_, each in parts)
        known = (file, chunk, counts, own_width, first, weighted, words, tuple(file_notes), entries)
        parsed.append(Parsed(*known, None if encoding is None else encoding.kept))
        check_parsed(parsed[-1], comm, memory_limit)
    return parsed


def read_chunk(file: ChunkedFile, comm: Any, readers: Sequence[int]) -> Chunk:
    """This rank's chunk; none where it is not among ``readers``.  The error is that of the earliest chunk.

    A file that proves to be readable from its beginning alone is left to the first of the readers.
    """
    fault, chunk = None, file.empty()
    with comm.agreed():
        try:
            if comm.rank in readers:
                chunk = file.read(list(readers).index(comm.rank), len(readers))
        except DataError as error:
            fault = error
    faults = [error for error in comm.allgather_object(fault) if error is not None]
    if faults and isinstance(faults[0], Unsplittable) and len(readers) > 1:
        return read_chunk(file, comm, readers[:1])
    if faults:
        raise DataError(str(faults[0]))
    return chunk


def below_base(path: str, row: int, index: int, base: int) -> DataError:
    """The error about a feature of ``row`` whose number ``index`` is below ``base``, the model's first."""
    return DataError(
        f"{path}: has a feature with the index {index}, but the model was trained on rows whose indices count from"
        f" {base}: see row {row} (counted from 0), and write the rows as those of the training were"
    )


def _first_below(base: int, chunk: Chunk, rows: Sequence[int], comm: Any) -> tuple[int, int]:
    """Row of the file and number of its first feature below ``base``; ``rows`` are those of each rank; collective."""
    first = chunk.x.first_below(base) if isinstance(chunk.x, Csr) else None
    if first is not None:
        first = sum(rows[: comm.rank]) + first[0], first[1]
    return min(each for each in comm.allgather_object(first) if each is not None)


def _without_missing(chunk: Chunk, drops: Drops, path: str, comm: Any) -> tuple[Chunk, list[str]]:
    """The rows of ``chunk`` that lack nothing, and on all ranks a note of how many are left out; collective.

    ``drops``: see `read_chunks`.
    """
    lacking = lacking_rows(chunk) if drops == "rows" else np.isnan(chunk.y)
    lacks = "a value" if drops == "rows" else "a label"
    notes = note_dropped(int(np.count_nonzero(lacking)), lacking.size, path, comm, lacks)
    return (chunk.take(~lacking) if notes else chunk), notes


def lacking_rows(chunk: Chunk) -> Array:
    """Which rows lack a label or the value of a feature, bool, shape (rows,)."""
    values = chunk.x.values if isinstance(chunk.x, Csr) else chunk.x
    lacking = np.isnan(chunk.y)
    if isinstance(chunk.x, Csr):
        lacking[np.searchsorted(chunk.x.ends, np.flatnonzero(np.isnan(values)), side="right")] = True
    elif values.dtype.kind == "f":
        lacking |= np.isnan(values).any(axis=1)
    return lacking


def note_dropped(dropped: int, rows: int, path: str, comm: Any, lacks: str = "a value") -> list[str]:
    """A note on the rows that were dropped of so many on all ranks, each of which ``lacks`` that; collective.

    Raises:
        DataError: none is left; on all ranks.
    """
    dropped, rows = comm.sum([dropped, rows]).astype(int).tolist()
    if dropped == 0:
        return []
    if dropped == rows:
        advice = "name another column by --label"
        if lacks == "a value":
            advice = "leave columns out (--drop), or take --missing mean"
        raise DataError(f"{path}: every row lacks {lacks}; {advice}")
    return [f"{path}: {dropped:,} of {rows:,} rows left out, which lack {lacks}"]


def _is_dense(chunks: Sequence[Chunk], facts: Sequence[Sequence[tuple]], widths: Sequence[int]) -> bool:
    """Whether more than `MOST_DENSE` of the values of all sparse ``chunks`` are not 0; the same on every rank."""
    values = entries = 0
    for chunk, parts, width in zip(chunks, facts, widths, strict=True):
        if isinstance(chunk.x, Csr):
            values += sum(rows for rows, *_ in parts) * width
            entries += sum(count for *_, count in parts)
    return entries > MOST_DENSE * values


def _held_sparse(chunk: Chunk, features: int, base: int, dtype: np.dtype, comm: Any) -> Chunk:
    """``chunk`` with features as `SparseRows`, of the same types on all ranks, rounded to ``dtype``; collective."""
    rows = held_sparse(chunk.x._replace(values=rounded(chunk.x.values, dtype)), features, base)
    values, entries = rows.values, rows.entries
    kinds = [kind for kind in comm.allgather_object((values.dtype, values.size > 0) if entries else None) if kind]
    if any(held for _, held in kinds) and not values.size:
        values = np.ones(entries, np.float32)
    values = values.astype(np.result_type(np.float32, *(dtype for dtype, _ in kinds)), copy=False)
    return chunk._replace(x=SparseRows(rows.starts, rows.indices, values, features))


def _facts(chunk: Chunk) -> tuple[int, bool, int, int, int]:
    """Rows, whether they have weights, the least and the greatest number of a feature (1 and 0 for none), entries."""
    low, high = 1, 0
    if isinstance(chunk.x, Csr) and chunk.x.indices.size:
        low, high = int(chunk.x.indices.min()), int(chunk.x.indices.max())
    return chunk.rows, chunk.weight is not None, low, high, chunk.x.indices.size if isinstance(chunk.x, Csr) else 0


def check_parsed(parsed: Parsed, comm: Any, memory_limit: int | None) -> None:
    """Raise a DataError, alike on all ranks, unless the rows can be trained on."""
    if parsed.rows == 0:
        raise parsed.error("holds no rows")
    if parsed.features == 0:
        raise parsed.error("holds no features: all its rows are empty")
    if parsed.weighted:
        weight = parsed.columns[-1].values
        if sum(comm.allgather_object(float(np.sum(weight)))) == 0:
            raise parsed.error("the weights of all rows are 0")
    per_node = parsed.nbytes // len(comm.leaders)
    dense = isinstance(parsed.chunk.x, Csr)
    if dense and memory_limit is not None and per_node > memory_limit:
        gib = 2**30
        raise parsed.error(
            f"{parsed.rows:,} rows × {parsed.features:,} features are {per_node / gib:,.2f} GiB on a node when they"
            f" are held densely, and the limit is {memory_limit / gib:,.2f} GiB: leave out what asks for that (--dense,"
            " or --missing), or use more nodes, or fewer features"
        )
