"""Data sets, their shards on ranks, and the batches that a rank works on."""

from .batch import Batch, StepRows
from .class_weights import weigh_classes
from .classes import encode, encode_labels
from .dataset import Dataset, Fill, Standard
from .distribute import Sets, load, load_sets
from .labels import LabelSummary, merge, summarize
from .loader import Loader, steps_per_epoch
from .missing import fill_missing
from .out_of_core import OutOfCore
from .partition import Partition
from .permutation import Permutation
from .readers.columns import Columns
from .sharded import ShardedDataset, from_local, repartition, whole
from .standard import centre_far, standardize
from .streams import stream_key

__all__ = [
    "Batch",
    "Columns",
    "Dataset",
    "Fill",
    "LabelSummary",
    "Loader",
    "OutOfCore",
    "Partition",
    "Permutation",
    "Sets",
    "ShardedDataset",
    "Standard",
    "StepRows",
    "centre_far",
    "encode",
    "encode_labels",
    "fill_missing",
    "from_local",
    "load",
    "load_sets",
    "merge",
    "repartition",
    "standardize",
    "steps_per_epoch",
    "stream_key",
    "summarize",
    "weigh_classes",
    "whole",
]
