"""Batches: every row once an epoch, in an order that does not depend on the number of ranks."""

import itertools
from collections import Counter

import numpy as np
import pytest

from distai_mpi.data import (
    Batch,
    Dataset,
    Loader,
    Partition,
    Permutation,
    ShardedDataset,
    load,
    stream_key,
    summarize,
    whole,
)
from distai_mpi.data.sharding_plan import ShardingPlan
from distai_mpi.errors import ConfigError

pytestmark = pytest.mark.ranks(1, 2, 3, 4)

RANKS = [1, 2, 3, 4]


def dataset(rows, dtype=np.float32, features=5, scale=1.0):
    """Row i holds the values 5i, 5i + 1, ..., its label is 3i."""
    x = np.arange(rows * features).reshape(rows, features).astype(dtype)
    return Dataset(x, 3 * np.arange(rows), scale=scale)


def local_shards(rows, ranks, sets=None):
    """The shards of all ranks under the local shuffle, as `load` makes them."""
    data, plan = dataset(rows), ShardingPlan(Permutation(rows, "sharding"), sets or (rows,), Partition.even(ranks))
    shards = []
    for rank in range(ranks):
        own = plan.rows_of(rank)[: plan.counts(0)[rank]]
        part = Dataset(data.x[own], data.y[own])
        shards.append(ShardedDataset(part, plan.counts(0), rank, "local", summarize(part.y, 5), plan.order))
    return shards


def loaders(shards, size, seed=1, **options):
    """One loader for each rank."""
    kind = {"dtype": np.float32, "target_dtype": np.int64} | options
    make = dict(ranks=len(shards), global_batch_size=size, seed=seed, **kind)
    return [Loader(shard, rank=rank, **make) for rank, shard in enumerate(shards)]


def keep(batch):
    """A copy that holds; checks what must be true of any batch of `dataset`."""
    count = len(batch.ids)
    assert batch.x.shape == (count, 5)
    assert batch.x.flags.c_contiguous
    assert np.array_equal(batch.x[:, 2], 5 * batch.ids + 2)
    assert np.array_equal(batch.y, 3 * batch.ids)
    assert batch.ids.dtype == np.int64
    return batch._replace(x=batch.x.copy(), y=batch.y.copy(), ids=batch.ids.copy())


def epoch_of(some, epoch=0):
    """For each step: its announced rows, and every rank's list of batches."""
    steps = [[(rows, [keep(b) for b in batches]) for rows, batches in loader.epoch(epoch)] for loader in some]
    assert {len(own) for own in steps} == {some[0].steps}
    for step in zip(*steps, strict=True):
        assert len({rows for rows, _ in step}) == 1
        yield step[0][0], [batches for _, batches in step]


def ids_of(batches):
    return [int(i) for batch in batches for i in batch.ids]


@pytest.mark.parametrize("size", [1, 4, 7, 64])
@pytest.mark.parametrize("rows", [1, 2, 3, 13, 64])
@pytest.mark.parametrize("ranks", RANKS)
def test_global_batches_do_not_depend_on_the_number_of_ranks(ranks, rows, size):
    def order(ranks):
        shards = [whole(dataset(rows), rank, ranks) for rank in range(ranks)]
        found = []
        for step, (announced, parts) in enumerate(epoch_of(loaders(shards, size), 3)):
            batches = [batch for part in parts for batch in part]
            position = step * size
            for batch in batches:
                assert batch.position == position
                position += len(batch.ids)
            found.append(ids_of(batches))
            assert announced == len(found[-1]) == min(size, rows - step * size)
            lengths = [len(ids_of(part)) for part in parts]
            assert max(lengths) - min(lengths) <= 1
        return found

    assert order(ranks) == order(1)
    assert sorted(i for step in order(ranks) for i in step) == list(range(rows))


