"""``distai-mpi bench scaling``: how much faster more ranks train, and what the laws of speed-up make of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import click

from ...comm import launch
from ...errors import ConfigError, DistaiError
from ..build import batch_size, fit_options, load_data, make_model
from ..train_flags import settings_of

# Flags of `train` that write, or print, or end training early, or are meant for one number of ranks, and so have no
# place in a measurement.
LEFT_OUT = (
    *("out", "checkpoint_every", "resume", "trace", "as_json", "verbose"),
    *("tol", "valid", "patience", "metric", "shards"),
)


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--strong", "kinds", flag_value="strong", help="Only the same work on all counts of ranks.")
@click.option("--weak", "kinds", flag_value="weak", help="Only the same work for each rank.")
@click.option("--both", "kinds", flag_value="both", default="both", help="One after the other.  [default]")
@click.option("--ranks", metavar="N,N,...", help="Counts of ranks besides 1.  [default: powers of two, and all]")
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Turns over all counts.")
@click.option("--json", "json_file", metavar="FILE", help="Write all rates here.")
@click.option("--plot", "plot_file", metavar="FILE.png", help="Draw the curves here; needs matplotlib.")
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
def command(
    kinds: str, ranks: str | None, repeats: int, json_file: str | None, plot_file: str | None, flags: tuple[str, ...]
) -> None:
    """Speed-up of training on 1, 2, ..., N ranks, all in one job of N: mpiexec -n N distai-mpi bench scaling.

    FLAGS are those of 'distai-mpi train'.  Strong scaling: the same rows and global batch at every count.
    Weak scaling: a rank has the same number of rows and the same part of a batch at every count.  In both
    all N ranks together have all rows and the whole global batch.  Fewer ranks fill node after node; the
    others sleep.  Every rank has the BLAS threads that it has among N.  The first turn is not counted.
    """
    settings = train_settings(flags)
    from ...comm import Communicator
    from ...perf.machine import held_blas, node_cpus

    with Communicator(launch.world()) as comm:
        counts = parse_counts(ranks, comm.size)
        with comm.agreed():
            if comm.rank == 0:
                check_files(json_file, plot_file)
        chosen = ("strong", "weak") if kinds == "both" else (kinds,)
        with held_blas(comm.node.size, node_cpus(comm)) as threads:
            rates = Bench(comm, settings, counts).run(chosen, repeats)
        facts = {"repeats": repeats, "blas_threads": threads, "flags": flags}
        with comm.agreed():
            if comm.rank == 0:
                report(settings, rates, facts, json_file, plot_file)


def train_settings(flags: Sequence[str]) -> dict[str, Any]:
    """The settings that ``flags`` give to `train`; the same errors as there."""
    return settings_of(flags, LEFT_OUT, "a measurement of scaling")


def parse_counts(ranks: str | None, size: int) -> list[int]:
    """Numbers of ranks to train on, ascending, 1 among them."""
    from ...perf.scaling import default_counts

    if size == 1:
        raise ConfigError(
            "bench scaling compares ranks of one job: start it with mpiexec -n N distai-mpi bench scaling"
        )
    if ranks is None:
        return default_counts(size)
    words = [word.strip() for word in ranks.split(",")]
    counts = {int(word) for word in words if word.isdigit()}
    if not all(word.isdigit() for word in words) or min(counts) < 1 or max(counts) > size or max(counts) == 1:
        raise ConfigError(f"--ranks {ranks}: give counts from 1 to {size}, the ranks of this job, such as 1,2,{size}")
    return sorted(counts | {1})


def check_files(json_file: str | None, plot_file: str | None) -> None:
    """Raise `ConfigError` unless the report can be written; before the measurement, not after it."""
    from ...files import check_writable
    from ...perf.charts import check_matplotlib

    if plot_file:
        if not plot_file.endswith(".png"):
            raise ConfigError(f"--plot {plot_file}: the chart is a PNG file; name it FILE.png")
        check_matplotlib()
    for name in filter(None, (json_file, plot_file)):
        check_writable(name)


@dataclass(frozen=True)
class Bench:
    """Trains on parts of ``comm``; its methods are collective."""

    comm: Any
    settings: dict[str, Any]
    counts: Sequence[int]

    def run(self, kinds: Sequence[str], repeats: int) -> dict[str, dict[int, list[float]]]:
        """Rates in samples/s by kind and count, one a turn; before the first turn, one that is not counted."""
        from ...perf.scaling import packed

        order = packed(self.comm.allgather_object(self.comm.node.ranks[0]))
        rates: dict[str, dict[int, list[float]]] = {kind: {n: [] for n in self.counts} for kind in kinds}
        for turn in range(-1, repeats):
            for kind in kinds:
                for n in self.counts:
                    rate = self.measure(kind, order[:n], epochs=1 if turn < 0 else None)
                    if turn >= 0:
                        rates[kind][n].append(rate)
        return rates

    def measure(self, kind: str, members: Sequence[int], epochs: int | None) -> float:
        """Train once on the ranks ``members`` while the others sleep; the rate in samples/s."""
        part = self.comm.part(members)
        outcome: Any = None
        if part is not None:
            try:
                with part:
                    outcome = self.train(kind, part, epochs)
            except DistaiError as error:  # all of the part have it, and the sleepers must get it
                outcome = error
        self.comm.barrier_asleep()
        outcome = self.comm.bcast_object(outcome, members[0])
        if isinstance(outcome, DistaiError):
            raise outcome
        return outcome

    def train(self, kind: str, part: Any, epochs: int | None) -> float:
        """Load, build and fit on ``part``, as `train` does; the rate in samples/s."""
        from ...train import fit

        most = max(self.counts)
        batch = batch_size(self.settings, most)
        shard = load_data(self.settings, part).train
        model = make_model(self.settings, shard.labels)
        if kind == "weak":
            batch = max(1, batch // most) * part.size
            shard = same_rows(shard, part, shard.rows // most)
        options = fit_options(self.settings, shard, batch)
        options["epochs"] = epochs or options["epochs"]
        result = fit(model, shard, part, device=self.settings["device"], **options)
        if result.status != "completed":
            raise ConfigError(f"training {result.status} on {part.size} ranks: the {result.stop_reason}; lower --lr")
        return float(result.samples_per_second)  # type: ignore[arg-type]  # a completed run has one


def same_rows(shard: Any, comm: Any, rows: int) -> Any:
    """``rows`` rows of the data for each rank, as a shard of its own that is shuffled locally; collective."""
    from ... import data

    if rows == 0:
        raise ConfigError(f"{shard.name}: weak scaling needs a row for each rank at least, and there are {shard.rows}")
    start = comm.rank * rows if shard.shuffle == "global" else 0
    own, held = slice(start, start + rows), shard.dataset
    weight = None if held.weight is None else held.weight[own]
    return data.from_local(replace(held, x=held.x[own], y=held.y[own], weight=weight), comm, shard.name)


def report(
    settings: dict[str, Any],
    rates: dict[str, dict[int, list[float]]],
    facts: dict[str, Any],
    json_file: Any,
    plot_file: Any,
) -> None:
    """Print the curves, and write what was asked for."""
    from ...files import write_json, write_whole
    from ...perf.scaling import curve

    curves = [curve(kind, of_kind) for kind, of_kind in rates.items()]  # type: ignore[arg-type]
    for one in curves:
        show(one)
    if json_file:
        fields = facts | {"load": os.getloadavg()[0], "placement": "packed"}
        fields |= {one.kind: asdict(one) | {"law": one.law.name} for one in curves}
        write_json(json_file, fields)
    if plot_file:
        from ...perf.charts import scaling_chart

        chart = scaling_chart(curves, f"{settings['model_name']} on {settings['data']}")
        write_whole(plot_file, lambda file: file.write(chart))


def show(curve: Any) -> None:
    """Print one curve as a table, and what its fit is worth; p is of each row alone."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{curve.kind} scaling", title_justify="left", box=SIMPLE)
    titles = ("ranks", "samples/s", "min – max", "n × one", "speed-up", curve.law.name, "efficiency", "p")
    for title in titles:
        table.add_column(title, justify="right")
    for point in curve.points:
        table.add_row(
            str(point.ranks),
            f"{point.rate:,.0f}",
            f"{min(point.rates):,.0f} – {max(point.rates):,.0f}",
            f"{point.side_by_side:,.0f}",
            f"{point.speedup:.2f}",
            f"{point.law:.2f}",
            f"{100 * point.efficiency:.0f} %",
            "" if point.share is None else f"{point.share:.4f}",
        )
    watched = launch.on_terminal()  # mpiexec makes every output look like one
    console = Console(force_terminal=watched, width=None if watched else 100)
    console.print(table)
    console.print(verdict(curve), highlight=False)


def verdict(curve: Any) -> str:
    """The fitted fraction in words, and how far it can be trusted."""
    from ...perf.laws import amdahl_limit

    text = f"{curve.law.name}: parallel fraction p = {curve.share:.4f}"
    if len(curve.points) == 2:
        text += ", from one ratio alone: more counts of ranks would test the law"
    if curve.at_bound:
        return text + "; the best fit lies outside 0 to 1, where the law says nothing"
    if curve.kind == "strong":
        text += f"; at most {amdahl_limit(curve.share):,.1f} times one rank, however many work"
    return text
