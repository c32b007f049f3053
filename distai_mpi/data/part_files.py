"""Opens the files of one data set: those with rows, which must be of one format and one schema."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace

from ..errors import DataError
from .array_file import ArrayFile
from .array_rows import ArrayRows
from .folders import FolderColumns, folder_columns, folder_keys, folder_values
from .readers.chunk import ChunkedFile, NoRows
from .readers.columns import Columns, Roles
from .readers.csv_text import CsvFile
from .readers.libsvm_text import LibsvmFile
from .several import SeveralFiles
from .sources import Source
from .spec import DataFile

Found = Source | ChunkedFile | ArrayFile


def open_several(
    name: str, files: Sequence[DataFile], open_one: Callable[[str, Columns], Found | None], columns: Columns
) -> SeveralFiles | None:
    """The set that ``files`` hold together, each opened by ``open_one``; None where none of them holds such a set.

    Files without rows are left out.  Features are those of the first file that has any, and found by name in the
    others.

    Raises:
        DataError: the files are not of one kind and one schema, or all are without rows.
    """
    keys = folder_keys(files)
    columns = folder_columns(columns, keys)
    opened: list[tuple[DataFile, ChunkedFile]] = []
    bare: list[DataFile] = []
    for file in files:
        try:
            found = open_one(file.path, columns)
            if found is None:
                continue
            member = _in_chunks(found, columns.keeps_missing)
            if opened:
                member = _like_first(member, opened[0][1], open_one, columns)
            else:
                columns = _named(columns, member)
        except NoRows:
            bare.append(file)
            continue
        opened.append((file, member))
    if not opened:
        if bare:
            raise NoRows(f"{name}: holds no rows in any of its {len(files)} files")
        return None
    return _joined(name, opened, bare, columns)


def _joined(
    name: str, opened: Sequence[tuple[DataFile, ChunkedFile]], bare: Sequence[DataFile], columns: Columns
) -> SeveralFiles:
    """The set of the files that were ``opened``; those that are ``bare`` have no rows."""
    first = opened[0][1]
    hollow = next((file.path for file in bare if os.path.getsize(file.path) == 0), None)
    if hollow is not None and not isinstance(first, CsvFile | LibsvmFile):
        raise DataError(f"{hollow}: the file is empty, and so {_kind(first)} no longer; copy it again, or remove it")
    members = tuple(member for _, member in opened)
    sizes = tuple(os.path.getsize(file.path) for file, _ in opened)
    names: tuple[str, ...] | None = getattr(first, "feature_names", None)
    roles: Roles | None = getattr(first, "roles", None)
    notes = tuple(getattr(first, "notes", ()))
    if bare:
        notes = (*notes, f"{name}: {len(bare)} of {len(opened) + len(bare)} files have no rows")
    if not isinstance(columns, FolderColumns):
        return SeveralFiles(name, members, sizes, feature_names=names, roles=roles, notes=notes)
    values = folder_values([file for file, _ in opened], columns)
    if first.features is None or roles is None:
        raise DataError(
            f"{name}: the columns {', '.join(columns.keys)} of its folders cannot be joined to {_kind(first)}; name the"
            f" files by a list, or store them as CSV or Parquet"
        )
    order = tuple(range(first.features + len(values.features)))
    if names is not None and roles.names is not None:
        if columns.required is not None:
            order = _by_name(columns.required, names, values.features)
        taken = columns.required or (*roles.names, *values.features)
        label = roles.label_name if columns.label_key is None else columns.label_key
        roles = roles._replace(names=tuple(taken), label_name=label)
        names = tuple((*names, *values.features)[index] for index in order)
    return SeveralFiles(name, members, sizes, values, order, names, roles, notes)


def _by_name(required: Sequence[str], names: Sequence[str], keys: Sequence[str]) -> tuple[int, ...]:
    """The order of the columns ``required`` among features ``names`` and, behind them, ``keys`` of folders.

    A column may have become several features, called by it with a point behind.
    """
    order: list[int] = []
    for column in required:
        if column in keys:
            order.append(len(names) + keys.index(column))
            continue
        parts = [i for i, name in enumerate(names) if name == column or name.startswith(f"{column}.")]
        order += [i for i in parts if i not in order and (names[i] == column or names[i] not in required)]
    return tuple(order)


def _in_chunks(found: Found, keeps_missing: bool) -> ChunkedFile:
    if isinstance(found, Source):
        return ArrayRows(found.arrays, keeps_missing)
    return ArrayRows((found,), keeps_missing) if isinstance(found, ArrayFile) else found


def _like_first(
    member: ChunkedFile, first: ChunkedFile, open_one: Callable[[str, Columns], Found | None], columns: Columns
) -> ChunkedFile:
    """``member`` with its features in the order of ``first``.

    Raises:
        DataError: it is of another kind, or has other columns.
    """
    if _kind(member) != _kind(first):
        raise DataError(
            f"{member.path}: is {_kind(member)}, but {first.path} is {_kind(first)}; the files of one data set are of"
            " one kind: name those that are meant, by a pattern or a list"
        )
    ours, theirs = _columns(member), _columns(first)
    if (ours is None) != (theirs is None):
        with_names, without = (first, member) if ours is None else (member, first)
        raise DataError(
            f"{without.path}: has no header, but {with_names.path} has one; give all files a header, or none"
        )
    if ours != theirs:
        assert ours is not None
        assert theirs is not None
        missing, other = _lacking(theirs, ours), _lacking(ours, theirs)
        if missing or other:
            faults = [f"lacks {_listed(missing)}"] * bool(missing) + [f"has also {_listed(other)}"] * bool(other)
            raise DataError(
                f"{member.path}: {' and '.join(faults)}, unlike {first.path}; the files of one data set have the same"
                " columns: leave out what not all have with --drop or --columns, or name the files that are meant"
            )
        member = open_one(member.path, replace(columns, required=theirs))  # type: ignore[assignment]
    if member.features != first.features:
        raise DataError(
            f"{member.path}: has {member.features} features a row, but {first.path} has {first.features}; the files of"
            " one data set have the same columns"
        )
    if member.scale != first.scale:
        raise DataError(f"{member.path}: holds images of bytes, and {first.path} not, or the other way round")
    return member


def _named(columns: Columns, first: ChunkedFile) -> Columns:
    """``columns`` with the label and weight of the first file by name: other files may have other columns last."""
    roles: Roles | None = getattr(first, "roles", None)
    if roles is None:
        return columns
    weight = columns.weight if roles.weight_name is None else roles.weight_name
    label = roles.label_name or columns.label_name
    encoded = tuple(getattr(first, "encoded", ())) if columns.encoded is None else columns.encoded
    row_names = roles.row_names or columns.row_names
    return replace(columns, label_name=label, weight=weight, row_names=row_names, encoded=encoded)


def _columns(file: ChunkedFile) -> tuple[str, ...] | None:
    """Names of the columns that are features; None where there are none."""
    roles: Roles | None = getattr(file, "roles", None)
    return None if roles is None else roles.names


def _lacking(names: Sequence[str], known: Sequence[str]) -> list[str]:
    """Those of ``names`` that are not ``known``."""
    return [name for name in names if name not in set(known)]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _kind(file: ChunkedFile) -> str:
    """What a file is, in words."""
    kinds = {
        "CsvFile": "CSV",
        "LibsvmFile": "libsvm text",
        "ParquetFile": "Parquet",
        "SparseFile": "a file of a sparse matrix",
    }
    return kinds.get(type(file).__name__, "a file of arrays")
