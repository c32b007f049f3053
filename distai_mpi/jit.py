"""How the package compiles its kernels: one decorator for all of them; importing this module loads Numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

LINE_BYTES = 64  # of the cache
NEARNESS = 2  # of llvm.prefetch: into the second-level cache


def kernel(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """``numba.njit`` with a cache on disk, and without the interpreter's lock.

    Numba keeps the cache beside the source or, where that is read-only, in the user's cache folder (or in
    NUMBA_CACHE_DIR).  Where neither can be written it refuses; here the kernel is compiled anew then.
    The cache follows the kernel's own file: after a change to a function that another file's kernels inline
    (`mix64`), remove the __pycache__ folders.
    A kernel that is compiled for another one's sake inherits its fast math, and is kept so: one that must not reorder
    sums has to say fastmath=False.
    Ranks that compile the same kernel at once replace each other's cache files whole.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(cache=True, nogil=True, **options)(function)
        except RuntimeError:  # "cannot cache function ...: no locator available"
            return numba.njit(nogil=True, **options)(function)

    return decorate


@intrinsic
def prefetch(typing_context: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line of element ``index`` of a flat array, without waiting; it may lie beyond the end."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        byte, number = ir.IntType(8), ir.IntType(32)
        kinds = [byte.as_pointer(), number, number, number]
        ask = builder.module.declare_intrinsic("llvm.prefetch", [kinds[0]], ir.FunctionType(ir.VoidType(), kinds))
        place = builder.bitcast(builder.gep(data, [args[1]]), kinds[0])
        builder.call(ask, [place, number(0), number(NEARNESS), number(1)])
        return context.get_dummy_value()

    return types.void(array, index), generate
