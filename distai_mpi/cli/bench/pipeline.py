"""``distai-mpi bench pipeline``: step time of a pipeline as it cuts itself, beside every other cut."""

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

COSTS = (1, 3, 2, 5, 1, 4, 2, 6, 3, 1, 5, 2)  # of the layers, in proportion, again and again
UNITS, CLASSES = 8, 4
ROWS = 2  # of a micro-batch
STEPS = 4  # of a run; the first is not counted
FINALISTS = 3  # of the fastest cuts that are timed again


@click.command()
@click.option("--stages", type=click.IntRange(min=2), default=4, show_default=True)
@click.option("--layers", type=click.IntRange(min=2), default=8, show_default=True)
@click.option("--micro-batches", type=click.IntRange(min=1), default=16, show_default=True)
@click.option(
    "--slow",
    type=click.FloatRange(0, min_open=True),
    default=3.0,
    show_default=True,
    help="How many times slower the second stage's rank is.",
)
@click.option(
    "--delay",
    type=click.FloatRange(0, min_open=True),
    default=2.0,
    show_default=True,
    help="Milliseconds that the cheapest layer takes for a micro-batch on the other ranks, slept beside a little real"
    " work; others take up to six times as long.",
)
@click.option("--recompute", is_flag=True, help="Compute activations again for the backward pass.")
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="The medians are shown.")
@click.option("--timeout", type=click.FloatRange(min=1), default=900, show_default=True, help="Seconds for all.")
@click.option(
    "--launcher",
    metavar="COMMAND",
    help="What starts the ranks, as 'mpiexec -n {ranks}'.  [default: this environment's mpiexec]",
)
@click.option("--json", "json_file", metavar="FILE", help="Write all figures here.")
@click.option("--as-rank", is_flag=True, hidden=True, help="Be one of the ranks.")
def command(
    stages: int,
    layers: int,
    micro_batches: int,
    slow: float,
    delay: float,
    recompute: bool,
    repeats: int,
    timeout: float,
    launcher: str | None,
    json_file: str | None,
    as_rank: bool,
) -> None:
    """Step time of a pipeline of unequal layers with one slow rank, as it cuts itself, beside every other cut.

    The latency of a micro-batch stands beside L = n · d, of n stages of which the slowest takes d for it, and the step
    beside (m + n - 1) · d for m micro-batches.
    """
    if layers < stages:
        raise ConfigError(f"--layers {layers}: {stages} stages need a layer each")
    if as_rank:
        measure(stages, layers, micro_batches, slow, delay / 1e3, recompute, repeats)
        return
    if launch.launcher().size > 1:
        raise ConfigError("bench pipeline starts its own ranks: run it without a launcher, with --stages N")
    from ...files import check_writable, write_json
    from ...perf.compare import run

    if json_file:
        check_writable(json_file)
    words = ["bench", "pipeline", "--as-rank", *(["--recompute"] if recompute else [])]
    for name, value in (("stages", stages), ("layers", layers), ("micro-batches", micro_batches), ("slow", slow)):
        words += [f"--{name}", str(value)]
    words += ["--delay", str(delay), "--repeats", str(repeats)]
    load = os.getloadavg()[0]
    crowded = True  # the ranks sleep most of the time: more of them than cores do no harm
    _, report = run(ranks_command(stages, launcher, words, crowded), timeout)
    report["load"] = load
    show(report)
    if json_file:
        write_json(json_file, report)


