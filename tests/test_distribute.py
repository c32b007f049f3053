"""Who holds which rows, however they got there."""

import itertools
import os
from types import SimpleNamespace

import numpy as np
import pytest
from alone import Alone

from distai_mpi.data import Partition, Permutation, distribute, load, load_sets, merge, summarize
from distai_mpi.data.partition import even_range
from distai_mpi.data.sharding_plan import ShardingPlan
from distai_mpi.errors import ConfigError, DataError

pytestmark = pytest.mark.ranks(1, 2, 3, 4)

ROWS = 41
X = np.arange(ROWS * 6, dtype=np.float32).reshape(ROWS, 6)
Y = np.arange(ROWS) % 4


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("rows", [0, 1, 2, 7, 12, 100])
def test_even_shards(rows, ranks):
    counts = Partition.even(ranks).counts(rows)
    assert (len(counts), sum(counts)) == (ranks, rows)
    assert max(counts) - min(counts) <= 1
    cuts = [even_range(rows, ranks, rank) for rank in range(ranks)]
    assert [stop - start for start, stop in cuts] == list(counts)
    assert cuts[0][0] == 0
    assert all(a[1] == b[0] for a, b in itertools.pairwise(cuts))


@pytest.mark.parametrize("order", [None, Permutation(20, "order")])
@pytest.mark.parametrize("sets", [(20,), (18, 2), (13, 7), (1, 19)])
@pytest.mark.parametrize("weights", [(1,), (1, 1), (1,) * 30, (3, 1, 1), (0, 5, 0.5, 0), (0.1, 0, 7)])
def test_plans_send_every_row_where_it_is_kept(order, sets, weights):
    plan, ranks = ShardingPlan(order, sets, Partition(weights)), len(weights)
    kept = [plan.rows_of(rank) for rank in range(ranks)]
    assert sorted(np.concatenate(kept)) == list(range(20))
    assert [len(rows) for rows in kept] == np.sum([plan.counts(w) for w in range(len(sets))], axis=0).tolist()
    rank, index = plan.destinations(3, 17)
    assert [kept[r][i] for r, i in zip(rank, index, strict=True)] == list(range(3, 17))
    firsts = np.concatenate([rows[:n] for rows, n in zip(kept, plan.counts(0), strict=True)])
    permuted = np.arange(20) if order is None else order.positions(0, 20)
    assert np.array_equal(firsts, permuted[: sets[0]])


@pytest.mark.parametrize(
    ("y", "expected"),
    [
        ([0, 1, 1], (0, 1, True, True, False, 2)),
        ([-1.0, 1.0], (-1, 1, True, False, True, None)),
        ([1, 1], (1, 1, True, True, True, 2)),
        ([0, 9, 3], (0, 9, True, False, False, 10)),
        ([0, 0.5, 1], (0, 1, False, False, False, None)),
        ([-1, 0, 1], (-1, 1, True, False, False, None)),
    ],
)
def test_label_summary(y, expected):
    def facts(s):
        return (s.low, s.high, s.integral, s.zero_one, s.plus_minus, s.classes)

    y = np.array(y)
    assert facts(summarize(y, 5)) == expected
    merged = merge([summarize(part, 5) for part in (y[:1], y[:0], y[1:])])
    assert facts(merged) == expected
    assert (merged.rows, merged.features) == (len(y), 5)
    assert summarize(y[:0], 5).classes is None


@pytest.fixture
def files(tmp_path):
    """Paths of the same rows in several formats, the same on all ranks; ``save(**arrays)`` makes more."""
    return make_files(tmp_path)


def make_files(folder, comm=None):
    path = str(folder) if comm is None else comm.bcast_object(str(folder))

    def save(name, how=np.savez, **arrays):
        if comm is None or comm.rank == 0:
            how(f"{path}/{name}", **arrays)
        if comm is not None:
            comm.barrier()
        return f"{path}/{name}"

    tested = dict(x_test=X[:5] + 1, y_test=Y[:5])
    return SimpleNamespace(
        save=save,
        mapped=save("mapped.npz", x_train=X, y_train=Y, **tested),
        packed=save("packed.npz", np.savez_compressed, x_train=X, y_train=Y, **tested),
        columns=save("columns.npz", x_train=np.asfortranarray(X), y_train=Y, **tested),
        no_test=save("no_test.npz", x=X, y=Y),
        no_test_packed=save("no_test_packed.npz", np.savez_compressed, x=X, y=Y),
    )


def rows_held(shard):
    """Numbers of the file's rows that a shard holds, in its order."""
    start = shard.first + (shard.starts[shard.rank] if shard.shuffle == "local" else 0)
    count = shard.counts[shard.rank] if shard.shuffle == "local" else shard.rows
    positions = np.arange(start, start + count)
    return positions if shard.order is None else shard.order.apply(positions)


