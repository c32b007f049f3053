"""``distai-mpi predict``: a trained model's answers for new rows."""

from __future__ import annotations

from typing import Any

import click

from ..comm import launch


@click.command()
@click.argument("model_path", metavar="MODEL")
@click.option(
    "--data",
    required=True,
    help="Features: X.npy, FILE.npz or HDF5 with x or x_test, IDX, a table, libsvm text, or mnist (its test images).",
)
@click.option("--label", metavar="COLUMN", help="Of a table that holds labels too: their column, which is left out.")
@click.option("--weight", metavar="COLUMN", help="Likewise the weights of the rows.")
@click.option(
    "--out", metavar="FILE.npy", required=True, help="Where the predictions go: labels, or values of a linear model."
)
def command(model_path: str, data: str, label: str | None, weight: str | None, out: str) -> None:
    """Write what MODEL, a model.npz or the folder that holds it, predicts for each row; spread over the ranks."""
    from ..comm import Communicator

    with Communicator(launch.world()) as comm:
        predict(comm, model_path, data, label, weight, out)


def predict(comm: Any, model_path: str, name: str, label: str | None, weight: str | None, out: str) -> None:
    """Load, predict and write; collective."""
    import numpy as np

    from .. import data
    from ..files import check_writable, write_whole
    from ..train.evaluation import make_loader
    from .evaluate import check_features, load_model, scaled

    with comm.agreed():
        if comm.rank == 0:
            check_writable(out)
    model, w, extra = load_model(comm, model_path)
    options = {"dtype": model.dtype, "features": model.widths[0], "base": extra.get("base", 1)}
    share = data.load_features(name, comm, label=label, weight=weight, **options)
    check_features(name, share, model)
    share = scaled(share, extra)
    parts = [model.predict(w, batch.x) for batch in make_loader(model, share, comm).sequential()]
    mine = np.concatenate(parts) if parts else np.empty(0, model.target_dtype)
    if extra.get("plus_minus") and model.loss_function.name == "logistic":
        mine = 2 * mine - 1  # the labels that it was trained on
    predicted = np.empty(share.rows if comm.rank == 0 else 0, mine.dtype)
    comm.gatherv(mine, share.counts, predicted if comm.rank == 0 else None)
    with comm.agreed():
        if comm.rank == 0:
            write_whole(out, lambda file: np.save(file, predicted))
    if comm.rank == 0:
        print(f"{share.rows:,} predictions → {out}", flush=True)
