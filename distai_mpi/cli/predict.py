"""``distai-mpi predict``: a trained model's answers for new rows."""

from __future__ import annotations

from typing import Any

import click

from ..comm import launch
from .build import tell_notes
from .flags import COLUMNS, flags


@click.command()
@click.argument("model_path", metavar="MODEL")
@click.option(
    "--data",
    required=True,
    help="Features: X.npy, FILE.npz or HDF5 with x or x_test, IDX, a table, libsvm text, or mnist (its test images);"
    " or several files, a pattern in quotes, or a folder, whose rows are answered file by file.",
)
@flags(COLUMNS)
@click.option(
    "--out", metavar="FILE.npy", required=True, help="Where the predictions go: labels, or values of a linear model."
)
def command(model_path: str, data: str, out: str, **columns: Any) -> None:
    """Write what MODEL, a model.npz or the folder that holds it, predicts for each row; spread over the ranks.

    Tables are read as in training: what flags do not say is kept with the model.  Where columns have names, features
    are found by them, in any order; else --label and --weight name columns that are left out.
    """
    from ..comm import Communicator

    with Communicator(launch.world()) as comm:
        predict(comm, model_path, data, columns, out)


def predict(comm: Any, model_path: str, name: str, columns: dict[str, Any], out: str) -> None:
    """Load, predict and write; collective."""
    import numpy as np

    from .. import data
    from ..files import check_writable, write_whole
    from ..train.evaluation import make_loader
    from .evaluate import as_trained, check_features, classes_of, load_model, scaled, told_as_of_training

    with comm.agreed():
        if comm.rank == 0:
            check_writable(out)
    model, w, extra = load_model(comm, model_path)
    options = as_trained(extra | {"label": None, "weight": None}, columns, model)
    if "fill" not in options:  # every row gets a prediction: none is dropped
        options["missing"] = "refuse"
    with told_as_of_training():
        share = data.load_features(name, comm, **options)
    check_features(name, share, model)
    share = scaled(share, extra)
    parts = [model.predict(w, batch.x) for batch in make_loader(model, share, comm).sequential()]
    mine = np.concatenate(parts) if parts else np.empty(0, model.target_dtype)
    predicted = np.empty(share.rows if comm.rank == 0 else 0, mine.dtype)
    comm.gatherv(mine, share.counts, predicted if comm.rank == 0 else None)
    with comm.agreed():
        if comm.rank == 0:
            classes = classes_of(extra)
            answers = predicted if classes is None else as_labels(predicted, classes)
            write_whole(out, lambda file: np.save(file, answers))
    if comm.rank == 0:
        tell_notes(share)
        print(f"{share.rows:,} predictions → {out}", flush=True)


def as_labels(codes: Any, classes: list[Any]) -> Any:
    """The labels of ``classes`` for ``codes``, shape (rows,): int64, float64, or words."""
    import numpy as np

    labels = np.array(classes)
    if labels.dtype.kind == "f" and (labels == labels.round()).all():
        labels = labels.astype(np.int64)
    return labels[codes]
