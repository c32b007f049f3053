"""``distai-mpi bench shards``: step time with even shards and with shards by speed, when one rank is slow.

With ``--turn`` or ``--noise`` it trains once, and shows how rows follow the ranks' speeds.
"""

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
WINDOW = 10  # steps whose median is shown
AFTER_TURN = 60  # steps
NEAR = 1.15  # times the ideal, at which rows have followed


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
@click.option(
    "--turn",
    type=click.IntRange(min=0),
    help="All ranks are alike until this step, from which the last is slow: rows follow their speeds.",
)
@click.option(
    "--noise",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Of planted delays, by chance in every step: their standard deviation, as a fraction.",
)
@click.option(
    "--steps", type=click.IntRange(min=1), help="Of a run with --turn or --noise.  [default: 60 after --turn]"
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
    turn: int | None,
    noise: float,
    steps: int | None,
    json_file: str | None,
    as_rank: bool,
) -> None:
    """Step time with even shards and with shards by speed, where a planted delay per row makes the last rank slow.

    The ideal is the global batch over the sum of the planted speeds: no real work, no exchange.
    """
    if as_rank:
        if turn is None and not noise:
            measure(slow, delay / 1e3, global_batch_size, repeats)
        else:
            follow(slow, delay / 1e3, global_batch_size, turn, noise, steps)
        return
    if launch.launcher().size > 1:
        raise ConfigError("bench shards starts its own ranks: run it without a launcher, with --ranks N")
    from ...files import check_writable, write_json
    from ...perf.compare import run

    if json_file:
        check_writable(json_file)
    words = ["bench", "shards", "--as-rank", "--slow", str(slow), "--delay", str(delay)]
    words += ["--global-batch-size", str(global_batch_size), "--repeats", str(repeats)]
    words += ["--noise", str(noise), *([] if turn is None else ["--turn", str(turn)])]
    words += [] if steps is None else ["--steps", str(steps)]
    load = os.getloadavg()[0]
    crowded = True  # the ranks sleep most of the time: more of them than cores do no harm
    _, report = run(ranks_command(ranks, launcher, words, crowded), timeout)
    report["load"] = load
    (show if "windows" not in report else show_windows)(report)
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


def follow(slow: float, delay: float, rows: int, turn: int | None, noise: float, steps: int | None) -> None:
    """Train with ranks that are alike until step ``turn``, and print how rows followed; an SPMD program."""
    import numpy as np

    from ... import Balance, data, models
    from ...comm import Communicator
    from ...train import Callback, fit

    steps = steps or (turn or 0) + AFTER_TURN
    rng = np.random.default_rng(0)
    dataset = data.Dataset(rng.normal(size=(rows * steps, FEATURES)), rng.integers(0, CLASSES, rows * steps))
    with Communicator(launch.world()) as comm:
        model, chance = Delayed(models.Softmax(FEATURES, CLASSES), delay), np.random.default_rng(comm.rank)
        times: list[float] = []

        class Turn(Callback):
            def on_start(self, run: Any) -> None:
                self.on_step(run)

            def on_step(self, run: Any) -> None:
                times.append(time.perf_counter())
                late = turn is not None and run.iterations >= turn and comm.rank == comm.size - 1
                model.seconds = delay * (slow if late else 1.0) * max(0.0, 1 + noise * chance.normal())

        shard = data.whole(dataset, comm.rank, comm.size)
        watching: list[Any] = [Turn(), Balance(tell=lambda *_: None)]
        result = fit(model, shard, comm, epochs=1, global_batch_size=rows, callbacks=watching)
        taken = np.diff(comm.bcast_object(times))
        if comm.rank == 0:
            report: dict[str, Any] = {"ranks": comm.size, "slow": slow, "delay": delay}
            report |= {"global_batch_size": rows, "noise": noise}
            report |= {"turn": turn, "samples_per_second": result.samples_per_second, "rebalanced": result.rebalanced}
            found = windows(taken.tolist(), turn, [rows * delay / (comm.size - 1 + 1 / s) for s in (1.0, slow)])
            print(json.dumps(report | found), flush=True)


def windows(taken: list[float], turn: int | None, ideals: list[float]) -> dict[str, Any]:
    """Medians of `WINDOW` steps beside the ideal before and after ``turn``, and steps until they are near it again."""
    found = []
    for first in range(0, len(taken), WINDOW):
        part, late = taken[first : first + WINDOW], turn is not None and first >= turn
        seconds = statistics.median(part)
        found.append({"step": first, "seconds": seconds, "to_ideal": seconds / ideals[late]})
    back = None
    if turn is not None:
        far = [i for i, window in enumerate(found) if window["step"] >= turn and window["to_ideal"] > NEAR]
        after = found[far[-1]]["step"] + WINDOW if far else turn
        back = after - turn if after < len(taken) else None
    return {"ideal_seconds": ideals, "windows": found, "steps_until_near": back}


def show_windows(report: dict[str, Any]) -> None:
    """Print the table of a run in which rows follow."""
    from rich.console import Console
    from rich.table import Table

    table = Table("steps", "step, median", "to ideal")
    shown = report["windows"][:: max(1, len(report["windows"]) // 20)]
    for window in shown:
        first = window["step"]
        table.add_row(
            f"{first} to {first + WINDOW - 1}", f"{1e3 * window['seconds']:.2f} ms", f"{window['to_ideal']:.2f} ×"
        )
    console = Console()
    console.print(table)
    for entry in report["rebalanced"]:
        console.print(f"step {entry['step']}: weights {', '.join(f'{w:g}' for w in entry['weights'])}: {entry['why']}")
    near = report["steps_until_near"]
    told = "" if near is None else f"; from {near} steps after the turn on at most {NEAR} × the ideal"
    console.print(f"rows changed {len(report['rebalanced'])} times{told}; load before the run {report['load']:.1f}")


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
