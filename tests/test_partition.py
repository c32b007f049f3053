"""Rows in proportion to weights: of a set, of every global batch, and when they move between ranks."""

import itertools
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from fits import fit
from problems import local_shard, make_rows, uneven

from distai_mpi import models, optim
from distai_mpi.data import (
    Dataset,
    Loader,
    Partition,
    Permutation,
    ShardedDataset,
    from_local,
    load,
    repartition,
    summarize,
    whole,
)
from distai_mpi.data.partition import even_range
from distai_mpi.errors import ConfigError, DataError

mpi = pytest.mark.mpi
pytestmark = pytest.mark.ranks(1, 2, 3, 4)
RNG = np.random.default_rng(0)
WEIGHTS = [(1,), (5, 5), (3, 1, 1), (3, 1, 0), (0, 0, 2, 0), (1, 0.4, 0.4), (12300, 4100.5, 12299.9, 1e-3)]
WEIGHTS += [tuple(RNG.random(4)), tuple(RNG.random(9) * RNG.integers(0, 2, 9) + 1e-9), (1e-300, 1.0, 1e300)]


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("rows", [0, 1, 2, 7, 13, 256, 10**6 + 1, 10**12])
def test_shards_are_in_proportion(weights, rows):
    partition = Partition(weights)
    counts = partition.counts(rows)
    assert sum(counts) == rows
    assert [partition.range_of(rows, rank) for rank in range(len(weights))] == [
        (sum(counts[:rank]), sum(counts[: rank + 1])) for rank in range(len(weights))
    ]
    exact = [rows * Fraction(w) / sum(map(Fraction, weights)) for w in weights]
    for count, ideal, weight in zip(counts, exact, weights, strict=True):
        assert int(ideal) <= count < ideal + len(weights)
        assert count == 0 or weight > 0


@pytest.mark.parametrize("weights", [w for w in WEIGHTS if len(set(w)) > 1], ids=str)
@pytest.mark.parametrize("rows", [1, 2, 5, 17, 64])
def test_the_last_rank_finishes_as_soon_as_it_can(weights, rows):
    """Written out: every row in turn goes to the rank that would be done with it first."""
    counts = [0] * len(weights)
    for _ in range(rows):
        times = [(n + 1) / w if w else np.inf for n, w in zip(counts, weights, strict=True)]
        counts[int(np.argmin(times))] += 1

    def last(counts):
        return max(n / w for n, w in zip(counts, weights, strict=True) if w)

    assert last(Partition(weights).counts(rows)) == pytest.approx(last(counts), rel=1e-12)
    if len(weights) == 3 and rows < 20:
        everything = [c for c in itertools.product(range(rows + 1), repeat=3) if sum(c) == rows]
        possible = [c for c in everything if all(w or not n for n, w in zip(c, weights, strict=True))]
        assert last(counts) == pytest.approx(min(map(last, possible)), rel=1e-12)


@pytest.mark.parametrize("weight", [1, 0.3, 12300.0])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 9])
def test_equal_weights_are_even_shards(ranks, weight):
    for rows in (0, 1, 5, 41, 256):
        partition = Partition((weight,) * ranks)
        assert partition.counts(rows) == Partition.even(ranks).counts(rows)
        assert [partition.range_of(rows, r) for r in range(ranks)] == [even_range(rows, ranks, r) for r in range(ranks)]


@pytest.mark.parametrize("weights", [(), (0, 0), (1, -1), (1, float("nan")), (float("inf"), 1)])
def test_weights_that_cannot_be(weights):
    with pytest.raises(ConfigError, match="shards .*: give each rank a finite weight"):
        Partition(weights)


def data_set(rows):
    x = np.arange(rows * 2.0).reshape(rows, 2)
    return Dataset(x, np.arange(rows), weight=np.arange(rows) + 1.0)


