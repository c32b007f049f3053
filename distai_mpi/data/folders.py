"""Columns whose values stand in the names of folders, ``key=value``, as Hive, Spark and pandas write them."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np

from ..errors import DataError
from .labels import TRUTHS
from .readers import dates
from .readers.columns import Columns, Roles
from .spec import DataFile

MISSING = "__HIVE_DEFAULT_PARTITION__"
DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
LABEL_ASKED = "the label may be any of them: name it with --label"


@dataclass(frozen=True)
class FolderColumns(Columns):
    """What a user says of a table, some of whose columns stand in the names of folders.

    Attributes:
        keys: the columns of the folders, behind those of the file.
    """

    keys: tuple[str, ...] = ()

    def select(
        self, path: str, names: Sequence[str] | None, count: int, index: Sequence[int] = (), last: int | None = None
    ) -> Roles:
        """What each column of the file is, as in `Columns.select`; those of the folders are left to `FolderValues`."""
        twice = sorted(set(self.keys) & set(names or ()))
        if twice:
            raise DataError(f"{path}: {twice[0]} is a column of the file and of its folder, {twice[0]}=...; rename one")
        known = list(names) if names is not None else [str(column) for column in range(count)]
        if self.label is None and self.label_name is None and self.wanted:
            raise DataError(f"{path}: has the columns {', '.join([*known, *self.keys])}; {LABEL_ASKED}")
        roles = super().select(path, [*known, *self.keys], count + len(self.keys), index, last)
        features = tuple(column for column in roles.features if column < count)
        if not features:
            raise DataError(f"{path}: no column of the file is left for features, beside those of the folders")
        label, weight = (
            column if column is not None and column < count else None for column in (roles.label, roles.weight)
        )
        of_features = None if names is None else tuple(names[column] for column in features)
        return roles._replace(label=label, weight=weight, features=features, names=of_features)

    @property
    def label_key(self) -> str | None:
        """The key that is the label, if any is."""
        named = (self.label_name, self.label)
        return next((name for name in named if name in self.keys), None)

    def feature_keys(self) -> list[int]:
        """Which of the keys are features."""
        kept = []
        for i, key in enumerate(self.keys):
            asked = self.columns is None or _names(self.columns, key)
            known = self.required is None or key in self.required
            if asked and known and key not in (self.label_key, self.label, self.weight) and not _names(self.drop, key):
                kept.append(i)
        return kept


@dataclass(frozen=True)
class FolderValues:
    """Columns from the names of folders, for each file of a data set.

    Attributes:
        features: names of the columns that are features.
        values: of these columns, shape (files, columns), float64, NaN where there is none.
        labels: of each file, as numbers, or as indices in ``words``; None where the file has the labels.
        words: the labels, where they are words.
        weights: of each file; None where the folders say nothing of them.
    """

    features: tuple[str, ...]
    values: np.ndarray
    labels: np.ndarray | None = None
    words: tuple[str, ...] | None = None
    weights: np.ndarray | None = None

    @property
    def dtype(self) -> np.dtype:
        """The least type that holds the values of the features."""
        if np.array_equal(self.values, np.floor(self.values)) and np.abs(self.values).max(initial=0) < 2**53:
            return np.result_type(np.int32, *map(np.min_scalar_type, self.values.astype(np.int64).ravel().tolist()))
        return np.dtype(np.float64)


def folder_keys(files: Sequence[DataFile]) -> tuple[str, ...]:
    """The keys of the folders, alike for all ``files``; none where there are no such folders.

    Raises:
        DataError: they are not alike.
    """
    keys = tuple(key for key, _ in files[0].folders)
    if len(set(keys)) < len(keys):
        raise DataError(f"{files[0].path}: two of its folders have the same key; rename one")
    for file in files:
        if {key for key, _ in file.folders} != set(keys):
            raise DataError(
                f"{file.path}: lies in folders key=value for {_listed(file.folders)}, but {files[0].path} for"
                f" {_listed(files[0].folders)}; the files of one data set have the same"
            )
    return keys


def folder_columns(columns: Columns, keys: Sequence[str]) -> Columns:
    """``columns`` for files in folders with ``keys``."""
    if not keys:
        return columns
    said = {name: getattr(columns, name) for name in columns.__dataclass_fields__}
    return FolderColumns(**said, keys=tuple(keys))


def folder_values(files: Sequence[DataFile], columns: FolderColumns) -> FolderValues:
    """The folder columns of ``files``, by the roles that ``columns`` gives to their keys.

    Raises:
        DataError: a value is missing, or a feature or weight is no number.
    """
    texts = [dict(file.folders) for file in files]
    chosen = [columns.keys[i] for i in columns.feature_keys()]
    values = np.array([[_number(file, key, columns) for key in chosen] for file in files]).reshape(len(files), -1)
    found = FolderValues(tuple(chosen), values)
    if columns.wanted and columns.label_key is not None:
        labels = [text[columns.label_key] for text in texts]
        if MISSING in labels:
            bare = files[labels.index(MISSING)].path
            raise DataError(f"{bare}: has no label: its folder is {columns.label_key}={MISSING}; leave it out")
        words = None if all(map(NUMBER.fullmatch, labels)) else tuple(sorted(set(labels)))
        numbers = [float(label) if words is None else words.index(label) for label in labels]
        found = replace(found, labels=_whole(np.array(numbers)), words=words)
    if columns.wanted and columns.weight in columns.keys:
        weights = np.array([_number(file, columns.weight, columns) for file in files])
        bad = np.flatnonzero(~((weights >= 0) & (weights < math.inf)))
        if bad.size:
            raise DataError(f"{files[bad[0]].path}: its weight is {weights[bad[0]]}; weights are finite and 0 or more")
        found = replace(found, weights=weights)
    return found


def refuse_lost_label(path: str, columns: Columns) -> None:
    """Raise a DataError about the default label of a table in a folder ``key=value`` that was named itself.

    Programs that write such folders leave the key out of the files, and it often is the label.
    """
    folder = os.path.basename(os.path.dirname(os.path.abspath(path)))
    key = folder.partition("=")[0]
    if "=" in folder and columns.wanted and columns.label is None and columns.label_name is None:
        raise DataError(
            f"{path}: lies in the folder {folder}, by whose name {key} is a column that is not in the file; name the"
            f" label with --label, and for {key} to be a column, the folder above"
        )


def _number(file: DataFile, key: str, columns: Columns) -> float:
    """The value of ``key`` in the folders of ``file``."""
    text = dict(file.folders)[key]
    if NUMBER.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    if text.lower() in TRUTHS:
        return TRUTHS[text.lower()]
    date = _date(text)
    if date is not None and columns.dates == "seconds":
        return float(dates.numbers(np.array([date]), "seconds")[0, 0])
    if text in (MISSING, "nan", "NaN", ""):
        if columns.keeps_missing:
            return math.nan
        raise DataError(
            f"{file.path}: has no value of {key}: its folder is {key}={text}; leave the column out with --drop '{key}',"
            " or say with --missing what is done about such rows"
        )
    kind = "no finite number" if date is None else "a date"
    advice = "" if date is None else ", or take it as a number by --dates seconds"
    raise DataError(
        f"{file.path}: the value of {key}, {text!r} in the name of its folder, is {kind}; leave the column"
        f" out with --drop '{key}'{advice}"
    )


def _date(text: str) -> np.datetime64 | None:
    """A date or timestamp as ISO 8601 writes it, UTC; None where ``text`` is none."""
    try:
        return np.datetime64(text.removesuffix("Z").replace(" ", "T"), "ns") if DATE.match(text) else None
    except ValueError:
        return None


def _whole(numbers: np.ndarray) -> np.ndarray:
    """Whole numbers as int64, others as they are."""
    return numbers.astype(np.int64) if np.all(numbers == np.floor(numbers)) else numbers


def _names(spec: str | None, key: str) -> bool:
    """Whether a list of names and patterns names ``key``."""
    import csv

    return spec is not None and any(
        part == key or fnmatchcase(key, part) for part in next(csv.reader([spec], skipinitialspace=True))
    )


def _listed(folders: Sequence[tuple[str, str]]) -> str:
    return ", ".join(key for key, _ in folders) or "no key"
