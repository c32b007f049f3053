"""Columns of categories and documents as features: one-hot, hashed with signs, or hashed words; kept with a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ..backend import HOST
from ..errors import DataError
from .hashed_text import hash_documents
from .readers.chunk import Chunk, Csr
from .readers.levels import Levels, LevelTable

Array = Any
NUMBERS, ONE_HOT, HASHED, WORDS, LEFT_OUT = "numbers", "one-hot", "hashed", "words", "left out"
CROSS = "\x1f"  # between the levels of a cross: no text holds it
MOST_NAMES = 1 << 16  # features that get names


@dataclass(frozen=True)
class EncodedColumn:
    """What a column becomes; replicated.

    Attributes:
        name: of the column, or its number.
        how: NUMBERS: a feature as it is.  ONE_HOT: a feature for each level, 1 where the row has it.  HASHED: 2^bits
            features, of which each level has one, with a sign.  WORDS: as many, of the words of documents.  LEFT_OUT.
        levels: of ONE_HOT, in the features' order.
        missing: whether the last feature of ONE_HOT is that of missing values; they have none where training had none.
        bits, ngrams: see `Columns`.
        of: the columns that are crossed in it, their numbers; none: it is a column of the data.
    """

    name: str
    how: str = NUMBERS
    levels: tuple[str, ...] = ()
    missing: bool = False
    bits: int = 0
    ngrams: tuple[int, int] = (1, 1)
    of: tuple[int, ...] = ()

    @property
    def width(self) -> int:
        """Number of features."""
        if self.how == ONE_HOT:
            return len(self.levels) + self.missing
        return {NUMBERS: 1, LEFT_OUT: 0}.get(self.how, 1 << self.bits)

    @property
    def feature_names(self) -> list[str]:
        """Names of the features."""
        if self.how == ONE_HOT:
            names = [level.replace(CROSS, ":") for level in self.levels]
            return [f"{self.name}={level}" for level in (*names, *["(missing)"] * self.missing)]
        return [self.name] if self.how == NUMBERS else [f"{self.name}#{i}" for i in range(self.width)]

    def entries(self, levels: Levels, weights: Array | None) -> tuple[Array, Array, Array]:
        """Entries of ``levels`` and, in a last row, of a missing value, as a CSR matrix: int64, uint32, float64.

        ``weights`` are those of words, see `Encoding.weights`.
        """
        if self.how == WORDS:
            starts, features, values = hash_documents(levels, self.ngrams, self.bits)
            if weights is not None:
                from .readers.kernels.ngrams import weigh_terms

                weigh_terms(HOST.read_only(starts), HOST.read_only(features), values, 0, HOST.read_only(weights))
            return np.append(starts, starts[-1]), features, values
        if self.how == LEFT_OUT:
            return np.zeros(len(levels) + 2, np.int64), np.empty(0, np.uint32), np.empty(0)
        if self.how == HASHED:
            features, signs = hashed_features(levels, self.bits)
            return np.arange(len(features) + 1), features, signs
        table = LevelTable()
        known = Levels.of(self.levels)
        table.add(known.store, known.spans)
        numbers = table.add(levels.store, levels.spans)
        seen = np.append(numbers < len(self.levels), self.missing)  # levels that training lacks have no feature
        numbers = np.append(numbers, len(self.levels))
        starts = np.concatenate([[0], np.cumsum(seen)])
        return starts, numbers[seen].astype(np.uint32), np.ones(starts[-1])


def hashed_features(levels: Levels, bits: int) -> tuple[Array, Array]:
    """Feature and sign of each level, and of a missing value, which is hashed as the empty text; uint32 and float64.

    MurmurHash3_x86_32 of the level in UTF-8, seed 0, as an int32 h: |h| mod 2^bits, and the sign of h.
    """
    hashes = np.append(levels.hashes()[0], np.uint32(0)).view(np.int32).astype(np.int64)
    return (np.abs(hashes) & ((1 << bits) - 1)).astype(np.uint32), np.where(hashes < 0, -1.0, 1.0)


@dataclass(frozen=True)
class Encoding:
    """How rows with columns of levels become rows of numbers; replicated.

    Attributes:
        columns: of the data, in the order of x in `Chunk`, and crosses of them behind.
        weights: of words, for each of the features of all columns of documents, shape (features of these,), float64;
            None: they have none (yet).
        fill: what stands for missing numbers in sparse rows, for each column of ``columns``, float64; None: nothing.
            NaN: it was missing in all training rows, and is 0 in all rows.
    """

    columns: tuple[EncodedColumn, ...]
    weights: Array | None = None
    fill: Array | None = None

    @cached_property
    def firsts(self) -> Array:
        """The first feature of each column, and the number of all, int64, shape (columns + 1,)."""
        return np.concatenate([[0], np.cumsum([column.width for column in self.columns])]).astype(np.int64)

    @property
    def features(self) -> int:
        """Features of a row."""
        return int(self.firsts[-1])

    @property
    def numbers(self) -> Array:
        """Which columns are numbers, int64."""
        return np.flatnonzero([column.how == NUMBERS for column in self.columns])

    @property
    def words(self) -> list[int]:
        """Which columns are documents."""
        return [i for i, column in enumerate(self.columns) if column.how == WORDS]

    @property
    def feature_names(self) -> tuple[str, ...] | None:
        """Names of the features; None where they are too many."""
        if self.features > MOST_NAMES:
            return None
        return tuple(name for column in self.columns for name in column.feature_names)

    def weights_of(self, column: int) -> Array | None:
        """The part of ``weights`` of a column of documents."""
        if self.weights is None or self.columns[column].how != WORDS:
            return None
        before = sum(self.columns[other].width for other in self.words if other < column)
        return self.weights[before : before + self.columns[column].width]

    def encoded(self, chunk: Chunk, path: str) -> Chunk:
        """``chunk``, of the file ``path``, with features as `Csr`, numbered from 0; no levels are left.

        Raises:
            DataError: there are other columns, or a column is a date here and was none in training, or the other way.
        """
        known = sum(not column.of for column in self.columns)
        if chunk.x.shape[1] != known:
            raise DataError(
                f"{path}: its columns make {chunk.x.shape[1]} values a row, and those of training {known}: a column"
                " is a date in one of them, and none in the other; write it as in training"
            )
        return chunk._replace(x=self.rows(chunk.x, chunk.levels), levels={})

    def rows(self, x: Array, levels: Mapping[int, Levels]) -> Csr:
        """The rows ``x``, whose columns hold numbers, or numbers of ``levels``; see `Chunk`."""
        from .readers.kernels.levels import count_entries, encode_rows

        crossed = [cross(x, levels, column.of) for column in self.columns if column.of]
        x, levels = _joined(np.array(x, np.float64), levels, crossed)
        if self.fill is not None:
            for column in self.numbers.tolist():
                unknown = np.isnan(self.fill[column])  # in training: the feature is 0 in all rows
                x[unknown | np.isnan(x[:, column]), column] = 0.0 if unknown else self.fill[column]
        bases = np.full(len(self.columns), -1, np.int64)
        parts, entries = list[Array](), 0
        tables = {column: self.columns[column].entries(levels[column], self.weights_of(column)) for column in levels}
        for column, table in tables.items():
            x[x[:, column] < 0, column] = len(levels[column])
            bases[column] = sum(map(len, parts))
            parts.append(table[0][:-1] + entries)
            entries += len(table[1])
        starts = np.concatenate([*parts, np.array([entries])]).astype(np.int64)
        features = np.concatenate([np.empty(0, np.uint32), *(table[1] for table in tables.values())])
        weights = np.concatenate([np.empty(0), *(table[2] for table in tables.values())])
        ends = np.empty(len(x), np.int64)
        x, bases, starts = HOST.read_only(x), HOST.read_only(bases), HOST.read_only(starts)
        count_entries(x, bases, starts, ends)
        indices, values = np.empty(ends[-1] if len(x) else 0, np.uint32), np.empty(ends[-1] if len(x) else 0)
        encode_rows(x, bases, HOST.read_only(self.firsts), starts, features, weights, indices, values)
        return Csr(ends, indices, values)

    @property
    def kept(self) -> Encoding:
        """The same of rows without the columns that are left out."""
        left = [i for i, column in enumerate(self.columns) if column.how != LEFT_OUT]
        place = {old: new for new, old in enumerate(left)}
        columns = [self.columns[i] for i in left]
        columns = [replace(column, of=tuple(place[each] for each in column.of)) for column in columns]
        return replace(self, columns=tuple(columns), fill=None if self.fill is None else self.fill[left])

    def described(self) -> dict[str, Any]:
        """All of it as plain values and arrays, for a model's file; see `restored`."""
        names = ("name", "how", "levels", "missing", "bits", "ngrams", "of")
        columns = [{name: getattr(column, name) for name in names} for column in self.columns]
        arrays = {"term_weights": self.weights, "number_fill": self.fill}
        return {"encoding": columns} | {name: array for name, array in arrays.items() if array is not None}


