"""The history of L-BFGS: the last steps and changes of the gradient, and the direction that follows from them.

The direction is a combination of the history's vectors and the gradient, and its coefficients follow from their inner
products alone (Chen, Wang & Zhou 2014, "Large-scale L-BFGS using MapReduce", algorithm 3).  An iteration passes twice
over the history: once for the products with what is new, once for the direction.  Where vectors are sharded a small sum
over the ranks an iteration is enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from .preconditioner import Diagonal, Preconditioner
from .problem import Problem

Array = Any


class Pairs:
    """The last steps s and changes of the gradient y, in rings of rows.

    There is room for one pair more than are kept: a pair that is dropped costs none.

    Args:
        memory: pairs.
        size, dtype: of the vectors.

    Attributes:
        steps, changes: shape (memory + 1, size); rows are used in turn.
        slots: ``first``, the row of the oldest pair, and ``count``, how many are kept; may be written to.
    """

    def __init__(self, memory: int, size: int, dtype: Any) -> None:
        self.memory, rows = memory, memory + 1
        self.steps, self.changes = np.zeros((rows, size), dtype), np.zeros((rows, size), dtype)
        self.slots: dict[str, Any] = {"first": 0, "count": 0}

    @property
    def order(self) -> list[int]:
        """Rows of the pairs that are kept, the oldest first."""
        first, count = self.slots["first"], self.slots["count"]
        return [(first + i) % (self.memory + 1) for i in range(count)]

    @property
    def free(self) -> int:
        """The row of the pair that is begun next."""
        return (self.slots["first"] + self.slots["count"]) % (self.memory + 1)

    @property
    def kept(self) -> dict[str, Any]:
        """What a checkpoint keeps: vectors and ``slots``, to be written to."""
        self.save()
        steps = {f"step{row}": vector for row, vector in enumerate(self.steps)}
        changes = {f"change{row}": vector for row, vector in enumerate(self.changes)}
        return {**steps, **changes, "place": self.slots}  # as earlier checkpoints call it

    def save(self) -> None:
        """Put into ``slots`` what is to be kept besides; here nothing: ``slots`` is all."""

    def reset(self) -> None:
        """Drop all pairs."""
        self.slots.update(first=0, count=0)

    def _count_one(self) -> None:
        """Keep the pair that was begun last."""
        self.slots["count"] += 1
        if self.slots["count"] > self.memory:
            self.slots.update(first=(self.slots["first"] + 1) % (self.memory + 1), count=self.memory)


class ReplicatedHistory(Pairs):
    """Pairs of whole vectors, which every rank has: the textbook's two loops in float64, preconditioned.

    All ranks come to the same bits, see `ordered`.

    Args:
        memory, size, dtype: see `Pairs`.

    Attributes:
        preconditioner: what stands for the Hessian where there are no pairs, times a factor; None: the identity.
    """

    def __init__(self, memory: int, size: int, dtype: Any) -> None:
        super().__init__(memory, size, dtype)
        self.preconditioner: Preconditioner | None = None

    def propose(self, t: float, direction: Array, grad: Array, before: Array) -> Array:
        """Begin the pair s = t · ``direction``, y = ``grad`` - ``before``; return its inner products for `accept`.

        The first is sᵀ ``grad``.
        """
        from .ordered import dot

        self.steps[self.free], self.changes[self.free] = t * direction, grad - before
        s, y = self._pair(self.free)
        return np.array([dot(s, grad), dot(s, s), dot(s, y), dot(y, y)])

    def _pair(self, row: int) -> tuple[Array, Array]:
        return self.steps[row].astype(np.float64), self.changes[row].astype(np.float64)

    def products(self, grad: Array) -> Array:
        """Nothing: there is nothing to sum for `load`."""
        return np.empty(0)

    def load(self, totals: Array) -> None:
        """Nothing: vectors and ``slots`` may be written to as they are."""
        self.slots.pop("products", None)  # of slices, when a run went on from there

    def accept(self, products: Array, curvature_threshold: float) -> bool:
        """Keep the pair that was begun last, of which `propose` gave ``products``; false if it has no use."""
        _, square, curvature, change = products.tolist()
        if not _useful(square, curvature, change, curvature_threshold):
            return False
        self._count_one()
        return True

    def direction(self, grad: Array, square: float, out: Array) -> float:
        """out ← -H · ``grad`` (Nocedal & Wright 2006, algorithm 7.4); returns its inner product with ``grad``."""
        from .ordered import dot

        pairs = [self._pair(row) for row in self.order]
        curvatures = [dot(s, y) for s, y in pairs]
        alphas = []
        np.negative(grad, out=out)
        for (s, y), curvature in zip(reversed(pairs), reversed(curvatures), strict=True):
            alphas.append(dot(s, out) / curvature)
            out -= alphas[-1] * y
        scale = 1.0
        if pairs:
            y = pairs[-1][1].copy()
            if self.preconditioner is not None:
                self.preconditioner.solve(y)
            scale = curvatures[-1] / dot(pairs[-1][1], y)
        if self.preconditioner is not None:
            self.preconditioner.solve(out)
        out *= scale
        for (s, y), curvature, alpha in zip(pairs, curvatures, reversed(alphas), strict=True):
            out += (alpha - dot(y, out) / curvature) * s
        return dot(out, grad)


class ShardedHistory(Pairs):
    """The last steps s and changes of the gradient y, this rank's slices, and their inner products over all ranks.

    Products of changes, with each other and with the gradient g, are weighted by the inverse of the preconditioner D:
    sᵀy, yᵀD⁻¹y, sᵀg and yᵀD⁻¹g are all that the two loops need.  A pair is begun by `propose` at a trial point, and
    kept by `accept` when that is accepted.  After vectors or ``slots`` were written to, see `load`.

    Args:
        memory: pairs.
        size, dtype: of the owned slice.
        preconditioner: D, what stands for the Hessian where there are no pairs, times a factor; None: the identity.

    Attributes:
        slots: as in `Pairs`, and the inner ``products``, as they were when `save` was called last.
    """

    def __init__(self, memory: int, size: int, dtype: Any, preconditioner: Diagonal | None = None) -> None:
        super().__init__(memory, size, dtype)
        rows = memory + 1
        self._inverse = np.empty(0, dtype)  # D⁻¹
        if preconditioner is not None:
            self._inverse = (1.0 / preconditioner.diagonal).astype(dtype)
        self._gram = np.zeros((2, rows, rows))  # sᵢᵀyⱼ and yᵢᵀD⁻¹yⱼ
        self._with_grad = np.zeros((2, rows))  # sᵢᵀg and yᵢᵀD⁻¹g
        self._number = np.dtype(dtype).type
        self.slots["products"] = []
        self._current = False  # whether products are those of the vectors: not before `load`

    @property
    def _known(self) -> bool:
        """Whether ``slots`` has the products of the vectors: summed anew, they would be other ones in the last bits."""
        return len(self.slots["products"]) == self._gram.size + self._with_grad.size

    @property
    def _filled(self) -> int:
        """Rows up to the last that is in use, or is begun next."""
        return self.memory + 1 if self.slots["first"] else self.slots["count"] + 1

    def propose(self, t: float, direction: Array, grad: Array, before: Array) -> Array:
        """Begin the pair s = t · ``direction``, y = ``grad`` - ``before``; return this rank's part of its products.

        They are float64 in one dimension, to be summed over the ranks and given to `accept`; the first is sᵀ ``grad``.
        """
        from .history_kernels import begin_pair

        row, filled = self.free, self._filled
        products = np.empty((2, filled + 1, 2))
        given = self._number(t), direction, grad, before, self._inverse
        begin_pair(self.steps, self.changes, row, filled, *given, products)
        return np.concatenate([[products[0, row, 1]], products.ravel()])

    def multiply(self, v: Array, dot: Callable[[Array, Array], float], products: Array) -> None:
        """Let ``products``, of `propose`, be those with ``v`` in place of the gradient; ``dot`` gives local ones."""
        filled = self._filled
        table = products[1:].reshape(2, filled + 1, 2)
        for of, vectors in zip(table, (self.steps, self.changes), strict=True):
            for row in range(filled):
                of[row, 1] = dot(vectors[row], v)

    def accept(self, totals: Array, curvature_threshold: float) -> bool:
        """Keep the pair that was begun last, whose products over all ranks are ``totals``; false if it has no use."""
        row, filled = self.free, self._filled
        products = totals[1:].reshape(2, filled + 1, 2)
        self._with_grad[:, :filled] = products[:, :filled, 1]
        square, curvature, change = products[0, filled, 1], products[0, row, 0], products[1, row, 0]
        if not _useful(square, curvature, change, curvature_threshold):
            return False
        self._gram[0, :filled, row] = products[0, :filled, 0]  # sᵢᵀ y; of sᵀ yᵢ the two loops make no use
        self._gram[0, row, :filled] = 0
        self._gram[0, row, row] = curvature
        self._gram[1, :filled, row] = self._gram[1, row, :filled] = products[1, :filled, 0]
        self._count_one()
        return True

    def save(self) -> None:
        """Put the products of the vectors into ``slots``, to be kept with them; too many numbers for each iteration."""
        if self._current:
            self.slots["products"] = [*self._gram.ravel().tolist(), *self._with_grad.ravel().tolist()]

    def products(self, grad: Array) -> Array:
        """This rank's part of all products of the vectors, also with ``grad``, to be summed over ranks for `load`.

        Nothing where there are no pairs, or ``slots`` tells.
        """
        from .history_kernels import gram

        if self._known or not self.slots["count"]:
            return np.empty(0)
        rows = self.memory + 1
        products = np.empty((2, rows, 2 * rows + 1))
        gram(self.steps, self.changes, grad, products)
        if self._inverse.size:
            weighted, root = np.empty_like(products), np.sqrt(self._inverse)
            gram(self.steps, self.changes * root, grad * root, weighted)
            products[1] = weighted[1]
        return products.ravel()

    def load(self, totals: Array) -> None:
        """Take the vectors and ``slots`` as they were written to; ``totals`` are `products` over all ranks."""
        rows = self.memory + 1
        if self._known:
            known = np.array(self.slots["products"])
            gram, with_grad = np.split(known, [self._gram.size])
            self._gram[:], self._with_grad[:] = gram.reshape(self._gram.shape), with_grad.reshape(self._with_grad.shape)
        elif totals.size:
            products = totals.reshape(2, rows, 2 * rows + 1)
            self._gram[:], self._with_grad[:] = products[:, :, rows : 2 * rows], products[:, :, 2 * rows]
        self._current = True

    def direction(self, grad: Array, square: float, out: Array) -> float:
        """out ← -H · ``grad``, H the estimate of the inverse Hessian; -D⁻¹ grad where no pair is kept.

        Returns its inner product with the gradient, of which the ``square`` gᵀD⁻¹g is given; the same bits on every
        rank.
        """
        from .history_kernels import combine

        by_step, by_change, by_grad = self._coefficients()
        on_steps, on_changes = np.zeros((2, self._filled), grad.dtype)
        on_steps[self.order], on_changes[self.order] = by_step, by_change
        combine(self.steps, self.changes, grad, on_steps, on_changes, self._number(by_grad), self._inverse, out)
        with_steps, with_changes = self._with_grad[:, self.order].tolist()
        return _dot([*by_step, *by_change, by_grad], [*with_steps, *with_changes, square])

    def _coefficients(self) -> tuple[list[float], list[float], float]:
        """Of steps, and of D⁻¹ times changes (both oldest first) and the gradient: the two loops, on products alone.

        In arithmetic that every processor does alike: a BLAS rounds on one kind otherwise than on another, and ranks
        that come to other slopes may take other ways.
        """
        order = self.order
        if not order:
            return [], [], -1.0
        with_changes, changes = self._gram[:, order][:, :, order].tolist()  # [i][j]: sᵢᵀ yⱼ and yᵢᵀ yⱼ
        step_grad, change_grad = self._with_grad[:, order].tolist()
        curvature = [with_changes[i][i] for i in range(len(order))]
        by_step, by_change, by_grad = [0.0] * len(order), [0.0] * len(order), -1.0
        for i in reversed(range(len(order))):
            by_change[i] = -(_dot(with_changes[i], by_change) + by_grad * step_grad[i]) / curvature[i]
        alpha = [-number for number in by_change]
        scale = curvature[-1] / changes[-1][-1]
        by_change, by_grad = [scale * number for number in by_change], scale * by_grad
        for i in range(len(order)):
            beta = _dot([row[i] for row in with_changes], by_step) + _dot(changes[i], by_change)
            by_step[i] = alpha[i] - (beta + by_grad * change_grad[i]) / curvature[i]
        return by_step, by_change, by_grad


def _useful(square: float, curvature: float, change: float, curvature_threshold: float) -> bool:
    """Whether a pair with ‖s‖² = ``square``, sᵀy = ``curvature`` and ‖y‖² = ``change`` keeps the estimate definite."""
    return square > 0 and change > 0 and curvature > curvature_threshold * math.sqrt(square * change)


def _dot(a: Iterable[float], b: Iterable[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def history_of(problem: Problem, memory: int, preconditioner: Diagonal | None = None) -> Any:
    """An empty history of ``memory`` pairs, of vectors as ``problem`` has them; ``preconditioner`` is of slices.

    They are in the dtype of the parameters either way: a run may go on under another exchange.
    """
    if problem.replicated:
        return ReplicatedHistory(memory, problem.grad.size, problem.parameter_dtype)
    return ShardedHistory(memory, problem.grad.size, problem.parameter_dtype, preconditioner)


def warm_up(kind: Any, problem: Problem) -> None:
    """Compile what a history of this ``kind`` needs; local."""
    grad = np.ones(1, problem.grad.dtype)
    small, out = kind(1, 1, problem.parameter_dtype), np.ones_like(grad)
    small.accept(small.propose(1.0, out, grad, np.zeros_like(grad)), 0.0)
    small.load(small.products(grad))
    small.direction(grad, 1.0, out)
