"""Edge lists in text: two nodes a line, perhaps with a weight."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..data.formats import Look
from ..data.readers.lines import Line, decode, first_lines
from ..data.readers.look import text_begin
from ..data.readers.text import Block, Growing, TextFile, field_at
from ..errors import DataError
from .edges import DST_NAMES, NODES_ADVICE, SRC_NAMES, WEIGHT_NAMES

Array = Any
A_LINE = "a line is: node node, or node node weight"
MARKS = b" \t\r,;"
MATRIX_MARKET = b"%%matrixmarket"


def read_text(seen: Look, part: int, parts: int) -> tuple[Array, Array, Array | None]:
    """The edges in the lines that begin in the ``part``-th of ``parts`` ranges of bytes: src, dst (uint32) and weight.

    Fields stand between blanks, tabs, commas or semicolons.  Lines that are blank or begin with ``#`` or ``%`` are
    skipped, and so is a first line of names, which must not say that columns stand in another order.  A fourth field,
    the time in KONECT's files, is skipped too.

    Raises:
        DataError: a line is no edge, names say another order, it is a Matrix Market file, or some lines have a weight
            and others none.
    """
    file = TextFile(seen.path, seen.packed is not None, 0)
    file = _behind_names(replace(file, begin=text_begin(file)))
    ends, weight = Growing((2,), np.uint32), Growing((), np.float32)
    weighted: set[bool] = set()
    for block in file.blocks(part, parts):
        _read_block(file, block, ends, weight, weighted)
    src, dst = np.ascontiguousarray(ends.filled.T)
    return src, dst, weight.filled if weighted == {True} else None


def _behind_names(file: TextFile) -> TextFile:
    """``file`` without a line of names."""
    found = first_lines(file, 20)
    if found is None:
        raise DataError(f"{file.path}: is no text; edge lists are text, .npz, .npy or Parquet")
    if found[1]:
        raise DataError(f"{file.path}: lines end in carriage returns alone; convert it first (tr '\\r' '\\n')")
    if any(line.text.lower().startswith(MATRIX_MARKET) for line in found[0]):
        raise DataError(
            f"{file.path}: is a matrix in the Matrix Market format, which counts from 1: read it by scipy.io.mmread,"
            " and store its row and col as arrays src and dst of an .npz"
        )
    lines = [line for line in found[0] if not line.text.startswith(b"%")]
    if lines and not lines[0].text.strip()[:1].isdigit() and lines[0].text.strip()[:1] not in (b"-", b"+", b"."):
        _check_names(file, lines[0])
        return replace(file, begin=lines[0].end)
    return file


def _check_names(file: TextFile, line: Line) -> None:
    """Refuse a line of names that says that src, dst or the weight stand elsewhere."""
    text = decode(line.text).lower()
    names = [name.strip(' "') for name in (text.split(",") if "," in text else text.replace(";", " ").split())]
    for place, known in enumerate((SRC_NAMES, DST_NAMES, WEIGHT_NAMES)):
        found = next((i for i, name in enumerate(names) if name in known), place)
        if found != place:
            raise DataError(
                f"{file.path}: line {line.number} says that {names[found]} is column {found}, counted from 0; columns"
                " are src, dst and, where there is one, weight, in this order: write them so (an index is none of them)"
            )


def _read_block(file: TextFile, block: Block, ends: Growing, weight: Growing, weighted: set[bool]) -> None:
    from . import text_kernels as kernels

    most = block.stop // 4 + 1  # an edge is "1 2" and a newline at least
    room, weights = ends.room(most, block.progress), weight.room(most, block.progress)
    edges, has, fault, offset = kernels.read_edges(block.text, block.stop, room, weights)
    if fault == kernels.FINE and edges:
        weighted.add(bool(has))
        if len(weighted) > 1:
            file.fail(block.position, ": from about here lines have a weight, and others have none; give all edges one")
    if fault != kernels.FINE:
        found = field_at(block.text, offset, MARKS)
        message = {
            kernels.NO_NODE: f"{found} is no node; {NODES_ADVICE}, and {A_LINE}",
            kernels.HUGE_NODE: f"{found} is no number of a node below 2^32; renumber the nodes",
            kernels.NO_WEIGHT: f"{found} is no weight: a finite number, not negative; {A_LINE}",
            kernels.UNLIKE: "the lines before have a weight and this one has none, or the other way round;"
            " give all edges one",
        }[fault]
        file.fail(block.position + offset, f": {message}")
    ends.keep(edges)
    weight.keep(edges)
