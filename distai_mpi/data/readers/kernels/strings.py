"""Bytes of Python's strings without an object for each; importing this module loads Numba."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from ....jit import kernel
from ....vectors import address, prefetch

# the address of a string's UTF-8, which a string of ASCII is itself; 0, and an exception, for what is no text
_utf8: Any = types.ExternalFunction("PyUnicode_AsUTF8AndSize", types.intp(types.intp, types.CPointer(types.intp)))
_clear: Any = types.ExternalFunction("PyErr_Clear", types.void())
_copy: Any = types.ExternalFunction("memcpy", types.intp(types.intp, types.intp, types.intp))

AHEAD = 16  # strings
BYTES = 56  # of a string to where its text has begun, about: these may be on two cache lines


@kernel(nogil=False)  # Python's own functions are called
def copy_strings(objects, text, spans):
    """Copy strings one behind another, in UTF-8, as far as there is room.

    Args:
        objects: addresses of Python's objects, intp, shape (rows,).
        text: uint8; overwritten.
        spans: first byte and end of each, int64, shape (at least rows, 2); overwritten.

    Returns:
        How many strings were copied, or -1: some object is no text.
    """
    used, size, room = 0, np.empty(1, np.intp), text.ctypes.data
    base = address(text)
    for row in range(objects.size):
        ahead = objects[min(row + AHEAD, objects.size - 1)] - room  # objects lie anywhere in memory
        prefetch(base, ahead)
        prefetch(base, ahead + BYTES)
        source = _utf8(objects[row], address(size))
        if source == 0:
            _clear()
            return -1
        if used + size[0] > text.size:
            return row
        _copy(room + used, source, size[0])
        spans[row, 0], spans[row, 1] = used, used + size[0]
        used += size[0]
    return objects.size
