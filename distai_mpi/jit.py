"""How the package compiles its kernels: one decorator for all of them; importing this module loads Numba."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numba


def kernel(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """``numba.njit`` with a cache on disk, and without the interpreter's lock.

    Numba keeps the cache beside the source or, where that is read-only, in the user's cache folder (or in
    NUMBA_CACHE_DIR).  Where neither can be written, now or later (a disk or quota may be full), or what is there cannot
    be read, it fails; here the kernel is compiled anew then.
    The cache follows the kernel's own file: after a change to a function that another file's kernels inline
    (`mix64`), remove the __pycache__ folders.
    A kernel that is compiled for another one's sake inherits its fast math, and is kept so: one that must not reorder
    sums has to say fastmath=False.
    Ranks that compile the same kernel at once replace each other's cache files whole.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return _forgiving(numba.njit(cache=True, nogil=True, **options)(function))
        except RuntimeError:  # "cannot cache function ...: no locator available"
            return numba.njit(nogil=True, **options)(function)

    return decorate


def _forgiving(compiled: Any) -> Any:
    """``compiled`` with a cache whose failures are no failures of the program's."""
    cache = compiled._cache  # Numba has no public way
    for name in ("load_overload", "save_overload"):
        setattr(cache, name, _or_none(getattr(cache, name)))
    return compiled


def _or_none(method: Callable[..., Any]) -> Callable[..., Any]:
    def attempt(*args: Any) -> Any:
        with contextlib.suppress(Exception):  # a file that a crash has cut short fails in many ways
            return method(*args)
        return None

    return attempt
