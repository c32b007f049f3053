"""What a user may name as data: a file, several of them, a pattern, a folder of part files, folders ``key=value``."""

from __future__ import annotations

import csv
import glob
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ..errors import DataError

Spec = str | os.PathLike | Sequence[str | os.PathLike]

MNIST = "mnist"
SHOWN = 3  # names in a message
# What marks a folder whose files are not simply the rows: (name in it, what it is).
TABLES = (
    ("_delta_log", "a Delta table, some of whose files may hold rows that were deleted"),
    (".hoodie", "a Hudi table, some of whose files may hold rows that were deleted"),
    (".zarray", "a Zarr array"),
    (".zgroup", "a Zarr group"),
    ("zarr.json", "a Zarr array or group"),
)
SETS = re.compile(r"(?:^|[^a-z])(train|test|valid|val)(?:ing|idation)?(?:[^a-z]|$)", re.IGNORECASE)


@dataclass(frozen=True)
class DataFile:
    """One file of a data set.

    Attributes:
        path: the file.
        folders: keys and values, as text, of the folders ``key=value`` below the one that was named.
    """

    path: str
    folders: tuple[tuple[str, str], ...] = ()


def split_spec(spec: Spec) -> list[str]:
    """The names in ``spec``: a path or pattern, several with commas between them (a name that holds a comma stands in
    double quotes), or a sequence of such, each one name.
    """
    if not isinstance(spec, str | os.PathLike):
        return [os.fspath(name) for name in spec]
    text = os.fspath(spec)
    if "," not in text or os.path.exists(text) or (glob.has_magic(text) and glob.glob(text, recursive=True)):
        return [text]
    return [name.strip() for name in next(csv.reader([text], skipinitialspace=True))]


def join_spec(names: Sequence[str]) -> str:
    """One text that `split_spec` takes apart into ``names`` again, wherever these files are."""
    if len(names) == 1 and os.path.exists(names[0]):
        return names[0]
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(names)
    return out.getvalue()


def spec_name(spec: Spec) -> str:
    """What ``spec`` is called in messages and results."""
    return os.fspath(spec) if isinstance(spec, str | os.PathLike) else join_spec(split_spec(spec))


def absolute(spec: Spec | None) -> str | None:
    """``spec`` as one text that means the same in any folder."""
    if spec is None or spec == MNIST:
        return spec and MNIST
    return join_spec([name if name == MNIST else os.path.abspath(name) for name in split_spec(spec)])


def plain_file(name: str) -> bool:
    """Whether ``name`` is that of one file, which need not be there, and neither of a folder nor a pattern."""
    return not os.path.isdir(name) and (os.path.exists(name) or not glob.has_magic(name))


def data_files(names: Sequence[str]) -> list[DataFile]:
    """The files that ``names`` stand for, those of each folder and pattern in the order of `natural_order`.

    Files and folders whose names begin with ``_`` or ``.`` are ignored: other programs leave them beside data.

    Raises:
        DataError: nothing is there, a file is named twice, or a folder holds more than one data set.
    """
    found: list[DataFile] = []
    for name in names:
        if name == MNIST:
            found.append(DataFile(str(Path(__file__).with_name("mnist.npz"))))
        elif os.path.isdir(name):
            found += _in_folder(name)
        elif plain_file(name):
            found.append(DataFile(name))
        else:
            found += _matching(name)
    seen: set[str] = set()
    for file in found:
        path = os.path.normpath(file.path)
        if path in seen:
            raise DataError(f"{file.path}: is named twice, so that its rows would count twice; name every file once")
        seen.add(path)
    return found


def natural_order(path: str) -> Any:
    """Sorts by name, folder by folder, numbers in names by their value: part-2 before part-10."""
    return [_by_value(part) for part in path.split(os.sep)], path


def _by_value(name: str) -> list[Any]:
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def _in_folder(folder: str) -> list[DataFile]:
    """The files in ``folder`` and in its folders ``key=value``."""
    paths = sorted(_walk(folder), key=natural_order)
    if not paths:
        raise DataError(f"{folder}: is a folder without data files (names that begin with _ or . are passed over)")
    _refuse_train_and_test(folder, paths)
    return [DataFile(path, _keys(os.path.relpath(path, folder))) for path in paths]


