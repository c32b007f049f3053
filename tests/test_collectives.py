"""Every algorithm over real messages against NumPy, at any number of ranks."""

import os

import numpy as np
import pytest

from distai_mpi.comm import ALGORITHMS, Communicator, wire
from distai_mpi.params import Ownership

pytestmark = [pytest.mark.mpi, pytest.mark.ranks(1, 2, 3, 4)]
DTYPES = ["float16", "float32", "float64", "int32", "int64", "uint8"]
NAMES = sorted(ALGORITHMS)
SLICED = [name for name in NAMES if ALGORITHMS[name].sliced]


@pytest.fixture(scope="module")
def comm():
    from mpi4py import MPI

    with Communicator(MPI.COMM_WORLD) as communicator:
        yield communicator


@pytest.fixture(scope="module")
def small_chunks():
    from mpi4py import MPI

    with Communicator(MPI.COMM_WORLD, chunk_bytes=200) as communicator:
        yield communicator


def vectors(comm, length, dtype):
    """All ranks' vectors, small integers so that sums are exact, and their sum."""
    rng = np.random.default_rng([length, comm.size])
    x = rng.integers(0, 16, (comm.size, length)).astype(dtype)
    return x, x.sum(axis=0, dtype=dtype)


def lopsided(comm, length):
    """The first rank owns nothing, the last half of the rest, the others share."""
    cuts = [length * max(rank - 1, 0) // (2 * comm.size) for rank in range(comm.size)]
    return Ownership(length, tuple(map(slice, [0, *cuts[1:]], [*cuts[1:], length])))


def lengths(size):
    return sorted({0, 1, size - 1, size, 1000, 70_001})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_allreduce(comm, name, dtype):
    for length in lengths(comm.size):
        x, expected = vectors(comm, length, dtype)
        mine = x[comm.rank]
        comm.allreduce(mine, name)
        assert mine.dtype == dtype
        np.testing.assert_array_equal(mine, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_halves(comm, name, dtype):
    for length in lengths(comm.size):
        tables = [comm.ownership(length, dtype, name)]
        if ALGORITHMS[name].sliced:
            tables.append(lopsided(comm, length))
        for owners in tables:
            x, expected = vectors(comm, length, dtype)
            mine = x[comm.rank].copy()
            part = comm.reduce_scatter(mine, owners, name)
            np.testing.assert_array_equal(part, expected[owners.slices[comm.rank]])
            assert part.size == 0 or np.shares_memory(part, mine)
            comm.allgather(mine, owners, name)
            np.testing.assert_array_equal(mine, expected)


@pytest.mark.parametrize("name", SLICED)
def test_allgather_takes_only_what_is_owned(comm, name):
    owners = lopsided(comm, 5000)
    x = np.full(5000, np.nan)
    part = owners.slices[comm.rank]
    x[part] = np.arange(5000.0)[part]
    comm.allgather(x, owners, name)
    np.testing.assert_array_equal(x, np.arange(5000.0))


@pytest.mark.parametrize("dtype", ["float16", "float64", "uint8"])
@pytest.mark.parametrize("name", NAMES)
def test_small_chunks(small_chunks, name, dtype):
    comm = small_chunks
    x, expected = vectors(comm, 1003, dtype)
    mine = x[comm.rank].copy()
    comm.allreduce(mine, name)
    np.testing.assert_array_equal(mine, expected)
    mine = x[comm.rank].copy()
    owners = lopsided(comm, 1003) if ALGORITHMS[name].sliced else comm.ownership(1003, dtype, name)
    comm.reduce_scatter(mine, owners, name)
    comm.allgather(mine, owners, name)
    np.testing.assert_array_equal(mine, expected)


@pytest.mark.parametrize("name", SLICED)
def test_slices_longer_than_a_segment(comm, name):
    length = 1_100_000  # over 1 MiB per slice on 4 ranks
    mine = np.arange(length, dtype=np.float32) % 1000 + comm.rank
    owners = comm.ownership(length, np.float32, name)
    comm.reduce_scatter(mine, owners, name)
    comm.allgather(mine, owners, name)
    ranks = comm.size
    np.testing.assert_array_equal(mine, (np.arange(length) % 1000) * ranks + ranks * (ranks - 1) // 2)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_all_ranks_get_the_same_bits(comm, name, dtype):
    mine = np.random.default_rng(comm.rank).standard_normal(20_000).astype(dtype)
    comm.allreduce(mine, name)
    assert len(set(comm.allgather_object(mine.tobytes()))) == 1


def test_float16_without_the_librarys_help(comm, monkeypatch):
    """A library that cannot sum float16 is found out together, and the package's own algorithm sums."""
    from mpi4py import MPI

    def fail(*args):
        raise AssertionError("the library was asked to sum float16")

    monkeypatch.setattr(wire, "_library_sums_float16", lambda: False)
    with Communicator(MPI.COMM_WORLD) as fresh:
        x, expected = vectors(fresh, 333, "float16")
        mine = x[fresh.rank]
        fresh.allreduce(mine)
        np.testing.assert_array_equal(mine, expected)
        if fresh.size > 1:
            assert fresh.exchange("native")._algorithm(mine) is not ALGORITHMS["native"]


@pytest.mark.skipif(os.environ.get("DISTAI_TEST_HUGE") != "1", reason="opt-in: DISTAI_TEST_HUGE=1, needs 5 GB a rank")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["native", "ring"])
def test_more_elements_than_an_int_counts(comm, name):
    length = 2**31 + 5
    mine = comm.empty(length, np.uint8)
    mine[-1] = mine[0] = comm.rank + 1
    comm.allreduce(mine, name)
    assert mine[0] == mine[-1] == comm.size * (comm.size + 1) // 2
    owners = comm.ownership(length, np.uint8, name)
    part = owners.slices[comm.rank]
    mine[:] = 0
    mine[part] = comm.rank + 1
    comm.allgather(mine, owners, name)
    assert [int(mine[s.start]) for s in owners.slices] == list(range(1, comm.size + 1))
    comm.reduce_scatter(mine, owners, name)
    assert int(mine[part.stop - 1]) == comm.size * (comm.rank + 1)
    comm.bcast(mine)
    received = np.empty(length if comm.rank == comm.size - 1 else 0, np.uint8)
    comm.scatterv(mine, [0] * (comm.size - 1) + [length], received)
    assert comm.rank < comm.size - 1 or np.array_equal(received[-9:], mine[-9:])


@pytest.mark.parametrize("name", [*ALGORITHMS, "hierarchical"])
def test_sums_of_slices_are_scaled(comm, name):
    x = comm.empty(1000, np.float64)
    x[:] = np.arange(1000) * (comm.rank + 1.0)
    owners = comm.ownership(1000, np.float64, name)
    mine, parts = owners.slices[comm.rank], []
    for part in comm.exchange(name).reduce(x, owners, 0.125):
        parts.append(x[mine][part].copy())
    total = np.arange(1000.0) * sum(range(1, comm.size + 1)) / 8
    np.testing.assert_array_equal(np.concatenate(parts), total[mine])
    comm.barrier()


def test_sums_of_integers_are_not_scaled(comm):
    x = comm.empty(10, np.int64)
    with pytest.raises(ValueError, match="cannot be scaled"):
        next(comm.exchange().reduce(x, comm.ownership(10, np.int64), 0.5))
