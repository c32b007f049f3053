"""Every collective on a simulated wire: right sums, same bits everywhere, and exactly the traffic of perf/costs.py."""

import numpy as np
import pytest
from simulated import simulate, tables

from distai_mpi.comm import pair_kernels, pairs, touched
from distai_mpi.comm.collectives import ALGORITHMS, Workspace
from distai_mpi.params import Ownership
from distai_mpi.perf import costs

SIZES = range(1, 10)
OWN = [name for name in ALGORITHMS if name != "native"]
SLICED = [name for name in OWN if ALGORITHMS[name].sliced]


def lengths(size):
    return sorted({0, 1, size - 1, size, 1000})


def inputs(size, length, dtype=np.float32):
    rng = np.random.default_rng(length + 100 * size)
    return rng.integers(-8, 8, (size, length)).astype(dtype)  # sums are exact


def assert_traffic(wires, *args, **kwargs):
    counted = [costs.Traffic(wire.messages, wire.bytes) for wire in wires]
    assert counted == costs.sent(*args, **kwargs)


@pytest.mark.parametrize("segment", [64, 1 << 20])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", OWN)
def test_allreduce(name, size, segment):
    for length in lengths(size):
        x = inputs(size, length)
        expected = x.sum(axis=0)
        wires, _ = simulate(size, lambda wire, x=x: ALGORITHMS[name].allreduce(wire, x[wire.rank], Workspace(segment)))
        np.testing.assert_array_equal(x, np.tile(expected, (size, 1)))
        assert_traffic(wires, "allreduce", name, size, 4 * length, segment=segment)


@pytest.mark.parametrize("segment", [64, 1 << 20])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", SLICED)
def test_reduce_scatter(name, size, segment):
    for length in lengths(size):
        for owners in tables(size, length, 4):
            x = inputs(size, length)
            expected = x.sum(axis=0)
            wires, _ = simulate(
                size,
                lambda wire, x=x, t=owners: ALGORITHMS[name].reduce_scatter(
                    wire, x[wire.rank], t.slices, Workspace(segment)
                ),
            )
            for rank, part in enumerate(owners.slices):
                np.testing.assert_array_equal(x[rank, part], expected[part])
            sizes = [4 * (s.stop - s.start) for s in owners.slices]
            assert_traffic(wires, "reduce_scatter", name, size, 4 * length, sizes, segment)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", SLICED)
def test_allgather(name, size):
    for length in lengths(size):
        for owners in tables(size, length, 4):
            x = np.full((size, length), np.nan, np.float32)
            for rank, part in enumerate(owners.slices):
                x[rank, part] = np.arange(length)[part]
            wires, _ = simulate(
                size,
                lambda wire, x=x, t=owners: ALGORITHMS[name].allgather(wire, x[wire.rank], t.slices, Workspace(64)),
            )
            np.testing.assert_array_equal(x, np.tile(np.arange(length), (size, 1)))
            sizes = [4 * (s.stop - s.start) for s in owners.slices]
            assert_traffic(wires, "allgather", name, size, 4 * length, sizes)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", OWN)
def test_all_ranks_get_the_same_bits_where_sums_round(name, size, dtype):
    x = np.random.default_rng(size).standard_normal((size, 777)).astype(dtype)
    expected = x.astype(np.float64).sum(axis=0)
    simulate(size, lambda wire: ALGORITHMS[name].allreduce(wire, x[wire.rank], Workspace(256)))
    assert all(row.tobytes() == x[0].tobytes() for row in x)
    np.testing.assert_allclose(x[0], expected, rtol=0, atol=8 * size * np.finfo(dtype).eps)


def test_slice_sizes_are_those_of_the_ownership_table():
    for size in (0, 1, 15, 16, 17, 1000):
        for ranks in SIZES:
            for itemsize in (1, 2, 4, 8):
                table = Ownership.sharded(size, ranks, itemsize).slices
                assert costs.slice_sizes(size * itemsize, ranks) == [(s.stop - s.start) * itemsize for s in table]


