"""Chooses features, labels and weights among a file's named arrays, by the usual names or by those a user gives."""

from __future__ import annotations

import csv
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from itertools import groupby
from typing import Any

from ...errors import DataError
from ..array_file import ArrayFile
from ..sources import Source, check_fit
from . import dates
from .columns import Columns, Roles
from .row_names import rows_looked_at, without_row_names
from .sparse import MOST_CHOSEN, SparseFile, SparseVariable
from .variables import Part, Variable, VariablesFile

ALIASES = {
    "x": ("x", "data", "features", "images", "inputs"),
    "y": ("y", "label", "labels", "target", "targets"),
    "weight": ("weight", "weights", "sample_weight", "sample_weights"),
}
SHOWN = 12  # names in a message


@dataclass(frozen=True)
class Entry:
    """A named array of a file, which is looked at only when it is wanted.

    Attributes:
        name: in the file.
        open: gives the array; raises a DataError where it cannot be had.
        identity: the same for two names of one array.
        about: what it is, for a list of all.
        quiet: whether it is meant only where it is named: no data, but what numbers or describes an axis.
        usual: what it is taken for, as ``x``, whatever its name; empty: its name tells.
    """

    name: str
    open: Callable[[], Variable]
    identity: Hashable
    about: str = ""
    quiet: bool = False
    usual: str = ""

    @property
    def bare(self) -> str:
        """The name without those of the groups around it."""
        return self.name.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Catalog:
    """The named arrays of the file at ``path``; ``exact``: only x, y_test and the like are usual names, no others."""

    path: str
    entries: Sequence[Entry]
    exact: bool = False

    def usual(self, key: str) -> Entry | None:
        """The array that is called as ``key`` is: ``x``, ``y_test`` and the like."""
        found: dict[Hashable, Entry] = {}
        for entry in self.entries:
            if not entry.quiet and key == (entry.usual or (entry.name if self.exact else _key(entry.name))):
                found.setdefault(entry.identity, entry)
        if len(found) > 1:
            first, second, *_ = found.values()
            raise DataError(
                f"{self.path}: {first.name} and {second.name} could both be {key}; rename or remove one, or name one"
                f" with {'--features' if key.startswith('x') else '--label' if key.startswith('y') else '--weight'}"
            )
        return next(iter(found.values()), None)

    def named(self, flag: str, name: str) -> Entry | None:
        """The array that is called ``name``, with or without the names of its groups."""
        whole = [entry for entry in self.entries if entry.name == name.strip("/")]
        found = {entry.identity: entry for entry in whole or self.entries if name in (entry.name, entry.bare) or whole}
        if len(found) > 1:
            names = ", ".join(entry.name for entry in found.values())
            raise DataError(
                f"{self.path}: {flag} {name}: several variables have this name: {names}; give the whole one"
            )
        return next(iter(found.values()), None)

    def several(self, flag: str, spec: str) -> list[Entry]:
        """The arrays that the parts of ``spec``, names or patterns with commas between them, name."""
        found: dict[str, Entry] = {}
        for part in next(csv.reader([spec], skipinitialspace=True)):
            one = self.named(flag, part)
            matches = [one] if one is not None else []
            if one is None:
                matches = [
                    entry
                    for entry in self.entries
                    if not entry.quiet and (fnmatchcase(entry.name, part) or fnmatchcase(entry.bare, part))
                ]
            if not matches:
                raise DataError(f"{self.path}: {flag} {part}: there is no such variable; {self.listing()}")
            found |= {entry.name: entry for entry in matches}
        return list(found.values())

    def listing(self) -> str:
        """What there is, in words."""
        shown = [f"{entry.name} ({entry.about})" if entry.about else entry.name for entry in self.entries]
        if not shown:
            return "it holds no variables"
        return f"there are {', '.join(shown[:SHOWN])}{', ...' if len(shown) > SHOWN else ''}"


