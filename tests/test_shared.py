"""Vectors that a node's ranks share, and sums of them within nodes and between them, at any number of ranks."""

import gc
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from run import limit, mpi_environment, mpiexec_command

from distai_mpi.comm import CHOICES, Communicator
from distai_mpi.comm import memory as memory_module
from distai_mpi.comm.topology import Topology, declared_nodes
from distai_mpi.errors import ConfigError
from distai_mpi.params import Ownership

mpi = pytest.mark.mpi
pytestmark = pytest.mark.ranks(1, 2, 3, 4)
DTYPES = ["float16", "float32", "float64", "int32", "int64", "uint8"]


@pytest.fixture(scope="module")
def comm(node_sizes):
    from mpi4py import MPI

    with Communicator(MPI.COMM_WORLD, "hierarchical", nodes=node_sizes) as communicator:
        yield communicator


@pytest.fixture
def world():
    from mpi4py import MPI

    with Communicator(MPI.COMM_WORLD) as communicator:
        yield communicator


def vectors(comm, length, dtype):
    """All ranks' vectors, small integers so that sums are exact, and their sum."""
    x = np.random.default_rng([length, comm.size]).integers(0, 16, (comm.size, length)).astype(dtype)
    return x, x.sum(axis=0, dtype=dtype)


# --- sums


@mpi
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shared", [True, False])
def test_sums(comm, dtype, shared):
    for length in (0, 1, 15, 1000, 70_001):
        x, expected = vectors(comm, length, dtype)
        owners = comm.ownership(length, dtype)
        mine = owners.slices[comm.rank]
        grad, w = comm.empty(length, dtype, shared), comm.empty(length, dtype, shared, one_copy=True)
        for _ in range(2):
            grad[:] = x[comm.rank]
            comm.allreduce(grad)
            np.testing.assert_array_equal(grad, expected)
            grad[:] = x[comm.rank]
            comm.allreduce(grad, out=w)
            np.testing.assert_array_equal(w, expected)
            grad[:] = x[comm.rank]
            part = comm.reduce_scatter(grad, owners)
            np.testing.assert_array_equal(part, expected[mine])
            assert part.size == 0 or np.shares_memory(part, grad)
            w[mine] = part + part
            comm.allgather(w, owners)
            np.testing.assert_array_equal(w, expected + expected)
            comm.barrier()


@mpi
def test_allgather_takes_only_what_is_owned(comm):
    owners = comm.ownership(5000, np.float64)
    x = comm.empty(5000, np.float64)
    x[:] = np.nan
    x[owners.slices[comm.rank]] = np.arange(5000.0)[owners.slices[comm.rank]]
    comm.allgather(x, owners)
    np.testing.assert_array_equal(x, np.arange(5000.0))


