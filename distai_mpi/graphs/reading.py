"""Edge lists and labels of nodes in files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from ..data import Dataset, ShardedDataset, encode, encode_labels, load, whole
from ..data.array_file import ArrayFile
from ..data.formats import Look, look_at, open_array
from ..data.readers import npz, parquet
from ..data.spec import Spec, data_files, spec_name, split_spec
from ..errors import DataError
from .edges import (
    DST_NAMES,
    MOST_NODES,
    NODES_ADVICE,
    SRC_NAMES,
    WEIGHT_NAMES,
    EdgeList,
    check_memory,
    edges_from_local,
)

Array = Any
Part = tuple[Array, Array, Array | None]
CHUNK_ROWS = 1 << 20  # read at a time
NODE_NAMES = ("node", "node_id", "vertex")  # of a column that is no label
NUMBERED_LINE = re.compile(rb"(\xef\xbb\xbf)?(\s*#[^\n]*\n|\s*\n)*\s*\d+[\s,;|]")
UNBALANCED = 1.2  # edges are shared out anew where a rank has so many times more than its share


def read_edges(spec: Spec, comm: Any, *, nodes: int | None = None) -> EdgeList:
    """The edges in files, of which each rank reads a part; collective.

    Args:
        spec: text (``src dst`` or ``src dst weight`` a line, see `text.read_text`; perhaps compressed), .npz with
            arrays src, dst and perhaps weight, or edges of shape (edges, 2), .npy of that shape, or Parquet with
            columns src, dst and perhaps weight, else the first two or three; or several files, as `data.load` takes.
        comm: the ranks, a `comm.Communicator`; all see the files.
        nodes: how many there are; None: one more than the largest number that any edge names.

    Raises:
        DataError: a file is missing or damaged, or holds something that is no edge; on all ranks.
    """
    name = spec_name(spec)
    with comm.agreed():
        parts = [_read_file(look_at(file.path), comm.rank, comm.size) for file in data_files(split_spec(spec))]
        weighted = {weight is not None for src, _, weight in parts if len(src)}
        if len(weighted) > 1:
            raise DataError(f"{name}: some files have weights, and others have none; give all edges one")
        src, dst = (np.concatenate([part[side] for part in parts]) for side in (0, 1))
        weights = [weight for _, _, weight in parts if weight is not None]
        weight = np.concatenate(weights) if weighted == {True} else None
    src, dst, weight = _balanced((src, dst, weight), comm)
    return edges_from_local(src, dst, comm, weight=weight, nodes=nodes, name=name)


def _read_file(seen: Look, part: int, parts: int) -> Part:
    from .text import read_text

    if seen.is_parquet:
        return _read_parquet(seen.path, part, parts)
    if seen.is_npz:
        return _read_arrays(seen.path, npz.open_arrays(seen.path), part, parts)
    if seen.is_npy:
        if seen.packed is not None:
            raise DataError(f"{seen.path}: unpack it first: compressed .npy files of edges are not read")
        return _read_arrays(seen.path, {"edges": open_array(seen.path, "edges")}, part, parts)
    if not seen.start:
        raise DataError(f"{seen.path}: the file is empty; {NODES_ADVICE}, two a line")
    if seen.container is not None:
        raise DataError(f"{seen.path}: edge lists are text, .npz, .npy or Parquet")
    if seen.packed is not None and part:  # one rank reads what is compressed
        return np.empty(0, np.uint32), np.empty(0, np.uint32), None
    return read_text(seen, 0 if seen.packed else part, 1 if seen.packed else parts)


def _read_arrays(path: str, arrays: dict[str, ArrayFile], part: int, parts: int) -> Part:
    """This rank's rows of arrays in a file; those that are compressed are read by one rank."""
    pair = [next((arrays[name] for name in names if name in arrays), None) for names in (SRC_NAMES, DST_NAMES)]
    weight = arrays.get("weight")
    if pair[0] is None or pair[1] is None:
        both = arrays.get("edges")
        if both is None or both.width != 2:
            raise DataError(
                f"{path}: holds {', '.join(sorted(arrays))}; edges are arrays src and dst, or edges of shape (edges, 2)"
            )
        table = _rows(both, part, parts)
        return table[:, 0], table[:, 1], None if weight is None else _rows(weight, part, parts)[:, 0]
    used = [array for array in (*pair, weight) if array is not None]
    if any(array.width != 1 or array.rows != used[0].rows for array in used):
        shapes = ", ".join(f"{array.name} {array.shape}" for array in used)
        raise DataError(f"{path}: {shapes}: arrays of edges have one axis and the same length")
    columns = [_rows(array, part, parts)[:, 0] for array in used]
    return columns[0], columns[1], columns[2] if weight is not None else None


