"""Edge lists in text: two nodes a line, perhaps with a weight."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..data.formats import Look
from ..data.readers.lines import first_lines
from ..data.readers.text import Block, Growing, TextFile, field_at
from ..errors import DataError
from .edges import NODES_ADVICE

Array = Any
A_LINE = "a line is: node node, or node node weight"
MARKS = b" \t\r,;"


def read_text(seen: Look, part: int, parts: int) -> tuple[Array, Array, Array | None]:
    """The edges in the lines that begin in the ``part``-th of ``parts`` ranges of bytes: src, dst (uint32) and weight.

    Fields stand between blanks, tabs, commas or semicolons.  Lines that are blank or begin with ``#`` or ``%`` are
    skipped, and so is a first line of names.  A fourth field, the time in KONECT's files, is skipped too.

    Raises:
        DataError: a line is no edge, or some lines have a weight and others none.
    """
    file = _behind_names(TextFile(seen.path, seen.packed is not None, 0))
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
    lines = [line for line in found[0] if not line.text.startswith(b"%")]
    if lines and not lines[0].text.strip()[:1].isdigit() and lines[0].text.strip()[:1] not in (b"-", b"+", b"."):
        return replace(file, begin=lines[0].end)
    return file


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