def open_set(
    path: str, entries: Sequence[Entry], pairs: Sequence[tuple[str, str]], columns: Columns, plain: bool = False
) -> Source | VariablesFile | ArrayFile | None:
    """The set in a file of named arrays: that which is called by one of ``pairs``, or what ``columns`` name.

    Args:
        pairs: names as ``("x_train", "y_train")``; what ``columns`` name is as good as ``("x", "y")``.
        plain: whether these are the arrays of an .npz, which have their exact names, and make a `Source` even where
            reading some rows takes reading all.

    Returns:
        None where there is no such set; an `ArrayFile` of features where no labels are wanted.
    """
    catalog = Catalog(path, entries, plain)
    label = _asked(catalog, "--label", columns.label_name, columns.label)
    weight = _asked(catalog, "--weight", None, columns.weight)
    found = _features(catalog, pairs, columns, [entry for entry in (label, weight) if entry is not None])
    if found is None:
        if ("x", "y") in pairs:
            raise DataError(f"{path}: {_lacking(pairs, columns)}: {catalog.listing()}")
        return None
    chosen, y = found
    features = [entry.open() for entry in chosen]
    if not columns.wanted:
        return _build(path, chosen, features, None, None, columns, plain)
    by_column = label is None and columns.label is not None and not columns.optional
    if by_column:
        if not str(columns.label).isdecimal() and len(chosen) == 1:
            raise DataError(f"{path}: --label {columns.label}: there is no such variable; {catalog.listing()}")
        return _build(path, chosen, features, None, weight, columns, plain)
    if columns.variable is None:
        label = _of_set(catalog, y, label, columns.label_name is not None)
        weight = _of_set(catalog, y.replace("y", "weight", 1), weight, columns.optional)
    label = label or catalog.usual(y)
    if label is None:
        aside = f", or give them in a second file ({path},y.npy)" if isinstance(features[0], SparseVariable) else ""
        raise DataError(
            f"{path}: holds {chosen[0].name}, but no {y}; name the labels with --label{aside}: {catalog.listing()}"
        )
    if weight is None and columns.weight is not None and not columns.optional:
        raise DataError(f"{path}: --weight {columns.weight}: there is no such variable; {catalog.listing()}")
    weight = weight or catalog.usual(y.replace("y", "weight", 1))
    return _build(path, chosen, features, label, weight, columns, plain)


def _of_set(catalog: Catalog, usual: str, entry: Entry | None, kept: bool) -> Entry | None:
    """``entry``; or, where it is ``kept`` from training and has a usual name, the one that this set usually has."""
    own = catalog.usual(usual) if kept and entry is not None and _key(entry.name) is not None else None
    return own or entry


def _lacking(pairs: Sequence[tuple[str, str]], columns: Columns) -> str:
    """What a file does not hold under the usual names, and what can be done."""
    if not columns.wanted:
        return "no features (x, x_test or x_train); name them with --features"
    kind = "test" if pairs[0][0] == "x_test" else "training"
    return f"no {kind} data (x_{kind[:5]} and y_{kind[:5]}, or x and y); name it with --features and --label"


def _features(
    catalog: Catalog, pairs: Sequence[tuple[str, str]], columns: Columns, taken: list[Entry]
) -> tuple[list[Entry], str] | None:
    """The arrays of the features, and how their labels are usually called; None where there is no such set."""
    if columns.variable is not None:
        if ("x", "y") not in pairs:
            return None
        named = catalog.several("--features", columns.variable)
        chosen = [entry for entry in named if entry.identity not in {other.identity for other in taken}]
        if not chosen:
            raise DataError(f"{catalog.path}: --features '{columns.variable}' leaves no variable but label and weight")
        return chosen, next((y for _, y in pairs if catalog.usual(y) is not None), "y")
    for x, y in pairs:
        entry, labels = catalog.usual(x), catalog.usual(y)
        if entry is not None:
            return [entry], y
        if labels is not None and columns.wanted:
            raise DataError(
                f"{catalog.path}: holds {labels.name}, but no {x}; name the features with --features:"
                f" {catalog.listing()}"
            )
    return None


def _asked(catalog: Catalog, flag: str, known: str | None, name: str | None) -> Entry | None:
    """The array that is called as in training, or as a user says; None: neither is given, or it is a column of one."""
    found = None if known is None else catalog.named(flag, known)
    return found or (None if name is None else catalog.named(flag, name))