def measure(
    stages: int, layers: int, micro_batches: int, slow: float, delay: float, recompute: bool, repeats: int
) -> None:
    """Train under the cuts that are chosen and under all others, and print the report; an SPMD program."""
    import numpy as np

    from ... import data, models
    from ...comm import Communicator, Mesh, Pipeline
    from ...perf.stage_cuts import all_cuts, choose_cuts, stage_times

    rng = np.random.default_rng(0)
    rows = ROWS * micro_batches
    dataset = data.Dataset(rng.normal(size=(STEPS * rows, UNITS)), rng.integers(0, CLASSES, STEPS * rows))
    planted = [1.0, 1.0 / slow, *([1.0] * (stages - 2))]  # speeds
    forwards = [4 / 3 if recompute else 1.0] * (stages - 1) + [1.0]  # the last stage does nothing twice
    costs = [delay * COSTS[layer % len(COSTS)] for layer in range(layers)]
    with Communicator(launch.world()) as comm:

        def run(cuts: tuple[int, ...] | None) -> dict[str, Any]:
            with Mesh(comm, stage=stages, pipeline=Pipeline(micro_batches, recompute, cuts)) as mesh:
                own = [cost / planted[mesh.position.stage] for cost in costs]
                model = Planted(models.MLP(UNITS, CLASSES, (UNITS,) * (layers - 1)), own)
                return figures(model, data.whole(dataset, 0, 1), mesh, rows)

        run(None)  # compiles, and connects the ranks
        chosen = run(None)
        tried = sorted((run(cuts) for cuts in all_cuts(layers, stages)), key=lambda one: one["seconds"])
        finalists = {tuple(one["cuts"]) for one in (chosen, *tried[:FINALISTS])}
        turns = [{cuts: run(cuts)["seconds"] for cuts in finalists} for _ in range(repeats)]
        medians = {cuts: statistics.median(turn[cuts] for turn in turns) for cuts in finalists}
        if comm.rank == 0:
            best = min(medians, key=medians.__getitem__)
            ours = medians[tuple(chosen["cuts"])]
            report: dict[str, Any] = {"stages": stages, "layers": layers, "micro_batches": micro_batches, "slow": slow}
            report |= {"recompute": recompute, "costs": costs, "chosen": chosen, "tried": tried}
            rates = [speed / times for speed, times in zip(planted, forwards, strict=True)]
            report |= {"planted_cuts": list(choose_cuts(stage_times(costs, rates)))}
            report |= {"chosen_seconds": ours, "best_cuts": list(best), "best_seconds": medians[best]}
            report |= {"chosen_to_best": ours / medians[best], "samples_per_second": rows / ours}
            print(json.dumps(report), flush=True)


class Planted:
    """``model`` whose layers take so many ``seconds`` longer for each micro-batch on this rank, slept.

    Other ranks lose no core by it.  A third of the time is the forward pass's.
    """

    def __init__(self, model: Any, seconds: list[float]) -> None:
        self.model, self.seconds = model, seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def stage(self, first: int, stop: int, rank: int, shares: Any) -> Any:
        """See `SupportsStages`."""
        return PlantedStage(self.model.stage(first, stop, rank, shares), sum(self.seconds[first:stop]))


class PlantedStage:
    """``stage`` that takes so many ``seconds`` longer for a micro-batch."""

    def __init__(self, stage: Any, seconds: float) -> None:
        self.stage, self.seconds = stage, seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stage, name)

    def forward(self, *args: Any) -> Any:
        """See `Stage`."""
        time.sleep(self.seconds / 3)
        return self.stage.forward(*args)

    def losses(self, *args: Any) -> Any:
        """See `Stage`."""
        time.sleep(self.seconds / 3)
        return self.stage.losses(*args)

    def backward(self, *args: Any) -> Any:
        """See `Stage`."""
        time.sleep(self.seconds * 2 / 3)
        return self.stage.backward(*args)


def figures(model: Any, shard: Any, mesh: Any, rows: int) -> dict[str, Any]:
    """Cuts of a run, the median time of its steps in seconds, and what `Result.pipeline` tells; alike on all ranks."""
    from ...train import Callback, fit

    class Clock(Callback):
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step(self, run: Any) -> None:
            self.times.append(time.perf_counter())

    clock = Clock()
    result = fit(model, shard, mesh, epochs=1, global_batch_size=rows, callbacks=[clock])
    steps = [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)]
    seconds = max(mesh.comm.allgather_object(statistics.median(steps)))
    assert result.pipeline is not None
    return {"cuts": result.pipeline["cuts"], "seconds": seconds, "pipeline": result.pipeline}


def show(report: dict[str, Any]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("cuts", "slowest stage d", "latency, n · d", "measured", "step, (m + n - 1) · d", "measured")
    chosen, tried = report["chosen"], report["tried"]
    for name, one in (("chosen", chosen), ("fastest", tried[0]), ("slowest", tried[-1])):
        told = one["pipeline"]
        numbers = (max(told["stage_seconds"]), told["latency"], told["measured_latency"], told["step_seconds"])
        cells = [f"{1e3 * seconds:.1f} ms" for seconds in (*numbers, one["seconds"])]
        table.add_row(f"{name}: {','.join(map(str, one['cuts']))}", *cells)
    best, planned = (",".join(map(str, report[name])) for name in ("best_cuts", "planted_cuts"))
    console = Console(width=110)
    console.print(table)
    console.print(
        f"{report['stages']} stages of {report['layers']} layers, {report['micro_batches']} micro-batches, the second"
        f" rank {report['slow']:g} times slower: a step of the chosen cuts takes {1e3 * report['chosen_seconds']:.1f}"
        f" ms, {report['chosen_to_best']:.2f} × that of the best of all {len(tried)} ({best}); by planted times alone"
        f" {planned} is the best; load before the run {report['load']:.1f}",
        highlight=False,
    )
