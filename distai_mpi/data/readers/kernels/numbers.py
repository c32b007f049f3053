"""Decimal numbers in text, rounded correctly to float64 without leaving compiled code.

Numbers of up to 15 digits or so are one exact product or quotient (Clinger 1990, "How to read floating point
numbers accurately").  Longer ones take the product with a 128-bit power of five (Lemire 2021, "Number parsing at a
gigabyte per second", Software: Practice and Experience 51(8), section 5).  What neither settles (subnormal and huge
numbers, and the few within rounding of a tie) is handed back as HARD, for Python's own conversion.
"""

from __future__ import annotations

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from ..codes import LOWER_E, MINUS, PLUS, POINT, UPPER_E, ZERO

DONE, HARD, WRONG = 0, 1, 2  # states of a number

LOWEST_POWER, HIGHEST_POWER = -342, 308  # of ten: beyond, a number of 19 digits is 0 or infinite
EXACT_POWERS = 10.0 ** np.arange(23)  # the powers of ten that are float64 numbers
TENS = np.array([10**n for n in range(9)], np.uint64)
MOST_DIGITS = 19  # that always fit an unsigned 64-bit integer


def powers_of_five() -> np.ndarray:
    """5**q as 128 bits, the highest one set, for q from LOWEST_POWER to HIGHEST_POWER: uint64, shape (651, 2).

    Column 0 is the upper half.  Cut off where 5**q is longer, and rounded up where -27 <= q < 0, as the proof of
    the method needs it.
    """
    table = np.empty((HIGHEST_POWER - LOWEST_POWER + 1, 2), np.uint64)
    for q in range(LOWEST_POWER, HIGHEST_POWER + 1):
        if q < 0:
            power = 5**-q
            more = 127 if q >= -27 else 256  # short ones are rounded up in the last of the 128 bits
            value = (1 << (power.bit_length() + more)) // power + 1
        else:
            value = 5**q << 128
        value >>= value.bit_length() - 128
        table[q - LOWEST_POWER] = value >> 64, value & (1 << 64) - 1
    return table


FIVES = powers_of_five()


@intrinsic
def high_product(typing, a, b):  # the names are Numba's protocol: a typing context comes first
    """Upper 64 bits of the product of two uint64."""

    def generate(context, builder, signature, arguments):
        wide = ir.IntType(128)
        product = builder.mul(*(builder.zext(value, wide) for value in arguments))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), generate


@intrinsic
def leading_zeros(typing, a):
    """Number of zero bits above the highest one of a uint64 that is not 0."""

    def generate(context, builder, signature, arguments):
        return builder.ctlz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), generate


@intrinsic
def trailing_zeros(typing, a):
    """Number of zero bits below the lowest one of a uint64; 64 for 0."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), generate


@intrinsic
def double_of_bits(typing, a):
    """The float64 whose bits are a uint64."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.DoubleType())

    return types.float64(types.uint64), generate


@intrinsic
def load_8(typing, array, start):
    """Eight bytes of a uint8 array from ``start`` on, as a little-endian uint64; not checked."""

    def generate(context, builder, signature, arguments):
        view = context.make_array(signature.args[0])(context, builder, arguments[0])
        at = builder.gep(view.data, [arguments[1]])
        value = builder.load(builder.bitcast(at, ir.IntType(64).as_pointer()))
        value.align = 1
        return value

    return types.uint64(array, types.int64), generate


@numba.njit(inline="always")
def _leading_digits(word):
    """How many of the eight bytes of text in ``word`` are ASCII digits before the first other one.

    A digit less "0" is at most 9, and adding 118 to more sets the highest bit; a carry spoils later bytes alone.
    """
    value = word ^ np.uint64(0x3030303030303030)
    others = (value | (value + np.uint64(0x7676767676767676))) & np.uint64(0x8080808080808080)
    return np.int64(trailing_zeros(others) >> np.uint64(3))  # type: ignore[call-arg]


@numba.njit(inline="always")
def _value_of_8_digits(word):
    """The number that eight ASCII digits spell: neighbours are joined to pairs, fours and eight."""
    word = (word & np.uint64(0x0F0F0F0F0F0F0F0F)) * np.uint64(2561) >> np.uint64(8)
    word = (word & np.uint64(0x00FF00FF00FF00FF)) * np.uint64(6553601) >> np.uint64(16)
    return (word & np.uint64(0x0000FFFF0000FFFF)) * np.uint64(42949672960001) >> np.uint64(32)


