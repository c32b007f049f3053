"""Every setting of ``distai-mpi train``: what it may be, its flag, and what ``--help`` says of it.

Classes of `settings` take their fields' checks from here, the command its flags and the keys of TOML files.
Importing this takes no time.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .settings import Setting

MISSING = ("refuse", "mean", "median", "drop")  # what is done about values that are not there
DATES = ("refuse", "seconds", "calendar")  # what dates and timestamps become
FORMATS = ("csv", "libsvm", "text")  # of text, where its first lines do not tell
HASH_BITS, MOST_HASH_BITS = 18, 30  # columns with more than 2^HASH_BITS levels are hashed
METRICS = {  # names of result.json and of early stopping, and whether more is better
    "loss": False,
    "accuracy": True,
    "log_loss": False,
    "auc": True,
    "mae": False,
    "rmse": False,
    "r2": True,
    "poisson_deviance": False,
}
# The losses of the linear models that have names: modules of `models.losses`.
LOSSES_OF_MODELS = {
    "linear": "squared",
    "logistic": "logistic",
    "softmax": "softmax",
    "squared_hinge": "squared_hinge",
    "poisson": "poisson",
    "huber": "huber",
}
MODELS = (*LOSSES_OF_MODELS, "mlp")
FIRST_ORDER = ("sgd", "momentum", "nesterov", "adam", "adamw", "adagrad", "ftrl")
SOLVERS = ("lbfgs", "newton-cg", "newton", "auto")  # these find the length of steps, and when to stop
OPTIMIZERS = ("gd", *FIRST_ORDER, "average", *SOLVERS)
FULL_BATCH = ("gd", *SOLVERS)  # these take all rows in every step
TAKES_L1 = ("ftrl", "lbfgs", "newton-cg", "auto")  # of ftrl it belongs to the steps, of the others to the objective
ALGORITHMS = ("auto", "native", "ring", "tree", "recursive_doubling", "rabenseifner", "shared", "hierarchical")
EXPERT: dict[str, Any] = {"shown": False}

COLUMNS = {
    "label": Setting("str", metavar="COLUMN", help="Of a table: name, or number from 0.  [default: the last]"),
    "weight": Setting("str", metavar="COLUMN", help="Of a table: weights of the rows.  [default: none]"),
    "columns": Setting(
        "str",
        metavar="COLUMNS",
        help="Of a table: which columns are features, by names, patterns such as 'x*', numbers and ranges such as 3-7,"
        " with commas between them.  [default: all that are nothing else]",
    ),
    "drop": Setting("str", metavar="COLUMNS", help="Columns that are left out, named likewise.", **EXPERT),
    "header": Setting(
        "bool",
        flag="--header/--no-header",
        help="Whether text begins with a line of names.  [default: as it looks]",
        **EXPERT,
    ),
    "day_first": Setting(
        "bool",
        flag="--day-first/--month-first",
        help="How dates as 1/2/2020 are read in CSV.  [default: as the values of the column tell]",
        **EXPERT,
    ),
    "lines": Setting(
        "str",
        metavar="FIRST-LAST",
        help="Of text: the lines that hold the table, from 1, as in 18-55, or 18- for all behind.  [default: all]",
        **EXPERT,
    ),
    "format": Setting(
        choices=FORMATS,
        help="Of text; text: a document a line, LABEL<TAB>TEXT.  [default: as its first lines look]",
        **EXPERT,
    ),
    "features": Setting(
        "str", metavar="VAR", help="Of HDF5, netCDF and MATLAB files: the variable of the features.", **EXPERT
    ),
    "dense": Setting(
        "bool",
        default=False,
        help="Hold rows of libsvm text and sparse matrices densely, also where most features are 0.",
        **EXPERT,
    ),
    "transpose": Setting(
        "bool", default=False, help="Such a variable holds a row of the data in each of its columns.", **EXPERT
    ),
}
ENCODED = {
    "categorical": Setting(
        "str",
        metavar="COLUMNS",
        help="Columns of numbers that are categories, as columns of words are by themselves, named as in --columns.",
    ),
    "text": Setting("str", metavar="COLUMNS", help="Columns of documents: words become hashed features.", **EXPERT),
    "cross": Setting("str", metavar="A:B,...", help="Columns of categories that become categories together.", **EXPERT),
    "hash_bits": Setting(
        "int",
        low=1,
        high=MOST_HASH_BITS,
        default=HASH_BITS,
        help="A column of more than 2^N levels, or of documents, is hashed into 2^N features with signs.",
        **EXPERT,
    ),
    "ngrams": Setting(
        "str",
        metavar="N|MIN,MAX",
        default="1",
        help="Of documents: how many words in a row make a feature, as in 1,2.",
        **EXPERT,
    ),
    "tfidf": Setting(
        "bool", default=False, help="Weigh words by the training documents that lack them (tf-idf).", **EXPERT
    ),
}
DATA = {
    "data": Setting(
        "str",
        default="mnist",
        help="mnist, FILE.npz, X.npy,Y.npy, IDX files IMAGES,LABELS, or a CSV, libsvm, HDF5 or Parquet file; or several"
        " of these: A.csv,B.csv, a pattern in quotes such as 'part-*.csv', or a folder of them.",
    ),
    "test_data": Setting("str", help="Rows to test on, in the same forms."),
    "node_labels": Setting(
        "str",
        metavar="FILE",
        help="Makes --data the edges of a graph, and its nodes with labels the rows: a table of node and label, or .npy"
        " with the labels of nodes 0, 1, ...",
        **EXPERT,
    ),
    "node_features": Setting(
        choices=("encoder", "neighbours"),
        help="Of nodes: sums of the neighbours' classes (the one-hot graph encoder embedding), or the neighbours"
        " themselves, hashed, and the degree.  [default: encoder]",
        **EXPERT,
    ),
    "directed": Setting("bool", default=False, help="Edges lead from the first of their nodes alone.", **EXPERT),
    **COLUMNS,
    **ENCODED,
    "missing": Setting(
        choices=MISSING,
        default="refuse",
        help="Values that are not there (empty fields, NaN, nulls, fill values): refuse them, put the mean or median"
        " of the training rows in their place, or drop the row.",
    ),
    "missing_indicator": Setting(
        "bool",
        default=False,
        help="With mean or median: one more feature, 0 or 1, beside each that has missing values in training.",
        **EXPERT,
    ),
    "dates": Setting(
        choices=DATES,
        help="Dates and timestamps among the features: refuse them, or take them as seconds since 1970, or as parts of"
        " the calendar.  [default: calendar, with a note]",
        **EXPERT,
    ),
    "test_fraction": Setting(
        "float", low=0, below=1, default=0.1, help="Rows held back for testing where the data has no test set."
    ),
    "valid": Setting(
        "str",
        metavar="FRACTION|DATA",
        help="Rows to watch while training, the fraction of the training rows held back for it or data of its own: "
        "the parameters that are best on them are kept.",
    ),
    "distribute": Setting(
        choices=("scatter", "read"),
        help="Rank 0 reads and scatters rows, or each rank reads its own.  [default: read where the format allows]",
        **EXPERT,
    ),
    "shuffle": Setting(
        choices=("global", "local"),
        help="Over all rows, or each rank its own.  [default: global while the data fits a quarter of the memory]",
    ),
    "out_of_core": Setting(
        "bool",
        default=False,
        help="Keep rows on a local disk and read them block by block: for data larger than the memory.",
    ),
    "memory": Setting(
        "str",
        metavar="SIZE",
        help="With --out-of-core: memory that rows may take on a node, such as 2GiB.  [default: 1GiB]",
        **EXPERT,
    ),
    "cache_dir": Setting(
        "str",
        metavar="DIR",
        help="With --out-of-core: folder on a disk of each node.  [default: one of yours in that of temporary files]",
        **EXPERT,
    ),
    "standardize": Setting(
        "bool", default=False, help="Give features mean 0 and deviation 1, by those of the training rows."
    ),
    "shards": Setting(
        "shards",
        default="even",
        help="Rows of each rank, of the data and of every global batch: the same, by measured speed, or by weights.",
        **EXPERT,
    ),
}
MODEL = {
    "model_name": Setting(flag="--model", choices=MODELS, default="mlp"),
    "hidden": Setting("widths", help="Widths of an mlp's hidden layers.  [default: 128]"),
    "activation": Setting(
        choices=("relu", "tanh", "gelu"), help="Of an mlp's hidden layers.  [default: relu]", **EXPERT
    ),
    "dropout": Setting(
        "float", low=0, below=1, help="Fraction of an mlp's hidden units dropped in training.  [default: 0.2]"
    ),
    "bias": Setting("bool", flag="--bias/--no-bias", default=True, help="Whether layers have biases."),
    "class_weight": Setting(
        "str",
        metavar="balanced|LABEL=VALUE,...",
        help="What rows of each class weigh: as many times more as there are fewer of them, or by label.  [default: 1]",
        **EXPERT,
    ),
    "l2": Setting("float", low=0, default=0.0, fixed=True, help="Penalty ½·l2·‖w‖², biases excepted."),
    "dtype": Setting(choices=("float32", "float64"), default="float32"),
}
OPTIMIZER = {
    "optimizer_name": Setting(
        flag="--optimizer",
        choices=OPTIMIZERS,
        default="momentum",
        fixed=True,
        help="gd, lbfgs, newton-cg and newton are full-batch: every step sees all rows; the last three search for the "
        "length of their steps, and auto is the one of them that fits model, rows and ranks.  average: each rank takes "
        "steps of --inner-optimizer on its own rows, and now and then parameters are averaged.",
    ),
    "lr": Setting(
        "float",
        above=0,
        help="Learning rate.  [default: 0.001 for adam and adamw, 0.01 for adagrad, 0.12 for momentum and "
        "nesterov, else 0.1]",
    ),
    "momentum": Setting("float", low=0, high=1, help="Of momentum and nesterov.  [default: 0.9]", **EXPERT),
    "weight_decay": Setting(
        "float", low=0, help="Decoupled decay of adamw, biases excepted.  [default: 0.01]", **EXPERT
    ),
    "l1": Setting(
        "float",
        low=0,
        help="Penalty l1·‖w‖₁ of lbfgs, newton-cg and auto, biases excepted: many weights are 0.  Of ftrl: weights "
        "whose gradients, summed over all steps, do not exceed it are 0.  [default: 0]",
        **EXPERT,
    ),
    "l1_path": Setting(
        "int",
        low=1,
        metavar="N",
        help="Of newton-cg and auto on linear models: models for N penalties, from the least at which all weights are "
        "0 down; DIR/path.npz gets them all, and the one of the least loss on validation (else test) rows is kept.",
        **EXPERT,
    ),
    "l1_min_ratio": Setting(
        "float", above=0, below=1, help="The last penalty of --l1-path over its first.  [default: 0.001]", **EXPERT
    ),
    "schedule": Setting(choices=("constant", "step", "cosine"), help="Of the learning rate.  [default: constant]"),
    "warmup": Setting("int", low=0, help="Steps over which the learning rate rises first.", **EXPERT),
    "decay_every": Setting("int", low=1, help="Epochs after which schedule step lowers the rate, each time.", **EXPERT),
    "decay_factor": Setting(
        "float", above=0, high=1, help="What schedule step multiplies the rate by.  [default: 0.1]", **EXPERT
    ),
    "lr_floor": Setting(
        "float", low=0, high=1, help="Fraction of the rate that schedule cosine ends with.  [default: 0]", **EXPERT
    ),
    "clip_norm": Setting("float", above=0, help="Scale gradients of a larger norm down to this.", **EXPERT),
    "inner_optimizer": Setting(
        choices=FIRST_ORDER, fixed=True, help="What average takes on each rank.  [default: sgd]", **EXPERT
    ),
    "sync_every": Setting("int", low=1, help="Steps of average between two averages.  [default: 10]", **EXPERT),
    "inner_state": Setting(
        choices=("keep", "reset"),
        help="What average does with the inner optimizer's state at an average.  [default: keep]",
        **EXPERT,
    ),
    "outer_lr": Setting("float", above=0, help="Rate of average's outer step.  [default: 1]", **EXPERT),
    "outer_momentum": Setting(
        "float", low=0, high=1, fixed=bool, help="Nesterov momentum of average's outer step.  [default: 0]", **EXPERT
    ),
    "global_batch_size": Setting("int", low=1, fixed=True, help="Rows of a step, over all ranks.  [default: 256]"),
    "batch_size": Setting("int", low=1, help="Rows of a step, per rank."),
    "epochs": Setting("int", low=1, help="Passes over the training rows.  [default: 5]"),
    "metric": Setting(choices=tuple(METRICS), fixed=True, help="What is best on the validation rows.  [default: loss]"),
    "patience": Setting("int", low=1, help="Stop after so many epochs without a better metric.  [default: never]"),
}
SOLVER = {
    "max_iter": Setting(
        "int", low=1, help="Iterations that full-batch methods make at most.  [default: 100, of gd as --epochs]"
    ),
    "tol": Setting(
        "float",
        above=0,
        help="Stop full-batch methods when the gradient is at most this fraction: for linear models in the norm of the "
        "inverse Hessian, of √(2 · objective), which leaves a gap to the optimum of about this squared; for nets and "
        "gd in the Euclidean norm, of the gradient at the start.  [default: 1e-5, of gd off]",
    ),
    "min_decrease": Setting(
        "float",
        above=0,
        help="Stop full-batch methods when an iteration lowers the objective by less than this fraction of it.  "
        "[default: off]",
        **EXPERT,
    ),
    "history": Setting(
        "int",
        low=1,
        fixed=True,
        help="Last iterations whose step and change of the gradient lbfgs keeps: two vectors each.  [default: 10]",
        **EXPERT,
    ),
    "sample": Setting(
        "int",
        low=0,
        metavar="ROWS",
        help="Size of the sample of rows whose solution lbfgs, newton-cg and newton start from, and whose curvature "
        "preconditions the first two: for linear, logistic and softmax of up to 1,024 parameters, unless vectors lie "
        "in slices.  0: no sample.  [default: 50 rows per parameter, at most 1/8 of the rows]",
        **EXPERT,
    ),
}
EXCHANGE = {
    "allreduce": Setting(
        choices=ALGORITHMS,
        default="auto",
        help="How gradients are exchanged; auto goes by the nodes and the gradient's length.",
    ),
    "factors": Setting(
        "bool",
        flag="--factors/--no-factors",
        help="Exchange the factors that gradients of dense layers are made of.  [default: where they are shorter]",
        **EXPERT,
    ),
    "wire": Setting(
        choices=("float32", "float16"),
        default="float32",
        help="How numbers travel between nodes: float16 halves the bytes, and rounds gradients and updates.",
        **EXPERT,
    ),
    "early": Setting(
        "bool",
        flag="--early/--no-early",
        help="Send layers' gradients to other nodes during the backward pass already.  [default: where that is faster]",
        **EXPERT,
    ),
    "mesh": Setting(
        "str",
        metavar="AXIS=N,...",
        help="Split the model over ranks, as data=2,stage=2,tensor=2: copies of it, stages of consecutive layers, and "
        "parts of every layer (of an mlp).  [default: every rank has the whole]",
        **EXPERT,
    ),
    "micro_batches": Setting(
        "int",
        low=1,
        metavar="N",
        help="Into how many a batch is cut on its way through the stages of --mesh.  [default: 4 for each stage]",
        **EXPERT,
    ),
    "recompute": Setting(
        "bool",
        default=False,
        help="Stages compute activations again for the backward pass: less memory, a third more work.",
        **EXPERT,
    ),
    "cuts": Setting(
        "widths",
        help="The layers, counted from 0, with which the stages but the first begin.  [default: by measured times]",
        **EXPERT,
    ),
    "parts": Setting(
        "weights",
        metavar="W,W,...|speed",
        help="How large the parts of layers are under --mesh tensor=N, as 3,1; speed measures the ranks.  "
        "[default: alike]",
        **EXPERT,
    ),
    "device": Setting(
        choices=("cpu", "gpu", "auto"),
        default="cpu",
        help="auto: a GPU for each rank, where CuPy is installed and sees one on every rank; else the CPU.",
    ),
}
RUN = {
    "config": Setting("str", metavar="FILE.toml", help="Values of flags, by their names; flags given here win."),
    "seed": Setting("int", low=0, default=0, fixed=True, help="Of the start, the shuffling and dropout."),
    "out": Setting("str", metavar="DIR", help="Where metrics.jsonl, result.json and model.npz go.  [default: nowhere]"),
    "spare": Setting(
        "str",
        metavar="DIR",
        help="Takes these files where --out cannot, as on a full disk, in the end.  [default: nowhere]",
        **EXPERT,
    ),
    "checkpoint_every": Setting(
        "str",
        metavar="N|TIME",
        help="Save the run in DIR/checkpoints every N epochs or, as 30s, 10min or 1h, so often.  SIGUSR1 and SIGTERM "
        "save it too, and end it with exit status 75; but mpiexec kills its ranks 0.2 s after Ctrl-C or SIGTERM: "
        "send it SIGUSR1.",
    ),
    "keep_checkpoints": Setting("int", low=1, default=2, help="How many of the newest are kept.", **EXPERT),
    "resume": Setting(
        "bool",
        default=False,
        help="Go on from the newest checkpoint in DIR; without one, start from the beginning.  Where this run was "
        "completed before, end at once with its result.",
    ),
    "trace": Setting(
        "str",
        metavar="FILE.json[.gz]",
        help="Write what each rank does when, for ui.perfetto.dev or chrome://tracing; the sums go to result.json.",
        **EXPERT,
    ),
    "watch": Setting(
        "float",
        low=0,
        metavar="SECONDS",
        help="End the job, with exit status 76 and every rank's stack, when ranks have waited so long for one that "
        "does not come; 30 s at most for one that is stopped.  0: wait for ever.  [default: 600]",
        **EXPERT,
    ),
    "as_json": Setting("bool", flag="--json", default=False, help="Print the fields of result.json as the last line."),
    "quiet": Setting("bool", flag="--quiet -q", default=False, help="Print errors and warnings only."),
    "verbose": Setting(
        "bool", flag="--verbose -v", default=False, help="Print settings, every rank's shard and the exchange."
    ),
}
TOPICS = {
    "Data": DATA,
    "Model": MODEL,
    "Optimizer": OPTIMIZER,
    "Full-batch solvers": SOLVER,
    "Exchange and devices": EXCHANGE,
    "Run and output": RUN,
}
OPTIONS: dict[str, Setting] = {}
for _topic in (COLUMNS, ENCODED, *TOPICS.values()):
    for _name, _option in _topic.items():
        _topic[_name] = OPTIONS[_name] = replace(_option, flag=_option.flag or f"--{_name.replace('_', '-')}")
