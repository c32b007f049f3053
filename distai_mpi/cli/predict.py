"""``distai-mpi predict``: a trained model's answers for new rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, BinaryIO

import click

from ..comm import launch
from ..errors import ConfigError
from ..messages import tell
from .evaluate import told_as_of_training
from .flags import COLUMNS, flag_of, flags

SUFFIXES = (".npy", ".csv")
DATA = (
    "Features: X.npy, FILE.npz or HDF5 with x or x_test, IDX, a table, libsvm text, or mnist (its test images);"
    " or several files, a pattern in quotes, or a folder, whose rows are answered file by file."
)


@click.command()
@click.argument("model_path", metavar="RUN")
@click.argument("rows", metavar="[DATA]", required=False)
@click.option("--data", help=DATA + "  The same as DATA.")
@flags(COLUMNS)
@click.option("--proba", is_flag=True, help="Write probabilities of the classes, in the order of their labels.")
@click.option("--decision", is_flag=True, help="Write margins or logits.")
@click.option("--node-labels", metavar="FILE", help="Of a graph, DATA being its edges: labels of nodes, as in train.")
@click.option(
    "--correct-and-smooth",
    is_flag=True,
    help="Of a graph: correct the answers by the labels of other nodes, and smooth them over the edges.",
)
@click.option("--out", metavar="FILE.npy|FILE.csv", required=True, help="Where the predictions go.")
def command(
    model_path: str,
    rows: str | None,
    data: str | None,
    proba: bool,
    decision: bool,
    node_labels: str | None,
    correct_and_smooth: bool,
    out: str,
    **columns: Any,
) -> None:
    """Write what RUN, a folder of train --out or its model.npz, predicts for each row of DATA: labels, or values.

    Tables are read as in training: what flags do not say is kept with the model.  Where columns have names, features
    are found by them, in any order; else --label and --weight name columns that are left out.  Rows are read and
    answered block by block, without MPI; under a launcher one rank does it all.

    Of a model of the nodes of a graph (train --node-labels) the answers are those of nodes 0, 1, ...: DATA is the
    edges, and all ranks take part.
    """
    if (rows is None) == (data is None):
        raise click.UsageError("name the rows once: distai-mpi predict RUN DATA --out FILE")
    if proba and decision:
        raise ConfigError("--proba and --decision exclude each other: one file holds one kind of answers")
    if not out.endswith(SUFFIXES):
        raise ConfigError(f"--out {out}: predictions are written to FILE.npy or FILE.csv")
    if correct_and_smooth and node_labels is None:
        raise ConfigError("--correct-and-smooth needs --node-labels: labels that are known correct the other answers")
    how = "predict_proba" if proba else "decision_function" if decision else "predict"
    if node_labels is not None:
        for name, value in columns.items():
            if value:
                raise ConfigError(f"{flag_of(name)} says how rows are read, but with --node-labels rows are nodes")
        from .nodes import predict_nodes

        write = partial(write_nodes, out)
        predict_nodes(model_path, rows or data or "", node_labels, how, correct_and_smooth, write)
    elif launch.launcher().rank == 0:
        predict(model_path, rows or data or "", columns, how, out)


def predict(path: str, name: str, columns: dict[str, Any], how: str, out: str) -> None:
    """Read, predict and write, in this process alone."""
    from ..files import check_writable, write_whole
    from ..predictor import load

    check_writable(out)
    predictor = load(path)
    if predictor.kept.get("node_features"):
        raise ConfigError(f"{path}: is a model of the nodes of a graph: give --node-labels beside the edges")
    count, notes = 0, tuple[str, ...]()

    def answers() -> Iterator[Any]:
        nonlocal count, notes
        for values, notes in predictor.blocks(name, how, **columns):  # noqa: B007 - those of the last block are told
            count += len(values)
            yield values

    heads = {"predict": ["label"], "predict_proba": predictor.classes, "decision_function": predictor.classes}[how]
    with told_as_of_training():
        if out.endswith(".npy"):
            write_whole(out, lambda file: write_npy(file, answers()))
        else:
            write_whole(out, lambda file: write_csv(file, answers(), heads))
    for note in notes:
        tell(note)
    print(f"{count:,} predictions → {out}", flush=True)


def write_nodes(out: str, blocks: Any, heads: Any) -> None:
    """Write all ``blocks`` of answers to ``out``; None: raise a ConfigError if that cannot be done."""
    from ..files import check_writable, write_whole

    if blocks is None:
        check_writable(out)
        return
    if out.endswith(".npy"):
        write_whole(out, lambda file: write_npy(file, blocks))
    else:
        write_whole(out, lambda file: write_csv(file, blocks, heads))
    print(f"{sum(map(len, blocks)):,} predictions → {out}", flush=True)


def write_npy(file: BinaryIO, blocks: Iterable[Any]) -> None:
    """Write ``blocks``, of shape (rows, ...), as one array; its length is put into the header at the end.

    NumPy leaves room for it there.
    """
    from numpy.lib import format as npy

    rows, header = 0, dict[str, Any]()
    for block in blocks:
        if not header:
            header = {"descr": npy.dtype_to_descr(block.dtype), "fortran_order": False, "shape": (0, *block.shape[1:])}
            npy.write_array_header_1_0(file, header)
        file.write(block.tobytes())
        rows += len(block)
    file.seek(0)
    npy.write_array_header_1_0(file, header | {"shape": (rows, *header["shape"][1:])})


def write_csv(file: BinaryIO, blocks: Iterable[Any], heads: Any) -> None:
    """Write a line of names, and a line for each row of ``blocks``; numbers so that they are read as the same."""
    import csv
    import io

    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    writer, begun = csv.writer(text, lineterminator="\n"), False
    for block in blocks:
        table = block.reshape(len(block), -1)
        if not begun:
            writer.writerow(heads if heads is not None and len(heads) == table.shape[1] else ["value"])
            begun = True
        writer.writerows(table.tolist() if table.dtype.kind != "f" else ([str(v) for v in row] for row in table))
    text.detach()