@numba.njit(forceinline=True)  # called three times: Numba's own inlining would compile three copies
def _rounded(digits, power):
    """``digits * 10**power``, rounded to float64, and whether the rounding is certain; digits is a uint64 > 0."""
    if power < LOWEST_POWER or power > HIGHEST_POWER:
        return 0.0, False
    shift = leading_zeros(digits)  # type: ignore[call-arg, var-annotated]
    digits = digits << shift
    row = power - LOWEST_POWER
    high, low = high_product(digits, FIVES[row, 0]), digits * FIVES[row, 0]
    if (high & np.uint64(0x1FF)) == np.uint64(0x1FF):  # the lower half may carry into what counts
        more = high_product(digits, FIVES[row, 1])
        low = low + more
        if low < more:
            high = high + np.uint64(1)
    if low == np.uint64(0xFFFFFFFFFFFFFFFF) and (power < -27 or power > 55):
        return 0.0, False
    upper = high >> np.uint64(63)
    mantissa = high >> (upper + np.uint64(9))  # 54 bits: one more than float64 has
    exponent = ((217706 * power) >> 16) + 63 + np.int64(upper) - np.int64(shift) + 1023
    if exponent <= 0 or exponent >= 2046:
        return 0.0, False
    if low <= np.uint64(1) and -4 <= power <= 23 and (mantissa & np.uint64(3)) == np.uint64(1):
        if (mantissa << (upper + np.uint64(9))) == high:  # an exact tie: to even
            mantissa = mantissa - np.uint64(1)
    mantissa = (mantissa + (mantissa & np.uint64(1))) >> np.uint64(1)
    if mantissa >= np.uint64(1 << 53):
        mantissa = np.uint64(1 << 52)
        exponent += 1
    bits = (mantissa & np.uint64((1 << 52) - 1)) | (np.uint64(exponent) << np.uint64(52))
    return double_of_bits(bits), True


@numba.njit
def _long_number(text, start, stop, power):
    """A number of more than 19 digits between ``start`` and ``stop`` (digits and perhaps a point): value and state.

    ``power`` is that of the last digit.  The first 19 digits that count are taken; where the next greater number of
    19 digits rounds alike, the rest does not matter.
    """
    digits, taken, left, seen = np.uint64(0), 0, 0, False
    for i in range(start, stop):
        if text[i] == POINT:
            continue
        if taken == MOST_DIGITS:
            left += 1
            continue
        seen = seen or text[i] != ZERO
        if seen:
            digits = digits * np.uint64(10) + np.uint64(text[i] - ZERO)
            taken += 1
    if digits == 0:
        return 0.0, DONE
    value, sure = _rounded(digits, power + left)
    if sure and left:
        above, sure = _rounded(digits + np.uint64(1), power + left)
        sure = sure and above == value
    return value, DONE if sure else HARD


@numba.njit(inline="always")
def number(text, start):
    """Read the decimal number at ``text[start]``, a uint8 array in which it is followed by another character.

    Returns ``(value, end, state)``: the first byte behind it, and DONE, HARD (well formed, value not settled) or
    WRONG (no number; end is where it went wrong).
    """
    at, length = start, text.size
    negative = text[at] == MINUS
    if negative or text[at] == PLUS:
        at += 1
    first, digits = at, np.uint64(0)
    digit = np.uint8(text[at] - ZERO)
    while digit < 10:
        digits = digits * np.uint64(10) + np.uint64(digit)
        at += 1
        digit = np.uint8(text[at] - ZERO)
    count, power = at - first, 0
    if text[at] == POINT:
        at += 1
        point = at
        while at + 8 <= length:
            word = load_8(text, at)  # type: ignore[call-arg, var-annotated]
            more = _leading_digits(word)
            if more == 0:
                break
            word = word << np.uint64(64 - 8 * more)  # bytes of 0 count as leading digits 0
            digits = digits * TENS[more] + _value_of_8_digits(word)
            at += more
            if more < 8:
                break
        digit = np.uint8(text[at] - ZERO)
        while digit < 10:
            digits = digits * np.uint64(10) + np.uint64(digit)
            at += 1
            digit = np.uint8(text[at] - ZERO)
        power = point - at
        count -= power
    if count == 0:
        return 0.0, at, WRONG
    last = at
    if text[at] == LOWER_E or text[at] == UPPER_E:
        at += 1
        down = text[at] == MINUS
        if down or text[at] == PLUS:
            at += 1
        begin, given = at, 0
        digit = np.uint8(text[at] - ZERO)
        while digit < 10:
            if given < 100000:
                given = given * 10 + int(digit)
            at += 1
            digit = np.uint8(text[at] - ZERO)
        if at == begin:
            return 0.0, at, WRONG
        power += -given if down else given
    state = DONE
    if count > MOST_DIGITS:
        value, state = _long_number(text, first, last, power)
    elif digits <= np.uint64(1 << 53) and -22 <= power <= 22:
        value = np.float64(np.int64(digits))
        if power < 0:
            value = value / EXACT_POWERS[-power]
        elif power > 0:
            value = value * EXACT_POWERS[power]
    elif digits == np.uint64(0):
        value = 0.0
    else:
        value, sure = _rounded(digits, power)
        state = DONE if sure else HARD
    return (-value if negative else value), at, state
