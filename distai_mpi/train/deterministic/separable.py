"""Whether an objective can have an optimum, or falls for ever while parameters grow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ...objective import Objective

if TYPE_CHECKING:
    from ...comm import Communicator

Array = Any


def without_optimum(objective: Objective, w: Array) -> str | None:
    """Why no finite parameters minimise ``objective``, where ``w`` shows it, in words; collective, one small sum.

    Where parameters have every row on its class's side, larger ones have a smaller loss (Albert & Anderson 1984, "On
    the existence of maximum likelihood estimates in logistic regression models"): of a linear model all of them, of a
    net those of the last layer.  A bias alone does that to rows of one class, and is not penalised.

    Args:
        w: parameters, shape (layout.size,), replicated.

    Returns:
        None also where it cannot be told: for models without a loss of known form, or where ``w`` has rows wrong.
    """
    model: Any = objective.model
    labels = objective.loader.share.labels
    if not getattr(getattr(model, "loss_function", None), "classifies", False):
        return None
    if labels.low == labels.high and not all(slot.decay for slot in model.layout.slots):
        return "all rows are of one class: a larger bias always fits them better, and there is no optimum"
    if objective.l2 or _wrong(objective, w, objective.comm):
        return None
    return (
        "all rows are classified right (separable classes): without a penalty larger parameters always fit them better,"
        " and there is no optimum; give --l2"
    )


def _wrong(objective: Objective, w: Array, comm: Communicator) -> int:
    """Rows, over all ranks, that ``w`` does not classify right; those of weight 0 do not count."""
    model: Any = objective.model
    wrong = 0
    for batch in objective.loader.sequential():
        missed = ~model.loss_function.right(model.outputs(w, batch.x), batch.y)
        wrong += int(np.count_nonzero(missed if batch.weight is None else missed & (batch.weight > 0)))
    return int(comm.sum([wrong])[0])
