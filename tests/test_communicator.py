"""The communicator's other methods, and agreed errors."""

import numpy as np
import pytest

from distai_mpi.comm import ALGORITHMS, Communicator
from distai_mpi.comm import memory as memory_module
from distai_mpi.comm.failure import agreed
from distai_mpi.errors import ConfigError, DataError, DistaiError
from distai_mpi.params import Ownership

mpi = pytest.mark.mpi
pytestmark = pytest.mark.ranks(1, 2, 3, 4)


@pytest.fixture
def comm():
    from mpi4py import MPI

    with Communicator(MPI.COMM_WORLD) as communicator:
        yield communicator


@mpi
def test_ranks_nodes_and_leaders(comm):
    from mpi4py import MPI

    assert (comm.rank, comm.size) == (MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size)
    assert comm.node.ranks[comm.node.rank] == comm.rank
    nodes = comm.allgather_object(comm.node.ranks)
    assert sorted(rank for node in set(nodes) for rank in node) == list(range(comm.size))
    assert comm.leaders == tuple(sorted({node[0] for node in nodes}))


@mpi
def test_messages_do_not_meet_those_of_the_given_communicator(comm):
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    right, left = (world.rank + 1) % world.size, (world.rank - 1) % world.size
    early = np.full(3, -1.0)
    request = world.Irecv(early, left, MPI.ANY_TAG)
    x = np.ones(3)
    comm.allreduce(x, "ring")
    world.Send(np.full(3, 7.0), right, 0)
    request.Wait()
    np.testing.assert_array_equal(early, 7.0)
    np.testing.assert_array_equal(x, world.size)


@mpi
def test_sum_is_float64_and_new(comm):
    values = np.array([1, 1 << 20], np.float32)
    total = comm.sum(values)
    assert total.dtype == np.float64
    np.testing.assert_array_equal(total, [comm.size, comm.size * 2.0**20])
    np.testing.assert_array_equal(values, [1, 1 << 20])
    np.testing.assert_array_equal(comm.sum(3.0), [3.0 * comm.size])


@mpi
@pytest.mark.parametrize("dtype", ["uint8", "float16", "float64", "<U3"])
def test_bcast_from_every_rank(comm, dtype):
    for root in range(comm.size):
        x = np.full(1001, comm.rank).astype(dtype)
        comm.bcast(x, root)
        np.testing.assert_array_equal(x, np.full(1001, root).astype(dtype))
    assert comm.bcast_object({"a": comm.rank}, comm.size - 1) == {"a": comm.size - 1}


@mpi
@pytest.mark.parametrize("chunk_bytes", [96, 1 << 30])
def test_scatterv_of_uneven_and_empty_stretches(chunk_bytes):
    from mpi4py import MPI

    with Communicator(MPI.COMM_WORLD, chunk_bytes=chunk_bytes) as comm:
        for root in range(comm.size):
            counts = [101 * rank for rank in range(comm.size)]  # rank 0 gets nothing
            starts = np.cumsum([0, *counts])
            everything = np.arange(starts[-1], dtype=np.float32)
            received = np.full(counts[comm.rank], np.nan, np.float32)
            comm.scatterv(everything if comm.rank == root else None, counts, received, root)
            np.testing.assert_array_equal(received, everything[starts[comm.rank] : starts[comm.rank + 1]])


@mpi
def test_node_array_is_one_array_per_node(comm):
    first, second = comm.node_array((4, 3), np.float32), comm.node_array((comm.size,), np.int64)
    if comm.node.rank == 0:
        first[:] = np.arange(12).reshape(4, 3)
    comm.barrier()
    np.testing.assert_array_equal(first, np.arange(12).reshape(4, 3))
    if comm.node.rank == comm.node.size - 1:
        second[: comm.node.size] = comm.node.ranks
    comm.barrier()
    assert tuple(second[: comm.node.size]) == comm.node.ranks
    assert comm.node_array((0, 7), np.float32).shape == (0, 7)


@mpi
def test_node_array_that_does_not_fit_fails_on_all_ranks(comm, monkeypatch):
    def fail_on_the_last_rank(*args):
        if comm.rank == comm.size - 1:
            raise OSError("no")
        return mapped(*args)

    mapped = memory_module._map
    monkeypatch.setattr(memory_module, "_map", fail_on_the_last_rank)
    if comm.node.size > 1:
        with pytest.raises(MemoryError):
            comm.node_array((10,), np.float64)
        with pytest.raises(MemoryError):
            comm.node_array((1 << 58,), np.float64)
    monkeypatch.undo()
    assert comm.node_array((10,), np.float64).shape == (10,)


