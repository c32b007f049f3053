"""Standardized features: the numbers of all training rows, in float64, applied where rows are gathered."""

import json

import numpy as np
import pytest
from alone import Alone
from commands import run_here
from fits import fit
from problems import make_rows, uneven

from distai_mpi import models, optim
from distai_mpi.data import (
    Dataset,
    Loader,
    Permutation,
    ShardedDataset,
    from_local,
    load,
    standardize,
    summarize,
    whole,
)
from distai_mpi.errors import DataError
from distai_mpi.train import evaluate
from distai_mpi.train.evaluation import make_loader

mpi = pytest.mark.mpi
pytestmark = pytest.mark.ranks(3)


def gathered(shard, rank=0, ranks=1, dtype=np.float64, epoch=None):
    """All rows that a rank's loader hands out, with their numbers."""
    kind = dict(seed=0, dtype=dtype, target_dtype=np.float64, global_batch_size=9, block_rows=5)
    loader = Loader(shard, rank=rank, ranks=ranks, **kind)
    streams = [loader.sequential()] if epoch is None else [batches for _, batches in loader.epoch(epoch)]
    parts = [(b.x.copy(), b.ids.copy()) for stream in streams for b in stream]
    empty = (np.empty((0, shard.features), dtype), np.empty(0, np.int64))
    return tuple(np.concatenate(each) for each in zip(empty, *parts, strict=True))


def one(x, weight=None, **options):
    """A shard of one rank, standardized."""
    (shard,) = standardize(whole(Dataset(x, np.zeros(len(x)), weight, **options)), comm=Alone())
    return shard


@pytest.mark.parametrize("offset", [0.0, 1e6, -1e9])
@pytest.mark.parametrize(
    ("stored", "dtype"),
    [
        (np.float32, np.float32),
        (np.float64, np.float32),
        (np.float64, np.float64),
        (np.int32, np.float64),
        (np.uint8, np.float32),
    ],
)
def test_numbers_are_those_of_numpy_in_float64(stored, dtype, offset):
    raw = np.random.default_rng(0).normal(100, 30, size=(1003, 7))
    x = np.clip(raw, 0, 255).astype(stored) if stored == np.uint8 else (raw + offset).astype(stored)
    shard = one(x)
    exact = x.astype(np.longdouble)  # at -1e9 NumPy's own mean in float64 is wrong by 2e-6
    mean, deviation = exact.mean(0), exact.std(0)
    np.testing.assert_allclose(shard.dataset.standard.mean, mean.astype(float), rtol=3e-16, atol=1e-12)
    np.testing.assert_allclose(shard.dataset.standard.deviation, deviation.astype(float), rtol=1e-12)
    expected = ((exact - mean) / deviation).astype(float)
    for epoch in (None, 1):
        values, ids = gathered(shard, dtype=dtype, epoch=epoch)
        assert values.dtype == dtype
        np.testing.assert_allclose(values, expected[ids], rtol=1e-6, atol=1e-6 if dtype == np.float32 else 1e-7)
    assert np.shares_memory(shard.dataset.x, x), "the rows stay as they are"


def test_a_mean_of_a_million_costs_no_digits():
    x = 1e6 + np.random.default_rng(0).normal(size=(50000, 3))
    shard = one(x)
    exact = (x - 1e6).astype(np.longdouble)
    assert np.abs(shard.dataset.standard.mean - (1e6 + exact.mean(0))).max() < 3e-10  # two units in the last place
    np.testing.assert_allclose(shard.dataset.standard.deviation, exact.std(0).astype(float), rtol=1e-13)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 + 0.1, -1e-30])
@pytest.mark.parametrize("weighted", [False, True])
def test_constant_features_become_zero(value, weighted):
    x = np.random.default_rng(0).normal(size=(301, 3))
    x[:, 1] = value
    weight = np.arange(301.0) / 7 if weighted else None
    if weighted:
        x[0, 1] = 99.0  # a row of weight 0
    shard = one(x, weight)
    assert shard.dataset.standard.mean[1] == value
    assert shard.dataset.standard.deviation[1] == 1
    assert not gathered(shard)[0][1:, 1].any()


