"""Small data sets and shares for the tests of objective and training."""

import numpy as np

from distai_mpi.data import Dataset, Share, merge, summarize
from distai_mpi.data.partition import even


def make_rows(rows=203, features=6, kind="class", seed=0):
    """Random rows with a noisy linear rule; labels 0 to 2, 0/1 or real values."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, features))
    score = x @ rng.normal(size=(features, 3)) + 0.5 * rng.normal(size=(rows, 3))
    y = {"class": score.argmax(1), "binary": (score[:, 0] > 0).astype(np.int64), "value": score[:, 0]}[kind]
    return x, y


def whole_share(x, y, comm):
    """All rows on every rank, under the global shuffle."""
    dataset = Dataset(x, y)
    return Share(dataset, even(len(y), comm.size), comm.rank, "global", summarize(dataset.y, x.shape[1]))


def local_share(x, y, comm, counts):
    """``counts[r]`` rows for rank r, under the local shuffle."""
    start = sum(counts[: comm.rank])
    mine = slice(start, start + counts[comm.rank])
    dataset = Dataset(x[mine], y[mine])
    labels = merge(comm.allgather_object(summarize(dataset.y, x.shape[1])))
    return Share(dataset, tuple(counts), comm.rank, "local", labels)


def uneven(rows, ranks):
    """Row counts that differ and, from two ranks on, leave one rank without rows."""
    if ranks == 1:
        return [rows]
    counts = [0] + [rows // ranks + rank for rank in range(1, ranks)]
    counts[-1] += rows - sum(counts)
    return counts
