"""Order of day and month in dates as 1/2/2020, inferred from all values of their column on all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from ..errors import DataError
from .paired import PairedTables
from .readers import codes
from .readers.chunk import ChunkedFile
from .readers.csv_text import CsvFile
from .several import SeveralFiles

MONTH, DAY = "month/day/year", "day/month/year"


def order_dates(files: Sequence[ChunkedFile], rows_of: Callable[[ChunkedFile], Any], comm: Any) -> list[ChunkedFile]:
    """``files``, which are read together, with one order of day and month for all columns of one name; collective.

    What is known beforehand, or follows from the first lines of the first file, holds for all of them; else the column
    is read until a value of one of the files decides.  A value that contradicts is refused when it is read.

    Args:
        rows_of: reads this rank's `Chunk` of a file; collective.

    Raises:
        DataError: on all ranks, where no value tells the order.
    """
    tables = [table for file in files for table in _tables(file) if table.dates]
    known: dict[str, bool] = {}
    for table in tables:
        known = dict(table.date_orders) | known
    doubtful: dict[str, tuple[CsvFile, int]] = {}
    for table in tables:
        asked = [column for column in table.dates if table.orders[column] == codes.ASK_ORDER]
        asked = [column for column in asked if table.column_name(column) not in known]
        if not asked:
            continue
        seen = rows_of(table.asking(asked)).x
        marks = [
            [bool((seen[:, i] == mark).any()) for mark in (codes.MONTH_FIRST, codes.DAY_FIRST)]
            for i in range(len(asked))
        ]
        everywhere = comm.allgather_object(marks)
        for i, column in enumerate(asked):
            month, day = (any(marks[i][which] for marks in everywhere) for which in range(2))
            if month or day:  # of both, one is refused by line
                known[table.column_name(column)] = not month
            else:
                doubtful.setdefault(table.column_name(column), (table, column))
    for name, (table, column) in doubtful.items():
        if name not in known:
            raise _untold(table, column)
    return [_ordered(file, known) for file in files] if known else list(files)


def _tables(file: ChunkedFile) -> Iterator[CsvFile]:
    """The CSV files of a data set."""
    if isinstance(file, SeveralFiles | PairedTables):
        for member in file.members:
            yield from _tables(member)
    elif isinstance(file, CsvFile):
        yield file


def _ordered(file: ChunkedFile, known: dict[str, bool]) -> ChunkedFile:
    if isinstance(file, SeveralFiles | PairedTables):
        return replace(file, members=tuple(_ordered(member, known) for member in file.members))  # type: ignore[arg-type]
    return file.with_orders(known) if isinstance(file, CsvFile) else file


def _untold(table: CsvFile, column: int) -> DataError:
    """The error about a column of dates that can be read in two ways."""
    return DataError(
        f"{table.path}: column {table.column_name(column)}: whether {table.examples[column]!r} is {MONTH} or {DAY}"
        " is unclear, for no date in the column has a day above 12: say --month-first or --day-first, or leave the"
        f" column out by {table.drop([column])}"
    )
