"""``distai-mpi predict``: a trained model's answers for new rows."""

from __future__ import annotations

from typing import Any

import click

from ..comm import launch
from ..errors import DataError


@click.command()
@click.argument("model_path", metavar="MODEL")
@click.option(
    "--data", required=True, help="Features: X.npy, FILE.npz with x or x_test, an IDX file, or mnist (its test images)."
)
@click.option(
    "--out", metavar="FILE.npy", required=True, help="Where the predictions go: labels, or values of a linear model."
)
def command(model_path: str, data: str, out: str) -> None:
    """Write what MODEL, a model.npz or the folder that holds it, predicts for each row; spread over the ranks."""
    from ..comm import Communicator

    with Communicator(launch.world()) as comm:
        predict(comm, model_path, data, out)


def predict(comm: Any, model_path: str, name: str, out: str) -> None:
    """Load, predict and write; collective."""
    import numpy as np

    from .. import data
    from ..files import check_writable, write_whole
    from ..train.evaluation import make_loader
    from .evaluate import load_model, scaled

    with comm.agreed():
        if comm.rank == 0:
            check_writable(out)
    model, w, extra = load_model(comm, model_path)
    share = data.load_features(name, comm)
    if share.features != model.widths[0]:
        raise DataError(f"{name}: rows have {share.features} features, but the model takes {model.widths[0]}")
    share = scaled(share, extra)
    parts = [model.predict(w, batch.x) for batch in make_loader(model, share, comm).sequential()]
    mine = np.concatenate(parts) if parts else np.empty(0, model.target_dtype)
    predicted = np.empty(share.rows if comm.rank == 0 else 0, mine.dtype)
    comm.gatherv(mine, share.counts, predicted if comm.rank == 0 else None)
    with comm.agreed():
        if comm.rank == 0:
            write_whole(out, lambda file: np.save(file, predicted))
    if comm.rank == 0:
        print(f"{share.rows:,} predictions → {out}", flush=True)
