"""Weights of classes, with which those of their rows are multiplied; ``comm`` is a `comm.Communicator`."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..settings import called
from .labels import Label, keys, listed, number, spelled
from .sharded import ShardedDataset, sum_over_ranks

ClassWeight = str | Mapping[Label, float]


def weigh_classes(shard: ShardedDataset, class_weight: ClassWeight, comm: Any) -> ShardedDataset:
    """``shard`` of classes, whose rows weigh as much more or less as their class says; collective.

    Args:
        shard: training rows with labels 0, 1, ..., or codes of classes (see `encode_labels`).
        class_weight: weights by label, from 0 up, 1 where none is given; as a text ``LABEL=VALUE,...``; or
            ``"balanced"``: n / (k n_c) for the n_c of the n rows that are of class c, k the number of classes that have
            rows (King & Zeng 2001, "Logistic regression in rare events data", section 4.2), counted over all ranks.

    Raises:
        ConfigError: a label is none of the classes, a weight is no number from 0 up, or the labels are no classes; on
            all ranks.
    """
    name = called("class_weight", "--class-weight")
    classes = shard.classes if shard.classes is not None else shard.labels.values
    if not classes or (shard.classes is None and shard.labels.classes is None):
        raise ConfigError(f"{name} is for the labels of classes, which {shard.name} does not have: leave it out")
    count = len(classes) if shard.classes is not None else int(shard.labels.high) + 1
    y, own = shard.dataset.y, shard.own_rows()
    if class_weight == "balanced":
        rows = comm.sum(np.bincount(np.asarray(y[own], np.int64), minlength=count).astype(np.float64))
        table = rows.sum() / (np.count_nonzero(rows) * np.where(rows > 0, rows, np.inf))
        table[rows == 0] = 1.0
    else:
        given = _parsed(class_weight, name) if isinstance(class_weight, str) else class_weight.items()
        table = _table(given, tuple(classes), shard.classes is None, count, name)
    weight = table[np.asarray(y, np.int64)]
    if shard.dataset.weight is not None:
        weight *= shard.dataset.weight
    dataset = replace(shard.dataset, weight=weight)
    total = sum_over_ranks(weight[own], comm)
    weighed = replace(shard, dataset=dataset, summed_weight=total, class_weights=tuple(table.tolist()))
    weighed.check_weight()
    return weighed


def _parsed(text: str, name: str) -> list[tuple[Label, float]]:
    """``LABEL=VALUE,...`` as pairs; a label may hold commas and equal signs where no number follows them."""
    found, rest = list[tuple[Label, float]](), ""
    for part in text.split(","):
        rest += part
        label, sign, value = rest.rpartition("=")
        if not (sign and label and number(value) is not None):
            rest += ","
            continue
        found.append((label, float(value)))
        rest = ""
    if rest or not found:
        raise ConfigError(f"{name} must be balanced or LABEL=VALUE,..., got {text!r}")
    return found


def _table(
    given: Iterable[tuple[Label, float]], classes: tuple[Label, ...], plain: bool, count: int, name: str
) -> np.ndarray:
    """The weight of each code, shape (count,); ``plain``: the codes are the labels themselves."""
    codes = [int(label) for label in classes] if plain else range(len(classes))
    code_of: dict[Any, int] = dict(zip(keys(classes), codes, strict=True)) | dict(
        zip(map(spelled, classes), codes, strict=True)
    )
    table, seen = np.ones(count), set[int]()
    for label, value in given:
        code = code_of.get(label, code_of.get(number(label), code_of.get(spelled(label))))
        if code is None:
            near = get_close_matches(spelled(label), [spelled(known) for known in classes], n=1)
            hint = f"did you mean {near[0]}?" if near else f"they are {listed(classes)}"
            raise ConfigError(f"{name}: {spelled(label)} is none of the classes: {hint}")
        if code in seen:
            raise ConfigError(f"{name}: {spelled(label)} is given twice: give each class one weight")
        seen.add(code)
        if not (isinstance(value, numbers.Real) and 0 <= value < math.inf):
            raise ConfigError(f"{name}: the weight of {spelled(label)} must be a number from 0 up, got {value!r}")
        table[code] = value
    return table