@pytest.mark.parametrize("size", [1, 4, 7, 64])
@pytest.mark.parametrize("rows", [1, 2, 3, 13, 64])
@pytest.mark.parametrize("ranks", RANKS)
def test_local_epochs_cover_every_row_once(ranks, rows, size):
    some = loaders(local_shards(rows, ranks), size)
    assert {loader.steps for loader in some} == {min(-(-rows // size), -(-rows // ranks))}
    seen, positions = [], []
    for announced, parts in epoch_of(some):
        assert announced > 0
        assert announced == sum(len(ids_of(part)) for part in parts)
        for part in parts:
            seen += ids_of(part)
            positions += [b.position + i for b in part for i in range(len(b.ids))]
    assert sorted(seen) == list(range(rows))
    assert sorted(positions) == list(range(rows))


def test_local_rows_stay_with_their_rank():
    some = loaders(local_shards(40, 3), 8)
    held = [{i for _, parts in epoch_of(some, e) for i in ids_of(parts[1])} for e in range(2)]
    assert held[0] == held[1]
    assert len(held[0]) == 13


def test_a_split_leaves_the_test_rows_out():
    data, order = dataset(50), Permutation(50, "split")
    labels = summarize(data.y, 5)
    train = ShardedDataset(data, (40,), 0, "global", labels, order, first=0)
    test = ShardedDataset(data, (10,), 0, "global", labels, order, first=40)
    (trained,), (tested,) = loaders([train], 7), loaders([test], 7)
    train_ids = [i for _, (part,) in epoch_of([trained]) for i in ids_of(part)]
    test_ids = ids_of(keep(batch) for batch in tested.sequential())
    assert sorted(train_ids + test_ids) == list(range(50))
    assert test_ids == order.positions(40, 50).tolist()


@pytest.mark.parametrize("shuffle", ["global", "local"])
def test_orders_change_with_epoch_and_seed_only(shuffle):
    def order(seed, epoch):
        shards = [whole(dataset(60))] if shuffle == "global" else local_shards(60, 1)
        return [i for _, (part,) in epoch_of(loaders(shards, 9, seed), epoch) for i in ids_of(part)]

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


@pytest.mark.parametrize("ranks", [1, 3])
def test_long_ranges_come_in_equal_blocks(ranks):
    shards = [whole(dataset(50), rank, ranks) for rank in range(ranks)]
    blocks = list(epoch_of(loaders(shards, 40, block_rows=6)))
    whole_ranges = list(epoch_of(loaders(shards, 40)))
    for (_, parts), (_, expected) in zip(blocks, whole_ranges, strict=True):
        for part, (batch,) in zip(parts, expected, strict=True):
            lengths = [len(batch.ids) for batch in part]
            assert max(lengths) <= 6
            assert max(lengths) - min(lengths) <= 1
            assert ids_of(part) == ids_of([batch])


def test_default_blocks_take_4_mib():
    data = Dataset(np.zeros((10, 784), np.uint8), np.zeros(10))
    (loader,) = loaders([whole(data)], 1)
    assert loader.block_rows * 784 * 4 == pytest.approx(4 << 20, rel=0.01)
    wide = Dataset(np.zeros((1, 10**6), np.uint8), np.zeros(1))
    assert loaders([whole(wide)], 1)[0].block_rows == 128


@pytest.mark.parametrize(
    ("stored", "dtype", "target"),
    [
        (np.uint8, np.float32, np.int64),
        (np.int16, np.float64, np.float64),
        (np.int64, np.float32, np.float32),
        (np.float32, np.float32, np.int64),
        (np.float32, np.float64, np.float64),
        (np.float64, np.float32, np.float32),
        (np.float64, np.float64, np.int64),
    ],
)  # each would be compiled: no full product
def test_rows_are_converted_and_scaled(stored, dtype, target):
    data = dataset(12, stored, scale=0.25)
    (loader,) = loaders([whole(data)], 5, dtype=dtype, target_dtype=target)
    batches = [batch for _, part in loader.epoch(0) for batch in map(_copy, part)]
    for batch in [*batches, *map(_copy, loader.sequential())]:
        assert batch.x.dtype == dtype
        assert batch.y.dtype == target
        assert np.array_equal(batch.x, data.x[batch.ids].astype(dtype) * dtype(0.25))
        assert np.array_equal(batch.y, data.y[batch.ids])


def _copy(batch):
    return Batch(*(part.copy() if isinstance(part, np.ndarray) else part for part in batch))


def test_rows_at_odd_addresses():
    raw = np.zeros(12 * 5 * 4 + 3, np.uint8)
    x = raw[3:].view(np.float32).reshape(12, 5)
    x[:] = dataset(12).x
    (loader,) = loaders([whole(Dataset(x, dataset(12).y))], 5)
    assert ids_of(keep(batch) for _, part in loader.epoch(0) for batch in part)
    assert ids_of(keep(batch) for batch in loader.sequential()) == list(range(12))


def test_nothing_is_copied_without_need():
    data = dataset(50)
    for loader in loaders([whole(data)], 50, block_rows=20) + loaders(local_shards(50, 1), 50, block_rows=20):
        held = loader.shard.dataset
        for batches in (loader.sequential(), next(iter(loader.epoch(0)))[1]):
            for batch in batches:
                assert np.shares_memory(batch.x, held.x)
                assert np.shares_memory(batch.y, held.y)
    (scaled,) = loaders([whole(data)], 50, dtype=np.float64)
    (first, second, *_) = [batch.x for _ in range(2) for batch in scaled.sequential()]
    assert np.shares_memory(first, second)  # buffers are made once
    assert not np.shares_memory(first, data.x)


@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("first", [0, 3])
def test_small_steps_of_an_epoch_can_be_had_many_at_a_time(ranks, size, first):
    shards = [whole(dataset(50), rank, ranks) for rank in range(ranks)]
    some = loaders(shards, size, block_rows=3)
    single = [[ids_of(part) for part in parts] for rows, parts in epoch_of(some, 2) if rows == size][first:]
    for rank, loader in enumerate(some):
        runs = [(run.steps, keep(run.batch)) for run in loader.runs(2, 16, first)]
        assert [batch.position for _, batch in runs] == [(first + i) * size for i in range(0, len(single), 16)]
        assert [steps for steps, _ in runs] == [min(16, len(single) - i) for i in range(0, len(single), 16)]
        rows = loader.rows_of_step(rank)
        taken = [ids.tolist() for steps, batch in runs for ids in np.reshape(batch.ids, (steps, rows))]
        assert taken == [parts[rank] for parts in single]


def test_steps_of_locally_shuffled_rows_can_be_had_many_at_a_time():
    some = loaders(local_shards(50, 3), 8)
    single = list(epoch_of(some, 1))
    for rank, loader in enumerate(some):
        taken, rows = [], []
        for run in loader.runs(1, 2, 1):
            taken += [run.batch.ids[low:high].tolist() for low, high in itertools.pairwise(run.ends)]
            rows += run.rows.tolist()
        assert taken == [ids_of(parts[rank]) for _, parts in single[1:]]
        assert rows == [count for count, _ in single[1:]]


def test_batches_carry_what_random_numbers_are_keyed_by():
    (loader,) = loaders([whole(dataset(9))], 4, seed=8)
    for epoch in range(2):
        for _, batches in loader.epoch(epoch):
            for batch in batches:
                assert (batch.train, batch.key) == (True, stream_key(8, "epoch", epoch))
    assert not next(loader.sequential()).train
    assert next(loader.sequential(train=True, epoch=3)).key == stream_key(8, "epoch", 3)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("make", [local_shards, lambda n, ranks: [whole(dataset(n), r, ranks) for r in range(ranks)]])
def test_sequential_covers_every_row_once(make, ranks):
    seen = [keep(batch) for loader in loaders(make(10, ranks), 3, block_rows=2) for batch in loader.sequential()]
    assert sorted(ids_of(seen)) == list(range(10))
    assert sorted(b.position + i for b in seen for i in range(len(b.ids))) == list(range(10))


def test_what_cannot_work_is_refused():
    with pytest.raises(ConfigError, match="global batch"):
        loaders([whole(dataset(3))], 0)
    with pytest.raises(ValueError, match="rank 0 of 1"):
        loaders(local_shards(9, 2)[:1], 3)


@pytest.fixture
def comm():
    from mpi4py import MPI

    from distai_mpi.comm import Communicator

    with Communicator(MPI.COMM_WORLD) as communicator:
        yield communicator


@pytest.mark.mpi
@pytest.mark.parametrize("shuffle", ["global", "local"])
@pytest.mark.parametrize("rows", [2, 37])
def test_ranks_share_out_every_epoch(comm, tmp_path, rows, shuffle):
    path = comm.bcast_object(str(tmp_path / "a.npz"))
    if comm.rank == 0:
        data = dataset(rows)
        np.savez(path, x_train=data.x, y_train=data.y, x_test=data.x, y_test=data.y)
    comm.barrier()
    train, test = load(path, comm, shuffle=shuffle)
    make = dict(rank=comm.rank, ranks=comm.size, global_batch_size=5, seed=4, dtype=np.float32, target_dtype=np.int64)
    loader = Loader(train, **make)
    (reference,) = loaders([whole(dataset(rows))], 5, seed=4)
    own = [(n, ids_of(map(keep, batches))) for n, batches in loader.epoch(1)]
    steps = list(zip(*comm.allgather_object(own), strict=True))
    expected = [(n, ids_of(map(keep, batches))) for n, batches in reference.epoch(1)]
    for step, (n, ids) in zip(steps, expected, strict=True):
        assert {announced for announced, _ in step} == {sum(len(part) for _, part in step)}
        if shuffle == "global":
            assert ([i for _, part in step for i in part], step[0][0]) == (ids, n)
    assert Counter(i for step in steps for _, part in step for i in part) == Counter(range(rows))
    tested = comm.allgather_object(ids_of(map(keep, Loader(test, **make).sequential())))
    assert sorted(i for part in tested for i in part) == list(range(rows))