def check(shard, x, y):
    """The shard's rows are those of the file, under either shuffle."""
    rows = rows_held(shard)
    held = shard.dataset
    if shard.shuffle == "local":
        assert np.array_equal(held.x, x[rows])
        assert np.array_equal(held.y, y[rows])
    else:
        assert np.array_equal(held.x, x)
        assert np.array_equal(held.y, y)
    assert held.x.dtype == x.dtype
    assert shard.features == 6
    assert shard.labels.rows == shard.rows
    assert (shard.labels.low, shard.labels.high) == (y.min(), y.max()), "of all rows of the file, split or not"
    return rows


def test_what_is_chosen_when_nothing_is_said(files):
    def chosen(path, **options):
        train, test = load(path, Alone(), **options)
        check(train, X, Y)
        return train.shuffle, train.transfer, test.shuffle, test.transfer

    assert chosen(files.mapped) == ("global", "read", "global", "read")
    assert chosen(files.packed) == ("global", "node", "global", "node")
    assert chosen(files.columns) == ("global", "node", "global", "read")
    for limit, mode in ((ROWS * 32 + 5 * 32, "global"), (ROWS * 32 + 5 * 32 - 1, "local")):
        assert chosen(files.mapped, memory_limit=limit)[0] == mode
        assert chosen(files.mapped, memory_limit=limit, shuffle="global")[0] == "global"
    assert chosen(files.mapped, shuffle="local")[:2] == ("local", "read")
    assert chosen(files.columns, shuffle="local")[:2] == ("local", "read")
    assert chosen(files.packed, shuffle="local")[:2] == ("local", "scatter")
    assert chosen(files.packed, shuffle="local", distribute="read")[:2] == ("local", "read")
    assert chosen(files.mapped, distribute="scatter")[:2] == ("local", "scatter")


def test_mapped_data_is_not_copied(files):
    train, _ = load(files.mapped, Alone())
    base = train.dataset.x
    while base.base is not None and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)


def test_a_scatter_is_sent_in_chunks(files):
    comm = Alone()
    train, _ = load(files.mapped, comm, distribute="scatter", chunk_bytes=7 * 6 * 4)
    check(train, X, Y)
    of_test = [5 * 6, 5]  # its rows are fewer than a chunk has
    assert comm.scattered[:8] == [*of_test, *[7 * 6] * 5, 6 * 6]


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("shuffle", ["global", "local"])
def test_split(files, shuffle, fraction):
    train, test = load(files.no_test, Alone(), shuffle=shuffle, test_fraction=fraction)
    rows = check(train, X, Y).tolist()
    if fraction == 0:
        assert test is None
    else:
        assert test.rows == min(ROWS - 1, max(1, round(fraction * ROWS)))
        rows += check(test, X, Y).tolist()
        other = load(files.no_test, Alone(), shuffle=shuffle, test_fraction=fraction, seed=1)[1]
        assert fraction > 0.9 or sorted(rows_held(other)) != sorted(rows_held(test))
    assert sorted(rows) == list(range(ROWS))


def test_one_row_is_not_split(files):
    train, test = load(files.save("one.npz", x=X[:1], y=Y[:1]), Alone())
    assert (train.rows, test) == (1, None)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"distribute": "send"}, "distribute='send': choose read or scatter"),
        ({"shuffle": "all"}, "shuffle='all': choose global or local"),
        ({"distribute": "scatter", "shuffle": "global"}, "use shuffle='local'"),
        ({"test_fraction": 1.0}, "test fraction"),
        ({"test": 3}, "test must be a path.*not 3"),
        ({"valid": 1}, "valid must be a path.*not 1"),
        ({"label": 0}, "label must be a string.*not 0"),
        ({"weight": 2.5}, "weight must be a string.*not 2.5"),
        ({"dtype": "int8"}, "float32 or float64, not int8"),
        ({"test_fraction": -0.1}, "test fraction"),
        ({"test_fraction": float("nan")}, "test fraction"),
    ],
)
def test_choices_that_cannot_work(options, match):
    with pytest.raises(ConfigError, match=match):
        load("mnist", Alone(), **options)


@pytest.mark.mpi
def test_what_is_no_name_of_data_is_refused_on_all_ranks(comm):
    """And not on rank 0 alone, which looks at files: the others would wait for it."""
    assert "data must be a path" in same_error(comm, ConfigError, None)
    assert "label must be a string" in same_error(comm, ConfigError, "mnist", label=0)
    assert "not int32" in same_error(comm, ConfigError, "mnist", dtype=np.int32)


