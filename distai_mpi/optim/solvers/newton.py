"""Newton's method, with the Hessian itself or with products with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ...settings import setting, settings
from .base import FullBatchSolver
from .line_search import Armijo, Search
from .preconditioner import Preconditioner

Array = Any
Dots = Callable[..., list[float]]


@settings
class Newton(FullBatchSolver):
    """Newton's method for linear models of few parameters: the Hessian of all rows, and its Cholesky factor.

    Attributes:
        search: the line search, which begins with the whole step.
        sample: see `FullBatchSolver`; the start alone counts.
    """

    search: Search = setting(factory=Armijo)
    name: ClassVar[str] = "newton"


@settings
class NewtonCG(FullBatchSolver):
    """Newton's method in a trust region, each step by conjugate gradients (Steihaug 1983; TRON: Lin & Moré 1999).

    Of nets the curvature is the Gauss-Newton matrix (Hessian-free: Martens 2010, "Deep learning via Hessian-free
    optimization"), of models from JAX and PyTorch the Hessian.

    Attributes:
        most_products: in an iteration.
        sample: see `FullBatchSolver`.
    """

    most_products: int = setting(kind="int", default=100, low=1)
    name: ClassVar[str] = "newton-cg"


@settings
class Auto(FullBatchSolver):
    """The one of `LBFGS`, `NewtonCG` and `Newton` that fits rows, columns and ranks; see `train.deterministic.choose`.

    Attributes:
        sample: of the method that is chosen.
    """

    name: ClassVar[str] = "auto"


class Step(NamedTuple):
    """What `steihaug` came to.

    Attributes:
        decrease: of the quadratic model, positive.
        length: of the step, in the preconditioner's norm.
        at_edge: whether it ends at the edge of the trust region.
    """

    decrease: float
    length: float
    at_edge: bool


def steihaug(
    product: Callable[[Array, Array], None],
    grad: Array,
    radius: float,
    share: float,
    most: int,
    dots: Dots,
    preconditioner: Preconditioner | None,
    out: Array,
) -> Step:
    """out ← a step s that decreases gᵀs + ½ sᵀHs in ‖s‖ ≤ ``radius``, by preconditioned conjugate gradients.

    Conn, Gould & Toint 2000, "Trust-region methods", algorithm 7.5.1, with the preconditioner's norm √(sᵀMs).

    Args:
        product: (v, out): out ← H v, all slices.
        grad: g, a slice.
        radius: infinite: that of the whole of the first step.
        share: ends where ‖residual‖, in the norm of M⁻¹, is at most this share of the gradient's.
        most: products.
        dots: inner products of pairs of slices, over all ranks.
        preconditioner: M; None: the identity.
        out: overwritten.
    """
    out[:] = 0
    residual = -grad
    z = _solved(preconditioner, residual)
    rz = dots((residual, z))[0]
    enough, way, curved = share * share * rz, z.copy(), np.empty_like(out)
    length, along, square, decrease = 0.0, 0.0, rz, 0.0  # ‖s‖², sᵀMp and ‖p‖² of step s and direction p
    for _ in range(most):
        product(way, curved)
        bend = dots((way, curved))[0]
        alpha = rz / bend if bend > 0 else math.inf
        if not bend > 0 and math.isinf(radius):  # nothing bounds a step along this direction: as long as it is
            if length == 0:
                out += way
                return Step(rz - 0.5 * bend, math.sqrt(square), True)
            break
        longer = length + alpha * (2 * along + alpha * square)
        if not longer < radius * radius:
            root = math.sqrt(along * along + square * (radius * radius - length))
            tau = (radius * radius - length) / (along + root)
            out += out.dtype.type(tau) * way
            return Step(decrease + tau * rz - 0.5 * tau * tau * bend, radius, True)
        out += out.dtype.type(alpha) * way
        residual -= out.dtype.type(alpha) * curved
        decrease += 0.5 * alpha * rz
        z = _solved(preconditioner, residual)
        length, before = longer, rz
        rz = dots((residual, z))[0]
        if not rz > enough:
            break
        beta = rz / before
        along, square = beta * (along + alpha * square), rz + beta * beta * square
        way *= out.dtype.type(beta)
        way += z
    return Step(decrease, math.sqrt(length), False)


def next_radius(radius: float, length: float, ratio: float) -> float:
    """The radius of the trust region after a step of ``length`` whose decrease was ``ratio`` times the predicted one.

    Nocedal & Wright 2006, algorithm 4.1.
    """
    if not ratio >= 0.25:  # also where it is not a number
        return 0.25 * length
    return max(radius, 2 * length) if ratio > 0.75 else radius


def _solved(preconditioner: Preconditioner | None, residual: Array) -> Array:
    z = residual.copy()
    if preconditioner is not None:
        preconditioner.solve(z)
    return z
