"""Orthants: with a penalty Σ l1 |w| an objective is smooth as long as no parameter changes its sign.

Arrays are slices of one shape; ``l1``, at least 0, is 0 of parameters that are not penalised.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any


def pseudo_gradient(w: Array, grad: Array, l1: Array) -> Array:
    """The subgradient of least norm of f + Σ l1 |w|, f with the gradient ``grad`` (Andrew & Gao 2007, equation 4).

    Its negative is the direction of steepest descent; it is 0 at the optimum alone.
    """
    return np.where(w != 0, grad + l1 * np.sign(w), np.sign(grad) * np.maximum(np.abs(grad) - l1, 0))


def orthant(w: Array, slope: Array, l1: Array) -> Array:
    """The orthant that steps from ``w`` stay in (equation 5 there): the signs of its parameters, 0 without a limit.

    Parameters that are 0 get the sign that they grow to along the negative of the pseudo-gradient ``slope``; where that
    is 0, too, they stay 0, which nan stands for.
    """
    signs = np.where(w != 0, np.sign(w), -np.sign(slope))
    return np.where(l1 > 0, np.where(signs != 0, signs, np.nan), 0)


def project(w: Array, signs: Array) -> Array:
    """``w`` where it is in the orthant of these ``signs``, and 0 elsewhere (equation 6 there)."""
    return np.where((w * signs > 0) | (signs == 0), w, 0)
