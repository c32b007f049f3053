"""Full-batch solvers on sparse rows: between nodes travel the values alone that a node's rows touch."""

import numpy as np
import pytest
import scipy.sparse

from distai_mpi import Communicator, fit, models, optim
from distai_mpi.comm.exchange import touched
from distai_mpi.data import Dataset, from_local
from distai_mpi.perf import costs

pytestmark = [pytest.mark.mpi, pytest.mark.ranks(4)]
FEATURES, ROWS, ENTRIES = 20_000, 100, 12


@pytest.fixture(scope="module")
def two_nodes():
    from mpi4py import MPI

    with Communicator(MPI.COMM_WORLD, nodes=(2, 2)) as comm:
        yield comm


def rows_of(comm, part):
    """Rows with entries in a ``part`` of the columns, in others on the second node; a rank has none."""
    node, rng = comm.topology.node_of(comm.rank), np.random.default_rng(comm.rank)
    rows = 0 if comm.rank == 1 else ROWS
    columns = node * FEATURES // 4 + rng.integers(0, int(part * FEATURES), (rows, ENTRIES))
    entries = rng.normal(size=columns.size), columns.ravel() % FEATURES, np.arange(rows + 1) * ENTRIES
    x = scipy.sparse.csr_array(entries, shape=(rows, FEATURES))
    return x, (x @ np.sin(np.arange(FEATURES)) + 0.3 * rng.logistic(size=rows) > 0).astype(np.int64)


def values_of_rails(comm, x):
    """Of this rank's rail: values that each node touches of the slices of each, and that there are of each."""
    own = np.zeros(FEATURES + 1)
    own[x.indices], own[-1] = 1, 1  # the bias
    every = np.array(comm.allgather_object(own))
    plan, rail = comm.topology.plan(own.size, 8), comm.node.rank
    columns = [every[list(ranks)].any(axis=0)[plan.columns[rail]] for ranks in comm.topology.nodes]
    slices = plan.by_node[rail]
    return [[int(marks[part].sum()) for part in slices] for marks in columns], [s.stop - s.start for s in slices]


@pytest.mark.parametrize("solver", [optim.LBFGS(max_iter=6), optim.NewtonCG(max_iter=4)], ids=["lbfgs", "newton-cg"])
@pytest.mark.parametrize("l1", [0.0, 1e-4])
def test_what_rows_touch_travels_alone(two_nodes, monkeypatch, solver, l1):
    comm, node = two_nodes, two_nodes.topology.node_of(two_nodes.rank)
    x, y = rows_of(comm, 0.25)
    shard, model = from_local(Dataset(x, y), comm), models.Logistic(FEATURES, dtype=np.float64)
    rail = comm.exchange("hierarchical").rail
    counts, sizes = values_of_rails(comm, x)
    found = []
    for longest in (0.0, 0.6):
        monkeypatch.setattr(touched, "LONGEST", longest)
        calls, sent = comm.calls.copy(), rail.bytes_sent
        result = fit(model, shard, comm, optimizer=solver, l2=1e-3, l1=l1)
        made = comm.calls - calls
        found.append((result, rail.bytes_sent - sent, made["reduce_scatter"], made["allgather"]))
    (plain, sent_whole, *made), (ours, sent_touched, *calls) = found
    np.testing.assert_allclose(ours.params, plain.params, rtol=0, atol=1e-12)
    assert ours.train_loss == pytest.approx(plain.train_loss, rel=1e-14)
    assert ours.products == plain.products
    assert calls == made
    assert len(set(comm.allgather_object(ours.params.tobytes()))) == 1  # also where no row of a rank touches them
    sums, copies = made
    down, up = (costs.touched_sent(half, counts, 8)[node].bytes for half in ("reduce_scatter", "allgather"))
    others, agreed = sum(sizes) - sizes[node], 16 + down  # positions, int64, once in each run
    assert sent_whole == agreed + 8 * (sums * others + copies * sizes[node])
    assert sent_touched == agreed + sums * down + ours.products * up + 8 * (copies - ours.products) * sizes[node]
    assert down < 0.3 * 8 * others


def test_where_most_columns_are_touched_all_travel(two_nodes):
    plain, marks = two_nodes.exchange("hierarchical"), two_nodes.empty(FEATURES, np.float64)
    for part, kind in ((0.5, touched.TouchedExchange), (0.7, type(plain)), (0.0, touched.TouchedExchange)):
        marks[:] = np.arange(FEATURES) % 10 < 10 * part
        assert type(touched.of_touched(plain, marks)) is kind
        marks[:] = 0
        marks[: int(FEATURES * part)] = two_nodes.rank == 0  # of one node alone
        assert type(touched.of_touched(plain, marks)) is (type(plain) if part else kind)
    assert touched.of_touched(two_nodes.exchange("ring"), marks) is two_nodes.exchange("ring")
