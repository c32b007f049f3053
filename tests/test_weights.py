"""Weights of rows, from the data set to the loss: a row of weight 2 counts as two."""

import numpy as np
import pytest
from fits import fit
from problems import make_rows, uneven, whole_shard

from distai_mpi import Objective, models, optim
from distai_mpi.data import Dataset, Loader, Permutation, ShardedDataset, from_local, standardize, summarize, whole
from distai_mpi.errors import DataError
from distai_mpi.train import evaluate
from distai_mpi.train.evaluation import make_loader

mpi = pytest.mark.mpi


def weighted_rows(rows=97, kind="class"):
    """Rows with labels and small whole weights, some of them 0."""
    x, y = make_rows(rows, kind=kind)
    return x, y, np.random.default_rng(5).integers(0, 4, rows).astype(np.float64)


def test_weights_are_kept_as_given_or_converted():
    x, y, weight = weighted_rows()
    held = Dataset(x, y, weight)
    assert np.shares_memory(held.weight, weight)
    assert not held.weight.flags.writeable
    assert weight.flags.writeable
    assert Dataset(x, y, weight.astype(np.int8)).weight.dtype == np.float64
    assert held.weight_sum == weight.sum()
    assert Dataset(x, y).weight_sum == len(y)
    part = held.part(3, 9)
    assert np.array_equal(part.weight, weight[3:9])
    assert np.shares_memory(part.x, x)


@pytest.mark.parametrize(
    ("weight", "word"),
    [
        (np.array([1.0, 2.0]), "shape"),
        (np.ones((3, 1)), "shape"),
        (np.array([1.0, -2.0, 0.0]), "-2.0 in row 1"),
        (np.array([1.0, 2.0, np.nan]), "nan in row 2"),
        (np.array([np.inf, 2.0, 0.0]), "inf in row 0"),
        (np.array(["a", "b", "c"]), "weight"),
    ],
)
def test_weights_that_cannot_be(weight, word):
    with pytest.raises(DataError, match=word):
        Dataset(np.zeros((3, 2)), np.zeros(3), weight)


def test_weights_that_are_all_zero_are_refused():
    with pytest.raises(DataError, match="all training rows are 0"):
        whole(Dataset(np.zeros((3, 2)), np.zeros(3), np.zeros(3))).check_weight()
    assert whole(Dataset(np.zeros((0, 2)), np.zeros(0), np.zeros(0))).total_weight == 0


def test_a_shard_knows_the_summed_weight():
    x, y, weight = weighted_rows()
    shard = whole(Dataset(x, y, weight), 1, 3)
    assert shard.total_weight == weight.sum()
    assert whole(Dataset(x, y)).total_weight == len(y)
    with pytest.raises(ValueError, match="summed weight"):
        ShardedDataset(shard.dataset, shard.counts, 0, "global", shard.labels)


