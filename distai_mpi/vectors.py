"""Explicit vectors of numbers for Numba's kernels, and asking memory ahead; importing this module loads Numba.

For loops over rows of some ten to some hundred numbers.  Kernels read and write by pointers, which know no bounds.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

LINE_BYTES = 64  # of the cache
NEARNESS = 3  # of llvm.prefetch: into the first-level cache


class _Lanes(types.Type):
    """Numba's type of a vector of numbers, as long as a line of the cache.

    Of loops, the compiler makes vector code for 64 numbers at a time, and mostly slow code for the rest of a row.
    """

    def __init__(self, dtype: Any) -> None:
        self.dtype, self.count = dtype, LINE_BYTES * 8 // dtype.bitwidth
        super().__init__(f"_Lanes({dtype})")


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: Any) -> None:
        super().__init__(manager, lanes, ir.VectorType(manager[lanes.dtype].get_value_type(), lanes.count))


_instruction: Any = intrinsic  # functions of a context and types; mypy would have them called with the context, too


@_instruction
def address(_, array):
    """Pointer to an array's first number; whoever reads by it does not count references to the array."""

    def generate(context, builder, signature, args):
        return context.make_array(array)(context, builder, args[0]).data

    return types.CPointer(array.dtype)(array), generate


@_instruction
def length(_, pointer):
    """How many numbers are in a vector."""
    return types.uintp(pointer), lambda context, *_: context.get_constant(types.uintp, _Lanes(pointer.dtype).count)


@_instruction
def prefetch(_, pointer, index):
    """Ask for the cache line of element ``index``, without waiting; it may lie beyond the end."""

    def generate(context, builder, signature, args):
        byte, number = ir.IntType(8), ir.IntType(32)
        kinds = [byte.as_pointer(), number, number, number]
        ask = builder.module.declare_intrinsic("llvm.prefetch", [kinds[0]], ir.FunctionType(ir.VoidType(), kinds))
        at = builder.bitcast(builder.gep(args[0], [args[1]]), kinds[0])
        builder.call(ask, [at, number(0), number(NEARNESS), number(1)])  # to read; data
        return context.get_dummy_value()

    return types.void(pointer, index), generate


def _repeat(builder, value, count):
    none, zeros = (ir.Constant(ir.VectorType(t, count), None) for t in (value.type, ir.IntType(32)))
    return builder.shuffle_vector(builder.insert_element(none, value, ir.IntType(32)(0)), none, zeros)


def _vector_at(context, builder, dtype, pointer, index):
    """LLVM's pointer to the vector from an element on, and what loads and stores have to know of its alignment."""
    kind = context.get_value_type(_Lanes(dtype)).as_pointer()
    return builder.bitcast(builder.gep(pointer, [index]), kind), {"align": dtype.bitwidth // 8}


@_instruction
def spread(_, number):
    """A vector of equal numbers."""
    lanes = _Lanes(number)
    return lanes(number), lambda context, builder, signature, args: _repeat(builder, args[0], lanes.count)


@_instruction
def load(_, pointer, index, count):
    """The vector from element ``index`` on, with 0 for those after ``count`` elements, which have to exist, too."""
    lanes = _Lanes(pointer.dtype)

    def generate(context, builder, signature, args):
        at, align = _vector_at(context, builder, pointer.dtype, *args[:2])
        vector, number = builder.load(at, **align), ir.IntType(32)
        indices = ir.Constant(ir.VectorType(number, lanes.count), list(range(lanes.count)))
        inside = builder.icmp_unsigned("<", indices, _repeat(builder, builder.trunc(args[2], number), lanes.count))
        return builder.select(inside, vector, ir.Constant(vector.type, None))

    return lanes(pointer, index, count), generate


@_instruction
def increase(_, pointer, index, lanes):
    """Add a vector to the elements from ``index`` on."""

    def generate(context, builder, signature, args):
        at, align = _vector_at(context, builder, pointer.dtype, *args[:2])
        builder.store(builder.fadd(builder.load(at, **align), args[2]), at, **align)
        return context.get_dummy_value()

    return types.void(pointer, index, lanes), generate


@_instruction
def fma(_, a, b, c):
    """a · b + c, rounded once where the processor can."""

    def generate(context, builder, signature, args):
        return builder.fadd(builder.fmul(*args[:2], flags=("contract",)), args[2], flags=("contract",))

    return a(a, b, c), generate


@_instruction
def add_sums(_, a, b, pointer, index):
    """Add the sums of two vectors to elements ``index`` and index + 1."""

    def generate(context, builder, signature, args):
        both, half, align = args[:2], a.count // 2, a.dtype.bitwidth // 8
        while half:  # two runs of 2 · half numbers follow each other, at first in two vectors: add their halves
            numbers = ir.VectorType(ir.IntType(32), 2 * half)
            starts = [ir.Constant(numbers, [r + k for r in (s, s + 2 * half) for k in range(half)]) for s in (0, half)]
            both, half = [builder.fadd(*(builder.shuffle_vector(*both, s) for s in starts))] * 2, half // 2
        at = builder.bitcast(builder.gep(args[2], [args[3]]), both[0].type.as_pointer())
        builder.store(builder.fadd(builder.load(at, align=align), both[0]), at, align=align)
        return context.get_dummy_value()

    return types.void(a, b, pointer, index), generate
