"""How the package compiles its kernels: one decorator for all of them; importing this module loads Numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba

from .compiling import compiled_once


def kernel(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """``numba.njit`` with a cache on disk, and without the interpreter's lock.

    Numba keeps the cache beside the source or, where that is read-only, in the user's cache folder (or in
    NUMBA_CACHE_DIR).  Where neither can be written, now or later (a disk or quota may be full), or what is there cannot
    be read, it fails; here the kernel is compiled anew then.
    The cache follows the kernel's own file: after a change to a function that another file's kernels inline
    (`mix64`), remove the __pycache__ folders.
    A kernel that is compiled for another one's sake inherits its fast math, and is kept so: one that must not reorder
    sums has to say fastmath=False.
    One process of a machine compiles a kernel, the others read it, see `compiling`.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            compiled = numba.njit(cache=True, nogil=True, **options)(function)
        except RuntimeError:  # "cannot cache function ...: no locator available"
            compiled = numba.njit(nogil=True, **options)(function)
        return compiled_once(compiled)

    return decorate