def _key(name: str) -> str | None:
    """What a variable of this name is for: x, y, weight, also with _train or _test; None: nothing that is known."""
    words = name.lower().replace("/", "_").split("_")
    part = next((word for word in ("train", "test") if word in words), "")
    bare = "_".join(word for word in words if word != part)
    role = next((role for role, aliases in ALIASES.items() if bare in aliases), None)
    return role if role is None or not part else f"{role}_{part}"


def _build(
    path: str,
    chosen: list[Entry],
    features: list[Variable],
    label: Entry | None,
    weight: Entry | None,
    columns: Columns,
    plain: bool,
) -> Source | VariablesFile | ArrayFile:
    names = None
    if columns.variable is not None or features[0].column_names is not None:
        bare = [entry.bare for entry in chosen]
        names = bare if len(set(bare)) == len(bare) else [entry.name for entry in chosen]
    others = [None if entry is None else entry.open() for entry in (label, weight)]
    return make_set(path, features, names, others[0], others[1], columns, plain)


def make_set(
    path: str,
    variables: list[Variable],
    names: Sequence[str] | None,
    label: Variable | None,
    weight: Variable | None,
    columns: Columns,
    plain: bool = False,
) -> Source | VariablesFile | ArrayFile:
    """The set whose features are columns of ``variables``, which are called ``names``, if any.

    Where labels are wanted and ``label`` is None, it is one of these columns, and perhaps ``weight`` another.
    """
    for other in variables[1:]:
        if other.rows != variables[0].rows:
            raise other.error(
                f"has {other.rows} rows, but {variables[0].name} has {variables[0].rows}; name variables of the same"
                " length with --features"
            )
    inside = columns.wanted and label is None
    _check_sparse(path, variables, [label, weight], inside, columns)
    flat_names = _column_names(variables, names)
    of_label, of_weight = (None if one is None else Part(one) for one in (label, weight))
    if not inside and columns.columns is None and columns.drop is None and flat_names is None:
        parts: tuple[Part, ...] = tuple(Part(variable) for variable in variables)
        roles = Roles(None, None, ())
    else:
        flat = [(variable, column) for variable in variables for column in range(variable.width)]
        asked = columns if inside else replace(columns, label=None, label_name=None, weight=None, wanted=False)
        roles = asked.select(path, flat_names, len(flat))
        words = [i for i, (variable, _) in enumerate(flat) if variable.is_words]
        roles = without_row_names(path, roles, flat_names, words, partial(_first_words, flat), asked)
        parts = _grouped([flat[i] for i in roles.features])
        if inside:
            of_label, of_weight = (
                default if i is None else Part(flat[i][0], (flat[i][1],))
                for i, default in ((roles.label, None), (roles.weight, of_weight))
            )
    if not inside:
        roles = roles._replace(label_name=_name(label), weight_name=_name(weight))
        if label is not None:
            check_fit(variables[0], label, weight)
    _check_kinds(path, parts, of_label, of_weight, columns)
    kind = SparseFile if isinstance(variables[0], SparseVariable) else VariablesFile
    of_dates = [part.variable.name for part in parts if part.variable.is_dates]
    roles = roles._replace(notes=roles.notes + dates.note_of_calendar(path, of_dates, columns))
    file = kind(path, parts, of_label, of_weight, columns, roles, _feature_names(parts, roles, columns))
    used = [part for part in (*parts, of_label, of_weight) if part is not None]
    arrays = [part.variable.array for part in used if part.columns is None and part.variable.array is not None]
    simple = len(parts) == 1 and file.feature_names is None and not columns.keeps_missing
    if simple and len(arrays) == len(used) and (plain or all(array.sliceable for array in arrays)):
        return Source(*arrays) if len(arrays) > 1 else arrays[0].check_numbers()
    return file


