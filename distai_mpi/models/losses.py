"""Losses of a model's outputs, each with the targets that fit it.

An output is a row's margin or logits z, before any link function.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import namespace
from ..data import LabelSummary
from ..errors import ConfigError, DataError

Array = Any
MAX_CLASSES = 1_000_000  # more than that is a column of numbers taken for labels


@dataclass(frozen=True)
class Loss:
    """A loss by name; its arithmetic is `kernels.cpu.residual`.

    Attributes:
        name: ``squared``, ``logistic`` or ``softmax``.
        code: its number among the kernels.
        classifies: whether targets are labels.
    """

    name: str
    code: int
    classifies: bool

    def of(self, outputs: int) -> Loss:
        """This loss, for a model of so many ``outputs``.

        Raises:
            ConfigError: it is of one output.
        """
        if outputs > 1 and self.name != "softmax":
            raise ConfigError(f"{self.name} loss is of one output, not {outputs}: softmax takes several")
        return self

    def target_dtype(self, dtype: np.dtype) -> np.dtype:
        """The dtype in which targets are handed to the model: int64 labels, or values in ``dtype``."""
        return np.dtype(np.int64) if self.classifies else np.dtype(dtype)

    def check_labels(self, labels: LabelSummary, outputs: int | None = None) -> None:
        """Raise `DataError` unless ``labels`` fit this loss, and a model of so many ``outputs``."""
        if labels.words and not self.classifies:
            raise DataError(
                f"{self.name} loss needs targets that are numbers, but the labels are words; logistic and softmax take"
                " classes"
            )
        if labels.low > labels.high:
            return  # there are none to look at
        found = f"labels run from {labels.low:g} to {labels.high:g}"
        if not labels.integral:
            found += " and are not whole numbers"
        if self.name == "logistic" and not (labels.zero_one or labels.plus_minus):
            raise DataError(_not_two(labels, found))
        if self.name == "softmax":
            if labels.classes is None:
                raise DataError(
                    f"softmax needs labels 0, 1, ..., classes - 1, but {found}; linear takes real values, and"
                    " data.encode_labels makes classes of any labels"
                )
            if outputs is None and labels.classes > MAX_CLASSES:
                raise DataError(f"softmax would have {labels.classes:,} classes ({found}); linear takes real values")
            if outputs is not None and labels.classes > outputs:
                raise DataError(f"the model knows labels 0 to {outputs - 1}, but {found}")

    def right(self, outputs: Array, y: Array) -> Array:
        """Which rows, shape (rows,), bool, get the label ``y``; none where targets are values."""
        if self.name == "logistic":
            return (outputs[:, 0] > 0) == (y > 0)  # labels may be 0/1 or -1/+1
        return self.predict(outputs) == y if self.classifies else namespace(y).zeros(len(y), bool)

    def predict(self, outputs: Array) -> Array:
        """Values, 0/1 labels or label numbers for outputs of shape (rows, outputs)."""
        if self.name == "softmax":
            return outputs.argmax(axis=1)
        if self.name == "logistic":
            return (outputs[:, 0] > 0).astype(np.int64)
        return outputs[:, 0].copy()


def _not_two(labels: LabelSummary, found: str) -> str:
    """What is wrong with ``labels``, for a model of two classes."""
    count = None if labels.values is None else len(labels.values)
    way_out = "data.encode_labels makes codes of two classes"
    if count == 1:
        way_out = "there is only one class to be told"
    elif count is None or count > 2:
        found += "" if count is None else f", {count:,} classes"
        way_out = "softmax takes more classes"
    return f"logistic loss needs labels 0 and 1, or -1 and 1, but {found}; {way_out}"


# The codes are those of kernels.cpu, repeated here so that naming a loss loads no compiler.
SQUARED = Loss("squared", 0, classifies=False)
LOGISTIC = Loss("logistic", 1, classifies=True)
SOFTMAX = Loss("softmax", 2, classifies=True)
LOSSES = {loss.name: loss for loss in (SQUARED, LOGISTIC, SOFTMAX)}
