"""What the models made of another library's functions have in common."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ...data import Batch, LabelSummary
from ...errors import ConfigError, DataError
from ...params import Layout
from ..base import Sums

Array = Any
Decay = Callable[[str, tuple[int, ...]], bool]
TRIAL_ROWS = 3  # of a first call: a number that no other axis is likely to have


def matrices(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a parameter has two or more axes: the penalty spares biases, scales and other vectors."""
    return len(shape) >= 2


def load(library: str, title: str) -> Any:
    """The module called ``library``, which is also the name of our extra that installs it."""
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise ConfigError(f"{title} is not installed ({error}): pip install 'distai-mpi[{library}]'") from None


class Adapted:
    """Parameters as one flat vector, and sums of what the library says of each row.

    Subclasses give ``_losses_and_grad``, ``_losses_and_predictions``, ``_try`` and ``predict``.
    """

    def __init__(self, start: Iterable[tuple[str, Array]], dtype: np.dtype, target_dtype: Any, decay: Decay) -> None:
        start = list(start)
        if not start:
            raise ConfigError("there is no parameter to train")
        for name, value in start:
            if not np.isfinite(value).all():
                raise ConfigError(f"parameter {name} is not finite at the start")
        self.dtype = dtype
        try:
            self.layout = Layout.of((name, value.shape, bool(decay(name, value.shape))) for name, value in start)
        except ValueError:
            raise ConfigError(
                f"parameters need names of their own, got {', '.join(name for name, _ in start)}"
            ) from None
        if target_dtype is not None:
            self.target_dtype = np.dtype(target_dtype)
        self._start = np.empty(self.layout.size, dtype)
        for view, (_, value) in zip(self.layout.views(self._start).values(), start, strict=True):
            view[...] = value
        self._tried: set[LabelSummary] = set()

    def init(self, rng: np.random.Generator) -> Array:
        """The parameters that the model was built with, shape (layout.size,); ``rng`` is not used."""
        return self._start.copy()

    def check_data(self, labels: LabelSummary) -> None:
        """Try the loss on three rows of 0, ½ and 1 with such ``labels``; nothing is done for labels tried before.

        Raises:
            ConfigError: it gives no loss per row.
            DataError: it cannot take such rows.
        """
        if labels in self._tried:
            return
        y_dtype = getattr(self, "target_dtype", np.dtype(np.int64) if labels.integral else self.dtype)
        ends = (labels.low, labels.high) if labels.rows else (0, 0)
        x = np.repeat(np.linspace(0, 1, TRIAL_ROWS, dtype=self.dtype)[:, None], labels.features, axis=1)
        y = np.array([*ends, ends[0]]).astype(y_dtype)
        try:
            self._try(Batch(x, y, None, np.arange(TRIAL_ROWS), 0, train=True))
        except (TypeError, ValueError, IndexError, RuntimeError) as error:
            reason = str(error).strip().split("\n")[0]
            found = f"{labels.features} features and labels from {ends[0]:g} to {ends[1]:g} ({y.dtype})"
            raise DataError(f"the loss cannot take rows of {found}: {type(error).__name__}: {reason}") from error
        self._tried.add(labels)

    def loss_and_grad(self, w: Array, batch: Batch, grad: Array) -> Sums:
        """Overwrite ``grad`` with the gradient, at ``w``, of Σ weight · loss over the rows of ``batch``."""
        if len(batch.x) == 0:
            grad[:] = 0
            return Sums(0.0, 0.0)
        return weighted_sums(self._losses_and_grad(w, batch, grad), batch.weight)

    def loss(self, w: Array, batch: Batch) -> Sums:
        """Σ weight · loss over the rows of ``batch`` at ``w``, without dropout."""
        return self.score(w, batch)[0]

    def score(self, w: Array, batch: Batch) -> tuple[Sums, float]:
        """As `loss`, and the weight of the rows whose label is predicted; nan if the model predicts no labels."""
        if len(batch.x) == 0:
            return Sums(0.0, 0.0), 0.0
        losses, predicted = self._losses_and_predictions(w, batch)
        if predicted is None:
            return weighted_sums(losses, batch.weight), math.nan
        y = batch.y
        if y.dtype.kind == "i" and predicted.dtype == bool:  # of labels 0/1 or -1/+1
            y = y > 0
        right = predicted == y
        correct = right.sum() if batch.weight is None else batch.weight @ right
        return weighted_sums(losses, batch.weight), float(correct)

    def _losses_and_grad(self, w: Array, batch: Batch, grad: Array) -> Array:
        """Losses of at least one row, shape (rows,), and the gradient of their weighted sum into ``grad``."""
        raise NotImplementedError

    def _losses_and_predictions(self, w: Array, batch: Batch) -> tuple[Array, Array | None]:
        """Losses and predictions, both shape (rows,), of at least one row, without dropout."""
        raise NotImplementedError

    def _try(self, batch: Batch) -> None:
        """Raise what is wrong with the loss for such a ``batch``."""
        raise NotImplementedError


def weighted_sums(losses: Array, weight: Array | None) -> Sums:
    """Σ weight · loss and Σ weight in float64, both arrays of shape (rows,)."""
    losses = losses.astype(np.float64)
    if weight is None:
        return Sums(float(losses.sum()), float(len(losses)))
    weight = weight.astype(np.float64)
    return Sums(float(losses @ weight), float(weight.sum()))


def check_losses(shape: tuple[int, ...], floating: bool, rows: int) -> None:
    """Raise `ConfigError` unless losses of this ``shape`` are one real number for each of ``rows`` rows."""
    if shape != (rows,):
        found = "one number" if shape == () else f"shape {shape}"
        raise ConfigError(
            f"the loss gives {found} for {rows} rows: it must give the loss of each row, shape ({rows},), "
            "and neither their sum nor their mean (in PyTorch reduction='none'; one column of outputs "
            "has to be squeezed)"
        )
    if not floating:
        raise ConfigError("the loss gives whole numbers, which have no gradient: it must give real ones")