def loaders(weights, rows, size, shuffle):
    """The loaders of all ranks, each with its shard of the rows, drawn by a permutation under the local shuffle."""
    partition, data, made = Partition(weights), data_set(rows), []
    order = Permutation(rows, "sharding")
    counts = partition.counts(rows)
    for rank in range(len(weights)):
        if shuffle == "local":
            own = order.positions(*partition.range_of(rows, rank))
            part = Dataset(data.x[own], data.y[own], data.weight[own])
            labels = summarize(part.y, 2)
            options = {"summed_weight": data.weight_sum, "partition": partition}
            shard = ShardedDataset(part, counts, rank, "local", labels, order, **options)
        else:
            shard = whole(data, rank, len(weights), partition=partition)
        kind = dict(dtype=np.float64, target_dtype=np.int64, seed=3, global_batch_size=size)
        made.append(Loader(shard, rank=rank, ranks=len(weights), **kind))
    return made


@pytest.mark.parametrize("shuffle", ["global", "local"])
@pytest.mark.parametrize("size", [1, 4, 10, 64])
@pytest.mark.parametrize("rows", [1, 2, 13, 64])
@pytest.mark.parametrize("weights", [(1,), (3, 1), (3, 1, 0), (0, 2.5, 1), (1, 0, 0, 7), (1, 2, 3, 4)])
def test_an_epoch_has_every_row_once(weights, rows, size, shuffle):
    some = loaders(weights, rows, size, shuffle)
    steps = {loader.steps for loader in some}
    assert len(steps) == 1
    ids, positions = [], []
    for step in zip(*(loader.epoch(1) for loader in some), strict=True):
        announced, seen = {n for n, _ in step}, []
        for rank, (_, batches) in enumerate(step):
            mine = []
            for batch in batches:
                assert np.array_equal(batch.y, batch.ids)
                assert np.array_equal(batch.x[:, 0], 2 * batch.ids)
                assert np.array_equal(batch.weight, batch.ids + 1)
                mine += batch.ids.tolist()
                positions += range(batch.position, batch.position + len(batch.ids))
            seen += mine
            assert weights[rank] > 0 or not mine
            if shuffle == "global":
                assert len(mine) == Partition(weights).counts(min(size, rows - len(ids)))[rank]
        assert announced == {len(seen)}
        assert seen
        ids += seen
    assert sorted(ids) == list(range(rows))
    assert sorted(positions) == list(range(rows))
    tested = [int(i) for loader in some for batch in loader.sequential() for i in batch.ids]
    assert sorted(tested) == list(range(rows))


def weights_for(ranks):
    """Unequal weights; from two ranks on one of them is 0."""
    return [(1.0,), (1.0, 0.0), (3.0, 1.0, 0.0), (2.0, 0.0, 5.0, 0.5)][ranks - 1]


@mpi
@pytest.mark.parametrize("algorithm", ["native", "tree", "ring"])
def test_shards_change_nothing_but_rounding(comm, algorithm):
    x, y = make_rows()
    kwargs = dict(optimizer=optim.Momentum(0.1), epochs=3, global_batch_size=32, l2=0.01, seed=7, allreduce=algorithm)
    results = []
    for partition in (None, Partition(weights_for(comm.size))):
        shard = whole(Dataset(x, y), comm.rank, comm.size, partition=partition)
        model = models.MLP(6, 3, (8,), activation="tanh", dropout=0.3, dtype=np.float64)
        results.append(fit(model, shard, comm, test=shard, **kwargs))
    even, shared = results
    np.testing.assert_allclose(shared.w, even.w, rtol=0, atol=1e-12)
    assert shared.train_loss == pytest.approx(even.train_loss, rel=1e-12)
    assert shared.test_loss == pytest.approx(even.test_loss, rel=1e-12)


@mpi
@pytest.mark.parametrize("rows", [2, 203])
def test_rows_move_when_they_are_shared_out_again(comm, rows):
    x, y = make_rows(max(rows, 3))
    x, y = x[:rows].astype(np.float32), y[:rows]
    counts = uneven(rows, comm.size)
    start = sum(counts[: comm.rank])
    shard = local_shard(x, y, comm, counts, weight=np.arange(rows) + 1.0)
    for weights in (weights_for(comm.size), (1.0,) * comm.size, weights_for(comm.size)[::-1]):
        partition = Partition(weights)
        shard = repartition(shard, partition, comm)
        assert shard.counts == partition.counts(rows)
        assert shard.partition is partition
        start, stop = partition.range_of(rows, comm.rank)
        assert np.array_equal(shard.dataset.x, x[start:stop])
        assert np.array_equal(shard.dataset.y, y[start:stop])
        assert np.array_equal(shard.dataset.weight, np.arange(start, stop) + 1)
        assert shard.dataset.x.dtype == np.float32
        assert shard.total_weight == rows * (rows + 1) / 2
    model = models.Softmax(6, 3, dtype=np.float64)
    done = fit(model, without_weights(shard), comm, optimizer=optim.Momentum(0.1), epochs=3, global_batch_size=32)
    assert done.status == "completed"


