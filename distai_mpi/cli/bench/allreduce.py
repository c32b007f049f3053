"""``distai-mpi bench allreduce``: sums over all ranks beside the MPI library's, and beside the memory's own speed."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

import click

from ...comm import launch
from ...errors import ConfigError
from .scaling import check_files

UNITS = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


class Bytes(click.ParamType):
    """A length such as 4096, 1KiB or 256MiB."""

    name = "BYTES"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+) *([a-z]*)", str(value).strip().lower())
        count = int(match[1]) * UNITS.get(match[2], 0) if match else 0
        if count < 1:
            self.fail(f"{value!r} is no length; write for example 4096, 64KiB or 256MiB", param, ctx)
        return count


@click.command()
@click.option("--algorithms", metavar="NAME,NAME,...", help="Only these.  [default: all that apply]")
@click.option("--min-bytes", "least", type=Bytes(), default="1KiB", show_default=True, help="Of the shortest vector.")
@click.option("--max-bytes", "most", type=Bytes(), default="256MiB", show_default=True, help="Of the longest.")
@click.option("--factor", type=click.IntRange(min=2), default=4, show_default=True, help="From one to the next.")
@click.option("--dtype", "dtypes", default="float32", show_default=True, metavar="NAME,NAME,...")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0),
    default=60,
    show_default=True,
    help="About how long to measure; every length gets three turns at least.",
)
@click.option("--json", "json_file", metavar="FILE", help="Write all figures here.")
@click.option("--plot", "plot_file", metavar="FILE.png", help="Draw them here; needs matplotlib.")
def command(
    algorithms: str | None,
    least: int,
    most: int,
    factor: int,
    dtypes: str,
    seconds: float,
    json_file: str | None,
    plot_file: str | None,
) -> None:
    """Seconds of a sum over all ranks by every algorithm: mpiexec -n N distai-mpi bench allreduce.

    Beside the package's algorithms stand the MPI library's Allreduce (native), the same with a malloc that keeps
    what is freed (native-kept), its persistent one, and floors: what the ranks must read and write at least, in
    private memory.  Vectors in shared memory are summed in place on every rank (shared; hierarchical on several
    nodes), or into one that each node has (shared-once).

    Each call but the shortest sums vectors that their ranks have just written, as they write gradients; it takes
    as long as on the slowest rank.  All take turns, and medians over the turns are shown.  native in ratios is the
    faster of native and native-kept.  Every sum is checked once.
    """
    from ...comm import Communicator
    from ...perf.exchange import lengths

    kinds = parse_dtypes(dtypes)
    check_lengths(least, most, max(kind.itemsize for kind in kinds))
    world = launch.world()
    with Communicator(world) as comm:
        names = parse_names(algorithms, comm)
        with comm.agreed():
            if comm.rank == 0:
                check_files(json_file, plot_file)
        report = run(comm, world, names, kinds, lengths(least, most, factor), seconds)
        with comm.agreed():
            if comm.rank == 0:
                show(report)
                write(report, json_file, plot_file)


def parse_dtypes(text: str) -> list[Any]:
    """The types that are summed."""
    import numpy as np

    kinds = []
    for word in text.split(","):
        try:
            kinds.append(np.dtype(word.strip()))
        except TypeError:
            kinds.append(np.dtype("V"))
        if kinds[-1].kind not in "fiu" or not word.strip():
            raise ConfigError(f"--dtype {text}: {word!r} is no type of numbers; write for example float32,int64")
    return kinds


def check_lengths(least: int, most: int, itemsize: int) -> None:
    """Raise `ConfigError` where no vector is as long as that."""
    if least < itemsize:
        raise ConfigError(f"--min-bytes {least}: an element has {itemsize} bytes")
    if most < least:
        raise ConfigError(f"--max-bytes {most} is less than --min-bytes {least}")


def parse_names(text: str | None, comm: Any) -> list[str]:
    """The contenders, by name."""
    from ...perf.exchange import NAMES, ONCE, default_names

    if comm.size == 1:
        raise ConfigError("one rank has nothing to exchange: start it with mpiexec -n N distai-mpi bench allreduce")
    if text is None:
        return default_names(comm)
    names = [word.strip() for word in text.split(",")]
    for name in names:
        if name not in NAMES:
            raise ConfigError(f"--algorithms: there is no {name!r}; choose from {', '.join(NAMES)}")
        if name.removesuffix(ONCE) == "shared" and len(comm.leaders) > 1:
            raise ConfigError(f"--algorithms {name} is for one node, not {len(comm.leaders)}: choose hierarchical")
    return list(dict.fromkeys(names))


def run(
    comm: Any, mpi_comm: Any, names: Sequence[str], dtypes: Sequence[Any], lengths: Sequence[int], seconds: float
) -> dict[str, Any]:
    """Measure contenders ``names`` on vectors of all types and lengths (bytes) for about ``seconds``; collective."""
    from ...comm.mpi_library import library
    from ...perf.exchange import lacking_memory, measure
    from ...perf.machine import node_cpus

    report: dict[str, Any] = {"ranks": comm.size, "nodes": len(comm.leaders), "mpi": library().name}
    report |= {"load": os.getloadavg()[0], "cpus": node_cpus(comm), "rows": [], "memory": [], "skipped": []}
    cases = [(dtype, length // dtype.itemsize * dtype.itemsize) for dtype in dtypes for length in lengths]
    end = time.perf_counter() + seconds
    for number, (dtype, length) in enumerate(cases):
        budget = comm.bcast_object(end - time.perf_counter()) / (len(cases) - number)
        where = {"bytes": length, "dtype": str(dtype)}
        reason = lacking_memory(comm, length)
        if reason is not None:
            report["skipped"].append({**where, "algorithm": None, "reason": reason})
            continue
        rows, memory, skipped = measure(comm, mpi_comm, length, dtype, names, budget)
        report["rows"] += rows
        report["memory"] += memory
        report["skipped"] += [{**where, "algorithm": name, "reason": why} for name, why in skipped.items()]
    return report


def show(report: dict[str, Any]) -> None:
    """Print a table for each type, and what was left out."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    watched = launch.on_terminal()  # mpiexec makes every output look like one
    console = Console(force_terminal=watched, width=None if watched else 100, highlight=False)
    for dtype in dict.fromkeys(row["dtype"] for row in report["rows"]):
        table = Table(title=f"sums of {dtype}, {ranks_on_nodes(report)}", title_justify="left", box=SIMPLE)
        for title in ("bytes", "algorithm", "µs", "GB/s", "× native", "× floor"):
            table.add_column(title, justify="left" if title == "algorithm" else "right")
        for cells, last in lines([row for row in (*report["rows"], *report["memory"]) if row["dtype"] == dtype]):
            table.add_row(*cells, end_section=last)
        console.print(table)
    for text in remarks(report):
        console.print(text)