def test_scaled_bytes_are_standardized_as_values():
    x = np.random.default_rng(0).integers(0, 256, (90, 4), dtype=np.uint8)
    shard = one(x, scale=1 / 255)
    np.testing.assert_allclose(shard.dataset.standard.mean, (x / 255).mean(0), rtol=1e-13)
    values = x / 255.0
    np.testing.assert_allclose(gathered(shard)[0], (values - values.mean(0)) / values.std(0), atol=1e-12)


def test_weights_count_as_so_many_rows():
    x, _ = make_rows(80)
    times = np.random.default_rng(1).integers(0, 4, 80)
    weighted, repeated = one(x, times.astype(float)).dataset.standard, one(x.repeat(times, axis=0)).dataset.standard
    np.testing.assert_allclose(weighted.mean, repeated.mean, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(weighted.deviation, repeated.deviation, rtol=1e-12)


def test_the_training_rows_alone_give_the_numbers():
    x, y = make_rows(60)
    data, order = Dataset(x, y), Permutation(60, "split")
    train = ShardedDataset(data, (40,), 0, "global", summarize(y, 6), order)
    test = ShardedDataset(data, (20,), 0, "global", summarize(y, 6), order, first=40)
    train, nothing, test = standardize(train, None, test, comm=Alone())
    assert nothing is None
    exact = x[order.positions(0, 40)]
    np.testing.assert_allclose(train.dataset.standard.mean, exact.mean(0), rtol=1e-12, atol=1e-14)
    assert test.dataset.standard is train.dataset.standard
    again, _ = standardize(train, test, comm=Alone())
    np.testing.assert_array_equal(again.dataset.standard.mean, train.dataset.standard.mean)


def test_what_cannot_be_standardized():
    with pytest.raises(DataError, match="feature 1 .* too large"):
        one(np.array([[1.0, 1e200], [2.0, -1e200]]))
    shard = one(np.zeros((3, 2)))
    with pytest.raises(DataError, match="3 features, but are to be standardized as 2"):
        Dataset(np.zeros((4, 3)), np.zeros(4), standard=shard.dataset.standard)
    empty = one(np.zeros((0, 2)))
    assert np.array_equal(empty.dataset.standard.deviation, [1, 1])


@mpi
@pytest.mark.parametrize("rows", [1, 2, 203])
@pytest.mark.parametrize("weighted", [False, True])
def test_every_rank_has_the_same_numbers(comm, rows, weighted):
    x = 1e6 + np.random.default_rng(0).normal(size=(rows, 5))
    x[:, 2] = 0.1
    y, weight = np.zeros(rows), np.arange(rows)[::-1] + 1.0 if weighted else None
    counts = uneven(rows, comm.size)
    start = sum(counts[: comm.rank])
    mine = slice(start, start + counts[comm.rank])
    local = from_local(Dataset(x[mine], y[mine], None if weight is None else weight[mine]), comm)
    mean = np.average(x, axis=0, weights=weight)
    deviation = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=weight))
    deviation[(x == x[0]).all(0)] = 1
    for shard in (whole(Dataset(x, y, weight), comm.rank, comm.size), local):
        standard = standardize(shard, comm=comm)[0].dataset.standard
        np.testing.assert_allclose(standard.mean, mean, rtol=1e-15, atol=0)
        np.testing.assert_allclose(standard.deviation, deviation, rtol=1e-8)
        assert (standard.mean[2], standard.deviation[2]) == (0.1, 1)
        everyones = comm.allgather_object((standard.mean.tolist(), standard.deviation.tolist()))
        assert everyones.count(everyones[0]) == comm.size