@pytest.mark.parametrize("ranks", [2, 4, 8, 64])
def test_traffic_agrees_with_the_published_formulas(ranks):
    """Powers of two, slices that divide evenly: 2(p-1)/p n bytes, and the stated numbers of messages."""
    n, levels = 64 * ranks, ranks.bit_length() - 1
    for name, messages, nbytes in (
        ("ring", 2 * (ranks - 1), 2 * (ranks - 1) * n // ranks),
        ("rabenseifner", 2 * levels, 2 * (ranks - 1) * n // ranks),
        ("recursive_doubling", levels, levels * n),
    ):
        sent = costs.sent("allreduce", name, ranks, n)
        assert (max(each.messages for each in sent), max(each.bytes for each in sent)) == (messages, nbytes)
        path = costs.path("allreduce", name, ranks, n)
        assert (path.messages, path.sent) == (messages, nbytes)
    assert costs.together(costs.sent("allreduce", "tree", ranks, n)) == costs.Traffic(
        2 * ranks - 2, (2 * ranks - 2) * n
    )
    assert costs.path("allreduce", "tree", ranks, n) == costs.Path(2 * levels, 2 * levels * n, levels * n)


@pytest.mark.parametrize("ranks", SIZES)
def test_halves_make_up_a_ring_allreduce(ranks):
    halves = costs.path("reduce_scatter", "ring", ranks, 960) + costs.path("allgather", "ring", ranks, 960)
    assert halves == costs.path("allreduce", "ring", ranks, 960)


def test_seconds():
    # 4 ranks, 4000 bytes, 1 µs, 1 GB/s, 2 GB/s: 6 messages, 6000 bytes sent, 3000 summed
    assert costs.seconds("ring", 4, 4000, 1e-6, 1e9, 2e9) == pytest.approx(6e-6 + 6e-6 + 1.5e-6)
    assert costs.seconds("recursive_doubling", 4, 4000, 1e-6, 1e9, 2e9) == pytest.approx(2e-6 + 8e-6 + 4e-6)
    best = min(costs.seconds(name, 4, 4000, 1e-6, 1e9, 2e9) for name in OWN)
    assert costs.seconds("native", 4, 4000, 1e-6, 1e9, 2e9) == best
    assert costs.seconds("ring", 1, 4000, 1e-6, 1e9, 2e9) == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: costs.sent("allreduce", "nonesuch", 2, 8),
        lambda: costs.sent("reduce_scatter", "tree", 2, 8),
        lambda: costs.sent("allgather", "ring", 2, 8, [4, 3]),
        lambda: costs.path("gather", "ring", 2, 8),
    ],
)
def test_bad_arguments(call):
    with pytest.raises(ValueError, match=r"cost|slices"):
        call()


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("outputs", [1, 3])
def test_index_value_pairs(size, outputs):
    """Few pairs travel as such, many as the slice; owners get the sums of theirs."""
    rng, columns = np.random.default_rng(size), 60
    for owners in tables(size, columns * outputs, 4):
        x = rng.integers(-8, 8, (size, columns, outputs)).astype(np.float32)
        x *= rng.random((size, columns, 1)) < rng.random((size, 1, 1))  # some ranks have few
        order = sorted(range(size), key=lambda r, t=owners: (t.slices[r].start, t.slices[r].stop))
        starts = np.array([owners.slices[r].start for r in order])

        def work(wire, x=x, owners=owners, order=order, starts=starts):
            some = np.flatnonzero(x[wire.rank].any(axis=1)).astype(np.uint32)
            ends, new, sums = (
                np.zeros(size + 1, np.int64),
                np.empty(columns + size, np.uint32),
                np.empty((columns + size, outputs), np.float32),
            )
            pair_kernels.divide(some, x[wire.rank][some], starts, ends, new, sums)
            parts = {owner: slice(*ends[i : i + 2]) for i, owner in enumerate(order)}
            messages = {o: pairs.message_of(new[p], sums[p], owners.slices[o]) for o, p in parts.items()}
            others = [rank for rank in range(size) if rank != wire.rank]
            came = pairs.swap(wire, {o: messages[o] for o in others}, others) | {wire.rank: messages[wire.rank]}
            mine = owners.slices[wire.rank]
            total = np.zeros(mine.stop - mine.start, np.float32)
            for message in came.values():
                one = np.zeros_like(total)
                if message.is_slice:
                    one[:] = message.payload.view(np.float32)
                else:
                    pair_kernels.put(
                        *pairs.pairs_of(message, outputs, np.dtype(np.uint32), total.dtype), mine.start, one
                    )
                total += one
            assert np.array_equal(total, x.reshape(size, -1)[:, mine].sum(axis=0))
            return [parts[owner].stop - parts[owner].start for owner in range(size)]

        wires, counts = simulate(size, work)
        sizes = [4 * (s.stop - s.start) for s in owners.slices]
        counted = [costs.Traffic(wire.messages, wire.bytes) for wire in wires]
        assert counted == costs.pairs_sent(counts, sizes, 4 + 4 * outputs)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_values_of_touched_elements(size):
    """Owners get the sums of what others touch, these get them back, and no indices travel again."""
    rng, length = np.random.default_rng(size), 90
    for owners in tables(size, length, 8):
        marks = rng.random((size, length)) < rng.random((size, 1))
        x = np.where(marks, rng.integers(-8, 8, marks.shape), 0).astype(np.float64)
        total, first = x.sum(axis=0), []

        def work(wire, x=x, marks=marks, owners=owners, total=total, first=first):
            mine, found = owners.slices[wire.rank], touched.agree(wire, marks[wire.rank], owners.slices)
            vector = x[wire.rank].copy()
            first.append((wire, wire.messages, wire.bytes))
            touched.touched_reduce_scatter(wire, vector, found, Workspace(64))
            assert np.array_equal(vector[mine], total[mine])
            sent = wire.messages, wire.bytes
            touched.touched_allgather(wire, vector, found, Workspace(64))
            assert np.array_equal(vector[marks[wire.rank]], total[marks[wire.rank]])
            return found.elements, sent

        wires, results = simulate(size, work)
        counts = [[int(marks[rank, part].sum()) for part in owners.slices] for rank in range(size)]
        begun = {wire.rank: np.array(sent) for wire, *sent in first}
        down, up = (costs.touched_sent(half, counts, 8, 32) for half in ("reduce_scatter", "allgather"))
        for rank, (wire, (elements, sent)) in enumerate(zip(wires, results, strict=True)):
            assert (sent - begun[rank]).tolist() == [down[rank].messages, down[rank].bytes]
            assert [wire.messages - sent[0], wire.bytes - sent[1]] == [up[rank].messages, up[rank].bytes]
            assert elements == max(down[rank].bytes, up[rank].bytes) // 8