def restored(kept: Mapping[str, Any]) -> Encoding | None:
    """What `Encoding.described` gave to a model that keeps ``kept``; None: it has none."""
    if not kept.get("encoding"):
        return None
    columns = []
    for column in kept["encoding"]:
        lists = {name: tuple(column[name]) for name in ("levels", "ngrams", "of")}
        columns.append(EncodedColumn(**(column | lists)))
    return Encoding(tuple(columns), kept.get("term_weights"), kept.get("number_fill"))


class Crossed(NamedTuple):
    """Numbers of levels, shape (rows,), int64, and these."""

    numbers: Array
    levels: Levels


def cross(x: Array, levels: Mapping[int, Levels], columns: Sequence[int]) -> Crossed:
    """The pairs of levels of ``columns`` that occur, as levels; one whose value is missing takes part as empty text."""
    codes = np.zeros(len(x), np.int64)
    for column in columns:
        size = len(levels[column]) + 1
        codes, own = np.unique(codes, return_inverse=True)[1], x[:, column].astype(np.int64)
        codes = codes * size + np.where(own < 0, size - 1, own)
    met, numbers = np.unique(codes, return_inverse=True)
    first = np.zeros(len(met), np.int64)
    first[numbers] = np.arange(len(x))  # a row of each
    words = []
    for column in columns:
        own = [*levels[column].words(), ""]
        words.append([own[int(number)] for number in x[first, column]])
    return Crossed(numbers.reshape(-1), Levels.of([CROSS.join(parts) for parts in zip(*words, strict=True)]))


def _joined(x: Array, levels: Mapping[int, Levels], crossed: Sequence[Crossed]) -> tuple[Array, dict[int, Levels]]:
    """``x`` and ``levels`` with those of crosses behind."""
    width = x.shape[1]
    joined = {width + i: each.levels for i, each in enumerate(crossed)}
    return np.column_stack([x, *(each.numbers for each in crossed)]), dict(levels) | joined
