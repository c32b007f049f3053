"""``distai-mpi train``: from a data file to result.json."""

from __future__ import annotations

import os
from typing import Any

import click

from ..comm import launch
from ..errors import ConfigError

MODELS = ("linear", "logistic", "softmax", "mlp")
OPTIMIZERS = ("gd", "sgd", "momentum", "nesterov", "adam", "adamw")
ALGORITHMS = ("native", "ring", "tree", "recursive_doubling", "rabenseifner")


class Widths(click.ParamType):
    """Layer widths such as ``128,64``."""

    name = "N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            widths = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            widths = (0,)
        if min(widths) < 1:
            self.fail(f"{value!r} is not a list of layer widths; write for example 128,64", param, ctx)
        return widths


POSITIVE = click.IntRange(min=1)
FRACTION = click.FloatRange(0, 1, max_open=True)


@click.command()
@click.option(
    "--data", default="mnist", show_default=True, help="mnist, FILE.npz, X.npy,Y.npy or IDX files IMAGES,LABELS."
)
@click.option("--test-data", help="Rows to test on, in the same forms.")
@click.option(
    "--test-fraction",
    type=FRACTION,
    default=0.1,
    show_default=True,
    help="Rows held back for testing where the data has no test set.",
)
@click.option(
    "--distribute",
    type=click.Choice(["scatter", "read"]),
    help="Rank 0 reads and scatters rows, or each rank reads its own.  [default: read where the format allows]",
)
@click.option(
    "--shuffle",
    type=click.Choice(["global", "local"]),
    help="Over all rows, or each rank its own.  [default: global while the data fits a quarter of the memory]",
)
@click.option("--model", "model_name", type=click.Choice(MODELS), default="mlp", show_default=True)
@click.option("--hidden", type=Widths(), help="Widths of an mlp's hidden layers.  [default: 128]")
@click.option(
    "--activation", type=click.Choice(["relu", "tanh", "gelu"]), help="Of an mlp's hidden layers.  [default: relu]"
)
@click.option("--dropout", type=FRACTION, help="Share of an mlp's hidden units dropped in training.  [default: 0.2]")
@click.option("--bias/--no-bias", default=True, show_default=True, help="Whether layers have biases.")
@click.option("--optimizer", "optimizer_name", type=click.Choice(OPTIMIZERS), default="momentum", show_default=True)
@click.option(
    "--lr",
    type=click.FloatRange(0, min_open=True),
    help="Learning rate.  [default: 0.001 for adam and adamw, 0.12 for momentum and nesterov, else 0.1]",
)
@click.option("--momentum", type=FRACTION, help="Of momentum and nesterov.  [default: 0.9]")
@click.option(
    "--weight-decay", type=click.FloatRange(0), help="Decoupled decay of adamw, biases excepted.  [default: 0.01]"
)
@click.option("--global-batch-size", type=POSITIVE, help="Rows of a step, over all ranks.  [default: 256]")
@click.option("--batch-size", type=POSITIVE, help="Rows of a step, per rank.")
@click.option("--epochs", type=POSITIVE, default=5, show_default=True)
@click.option("--max-iter", type=POSITIVE, help="Iterations of gd, in place of epochs.")
@click.option(
    "--tol",
    type=click.FloatRange(0, min_open=True),
    help="Stop gd when the gradient's norm, relative to the first one, falls to this.",
)
@click.option(
    "--l2", type=click.FloatRange(0), default=0.0, show_default=True, help="Penalty ½·l2·‖w‖², biases excepted."
)
@click.option("--dtype", type=click.Choice(["float32", "float64"]), default="float32", show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--allreduce",
    type=click.Choice(ALGORITHMS),
    default="native",
    show_default=True,
    help="How gradients are exchanged.",
)
@click.option("--device", type=click.Choice(["cpu", "gpu", "auto"]), default="auto", show_default=True)
@click.option("--out", metavar="DIR", help="Where metrics.jsonl, result.json and model.npz go.  [default: nowhere]")
@click.option("--json", "as_json", is_flag=True, help="Print the fields of result.json as the last line.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.option("-v", "--verbose", is_flag=True, help="Print settings and every rank's share.")
def command(**settings: Any) -> None:
    """Train a model on all ranks; without flags, the MNIST MLP 784-128-10."""
    check_settings(settings)
    from ..comm import Communicator

    with Communicator(launch.world()) as comm:
        train(comm, settings)


def check_settings(settings: dict[str, Any]) -> None:
    """Refuse flags that do not go together, before MPI starts, alike on every rank."""
    model, optimizer = settings["model_name"], settings["optimizer_name"]
    for flag in ("hidden", "activation", "dropout"):
        if settings[flag] is not None and model != "mlp":
            raise ConfigError(f"--{flag} belongs to --model mlp, not {model}; leave it out")
    for flag, owners in (("momentum", ("momentum", "nesterov")), ("weight_decay", ("adamw",))):
        if settings[flag] is not None and optimizer not in owners:
            name = flag.replace("_", "-")
            raise ConfigError(f"--{name} belongs to --optimizer {' or '.join(owners)}, not {optimizer}; leave it out")
    for flag in ("max_iter", "tol"):
        if settings[flag] is not None and optimizer != "gd":
            raise ConfigError(f"--{flag.replace('_', '-')} belongs to --optimizer gd, not {optimizer}; use --epochs")
    if settings["out"] == "":
        raise ConfigError("--out is empty: name a folder, or leave it out to write nothing")
    if settings["quiet"] and settings["verbose"]:
        raise ConfigError("-q and -v exclude each other: give one")
    if settings["device"] == "gpu":
        raise ConfigError("--device gpu: this version trains on CPUs alone; use --device cpu or auto")
    if settings["global_batch_size"] and settings["batch_size"]:
        raise ConfigError("--global-batch-size and --batch-size exclude each other: give one")
    if optimizer == "gd" and (settings["global_batch_size"] or settings["batch_size"]):
        raise ConfigError("--optimizer gd takes all rows in every step: leave the batch size out")


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


def make_model(settings: dict[str, Any], labels: Any) -> Any:
    """The model that the flags describe, for data with these labels."""
    import numpy as np

    from .. import models

    options = {flag: settings[flag] for flag in ("hidden", "activation", "dropout") if settings[flag] is not None}
    dtype = np.dtype(settings["dtype"])
    return models.build(settings["model_name"], labels, bias=settings["bias"], dtype=dtype, **options)


def make_callbacks(settings: dict[str, Any], dataset: Any, rank: int) -> list[Any]:
    """What watches the run: files, and on rank 0 the bar or lines."""
    from ..train.progress import progress
    from ..train.report import ResultFiles, ResultLine

    callbacks: list[Any] = []
    fields = {"data": settings["data"], "model": settings["model_name"]}
    if settings["out"]:
        byte_scale = float(dataset.scale) if dataset.x.dtype == "uint8" else None
        kept = {
            "data": absolute(settings["data"]),
            "test_data": absolute(settings["test_data"]),
            "test_fraction": settings["test_fraction"],
            "seed": settings["seed"],
            "byte_scale": byte_scale,
        }
        callbacks.append(ResultFiles(settings["out"], fields, kept))
    if rank == 0 and not settings["quiet"]:
        callbacks.append(progress(launch.on_terminal()))
    if settings["as_json"]:
        callbacks.append(ResultLine(fields))
    return callbacks


def absolute(name: str | None) -> str | None:
    """The name of data as it is understood in any folder."""
    if name is None or name == "mnist":
        return name
    parts = [name] if os.path.exists(name) else name.split(",")
    return ",".join(os.path.abspath(part) for part in parts)


def make_optimizer(settings: dict[str, Any]) -> Any:
    """The optimizer that the flags describe."""
    from ..optim import OPTIMIZERS

    chosen = {name: settings[name] for name in ("lr", "momentum", "weight_decay") if settings[name] is not None}
    return OPTIMIZERS[settings["optimizer_name"]](**chosen)


def batch_size(settings: dict[str, Any], ranks: int) -> int:
    """Rows of a step over all ranks together."""
    if settings["batch_size"]:
        return settings["batch_size"] * ranks
    return settings["global_batch_size"] or 256


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
