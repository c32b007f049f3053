"""What kind of text a file holds, recognised by its first lines."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from ...errors import DataError
from . import codes
from .chunk import NoRows
from .columns import Columns, Roles
from .csv_text import CsvFile
from .dates import note_of_calendar
from .document_lines import DocumentLines, open_documents
from .encoded import encoded_columns, not_row_names
from .headers import Header, read_header
from .kinds import (
    BOOLEAN,
    DATE,
    DATETIME,
    EMPTY,
    NOTHING,
    NUMBER,
    WORD,
    are_mostly_words,
    day_first,
    has_decimal_commas,
    kind_of,
    kind_of_column,
)
from .libsvm_text import LibsvmFile
from .lines import (
    BYTE_ORDER_MARK,
    DELIMITERS,
    LINES,
    MOST_LINES,
    WIDE_MARKS,
    WINDOW,
    Line,
    decode,
    delimiter_of,
    fields_of,
    first_bytes,
    first_lines,
)
from .prose import LOOKED_AT, lines_of_prose
from .row_names import LOOKED, are_quantities, rows_looked_at, without_row_names
from .text import TextFile, has_lone_return

ENTRY = re.compile(rb"\s*[-+.\deE]+(:\S+)?\s+(qid:\S+|\d+:[-+.\deE]+)(\s|$)")
FIELD_ENTRY = re.compile(rb"\s*[-+.\deE]+(\s+\d+:\d+:[-+.\deE]+)+\s*$")
SEVERAL_LABELS = re.compile(rb"\s*\d+(,\d+)*\s+\d+:[-+.\deE]+(\s|$)")
PAIRS = re.compile(rb"\s*(\d+):[-+.\deE]+\s+(\d+):")
LONE_LABEL = re.compile(rb"\s*[-+.\deE]+(:[-+.\deE]+)?\s*(#.*)?$", re.S)
MOST_FIELDS = 40_000  # that are looked at
SHOWN = 40  # characters of a field in a message


def open_text(
    path: str, packed: bool, columns: Columns, dtype: np.dtype
) -> CsvFile | LibsvmFile | DocumentLines | None:
    """The CSV or libsvm file, or the documents, at ``path``, compressed if ``packed``; None where it is no such text.

    Raises:
        DataError: it holds no rows, a column that was asked for is not there, or what its columns are is unclear.
        ConfigError: columns are named for a libsvm file.
    """
    file = TextFile(path, packed, 0)
    _refuse_wide(file)
    file = replace(file, begin=text_begin(file), returns=has_lone_return(first_bytes(file, WINDOW)[0]))
    if columns.line_range is not None:
        file = file.within(*columns.line_range)
    if columns.format == "text":
        return open_documents(file, columns)
    looked = first_lines(file, LINES)
    if looked is None:
        return None
    lines, returns, whole = looked
    if not lines:
        raise NoRows(f"{path}: holds no rows, only blank lines and comments")
    if not whole and columns.format is None and all(LONE_LABEL.match(line.text) for line in lines):
        more = first_lines(file, MOST_LINES)  # rows of libsvm text whose features are all 0 come first
        lines, returns, whole = more or looked
    file = replace(file, returns=returns)
    if columns.format == "libsvm" or (columns.format is None and any(ENTRY.match(line.text) for line in lines)):
        columns.refuse(path)
        if columns.format is None and all(map(_may_lack_label, lines)):
            raise DataError(
                f"{path}: whether its rows begin with label:weight, or with the first index:value for they have no"
                " labels, is unclear; write a label in front of them (0, if there are none), or say --format libsvm"
                " if these are labels and weights"
            )
        return LibsvmFile(path, packed, file.begin, dtype, returns=returns, end=file.end)
    if columns.format is None and all(FIELD_ENTRY.match(line.text) for line in lines):
        raise DataError(
            f"{path}: is libffm text (field:index:value), which is not read; write each entry as index:value (libsvm)"
        )
    if columns.format is None and all(SEVERAL_LABELS.match(line.text) for line in lines):
        raise DataError(f"{path}: is libsvm text with several labels a row, which is not read; give each row one label")
    return _past_prose(file, lines, whole, columns, dtype)


def _may_lack_label(line: Line) -> bool:
    """Whether what a row of libsvm text begins with may be an index and a value: it lies below the next index."""
    found = PAIRS.match(line.text)
    return found is not None and int(found[1]) < int(found[2])


def _past_prose(file: TextFile, lines: list[Line], whole: bool, columns: Columns, dtype: np.dtype) -> CsvFile | None:
    """The CSV file behind the lines of prose that there may be."""
    if any(mark in decode(lines[0].text) for mark in DELIMITERS):
        return _open_csv(file, lines, whole, columns, dtype)
    further, *_ = first_lines(file, LOOKED_AT) or (lines,)
    prose = lines_of_prose(further)
    if prose == 0:
        return _open_csv(file, lines, whole, columns, dtype)
    found = _open_csv(replace(file, begin=further[prose - 1].end), further[prose:], whole, columns, dtype)
    note = f"{file.path}: the first {prose} lines are left out: they have no fields as those below"
    return found and replace(found, said=(*found.said, note))


def _refuse_wide(file: TextFile) -> None:
    """Raise a DataError where each character takes two or four bytes."""
    start, _ = first_bytes(file, 4)
    for mark, name in WIDE_MARKS:
        if start.startswith(mark):
            raise DataError(
                f"{file.path}: is text in {name}; write it in UTF-8: iconv -f {name} -t UTF-8 {file.path} > NEW"
            )


def text_begin(file: TextFile) -> int:
    """Where reading begins: behind a byte order mark."""
    start, _ = first_bytes(file, len(BYTE_ORDER_MARK))
    return len(BYTE_ORDER_MARK) if start == BYTE_ORDER_MARK else 0


def _open_csv(file: TextFile, lines: list[Line], whole: bool, columns: Columns, dtype: np.dtype) -> CsvFile | None:
    path, delimiter = file.path, delimiter_of(lines)
    lines = lines[: max(4, MOST_FIELDS // len(fields_of(lines[0], delimiter)))]
    rows = [[field.text for field in fields_of(line, delimiter)] for line in lines]
    comma = _decimal_comma(path, delimiter, [field for row in rows[1:] or rows for field in row])
    if comma:
        rows = [[_with_point(field) for field in row] for row in rows]
    if len(lines) == 1 and columns.header is None and delimiter != " " and not any(map(_is_number, rows[0])):
        if len(rows[0]) > 1:
            raise NoRows(f"{path}: holds one line of words, as of a header, and no rows below it")
    header = read_header(path, lines[0].number, rows[0], rows[1:], columns.header)
    named = header.names is not None or header.skip
    if named and len(lines) == 1:
        raise NoRows(f"{path}: holds one line, of names, and no rows below it")
    body = [(line, row) for line, row in zip(lines, rows, strict=True)][named:]
    width = len(header.names) if header.names is not None else len(body[0][1])
    kinds = [kind_of_column(_column(column, body)) for column in range(width)]
    further = body
    if NOTHING in kinds and not whole:
        more, *_ = first_lines(file, MOST_LINES) or (lines,)
        more = [line for line in more if line.end >= body[0][0].end]
        further = [(line, [field.text for field in fields_of(line, delimiter)]) for line in more]
        kinds = [
            kind_of_column(_column(column, further)) if kind == NOTHING else kind for column, kind in enumerate(kinds)
        ]
    if header.empty:
        kinds[-1] = EMPTY
    if columns.format is None and not {NUMBER, BOOLEAN, DATE, DATETIME} & set(kinds):
        if delimiter == " " or WORD not in kinds or len(lines) == 1:
            return None  # words, and no number below
    roles, index_note = _roles(path, header, width, columns)
    for column in roles.features:
        if kinds[column] == NUMBER and are_mostly_words(_column(column, body)):
            kinds[column] = WORD
    first_words = partial(_first_words, file, delimiter, body[0][0].end)
    roles, encoded = _encoded(path, roles, header.names, kinds, body, first_words, columns)
    kinds = [encoded.get(column, kind) for column, kind in enumerate(kinds)]
    if roles.label is not None:
        kinds[roles.label] = _label_kind(kinds[roles.label], _column(roles.label, body), columns)
    found = CsvFile(
        path,
        file.sequential,
        lines[0].end if named else _first_row(file, lines[0], delimiter, width),
        ord(delimiter),
        header.names,
        width,
        roles,
        columns,
        np.dtype(np.float64) if encoded else dtype,  # which holds the numbers of levels
        tuple(kinds),
        comma,
        header.notes + index_note + (f"{path}: only lines {columns.lines} are read",) * (columns.lines is not None),
        returns=file.returns,
        end=file.end,
        orders=(codes.NO_ORDER,) * width,
        examples=("",) * width,
    )
    _refuse_words(found, body)
    of_dates = [found.column_name(c) for c in roles.features if kinds[c] in (DATE, DATETIME)]
    found = replace(found, said=found.said + note_of_calendar(path, of_dates, columns))
    return _with_orders(found, further)


def _encoded(
    path: str,
    roles: Roles,
    names: Sequence[str] | None,
    kinds: Sequence[str],
    body: list[tuple[Line, list[str]]],
    first_words: Callable[[Sequence[int]], dict[int, list[str]]],
    columns: Columns,
) -> tuple[Roles, dict[int, str]]:
    """``roles`` without columns that name the rows, and the kinds of those that are encoded, see `encoded_columns`.

    Numbers in a form that is not read are no categories, unless they are asked for.
    """
    words = [column for column, kind in enumerate(kinds) if kind == WORD]
    kept = not_row_names(path, names, len(kinds), columns)
    may_name = [column for column in words if column not in kept]
    roles = without_row_names(path, roles, names, may_name, first_words, columns)
    unclear = [column for column in words if are_quantities(_column(column, body))]
    more = first_words(unclear) if unclear and columns.required is None else {}
    plain = [column for column in words if column not in more or not are_quantities(more[column])]
    return roles, encoded_columns(path, roles, names, len(kinds), plain, columns)


def _first_row(file: TextFile, line: Line, delimiter: str, width: int) -> int:
    """Where the rows begin, the first of them seen in ``line``: behind comments, unless one may be a row itself."""
    begin = line.end - len(line.text)
    for text in first_bytes(file, begin)[0][file.begin :].splitlines():
        fields = [field.text for field in fields_of(Line(text, 0, 0), delimiter)]
        if len(fields) == width and any(map(_is_number, fields[1:])):
            return file.begin
    return begin


def _with_orders(file: CsvFile, body: list[tuple[Line, list[str]]]) -> CsvFile:
    """The same, with the order of day and month in dates as 1/2/2020 as it is known, or as the first lines tell."""
    orders, examples = list(file.orders), list(file.examples)
    for column in file.dates:
        first, examples[column] = day_first(_column(column, body))
        said = file.options.day_is_first(file.column_name(column))
        first = first if said is None else said
        if first is not None:
            orders[column] = codes.DAY_FIRST if first else codes.MONTH_FIRST
        elif examples[column]:
            orders[column] = codes.ASK_ORDER
    return replace(file, orders=tuple(orders), examples=tuple(examples))


def _first_words(file: TextFile, delimiter: str, start: int, which: Sequence[int]) -> dict[int, list[str]]:
    """The first fields of the columns ``which``, see `row_names.without_row_names`.

    ``start`` is the byte behind the first row.
    """
    lines, *_ = first_lines(file, LOOKED + 1) or ([],)
    width = len(fields_of(lines[-1], delimiter))
    lines = [line for line in lines if line.end >= start][: rows_looked_at(width)]
    rows = [[field.text for field in fields_of(line, delimiter)] for line in lines]
    return {column: [row[column] for row in rows if column < len(row)] for column in which}


def _decimal_comma(path: str, delimiter: str, fields: list[str]) -> bool:
    """Whether commas are decimal points."""
    if delimiter not in ";\t|":
        return False
    found = has_decimal_commas(fields)
    if found is None:
        raise DataError(
            f"{path}: whether the comma in its numbers is a decimal point or parts thousands is unclear;"
            " write them with a point, and without marks between thousands"
        )
    return found


def _with_point(field: str) -> str:
    """A number with a decimal comma as one with a point."""
    pointed = field.replace(",", ".")
    return pointed if "," in field and _is_number(pointed) else field


def _is_number(field: str) -> bool:
    return kind_of(field) == NUMBER


def _column(column: int, body: list[tuple[Line, list[str]]]) -> list[str]:
    return [row[column] for _, row in body if column < len(row)]


def _label_kind(kind: str, fields: list[str], columns: Columns) -> str:
    """The kind of the label, whose column is one of ``kind``: words, unless all of ``fields`` are numbers."""
    if kind in (DATE, DATETIME) and columns.dates_as == "seconds":
        return kind
    return NUMBER if {kind_of(field) for field in fields} <= {NUMBER, NOTHING} else WORD


def _roles(path: str, header: Header, width: int, columns: Columns) -> tuple[Roles, tuple[str, ...]]:
    """What the columns are, and a note of the one that is left out as the index."""
    empty = (width - 1,) if header.empty else ()
    names = header.names
    roles = columns.select(path, names, width, index=(*header.numbering, *empty))
    left = [column for column in header.numbering if column not in (*roles.features, roles.label, roles.weight)]
    if not left or columns.required is not None or columns.columns is not None or names is None:
        return roles, ()
    called = repr(names[0]) if names[0] else "without a name"
    which = f"column 0, {called}, is left out: it numbers"
    if left[1:]:
        which = f"columns 0 to {left[-1]}, without names, are left out: they number"
    return roles, (f"{path}: {which} the rows; --columns can ask for it",)


def _refuse_words(file: CsvFile, body: list[tuple[Line, list[str]]]) -> None:
    """Raise a DataError about columns of words or dates that are to be features, all at once."""
    wrong = {WORD: [c for c in file.roles.features if file.kinds[c] == WORD]}
    if file.options.dates == "refuse":
        wrong[DATE] = [c for c in file.roles.features if file.kinds[c] in (DATE, DATETIME)]
    faults = []
    for kind, found in wrong.items():
        if not found:
            continue
        line, word = next((line, row[found[0]]) for line, row in body if _is_of(kind, row, found[0]))
        shown = repr(word if len(word) <= SHOWN else word[:SHOWN] + "...")
        drop = file.drop(found)
        which = f"column{'s' * (len(found) > 1)} {', '.join(file.names[c] if file.names else str(c) for c in found)}"
        if kind == WORD:
            faults.append(
                f"{which}: words are no features ({shown} in line {line.number}): leave them out by {drop},"
                " or write plain numbers; or take them as categories by --categorical"
            )
        else:
            faults.append(
                f"{which}: dates ({shown} in line {line.number}): take them by --dates seconds or --dates calendar, or"
                f" leave them out by {drop}"
            )
    if faults:
        raise DataError(f"{file.path}: {'; '.join(faults)}")


def _is_of(kind: str, row: list[str], column: int) -> bool:
    if column >= len(row):
        return False
    found = kind_of(row[column])
    return found not in (NUMBER, NOTHING) if kind == WORD else found in (DATE, DATETIME)