def without_weights(shard):
    return replace(shard, dataset=replace(shard.dataset, weight=None), summed_weight=None)


@mpi
def test_nothing_moves_under_the_global_shuffle(comm):
    x, y = make_rows()
    shard = whole(Dataset(x, y), comm.rank, comm.size)
    partition = Partition(weights_for(comm.size))
    sent = comm.bytes_sent
    again = repartition(shard, partition, comm)
    assert again.counts == partition.counts(len(y))
    assert again.dataset is shard.dataset
    assert comm.bytes_sent == sent


@mpi
@pytest.mark.parametrize(
    "options", [{"shuffle": "global"}, {"shuffle": "local"}, {"distribute": "scatter"}, {"test_fraction": 0.2}]
)
def test_files_are_shared_out_by_weight(comm, tmp_path, options):
    path = comm.bcast_object(str(tmp_path / "a.npz"))
    x, y = make_rows()
    if comm.rank == 0:
        np.savez(path, x=x, y=y)
    comm.barrier()
    partition = Partition(weights_for(comm.size))
    sets = load(path, comm, shards=partition, **options)
    seen = []
    for shard in sets:
        assert shard.counts == partition.counts(shard.rows)
        kind = dict(dtype=np.float64, target_dtype=np.int64, seed=3, global_batch_size=20)
        loader = Loader(shard, rank=comm.rank, ranks=comm.size, **kind)
        ids = [batch.ids.copy() for _, batches in loader.epoch(0) for batch in batches]
        for batch in loader.sequential():
            assert np.array_equal(batch.x, x[batch.ids])
            assert np.array_equal(batch.y, y[batch.ids])
        seen += [int(i) for part in comm.allgather_object(ids) for i in np.concatenate([np.empty(0, int), *part])]
        mine = sum(map(len, ids))
        assert mine == 0 if weights_for(comm.size)[comm.rank] == 0 else mine > 0
    assert sorted(seen) == list(range(len(y)))


@mpi
def test_weights_must_fit_the_ranks(comm):
    x, y = make_rows()
    wrong = Partition.even(comm.size + 1)
    with pytest.raises(ConfigError, match=f"shards .* {comm.size} in all, not {comm.size + 1}"):
        load("mnist", comm, shards=wrong)
    with pytest.raises(ConfigError, match="shards"):
        repartition(whole(Dataset(x, y), comm.rank, comm.size), wrong, comm)
    with pytest.raises(ConfigError, match="shards"):
        fit(models.Softmax(6, 3), whole(Dataset(x, y), comm.rank, comm.size, partition=wrong), comm)


@mpi(min_size=2)
def test_rows_of_several_types_move_as_the_type_that_holds_all(comm):
    """A rank without rows tells nothing by the type and the scale of its empty arrays."""
    x, y = np.arange(40).reshape(20, 2), np.arange(20)
    own = slice(*Partition((0.0,) + (1.0,) * (comm.size - 1)).range_of(20, comm.rank))
    kinds = (np.float64, np.uint8, np.float32)  # of rank 0, 1 and the others
    kind = kinds[min(comm.rank, 2)]
    shard = from_local(Dataset(x[own].astype(kind), y[own], scale=0.5 if comm.rank else 1.0), comm)
    shard = repartition(shard, Partition.even(comm.size), comm)
    start, stop = Partition.even(comm.size).range_of(20, comm.rank)
    assert np.array_equal(shard.dataset.x, x[start:stop])
    assert np.array_equal(shard.dataset.y, y[start:stop])
    assert shard.dataset.scale == 0.5
    assert shard.dataset.x.dtype == (np.uint8 if comm.size == 2 else np.float32)
    differing = from_local(Dataset(x, y, scale=1.0 + comm.rank), comm)
    with pytest.raises(DataError, match="scale their features"):
        repartition(differing, Partition((1.0,) + (0.0,) * (comm.size - 1)), comm)
