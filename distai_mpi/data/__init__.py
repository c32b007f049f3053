"""Data sets, how they are shared out over ranks, and the batches a rank works on."""

from .batch import Batch
from .dataset import Dataset, Standard
from .distribute import Sets, load, load_features, load_sets
from .labels import LabelSummary, merge, summarize
from .loader import Loader, steps_per_epoch
from .partition import Partition
from .permutation import Permutation
from .share import Share, from_local, repartition, whole
from .standard import standardize
from .streams import stream_key

__all__ = [
    "Batch",
    "Dataset",
    "LabelSummary",
    "Loader",
    "Partition",
    "Permutation",
    "Sets",
    "Share",
    "Standard",
    "from_local",
    "load",
    "load_features",
    "load_sets",
    "merge",
    "repartition",
    "standardize",
    "steps_per_epoch",
    "stream_key",
    "summarize",
    "whole",
]
