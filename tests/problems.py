"""Small data sets and shards for the tests of objective and training."""

import numpy as np

from distai_mpi.data import Dataset, from_local, whole


def make_rows(rows=203, features=6, kind="class", seed=0):
    """Random rows with a noisy linear rule; labels 0 to 2, 0/1 or real values."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, features))
    score = x @ rng.normal(size=(features, 3)) + 0.5 * rng.normal(size=(rows, 3))
    y = {"class": score.argmax(1), "binary": (score[:, 0] > 0).astype(np.int64), "value": score[:, 0]}[kind]
    return x, y


def whole_shard(x, y, comm):
    """All rows on every rank, under the global shuffle."""
    return whole(Dataset(x, y), comm.rank, comm.size)


def local_shard(x, y, comm, counts, weight=None):
    """``counts[r]`` rows for rank r, under the local shuffle."""
    start = sum(counts[: comm.rank])
    mine = slice(start, start + counts[comm.rank])
    return from_local(Dataset(x[mine], y[mine], None if weight is None else weight[mine]), comm)


def uneven(rows, ranks):
    """Row counts that differ and, from two ranks on, leave one rank without rows."""
    if ranks == 1:
        return [rows]
    counts = [0] + [rows // ranks + rank for rank in range(1, ranks)]
    counts[-1] += rows - sum(counts)
    return counts