def _walk(folder: str) -> Iterator[str]:
    """Paths of the data files in ``folder`` and in its folders ``key=value``, in no order."""
    _refuse_table(folder)
    try:
        with os.scandir(folder) as entries:
            inside = [(entry.name, entry.is_dir()) for entry in entries]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from None
    for name, is_folder in inside:
        path = os.path.join(folder, name)
        if _passed_over(name):
            continue
        if not is_folder:
            yield path
        elif _key_of(name):
            yield from _walk(path)
        else:
            raise DataError(
                f"{folder}: holds the folder {name}, which may be another data set; name the files that are meant by a"
                f" pattern, such as '{os.path.join(folder, '*.csv')}', or '{os.path.join(folder, '**', '*.csv')}' for"
                " those in all folders"
            )


def _matching(pattern: str) -> list[DataFile]:
    """The files that match ``pattern``, and those in folders that do."""
    parts = pattern.split(os.sep)
    fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    root = os.sep.join(parts[:fixed])
    asked = parts[-1].startswith("_")
    found: dict[str, DataFile] = {}
    for match in glob.iglob(pattern, recursive=True):
        inside = match.split(os.sep)[fixed:]
        if any(map(_passed_over, inside[:-1])) or (_passed_over(inside[-1]) and not asked):
            continue
        paths = _walk(match.rstrip(os.sep)) if os.path.isdir(match) and "**" not in parts else [match]
        for path in paths:
            if not os.path.isdir(path):
                found[path] = DataFile(path, _keys(os.path.relpath(path, root) if root else path))
    if not found:
        raise DataError(f"{pattern}: no file matches this pattern (names that begin with _ or . are passed over)")
    folders = {os.path.dirname(path) for path in found}
    for folder in folders | {root or os.curdir}:
        _refuse_table(folder)
    return [found[path] for path in sorted(found, key=natural_order)]


def _passed_over(name: str) -> bool:
    """Whether a file or folder is no part of the data, by the rules of Spark and Hadoop."""
    return name.startswith(".") or (name.startswith("_") and "=" not in name) or name.endswith("._COPYING_")


def _key_of(name: str) -> tuple[str, str] | None:
    """Key and value of a folder ``key=value``, in which other characters than letters may stand as %20 and the like."""
    key, mark, value = name.partition("=")
    return (unquote(key), unquote(value)) if key and mark else None


def _keys(path: str) -> tuple[tuple[str, str], ...]:
    """Keys and values of the folders in a relative ``path``."""
    return tuple(pair for name in path.split(os.sep)[:-1] if (pair := _key_of(name)))


def _refuse_table(folder: str) -> None:
    """Raise a DataError about a folder of another format, or one that is still being written."""
    for mark, kind in TABLES:
        if os.path.exists(os.path.join(folder, mark)):
            raise DataError(f"{folder}: is {kind}, which is not read here; export its rows as Parquet or CSV")
    if glob.glob(os.path.join(glob.escape(folder), "metadata", "*.metadata.json")):
        raise DataError(
            f"{folder}: is an Iceberg table, some of whose files may hold rows that were deleted, which is not read"
            " here; export its rows as Parquet or CSV"
        )
    if os.path.exists(os.path.join(folder, "_temporary")):
        raise DataError(
            f"{folder}: holds _temporary, as long as the job that writes the files has not ended, or when it was cut"
            " short; write them again, or remove _temporary if all are there"
        )


def _refuse_train_and_test(folder: str, paths: Sequence[str]) -> None:
    """Raise a DataError where names of files tell that they are a training and a test set: one would hide the other."""
    names = [os.path.basename(path) for path in paths]
    kinds = {match[1].lower()[:3]: name for name in names if (match := SETS.search(name))}
    if "tra" in kinds and len(kinds) > 1:
        other = next(name for kind, name in kinds.items() if kind != "tra")
        raise DataError(
            f"{folder}: holds {kinds['tra']} and {other}, which by their names are different sets; name the files, such"
            f" as --data '{os.path.join(folder, kinds['tra'])}' --test-data '{os.path.join(folder, other)}'"
        )