def lines(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[list[str], bool]]:
    """The cells of each line, by length and the floors last, and whether it is the last of its length."""
    ordered = sorted(rows, key=lambda row: row["bytes"])
    for row, after in zip(ordered, [*ordered[1:], None], strict=True):
        name = row.get("algorithm") or f"floor, {row['out']}"
        if name == "auto":
            name += f": {row['resolved']}"
        ratios = (row.get("ratio_to_native"), row.get("ratio_to_floor"))
        cells = [f"{row['bytes']:,}", name, f"{1e6 * row['seconds']:,.1f}"]
        cells += [f"{row['bytes'] / row['seconds'] / 1e9:.2f}"]
        cells += ["" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
        yield cells, after is None or after["bytes"] != row["bytes"]


def ranks_on_nodes(report: dict[str, Any]) -> str:
    """How many ranks there are, and on how many nodes."""
    ranks, nodes = report["ranks"], report["nodes"]
    return f"{ranks} rank{'' if ranks == 1 else 's'} on {nodes} node{'' if nodes == 1 else 's'}"


def remarks(report: dict[str, Any]) -> list[str]:
    """What must be known to read the table."""
    lines = [
        f"{report['mpi']}; load before the run {report['load']:.1f}; GB/s: the vector's bytes a second; × native, "
        "× floor: its time as a multiple of theirs"
    ]
    lines += crowding(report)
    for one in report["skipped"]:
        what = f"{one['bytes']:,} bytes of {one['dtype']}" + (f", {one['algorithm']}" if one["algorithm"] else "")
        lines.append(f"left out: {what}: {one['reason']}")
    return lines


def crowding(report: dict[str, Any]) -> list[str]:
    """A warning where ranks share CPUs."""
    if report["cpus"] >= report["ranks"] / report["nodes"]:
        return []
    return [f"there are more ranks than CPUs ({report['cpus']}): they take turns, and times mean little"]


def write(report: dict[str, Any], json_file: str | None, plot_file: str | None) -> None:
    """Write what was asked for."""
    from ...files import write_json, write_whole

    if json_file:
        write_json(json_file, report)
    if plot_file:
        from ...perf.charts import exchange_chart

        chart = exchange_chart(report["rows"], report["memory"], f"sums over {ranks_on_nodes(report)}")
        write_whole(plot_file, lambda file: file.write(chart))
