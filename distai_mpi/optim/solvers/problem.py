"""What a solver sees of the function that it minimises: nothing of ranks, rows or models."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .preconditioner import Diagonal, Preconditioner, RankFactored

Array = Any
NOTHING = np.empty(0)


class Evaluation(NamedTuple):
    """What is known of a point; the same on every rank but for ``sums``.

    Attributes:
        value: the objective.
        square: ‖gradient‖²; with an l1 penalty that of the pseudo-gradient.
        sums: whatever the problem keeps of this rank's part of the evaluation.
        auxiliary: sums over the ranks of what travelled beside the gradient.
        products: of the inner products that were asked for.
        scaled: gᵀ D⁻¹ g, g the gradient (or pseudo-gradient) and D an approximate diagonal of the Hessian; nan where
            that is not known.
    """

    value: float
    square: float
    sums: Any
    auxiliary: Array
    products: Array
    scaled: float = math.nan


class SampledStart(NamedTuple):
    """What a sample of the terms of the objective tells; see `Problem.sampled`.

    Attributes:
        message: this rank's part of it, to be summed beside the first gradient.
        read: from the sums, the minimiser of the sample (None: it has none), its Hessian for a preconditioner (None
            where it has none), and what measures the decrement.
    """

    message: Array
    read: Callable[[Array], tuple[Array | None, Preconditioner | None, Preconditioner]]


class Problem(ABC):
    """A function at one point after another: the current one, and a trial point that may replace it.

    Vectors lie in owned slices of parts of ``n`` parameters, or replicated, whole on every rank.  All methods are
    collective unless they say otherwise.

    Attributes:
        dtype: of the solver's vectors; ``parameter_dtype``: of the points, in which they are rounded.
        grad, trial_grad: gradient at the current and at the trial point, this rank's slice.
        l1: strengths of the penalty Σ l1 |w|, at least 0, this rank's slice; values contain it, gradients do not; None:
            there is none.
        slope, trial_slope: with ``l1`` the pseudo-gradients, see `orthant`, of ``grad`` and ``trial_grad``.
        replicated: whether every rank has the whole of all vectors.
        counts: ``evaluations`` and ``products``, how many there were.
        least_value: what the objective cannot fall below: 0 but for losses of counts, which may be negative.
        terms: how many terms, rows of all ranks, the objective is a mean of.
        is_linear: whether the curvature is the Hessian of a linear model, so that Newton's decrement can be had.
        has_constant_hessian: whether that is the same everywhere, as of least squares.
        has_products: whether `product` works; ``has_lines``: whether `line` does.
        is_dense: whether parameters are so few that a dense Hessian could be made, if all vectors were replicated.
        hessian_products: multiplications, on a rank, of a Hessian of all terms; infinite where there can be none.
    """

    dtype: np.dtype
    parameter_dtype: np.dtype
    grad: Array
    trial_grad: Array
    l1: Array = None
    slope: Array = None
    trial_slope: Array = None
    counts: dict[str, int]
    replicated = False
    terms = 1
    least_value = 0.0
    is_linear = has_constant_hessian = has_products = has_lines = is_dense = False
    hessian_products = math.inf

    def excess(self, at: Evaluation) -> float:
        """The objective above `least_value`: what gaps and tolerances are fractions of; local."""
        return max(0.0, at.value - self.least_value)

    @property
    @abstractmethod
    def w(self) -> Array:
        """The slice of the current point; to be written to by who restores it."""

    @abstractmethod
    def evaluate(
        self,
        auxiliary: Array = NOTHING,
        products: Callable[[], Array] | None = None,
        more: Callable[[], Array] | None = None,
        *,
        current: bool = False,
    ) -> Evaluation:
        """The objective at the trial (or ``current``) point, and its gradient into ``trial_grad``.

        ``auxiliary`` are this rank's parts of sums that are wanted too, and after them what ``more`` gives once the
        terms were looked at.  ``products`` gives, once the gradient is known, this rank's parts of inner products.
        """

    @abstractmethod
    def accept(self, *, current: bool = False) -> None:
        """Make the point that was evaluated last the current one; local."""

    @abstractmethod
    def move(self, t: float, direction: Array) -> None:
        """Trial point ← current point + t · ``direction``, on all ranks."""

    @abstractmethod
    def propose(self, w: Array) -> None:
        """Trial point ← ``w``, replicated; local."""

    @abstractmethod
    def dots(self, *pairs: tuple[Array, Array]) -> list[float]:
        """Inner products of pairs of slices, over all ranks and the same on all of them."""

    def local_dot(self, a: Array, b: Array) -> float:
        """This rank's part of the inner product of two slices, as ``products`` of `evaluate` are; local."""
        raise NotImplementedError

    def product(self, v: Array, out: Array) -> None:
        """out ← curvature at the current point · ``v``."""
        raise NotImplementedError

    def line(self, t: float, direction: Array, read: float) -> tuple[float, float]:
        """Value and slope at t · ``direction`` from the current point; the trial point is that of t = ``read``."""
        raise NotImplementedError

    def local_hessian(self) -> Array:
        """This rank's part of the Hessian at the trial point, its lower triangle, without the penalty; local."""
        raise NotImplementedError

    def factor(self, triangle: Array) -> RankFactored:
        """The factored Hessian of which ``triangle`` is the sum of `local_hessian` over the ranks; local."""
        raise NotImplementedError

    def factored_hessian(self, at: Array) -> RankFactored:
        """The factored Hessian at the replicated point ``at``."""
        raise NotImplementedError

    def sampled(self, asked: int | None) -> SampledStart | None:
        """The solution of a sample of so many terms (None: as many as serve), or None where there is no sample."""
        return None

    def has_sample(self, asked: int | None) -> bool:
        """Whether `sampled`, or a diagonal in its place, is to precondition."""
        return False

    def local_diagonal(self) -> Array:
        """This rank's part of an approximate diagonal of the Hessian, a sum without the penalty; local."""
        raise NotImplementedError

    def diagonal_metric(self, totals: Array) -> Diagonal:
        """The diagonal of which ``totals`` is the sum of `local_diagonal` over the ranks; local."""
        raise NotImplementedError

    def diagonal_at_start(self) -> Diagonal | None:
        """The Hessian's diagonal at parameters of 0, of slices; None: it is not known; local."""
        return None

    def diagonal_here(self) -> Diagonal | None:
        """The Hessian's diagonal at the current point, of slices; None: it is not known; collective."""
        return None

    def curvature_diagonal(self) -> Array:
        """The diagonal of the curvature at the current point, penalty added, a positive slice, float64; collective."""
        raise NotImplementedError

    def rounding(self) -> Array | None:
        """How far off the current point is once it is rounded for the user, a slice; None: not at all; local."""
        return None

    def scaled_product(self, v: Array) -> float:
        """vᵀ D v, D as in `Evaluation.scaled` or the identity."""
        return self.dots((v, v))[0]

    def warn(self, message: str) -> None:
        """Say something to the user, once; local."""
        warnings.warn(message, stacklevel=2)