@mpi
def test_vectors_too_long_for_a_cache(comm):
    """Results beyond STREAM_BYTES are stored past the cache, and all of them arrive."""
    length = (9 << 20) // 4 + 3
    x, out = comm.empty(length, np.float32), comm.empty(length, np.float32, one_copy=True)
    base = np.arange(length, dtype=np.float32) % 1000
    for turn in range(3):
        x[:] = base + comm.rank + turn
        comm.allreduce(x, out=out)
        np.testing.assert_array_equal(out, base * comm.size + comm.size * (comm.size - 1) // 2 + turn * comm.size)
        comm.barrier()


@mpi
def test_all_ranks_of_all_nodes_get_the_same_bits(comm):
    x = comm.empty(20_000, np.float32)
    x[:] = np.random.default_rng(comm.rank).standard_normal(20_000)
    comm.allreduce(x)
    assert len(set(comm.allgather_object(x.tobytes()))) == 1


@mpi
def test_ranks_are_added_in_their_order():
    """On one node the sum is that of a loop over the ranks, to the last bit."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    with Communicator(world, "shared", nodes=[world.size]) as comm:
        all_x = np.random.default_rng(0).standard_normal((comm.size, 9000)).astype(np.float32)
        x, out = comm.empty(9000, np.float32), comm.empty(9000, np.float32, one_copy=True)
        expected = all_x[0].copy()
        for row in all_x[1:]:
            expected += row
        x[:] = all_x[comm.rank]
        comm.allreduce(x, out=out)
        assert out.tobytes() == expected.tobytes()
        comm.allreduce(x)
        assert x.tobytes() == expected.tobytes()


@mpi
def test_what_a_node_sends(comm):
    """A node sends 2 (K - 1) / K of the vector's bytes over K nodes, however many ranks it has; one node nothing."""
    length = 64 * 3 * 4 * 100
    x, w = comm.empty(length, np.float64), comm.empty(length, np.float64, one_copy=True)
    owners = comm.ownership(length, np.float64)
    comm.barrier()
    before = sent_in_messages(comm)
    comm.reduce_scatter(x, owners)
    comm.allgather(w, owners)
    sent = sent_in_messages(comm) - before
    of_node = sum(number for ranks, number in comm.allgather_object((comm.node.ranks, sent)) if comm.rank in ranks)
    nodes = len(comm.leaders)
    assert of_node == 2 * (nodes - 1) * x.nbytes // nodes


def sent_in_messages(comm):
    return sum(wire.bytes_sent for wire in comm.wires[1:])


# --- tables


@pytest.mark.parametrize("nodes", [(1,), (4,), (1, 1), (2, 2), (3, 1), (1, 3), (2, 3, 4), (5, 1, 2), (1, 1, 1, 1, 1)])
@pytest.mark.parametrize("size", [0, 1, 16, 1000, 70_001])
def test_tables_cover_the_vector(nodes, size):
    topology = Topology.of([node for node, ranks in enumerate(nodes) for _ in range(ranks)])
    plan = topology.plan(size, 4)
    for slices in (plan.owners.slices, plan.columns):
        covered = np.zeros(size, int)
        for part in slices:
            covered[part] += 1
            assert part.start % 16 == 0 or part.start == size
        assert (covered == 1).all()
    for ranks in topology.nodes:  # a node's ranks sum all of the vector
        covered = np.zeros(size, int)
        for rank in ranks:
            covered[plan.parts[rank]] += 1
        assert (covered == 1).all()
    for rail, column in enumerate(plan.columns):
        for ranks, part in zip(topology.nodes, plan.by_node[rail], strict=True):
            owned = sum(plan.owners.slices[r].stop - plan.owners.slices[r].start for r in ranks[rail :: topology.rails])
            assert owned == part.stop - part.start
        assert plan.by_node[rail][-1].stop == column.stop - column.start


def test_one_node_shares_out_as_ranks_do():
    assert Topology.of([0] * 3).plan(1000, 4).owners == Ownership.sharded(1000, 3, 4)


@pytest.mark.parametrize(
    ("text", "ranks", "expected"),
    [("", 4, None), ("2", 4, [2, 2]), ("3,1", 4, [3, 1]), ("4", 4, [4]), ("2,2", 4, [2, 2])],
)
def test_declared_nodes(text, ranks, expected):
    assert declared_nodes(ranks, {"DISTAI_NODES": text}) == expected


@pytest.mark.parametrize("text", ["3", "0", "-1", "2,1", "a", "4,0", "1.5"])
def test_declared_nodes_that_do_not_fit(text):
    with pytest.raises(ConfigError, match=f"DISTAI_NODES={text}: .*4"):
        declared_nodes(4, {"DISTAI_NODES": text})


# --- memory


@mpi
def test_a_vector_is_read_by_the_node(world):
    x = world.empty(1000, np.float32)
    assert x.ctypes.data % 4096 == 0
    assert not x.any()
    x[:] = world.rank
    world.barrier()
    if world.size > 1:
        shared = world.vectors.find(x)
        for local, rank in enumerate(world.node.ranks):
            assert (shared.row(local) == rank).all()
        assert world.vectors.find(x[:10]) is None
        assert world.vectors.find(x.view(np.int32)) is None
    world.barrier()


@pytest.mark.mpi(min_size=2)
def test_memory_goes_with_the_last_array_over_it(world):
    world.empty(1, np.float32)  # the barrier's flags come with the first
    gc.collect()
    before = mapped()
    x = world.empty(1 << 20, np.float32)
    view = x[5:]
    del x
    gc.collect()
    assert mapped() == before + 1
    view[:] = 1
    del view
    gc.collect()
    assert mapped() == before
    assert not [row for row in world.vectors._registry._found.values() if row.size == 1 << 20]


def mapped():
    """Mappings of shared memory that this process holds."""
    return sum("memfd:distai-mpi" in line for line in Path("/proc/self/maps").read_text().splitlines())


@mpi
def test_vectors_outlive_their_communicator():
    from mpi4py import MPI

    with Communicator(MPI.COMM_WORLD) as comm:
        x, array = comm.empty(100, np.float64), comm.node_array((3, 4), np.float32)
        x[:] = comm.rank
        array[:] = 7
    assert (x == MPI.COMM_WORLD.rank).all()
    assert (array == 7).all()


@mpi
def test_where_one_rank_cannot_share_all_use_messages(monkeypatch, capfd):
    from mpi4py import MPI

    mapped, ranks = memory_module._map, MPI.COMM_WORLD.size

    def fail_on_the_last_rank(*args):
        if MPI.COMM_WORLD.rank == ranks - 1:
            raise OSError("not here")
        return mapped(*args)

    monkeypatch.setattr(memory_module, "_map", fail_on_the_last_rank)
    with Communicator(MPI.COMM_WORLD, "hierarchical") as comm:
        for _ in range(2):
            x, w = comm.empty(1000, np.float32), comm.empty(1000, np.float32, one_copy=True)
            owners = comm.ownership(1000, np.float32)
            x[:] = comm.rank
            w[owners.slices[comm.rank]] = comm.reduce_scatter(x, owners)
            comm.allgather(w, owners)
            assert (w == ranks * (ranks - 1) // 2).all()
            assert comm.vectors.find(x) is None
    told = capfd.readouterr().err
    assert told.count("warning: ranks exchange gradients by messages") == (MPI.COMM_WORLD.rank == 0 and ranks > 1)


@pytest.mark.mpi(min_size=2)
def test_different_vectors_are_refused_on_all_ranks(world):
    last = world.size - 1
    with pytest.raises(ConfigError, match=rf"rank 0 has 10 float32, rank {last} has 11 float32"):
        world.empty(10 + (world.rank == last), np.float32)
    with pytest.raises(ConfigError, match=rf"rank 0 has 10 float64, rank {last} has 10 float32"):
        world.empty(10, np.float32 if world.rank == last else np.float64)
    assert world.empty(10, np.float32).size == 10


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("name", CHOICES)
def test_checked_calls(monkeypatch, name):
    """Under DISTAI_CHECK=1 what the ranks ask for is compared at every exchange."""
    from mpi4py import MPI

    monkeypatch.setenv("DISTAI_CHECK", "1")
    with Communicator(MPI.COMM_WORLD) as comm:
        last = comm.size - 1
        x = np.ones(100 + (comm.rank == last))
        with pytest.raises(ConfigError, match=rf"allreduce differ: rank 0 has 100 .*, rank {last} has 101"):
            comm.allreduce(x, name)
        with pytest.raises(ConfigError, match="bcast differ"):
            comm.bcast(x)
        x = np.ones(100)
        comm.allreduce(x, name)
        assert (x == comm.size).all()


@mpi
def test_one_rank_that_asks_for_checks_is_enough(monkeypatch):
    """Launchers may hand the environment to the first node alone."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    if world.rank == world.size - 1:
        monkeypatch.setenv("DISTAI_CHECK", "1")
    with Communicator(world) as comm:
        x = np.ones(10)
        comm.allreduce(x)
        assert comm.compares
        assert (x == comm.size).all()


@mpi
def test_some_ranks_keep_their_nodes(comm):
    ranks = [rank for rank in range(comm.size) if rank != 1]
    part = comm.part(ranks)
    if part is not None:
        with part:
            of_nodes = [[ranks.index(r) for r in node if r in ranks] for node in comm.topology.nodes]
            assert part.topology.nodes == tuple(tuple(node) for node in of_nodes if node)
            x = part.empty(1000, np.float32)
            x[:] = part.rank
            part.allreduce(x, "hierarchical")
            assert (x == sum(range(part.size))).all()


@mpi
def test_a_replicated_table_makes_it_an_allreduce(comm):
    for _ in range(10):
        x = comm.empty(100_003, np.float32)
        x[:] = comm.rank + 1
        whole = comm.reduce_scatter(x, Ownership.replicate(x.size, comm.size))
        assert whole.size == x.size
        assert (whole == comm.size * (comm.size + 1) // 2).all()


@pytest.mark.mpi(min_size=2)
def test_shared_is_for_one_node():
    from mpi4py import MPI

    ranks = MPI.COMM_WORLD.size
    with Communicator(MPI.COMM_WORLD, nodes=[1] * ranks) as comm, pytest.raises(ConfigError, match="hierarchical"):
        comm.allreduce(np.ones(3), "shared")


@mpi
def test_nodes_that_do_not_fit_the_ranks():
    from mpi4py import MPI

    with pytest.raises(ConfigError, match="are not"):
        Communicator(MPI.COMM_WORLD, nodes=[MPI.COMM_WORLD.size, 1])


@mpi
def test_a_late_rank_is_waited_for(world):
    """Longer than the spins and the yields of the barrier: what it wrote last is seen all the same."""
    x, out = world.empty(100, np.float64), world.empty(100, np.float64, one_copy=True)
    for late in range(world.size):
        if world.rank == late:
            time.sleep(0.05)
        x[:] = late + world.rank
        world.allreduce(x, "hierarchical", out=out)
        assert (out == late * world.size + world.size * (world.size - 1) // 2).all()
        world.barrier()


# --- the end of a job

JOB = """
import os, signal, sys, time
from distai_mpi.comm import Communicator, launch
comm = Communicator(launch.world())
x, w, array = comm.empty(1 << 20, "f4"), comm.empty(1 << 20, "f4", one_copy=True), comm.node_array((1000, 1000), "f8")
comm.allreduce(x, "hierarchical", out=w)
if comm.rank == 0:
    print(*{line.split()[-1] for line in open("/proc/self/maps") if "/dev/shm/" in line}, flush=True)
comm.barrier()
"""


@pytest.mark.parametrize(
    ("end", "fails"),
    [
        ("comm.free()", False),
        ("if comm.rank: raise KeyError('boom')\ncomm.allreduce(x, 'hierarchical')", True),
        ("if comm.rank: os.kill(os.getpid(), signal.SIGKILL)\ncomm.allreduce(x, 'hierarchical')", True),
        ("time.sleep(0.3)\nif comm.rank == 0: os.kill(os.getppid(), signal.SIGTERM)\ntime.sleep(20)", True),
    ],
    ids=["normal", "exception", "killed", "SIGTERM"],
)
def test_nothing_is_left_in_shared_memory(end, fails):
    """However a job ends; and ranks in the node's barrier do not wait for one that died."""
    began = time.monotonic()
    command = [*mpiexec_command(2), sys.executable, "-c", JOB + end]
    done = subprocess.run(
        command, env=mpi_environment(), capture_output=True, text=True, timeout=limit(60), check=False
    )
    assert time.monotonic() - began < 20
    assert (done.returncode != 0) == fails, done.stderr
    deadline = time.monotonic() + 5  # what the library itself keeps there goes with the launcher
    while left := [name for name in done.stdout.split() if os.path.exists(name)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


# --- what is refused, or travels by messages


@pytest.mark.mpi(min_size=2)
def test_a_vector_that_the_node_has_once_is_no_summand(comm):
    x = comm.empty(100, np.float32, one_copy=True)
    for name in ("native", "hierarchical", "auto"):
        with pytest.raises(ValueError, match="one copy"):
            comm.allreduce(x, name)
        with pytest.raises(ValueError, match="one copy"):
            comm.reduce_scatter(x, comm.ownership(100, np.float32), name)


@mpi
def test_lengths_that_are_none(world):
    for size, error in ((-1, ValueError), (2.5, TypeError), ("3", TypeError)):
        with pytest.raises(error):
            world.empty(size, np.float32)
    assert world.empty(np.int64(3), np.float32).size == 3


@mpi
@pytest.mark.parametrize("name", ["native", "ring", "hierarchical", "auto"])
def test_read_only_and_foreign_vectors_are_refused(world, name):
    x = world.empty(1000, np.float64)
    x.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        world.allreduce(x, name)
    with pytest.raises(ValueError, match="byte order"):
        world.allreduce(world.empty(1000, ">f8"), name)
    assert not x.any()


@mpi
def test_long_doubles_travel_by_messages(comm):
    x, expected = vectors(comm, 1000, np.longdouble)
    mine = comm.empty(1000, np.longdouble)
    mine[:] = x[comm.rank]
    comm.allreduce(mine)
    np.testing.assert_array_equal(mine, expected)


@mpi
def test_sums_made_again_are_checked_and_counted_as_the_first(comm):
    """The second call of a kind takes a shorter way: the same sums, bytes and rounds, and the same refusals."""
    x, out = comm.empty(1000, np.float64), comm.empty(1000, np.float64, one_copy=True)
    other = comm.empty(1000, np.float64, one_copy=True)
    expected, counted = comm.size * (comm.size + 1) / 2, []
    for turn in range(3):
        for into in (None, out, other):
            before = comm.rounds, comm.bytes_sent
            x[:] = comm.rank + 1
            comm.barrier()
            comm.allreduce(x, "hierarchical", out=into)
            np.testing.assert_array_equal(x if into is None else into, expected)
            counted.append((turn, comm.rounds - before[0], comm.bytes_sent - before[1]))
            comm.barrier()
    assert [row[1:] for row in counted[:3]] == [row[1:] for row in counted[3:6]] == [row[1:] for row in counted[6:]]
    frozen = x.view()
    frozen.flags.writeable = False
    pairs = [(x[::-1], None), (frozen, None), (x, out[::-1]), (x, comm.empty(1000, np.float32))]
    for wrong, into in (*pairs, (x.reshape(2, -1), None), (x, out.reshape(2, -1))):
        with pytest.raises(ValueError, match=r"contiguous|read-only|cannot sum"):
            comm.allreduce(wrong, "hierarchical", out=into)
    del out, into
    again = comm.empty(1000, np.float64, one_copy=True)  # may lie where the other did
    x[:] = 1
    comm.barrier()
    comm.allreduce(x, "hierarchical", out=again)
    np.testing.assert_array_equal(again, comm.size)


@mpi(min_size=2)
def test_a_sum_made_before_is_none_once_the_communicator_is_free():
    from mpi4py import MPI

    with Communicator(MPI.COMM_WORLD) as one:
        x = one.empty(1000, np.float64)
        for _ in range(2):
            one.allreduce(x, "hierarchical")
        assert one.vectors.prepared(one.exchange("hierarchical"), x, None) is not None
        assert one.vectors.prepared(one.exchange("ring"), x, None) is None
        assert one.shares(x)
        assert not one.shares(x[1:])
    assert one.vectors.prepared(one.exchange("hierarchical"), x, None) is None


@mpi(min_size=2)
def test_nodes_declared_otherwise_on_a_rank_are_an_error_on_all(monkeypatch):
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank == 1:
        monkeypatch.setenv("DISTAI_NODES", "1")
    with pytest.raises(ConfigError, match="on rank 0 and '1' on rank 1"):
        Communicator(MPI.COMM_WORLD)
