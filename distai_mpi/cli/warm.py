"""``distai-mpi info --warm``: kernels are compiled beforehand, by small runs of the usual kinds."""

from __future__ import annotations

import contextlib
import io
import os
import random
import tempfile
from collections.abc import Sequence

import click

from ..comm import launch
from ..compiling import compiling
from ..errors import ConfigError
from ..messages import tell

ROWS, FEATURES = 400, 8
SGD, NEWTON = ("momentum", "adam"), ("lbfgs", "auto")
MODELS = {"mlp": SGD, "softmax": (*SGD, "lbfgs"), "logistic": (*SGD, *NEWTON), "linear": (*SGD, *NEWTON)}


def cases(folder: str) -> list[list[str]]:
    """Flags of the runs, on files in ``folder``: models by optimizers in both dtypes, and each format of text."""
    runs = [
        ["--model", model, "--optimizer", optimizer, "--dtype", dtype, "--data", os.path.join(folder, "rows.csv")]
        for dtype in ("float32", "float64")
        for model, optimizers in MODELS.items()
        for optimizer in optimizers
    ]
    svm = ["--model", "logistic", "--data", os.path.join(folder, "rows.svm")]
    return [[], ["--model", "softmax", "--optimizer", "lbfgs"], svm, *runs]


def write_rows(folder: str) -> None:
    """Rows of two classes that overlap, as CSV and as libsvm text."""
    draw = random.Random(0)
    rows = [[f"{draw.gauss(0, 1):.6f}" for _ in range(FEATURES)] for _ in range(ROWS)]
    labels = [draw.randrange(2) for _ in rows]
    with open(os.path.join(folder, "rows.csv"), "w", encoding="ascii") as csv:
        csv.write(",".join(f"f{i}" for i in range(FEATURES)) + ",label\n")
        csv.writelines(f"{','.join(row)},{label}\n" for label, row in zip(labels, rows, strict=True))
    with open(os.path.join(folder, "rows.svm"), "w", encoding="ascii") as svm:
        for label, row in zip(labels, rows, strict=True):
            svm.write(f"{label} {' '.join(f'{i + 1}:{value}' for i, value in enumerate(row))}\n")


def warm(train: click.Command, runs: Sequence[Sequence[str]] | None = None) -> None:
    """Compile what the command ``train`` uses, and say how many kernels, where and how long it took.

    ``runs``: flags of the runs in place of `cases`.

    Raises:
        ConfigError: a launcher has started several processes.
    """
    if launch.launcher().size > 1:
        raise ConfigError(
            "--warm: one process compiles for all ranks of a machine: start it without mpiexec, or as one"
        )
    with tempfile.TemporaryDirectory() as folder:
        write_rows(folder)
        todo = cases(folder) if runs is None else list(runs)
        for number, flags in enumerate(todo, 1):
            whole = any(name in flags for name in ("lbfgs", "auto"))
            short = ["-q", *(["--max-iter", "2"] if whole else ["--epochs", "1"])]
            with contextlib.redirect_stdout(io.StringIO()):
                train.main([*flags, *short], standalone_mode=False)
            if number % 5 == 0:
                tell(f"{number} of {len(todo)} small runs done, {compiling.kernels} kernels compiled ...")
    where = f", kept in {os.path.dirname(compiling.folder)}" if compiling.folder else ""
    what = f"{compiling.kernels} kernels compiled in {compiling.seconds:.0f} s{where}"
    print(what if compiling.kernels else "all kernels were compiled before", flush=True)