def _check_sparse(
    path: str, variables: list[Variable], others: list[Variable | None], inside: bool, columns: Columns
) -> None:
    """Raise a DataError about a sparse matrix that is used as what it cannot be."""
    for other in others:
        if isinstance(other, SparseVariable):
            raise other.error("is a sparse matrix; labels and weights are arrays of one value a row: name another one")
    matrix = next((variable for variable in variables if isinstance(variable, SparseVariable)), None)
    if matrix is None:
        return
    if len(variables) > 1:
        other = next(variable for variable in variables if variable is not matrix)
        raise matrix.error(
            f"is a sparse matrix, to which {other.name} cannot be joined: name the matrix alone with --features, or"
            " store all columns in one matrix (scipy.sparse.hstack)"
        )
    if inside:
        raise matrix.error("is a sparse matrix, of which no column can be the label; name an array with --label")
    chooses = [flag for flag, given in (("--columns", columns.columns), ("--drop", columns.drop)) if given is not None]
    if chooses and columns.required is None and matrix.width > MOST_CHOSEN:
        raise matrix.error(f"has {matrix.width:,} columns, and {chooses[0]} chooses among {MOST_CHOSEN:,} at most")


def _first_words(flat: Sequence[tuple[Variable, int]], which: Sequence[int]) -> dict[int, list[str]]:
    """The first words of the columns ``which`` of ``flat``, see `row_names.without_row_names`."""
    most, found = rows_looked_at(len(flat)), {i: list[str]() for i in which}
    for i in which:
        variable, column = flat[i]
        for block in variable.blocks(0, variable.rows if variable.sequential else min(most, variable.rows)):
            values: list[Any] = block.values[:, column].tolist()
            gone = [False] * len(values) if block.missing is None else block.missing[:, column].tolist()
            for value, missing in zip(values, gone, strict=True):
                word = value if variable.words is None or missing else variable.words[int(value)]
                found[i].append("" if missing else str(word))
        del found[i][most:]
    return found


def _name(variable: Variable | None) -> str | None:
    return None if variable is None else variable.name


def _column_names(variables: list[Variable], names: Sequence[str] | None) -> list[str] | None:
    """Names of all columns of ``variables``; None where a matrix has none, and is alone."""
    if names is None or (len(variables) == 1 and variables[0].width > 1 and variables[0].column_names is None):
        return None
    found: list[str] = []
    for variable, name in zip(variables, names, strict=True):
        if len(variable.shape) == 1:
            found.append(name)
        else:
            found += variable.column_names or [f"{name}.{i}" for i in range(variable.width)]
    return found


def _grouped(flat: list[tuple[Variable, int]]) -> tuple[Part, ...]:
    """Columns of variables, those of one variable that stand together in one part."""
    return tuple(
        Part(variable, tuple(column for _, column in group))
        for variable, group in groupby(flat, key=lambda one: one[0])
    )


def _feature_names(parts: tuple[Part, ...], roles: Roles, columns: Columns) -> tuple[str, ...] | None:
    """Names of the features, dates taken apart."""
    if roles.names is None:
        return None
    variables = [part.variable for part in parts for _ in range(part.width)]
    several = zip(roles.names, variables, strict=True)
    return tuple(
        one
        for name, variable in several
        for one in (dates.column_names(name, columns.dates_as) if variable.is_dates else (name,))
    )


def _check_kinds(path: str, parts: tuple[Part, ...], label: Part | None, weight: Part | None, columns: Columns) -> None:
    """Raise a DataError about values that are not what they are to be used as."""
    keep = columns.keeps_missing
    for part in parts:
        variable = part.variable
        variable.held(keep)
        if variable.is_words:
            raise variable.error(
                "holds words, which are no numbers: store categories as numbers, or leave it out, by --drop or by"
                " another choice of --features"
            )
        if variable.is_dates and columns.dates == "refuse":
            raise variable.error(
                "holds dates, which are no numbers: turn them into numbers with --dates seconds or --dates calendar,"
                " or leave it out"
            )
    if label is not None:
        label.variable.held(keep)
        if label.variable.is_dates and columns.dates != "seconds":
            raise label.variable.error(
                "holds dates, which are no labels; name another with --label, or give --dates seconds"
            )
    if weight is not None and (weight.variable.is_words or weight.variable.is_dates):
        raise weight.variable.error("holds no numbers; name another with --weight")
