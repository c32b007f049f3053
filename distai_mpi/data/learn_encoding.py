"""What columns of categories and documents become, by the levels on all ranks; ``comm`` is a `comm.Communicator`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import DataError
from .encoding import HASHED, LEFT_OUT, ONE_HOT, WORDS, EncodedColumn, Encoding, cross
from .readers.chunk import Chunk
from .readers.columns import Columns
from .readers.levels import GUESSED, TEXT, Levels, order_of
from .readers.notation import crosses, ngram_range

Array = Any
NAMES = 0.9  # a column in which more of the values differ holds names of rows, or prose
FEWEST = 20  # rows that tell
SHOWN = 10  # columns in a note


def learn_encoding(file: Any, chunk: Chunk, columns: Columns, comm: Any) -> tuple[Encoding, list[str]]:
    """The `Encoding` of the rows of ``file``, of which this rank has read ``chunk``, and notes; collective.

    Levels are sorted by value, so that features do not depend on who has read what.

    Raises:
        DataError: a cross names a column that is no category, or no column is left; on all ranks.
    """
    encodes: dict[int, tuple[str, str]] = file.encodes
    names = file.feature_names or [str(column) for column in range(file.features)]
    found = [EncodedColumn(str(name)) for name in names]
    positions = {name: column for column, (name, kind) in encodes.items() if kind != TEXT}
    ngrams, rows = ngram_range(columns.ngrams), int(comm.sum([chunk.rows])[0])
    crossed = crosses(columns.cross)
    for parts in crossed:
        for name in parts:
            if name not in positions:
                raise DataError(
                    f"{file.path}: --cross {':'.join(parts)}: {name} is no column of categories; name columns of words,"
                    " or of numbers that --categorical names too"
                )
    keep = set().union(*crossed)
    for column, (name, kind) in encodes.items():
        if kind == TEXT:
            found[column] = EncodedColumn(name, WORDS, bits=columns.hash_bits, ngrams=ngrams)
            continue
        levels, numbers = chunk.levels[column], chunk.x[:, column]
        found[column] = _of_levels(
            name, levels, numbers, columns.hash_bits, comm, rows if kind == GUESSED and name not in keep else None
        )
    for parts in crossed:
        of = tuple(positions[name] for name in parts)
        numbers, levels = cross(chunk.x, chunk.levels, of)
        made = _of_levels(":".join(parts), levels, numbers, columns.hash_bits, comm, None)
        found.append(EncodedColumn(made.name, made.how, made.levels, made.missing, made.bits, of=of))
    encoding = Encoding(tuple(found))
    if encoding.features == 0:
        raise DataError(
            f"{file.path}: every column holds another word in nearly every row, and none is left for features: take"
            " some by --categorical or --text"
        )
    return encoding, _notes(file.path, encoding)


def _of_levels(name: str, levels: Levels, numbers: Array, bits: int, comm: Any, rows: int | None) -> EncodedColumn:
    """What a column of categories becomes; with ``rows`` it is left out where nearly each of so many has its own."""
    own = numbers.astype(np.int64)
    used = np.zeros(len(levels) + 1, bool)
    used[own] = True
    missing = np.count_nonzero(own < 0)
    which = np.flatnonzero(used[:-1])
    found, lacking = comm.sum([which.size, missing]).astype(np.int64).tolist()
    words: list[str] = []
    if found > 1 << bits or (rows is not None and found > NAMES * (rows - lacking)):
        distinct = _count_distinct(levels, which, comm)
        if rows is not None and rows >= FEWEST and distinct > NAMES * (rows - lacking):
            return EncodedColumn(name, LEFT_OUT)
        if distinct > 1 << bits:
            return EncodedColumn(name, HASHED, bits=bits)
    everywhere = set[str]().union(*comm.allgather_object(levels.words(which)))
    words = sorted(everywhere, key=order_of)
    return EncodedColumn(name, ONE_HOT, tuple(words), bool(lacking))


def _count_distinct(levels: Levels, which: Array, comm: Any) -> int:
    """How many different levels all ranks have together, of each rank those in ``which``; collective.

    By hashes of 64 bits, each of which one rank counts: 10^7 levels are mistaken by one with a chance of 10^-5.
    """
    first, second = levels.hashes()
    hashes = (first[which].astype(np.uint64) << np.uint64(32)) | second[which]
    to = (hashes % np.uint64(comm.size)).astype(np.int64)
    sends = np.bincount(to, minlength=comm.size)
    takes = np.empty_like(sends)
    comm.alltoallv(sends, [1] * comm.size, takes, [1] * comm.size)
    came = np.empty(takes.sum(), np.int64)
    comm.alltoallv(hashes[np.argsort(to, kind="stable")].view(np.int64), sends.tolist(), came, takes.tolist())
    return int(comm.sum([np.unique(came).size])[0])


def _notes(path: str, encoding: Encoding) -> list[str]:
    """For the user, what has become of columns."""
    notes = []
    one_hot = [column for column in encoding.columns if column.how == ONE_HOT]
    if one_hot:
        told = [f"{column.name} ({column.width:,})" for column in one_hot]
        notes.append(f"{path}: categories become features, one for each level: {_listed(told)}")
    for how, what in ((HASHED, "levels"), (WORDS, "words")):
        told = [column.name for column in encoding.columns if column.how == how]
        if told:
            bits = next(column.bits for column in encoding.columns if column.how == how)
            why = " (more levels than that; --hash-bits says otherwise)" if how == HASHED else ""
            notes.append(f"{path}: {what} of {_listed(told)} are hashed into {1 << bits:,} features with signs{why}")
    left = [column.name for column in encoding.columns if column.how == LEFT_OUT]
    if left:
        which = (
            f"columns {_listed(left)} are left out: they hold"
            if left[1:]
            else f"column {left[0]} is left out: it holds"
        )
        notes.append(
            f"{path}: {which} another word in nearly every row, as names and prose do; --categorical takes the words as"
            " categories, --text takes what they are made of"
        )
    return notes


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def is_encoded(file: Any) -> bool:
    """Whether columns of the chunks of ``file`` hold levels."""
    return bool(getattr(file, "encodes", None))