def loaders(shard, ranks, dtype, **options):
    make = dict(ranks=ranks, global_batch_size=10, seed=1, dtype=dtype, target_dtype=np.int64) | options
    return [Loader(shard, rank=rank, **make) for rank in range(ranks)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("order", [None, Permutation(97, "split")])
@pytest.mark.parametrize("ranks", [1, 3])
def test_batches_carry_the_weights_of_their_rows(ranks, order, dtype):
    x, y, weight = weighted_rows()
    held = Dataset(x, y, weight / 3)
    shard = ShardedDataset(held, (80,), 0, "global", summarize(y, 6), order, first=5, summed_weight=1.0)
    for loader in loaders(shard, ranks, dtype, block_rows=4):
        streams = [loader.sequential(), *(batches for _, batches in loader.epoch(0))]
        streams += [(run.batch for run in loader.runs(0, 7))]
        for batch in (batch for stream in streams for batch in stream):
            assert batch.weight.dtype == dtype
            assert np.array_equal(batch.weight, (weight / 3)[batch.ids].astype(dtype))
    assert next(loaders(whole(Dataset(x, y)), 1, dtype)[0].sequential()).weight is None


def held_by(comm, counts, *arrays):
    """This rank's range of each of ``arrays``."""
    start = sum(counts[: comm.rank])
    return [array[start : start + counts[comm.rank]] for array in arrays]


def shards(comm, x, y, weight):
    """The same rows under the global and under the local shuffle, there on unequal shards."""
    local = from_local(Dataset(*held_by(comm, uneven(len(y), comm.size), x, y, weight)), comm)
    return [whole(Dataset(x, y, weight), comm.rank, comm.size), local]


@mpi
@pytest.mark.parametrize("name", ["linear", "softmax", "mlp"])
def test_a_weight_counts_as_so_many_rows(comm, name):
    x, y, weight = weighted_rows(kind="value" if name == "linear" else "class")
    times = weight.astype(int)
    repeated = whole(Dataset(x.repeat(times, axis=0), y.repeat(times)), comm.rank, comm.size)
    model = models.build(name, repeated.labels, dtype=np.float64)
    w = model.init(np.random.default_rng(3))
    expected, expected_grad = evaluate(model, w, make_loader(model, repeated, comm), comm), np.empty_like(w)
    value = Objective(model, make_loader(model, repeated, comm), comm, l2=0.1).value_and_grad(w, expected_grad)
    for shard in shards(comm, x, y, weight):
        assert shard.total_weight == weight.sum()
        found = evaluate(model, w, make_loader(model, shard, comm), comm)
        assert found.loss == pytest.approx(expected.loss, rel=1e-12)
        assert found.accuracy == (None if name == "linear" else pytest.approx(expected.accuracy, rel=1e-12))
        objective, grad = Objective(model, make_loader(model, shard, comm), comm, l2=0.1), np.empty_like(w)
        assert objective.value_and_grad(w, grad) == pytest.approx(value, rel=1e-12)
        np.testing.assert_allclose(grad, expected_grad, rtol=1e-9, atol=1e-12)


@mpi(min_size=2)
def test_ranks_agree_on_weights(comm):
    x, y, weight = weighted_rows()
    counts = uneven(len(y), comm.size)
    mine = held_by(comm, counts, x, y)
    kept = held_by(comm, counts, weight)[0]
    empty = from_local(Dataset(*mine, None if comm.rank == 0 else kept), comm)  # rank 0 holds no rows
    assert empty.total_weight == weight.sum()
    with pytest.raises(DataError, match="some ranks"):
        from_local(Dataset(x, y, weight if comm.rank == 0 else None), comm)
    nothing = from_local(Dataset(x, y, np.zeros(len(y))), comm)
    for refused in (lambda: fit(models.Linear(x.shape[1]), nothing, comm), lambda: standardize(nothing, comm=comm)):
        with pytest.raises(DataError, match="all training rows are 0"):
            refused()


@mpi
@pytest.mark.parametrize("optimizer", [optim.Momentum(), optim.LBFGS(), optim.Newton()], ids=lambda one: one.name)
@pytest.mark.parametrize("unit", [1e300, 1e30, 1e-30, 1e-42, 1e-300])
def test_the_unit_of_weights_changes_nothing(comm, optimizer, unit):
    x, y = make_rows(kind="binary")
    weight = np.random.default_rng(0).lognormal(size=len(y))
    made = []
    for each in (weight, weight * unit):
        shard = whole(Dataset(x, y, each), comm.rank, comm.size)
        made.append(fit(models.Logistic(6), shard, comm, optimizer=optimizer, epochs=3, l2=1e-3))
    np.testing.assert_allclose(made[1].w, made[0].w, rtol=1e-4, atol=1e-5)
    assert made[1].train_loss == pytest.approx(made[0].train_loss, rel=1e-5)


@mpi
def test_weights_whose_sum_is_beyond_float64_are_refused(comm):
    x, y = make_rows(kind="binary")
    shard = whole(Dataset(x, y, np.full(len(y), 1e308)), comm.rank, comm.size)
    with pytest.raises(DataError, match="training rows: their weights add up to more than float64 holds"):
        fit(models.Logistic(6), shard, comm, epochs=1)


@mpi
def test_test_rows_that_weigh_nothing_have_no_figures(comm):
    x, y = make_rows(kind="value")
    train, weightless = whole_shard(x, y, comm), from_local(Dataset(x[:9], y[:9], np.zeros(9)), comm)
    result = fit(models.Linear(x.shape[1]), train, comm, test=weightless, optimizer=optim.SGD(0.01), epochs=1)
    assert (result.status, result.test_loss, result.metrics) == ("completed", None, {})
