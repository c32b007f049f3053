"""Losses as compiled functions, and the arithmetic that they are made of; importing this module loads Numba.

All of it becomes vector code: Numba's own math.exp calls a scalar function for each number.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numba
import numpy as np

from ...jit import inline, specialise
from ..losses import Loss, PointLoss
from ..losses.arithmetic import NAMES

# Of the exponential and of log1p.  ln 2 in two parts, the first with zeros for its last 32 bits (Cody & Waite 1980,
# Software Manual for the Elementary Functions, chapter 6), and the coefficients are those of FreeBSD's msun (fdlibm):
# e_exp.c and e_log.c, (c) 1993 and 2004 by Sun Microsystems; "permission to use, copy, modify, and distribute this
# software is freely granted, provided that this notice is preserved."
INVERSE_LN2 = 1.44269504088896338700
LN2_HIGH, LN2_LOW, LN2 = 6.93147180369123816490e-01, 1.90821492927058770002e-10, 0.693147180559945309417
LOWEST, HIGHEST = -708.0, 709.0  # exp of them is just no denormal number, and finite; of more it is infinite here
ROUNDER = 1.5 * 2.0**52  # a number to which it is added is rounded to a whole one, found in its last bits
EXPONENT_BIAS, EXPONENT_SHIFT = 1023, 52
P1, P2, P3 = 1.66666666666666019037e-01, -2.77777777770155933842e-03, 6.61375632143793436117e-05
P4, P5 = -1.65339022054652515390e-06, 4.13813679705723846039e-08
L1, L2, L3 = 6.666666666666735130e-01, 3.999999999940941908e-01, 2.857142874366239149e-01
L4, L5, L6 = 2.222219843214978396e-01, 1.818357216161805012e-01, 1.531383769920937332e-01
L7 = 1.479819860511658591e-01


@numba.njit(inline="always")
def exp_of_negative(a):
    """exp(a) for a <= 0, and NaN for NaN; exp(LOWEST), 3e-308, below that.  Not for code that reorders sums."""
    a = LOWEST if a < LOWEST else a
    shifted = a * INVERSE_LN2 + ROUNDER
    power = np.int64(np.float64(shifted).view(np.int64) + EXPONENT_BIAS) << EXPONENT_SHIFT
    whole = shifted - ROUNDER
    high, low = a - whole * LN2_HIGH, whole * LN2_LOW
    r = high - low
    square = r * r
    c = r - square * (P1 + square * (P2 + square * (P3 + square * (P4 + square * P5))))
    return (1.0 - ((low - (r * c) / (2.0 - c)) - high)) * np.int64(power).view(np.float64)


@numba.njit(inline="always")
def exp(a):
    """exp(a) for any a, as `exp_of_negative`; infinite above HIGHEST."""
    found = exp_of_negative(HIGHEST if a > HIGHEST else a)
    return np.inf if a > HIGHEST else found


@numba.njit(inline="always")
def log1p(t):
    """log(1 + t) for 0 <= t <= 1, and NaN for NaN; as ln 2 + log(1 + (t - 1) / 2) above √2 - 1."""
    large = t > 0.41421356237309503
    above = t - 1.0 if large else t
    s = above / ((3.0 if large else 2.0) + t)
    square = s * s
    series = L1 + square * (L2 + square * (L3 + square * (L4 + square * (L5 + square * (L6 + square * L7)))))
    value = s * (2.0 + square * series)
    return LN2 + value if large else value


@numba.njit(inline="always")
def absolute(a):
    """|a|."""
    return abs(a)


@numba.njit(inline="always")
def where(condition, a, b):
    """``a`` if the condition holds, else ``b``."""
    return a if condition else b


@lru_cache
def point_of(loss: PointLoss) -> Any:
    """`PointLoss.point` as a compiled function of numbers."""
    return inline(loss.point, {name: globals()[name] for name in NAMES})


@lru_cache
def row_of(loss: Loss) -> Any:
    """A compiled function (z, y): loss and second derivative of a row; z, shape (outputs,), becomes the first."""
    if isinstance(loss, PointLoss):
        # not inlined before it is machine code: callers reorder sums
        return specialise(_row, loss.name, {"point": point_of(loss)}, fastmath=False)
    return inline(loss.of_row, {})  # type: ignore[attr-defined]


def _row(z, y):
    value, slope, curvature = point(np.float64(z[0]), y)  # type: ignore[name-defined]  # noqa: F821 - see `row_of`
    z[0] = slope
    return value, curvature
