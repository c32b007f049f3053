"""What a loss is: a function of a row's outputs and its target, with the targets it takes and the answers it gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from ...backend import namespace
from ...data import LabelSummary
from ...errors import ConfigError, DataError

Array = Any


class Loss(ABC):
    """A loss of a row's outputs z (margins or logits, before any link function) and its label or target y.

    Attributes:
        name: of errors and of saved models.
        several: whether it takes several outputs, one a class.
        classifies: whether targets are labels.
        quadratic: whether second derivatives are the same everywhere.
        of_difference: whether it is a function of z - y alone.
        unattained: whether it falls for ever as z goes on in one direction, so that an objective may have no optimum.
        deviance_name: name among the metrics of twice the mean loss above the least possible; None: it is none.
        curvature_scale: a usual second derivative by an output, for scales of parameters before any row was seen.
    """

    name: str
    several = False
    classifies = False
    quadratic = False
    of_difference = False
    unattained = False
    deviance_name: str | None = None
    curvature_scale = 1.0

    def __repr__(self) -> str:
        return f"<{self.name} loss>"

    def target_dtype(self, dtype: np.dtype) -> np.dtype:
        """The dtype in which targets are handed to the model: int64 labels, or values in ``dtype``."""
        return np.dtype(np.int64) if self.classifies else np.dtype(dtype)

    def check_outputs(self, outputs: int) -> None:
        """Raise `ConfigError` unless the loss can be of so many ``outputs``."""
        if outputs > 1 and not self.several:
            raise ConfigError(f"{self.name} loss is of one output, not {outputs}: softmax takes several")

    def check_labels(self, labels: LabelSummary, outputs: int | None = None) -> None:
        """Raise `DataError` unless ``labels`` fit this loss, and a model of so many ``outputs``."""
        if labels.words and not self.classifies:
            raise DataError(
                f"{self.name} loss needs targets that are numbers, but the labels are words; logistic and softmax take"
                " classes"
            )
        if labels.low <= labels.high:  # else there are none to look at
            found = f"labels run from {labels.low:g} to {labels.high:g}"
            self._check(labels, found + ("" if labels.integral else " and are not whole numbers"), outputs)

    def _check(self, labels: LabelSummary, found: str, outputs: int | None) -> None:  # noqa: B027 - most take any
        """The part of `check_labels` that is the loss's own; ``found`` tells of the labels in words."""

    def least(self, y: Array) -> Array:
        """The least loss that any outputs give each target, shape (rows,), float64."""
        return np.zeros(len(y))

    def curvature_at_zero(self, outputs: int) -> float | None:
        """The second derivative by each of so many ``outputs`` where all are 0, of any target; None: they differ."""
        return None

    @abstractmethod
    def predict(self, outputs: Array) -> Array:
        """Values or label numbers, shape (rows,), for outputs of shape (rows, outputs)."""

    def right(self, outputs: Array, y: Array) -> Array:
        """Which rows, shape (rows,), bool, get the label ``y``; none where targets are values."""
        return self.predict(outputs) == y if self.classifies else namespace(y).zeros(len(y), bool)

    def probabilities(self, outputs: Array) -> Array | None:
        """Those of the classes, shape (rows, classes), in float64; None of a loss that is of no probability."""
        return None

    @abstractmethod
    def of_rows(self, z: Array, y: Array) -> tuple[Array, Array]:
        """Losses and second derivatives of rows, shape (rows,), float64; ``z`` becomes the first derivatives.

        ``z`` has shape (rows, outputs), at least one row.  Where there are several outputs the second derivatives
        follow from the first, and zeros stand for them.
        """


class PointLoss(Loss):
    """A loss of one output, which `point` alone tells of."""

    @staticmethod
    @abstractmethod
    def point(z: Any, y: Any) -> tuple[Any, Any, Any]:
        """Loss, and first and second derivative by z, of rows with the outputs ``z``, float64, and targets ``y``.

        Made of `arithmetic` and + - * / alone, so that it works on arrays and can be compiled; without branches, so
        that it becomes vector code.  The second derivative must not be negative; where it is 0, or none, methods of
        second order may be given a larger one.
        """

    def of_rows(self, z: Array, y: Array) -> tuple[Array, Array]:
        """See `Loss.of_rows`."""
        xp, wide = namespace(z), z[:, 0].astype(np.float64)
        losses, slopes, curvatures = self.point(wide, y)
        z[:, 0] = slopes
        return losses, xp.broadcast_to(xp.asarray(curvatures, dtype=np.float64), wide.shape)

    def predict(self, outputs: Array) -> Array:
        """See `Loss.predict`: the outputs themselves."""
        return outputs[:, 0].copy()


class TwoClassLoss(PointLoss):
    """A loss of one output whose sign tells one of two classes, 0 and 1, or -1 and 1."""

    classifies = True

    def predict(self, outputs: Array) -> Array:
        """See `Loss.predict`: 1 where the output is positive, else 0."""
        return (outputs[:, 0] > 0).astype(np.int64)

    def right(self, outputs: Array, y: Array) -> Array:
        """See `Loss.right`; labels may be 0/1 or -1/+1."""
        return (outputs[:, 0] > 0) == (y > 0)

    def _check(self, labels: LabelSummary, found: str, outputs: int | None) -> None:
        if labels.zero_one or labels.plus_minus:
            return
        count = None if labels.values is None else len(labels.values)
        way_out = "data.encode_labels makes codes of two classes"
        if count == 1:
            way_out = "there is only one class to be told"
        elif count is None or count > 2:
            found += "" if count is None else f", {count:,} classes"
            way_out = "softmax takes more classes"
        raise DataError(f"{self.name} loss needs labels 0 and 1, or -1 and 1, but {found}; {way_out}")
