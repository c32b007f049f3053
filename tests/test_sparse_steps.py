"""Steps on sparse rows that touch the columns of their rows alone are the dense steps, on any ranks."""

import numpy as np
import pytest
import scipy.sparse
from fits import fit

from distai_mpi import Exchange, models, optim
from distai_mpi.data import Dataset, Partition, from_local, whole
from distai_mpi.train.gradient import sparse

mpi = pytest.mark.mpi
ROWS, FEATURES = 203, 40
RNG = np.random.default_rng(0)
X = np.where(RNG.random((ROWS, FEATURES)) < 0.1, RNG.normal(size=(ROWS, FEATURES)), 0.0)
X[:, 7], X[5], X[-1] = 0, 0, 0  # a feature and rows without entries
Y = (X @ RNG.normal(size=FEATURES) + 0.3 * RNG.logistic(size=ROWS) > 0).astype(np.int64)
WEIGHT = RNG.integers(0, 4, ROWS).astype(float)


@pytest.fixture
def taken(monkeypatch):
    """How many steps touched columns alone; however many these are."""
    steps, plain = [], sparse.SparseSteps.take
    monkeypatch.setattr(sparse, "LONGEST", np.inf)
    monkeypatch.setattr(sparse, "LONGEST_IN_MEMORY", np.inf)
    monkeypatch.setattr(sparse.SparseSteps, "take", lambda *given: steps.append(given[-2].steps) or plain(*given))
    return steps


def shard_of(comm, x, weight, shuffle):
    """The rows sharded unequally; of three ranks the first has none."""
    if shuffle == "global":
        return whole(Dataset(x, Y, weight), comm.rank, comm.size, partition=Partition(tuple(range(1, comm.size + 1))))
    ends = [0, *{1: [ROWS], 2: [150, ROWS], 3: [0, 60, ROWS], 4: [0, 60, 120, ROWS]}[comm.size]]
    part = slice(ends[comm.rank], ends[comm.rank + 1])
    return from_local(Dataset(x[part], Y[part], None if weight is None else weight[part]), comm)


CASES = {  # kind, optimizer, global batch, l2, weights, shuffle, bias; algorithm on several ranks
    "decay": ("logistic", optim.SGD(0.2, schedule=optim.Cosine()), 32, 1e-2, True, "global", True, "hierarchical"),
    "all of w is taken away in a step": ("logistic", optim.SGD(0.2), 16, 5.0, False, "global", False, "ring"),
    "adagrad": ("logistic", optim.AdaGrad(0.3), 16, 0.0, True, "local", True, "hierarchical"),
    "ftrl": ("logistic", optim.FTRL(0.5, l1=0.3, l2=0.1), 32, 0.0, False, "local", False, "hierarchical"),
    "softmax": ("softmax", optim.FTRL(0.5, l1=0.1), 16, 0.0, True, "global", True, "hierarchical"),
}


@mpi
@pytest.mark.ranks(1, 2, 3)
@pytest.mark.parametrize("case", CASES)
def test_steps_touch_the_columns_of_their_rows_alone(nodes, taken, case):
    kind, optimizer, size, l2, weighted, shuffle, bias, algorithm = CASES[case]
    if nodes.size == 1:  # one row a step
        algorithm, size = "auto", size if size == 32 else 1
    found = []
    for x in (scipy.sparse.csr_array(X), X):
        shard = shard_of(nodes, x, WEIGHT if weighted else None, shuffle)
        model = models.build(kind, shard.labels, dtype=np.float64, bias=bias)
        options = dict(optimizer=optimizer, epochs=2, global_batch_size=size, l2=l2, seed=2)
        found.append(fit(model, shard, nodes, exchange=Exchange(algorithm=algorithm), **options))
        assert bool(taken) == (x is not X)
        taken.clear()
    ours, plain = found
    np.testing.assert_allclose(ours.params, plain.params, atol=1e-12)
    assert ours.train_loss == pytest.approx(plain.train_loss, rel=1e-12)
    assert ours.iterations == plain.iterations
    assert ours.history[0]["running_loss"] == pytest.approx(plain.history[0]["running_loss"], rel=1e-12)
    first = ours.history[0]
    assert first["progressive_loss"] == pytest.approx(plain.history[0]["progressive_loss"], rel=1e-12)
    assert first["running_loss"] - first["progressive_loss"] >= (1e-9 if l2 == 1e-2 else -1e-12)  # has the penalty
    assert "progressive_loss" not in ours.history[1]
    assert len(set(nodes.allgather_object(ours.params.tobytes()))) == 1
    if case == "ftrl":
        assert np.array_equal(ours.params == 0, plain.params == 0)
        assert (plain.params == 0).any()


@mpi
@pytest.mark.ranks(2)
def test_pairs_are_taken_where_they_save_time(nodes, monkeypatch):
    shard = shard_of(nodes, scipy.sparse.csr_array(X), None, "global")
    model = models.build("logistic", shard.labels, dtype=np.float64)
    steps, plain = [], sparse.SparseSteps.take
    monkeypatch.setattr(sparse.SparseSteps, "take", lambda *given: steps.append(1) or plain(*given))
    pairs = 2 * np.count_nonzero(X) / ROWS / (FEATURES + 1)  # numbers for each parameter, of a row
    monkeypatch.setattr(sparse, "FEW", 0)
    for size in (1, 3):
        monkeypatch.setattr(sparse, "LONGEST_IN_MEMORY", 2 * pairs)
        monkeypatch.setattr(sparse, "LONGEST", 4 * pairs)
        fit(model, shard, nodes, optimizer=optim.SGD(0.1), epochs=1, global_batch_size=size,
            exchange=Exchange(algorithm="hierarchical"))  # fmt: skip
        assert bool(steps) == (size == 1 or len(nodes.leaders) > 1)
        steps.clear()
