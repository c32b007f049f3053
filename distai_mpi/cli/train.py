"""``distai-mpi train``: from a data file to result.json."""

from __future__ import annotations

import sys
from typing import Any

import click

from ..comm import launch
from ..comm.allocation import allocation, idle_share
from ..errors import ConfigError
from .build import batch_size, fit_options, load_data, make_callbacks, make_model
from .config import flags_win
from .flags import DATA, MODEL, OPTIMIZER, RUN, flags
from .settings import EITHER, check_settings

MOST_SPEEDS = 16  # ranks whose speeds are told one by one


@click.command()
@flags(DATA, MODEL, OPTIMIZER, RUN)
@click.pass_context
def command(ctx: click.Context, **settings: Any) -> None:
    """Train a model on all ranks; without flags, the MNIST MLP 784-128-10."""
    settings = flags_win(ctx, settings, EITHER)
    check_settings(settings)
    from ..comm import Communicator

    with Communicator(launch.world()) as comm:
        if comm.rank == 0 and not settings["quiet"]:
            warn_of_idle(comm)
        train(comm, settings)


def warn_of_idle(comm: Any) -> None:
    """Say what these ranks leave idle of their Slurm job."""
    idle = idle_share(comm.size, len(comm.leaders), allocation())
    if idle:
        print(f"distai-mpi: warning: {idle}", file=sys.stderr, flush=True)


def train(comm: Any, settings: dict[str, Any]) -> None:
    """Load, build, fit and report; collective."""
    from .. import backend
    from ..train import fit

    device = settings["device"]
    if device == "gpu":  # a GPU that is missing shows before data is read
        with comm.agreed():
            device = backend.choose(device, comm.node.rank)
    sets = load_data(settings, comm)
    model = make_model(settings, sets.train.labels)
    if settings["shards"] == "speed":
        sets = by_speed(sets, model, comm, batch_size(settings, comm.size), settings)
    options = fit_options(settings, sets.train, batch_size(settings, comm.size))
    if settings["verbose"] and comm.rank == 0:
        describe(model, sets.train, settings)
    result = fit(
        model,
        sets.train,
        comm,
        test=sets.test,
        valid=sets.valid,
        device=device,
        metric=settings["metric"] or "loss",
        patience=settings["patience"],
        callbacks=make_callbacks(settings, sets.train.dataset, comm.rank, comm.size),
        **options,
    )
    if result.status != "completed":
        raise ConfigError(
            f"training {result.status} in epoch {result.epochs}: the {result.stop_reason};"
            f" lower --lr (now {options['optimizer'].lr:g}) or scale the features"
        )
    if comm.rank == 0 and not settings["quiet"] and not settings["as_json"]:
        print(summary(result, comm.size, settings["out"]), flush=True)


def by_speed(sets: Any, model: Any, comm: Any, rows: int, settings: dict[str, Any]) -> Any:
    """The sets, shared out by the ranks' speeds on ``model`` in steps of ``rows`` rows; collective."""
    from .. import data
    from ..train import calibrate

    partition = calibrate(model, sets.train, comm, rows, seed=settings["seed"])
    if comm.rank == 0 and not settings["quiet"]:
        print(speeds(partition), flush=True)
    return data.Sets(*(share and data.repartition(share, partition, comm) for share in sets))


def speeds(partition: Any) -> str:
    """The ranks' speeds in a line; of many ranks the extremes."""
    rates = partition.weights
    if len(rates) > MOST_SPEEDS:
        slow, fast = min(rates), max(rates)
        ends = ((rates.index(slow), slow), (rates.index(fast), fast))
        told = " to ".join(f"rank {rank} {rate:,.0f}" for rank, rate in ends)
    else:
        told = ", ".join(f"rank {rank} {rate:,.0f}" for rank, rate in enumerate(rates))
    shares = ", ".join(f"{rate / sum(rates):.1%}" for rate in rates[:MOST_SPEEDS])
    return f"speed: {told} rows/s, shards {shares}{', ...' if len(rates) > MOST_SPEEDS else ''}"


def describe(model: Any, training: Any, settings: dict[str, Any]) -> None:
    """Print what is about to happen and what each rank holds."""
    print(f"model {settings['model_name']}: {' → '.join(map(str, model.widths))}, {model.layout.size:,} parameters")
    print(f"data {settings['data']}: {training.rows:,} rows × {training.features:,} features, {training.delivery}")
    print(f"shuffle {training.shuffle}, rows by rank: {', '.join(f'{count:,}' for count in training.counts)}")


def summary(result: Any, ranks: int, out: str | None) -> str:
    """The last line of a run."""
    parts = [f"train loss {result.train_loss:.4f}"]
    if result.test_accuracy is not None:
        parts.append(f"test accuracy {100 * result.test_accuracy:.2f} %")
    elif result.test_loss is not None:
        parts.append(f"test loss {result.test_loss:.4f}")
    parts.append(f"{result.seconds:.2f} s on {ranks} rank{'s' if ranks > 1 else ''}")
    parts.append(f"{result.samples_per_second:,.0f} samples/s")
    return "  ".join(parts) + (f"  → {out}" if out else "")