@mpi
def test_empty_is_zero_and_starts_on_a_page(comm):
    for size in (0, 1, 10_000):
        x = comm.empty(size, np.float32)
        assert (x.shape, x.dtype) == ((size,), np.float32)
        assert not x.any()
        x[:] = 1
        assert size == 0 or x.ctypes.data % 4096 == 0


@mpi
@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_counters(comm, name):
    x = np.ones(64 * comm.size, np.float32)
    comm.allreduce(x, name)
    owners = comm.ownership(x.size, x.dtype, name)
    comm.reduce_scatter(x, owners, name)
    comm.allgather(x, owners, name)
    if comm.size == 1:
        assert (comm.rounds, comm.bytes_sent) == (0, 0)
        return
    sliced = ALGORITHMS[name].sliced
    assert comm.rounds == (3 if sliced else 2)
    total = comm.sum(comm.bytes_sent)[0]
    if name in ("native", "ring"):
        assert comm.rounds == 4
        assert total == 4 * (comm.size - 1) * x.nbytes
    assert total > 0


@mpi
def test_bad_vectors_and_names(comm):
    with pytest.raises(ConfigError, match=r"'nonesuch'.*native, ring, tree"):
        comm.allreduce(np.ones(3), "nonesuch")
    for x in (np.ones((2, 3)), np.ones(6)[::2], np.array(1.0)):
        with pytest.raises(ValueError, match="contiguous vector"):
            comm.allreduce(x)
    for dtype in (bool, complex, "<U3"):
        with pytest.raises(ValueError, match="cannot sum"):
            comm.allreduce(np.zeros(3, dtype))
    with pytest.raises(ValueError, match="does not fit"):
        comm.reduce_scatter(np.ones(4), Ownership.replicate(5, comm.size))
    if comm.size > 1:
        with pytest.raises(ValueError, match="no slices"):
            comm.allgather(np.ones(4), Ownership.sharded(4, comm.size, 8), "tree")
    with pytest.raises(ValueError, match="counts"):
        comm.scatterv(None, [1] * (comm.size + 1), np.ones(1))


@mpi
def test_free_twice(comm):
    comm.node_array((3,), np.float32)
    comm.free()
    comm.free()


# --- agreed errors


@mpi
def test_agreed_without_errors(comm):
    with comm.agreed():
        value = 1
    assert value == 1


@mpi
def test_agreed_error_of_one_rank(comm):
    last = comm.size - 1

    def read():
        if comm.rank == last:
            raise DataError("x.npy: truncated")

    with pytest.raises(DataError) as caught, comm.agreed():
        read()
    assert str(caught.value) == ("x.npy: truncated" if comm.size == 1 else f"rank {last}: x.npy: truncated")
    comm.barrier()  # all ranks have gone on


@mpi
def test_agreed_error_of_all_ranks_is_told_once(comm):
    with pytest.raises(ConfigError, match=r"^no such flag$"), comm.agreed():
        raise ConfigError("no such flag")


@mpi
def test_bugs_are_not_agreed(comm):
    with pytest.raises(ZeroDivisionError), comm.agreed():
        raise ZeroDivisionError  # on all ranks, so that the test itself goes on


def others(*failures):
    """Stand in for the other ranks: their failures follow this one's."""
    return lambda mine: [mine, *failures]


def test_agreed_turns_system_errors_into_ours(tmp_path):
    with pytest.raises(DistaiError, match=r"^rank 0: .*missing: No such file or directory$"), agreed(others(None)):
        open(tmp_path / "missing")
    with pytest.raises(DistaiError, match=r"^not enough memory$"), agreed(others((DataError, "later"))):
        raise MemoryError


def test_agreed_reports_the_lowest_rank():
    with pytest.raises(DataError, match=r"^rank 1: first$"), agreed(others((DataError, "first"), (ConfigError, "b"))):
        pass


@pytest.mark.mpi
@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_alltoallv(comm, dtype):
    counts = np.add.outer(2 * np.arange(comm.size), np.arange(comm.size)) % 4  # counts[a, b]: from a to b; some are 0
    parts = [np.arange(n) + 10 * comm.rank + to for to, n in enumerate(counts[comm.rank])]
    recv = np.full(counts[:, comm.rank].sum(), 99, dtype)
    comm.alltoallv(np.concatenate(parts).astype(dtype), counts[comm.rank].tolist(), recv, counts[:, comm.rank].tolist())
    expected = [np.arange(counts[r, comm.rank]) + 10 * r + comm.rank for r in range(comm.size)]
    np.testing.assert_array_equal(recv, np.concatenate(expected).astype(dtype))


@pytest.mark.mpi
def test_alltoallv_refuses_counts_that_do_not_fit(comm):
    with pytest.raises(ValueError, match="do not fit"):
        comm.alltoallv(np.zeros(3), [1] * comm.size, np.zeros(comm.size + 3), [1] * comm.size)
