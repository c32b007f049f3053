"""Summaries of labels, from which models are built; the same on every rank."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Array = Any
Label = float | str  # a class as the user calls it
TRUTHS = {"false": 0.0, "true": 1.0}  # truth values in small letters, whatever letters a file has
TRUTH_WORDS = ("False", "True")  # what the numbers 0 and 1 of a file's own truth values stand for

MOST_VALUES = 1 << 16  # distinct labels that are listed: more are the targets of a regression, or too many classes
MOST_FRACTIONS = 1000  # the same of labels that are not whole numbers
CHUNK = 1 << 16  # labels looked at a time
EXACT = 1 << 53  # whole numbers below it are exact in float64


@dataclass(frozen=True)
class LabelSummary:
    """Labels or targets of a data set; replicated.

    Attributes:
        rows: number of rows looked at.
        features: features of a row.
        low: least label (inf where there are none).
        high: greatest label (-inf where there are none).
        integral: whether all are whole numbers.
        zero_one: whether all are 0 or 1.
        plus_minus: whether all are -1 or +1.
        values: the distinct labels in ascending order; None where they are more than `MOST_VALUES`, or of labels that
            are not all whole numbers than `MOST_FRACTIONS`.
        missing: rows whose label is NaN.
        unknown: rows whose label is none of the classes of the training rows; the other fields are of the others.
        unlabelled: whether the rows have no labels, so that no metric can be computed.
        words: whether labels are words, and the numbers here the codes that stand for them.
    """

    rows: int
    features: int
    low: float
    high: float
    integral: bool
    zero_one: bool
    plus_minus: bool
    values: tuple[float, ...] | None = None
    missing: int = 0
    unknown: int = 0
    unlabelled: bool = False
    words: bool = False

    @property
    def classes(self) -> int | None:
        """Number of classes 0 .. K-1 that the labels can name; None where they are no such labels."""
        return int(self.high) + 1 if self.low <= self.high and self.integral and self.low >= 0 else None


def summarize(y: Array, features: int) -> LabelSummary:
    """Summary of ``y``, shape (rows,), any real type, without infinities; local to the rank."""
    rows, low, high = int(y.size), *_ends(y)
    missing = 0
    if math.isnan(low):
        y = y[~np.isnan(y)]
        missing, (low, high) = rows - int(y.size), _ends(y)
    integral = y.dtype.kind in "iu" or bool((y == y.round()).all())
    values = distinct(y, low, high, MOST_VALUES if integral else MOST_FRACTIONS)
    return LabelSummary(rows, features, low, high, integral, **_pairs(values), values=values, missing=missing)


def _ends(y: Array) -> tuple[float, float]:
    return (float(y.min()), float(y.max())) if y.size else (math.inf, -math.inf)


def _pairs(values: tuple[float, ...] | None) -> dict[str, Any]:
    """Which of the usual pairs of classes the ``values`` are of; both of no labels at all."""
    few = None if values is None else set(values)
    return {
        "zero_one": few is not None and few <= {0.0, 1.0},
        "plus_minus": few is not None and few <= {-1.0, 1.0},
    }


def distinct(y: Array, low: float, high: float, most: int) -> tuple[float, ...] | None:
    """The distinct values of ``y``, which lie between ``low`` and ``high``, ascending; None if more than ``most``.

    Whole numbers that lie close together are ticked off, in 1/10 of the time of a sort.
    """
    if y.size == 0:
        return ()
    if high - low < MOST_VALUES and -EXACT < low and high < EXACT:
        first, seen = math.floor(low), np.zeros(math.ceil(high) - math.floor(low) + 1, bool)
        for start in range(0, y.size, CHUNK):
            part = y[start : start + CHUNK]
            whole = part.astype(np.int64)
            if part.dtype.kind == "f" and not (whole == part).all():
                break
            seen[whole - first] = True
        else:
            return tuple((np.flatnonzero(seen) + float(first)).tolist())
    found: Array = np.empty(0)
    for start in range(0, y.size, CHUNK):
        found = np.union1d(found, y[start : start + CHUNK].astype(np.float64))
        if found.size > most:
            return None
    return tuple(found.tolist())


def merge(parts: Iterable[LabelSummary]) -> LabelSummary:
    """Summary of the rows of all ``parts``, at least one."""
    parts = list(parts)
    values: set[float] | None = set()
    for part in parts:
        values = None if values is None or part.values is None else values | set(part.values)
    integral = all(part.integral for part in parts)
    if values is not None and len(values) > (MOST_VALUES if integral else MOST_FRACTIONS):
        values = None
    ascending = None if values is None else tuple(sorted(values))
    return replace(
        parts[0],
        rows=sum(part.rows for part in parts),
        low=min(part.low for part in parts),
        high=max(part.high for part in parts),
        integral=integral,
        values=ascending,
        **_pairs(ascending),
        missing=sum(part.missing for part in parts),
        unknown=sum(part.unknown for part in parts),
    )


def of_codes(labels: LabelSummary, codes: Iterable[int], unknown: int) -> LabelSummary:
    """``labels`` whose distinct values have become ``codes``, but in ``unknown`` rows, where they are no class: -1."""
    values = tuple(float(code) for code in sorted(set(codes)) if code >= 0)
    low, high = (values[0], values[-1]) if values else (math.inf, -math.inf)
    known: dict[str, Any] = {"low": low, "high": high, "values": values, "integral": True, **_pairs(values)}
    return replace(labels, **known, unknown=unknown)


def keys(classes: Sequence[Label]) -> list[Label]:
    """Keys by which labels are matched with ``classes``: the number that a label spells, else the word.

    So a class is the same one in a file of words and in one of numbers.  True and False, where there are no other
    labels, are 1 and 0.  Words that spell one number in two ways are two classes all the same.
    """
    if are_truths(classes):
        return [TRUTHS[str(label).casefold()] for label in classes]
    numbers: list[Any] = [label if number(label) is None else number(label) for label in classes]
    times = Counter(numbers)
    return [key if times[key] == 1 else label for key, label in zip(numbers, classes, strict=True)]


def are_truths(labels: Sequence[Label]) -> bool:
    """Whether ``labels`` are truth values and nothing else: a file's own, or words that spell them."""
    return all(str(label).casefold() in TRUTHS for label in labels)


def number(label: Label) -> float | None:
    """The finite number that ``label`` is, or spells; None where it is a word."""
    if isinstance(label, str) and "_" in label:  # which Python reads over
        return None
    try:
        value = float(label)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def spelled(label: Label) -> str:
    """A label as a person writes it: 3, 2.5, good, True."""
    if isinstance(label, str | bool):
        return str(label)
    return str(int(label)) if label == int(label) else repr(label)


def listed(labels: Sequence[Label], most: int = 8) -> str:
    """The first of ``labels`` in words."""
    return ", ".join(spelled(label) for label in labels[:most]) + (", ..." if len(labels) > most else "")
