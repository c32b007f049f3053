"""The flags of ``distai-mpi train``, by what they are about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from ..choices import DATES, METRICS, MISSING, MODELS
from .config import read_config

Option = Callable[[Callable[..., Any]], Callable[..., Any]]

OPTIMIZERS = ("gd", "sgd", "momentum", "nesterov", "adam", "adamw", "average", "lbfgs", "newton-cg", "newton", "auto")
SEARCHING = ("lbfgs", "newton-cg", "newton", "auto")  # these find the length of steps, and when to stop
FULL_BATCH = ("gd", *SEARCHING)  # these take all rows in every step
SCHEDULES = ("constant", "step", "cosine")
ALGORITHMS = ("auto", "native", "ring", "tree", "recursive_doubling", "rabenseifner", "shared", "hierarchical")


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


class Shards(click.ParamType):
    """``even``, ``speed``, or weights of the ranks such as ``3,1,1``."""

    name = "even|speed|W,W,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in ("even", "speed") or isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is none of even, speed, and weights of the ranks such as 3,1,1", param, ctx)


POSITIVE = click.IntRange(min=1)
FRACTION = click.FloatRange(0, 1, max_open=True)


COLUMNS: Sequence[Option] = (
    click.option(
        "--label", metavar="COLUMN", help="Of a CSV or Parquet table: name, or number from 0.  [default: the last]"
    ),
    click.option("--weight", metavar="COLUMN", help="Of such a table: weights of the rows.  [default: none]"),
    click.option(
        "--columns",
        metavar="COLUMNS",
        help="Of such a table: which columns are features, by names, patterns such as 'x*', numbers and ranges such as "
        "3-7, with commas between them.  [default: all that are nothing else]",
    ),
    click.option("--drop", metavar="COLUMNS", help="Columns that are left out, named likewise."),
    click.option(
        "--header/--no-header", default=None, help="Whether text begins with a line of names.  [default: as it looks]"
    ),
    click.option(
        "--day-first/--month-first",
        default=None,
        help="How dates as 1/2/2020 are read in CSV.  [default: as the values of the column tell]",
    ),
    click.option(
        "--lines",
        metavar="FIRST-LAST",
        help="Of text: the lines that hold the table, from 1, as in 18-55, or 18- for all behind.  [default: all]",
    ),
    click.option("--format", type=click.Choice(["csv", "libsvm"]), help="Of text.  [default: as its first lines look]"),
    click.option("--features", metavar="VAR", help="Of HDF5, netCDF and MATLAB files: the variable of the features."),
    click.option("--transpose", is_flag=True, help="Such a variable holds a row of the data in each of its columns."),
)
DATA: Sequence[Option] = (
    click.option(
        "--data",
        default="mnist",
        show_default=True,
        help="mnist, FILE.npz, X.npy,Y.npy, IDX files IMAGES,LABELS, or a CSV, libsvm, HDF5 or Parquet file; or several"
        " of these: A.csv,B.csv, a pattern in quotes such as 'part-*.csv', or a folder of them.",
    ),
    click.option("--test-data", help="Rows to test on, in the same forms."),
    *COLUMNS,
    click.option(
        "--missing",
        type=click.Choice(MISSING),
        default="refuse",
        show_default=True,
        help="Values that are not there (empty fields, NaN, nulls, fill values): refuse them, put the mean or median "
        "of the training rows in their place, or drop the row.",
    ),
    click.option(
        "--missing-indicator",
        is_flag=True,
        help="With mean or median: one more feature, 0 or 1, beside each that has missing values in training.",
    ),
    click.option(
        "--dates",
        type=click.Choice(DATES),
        default="refuse",
        show_default=True,
        help="Dates and timestamps among the features: as seconds since 1970, or as parts of the calendar.",
    ),
    click.option(
        "--test-fraction",
        type=FRACTION,
        default=0.1,
        show_default=True,
        help="Rows held back for testing where the data has no test set.",
    ),
    click.option(
        "--valid",
        metavar="FRACTION|DATA",
        help="Rows to watch while training, the share of the training rows held back for it or data of its own: "
        "the parameters that are best on them are kept.",
    ),
    click.option(
        "--distribute",
        type=click.Choice(["scatter", "read"]),
        help="Rank 0 reads and scatters rows, or each rank reads its own.  [default: read where the format allows]",
    ),
    click.option(
        "--shuffle",
        type=click.Choice(["global", "local"]),
        help="Over all rows, or each rank its own.  [default: global while the data fits a quarter of the memory]",
    ),
    click.option(
        "--standardize", is_flag=True, help="Give features mean 0 and deviation 1, by those of the training rows."
    ),
    click.option(
        "--shards",
        type=Shards(),
        default="even",
        show_default=True,
        help="Rows of each rank, of the data and of every global batch: the same, by measured speed, or by weights.",
    ),
)
MODEL: Sequence[Option] = (
    click.option("--model", "model_name", type=click.Choice(MODELS), default="mlp", show_default=True),
    click.option("--hidden", type=Widths(), help="Widths of an mlp's hidden layers.  [default: 128]"),
    click.option(
        "--activation", type=click.Choice(["relu", "tanh", "gelu"]), help="Of an mlp's hidden layers.  [default: relu]"
    ),
    click.option(
        "--dropout", type=FRACTION, help="Share of an mlp's hidden units dropped in training.  [default: 0.2]"
    ),
    click.option("--bias/--no-bias", default=True, show_default=True, help="Whether layers have biases."),
    click.option(
        "--l2", type=click.FloatRange(0), default=0.0, show_default=True, help="Penalty ½·l2·‖w‖², biases excepted."
    ),
    click.option("--dtype", type=click.Choice(["float32", "float64"]), default="float32", show_default=True),
)
OPTIMIZER: Sequence[Option] = (
    click.option(
        "--optimizer",
        "optimizer_name",
        type=click.Choice(OPTIMIZERS),
        default="momentum",
        show_default=True,
        help="gd, lbfgs, newton-cg and newton are full-batch: every step sees all rows; the last three search for the "
        "length of their steps, and auto is the one of them that fits model, rows and ranks.  average: each rank takes "
        "steps of --inner-optimizer on its own rows, and now and then parameters are averaged.",
    ),
    click.option(
        "--lr",
        type=click.FloatRange(0, min_open=True),
        help="Learning rate.  [default: 0.001 for adam and adamw, 0.12 for momentum and nesterov, else 0.1]",
    ),
    click.option("--momentum", type=FRACTION, help="Of momentum and nesterov.  [default: 0.9]"),
    click.option(
        "--weight-decay", type=click.FloatRange(0), help="Decoupled decay of adamw, biases excepted.  [default: 0.01]"
    ),
    click.option("--schedule", type=click.Choice(SCHEDULES), help="Of the learning rate.  [default: constant]"),
    click.option("--warmup", type=click.IntRange(min=0), help="Steps over which the learning rate rises first."),
    click.option("--decay-every", type=POSITIVE, help="Epochs after which schedule step lowers the rate, each time."),
    click.option(
        "--decay-factor",
        type=click.FloatRange(0, 1, min_open=True),
        help="What schedule step multiplies the rate by.  [default: 0.1]",
    ),
    click.option(
        "--lr-floor",
        type=click.FloatRange(0, 1),
        help="Share of the rate that schedule cosine ends with.  [default: 0]",
    ),
    click.option(
        "--clip-norm", type=click.FloatRange(0, min_open=True), help="Scale gradients of a larger norm down to this."
    ),
    click.option(
        "--inner-optimizer",
        type=click.Choice([name for name in OPTIMIZERS if name not in ("average", *FULL_BATCH)]),
        help="What average takes on each rank.  [default: sgd]",
    ),
    click.option("--sync-every", type=POSITIVE, help="Steps of average between two averages.  [default: 10]"),
    click.option(
        "--inner-state",
        type=click.Choice(["keep", "reset"]),
        help="What average does with the inner optimizer's state at an average.  [default: keep]",
    ),
    click.option(
        "--outer-lr", type=click.FloatRange(0, min_open=True), help="Rate of average's outer step.  [default: 1]"
    ),
    click.option("--outer-momentum", type=FRACTION, help="Nesterov momentum of average's outer step.  [default: 0]"),
    click.option("--global-batch-size", type=POSITIVE, help="Rows of a step, over all ranks.  [default: 256]"),
    click.option("--batch-size", type=POSITIVE, help="Rows of a step, per rank."),
    click.option("--epochs", type=POSITIVE, help="Passes over the training rows.  [default: 5]"),
    click.option(
        "--metric", type=click.Choice(list(METRICS)), help="What is best on the validation rows.  [default: loss]"
    ),
    click.option(
        "--patience", type=POSITIVE, help="Stop after so many epochs without a better metric.  [default: never]"
    ),
    click.option(
        "--memory",
        type=POSITIVE,
        help="Last iterations whose step and change of the gradient lbfgs keeps: two vectors each.  [default: 10]",
    ),
    click.option(
        "--sample",
        type=click.IntRange(min=0),
        metavar="ROWS",
        help="Size of the sample of rows whose solution lbfgs, newton-cg and newton start from, and whose curvature "
        "preconditions the first two: for linear, logistic and softmax of up to 1,024 parameters, unless vectors lie "
        "in slices.  0: no sample.  [default: 50 rows per parameter, at most 1/8 of the rows]",
    ),
    click.option(
        "--max-iter",
        type=POSITIVE,
        help="Iterations that full-batch methods make at most.  [default: 100, of gd as --epochs]",
    ),
    click.option(
        "--tol",
        type=click.FloatRange(0, min_open=True),
        help="Stop full-batch methods when the gradient is at most this share: for linear models in the norm of the "
        "inverse Hessian, of √(2 · objective), which leaves a gap to the optimum of about this squared; for nets and "
        "gd in the Euclidean norm, of the gradient at the start.  [default: 1e-5, of gd off]",
    ),
    click.option(
        "--min-decrease",
        type=click.FloatRange(0, min_open=True),
        help="Stop full-batch methods when an iteration lowers the objective by less than this share of it.  "
        "[default: off]",
    ),
)
RUN: Sequence[Option] = (
    click.option(
        "--config",
        metavar="FILE.toml",
        is_eager=True,
        expose_value=False,
        callback=read_config,
        help="Values of flags, by their names; flags on the command line win.",
    ),
    click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True),
    click.option(
        "--allreduce",
        type=click.Choice(ALGORITHMS),
        default="auto",
        show_default=True,
        help="How gradients are exchanged; auto measures what is fastest here, once for each kind of job.",
    ),
    click.option(
        "--factors/--no-factors",
        default=None,
        help="Exchange the factors that gradients of dense layers are made of.  [default: where they are shorter]",
    ),
    click.option(
        "--wire",
        type=click.Choice(["float32", "float16"]),
        default="float32",
        show_default=True,
        help="How numbers travel between nodes: float16 halves the bytes, and rounds gradients and updates.",
    ),
    click.option(
        "--early/--no-early",
        default=None,
        help="Send layers' gradients to other nodes during the backward pass already.  [default: where that is faster]",
    ),
    click.option(
        "--device",
        type=click.Choice(["cpu", "gpu", "auto"]),
        default="cpu",
        show_default=True,
        help="auto: a GPU for each rank, where CuPy is installed and sees one on every rank; else the CPU.",
    ),
    click.option("--out", metavar="DIR", help="Where metrics.jsonl, result.json and model.npz go.  [default: nowhere]"),
    click.option(
        "--spare",
        metavar="DIR",
        help="Takes these files where --out cannot, as on a full disk, in the end.  [default: nowhere]",
    ),
    click.option(
        "--checkpoint-every",
        metavar="N|TIME",
        help="Save the run in DIR/checkpoints every N epochs or, as 30s, 10min or 1h, so often.  SIGUSR1 and SIGTERM "
        "save it too, and end it with exit status 75; but mpiexec kills its ranks 0.2 s after Ctrl-C or SIGTERM: "
        "send it SIGUSR1.",
    ),
    click.option(
        "--keep-checkpoints", type=POSITIVE, default=2, show_default=True, help="How many of the newest are kept."
    ),
    click.option(
        "--resume",
        is_flag=True,
        help="Go on from the newest checkpoint in DIR; without one, start from the beginning.  Where this run was "
        "completed before, end at once with its result.",
    ),
    click.option(
        "--trace",
        metavar="FILE.json[.gz]",
        help="Write what each rank does when, for ui.perfetto.dev or chrome://tracing; the sums go to result.json.",
    ),
    click.option(
        "--watch",
        type=click.FloatRange(0),
        metavar="SECONDS",
        help="End the job, with exit status 76 and every rank's stack, when ranks have waited so long for one that "
        "does not come; 30 s at most for one that is stopped.  0: wait for ever.  [default: 600]",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the fields of result.json as the last line."),
    click.option("-q", "--quiet", is_flag=True, help="Print errors and warnings only."),
    click.option("-v", "--verbose", is_flag=True, help="Print settings, every rank's share and the exchange."),
)


def flags(*groups: Sequence[Option]) -> Option:
    """A decorator that gives a command the flags of ``groups``, in this order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed([option for group in groups for option in group]):
            command = option(command)
        return command

    return decorate
