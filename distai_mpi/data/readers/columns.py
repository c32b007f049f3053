"""Options on the columns of a table, and the choice of label, weight and features by them."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from ...errors import ConfigError, DataError
from ...options import DATES, FORMATS, HASH_BITS, MISSING, MOST_HASH_BITS
from ..wording import worded_errors
from .notation import crosses, ngram_range

SHOWN_NAMES = 20  # in a message


class Roles(NamedTuple):
    """What the columns of one table are; numbers from 0.

    Attributes:
        label: column of the label; None: there is none, or it is not wanted.
        weight: column of the weights, likewise.
        features: columns of the features, in the order in which the model takes them.
        notes: for the user, on the choice, one sentence each.
        names: of the columns ``features``, in this order; None where columns have no names.
        label_name: name of the column of the label, or None; weight_name likewise.
            row_names: columns of words that are left out because they name the rows; names, else numbers.
    """

    label: int | None
    weight: int | None
    features: tuple[int, ...]
    notes: tuple[str, ...] = ()
    names: tuple[str, ...] | None = None
    label_name: str | None = None
    weight_name: str | None = None
    row_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Columns:
    """Options on a table: the roles of its columns, and how its text is read.

    A column is named by its name, or by its number from 0.  ``columns`` and ``drop`` take several with commas between
    them (a name that holds a comma stands in double quotes), patterns as of file names (``x*``, ``item_??``) and ranges
    of numbers (``3-7``).

    Attributes:
        label: column of the label; None: the last one.
        weight: column of the weights; None: there is none.
        columns: which columns are features, in the file's order; None: all that are nothing else.
        drop: columns that are left out.
        required: names of the columns that a model takes, in its order; where a file has names they are found by
            them, and columns that the model does not know are left out.  None: there is no model yet.
        label_name: what the column of the label was called in training; where a file has names the label is found by
            it, before ``label``.
        missing: what is done about values that are not there (empty fields, NaN, nulls, fill values): ``refuse``;
            ``mean`` or ``median`` of the training rows in their place; or ``drop`` the row.  Unless it is ``refuse``
            readers hand out NaN.  Training rows without a label are left out then.
        indicator: whether each feature that had missing values in training gets another one beside it that says so.
        unlabelled: whether all rows may lack a label, as test rows may; readers then hand out NaN for labels that are
            not there.
        dates: what dates and timestamps become: ``refuse``; ``seconds`` since 1970-01-01 UTC; or ``calendar`` parts;
            None: these, with a note, but numbers that count from a date (netCDF) stay as they are.
        day_first: whether dates as 1/2/2020 are read as the 1st of February, and not as January 2; None: as the
            values of their column tell, or ``date_orders`` says.
        date_orders: the same of columns of a model, by name or number: those that it was trained on tell of others.
        header: whether text has a line of names; None: as it looks.
        lines: of text, the lines that hold the table, FIRST-LAST, counted from 1 (``18-55``, or ``18-`` for all from
            there on); None: all.
        format: of text, ``csv`` or ``libsvm``; None: as it looks.
        dense: whether sparse rows are held densely, also where most features are 0.
        categorical: columns of numbers that are categories, named as ``columns`` are; those of words are in any case.
        text: columns of documents, which become hashed n-grams of words.
        cross: pairs of columns of categories, ``A:B`` with commas between them, that are categories together.
        hash_bits: a column of more than 2^hash_bits levels is hashed into as many features; words of text are too.
        ngrams: numbers of words that are hashed together: ``1``, or the least and the greatest, ``1,2``.
        tfidf: whether words weigh by the documents of training that lack them.
        encoded: of columns that are encoded the names, or numbers, and kinds, as a model or the training rows have
            them; None: as they look, and ``categorical`` and ``text`` say.
        variable: of HDF5, netCDF and MATLAB files the variable of the features; None: as they are usually called.
        transpose: whether such variables are stored with a row of the data in each column.
        holds: what is in a table: ``rows``, labels among them; ``features`` without labels; or ``labels`` alone.
        wanted: whether labels and weights are read; else these columns are left out, and without ``label`` all
            columns are features.
        row_names: columns of words that are known to name the rows, as `Roles.row_names` of other rows of the set.
        optional: whether ``label`` and ``weight`` are passed over, and not refused, for data that is no table.
    """

    label: str | None = None
    weight: str | None = None
    columns: str | None = None
    drop: str | None = None
    required: tuple[str, ...] | None = None
    label_name: str | None = None
    missing: str = "refuse"
    indicator: bool = False
    unlabelled: bool = False
    dates: str | None = None
    day_first: bool | None = None
    date_orders: tuple[tuple[str, bool], ...] = ()
    header: bool | None = None
    lines: str | None = None
    format: str | None = None
    dense: bool = False
    categorical: str | None = None
    text: str | None = None
    cross: str | None = None
    hash_bits: int = HASH_BITS
    ngrams: str = "1"
    tfidf: bool = False
    encoded: tuple[tuple[str, str], ...] | None = None
    variable: str | None = None
    transpose: bool = False
    holds: str = "rows"
    wanted: bool = True
    row_names: tuple[str, ...] = ()
    optional: bool = False

    @worded_errors()
    def __post_init__(self) -> None:
        for name, choices in (("missing", MISSING), ("dates", (None, *DATES)), ("format", (None, *FORMATS))):
            if getattr(self, name) not in choices:
                known = ", ".join(choice for choice in choices if choice)
                raise ConfigError(f"{name} must be one of {known}, not {getattr(self, name)!r}")
        for name in ("label", "weight", "columns", "drop", "categorical", "text", "cross"):
            if not isinstance(getattr(self, name), str | None):
                raise ConfigError(f"{name} must be a string, not {getattr(self, name)!r}")
        if not 1 <= self.hash_bits <= MOST_HASH_BITS:
            raise ConfigError(f"hash_bits must be from 1 to {MOST_HASH_BITS}, not {self.hash_bits!r}")
        self.line_range  # noqa: B018 (is checked)
        crosses(self.cross)
        ngram_range(self.ngrams)
        if self.tfidf and self.text is None and self.format != "text":
            raise ConfigError("--tfidf weighs words of documents: name their column by --text")
        if self.tfidf and (self.dense or self.indicator):
            what = "--dense" if self.dense else "--missing-indicator"
            raise ConfigError(f"--tfidf weighs words in sparse rows: leave {what} out")
        if self.indicator and self.missing not in ("mean", "median"):
            raise ConfigError("indicators of missing values (indicator) need missing='mean' or 'median'")

    @property
    def line_range(self) -> tuple[int, int | None] | None:
        """The first and the last one of ``lines``; the last one is None where it is the text's."""
        if self.lines is None:
            return None
        match = re.fullmatch(r"([1-9]\d*)-(\d*)", str(self.lines))
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise ConfigError(
                f"--lines {self.lines}: give FIRST-LAST, counted from 1, as in 18-55, or 18- for all behind"
            )
        return int(match[1]), int(match[2]) if match[2] else None

    @property
    def keeps_missing(self) -> bool:
        """Whether readers hand out NaN for values that are not there, in place of an error."""
        return self.missing != "refuse"

    @property
    def keeps_missing_labels(self) -> bool:
        """Whether readers hand out NaN for labels that are not there; weights must be there in any case."""
        return self.unlabelled or self.keeps_missing

    @property
    def dates_as(self) -> str:
        """What dates and timestamps become, see ``dates``."""
        return self.dates or "calendar"

    def day_is_first(self, column: str) -> bool | None:
        """Whether the day comes first in dates of ``column``, a name or number; None: nothing says so."""
        return dict(self.date_orders).get(column) if self.day_first is None else self.day_first

    def following(self, train: Any) -> Columns:
        """How test rows are read beside the training rows of ``train``, a file whose `Roles` are ``roles``, if any."""
        roles: Roles | None = getattr(train, "roles", None)
        encoded = None if roles is None else tuple(getattr(train, "encoded", ()))
        if roles is None or roles.names is None:
            row_names = self.row_names if roles is None else roles.row_names
            return replace(self, unlabelled=True, row_names=row_names, encoded=encoded)
        weight = self.weight if self.weight is None else roles.weight_name or self.weight
        return replace(
            self, encoded=encoded, required=roles.names, label_name=roles.label_name, weight=weight, unlabelled=True
        )

    def refuse_lines(self, path: str) -> None:
        """Raise a ConfigError about a file that is no text, if ``lines`` are named."""
        if self.lines is not None:
            raise ConfigError(f"--lines {self.lines}: {path} is no text; lines are those of CSV and libsvm files")

    def refuse(self, path: str) -> None:
        """Raise a ConfigError about a file without columns, if any were named.

        What a model keeps of the table that it was trained on is passed over: it need not fit other files.
        """
        named = {"--label": self.label, "--weight": self.weight}
        if self.required is None:
            named |= {"--columns": self.columns, "--drop": self.drop}
        if self.required is None and self.encoded is None:
            named |= {"--categorical": self.categorical, "--text": self.text, "--cross": self.cross}
        for flag, column in named.items():
            if column is not None and not self.optional:
                raise ConfigError(f"{flag} {column}: {path} is no table; columns are those of CSV and Parquet files")

    def select(
        self, path: str, names: Sequence[str] | None, count: int, index: Sequence[int] = (), last: int | None = None
    ) -> Roles:
        """What each of ``count`` columns is, whose names are ``names`` where they have any.

        Args:
            index: columns that number or name the rows (those of a pandas index): neither features nor the default
                label, unless they are asked for.
            last: the label where none is named; None: the last column that is nothing else.

        Raises:
            DataError: there is no such column, one is both label and weight, or none is left for features.
        """
        if self.holds == "labels":
            return self._labels_alone(path, names, [column for column in range(count) if column not in index])
        weight = None if self.weight is None else self._one(path, "--weight", self.weight, names, count)
        label = self._label(path, names, count)
        dropped = set(self.several(path, "--drop", self.drop, names, count))
        if label is not None and label == weight:
            raise DataError(f"{path}: column {self.label} cannot be both label and weight; name two columns")
        for flag, column, name in (("--label", label, self.label), ("--weight", weight, self.weight)):
            if column in dropped:
                raise DataError(f"{path}: column {name} cannot be both {flag} and left out by --drop '{self.drop}'")
        asked = self.several(path, "--columns", self.columns, names, count)
        if label is None and self.wanted and self.holds == "rows":
            free = [i for i in range(count) if i != weight and i not in (*index, *dropped, *asked)]
            if not free and set(asked) - dropped - {weight}:
                raise DataError(
                    f"{path}: --columns '{self.columns}' asks for every column as a feature, and none is left for the"
                    " label: name it with --label"
                )
            label = last if last in free else max(free, default=None)
        taken = {label, weight}
        features = [i for i in range(count) if i not in taken and i not in dropped and i not in index]
        if asked:
            features = [i for i in asked if i not in taken and i not in dropped]
        notes: tuple[str, ...] = ()
        if self.required is not None and names is not None:
            features, notes = self._by_model(path, names, features, taken)
        if not features:
            raise self._nothing_left(path, names, count, label, weight)
        if not self.wanted:
            label = weight = None

        def called(column: int | None) -> str | None:
            return None if column is None or names is None else names[column]

        of_features = None if names is None else tuple(names[column] for column in features)
        return Roles(label, weight, tuple(features), notes, of_features, called(label), called(weight))

    def _labels_alone(self, path: str, names: Sequence[str] | None, left: list[int]) -> Roles:
        """What the columns of a table of labels are, of which ``left`` do not number the rows."""
        if len(left) != 1:
            raise DataError(f"{path}: has {len(left)} columns, and a table of labels has one")
        name = None if names is None else names[left[0]]
        if self.label not in (None, name, str(left[0])):
            raise DataError(f"{path}: --label {self.label}: the labels are in this file, in column {name or left[0]}")
        return Roles(left[0], None, (), label_name=name)

    def _nothing_left(
        self, path: str, names: Sequence[str] | None, count: int, label: int | None, weight: int | None
    ) -> DataError:
        """The DataError about a table all of whose columns are something else than features, and what they are."""
        uses = [
            f"column {names[column] if names else column} is the {use}"
            for use, column in (("label", label), ("weight", weight))
            if column is not None
        ]
        uses += [f"--drop '{self.drop}' leaves columns out"] * (self.drop is not None)
        uses += [f"--columns asks for {self.columns} alone"] * (self.columns is not None)
        advice = f"name another column with --label, or give the features in a table of their own: X.csv,{path}"
        if not self.wanted:
            advice = "leave --label out where the data has no labels"
        return DataError(
            f"{path}: has {count} column{'s' * (count > 1)}, and none is left for features"
            + (f": {', '.join(uses)}; {advice}" if uses else "")
        )

    def _label(self, path: str, names: Sequence[str] | None, count: int) -> int | None:
        """The column of the label as it was called in training or is named now; None: it was not named."""
        if self.label_name is not None and names is not None:
            called = self.label if self.label_name not in names and self.label in names else self.label_name
            if called is not None and called in names:
                return self._one(path, "--label", called, names, count)
            if self.wanted:
                raise DataError(
                    f"{path}: the labels were in column {self.label_name} in training, which is not among the columns"
                    f" {_listed(names)}; name the column that holds them by --label"
                )
            return None
        return None if self.label is None else self._one(path, "--label", self.label, names, count)

    def _by_model(
        self, path: str, names: Sequence[str], features: list[int], taken: set[int | None]
    ) -> tuple[list[int], tuple[str, ...]]:
        """The columns that the model takes, in its order, and a note of those that are left out.

        Of several columns of one name the model takes all that it was trained on, in their order, or none.
        """
        assert self.required is not None
        positions: dict[str, list[int]] = {}
        for column, name in enumerate(names):
            if column not in taken:
                positions.setdefault(name, []).append(column)
        wanted = Counter(self.required)
        lost = [name for name in wanted if name not in positions]
        if lost:
            raise DataError(
                f"{path}: the model takes {_listed(lost)}, which {'is' if len(lost) == 1 else 'are'} not among the"
                f" columns {_listed(names)}; name the columns as in training"
            )
        for name, number in wanted.items():
            if len(positions[name]) != number:
                raise DataError(
                    f"{path}: {len(positions[name])} columns are called {name}, and the model was trained on {number};"
                    " give each column a name of its own"
                )
        following = {name: iter(columns) for name, columns in positions.items()}
        found = [next(following[name]) for name in self.required]
        extra = [names[column] for column in features if names[column] not in wanted]
        notes = (f"{path}: {_listed(extra)} left out, which the model does not know",) if extra else ()
        return found, notes

    def _one(self, path: str, flag: str, column: str, names: Sequence[str] | None, count: int) -> int:
        """The number of the column that is called ``column``, or has this number."""
        known = list(names or ())
        if known.count(column) > 1:
            raise DataError(
                f"{path}: {flag} {column}: several columns have this name; give a number, from 0 to {count - 1}"
            )
        if column in known:
            return known.index(column)
        if column.isdecimal() and int(column) < count:
            return int(column)
        raise DataError(f"{path}: {flag} {column}: there is no such column; there are {_there(names, count)}")

    def refuse_encoded(self, path: str) -> None:
        """Raise a ConfigError about a file whose columns are not encoded, if some are named for it."""
        for flag, spec in (("--categorical", self.categorical), ("--text", self.text), ("--cross", self.cross)):
            if spec is not None and self.encoded is None and not self.optional:
                raise ConfigError(f"{flag} {spec}: {path} is neither CSV nor Parquet, whose columns become categories")

    def several(self, path: str, flag: str, spec: str | None, names: Sequence[str] | None, count: int) -> list[int]:
        """The columns that the parts of ``spec`` name, in the file's order.

        Beside a model, which knows its features, the parts that name nothing here are passed over: the model's own
        flags need not fit other files.
        """
        if spec is None:
            return []
        found: set[int] = set()
        for part in next(csv.reader([spec], skipinitialspace=True)):
            matches = [column for column, name in enumerate(names or ()) if name == part]
            matches = matches or [column for column, name in enumerate(names or ()) if fnmatchcase(name, part)]
            ends = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
            if not matches and ends:
                low, high = int(ends[1]), int(ends[2] or ends[1])
                matches = list(range(low, high + 1)) if low <= high < count else []
            if not matches and self.required is None:
                raise DataError(f"{path}: {flag} {part}: there is no such column; there are {_there(names, count)}")
            found.update(matches)
        return sorted(found)


def _there(names: Sequence[str] | None, count: int) -> str:
    """The columns that there are, in words."""
    if not names:
        return f"columns 0 to {count - 1}"
    return f"{_listed(names)}, or numbers from 0 to {count - 1}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN_NAMES]) + (", ..." if len(names) > SHOWN_NAMES else "")
