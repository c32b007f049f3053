"""Whether an objective can have an optimum, or falls for ever while parameters grow."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...objective import Objective
from ...settings import called

Array = Any


def without_optimum(objective: Objective, w: Array) -> str | None:
    """Why no finite parameters minimise ``objective``, where ``w`` shows it, in words; collective, one small sum.

    Where parameters have every row on its class's side, larger ones have a smaller loss (Albert & Anderson 1984, "On
    the existence of maximum likelihood estimates in logistic regression models"): of a linear model all of them, of a
    net those of the last layer.  The bias of a class without rows does that too, and is not penalised.

    Args:
        w: parameters, shape (layout.size,), replicated.

    Returns:
        None also where it cannot be told: for models without a loss of known form, where ``w`` has rows wrong, or a
        column is not 0 in rows of one class alone.
    """
    model: Any = objective.model
    loss = objective.abilities.loss
    if loss is None or not (loss.classifies and loss.unattained) or (loss.several and model.widths[-1] == 1):
        return None
    counts, wrong = _look(objective, w)
    if not counts.any():
        return None
    biased = not all(slot.decay for slot in model.layout.slots)
    if biased and not counts.all():
        if model.widths[-1] == 1:
            return "all rows are of one class: nothing bounds the bias, and there is no optimum; give rows of both"
        empty = ", ".join(map(str, np.flatnonzero(counts == 0)[:5]))
        return (
            f"no row is of class {empty}: its bias falls for ever, and there is no optimum; leave the class out of the"
            " labels, or give rows of it"
        )
    if objective.l2 or objective.l1 or wrong:
        return None
    return (
        "all rows are classified right (separable classes): without a penalty larger parameters always fit them better,"
        f" and there is no optimum; give {called('l2')}"
    )


def _look(objective: Objective, w: Array) -> tuple[Array, float]:
    """Rows of each class, and rows on no side or a wrong one, over all ranks; those of weight 0 do not count."""
    model: Any = objective.model
    outputs = model.widths[-1]
    totals = np.zeros(max(2, outputs) + 1)
    for batch in objective.loader.sequential():
        z, y = model.outputs(w, batch.x), batch.y
        counts = np.ones(len(y), bool) if batch.weight is None else batch.weight > 0
        if outputs == 1:
            label = (y > 0).astype(np.int64)  # labels may be 0/1 or -1/+1
            right = np.where(label, z[:, 0] > 0, z[:, 0] < 0)
        else:
            label, others, rows = y, z.copy(), np.arange(len(y))
            others[rows, y] = -np.inf
            right = z[rows, y] > others.max(axis=1)
        totals[:-1] += np.bincount(label[counts], minlength=len(totals) - 1)
        totals[-1] += np.count_nonzero(counts & ~right)
    totals = objective.comm.sum(totals)
    return totals[:-1], float(totals[-1])