class Full(Alone):
    """A node without shared memory."""

    def node_array(self, shape, dtype, touch=True):
        raise MemoryError("/dev/shm is full")


def test_without_shared_memory(files):
    train, _ = load(files.packed, Full())
    check(train, X, Y)
    assert train.transfer == "copy"
    train, _ = load(files.packed, Full(), memory_limit=4000)
    assert train.transfer == "copy"
    crowded = Full()
    crowded.node = SimpleNamespace(size=64)
    train, _ = load(files.packed, crowded, memory_limit=4000)
    check(train, X, Y)
    assert (train.shuffle, train.transfer) == ("local", "scatter")
    with pytest.raises(ConfigError, match="full.*use shuffle='local'"):
        load(files.packed, crowded, memory_limit=4000, shuffle="global")


# --- on ranks


@pytest.fixture
def comm():
    from mpi4py import MPI

    from distai_mpi.comm import Communicator

    with Communicator(MPI.COMM_WORLD) as communicator:
        yield communicator


@pytest.fixture
def shared_files(comm, tmp_path):
    return make_files(tmp_path, comm)


def everyones(comm, shard):
    """Rows held by all ranks together under the local shuffle."""
    parts = comm.allgather_object(rows_held(shard).tolist())
    assert [len(part) for part in parts] == list(shard.counts)
    return [row for part in parts for row in part]


@pytest.mark.mpi
@pytest.mark.parametrize("chunk_bytes", [1, 150, 1 << 20])
@pytest.mark.parametrize("kind", ["mapped", "packed", "columns"])
def test_scatter_and_read_give_the_same(comm, shared_files, kind, chunk_bytes):
    path, held = getattr(shared_files, kind), []
    for way in ("scatter", "read"):
        train, test = load(path, comm, distribute=way, shuffle="local", chunk_bytes=chunk_bytes)
        assert train.transfer == test.transfer == way
        check(train, X, Y)
        check(test, X[:5] + 1, Y[:5])
        assert sorted(everyones(comm, train)) == list(range(ROWS))
        assert everyones(comm, test) == list(range(5))
        held.append((train, test))
    for one, other in zip(*held, strict=True):
        assert np.array_equal(one.dataset.x, other.dataset.x)
        assert np.array_equal(one.dataset.y, other.dataset.y)
        assert one.labels == other.labels


@pytest.mark.mpi
@pytest.mark.parametrize("chunk_bytes", [100, 1 << 20])
@pytest.mark.parametrize("kind", ["mapped", "packed", "columns"])
def test_every_rank_reaches_all_rows(comm, shared_files, monkeypatch, kind, chunk_bytes):
    path = getattr(shared_files, kind)
    for sees in (None, lambda sources, comm: [True] + [False] * (comm.size - 1)):
        if sees is not None:
            monkeypatch.setattr(distribute, "_who_sees", sees)
        train, test = load(path, comm, shuffle="global", chunk_bytes=chunk_bytes)
        check(train, X, Y)
        check(test, X[:5] + 1, Y[:5])
        assert train.transfer == ("read" if kind == "mapped" and (sees is None or comm.size == 1) else "node")
        assert set(comm.allgather_object(train.labels)) == {train.labels}


@pytest.mark.mpi
def test_copies_where_nodes_cannot_share(comm, shared_files, monkeypatch):
    def refuse(shape, dtype, touch=True):
        raise MemoryError("no room")

    monkeypatch.setattr(comm, "node_array", refuse)
    for sees in (None, lambda sources, comm: [True] + [False] * (comm.size - 1)):
        if sees is not None:
            monkeypatch.setattr(distribute, "_who_sees", sees)
        train, _ = load(shared_files.packed, comm, chunk_bytes=100)
        check(train, X, Y)
        assert train.transfer == "copy"


@pytest.mark.mpi
def test_a_split_is_the_same_on_any_number_of_ranks(comm, shared_files):
    alone = rows_held(load(shared_files.no_test, Alone(), shuffle="global")[1]).tolist()
    for options in ({"shuffle": "global"}, {"shuffle": "local"}, {"distribute": "scatter", "chunk_bytes": 200}):
        for path in (shared_files.no_test, shared_files.no_test_packed):
            train, test = load(path, comm, **options)
            check(train, X, Y)
            check(test, X, Y)
            if test.shuffle == "global":
                assert rows_held(test).tolist() == alone
            else:
                assert everyones(comm, test) == alone
                assert sorted(everyones(comm, train) + alone) == list(range(ROWS))


