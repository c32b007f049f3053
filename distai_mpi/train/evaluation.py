"""Loss and metrics of parameters on test or validation rows, computed by all ranks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..backend import HOST, Device, namespace
from ..data import Batch, Loader, ShardedDataset
from ..models import Abilities, Model, Number, Sums
from .metrics import least_loss, meaningful, measure

if TYPE_CHECKING:
    from ..comm import Communicator

Array = Any


class Evaluation(NamedTuple):
    """Weighted means over all rows of all ranks, without dropout and penalty; None where they have no meaning.

    Attributes:
        loss: mean loss; None where there are no rows.
        accuracy: fraction of rows with the right label; None for models that predict values.
        metrics: by name of `options.METRICS`, those that were asked for and have a meaning for the model.
    """

    loss: float | None
    accuracy: float | None
    metrics: dict[str, float | None] = {}  # noqa: RUF012 - never written to


def target_dtype(model: Model, shard: ShardedDataset) -> np.dtype:
    """The type in which ``model`` takes the labels or targets of ``shard``."""
    return Abilities.of(model).target_dtype or np.dtype(np.int64 if shard.labels.integral else model.dtype)


def make_loader(
    model: Model,
    shard: ShardedDataset,
    comm: Communicator,
    global_batch_size: int = 1,
    seed: int = 0,
    device: Device = HOST,
) -> Loader:
    """A loader of this rank's rows of ``shard``, in the types that ``model`` takes."""
    return Loader(
        shard,
        rank=comm.rank,
        ranks=comm.size,
        global_batch_size=global_batch_size,
        seed=seed,
        dtype=model.dtype,
        target_dtype=target_dtype(model, shard),
        device=device,
        sparse=Abilities.of(model).sparse,
    )


def evaluate(model: Model, w: Array, loader: Loader, comm: Communicator, *, every_metric: bool = False) -> Evaluation:
    """Mean loss and accuracy of ``w``, shape (layout.size,), replicated; collective, the same on every rank.

    With ``every_metric`` also all others that have a meaning, which takes a second pass over the rows.  Rows without
    labels have none.  A row whose label is none of the model's classes counts as wrong; only the accuracy is
    then defined, for the loss would be infinite.
    """
    labels = loader.shard.labels
    if labels.unlabelled:
        return Evaluation(None, None)
    able = Abilities.of(model)
    if able.data_check is not None:
        able.data_check.check_data(labels)
    totals: list[Number] = [0.0, 0.0, 0.0]
    for batch in loader.sequential():
        if labels.unknown:
            batch = _without_unknown(batch)
        sums, correct = _score(model, w, batch) if able.score is None else able.score.score(w, batch)
        totals = [total + part for total, part in zip(totals, (*sums, correct), strict=True)]
    loss, weight, correct = comm.sum(totals).tolist()
    if labels.unknown:
        weight = loader.shard.total_weight
        return _accuracy_alone(correct / weight if weight else math.nan, every_metric)
    if weight == 0:
        return Evaluation(None, None)
    loss /= weight
    # where targets are values, right and wrong mean nothing; a model that cannot tell gives nan
    classifies = loader.target_dtype.kind == "i" and not math.isnan(correct)
    accuracy = correct / weight if classifies else None
    metrics: dict[str, float | None] = {}
    if every_metric:
        if classifies:
            metrics["accuracy"] = accuracy
        if "log_loss" in meaningful(model, loader.target_dtype):
            metrics["log_loss"] = loss
        if able.loss is not None and able.loss.deviance_name:
            metrics[able.loss.deviance_name] = 2 * (loss - least_loss(able.loss, loader, comm))
        metrics |= measure(model, w, loader, comm)
    return Evaluation(loss, accuracy, metrics)


def _without_unknown(batch: Batch) -> Batch:
    """``batch`` in which rows of unknown classes weigh nothing, and have a label that every model knows."""
    xp = namespace(batch.y)
    known = (batch.y >= 0).astype(batch.rows.dtype)
    y = xp.maximum(batch.y, 0)
    return batch._replace(y=y, weight=known if batch.weight is None else batch.weight * known)


def _accuracy_alone(accuracy: float, every_metric: bool) -> Evaluation:
    """What is known of rows of which some have labels that are none of the model's classes."""
    known = None if math.isnan(accuracy) else accuracy
    return Evaluation(None, known, {"accuracy": known} if every_metric and known is not None else {})


def _score(model: Model, w: Array, batch: Batch) -> tuple[Sums, Number]:
    """What `SupportsScore.score` gives, for a model that has no such method."""
    right = model.predict(w, batch.x) == batch.y
    return model.loss(w, batch), right.sum() if batch.weight is None else batch.weight @ right
