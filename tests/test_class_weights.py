"""Weights of classes, by label or balanced over all ranks; blocks of passes at fixed positions."""

import numpy as np
import pytest
from problems import local_shard, make_rows, uneven, whole_shard

from distai_mpi import data, fit, models, optim
from distai_mpi.data import Dataset, Loader
from distai_mpi.errors import ConfigError
from distai_mpi.train.checkpoint.state import _table

mpi = pytest.mark.mpi


@mpi
@pytest.mark.ranks(1, 3)
@pytest.mark.parametrize("split", ["whole", "uneven"])
def test_balanced_classes_weigh_alike(comm, split):
    x, y = make_rows(rows=200, kind="binary")
    y[20:100] = 0
    shard = whole_shard(x, y, comm) if split == "whole" else local_shard(x, y, comm, uneven(200, comm.size))
    weighed = data.weigh_classes(shard, "balanced", comm)
    counts = np.bincount(y)
    assert weighed.class_weights == pytest.approx(tuple(200 / (2 * counts)))
    assert weighed.total_weight == pytest.approx(200)
    assert _table(weighed)["weights of classes"].startswith(f"{200 / (2 * counts[0]):g}, ")
    found = fit(models.Logistic(6, dtype=np.float64), weighed, comm, optimizer=optim.Newton(tol=1e-8), l2=0.1)
    rows = (200 / (2 * counts))[y]
    z = x @ found.params[:6] + found.params[6]
    slopes = rows * (1 / (1 + np.exp(-z)) - y)
    np.testing.assert_allclose(x.T @ slopes / 200 + 0.1 * found.params[:6], 0, atol=1e-7)
    assert slopes.sum() / 200 == pytest.approx(0, abs=1e-7)


@mpi
@pytest.mark.ranks(1)
def test_weights_by_label_multiply_those_of_rows(comm):
    x = np.zeros((4, 1))
    words = data.whole(Dataset(x, np.array(["spam", "ham", "a=b", "ham"]), np.array([1.0, 2.0, 3.0, 4.0])))
    (shard,) = data.encode_labels(words, comm=comm)
    for given in ("ham=0.5,a=b=2", {"ham": 0.5, "a=b": 2}):
        weighed = data.weigh_classes(shard, given, comm)
        assert weighed.dataset.weight.tolist() == [1.0, 1.0, 6.0, 2.0]
        assert weighed.total_weight == 10.0
    (numbers,) = data.encode_labels(data.whole(Dataset(x, np.array([-1, 1, 1, -1]))), comm=comm)
    assert data.weigh_classes(numbers, "-1=3", comm).dataset.weight.tolist() == [3.0, 1.0, 1.0, 3.0]
    for given, match in (
        ("hm=2", "hm is none of the classes: did you mean ham"),
        ("ham=-1", "weight of ham must be a number from 0 up"),
        ("ham", "must be balanced or LABEL=VALUE"),
        ("", "must be balanced or LABEL=VALUE"),
        ("ham=2,spam=1,ham=3", "ham is given twice"),
        ({"ham": "2"}, "must be a number from 0 up, got '2'"),
        ({"ham": None}, "must be a number from 0 up, got None"),
    ):
        with pytest.raises(ConfigError, match=match):
            data.weigh_classes(shard, given, comm)
    with pytest.raises(ConfigError, match="is for the labels of classes"):
        data.weigh_classes(data.whole(Dataset(x, np.array([0.5, 1.5, 2.0, 0.0]))), "balanced", comm)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_blocks_of_full_passes_end_at_fixed_positions(ranks):
    shard, ends = data.whole(Dataset(np.zeros((103, 2)), np.zeros(103)), 0, ranks), set()
    for rank in range(ranks):
        options = {"global_batch_size": 103, "seed": 0, "dtype": np.float64, "target_dtype": np.float64}
        loader = Loader(shard, rank=rank, ranks=ranks, block_rows=10, **options)
        first, stop = 103 * rank // ranks, 103 * (rank + 1) // ranks
        starts = [batch.position for batch in loader.sequential()]
        assert starts == [first, *(position for position in range(0, 103, 10) if first < position < stop)]
        assert sum(len(batch.y) for batch in loader.sequential()) == stop - first
        ends |= set(starts)
    assert ends >= set(range(0, 103, 10))
