"""``distai-mpi plot``: the training losses of several runs in one chart."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from typing import Any

import click

from ..comm import launch
from ..errors import ConfigError, DataError
from ..messages import tell

GAP = (
    "Draw losses minus the smallest loss of all runs, on a log scale, where the smallest itself has no place: a run "
    "that has no other is not drawn."
)


@click.command()
@click.argument("folders", metavar="DIR...", nargs=-1, required=True)
@click.option("--out", metavar="FILE.png", default="plot.png", show_default=True, help="Where the chart goes.")
@click.option("--gap", is_flag=True, help=GAP)
def command(folders: tuple[str, ...], out: str, gap: bool) -> None:
    """Draw the training loss of runs against iterations, rounds and seconds, a line for each DIR.

    DIR is what 'distai-mpi train --out DIR' wrote, or is still writing.  Needs matplotlib.  Under a launcher one
    rank does it all.
    """
    if launch.launcher().rank == 0:
        plot(folders, out, gap)


def plot(folders: Sequence[str], out: str, gap: bool) -> None:
    """Read, draw and write; starts no MPI."""
    from ..files import check_writable, write_whole
    from ..perf.charts import check_matplotlib, training_chart

    if not out.endswith(".png"):
        raise ConfigError(f"--out {out}: the chart is a PNG file; name it FILE.png")
    check_matplotlib()
    check_writable(out)
    runs = {name: read_run(folder) for name, folder in by_name(folders).items()}
    check_drawable(runs, gap)
    chart = training_chart(runs, gap)
    write_whole(out, lambda file: file.write(chart))
    missing = undrawn(runs, gap)
    if missing:
        above = " above the smallest of all runs" if gap else ""
        tell(f"nothing is drawn of {', '.join(missing)}: no finite loss{above}", warning=True)
    print(f"{len(runs)} run{'' if len(runs) == 1 else 's'} → {out}", flush=True)


def by_name(folders: Sequence[str]) -> dict[str, str]:
    """The different ones of ``folders`` by what they are called in the chart: where last parts agree, the whole."""
    different = list({os.path.realpath(folder): folder for folder in reversed(folders)}.values())[::-1]
    last = [os.path.basename(os.path.abspath(folder)) for folder in different]
    names = [name if last.count(name) == 1 else folder for name, folder in zip(last, different, strict=True)]
    return {os.fsencode(name).decode(errors="replace"): folder for name, folder in zip(names, different, strict=True)}


def read_run(folder: str) -> list[dict[str, float]]:
    """The records of a run, of each the loss and the measures that are known and finite.

    Raises:
        DataError: there are none, or a line is damaged; but the last one may be half written.
    """
    from ..train.report import METRICS

    path = os.path.join(folder, METRICS)
    try:
        with open(path, "rb") as file:
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        what = f"there is no {METRICS} in it" if os.path.isdir(folder) else "there is no such folder"
        raise DataError(f"{folder}: {what}; name a folder that 'distai-mpi train --out DIR' wrote") from None
    except NotADirectoryError:
        raise DataError(f"{folder}: is no folder; name one that 'distai-mpi train --out DIR' wrote") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    records = []
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                records.append(parse(line))
        except ValueError as error:
            if number < len(lines):  # it is whole, for another follows, if only an empty one
                raise DataError(f"{path}: line {number} {error}") from None
    if not records:
        raise DataError(f"{path}: has no whole line; the first epoch of the run has not come to its end")
    return records


def parse(line: bytes) -> dict[str, float]:
    """The numbers that a chart needs of one line; `ValueError` says what is wrong with it."""
    from ..perf.charts import LOSS, MEASURES

    try:
        record: Any = json.loads(line, parse_int=float)  # an int may be too long for a float
    except (ValueError, RecursionError):
        raise ValueError("is not JSON") from None
    if not isinstance(record, dict):
        raise ValueError("is not an object of JSON")
    found = {name: record[name] for name in (LOSS, *MEASURES) if record.get(name) is not None}
    for name, value in found.items():
        if not isinstance(value, float):
            raise ValueError(f"has no number as {name}")
    return {name: value for name, value in found.items() if math.isfinite(value)}


def check_drawable(runs: dict[str, list[dict[str, float]]], gap: bool) -> None:
    """Raise `DataError` where a chart would be empty."""
    from ..perf.charts import LOSS, MEASURES

    records = [record for records in runs.values() for record in records]
    losses = {record[LOSS] for record in records if LOSS in record and any(name in record for name in MEASURES)}
    if not losses:
        raise DataError(f"nothing to draw: no finite loss in {', '.join(runs)}")
    if gap and len(losses) == 1:
        raise DataError("nothing to draw with --gap: all losses are the same, none is above the smallest")


def undrawn(runs: dict[str, list[dict[str, float]]], gap: bool) -> list[str]:
    """The names of runs of which `training_chart` draws nothing."""
    from ..perf.charts import LOSS, MEASURES

    losses = [record[LOSS] for records in runs.values() for record in records if LOSS in record]
    least = min(losses) if gap else -math.inf

    def drawn(record: dict[str, float]) -> bool:
        return record.get(LOSS, -math.inf) > least and any(name in record for name in MEASURES)

    return [name for name, records in runs.items() if not any(map(drawn, records))]
