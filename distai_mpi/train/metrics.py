"""Metrics besides the loss, exact over the rows of all ranks.

All are weighted by the rows' weights.  Each rank needs memory for its own rows alone, sorted scores included.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend import as_host
from ..data import Loader
from ..models import Abilities, Loss, Model

if TYPE_CHECKING:
    from ..comm import Communicator

Array = Any
SAMPLES = 4096  # scores that all ranks together show, to cut all scores into parts of about the same length,
SAMPLES_A_RANK = 16  # or so many for each rank, where that is more


def meaningful(model: Model, target_dtype: np.dtype) -> tuple[str, ...]:
    """Names of `options.METRICS` that ``model`` can give for rows with targets of this type, as far as it tells."""
    able = Abilities.of(model)
    if target_dtype.kind == "f":
        own = able.loss.deviance_name if able.loss is not None else None
        return ("loss", "mae", "rmse", "r2", *([own] if own else [])) if able.predicts else ("loss",)
    known = {
        "loss": True,
        "accuracy": able.predicts and able.labels,
        "log_loss": able.loss is not None and able.loss.classifies,
        "auc": able.outputs is not None and able.outputs.widths[-1] <= 2,
    }
    return tuple(name for name, has in known.items() if has)


def measure(model: Model, w: Array, loader: Loader, comm: Communicator) -> dict[str, float | None]:
    """The metrics that have a meaning for ``model`` at ``w``, shape (layout.size,), by name; collective.

    Where targets are values: ``mae``, ``rmse`` and ``r2``.  Where they are two classes and the model tells its
    outputs: ``auc``.  None stands for one that these rows do not define, such as the AUC of a single class.
    """
    names = meaningful(model, loader.target_dtype)
    if not {"mae", "auc"} & set(names):
        return {}
    values = "mae" in names
    columns: list[list[Array]] = [[], [], []]
    for batch in loader.sequential():
        answers = model.predict(w, batch.x) if values else _margins(model, w, batch.x)
        weight = np.ones(len(batch.y)) if batch.weight is None else batch.weight
        for column, part in zip(columns, (answers, batch.y, weight), strict=True):
            column.append(np.array(as_host(part), np.float64))
    answers, y, weight = (np.concatenate([np.empty(0), *column]) for column in columns)
    return errors(answers, y, weight, comm) if values else {"auc": auc(answers, y > 0, weight, comm)}


def least_loss(loss: Loss | None, loader: Any, comm: Communicator) -> float:
    """The weighted mean of `Loss.least` over all rows of all ranks; collective, one small sum where it is not 0."""
    if loss is None or type(loss).least is Loss.least:
        return 0.0
    local = 0.0
    for batch in loader.sequential():
        least = loss.least(as_host(batch.y))
        local += float(least.sum() if batch.weight is None else least @ as_host(batch.weight))
    return float(comm.sum([local])[0]) / loader.total_weight


def _margins(model: Any, w: Array, x: Array) -> Array:
    """How much each row, shape (rows,), speaks for the second of two classes."""
    outputs = model.outputs(w, x)
    return outputs[:, 0] if outputs.shape[1] == 1 else outputs[:, 1] - outputs[:, 0]


def errors(predicted: Array, y: Array, weight: Array, comm: Communicator) -> dict[str, float | None]:
    """Mean absolute error, root of the mean squared error and R² (the coefficient of determination); collective.

    All shape (rows of this rank,), float64.  R² = 1 - Σ w (y - predicted)² / Σ w (y - mean)²; None where y is
    constant.
    """
    residual = y - predicted
    total, target, absolute, squares = comm.sum(
        [weight.sum(), weight @ y, weight @ np.abs(residual), weight @ residual**2]
    ).tolist()
    if total == 0:
        return {"mae": None, "rmse": None, "r2": None}
    spread = float(comm.sum([weight @ (y - target / total) ** 2])[0])
    counted = y[weight > 0]
    ends = comm.allgather_object((counted.min(), counted.max()) if counted.size else (math.inf, -math.inf))
    varies = min(low for low, _ in ends) < max(high for _, high in ends)  # the spread of a constant may round to > 0
    return {
        "mae": absolute / total,
        "rmse": math.sqrt(squares / total),
        "r2": 1 - squares / spread if varies and spread > 0 else None,
    }


def auc(score: Array, positive: Array, weight: Array, comm: Communicator) -> float | None:
    """Area under the ROC curve: the chance that a positive row scores higher than a negative one, ties half.

    Exact (Hanley & McNeil 1982, "The meaning and use of the area under a ROC curve", section III), by a sort
    over the ranks: each gets a range of the scores of all, equal ones together (sample sort, Frazer & McKellar
    1970).  ``score`` and ``weight`` have shape (rows of this rank,), float64, ``positive`` is bool.  None where
    there is only one class, or a score is not a number.  Collective.
    """
    lost = np.isnan(score).any()
    if comm.sum([lost])[0]:
        return None
    parts = _merge(score, weight * positive, weight * ~positive)
    parts = _merge(*_by_score(parts, comm))
    sums = comm.allgather_object((float(parts[1].sum()), float(parts[2].sum())))
    below = sum(negative for _, negative in sums[: comm.rank])
    positives, negatives = (float(part) for part in np.sum(sums, axis=0))
    if positives == 0 or negatives == 0:
        return None
    beaten = below + np.cumsum(parts[2]) - 0.5 * parts[2]
    return float(comm.sum([parts[1] @ beaten])[0]) / (positives * negatives)


def _merge(score: Array, positive: Array, negative: Array) -> tuple[Array, Array, Array]:
    """Scores in ascending order, each once, with the summed weights of the rows that have it."""
    unique, index = np.unique(score, return_inverse=True)
    return (
        unique,
        np.bincount(index, positive, minlength=unique.size),
        np.bincount(index, negative, minlength=unique.size),
    )


def _shown(score: Array, total: float, ranks: int) -> Array:
    """Every so many of the ``total`` scores of all ``ranks``, of those that this rank has, shape (scores,)."""
    samples = max(SAMPLES, SAMPLES_A_RANK * ranks)
    wanted = min(score.size, math.ceil(samples * score.size / max(1, total)))
    return score[(2 * np.arange(wanted) + 1) * score.size // max(1, 2 * wanted)]


def _by_score(parts: tuple[Array, Array, Array], comm: Communicator) -> list[Array]:
    """Exchange ascending scores and what belongs to them so that rank r's lie below those of rank r + 1."""
    score = parts[0]
    total = comm.sum([score.size])[0]
    samples = np.sort(np.concatenate(comm.allgather_object(_shown(score, total, comm.size))))
    if samples.size == 0:
        return list(parts)
    cuts = samples[np.arange(1, comm.size) * samples.size // comm.size]
    ends = [0, *np.searchsorted(score, cuts, side="right").tolist(), score.size]
    counts = np.diff(ends)
    arriving = np.empty_like(counts)
    comm.alltoallv(counts, [1] * comm.size, arriving, [1] * comm.size)
    received = []
    for part in parts:
        received.append(np.empty(arriving.sum()))
        comm.alltoallv(np.ascontiguousarray(part, np.float64), counts.tolist(), received[-1], arriving.tolist())
    return received
