"""``distai-mpi bench shards``: step time with even shards and with shards by speed, when one rank is slow."""

from __future__ import annotations

import json
import os
import statistics
import time
from typing import Any

import click

from ...comm import launch
from ...errors import ConfigError
from .ranks import ranks_command

FEATURES, CLASSES = 16, 4
STEPS = 20  # of a run; the first is not counted


@click.command()
@click.option("--ranks", type=click.IntRange(min=2), default=3, show_default=True)
@click.option(
    "--slow", type=click.FloatRange(1), default=3.0, show_default=True, help="How many times slower the last rank is."
)
@click.option(
    "--delay",
    type=click.FloatRange(0, min_open=True),
    default=0.5,
    show_default=True,
    help="Milliseconds that a row takes on the other ranks, slept beside a little real work.",
)
@click.option("--global-batch-size", type=click.IntRange(min=1), default=192, show_default=True)
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="The medians are shown.")
@click.option("--timeout", type=click.FloatRange(min=1), default=300, show_default=True, help="Seconds for all.")
@click.option(
    "--launcher",
    metavar="COMMAND",
    help="What starts the ranks, as 'mpiexec -n {ranks}'.  [default: this environment's mpiexec]",
)
@click.option("--json", "json_file", metavar="FILE", help="Write all figures here.")
@click.option("--as-rank", is_flag=True, hidden=True, help="Be one of the ranks.")
def command(
    ranks: int,
    slow: float,
    delay: float,
    global_batch_size: int,
    repeats: int,
    timeout: float,
    launcher: str | None,
    json_file: str | None,
    as_rank: bool,
) -> None:
    """Step time with even shards and with shards by speed, where a planted delay per row makes the last rank slow.

    The ideal is the global batch over the sum of the planted speeds: no real work, no exchange.
    """
    if as_rank:
        measure(slow, delay / 1e3, global_batch_size, repeats)
        return
    if launch.launcher().size > 1:
        raise ConfigError("bench shards starts its own ranks: run it without a launcher, with --ranks N")
    from ...files import check_writable, write_json
    from ...perf.compare import run

    if json_file:
        check_writable(json_file)
    words = ["bench", "shards", "--as-rank", "--slow", str(slow), "--delay", str(delay)]
    words += ["--global-batch-size", str(global_batch_size), "--repeats", str(repeats)]
    load = os.getloadavg()[0]
    crowded = True  # the ranks sleep most of the time: more of them than cores do no harm
    _, report = run(ranks_command(ranks, launcher, words, crowded), timeout)
    report["load"] = load
    show(report)
    if json_file:
        write_json(json_file, report)


def measure(slow: float, delay: float, global_batch_size: int, repeats: int) -> None:
    """Train with both kinds of shards in turn, and print the report; an SPMD program."""
    import numpy as np

    from ... import data, models
    from ...comm import Communicator
    from ...train import calibrate

    rng = np.random.default_rng(0)
    rows = global_batch_size * STEPS
    dataset = data.Dataset(rng.normal(size=(rows, FEATURES)), rng.integers(0, CLASSES, rows))
    with Communicator(launch.world()) as comm:
        delays = [delay] * (comm.size - 1) + [delay * slow]
        model = Delayed(models.Softmax(FEATURES, CLASSES), delays[comm.rank])
        even = data.whole(dataset, comm.rank, comm.size)
        turns = []
        for _ in range(repeats):
            partition = calibrate(model, even, comm, global_batch_size)
            shards = {"even": even, "speed": data.repartition(even, partition, comm)}
            times = {name: step_time(model, shard, comm, global_batch_size) for name, shard in shards.items()}
            turns.append({**times, "shards": list(partition.weights)})
        if comm.rank == 0:
            report = {"ranks": comm.size, "slow": slow, "delay": delay, "global_batch_size": global_batch_size}
            print(json.dumps(report | summary(turns, global_batch_size, delays)), flush=True)


class Delayed:
    """``model`` whose gradient takes ``seconds`` longer for each row, slept: other ranks lose no core by it."""

    def __init__(self, model: Any, seconds: float) -> None:
        self.model, self.seconds = model, seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def loss_and_grad(self, w: Any, batch: Any, grad: Any, on_ready: Any = None) -> Any:
        """As of `models.Model`."""
        sums = self.model.loss_and_grad(w, batch, grad, on_ready)
        time.sleep(self.seconds * len(batch.x))
        return sums

    def loss_and_factors(self, w: Any, batch: Any, factors: Any) -> Any:
        """As of `models.Model`."""
        sums = self.model.loss_and_factors(w, batch, factors)
        time.sleep(self.seconds * len(batch.x))
        return sums


def step_time(model: Any, shard: Any, comm: Any, global_batch_size: int) -> float:
    """Median time of a step in seconds, the same on every rank."""
    from ...train import Callback, fit

    class Clock(Callback):
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step(self, run: Any) -> None:
            self.times.append(time.perf_counter())

    clock = Clock()
    fit(model, shard, comm, epochs=1, global_batch_size=global_batch_size, callbacks=[clock])
    steps = [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)]
    return comm.bcast_object(statistics.median(steps))


def summary(turns: list[dict[str, Any]], rows: int, delays: list[float]) -> dict[str, Any]:
    """Medians over the turns, and how they compare with the ideal; times in seconds."""
    ideal = rows / sum(1 / delay for delay in delays)
    medians = {name: statistics.median(turn[name] for turn in turns) for name in ("even", "speed")}
    return {
        "even_seconds": medians["even"],
        "speed_seconds": medians["speed"],
        "ideal_seconds": ideal,
        "speed_to_ideal": medians["speed"] / ideal,
        "even_to_speed": statistics.median(turn["even"] / turn["speed"] for turn in turns),
        "samples_per_second": rows / medians["speed"],
        "turns": turns,
    }


def show(report: dict[str, Any]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("shards", "step, median", "to ideal")
    for name in ("even", "speed", "ideal"):
        seconds = report[f"{name}_seconds"]
        table.add_row(name, f"{1e3 * seconds:.2f} ms", f"{seconds / report['ideal_seconds']:.2f} ×")
    console = Console()
    console.print(table)
    console.print(
        f"{report['ranks']} ranks, the last {report['slow']:g} times slower: shards by speed are"
        f" {report['even_to_speed']:.2f} times as fast as even ones; load before the run {report['load']:.1f}"
    )
