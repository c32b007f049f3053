"""The compiled loop over the text of edge lists; importing this module loads Numba."""

from __future__ import annotations

import numba
import numpy as np

from ..data.readers.kernels.numbers import DONE, number
from ..jit import kernel

FINE, NO_NODE, HUGE_NODE, NO_WEIGHT, UNLIKE = range(5)  # faults
SPACE, TAB, RETURN, NEWLINE, COMMA, SEMICOLON, HASH, PERCENT, ZERO = b" \t\r\n,;#%0"


@numba.njit(inline="always")
def _is_gap(byte):
    return byte == SPACE or byte == TAB or byte == COMMA or byte == SEMICOLON or byte == RETURN


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
                start, node = at, np.uint64(0)
                digit = np.uint8(text[at] - ZERO)
                while digit < 10:
                    node = node * np.uint64(10) + np.uint64(digit)
                    if at - start > 18:
                        return edges, weighted, HUGE_NODE, start
                    at += 1
                    digit = np.uint8(text[at] - ZERO)
                if at == start or not (_is_gap(text[at]) or text[at] == NEWLINE):
                    return edges, weighted, NO_NODE, start
                if node >= np.uint64(1 << 32):
                    return edges, weighted, HUGE_NODE, start
                ends[edges, side] = node
                while _is_gap(text[at]):
                    at += 1
            has = text[at] != NEWLINE
            if edges and has != weighted:
                return edges, weighted, UNLIKE, line
            weighted = has
            if has:
                value, end, state = number(text, at)
                rounded = np.float32(value)
                fine = state == DONE and rounded >= 0 and rounded < np.inf
                if not fine or not (_is_gap(text[end]) or text[end] == NEWLINE):
                    return edges, weighted, NO_WEIGHT, at
                weight[edges] = rounded
                at = end
            edges += 1
        while text[at] != NEWLINE:
            at += 1
        at += 1
    return edges, weighted, FINE, 0
