"""``distai-mpi evaluate``: how good a trained model is on data."""

from __future__ import annotations

import json
import os
from typing import Any

import click

from ..comm import launch
from ..errors import DataError

# options of `data.load`, and what they are called in a model
SPLIT = {"test": "test_data", "test_fraction": "test_fraction", "valid": "valid", "seed": "seed"}


@click.command()
@click.argument("model_path", metavar="MODEL")
@click.option(
    "--data",
    help="mnist, FILE.npz, X.npy,Y.npy, IDX files IMAGES,LABELS, or a CSV, libsvm, HDF5 or Parquet file."
    "  [default: what the model was trained on]",
)
@click.option("--label", metavar="COLUMN", help="Of a table, as in train.  [default: as the model was trained]")
@click.option("--weight", metavar="COLUMN", help="Likewise the weights of the rows.")
@click.option(
    "--rows", type=click.Choice(["test", "train"]), help="Which rows.  [default: the test set where the data has one]"
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
def command(
    model_path: str, data: str | None, label: str | None, weight: str | None, rows: str | None, as_json: bool
) -> None:
    """Loss and accuracy of MODEL, a model.npz or the folder that holds it; the work is spread over the ranks."""
    from ..comm import Communicator

    with Communicator(launch.world()) as comm:
        evaluate(comm, model_path, data, label, weight, rows, as_json)


def evaluate(
    comm: Any, model_path: str, name: str | None, label: str | None, weight: str | None, rows: str | None, as_json: bool
) -> None:
    """Load, evaluate and print; collective."""
    from .. import data
    from ..train.evaluation import evaluate as evaluate_rows
    from ..train.evaluation import make_loader
    from ..train.progress import figure

    model, w, extra = load_model(comm, model_path)
    if name is None and not extra.get("data"):
        raise DataError(f"{model_path}: the model does not tell what it was trained on; give --data")
    if name is None:
        name = extra["data"]
        split = {key: extra[kept] for key, kept in SPLIT.items() if kept in extra}
    else:
        split = {"test_fraction": 0}
        extra = extra | {"weight": None}  # which the other rows may not have
    training, test = data.load(
        name,
        comm,
        label=label or extra.get("label"),
        weight=weight or extra.get("weight"),
        columns_optional=label is None and weight is None,
        dtype=model.dtype,
        features=model.widths[0],
        base=extra.get("base", 1),
        **split,
    )
    if rows == "test" and test is None:
        raise DataError(f"{name}: there is no test set; use --rows train for the rows that are there")
    share, which = (training, "train") if test is None or rows == "train" else (test, "test")
    check_features(name, share, model)
    model.check_data(share.labels)
    share = scaled(share, extra)
    result = evaluate_rows(model, w, make_loader(model, share, comm), comm, every_metric=True)
    if comm.rank != 0:
        return
    if as_json:
        fields = {"data": name, "rows": which, "count": share.rows, "loss": result.loss, "accuracy": result.accuracy}
        print(json.dumps(fields | {"metrics": result.metrics}), flush=True)
        return
    parts = [f"{name}: {share.rows:,} {which} rows"]
    if result.loss is not None:
        parts.append(f"loss {figure(result.loss)}")
    if result.accuracy is not None:
        parts.append(f"accuracy {100 * result.accuracy:.2f} %")
    others = {key: value for key, value in result.metrics.items() if key not in ("accuracy", "log_loss")}
    parts += [f"{key} {figure(value)}" for key, value in others.items() if value is not None]
    print("  ".join(parts), flush=True)


def load_model(comm: Any, path: str) -> tuple[Any, Any, dict[str, Any]]:
    """The model in a file, or in the folder that ``--out`` named, read by every rank; errors are agreed."""
    from .. import models

    with comm.agreed():
        file = os.path.join(path, "model.npz") if os.path.isdir(path) else path
        loaded = models.load_model(file)
    return loaded


def check_features(name: str, share: Any, model: Any) -> None:
    """Raise `DataError` unless rows have as many features as ``model`` takes; one or two more may be other columns."""
    more = share.features - model.widths[0]
    if more:
        advice = "; in a table, name the column of the labels with --label, and that of weights with --weight"
        raise DataError(
            f"{name}: rows have {share.features} features, but the model takes {model.widths[0]}"
            f"{advice if more in (1, 2) else ''}"
        )


def scaled(share: Any, extra: dict[str, Any]) -> Any:
    """``share`` with bytes among its features scaled, and all standardized, as in training."""
    from dataclasses import replace

    from ..data import Standard

    scale = extra.get("byte_scale")
    if scale is not None and share.dataset.x.dtype == "uint8":  # whatever the shape they come in
        share = replace(share, dataset=replace(share.dataset, scale=scale))
    if "mean" in extra:
        standard = Standard(extra["mean"], extra["deviation"])
        share = replace(share, dataset=replace(share.dataset, standard=standard))
    return share