@mpi
def test_training_on_standardized_rows_is_training_on_rows_standardized_before(comm):
    x, y = make_rows()
    x = 50 + 10 * x
    before = (x - x.mean(0)) / x.std(0)
    results = []
    for values, on_the_way in ((before, False), (x, True)):
        shard = whole(Dataset(values, y), comm.rank, comm.size)
        if on_the_way:
            (shard,) = standardize(shard, comm=comm)
        model = models.Softmax(6, 3, dtype=np.float64)
        result = fit(model, shard, comm, optimizer=optim.SGD(0.5), epochs=3, global_batch_size=32)
        results.append((result.w, evaluate(model, result.w, make_loader(model, shard, comm), comm).loss))
    np.testing.assert_allclose(results[1][0], results[0][0], rtol=1e-9, atol=1e-11)
    assert results[1][1] == pytest.approx(results[0][1], rel=1e-10)


@mpi
@pytest.mark.parametrize("options", [{"shuffle": "global"}, {"shuffle": "local"}, {"distribute": "scatter"}])
def test_files_are_standardized_alike_however_they_come(comm, tmp_path, options):
    path = comm.bcast_object(str(tmp_path / "a.npz"))
    x, y = make_rows()
    if comm.rank == 0:
        np.savez(path, x=x, y=y)
    comm.barrier()
    train, test = standardize(*load(path, comm, **options), comm=comm)
    alone = standardize(*load(path, Alone(), shuffle="global"), comm=Alone())[0].dataset.standard
    ids = [int(i) for part in comm.allgather_object(gathered(train, comm.rank, comm.size)[1]) for i in part]
    values, own = gathered(test, comm.rank, comm.size)
    assert len(ids) == train.rows
    np.testing.assert_allclose(values, (x[own] - x[ids].mean(0)) / x[ids].std(0), atol=1e-10)
    np.testing.assert_allclose(train.dataset.standard.mean, x[ids].mean(0), atol=1e-12)
    if options != {"shuffle": "global"}:
        return
    np.testing.assert_allclose(train.dataset.standard.mean, alone.mean, atol=1e-12)


def command(*words, **kwargs):
    done = run_here(*words, **kwargs)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1] if done.stdout else ""


@mpi
def test_a_model_keeps_what_its_features_were_standardized_by(comm, shared_path):
    rng = np.random.default_rng(0)
    x = 1e4 + 100 * rng.normal(size=(300, 6)).astype(np.float32)
    y = ((x - 1e4) @ rng.normal(size=(6, 3))).argmax(1)
    if comm.rank == 0:
        np.savez(shared_path / "rows.npz", x=x, y=y)
        np.save(shared_path / "x.npy", x)
        np.save(shared_path / "wide.npy", np.hstack([x, x]))
    comm.barrier()
    flags = ("--data", "rows.npz", "--model", "softmax", "--epochs", 20, "--standardize", "--out", "run")
    result = json.loads(command("train", *flags, "--json", cwd=shared_path))
    assert result["test_accuracy"] > 0.8
    with np.load(shared_path / "run" / "model.npz", allow_pickle=False) as file:
        np.testing.assert_allclose(file["extra.deviation"], 100, rtol=0.2)
    fewer = {"cwd": shared_path, "ranks": max(1, comm.size - 1)}
    evaluated = json.loads(command("evaluate", "run", "--json", **fewer))
    assert evaluated["loss"] == pytest.approx(result["test_loss"], rel=1e-5)
    everything = json.loads(command("evaluate", "run", "--data", "rows.npz", "--json", **fewer))
    command("predict", "run", "--data", "x.npy", "--out", "labels.npy", **fewer)
    assert np.mean(np.load(shared_path / "labels.npy") == y) == pytest.approx(everything["accuracy"])
    wide = run_here("predict", "run", "--data", "wide.npy", "--out", "no.npy", cwd=shared_path)
    assert wide.returncode != 0
    assert "12 features, but the model takes 6" in wide.stderr
