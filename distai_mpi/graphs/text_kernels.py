"""The compiled loop over the text of edge lists; importing this module loads Numba."""

from __future__ import annotations

import numba
import numpy as np

from ..data.readers.kernels.numbers import DONE, number
from ..jit import kernel

MOST_DIGITS = 18
FINE, NO_NODE, HUGE_NODE, NO_WEIGHT, UNLIKE = range(5)  # faults
SPACE, TAB, RETURN, NEWLINE, COMMA, SEMICOLON, HASH, PERCENT, ZERO = b" \t\r\n,;#%0"


@numba.njit(inline="always")
def _is_gap(byte):
    return byte == SPACE or byte == TAB or byte == COMMA or byte == SEMICOLON or byte == RETURN


@numba.njit(inline="always")
def _node(text, start):
    """The number of a node at ``text[start]``, the first byte behind it, and FINE or what is wrong."""
    at, node = start, np.uint64(0)
    digit = np.uint8(text[at] - ZERO)
    while digit < 10 and at - start < MOST_DIGITS:
        node = node * np.uint64(10) + np.uint64(digit)
        at += 1
        digit = np.uint8(text[at] - ZERO)
    if digit < 10 or node >= np.uint64(1 << 32):
        return node, at, HUGE_NODE
    if at == start or not (_is_gap(text[at]) or text[at] == NEWLINE):
        return node, at, NO_NODE
    return node, at, FINE


@numba.njit(inline="always")
def _weight(text, start):
    """The weight at ``text[start]`` in float32, the first byte behind it, and FINE or NO_WEIGHT."""
    value, end, state = number(text, start)
    rounded = np.float32(value)
    fine = state == DONE and rounded >= 0 and rounded < np.inf and (_is_gap(text[end]) or text[end] == NEWLINE)
    return rounded, end, FINE if fine else NO_WEIGHT


@kernel()
def read_edges(text, stop, ends, weight):
    """The edges of whole lines; see `text.read_text`.

    Args:
        text: uint8; the lines are its first ``stop`` bytes, the last one ended by a newline.
        ends: uint32, shape (edges, 2); overwritten.
        weight: float32, shape (edges,); overwritten, where lines have weights.

    Returns:
        ``(edges, whether lines have weights, fault, byte of the fault)``.
    """
    at, edges, weighted = 0, 0, False
    while at < stop:
        while _is_gap(text[at]):
            at += 1
        if text[at] == NEWLINE:
            at += 1
            continue
        line = at
        if text[at] != HASH and text[at] != PERCENT:
            for side in range(2):
                start = at
                node, at, fault = _node(text, start)
                if fault != FINE:
                    return edges, weighted, fault, start
                ends[edges, side] = node
                while _is_gap(text[at]):
                    at += 1
            has = text[at] != NEWLINE
            if edges and has != weighted:
                return edges, weighted, UNLIKE, line
            weighted = has
            if has:
                start = at
                weight[edges], at, fault = _weight(text, start)
                if fault != FINE:
                    return edges, weighted, fault, start
            edges += 1
        while text[at] != NEWLINE:
            at += 1
        at += 1
    return edges, weighted, FINE, 0