@pytest.mark.mpi
@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("options", [{"shuffle": "global"}, {"shuffle": "local"}, {"distribute": "scatter"}])
def test_more_ranks_than_rows(comm, shared_files, rows, options):
    path = shared_files.save("few.npz", x=X[:rows], y=Y[:rows])
    train, _ = load(path, comm, test_fraction=0, **options)
    assert train.counts == Partition.even(comm.size).counts(rows)
    check(train, X[:rows], Y[:rows])
    assert train.labels.high == max(Y[:rows])


def same_error(comm, kind, path, read=load, **options):
    """The message of the error of this kind that all ranks raise alike."""
    with pytest.raises(kind) as caught:
        read(path, comm, **options)
    messages = comm.allgather_object(str(caught.value))
    assert len(set(messages)) == 1
    return messages[0]


@pytest.mark.mpi
@pytest.mark.parametrize("options", [{"shuffle": "global"}, {"shuffle": "local"}, {"distribute": "scatter"}])
def test_errors_are_the_same_on_all_ranks(comm, shared_files, options):
    x = X.copy()
    x[17, 3] = x[30, 2] = np.nan
    path = shared_files.save("nan.npz", x=x, y=Y)
    assert "x holds nan in row" in same_error(comm, DataError, path, **options)
    if options == {"shuffle": "global"}:
        assert "row 17, column 3" in same_error(comm, DataError, path, **options)
    assert "no such file" in same_error(comm, DataError, path + "absent", **options)
    packed = shared_files.save("packed_nan.npz", np.savez_compressed, x=X, y=np.full(ROWS, np.inf))
    assert "y holds inf in row" in same_error(comm, DataError, packed, **options)
    lonely = shared_files.save("lonely.npz", x=X)
    assert "holds x, but no y" in same_error(comm, DataError, lonely, **options)


@pytest.mark.mpi
@pytest.mark.parametrize("options", [{"shuffle": "global"}, {"shuffle": "local"}, {"distribute": "read"}])
def test_damage_found_while_reading(comm, shared_files, options):
    rng = np.random.default_rng(0)
    path = shared_files.save("damaged.npz", np.savez_compressed, x=rng.normal(size=(3000, 6)), y=np.zeros(3000))
    if comm.rank == 0:
        with open(path, "r+b") as file:
            file.seek(os.path.getsize(path) // 2)
            file.write(b"\xff" * 16)
    comm.barrier()
    assert "x is damaged" in same_error(comm, DataError, path, chunk_bytes=1000, **options)


@pytest.mark.mpi(min_size=2)
def test_a_file_that_rank_0_alone_sees(comm, tmp_path, monkeypatch):
    """Every rank stands in a folder of its own, as on nodes without a shared file system."""
    folder = tmp_path / f"rank{comm.rank}"
    folder.mkdir()
    monkeypatch.chdir(folder)
    if comm.rank == 0:
        np.savez("a.npz", x=X, y=Y)
    comm.barrier()
    assert "rank 1 does not see" in same_error(comm, ConfigError, "a.npz", distribute="read")
    for options in ({}, {"shuffle": "local"}):
        train, _ = load("a.npz", comm, **options)
        check(train, X, Y)
        assert train.transfer == ("node" if train.shuffle == "global" else "scatter")


@pytest.mark.mpi
@pytest.mark.parametrize("shuffle", ["global", "local"])
def test_validation_rows_leave_the_test_rows_what_they_are(comm, shared_files, shuffle):
    path = shared_files.no_test
    options = {"shuffle": shuffle, "test_fraction": 0.25, "seed": 3}
    plain = load_sets(path, comm, **options)
    sets = load_sets(path, comm, valid=0.2, **options)
    rows = [{row for part in comm.allgather_object(rows_held(shard).tolist()) for row in part} for shard in sets]
    assert [len(r) for r in rows] == [shard.rows for shard in sets] == [ROWS - 10 - 8, 10, 8]
    assert set.union(*rows) == set(range(ROWS))
    assert rows[1] == {row for part in comm.allgather_object(rows_held(plain.test).tolist()) for row in part}
    assert plain.valid is None


@pytest.mark.mpi
def test_validation_rows_in_a_file_of_their_own(comm, shared_files):
    sets = load_sets(shared_files.no_test, comm, valid=shared_files.no_test, test_fraction=0)
    assert (sets.train.rows, sets.test, sets.valid.rows) == (ROWS, None, ROWS)
    with pytest.raises(DataError, match="features"):
        load_sets(shared_files.no_test, comm, valid="mnist")
    for fraction in (0.0, 1.0, -0.5):
        with pytest.raises(ConfigError, match="validation"):
            load_sets(shared_files.no_test, comm, valid=fraction)
