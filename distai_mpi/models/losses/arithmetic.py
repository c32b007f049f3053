"""Functions of which losses are made, for arrays of NumPy and CuPy; `kernels.arithmetic` has them for numbers.

A loss is written once, in these: called with arrays it works on arrays, and compiled kernels put their own functions
in place of these names.
"""

from __future__ import annotations

from typing import Any

from ...backend import namespace

Array = Any
NAMES = ("absolute", "exp", "exp_of_negative", "log1p", "where")


def absolute(a: Array) -> Array:
    """|a|."""
    return abs(a)


def exp(a: Array) -> Array:
    """e to the power ``a``; infinite where that is beyond float64."""
    return namespace(a).exp(a)


def exp_of_negative(a: Array) -> Array:
    """As `exp` for a ≤ 0, where compiled code need not look for what is beyond float64."""
    return namespace(a).exp(a)


def log1p(t: Array) -> Array:
    """log(1 + t) for 0 ≤ t ≤ 1."""
    return namespace(t).log1p(t)


def where(condition: Array, a: Array, b: Array) -> Array:
    """``a`` where the condition holds, else ``b``; both are evaluated."""
    return namespace(condition).where(condition, a, b)
