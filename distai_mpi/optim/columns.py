"""First-order steps that touch no parameters but those of the columns of a sparse gradient.

They are those of the same methods on whole vectors, in which parameters without a gradient stay as they are: with
`AdaGrad` because their sums of squares do, with `FTRL` by construction.  Plain SGD is given the l2 penalty by a factor
that all parameters have in common.  Momentum and Adam move parameters without a gradient too, and the gradient of the
penalty has no zeros: they take whole vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .first_order import FTRL, SGD, AdaGrad, FirstOrder

Array = Any
METHODS = (SGD, AdaGrad, FTRL)  # these classes themselves: a subclass may take another step


class ColumnStep(NamedTuple):
    """A step as compiled code takes it: ``update(columns, sums, scale, start, decaying, w, state, rate, settings)``.

    Attributes:
        update: see `column_kernels`.
        state: arrays of the method's state, like the slice of the parameters.
        settings: the method's numbers, in the dtype of the parameters.
    """

    update: Callable[..., None]
    state: tuple[Array, ...]
    settings: tuple[Any, ...]


def touches_columns(optimizer: FirstOrder, l2: float) -> bool:
    """Whether `column_step` gives the steps of ``optimizer`` on an objective with this l2 penalty."""
    return type(optimizer) in METHODS and (l2 == 0 or type(optimizer) is SGD)


def column_step(optimizer: Any, state: dict[str, Any], dtype: Any) -> ColumnStep:
    """The step of ``optimizer``, see `touches_columns`, with its ``state``; that of SGD has ``settings`` of 1."""
    from . import column_kernels as kernels

    number = dtype.type
    if type(optimizer) is AdaGrad:
        settings = number(optimizer.initial), number(optimizer.epsilon)
        return ColumnStep(kernels.adagrad, (state["squares"], state["carry"]), settings)
    if type(optimizer) is FTRL:
        arrays = tuple(state[name] for name in ("dual", "squares", "carry"))
        return ColumnStep(kernels.ftrl, arrays, (number(optimizer.beta), number(optimizer.l1), number(optimizer.l2)))
    return ColumnStep(kernels.sgd, (), (number(1),))
