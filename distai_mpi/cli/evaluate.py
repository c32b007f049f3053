"""``distai-mpi evaluate``: how good a trained model is on data."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from ..comm import launch
from ..errors import DataError
from .build import tell_notes
from .flags import COLUMNS, flags

# options of `data.load`, and what they are called in a model
SPLIT = {"lines": "lines", "test": "test_data", "test_fraction": "test_fraction", "valid": "valid", "seed": "seed"}


TRAINING_FLAGS = ("--missing", "--dates", "--dtype")  # which ways out of errors name


@click.command()
@click.argument("model_path", metavar="MODEL")
@click.option(
    "--data",
    help="As in train: a file, several, a pattern, or a folder.  [default: what the model was trained on]",
)
@flags(COLUMNS)
@click.option(
    "--rows", type=click.Choice(["test", "train"]), help="Which rows.  [default: the test set where the data has one]"
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
def command(model_path: str, data: str | None, rows: str | None, as_json: bool, **columns: Any) -> None:
    """Loss and accuracy of MODEL, a model.npz or the folder that holds it; the work is spread over the ranks.

    Tables are read as in training: what flags do not say is kept with the model.  Where columns have names, features
    and labels are found by them, in any order.
    """
    from ..comm import Communicator

    with Communicator(launch.world()) as comm:
        evaluate(comm, model_path, data, columns, rows, as_json)


def evaluate(
    comm: Any, model_path: str, name: str | None, columns: dict[str, Any], rows: str | None, as_json: bool
) -> None:
    """Load, evaluate and print; collective."""
    from .. import data
    from ..predictor import as_trained, check_features, classes_of, scaled
    from ..train.checks import check_range
    from ..train.evaluation import evaluate as evaluate_rows
    from ..train.evaluation import make_loader

    model, w, extra = load_model(comm, model_path)
    if name is None and not extra.get("data"):
        raise DataError(f"{model_path}: the model does not tell what it was trained on; give --data")
    if extra.get("node_features") and name is not None:
        raise DataError(
            f"{model_path}: is a model of the nodes of a graph: leave --data out, to take those of training"
        )
    if name is None:
        name = extra["data"]
        split = {key: extra[kept] for key, kept in SPLIT.items() if kept in extra}
    else:
        split = {"test_fraction": 0, "unlabelled": True}
        extra = extra | {"weight": None}  # which the other rows may not have
    options = as_trained(extra, columns, model)
    optional = columns["label"] is None and columns["weight"] is None
    with told_as_of_training():
        if extra.get("node_features"):
            training, test = nodes_as_trained(extra, comm)
        else:
            training, test = data.load(name, comm, optional=optional, **(split | options))
    if rows == "test" and test is None:
        raise DataError(f"{name}: there is no test set; use --rows train for the rows that are there")
    shard, which = (training, "train") if test is None or rows == "train" else (test, "test")
    check_features(name, shard, model)
    classes = classes_of(extra)
    if classes is not None:
        shard = data.encode(shard, classes, comm, "the model was not trained on")
    shard = scaled(shard, extra)
    with told_as_of_training():
        check_range(model, shard, which, comm)
    result = evaluate_rows(model, w, make_loader(model, shard, comm), comm, every_metric=True)
    if comm.rank == 0:
        tell_notes(shard)
        show(name, which, shard.rows, result, as_json)


def show(name: str, which: str, rows: int, result: Any, as_json: bool) -> None:
    """Print the result of ``rows`` rows."""
    from ..train.progress import figure

    if as_json:
        fields = {"data": name, "rows": which, "count": rows, "loss": result.loss, "accuracy": result.accuracy}
        print(json.dumps(fields | {"metrics": result.metrics}), flush=True)
        return
    parts = [f"{name}: {rows:,} {which} rows"]
    if result.loss is not None:
        parts.append(f"loss {figure(result.loss)}")
    if result.accuracy is not None:
        parts.append(f"accuracy {100 * result.accuracy:.2f} %")
    others = {key: value for key, value in result.metrics.items() if key not in ("accuracy", "log_loss")}
    parts += [f"{key} {figure(value)}" for key, value in others.items() if value is not None]
    print("  ".join(parts), flush=True)


def nodes_as_trained(kept: dict[str, Any], comm: Any) -> tuple[Any, Any]:
    """The training and the test nodes of the model that keeps ``kept``; collective."""
    from ..graphs import NodeFeatures, node_sets

    sets = node_sets(
        kept["data"],
        kept["node_labels"],
        comm,
        features=NodeFeatures(kept["node_features"], kept["directed"]),
        test_fraction=kept["test_fraction"],
        valid_fraction=kept["valid"] or 0.0,
        seed=kept["seed"],
    )
    return sets.train, sets.test


@contextmanager
def told_as_of_training() -> Iterator[None]:
    """Errors about rows say of flags which only ``train`` has that they belong there."""
    try:
        yield
    except DataError as error:
        flags = [flag for flag in TRAINING_FLAGS if flag in str(error)]
        if not flags:
            raise
        kept = f"{' and '.join(flags)} {'is a flag' if len(flags) == 1 else 'are flags'} of train"
        raise DataError(f"{error} ({kept}: what was said there is kept with the model)") from None


def load_model(comm: Any, path: str) -> tuple[Any, Any, dict[str, Any]]:
    """The model in a file, or in the folder that ``--out`` named, read by every rank; errors are agreed."""
    from .. import models

    with comm.agreed():
        file = os.path.join(path, "model.npz") if os.path.isdir(path) else path
        loaded = models.load_model(file)
    return loaded
