"""``distai-mpi train``: from a data file to result.json."""

from __future__ import annotations

from typing import Any

import click

from ..comm import launch
from ..errors import ConfigError
from .build import batch_size, make_callbacks, make_model, make_optimizer
from .flags import DATA, MODEL, OPTIMIZER, RUN, flags
from .settings import check_settings


@click.command()
@flags(DATA, MODEL, OPTIMIZER, RUN)
def command(**settings: Any) -> None:
    """Train a model on all ranks; without flags, the MNIST MLP 784-128-10."""
    check_settings(settings)
    from ..comm import Communicator

    with Communicator(launch.world()) as comm:
        train(comm, settings)


def train(comm: Any, settings: dict[str, Any]) -> None:
    """Load, build, fit and report; collective."""
    from .. import data
    from ..train import fit

    training, test = data.load(
        settings["data"],
        comm,
        test=settings["test_data"],
        distribute=settings["distribute"],
        shuffle=settings["shuffle"],
        test_fraction=settings["test_fraction"],
        seed=settings["seed"],
    )
    model = make_model(settings, training.labels)
    optimizer = make_optimizer(settings)
    if settings["verbose"] and comm.rank == 0:
        describe(model, training, settings)
    result = fit(
        model,
        training,
        comm,
        test=test,
        optimizer=optimizer,
        epochs=settings["max_iter"] or settings["epochs"],
        global_batch_size=batch_size(settings, comm.size),
        l2=settings["l2"],
        seed=settings["seed"],
        allreduce=settings["allreduce"],
        tol=settings["tol"],
        callbacks=make_callbacks(settings, training.dataset, comm.rank),
    )
    if result.status != "completed":
        raise ConfigError(
            f"training {result.status} in epoch {result.epochs}: the {result.stop_reason};"
            f" lower --lr (now {optimizer.lr:g}) or scale the features"
        )
    if comm.rank == 0 and not settings["quiet"] and not settings["as_json"]:
        print(summary(result, comm.size, settings["out"]), flush=True)


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
