"""A barrier in shared memory for compiled code of several processes; importing this module loads Numba.

Every process has a flag on cache lines of its own, which counts the times it has come: no line is written by two.
"""
# mypy: disable-error-code="call-arg"
# (Numba's intrinsics are called without the typing context that they are defined with)

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .jit import kernel

LINE = 128  # bytes between two flags: processors fetch cache lines in pairs
_yield = types.ExternalFunction("sched_yield", types.int32())


@intrinsic
def _load_acquire(typing, address):
    """The int64 at ``address``; what its writer wrote before is visible afterwards."""

    def generate(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.load_atomic(pointer, "acquire", 8)

    return types.int64(types.int64), generate


@intrinsic
def _store_release(typing, address, value):
    """Store an int64 at ``address``, after everything that was written before."""

    def generate(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        builder.store_atomic(args[1], pointer, "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@kernel()
def announce(flags, rank, turn):
    """Say that ``rank`` has come to ``turn``: what it has written is there for those that read it."""
    _store_release(flags + rank * LINE, turn)


@kernel()
def wait_for(flags, ranks, turn, spins, yields):
    """Wait until all ``ranks`` have come to ``turn``; false if some have not come in time.

    Looks ``spins`` times at a flag, then gives the processor away ``yields`` times.
    """
    for rank in range(ranks):
        looks = 0
        while _load_acquire(flags + rank * LINE) < turn:
            looks += 1
            if looks > spins:
                if looks > spins + yields:
                    return False
                _yield()
    return True


@kernel()
def synchronize(flags, rank, ranks, turn, spins, yields):
    """`announce`, then `wait_for`: one call from Python takes half the time of two."""
    announce(flags, rank, turn)
    return wait_for(flags, ranks, turn, spins, yields)