def _rows(array: ArrayFile, part: int, parts: int) -> Array:
    """The rows of one part of an array, shape (rows, width)."""
    array.check_numbers()
    low, high = (array.rows * p // parts for p in (part, part + 1))
    if not array.sliceable:
        low, high = (0, array.rows) if part == 0 else (0, 0)
    out = np.empty((high - low, array.width), array.stored.newbyteorder("="))
    if high > low:
        for first, values in array.stored_chunks(CHUNK_ROWS, low, high):
            out[first - low : first - low + len(values)] = values.reshape(len(values), -1)
    return out


def _read_parquet(path: str, part: int, parts: int) -> Part:
    """The groups of rows of one part of a Parquet file."""
    with parquet.opened(path) as file:
        names = file.schema_arrow.names
        chosen = _columns(path, names)
        groups = file.metadata.num_row_groups
        mine = list(range(groups * part // parts, groups * (part + 1) // parts))
        table = file.read_row_groups(mine, columns=chosen, use_threads=False)
        columns = []
        for name in chosen:
            if table.column(name).null_count:
                raise DataError(f"{path}: column {name} is empty (null) in some rows; every edge joins two nodes")
            columns.append(table.column(name).to_numpy())
        return columns[0], columns[1], columns[2] if len(columns) > 2 else None


def _columns(path: str, names: Sequence[str]) -> list[str]:
    """The columns of src, dst and, where there is one, weight."""
    found = [
        next((name for name in names if name.lower() in kind), None) for kind in (SRC_NAMES, DST_NAMES, WEIGHT_NAMES)
    ]
    if found[0] is None or found[1] is None:
        if len(names) not in (2, 3):
            raise DataError(f"{path}: has columns {', '.join(names)}; call those of the edges src, dst and weight")
        return list(names)
    return [name for name in found if name is not None]


def _balanced(part: Part, comm: Any) -> Part:
    """The same edges, shared out evenly where one rank has many more than its share; collective.

    Where some ranks' edges have weights and others' have none they stay as they are, for `edges_from_local` to refuse.
    """
    counts = comm.allgather_object((len(part[0]), part[2] is not None))
    edges = [count for count, _ in counts]
    total, most = sum(edges), max(edges)
    unlike = len({weighted for count, weighted in counts if count}) > 1
    if most * comm.size <= UNBALANCED * total or unlike:
        return part
    old, new = [0, *accumulate(edges)], [total * rank // comm.size for rank in range(comm.size + 1)]
    send, receive = (
        [max(0, min(own[comm.rank + 1], other[r + 1]) - max(own[comm.rank], other[r])) for r in range(comm.size)]
        for own, other in ((old, new), (new, old))
    )
    dtypes = comm.allgather_object([None if values is None else values.dtype for values in part])
    arrived: list[Array | None] = []
    for column, values in enumerate(part):
        found = [each[column] for each, (count, _) in zip(dtypes, counts, strict=True) if count]
        if any(dtype is None for dtype in found):  # not `in`: NumPy takes None for float64
            arrived.append(None)
            continue
        dtype = np.result_type(*found)
        held = np.empty(0, dtype) if values is None else np.ascontiguousarray(values, dtype)
        arrived.append(np.empty(sum(receive), dtype))
        comm.alltoallv(held, send, arrived[-1], receive)
    return arrived[0], arrived[1], arrived[2]


def read_labels(spec: Spec, comm: Any, *, classes: Sequence[Any] | None = None) -> tuple[Array, tuple[Any, ...]]:
    """Labels of nodes in a file, replicated; collective.

    Args:
        spec: a table of two columns, the node and its label (a number or a word), in any form that `data.load` takes;
            or .npy with the label of node 0, 1, ..., or with node and label in each row; NaN, integers below 0, and
            missing values of a table stand for none.
        comm: the ranks, a `comm.Communicator`.
        classes: the labels that the codes 0, 1, ... are to stand for; others count as none.  None: those in the file.

    Returns:
        Codes, -1 where there is no label, int32, as many as the largest number of a node says; and the classes.

    Raises:
        DataError: the file is no such table, numbers of nodes are negative, not whole or out of range, or one is there
            twice; on all ranks.
    """
    name = spec_name(spec)
    with comm.agreed():
        columns = _label_columns([look_at(file.path) for file in data_files(split_spec(spec))])
    if columns is not None:
        nodes, values = columns
        table = whole(Dataset(nodes.reshape(-1, 1), values), comm.rank, comm.size, name)
    else:
        table, _ = load(spec, comm, test_fraction=0.0, shuffle="global", missing="drop", header=_header(spec, comm))
        if table.encoding is not None or table.row_names:
            raise DataError(f"{name}: its nodes are words; {NODES_ADVICE}, and the label stands in the last column")
        if table.label_name is not None and table.label_name.lower() in NODE_NAMES:
            raise DataError(f"{name}: column {table.label_name} is the last one; write the node first, then its label")
    if classes is None:
        (table,) = encode_labels(table, comm=comm)
    else:
        table = encode(table, classes, comm, "the model was not trained on")
    with comm.agreed():
        nodes = _nodes(table)
    check_memory(int(nodes.max()) + 1, np.dtype(np.int32).itemsize, 0, name, comm)
    codes = np.full(int(nodes.max()) + 1, -1, np.int32)
    codes[nodes] = table.dataset.y
    return codes, tuple(table.classes if table.classes is not None else range(int(codes.max()) + 1))


def _label_columns(files: Sequence[Look]) -> tuple[Array, Array] | None:
    """Nodes and labels in a .npy file, shape (nodes,); None: the files are tables.

    Raises:
        DataError: the array has more than two columns, or no node has a label.
    """
    if len(files) > 1 or not files[0].is_npy:
        return None
    path = files[0].path
    array = _rows(open_array(path, "labels"), 0, 1)
    if array.shape[1] > 2:
        raise DataError(f"{path}: has {array.shape[1]} columns; give one label a node, or node and label")
    nodes, values = (np.arange(len(array)), array[:, 0]) if array.shape[1] == 1 else array.T
    known = ~(np.isnan(values) if values.dtype.kind == "f" else values < 0)
    if not known.any():
        raise DataError(f"{path}: no node has a label; NaN and integers below 0 stand for none")
    return nodes[known], values[known]


def _header(spec: Spec, comm: Any) -> bool | None:
    """Whether a table of labels begins with a line of names: not where the first one is a number; None: as it looks.

    Nodes and labels are numbers often, of which ``0 1`` may be the first two, and not the names of columns.
    """
    with comm.agreed():
        start = look_at(data_files(split_spec(spec))[0].path).start
        return False if NUMBERED_LINE.match(start) else None


def _nodes(table: ShardedDataset) -> Array:
    """The nodes of a table of nodes and codes, int64, each of which is there once."""
    name = table.name
    if table.features != 1:
        raise DataError(f"{name}: has {table.features + 1} columns; labels of nodes are two: the node and its label")
    nodes = np.asarray(table.dataset.x)[:, 0]
    bad = np.flatnonzero(~((nodes >= 0) & (nodes < MOST_NODES) & (nodes == np.floor(nodes))))
    if bad.size:
        raise DataError(
            f"{name}: {nodes[bad[0]]:.17g} is no node (row {bad[0]}, counted from 0); {NODES_ADVICE}, below 2^32"
        )
    found, counts = np.unique(nodes.astype(np.int64), return_counts=True)
    if counts.max(initial=0) > 1:
        raise DataError(f"{name}: node {found[np.argmax(counts > 1)]} has more than one label; give each node one")
    return nodes.astype(np.int64)
