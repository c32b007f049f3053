"""Labels of any kind become the codes 0 to K - 1 of classes; ``comm`` is a `comm.Communicator`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import DataError
from .labels import Label, are_truths, keys, listed, number, of_codes, spelled
from .sharded import ShardedDataset
from .wording import worded_errors

Array = Any
MOST_FRACTIONS = 100  # classes whose labels are not whole numbers; more are the targets of a regression
MOST_WORDS = 1 << 16  # classes that are words; more are names of rows
MANY, ROWS_OF_CLASS = 100, 10  # more classes than MANY, of fewer rows each, get a note: they may be values
CHUNK = 1 << 20  # labels recoded at a time


@worded_errors()
def encode_labels(train: ShardedDataset, *others: ShardedDataset | None, comm: Any) -> tuple[Any, ...]:
    """``train`` and ``others`` with codes of classes in place of labels; collective.

    The classes are the distinct labels of ``train``: numbers in ascending order, words in lexicographical order; 0 and
    1, or -1 and 1, where there is only one of the two; False and True where labels are truth values, of a file's own
    type or spelled by words.  Code k, from 0, stands for `ShardedDataset.classes` [k].  Nothing is
    copied where labels are 0, 1, ..., K - 1 already.  A label of the others that is none of the classes gets the code
    -1 and is counted in `LabelSummary.unknown`; where all of their labels are -1, and that is no class, they have none.

    Args:
        train: the rows that the model is trained on.
        others: further sets, such as test rows; None stays None.

    Raises:
        DataError: the labels look like the targets of a regression; on all ranks.
    """
    classes = classes_of(train)
    if classes is None:
        return (train, *others)
    if len(classes) > MANY and train.rows < ROWS_OF_CLASS * len(classes):
        found = f"{len(classes):,} classes of {train.rows:,} rows"
        note = f"{train.name}: {found}: labels that are values take --model linear"
        train = replace(train, notes=(*train.notes, note))
    done: dict[int, Array] = {}  # sets that were split off share their labels with the training rows
    whose = f"the training rows of {train.name} do not have"
    return tuple(shard and encode(shard, classes, comm, whose, done) for shard in (train, *others))


def classes_of(shard: ShardedDataset) -> tuple[Label, ...] | None:
    """The classes of the labels of ``shard``; None for whole numbers from 0 that are too many to be listed.

    Raises:
        DataError: they look like the targets of a regression.
    """
    if shard.classes:
        return (False, True) if are_truths(shard.classes) else shard.classes
    labels = shard.labels
    if labels.values is not None and set(labels.values) <= {0.0, 1.0}:
        return 0.0, 1.0
    if labels.values is not None and set(labels.values) <= {-1.0, 1.0}:
        return -1.0, 1.0
    if not labels.integral and (labels.values is None or len(labels.values) > MOST_FRACTIONS):
        count = "more than 1,000" if labels.values is None else f"{len(labels.values):,}"
        raise DataError(
            f"{shard.name}: the labels have {count} different values from {labels.low:g} to {labels.high:g} that are"
            " not whole numbers, as the targets of a regression have: take --model linear, or name the column of the"
            " classes by --label"
        )
    return labels.values


def encode(
    shard: ShardedDataset, classes: Sequence[Label], comm: Any, whose: str, done: dict[int, Array] | None = None
) -> ShardedDataset:
    """``shard`` with the codes of ``classes`` in place of its labels; collective.

    Args:
        whose: how a note of unknown labels goes on behind "which".
        done: what labels were recoded to before, by their id; is added to.
    """
    classes, labels, old = tuple(classes), shard.labels, shard.dataset.y
    if labels.unlabelled or shard.classes == classes:
        return shard
    found: Sequence[Label] | None = shard.classes if shard.classes is not None else labels.values
    if found is not None and tuple(found) == (-1.0,) and -1.0 not in keys(classes):
        return without_labels(shard)
    if classes == tuple(map(float, range(len(classes)))) and shard.classes is None and labels.integral:
        if 0 <= labels.low and labels.high < len(classes):
            return replace(shard, classes=classes)
    done = {} if done is None else done
    if id(old) not in done:
        done[id(old)] = recoded(old, shard.classes, classes)
    codes = done[id(old)]
    unknown = int(comm.sum([np.count_nonzero(codes[shard.own_rows()] < 0)])[0])
    lost = (
        [] if found is None else [label for label, code in zip(found, _codes(found, classes), strict=True) if code < 0]
    )
    summary = of_codes(labels, range(len(classes)) if found is None else _codes(found, classes), unknown)
    notes = (*shard.notes, _note(shard, lost, unknown, classes, whose)) if unknown else shard.notes
    dataset = replace(shard.dataset, y=codes, label_names=None)
    words = labels.words or any(isinstance(label, str) for label in classes)
    return replace(shard, dataset=dataset, labels=replace(summary, words=words), classes=classes, notes=notes)


def without_labels(shard: ShardedDataset) -> ShardedDataset:
    """``shard`` of rows without labels: they get zeros, and no metric is computed on them."""
    dataset = replace(shard.dataset, y=np.zeros(shard.dataset.rows, np.int8), label_names=None)
    summary = replace(of_codes(shard.labels, (), 0), unlabelled=True, missing=0)
    note = f"{shard.name}: the rows have no labels, so there is no accuracy and no loss"
    return replace(shard, dataset=dataset, labels=summary, classes=None, notes=(*shard.notes, note))


def _note(shard: ShardedDataset, lost: Sequence[Label], unknown: int, classes: Sequence[Label], whose: str) -> str:
    """The note on rows whose label is none of the classes."""
    which = f"hold {'the label' if len(lost) == 1 else 'labels'} {listed(lost)}" if lost else "hold labels"
    hint = "; -1 often stands for a row without a label" if -1.0 in lost and 0.0 in keys(classes) else ""
    return (
        f"{shard.name}: {unknown:,} rows {which}, which {whose}: they count as wrong, and the loss has no value{hint}"
    )


def _codes(labels: Sequence[Label], classes: Sequence[Label]) -> list[int]:
    """The index in ``classes`` of each of ``labels``, -1 where it is none of them."""
    code_of = {key: i for i, key in enumerate(keys(classes))} | {label: i for i, label in enumerate(classes)}
    truths = {str(label).casefold(): code for code, label in enumerate(classes) if are_truths([label])}
    return [
        code_of.get(label, code_of.get(key, truths.get(str(label).casefold(), -1)))
        for label, key in zip(labels, keys(labels), strict=True)
    ]


def recoded(y: Array, names: Sequence[Label] | None, classes: Sequence[Label]) -> Array:
    """For each label in ``y``, shape (rows,), its index in ``classes``, -1 where it is none; a small integer type.

    ``names`` are the labels that the numbers in ``y`` stand for; None: they stand for themselves.
    """
    codes = np.empty(y.size, np.min_scalar_type(-max(1, len(classes))))
    wanted = keys(classes)
    numbers = np.array([key if isinstance(key, float) else np.nan for key in wanted])
    order = np.argsort(numbers)[: np.count_nonzero(~np.isnan(numbers))]
    ascending = numbers[order]
    table = None if names is None else np.array([*_codes(names, classes), -1], codes.dtype)
    for start in range(0, y.size, CHUNK):
        part, out = y[start : start + CHUNK], codes[start : start + CHUNK]
        if table is not None:
            out[:] = table[part.astype(np.intp)]
        elif order.size:
            at = np.minimum(np.searchsorted(ascending, part), order.size - 1)
            out[:] = np.where(ascending[at] == part, order[at], -1)
        else:
            out[:] = -1
    return codes


def merge_words(names: Sequence[str] | None, y: Array, comm: Any, what: str) -> tuple[Array, tuple[str, ...] | None]:
    """This rank's labels ``y``, shape (rows,), as float64 codes of the words of all ranks, and these; collective.

    A rank that has met numbers alone gives no ``names``; where others have words its numbers become words too.  A word
    that spells a number is that number, however it is written, so that the words do not depend on who has read what.
    NaN, and -1 among the codes of words, stand for labels that are missing, and become NaN.  Without any words ``y``
    is returned as it is.

    Raises:
        DataError: the words are more than can be classes; on all ranks.
    """
    if not any(comm.allgather_object(names is not None)):
        return y, None
    with comm.agreed():
        words, indices = as_words(names, y)
        if len(words) > MOST_WORDS:
            raise DataError(
                f"{what}: the labels are more than {MOST_WORDS:,} different words; name the column of the labels by"
                " --label"
            )
    everywhere = tuple(sorted(set().union(*comm.allgather_object(set(words)))))
    code_of = {word: float(code) for code, word in enumerate(everywhere)}
    table = np.array([*(code_of[word] for word in words), np.nan])
    return table[indices], everywhere


def as_words(names: Sequence[str] | None, y: Array) -> tuple[list[str], Array]:
    """Labels ``y``, shape (rows,), codes of ``names`` or numbers, as words, and the index of each there, int64.

    A word may stand there twice.  -1 is the index of a label that is missing: NaN, and -1 among codes.
    """
    indices = y.astype(np.float64)
    own: list[Label] = list(names or ())
    if names is None:
        values = np.unique(indices[~np.isnan(indices)])
        own, indices = values.tolist(), np.where(np.isnan(indices), -1, np.searchsorted(values, indices))
    words = [spelled(label if number(label) is None else number(label)) for label in own]  # type: ignore[arg-type]
    return words, np.where(np.isnan(indices), -1, indices).astype(np.int64)
