"""What a model offers to full-batch solvers."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...models import Abilities
from ...optim.solvers.preconditioner import NO_NULL_SPACE

Array = Any


def is_linear(model: Any) -> bool:
    """Whether the matrix of the curvature of ``model`` can be had, and is the Hessian."""
    return Abilities.of(model).linear is not None


def null_space(model: Any, penalty: Array) -> Array:
    """Places of parameters that may all grow alike without a change of the objective, shape (groups, members).

    Of softmax regression the parameters of all classes that belong to one column, where nothing penalises them; of
    other linear models none.

    Args:
        penalty: of all parameters, shape (layout.size,).
    """
    if not model.loss_function.several:
        return NO_NULL_SPACE
    columns = np.arange(model.layout.size).reshape(-1, model.widths[-1])
    return columns[penalty[columns[:, 0]] == 0]
