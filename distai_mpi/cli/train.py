"""``distai-mpi train``: from a data file to result.json."""

from __future__ import annotations

from typing import Any

import click

from ..comm import launch
from ..errors import ConfigError
from .build import (
    batch_size,
    checkpoints,
    epochs,
    make_callbacks,
    make_checkpoint,
    make_model,
    make_optimizer,
    make_schedule,
    validation,
)
from .config import flags_win
from .flags import DATA, MODEL, OPTIMIZER, RUN, flags
from .settings import EITHER, check_settings

INTERRUPTED = 75  # ended by a signal, and saved: EX_TEMPFAIL of sysexits.h, "try again"


@click.command()
@flags(DATA, MODEL, OPTIMIZER, RUN)
@click.pass_context
def command(ctx: click.Context, **settings: Any) -> int:
    """Train a model on all ranks; without flags, the MNIST MLP 784-128-10."""
    settings = flags_win(ctx, settings, EITHER)
    check_settings(settings)
    from ..comm import Communicator

    with Communicator(launch.world()) as comm:
        status = train(comm, settings)
    if status:
        launch.leave_together()  # a launcher kills the others as soon as one has left with a status
    return status


def train(comm: Any, settings: dict[str, Any]) -> int:
    """Load, build, fit and report; return the exit status; collective."""
    from .. import data
    from ..train import fit

    checkpoint = make_checkpoint(settings)
    if settings["resume"] and settings["batch_size"]:
        _keep_batch_size(comm, settings)

    sets = data.load_sets(
        settings["data"],
        comm,
        test=settings["test_data"],
        valid=validation(settings),
        distribute=settings["distribute"],
        shuffle=settings["shuffle"] or ("local" if settings["optimizer_name"] == "average" else None),
        test_fraction=settings["test_fraction"],
        seed=settings["seed"],
    )
    model = make_model(settings, sets.train.labels)
    optimizer = make_optimizer(settings)
    rows = sets.train.rows if optimizer.full_batch else batch_size(settings, comm.size)
    if settings["verbose"] and comm.rank == 0:
        describe(model, sets.train, settings)
    result = fit(
        model,
        sets.train,
        comm,
        test=sets.test,
        valid=sets.valid,
        optimizer=optimizer,
        schedule=make_schedule(settings, data.steps_per_epoch(sets.train, rows)),
        clip_norm=settings["clip_norm"],
        epochs=epochs(settings),
        global_batch_size=rows,
        l2=settings["l2"],
        seed=settings["seed"],
        allreduce=settings["allreduce"],
        tol=settings["tol"],
        metric=settings["metric"] or "loss",
        patience=settings["patience"],
        checkpoint=checkpoint,
        callbacks=make_callbacks(settings, sets.train.dataset, comm.rank, comm.size),
    )
    if result.status == "interrupted":
        return INTERRUPTED
    if result.status != "completed":
        raise ConfigError(
            f"training {result.status} in epoch {result.epochs}: the {result.stop_reason};"
            f" lower --lr (now {optimizer.lr:g}) or scale the features"
        )
    if comm.rank == 0 and not settings["quiet"] and not settings["as_json"]:
        print(summary(result, comm.size, settings["out"]), flush=True)
    return 0


def _keep_batch_size(comm: Any, settings: dict[str, Any]) -> None:
    """Rows per rank were meant for the ranks that began: the rows of a step stay what they were then."""
    from ..train.checkpoint import stored_batch_size

    stored = stored_batch_size(checkpoints(settings), comm)
    if stored is not None:
        settings |= {"batch_size": None, "global_batch_size": stored}


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
