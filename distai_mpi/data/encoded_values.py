"""Values of encoded rows that follow from the training rows: missing numbers, and the weights of words (tf-idf).

Rows are sparse; ``comm`` is a `comm.Communicator`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ..backend import HOST
from .dataset import Dataset
from .encoding import Encoding
from .partition import even_range
from .sharded import ShardedDataset
from .sparse_rows import SparseRows

Array = Any
Change = Callable[[Array, Array, Array], None]  # of values in place: (starts, indices, values)


def fill_numbers(
    sets: tuple[ShardedDataset | None, ...], fill_missing: Callable[..., Any], comm: Any, by: str
) -> tuple[Any, ...]:
    """``sets``, the first of which are the training rows, with missing numbers replaced; see `missing.fill_missing`.

    Zeros of rows that were encoded are zeros of the table, so that means are those of all rows.
    """
    train = sets[0]
    assert train is not None
    assert train.encoding is not None
    encoding, filled = train.encoding, np.zeros(len(train.encoding.columns))
    if encoding.numbers.size:
        (numbers,) = fill_missing(_numbers(train, encoding), comm=comm, by=by)
        filled[encoding.numbers] = numbers.dataset.fill.values
        sets = replace(train, notes=numbers.notes), *sets[1:]
    values_of = np.zeros(encoding.features)
    values_of[encoding.firsts[encoding.numbers]] = filled[encoding.numbers]
    unknown = np.isnan(values_of)  # in training: 0 in all rows

    def change(starts: Array, indices: Array, values: Array) -> None:
        lost = np.isnan(values) | unknown[indices] if unknown.any() else np.isnan(values)
        values[lost] = np.where(unknown, 0.0, values_of)[indices[lost]]

    return _changed(sets, change, replace(encoding, fill=filled), comm)


def weigh_words(sets: tuple[ShardedDataset | None, ...], comm: Any) -> tuple[Any, ...]:
    """``sets``, the first of which are the training rows, with words weighed by inverse document frequency; collective.

    A word that d of n training documents hold weighs ln((1 + n) / (1 + d)) + 1, as in scikit-learn's TfidfTransformer
    with smooth_idf; documents are scaled to a Euclidean norm of 1 afterwards.
    """
    from .readers.kernels.ngrams import count_documents, weigh_terms

    train = sets[0]
    assert train is not None
    assert train.encoding is not None
    encoding, x = train.encoding, train.dataset.x.take(train.own_rows())
    weights = []
    for column in encoding.words:
        counts = np.zeros(encoding.columns[column].width, np.int64)
        own = x.indices[x.starts[0] : x.starts[-1]]
        count_documents(HOST.read_only(own), int(encoding.firsts[column]), int(encoding.firsts[column + 1]), counts)
        weights.append(np.log((1 + train.rows) / (1 + comm.sum(counts))) + 1)

    def change(starts: Array, indices: Array, values: Array) -> None:
        for column, of_words in zip(encoding.words, weights, strict=True):
            weigh_terms(starts, indices, values, int(encoding.firsts[column]), HOST.read_only(of_words))

    return _changed(sets, change, replace(encoding, weights=np.concatenate(weights)), comm)


def _numbers(shard: ShardedDataset, encoding: Encoding) -> ShardedDataset:
    """The columns of numbers of the rows of ``shard`` that this rank goes through, densely, as rows of its own."""
    own = shard.own_rows()
    x: SparseRows = shard.dataset.x.take(own)
    place = np.full(encoding.features, -1)
    place[encoding.firsts[encoding.numbers]] = np.arange(encoding.numbers.size)
    entries = slice(int(x.starts[0]), int(x.starts[-1]))
    columns = place[x.indices[entries]]
    rows = np.repeat(np.arange(len(x)), np.diff(x.starts))
    dense, known = np.zeros((len(x), encoding.numbers.size)), columns >= 0
    dense[rows[known], columns[known]] = x.own_values[known] if x.values.size else 1.0
    data = shard.dataset
    weight = None if data.weight is None else data.weight[own]
    names = tuple(encoding.columns[column].name for column in encoding.numbers)
    return replace(
        shard,
        dataset=Dataset(dense, data.y[own], weight),
        shuffle="local",
        order=None,
        first=0,
        partition=None,
        feature_names=names,
        encoding=None,
    )


def _changed(sets: tuple[ShardedDataset | None, ...], change: Change, encoding: Encoding, comm: Any) -> tuple[Any, ...]:
    """``sets`` with values that ``change`` has been at, in float64, and ``encoding``; collective.

    Sets that were split off hold the rows of the training set's arrays, or a range of them; ranks of a node that hold
    rows together share the work and what comes of it.
    """
    held: dict[tuple[int, int], Array] = {}
    done: set[tuple[int, int, int]] = set()
    changed: list[ShardedDataset | None] = []
    for shard in sets:
        if shard is None:
            changed.append(None)
            continue
        x: SparseRows = shard.dataset.x
        of_values, of_rows = _address(x.indices), _address(x.starts)
        together = shard.transfer == "node"
        if of_values not in held:
            entries = len(x.indices)
            held[of_values] = _memory(entries, together, comm)
        values = held[of_values]
        if (*of_values, of_rows[0]) not in done:
            done.add((*of_values, of_rows[0]))
            start, stop = even_range(len(x), comm.node.size, comm.node.rank) if together else (0, len(x))
            begin, end = int(x.starts[start]), int(x.starts[stop])
            values[begin:end] = x.values[begin:end] if x.values.size else 1.0
            starts = HOST.read_only(x.starts[start : stop + 1] - begin)
            change(starts, x.indices[begin:end], values[begin:end])
        if together:
            comm.barrier()
        rows = SparseRows(x.starts, x.indices, values, x.features)
        changed.append(replace(shard, dataset=replace(shard.dataset, x=rows), encoding=encoding))
    return tuple(changed)


def _address(array: Array) -> tuple[int, int]:
    return array.__array_interface__["data"][0], array.size


def _memory(entries: int, together: bool, comm: Any) -> Array:
    """Room for so many values, that of the node's ranks ``together`` where they hold rows so."""
    if together:
        return comm.node_array((max(1, entries),), np.float64)[:entries]
    with comm.agreed():
        return np.empty(entries)
