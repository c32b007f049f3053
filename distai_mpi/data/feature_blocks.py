"""Rows without labels, block by block, in one process without MPI: what a `Predictor` answers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ..errors import ConfigError, DataError
from .array_file import ArrayFile
from .checks import first_not_finite
from .dataset import Dataset, Fill
from .date_orders import order_dates
from .distribute import by_position, check_kinds
from .encoding import Encoding
from .formats import find_features
from .labels import summarize
from .missing import apply_fill
from .parsed import below_base
from .readers.chunk import Chunk, ChunkedFile, Column, Csr, held_sparse
from .readers.columns import Columns
from .readers.text import Unsplittable
from .sharded import ShardedDataset
from .sparse_rows import MOST_DENSE
from .spec import Spec, spec_name

Array = Any
BLOCK_BYTES = 32 << 20  # of text, or of rows held densely
ALONE = SimpleNamespace(rank=0, size=1, agreed=nullcontext, allgather_object=lambda value: [value])


def features_of(x: Any, name: str = "x", scale: float = 1.0, first: int = 0, missing: bool = False) -> ShardedDataset:
    """The rows of ``x``, shape (rows, features), any real type, or sparse, with labels that are all 0.

    ``first`` is the number of the first row, for errors; with ``missing`` values may be NaN.

    Raises:
        DataError: a value is not finite.
    """
    dataset = Dataset(x, np.zeros(x.shape[0], np.int8), scale=scale)
    bad = first_not_finite(dataset.x, missing)
    if bad is not None:
        raise DataError(f"{name}: x holds {bad[2]} in row {first + bad[0]}, column {bad[1]} (counted from 0)")
    return ShardedDataset(dataset, (dataset.rows,), 0, "local", summarize(dataset.y, dataset.features), name=name)


def feature_blocks(
    data: Spec,
    *,
    dtype: DTypeLike = np.float64,
    features: int = 0,
    base: int | None = None,
    fill: Fill | None = None,
    encoding: Encoding | None = None,
    block_bytes: int = BLOCK_BYTES,
    **columns: Any,
) -> Iterator[ShardedDataset]:
    """The rows of ``data`` in their order, in blocks of about ``block_bytes``.

    Args:
        data: as in `load_sets`, but for labels; see `formats.find_features`.
        dtype, features, base, fill, encoding, columns: see `load_sets`; label and weight are left out.  Values may be
            missing where there is ``fill``, or ``encoding`` has one.
        block_bytes: of text, or of rows held densely.

    Text that can only be read from beginning to end, and libsvm text of which ``base`` is not known, is read whole.

    Raises:
        DataError, ConfigError: as `load_sets`.
    """
    check_kinds({"data": data}, dtype)
    filled = fill is not None or (encoding is not None and encoding.fill is not None)
    if not filled and columns.get("missing", "refuse") != "refuse":
        raise ConfigError("every row gets a prediction, and there are no values (fill) in place of missing ones")
    table = Columns(**columns)
    found = find_features(data, table, dtype)
    if not isinstance(found, ArrayFile):
        (found,) = order_dates([found], lambda file: file.read(0, 1), ALONE)
    roles = getattr(found, "roles", None)
    names = None if roles is None else roles.names
    known: dict[str, Any] = {"column_names": names, "feature_names": getattr(found, "feature_names", names)}
    if isinstance(found, ArrayFile):
        rows = _array_blocks(found, block_bytes)
    else:
        rows = _parsed(found, features, base, block_bytes, table.dense or fill is not None, encoding)
    first = 0
    for x in rows:
        shard = features_of(x, spec_name(data), found.scale, first, table.keeps_missing)
        shard = by_position(replace(shard, **known, notes=tuple(getattr(found, "notes", ()))), shard, table)
        yield shard if fill is None else apply_fill(shard, fill)
        first += len(x)
    if first == 0 and not isinstance(found, ArrayFile):
        raise DataError(f"{found.path}: holds no rows")


def _array_blocks(array: ArrayFile, block_bytes: int) -> Iterator[Array]:
    for _, x in array.chunks(max(1, block_bytes // max(1, array.width * array.dtype.itemsize))):
        yield x


def _parsed(
    file: ChunkedFile, features: int, base: int | None, block_bytes: int, dense: bool, encoding: Encoding | None
) -> Iterator[Any]:
    """The rows of a table or of text; of sparse text with ``features`` at least, numbered from ``base``.

    Those of sparse text stay sparse where that is shorter, unless ``dense``.
    """
    whole = file.sequential or (file.features is None and base is None)
    parts = 1 if whole else 1 + sum(map(os.path.getsize, file.files)) // block_bytes
    done = 0
    try:
        for part in range(parts):
            chunk = file.read(part, parts)
            yield from _blocks(file, chunk, features, base, block_bytes, done, dense, encoding)
            done += chunk.rows
    except Unsplittable:
        if parts == 1:
            raise
        chunk = file.read(0, 1)
        yield from _blocks(
            file, chunk.take(np.arange(chunk.rows) >= done), features, base, block_bytes, done, dense, encoding
        )


def _blocks(
    file: ChunkedFile,
    chunk: Chunk,
    features: int,
    base: int | None,
    block_bytes: int,
    row: int,
    dense: bool,
    encoding: Encoding | None,
) -> Iterator[Any]:
    """The rows of ``chunk``, of which the first is ``row`` in the file."""
    width, first = file.features, 0
    if encoding is not None:
        chunk, width = encoding.encoded(chunk, file.path), encoding.features
    if isinstance(chunk.x, Csr):
        indices = chunk.x.indices
        low, high = (int(indices.min()), int(indices.max())) if indices.size else (1, 0)
        if width is None:  # else features are counted from 0, and are known
            first = min(1, low) if base is None else base
            below = chunk.x.first_below(first)
            if below is not None:
                raise below_base(file.path, row + below[0], below[1], first)
            width = max(features, high + 1 - first)
        if not dense and indices.size <= MOST_DENSE * chunk.rows * width:
            yield held_sparse(chunk.x, width, first)
            return
    column = Column("x", chunk.x, width or features, file.dtype, first)
    step = max(1, block_bytes // max(1, column.width * column.dtype.itemsize))
    for start in range(0, chunk.rows, step):
        x = np.empty((min(step, chunk.rows - start), column.width), column.dtype)
        column.copy(start, start + len(x), x)
        yield x
