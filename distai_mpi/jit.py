"""How the package compiles its kernels: one decorator for all of them; importing this module loads Numba."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from types import FunctionType
from typing import Any

import numba

from .compiling import compiled_once


def kernel(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """``numba.njit`` with a cache on disk, and without the interpreter's lock (unless ``nogil=False``).

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
        options["no_cfunc_wrapper"] = True  # for callers in C
        made = numba.njit(**{"nogil": True} | options)
        try:
            compiled = made(function)
            compiled.enable_caching()
        except RuntimeError:  # "cannot cache function ...: no locator available"
            pass
        return compiled_once(compiled)

    return decorate


def specialise(function: Callable[..., Any], tag: str, names: dict[str, Any], **options: Any) -> Any:
    """A kernel of a copy of ``function`` in which its module's ``names`` stand for other things.

    What they stand for is compiled into it, where a function that is an argument would be called by a pointer.  The
    ``tag`` and a checksum of the Python functions among the names go into the copy's name, so that each copy has a
    cache of its own, which a change of these functions makes anew.
    """
    mark = f"{tag}_{_checksum(names):08x}"
    copy = FunctionType(function.__code__, {**function.__globals__, **names}, f"{function.__name__}_{mark}")
    copy.__qualname__, copy.__module__ = copy.__name__, function.__module__
    made = kernel(**options)(copy)
    made.mark = mark
    return made


def inline(function: Callable[..., Any], names: dict[str, Any]) -> Any:
    """``function`` for kernels to inline, in which its module's ``names`` stand for other things; see `specialise`."""
    copy = FunctionType(function.__code__, {**function.__globals__, **names}, function.__name__)
    made: Any = numba.njit(inline="always")(copy)
    made.mark = _checksum(names, function)
    return made


def _checksum(names: dict[str, Any], *functions: Callable[..., Any]) -> int:
    """Of the code of ``functions`` and of the marks of what `inline` made."""
    parts = [function.__code__.co_code + repr(function.__code__.co_consts).encode() for function in functions]
    parts += [repr(getattr(value, "mark", 0)).encode() for value in names.values()]
    return zlib.crc32(b"".join(parts))
