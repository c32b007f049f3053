"""``distai-mpi bench train``: the training rate, beside other programs."""

from __future__ import annotations

import os
import statistics
from typing import Any

import click

from ...comm import launch
from ...errors import ConfigError
from .ranks import ranks_command


@click.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "--against",
    multiple=True,
    metavar="COMMAND",
    help="A peer's command, run in turn with ours; may be given several times.  "
    "It must print a JSON object with samples_per_second or samples_per_s (--seconds: seconds or s).",
)
@click.option("--seconds", "by_seconds", is_flag=True, help="Compare the seconds of the whole training, not its rate.")
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
    by_seconds: bool,
    ranks: int,
    repeats: int,
    timeout: float,
    launcher: str | None,
    json_file: str | None,
    flags: tuple[str, ...],
) -> None:
    """Training rate in samples/s, or seconds to the end, beside other programs and the matrix product's peak.

    FLAGS go to 'distai-mpi train' as they are, for example --data FILE --batch-size 128.
    """
    if launch.launcher().size > 1:
        raise ConfigError("bench train starts its own ranks: run it without a launcher, with --ranks N")
    from ...files import check_writable, write_json
    from ...perf.compare import Contender, run_in_turn, sgemm_peak

    if json_file:
        check_writable(json_file)
    ours = Contender("distai-mpi", ours_command(ranks, launcher, flags))
    peers = [Contender(text, text) for text in against]
    load = os.getloadavg()[0]
    peak = sgemm_peak(ranks)
    run_in_turn([ours, *peers], repeats, timeout, by_seconds)
    flops = statistics.median(result.get("flops_per_second") or 0.0 for result in ours.results)
    report = {
        "ranks": ranks,
        "repeats": repeats,
        "load": load,
        "flags": list(flags),
        "sgemm_flops": peak,
        "share_of_peak": flops / peak if flops else None,
        "rows": [
            {
                "command": c.name,
                "seconds" if by_seconds else "samples_per_second": 1 / c.median if by_seconds else c.median,
                "rates": c.rates,
                "ours_to_this": ours.ratio(c),
                "objective": c.results[-1].get("train_loss", c.results[-1].get("f")),
            }
            for c in [ours, *peers]
        ],
    }
    show(report)
    if json_file:
        write_json(json_file, report)


def ours_command(ranks: int, launcher: str | None, flags: tuple[str, ...]) -> list[str]:
    """The command that trains on ``ranks`` ranks and prints its result as JSON."""
    return ranks_command(ranks, launcher, ("train", "--json", "-q", *flags))


def show(report: dict[str, Any]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    by_seconds = "seconds" in report["rows"][0]
    table = Table("command", f"{'seconds' if by_seconds else 'samples/s'}, median", "min – max", "ours to this")
    if by_seconds:
        table.add_column("objective")
    for row in report["rows"]:
        rates = sorted(row["rates"])
        if by_seconds:
            figures = [f"{row['seconds']:.3f}", f"{1 / rates[-1]:.3f} – {1 / rates[0]:.3f}"]
        else:
            figures = [f"{row['samples_per_second']:,.0f}", f"{rates[0]:,.0f} – {rates[-1]:,.0f}"]
        objective = [f"{row['objective']:.9g}" if row["objective"] is not None else ""] if by_seconds else []
        table.add_row(row["command"], *figures, f"{row['ours_to_this']:.2f} ×", *objective)
    console = Console()
    console.print(table)
    peak = f"sgemm peak on {report['ranks']} core(s): {report['sgemm_flops'] / 1e9:.0f} GFLOP/s"
    if report["share_of_peak"] is not None:
        peak += f", of which our training's matrix products reach {100 * report['share_of_peak']:.0f} %"
    console.print(f"{peak}; load before the run {report['load']:.1f}")
