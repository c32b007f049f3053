"""Newton's method in a trust region, each step by conjugate gradients on products with the curvature."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ...settings import setting, settings
from .base import FullBatchSolver
from .preconditioner import Preconditioner
from .problem import Problem
from .proximal_newton import ProximalNewtonState
from .state import State

Array = Any
Dots = Callable[..., list[float]]
FIRST_FRACTION = 0.1  # of the gradient, at most, where conjugate gradients end
SPARE = 0.3  # of what the tolerance asks for: the last step need not be better
MOST_TRIALS = 20  # of an iteration, in ever smaller regions
FEW_PRODUCTS = 8  # of an iteration, beside which the diagonal's own pass over the rows does not pay


@settings
class NewtonCG(FullBatchSolver):
    """Newton's method in a trust region, each step by conjugate gradients (Steihaug 1983; TRON: Lin & Moré 1999).

    Of linear models of many parameters the Hessian's diagonal at the current point preconditions.  Of nets the
    curvature is the Gauss-Newton matrix (Hessian-free: Martens 2010, "Deep learning via Hessian-free optimization"), of
    models from JAX and PyTorch the Hessian.  With an l1 penalty (``fit(l1=...)``) it is proximal Newton's method, of
    linear models alone, see `proximal_newton`.

    Attributes:
        most_products: in an iteration.
        sample: see `FullBatchSolver`.
    """

    most_products: int = setting(kind="int", default=100, low=1)
    name: ClassVar[str] = "newton-cg"

    def start(self, problem: Problem) -> NewtonCGState | ProximalNewtonState:
        """See `FullBatchSolver.start`; with an l1 penalty it is proximal Newton."""
        if problem.l1 is not None:
            return ProximalNewtonState(problem, self)
        return NewtonCGState(problem, self)


class NewtonCGState(State):
    """Newton-CG at a point.

    Args:
        problem, solver: see `State`.

    Attributes:
        region: the trust region's ``radius``; how much ``longer`` a gradient is in the norm of the inverse Hessian
            than in that of the preconditioner's, by the last step; and its ``products``.
    """

    def __init__(self, problem: Problem, solver: NewtonCG) -> None:
        super().__init__(problem, solver)
        self._most = solver.most_products
        self.region = {"radius": math.inf, "longer": 1.0, "products": 0.0}

    @property
    def arrays(self) -> dict[str, Any]:
        """See `State.arrays`."""
        return super().arrays | {"region": self.region}

    def _advance(self) -> None:
        """A step of the trust region (Nocedal & Wright 2006, algorithm 4.1), tried again in a smaller one."""
        assert self.at is not None
        problem, region, precision = self.problem, self.region, 10.0 * float(np.finfo(self.problem.parameter_dtype).eps)
        if not problem.replicated:
            stays = region["products"] < FEW_PRODUCTS
            self.preconditioner = problem.diagonal_at_start() if stays else problem.diagonal_here()
        for _ in range(MOST_TRIALS if self.at.square else 0):
            radius, fraction = region["radius"], self._fraction()
            step = steihaug(
                problem.product,
                problem.grad,
                radius,
                fraction,
                self._most,
                problem.dots,
                self.preconditioner,
                self.direction,
            )
            region["products"] = float(step.products)
            if not 0 < step.decrease < math.inf:
                self._lost |= not math.isfinite(step.decrease)
                break
            plain = super()._decrement_square()
            if plain > 0 and not step.at_edge:
                region["longer"] = max(1.0, 2 * step.decrease / plain)
            problem.move(1.0, self.direction)
            found = self._evaluate()
            finite = math.isfinite(found.value) and math.isfinite(found.square)
            self._lost |= not finite
            if not finite:
                ratio = math.nan
            elif step.decrease <= precision * abs(self.at.value):  # values are rounding there: gradients decide
                ratio = 1.0 if found.square < self.at.square else 0.0
            else:
                ratio = (self.at.value - found.value) / step.decrease
            region["radius"] = next_radius(region["radius"], step.length, ratio)
            if ratio > 1e-4:
                self._accept(found)
                return
        self._stop()

    def _fraction(self) -> float:
        """The fraction of the gradient that conjugate gradients may leave (Nocedal & Wright 2006, equation 7.3)."""
        assert self.at is not None
        progress, tol = self.progress, self.solver.tol or 0.0
        assert progress.first_norm is not None
        assert progress.first_value is not None
        if self.decrement.root > 0:  # known, of linear models
            tol, left = tol * math.sqrt(2 * self.problem.excess(self.at)), self.decrement.root
            fraction = left / math.sqrt(2 * progress.first_value)
        else:
            left = fraction = self.gradient_norm / progress.first_norm
        return max(min(FIRST_FRACTION, math.sqrt(fraction)), min(FIRST_FRACTION, SPARE * tol / left))

    def _decrement_square(self) -> float:
        return super()._decrement_square() * (1.0 if self.decrement.exact else self.region["longer"])

    def _precondition_by_all(self, when: int) -> None:
        super()._precondition_by_all(when)
        self.region["radius"] = math.inf  # lengths are others now


class Step(NamedTuple):
    """What `steihaug` came to.

    Attributes:
        decrease: of the quadratic model, positive.
        length: of the step, in the preconditioner's norm.
        at_edge: whether it ends at the edge of the trust region.
        products: with the curvature.
    """

    decrease: float
    length: float
    at_edge: bool
    products: int


def steihaug(
    product: Callable[[Array, Array], None],
    grad: Array,
    radius: float,
    fraction: float,
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
        fraction: ends where ‖residual‖, in the norm of M⁻¹, is at most this fraction of the gradient's.
        most: products.
        dots: inner products of pairs of slices, over all ranks.
        preconditioner: M; None: the identity.
        out: overwritten.
    """
    out[:] = 0
    residual, z = -grad, np.empty_like(grad)
    _solve(preconditioner, residual, z)
    rz = dots((residual, z))[0]
    enough, p, curved = fraction * fraction * rz, z.copy(), np.empty_like(out)
    length, along, square, decrease = 0.0, 0.0, rz, 0.0  # ‖s‖², sᵀMp and ‖p‖² of step s and direction p
    products = 0
    for products in range(1, most + 1):
        product(p, curved)
        curvature = dots((p, curved))[0]
        alpha = rz / curvature if curvature > 0 else math.inf
        if not curvature > 0 and math.isinf(radius):  # nothing bounds a step along this direction: as long as it is
            if length == 0:
                out += p
                return Step(rz - 0.5 * curvature, math.sqrt(square), True, products)
            break
        longer = length + alpha * (2 * along + alpha * square)
        if not longer < radius * radius:
            root = math.sqrt(along * along + square * (radius * radius - length))
            tau = (radius * radius - length) / (along + root)
            out += out.dtype.type(tau) * p
            return Step(decrease + tau * rz - 0.5 * tau * tau * curvature, radius, True, products)
        out += np.multiply(p, out.dtype.type(alpha), out=z)  # z is free: no fresh memory, whose page faults cost more
        residual -= np.multiply(curved, out.dtype.type(alpha), out=z)
        decrease += 0.5 * alpha * rz
        _solve(preconditioner, residual, z)
        length, before = longer, rz
        rz = dots((residual, z))[0]
        if not rz > enough:
            break
        beta = rz / before
        along, square = beta * (along + alpha * square), rz + beta * beta * square
        p *= out.dtype.type(beta)
        p += z
    return Step(decrease, math.sqrt(length), False, products)


def next_radius(radius: float, length: float, ratio: float) -> float:
    """The radius of the trust region after a step of ``length`` whose decrease was ``ratio`` times the predicted one.

    Nocedal & Wright 2006, algorithm 4.1.
    """
    if not ratio >= 0.25:  # also where it is not a number
        return 0.25 * length
    return max(radius, 2 * length) if ratio > 0.75 else radius


def _solve(preconditioner: Preconditioner | None, residual: Array, z: Array) -> None:
    """z ← M⁻¹ residual."""
    z[:] = residual
    if preconditioner is not None:
        preconditioner.solve(z)
