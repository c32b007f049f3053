"""Sparse rows from files and matrices to weights: the same numbers as of dense ones, however they are sharded."""

import itertools

import numpy as np
import pytest
import scipy.sparse
from alone import Alone
from fits import fit

from distai_mpi import Predictor, data, models, optim
from distai_mpi.data import Dataset, Loader, Partition, from_local, load, repartition, standardize, whole
from distai_mpi.data.sparse_rows import SparseRows
from distai_mpi.errors import DataError

mpi = pytest.mark.mpi
pytestmark = pytest.mark.ranks(1, 2, 3)
ROWS, FEATURES = 203, 40
RNG = np.random.default_rng(0)
X = np.where(RNG.random((ROWS, FEATURES)) < 0.1, RNG.normal(size=(ROWS, FEATURES)), 0.0)
X[:, 7], X[5], X[-1] = 0, 0, 0  # a feature and rows without entries
X[0, -1] = 0.5
Y = (X @ RNG.normal(size=FEATURES) + 0.3 * RNG.logistic(size=ROWS) > 0).astype(np.int64)
WEIGHT = RNG.integers(0, 4, ROWS).astype(float)
KINDS = {"values": X, "ones": (X != 0).astype(float), "float32": X.astype(np.float32), "whole": np.round(4 * X)}


def svm_text(x, y, base=1, weight=None):
    heads = [str(label) if weight is None else f"{label}:{float(weight[i])!r}" for i, label in enumerate(y.tolist())]
    return "".join(
        " ".join([head, *(f"{j + base}:{float(row[j])!r}" for j in np.flatnonzero(row))]) + "\n"
        for head, row in zip(heads, x, strict=True)
    )


def local(comm, x, y=Y, weight=None, sparse=True):
    """The rows sharded unequally; of three ranks the first has none."""
    ends = [0, *{1: [ROWS], 2: [150, ROWS], 3: [0, 60, ROWS]}[comm.size]]
    part = slice(ends[comm.rank], ends[comm.rank + 1])
    x = scipy.sparse.csr_array(x[part]) if sparse else x[part]
    return from_local(Dataset(x, y[part], None if weight is None else weight[part]), comm)


def loader_of(shard, sparse=True, **options):
    options = {"dtype": np.float64, "target_dtype": np.int64, "global_batch_size": 32, "seed": 3} | options
    return Loader(shard, rank=shard.rank, ranks=len(shard.counts), sparse=sparse, **options)


def dense(x):
    return x.toarray() if isinstance(x, SparseRows) else x


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("matrix", [scipy.sparse.csr_array, scipy.sparse.csc_matrix, scipy.sparse.coo_array])
def test_matrices_of_scipy(kind, matrix):
    dataset = Dataset(matrix(KINDS[kind]), Y)
    assert np.array_equal(dataset.x.toarray(), KINDS[kind])
    assert dataset.x.dtype == (np.float64 if kind == "values" else np.float32)
    assert (dataset.x.values.size == 0) == (kind == "ones")
    assert dataset.features == FEATURES
    assert dataset.rows == ROWS
    assert np.array_equal(dataset.part(3, 9).x.toarray(), KINDS[kind][3:9])


def test_entries_of_one_feature_are_summed():
    x = scipy.sparse.csr_array((np.array([1.0, 2.0, 4.0]), np.array([2, 0, 2]), np.array([0, 3, 3])), shape=(2, 3))
    assert Dataset(x, np.zeros(2)).x.toarray().tolist() == [[2, 0, 5], [0, 0, 0]]
    assert x.nnz == 3  # the caller's stay as they are


@pytest.mark.parametrize("matrix", [scipy.sparse.csr_array, scipy.sparse.csc_array])
@pytest.mark.parametrize("index", [-1, 3, 5_000_000])
def test_indices_out_of_range(matrix, index):
    x = matrix((np.full(2, 2.0), np.array([0, index], np.int32), np.array([0, 1, 2, 2])), shape=(3, 3))
    with pytest.raises(DataError, match="x: is no valid sparse matrix: .*indices"):
        Dataset(x, np.zeros(3, int))


def test_one_axis():
    with pytest.raises(DataError, match=r"x has shape \(40,\)"):
        Dataset(scipy.sparse.coo_array(X[0]), Y[:1])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(value):
    x = X.copy()
    x[4, 6] = value
    x = scipy.sparse.csr_array(x)
    with pytest.raises(DataError, match=rf"x holds {value} in row 4, column 6 \(counted from 0\)"):
        from_local(Dataset(x, Y), Alone())
    with pytest.raises(DataError, match="no real numbers"):
        Dataset(scipy.sparse.csr_array(X.astype(complex)), Y)


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_loaders_hand_out_the_rows(sparse, scaled, dtype):
    shards = [whole(Dataset(x, Y, WEIGHT)) for x in (scipy.sparse.csr_array(X), X)]
    if scaled:
        standard = data.Standard(np.zeros(FEATURES), 1 + RNG.random(FEATURES))
        shards = [data.standard.apply(shard, standard) for shard in shards]
    ours, theirs = (loader_of(shard, sparse, dtype=dtype, block_rows=50) for shard in shards)
    assert ours.sparse == sparse
    for held in (False, True):
        if held:
            ours.hold(1 << 30)
        for one, other in zip(ours.sequential(), theirs.sequential(), strict=True):
            np.testing.assert_allclose(dense(one.x), other.x, rtol=1e-6 if scaled else 0)
            assert one.x.dtype == other.x.dtype
            assert np.array_equal(one.y, other.y)
            assert np.array_equal(one.weight, other.weight)
    for (_, some), (_, others) in zip(ours.epoch(1), theirs.epoch(1), strict=True):
        for one, other in zip(some, others, strict=True):
            np.testing.assert_allclose(dense(one.x), other.x, rtol=1e-6 if scaled else 0)
            assert np.array_equal(one.ids, other.ids)
    one, other = ours.sample(20), theirs.sample(20)
    np.testing.assert_allclose(dense(one.x), other.x, rtol=1e-6 if scaled else 0)


def test_standard_rows_become_dense_where_they_are_centred():
    shard = data.standard.apply(whole(Dataset(scipy.sparse.csr_array(X), Y)), data.Standard(X.mean(0), 1 + X.std(0)))
    loader = loader_of(shard)
    assert not loader.sparse
    (batch,) = loader.sequential()
    np.testing.assert_allclose(batch.x, (X - X.mean(0)) / (1 + X.std(0)), atol=1e-15)


@mpi
@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_standardize_scales_and_does_not_centre(comm, weight):
    shard, same = (local(comm, X, weight=weight, sparse=sparse) for sparse in (True, False))
    (sparse,), (full,) = standardize(shard, comm=comm), standardize(same, comm=comm)
    assert not sparse.dataset.standard.mean.any()
    np.testing.assert_allclose(sparse.dataset.standard.deviation, full.dataset.standard.deviation, rtol=1e-12)
    assert "not centred" in sparse.notes[-1]
    assert loader_of(sparse).sparse


@mpi
def test_features_far_from_0_are_told(comm):
    x = np.concatenate([X, (1.7e9 + 170 * RNG.normal(size=ROWS))[:, None]], axis=1)
    for prepare in (standardize, lambda shard, comm: data.centre_far(shard, comm=comm, dtype="float32")):
        (shard,) = prepare(local(comm, x), comm=comm)
        assert f"features {FEATURES} (counted from 0) lie far from 0" in shard.notes[-1]
        (shard,) = prepare(local(comm, X), comm=comm)
        assert not any("far from 0" in note for note in shard.notes)


@mpi
@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_move(comm, kind):
    shard = local(comm, KINDS[kind], weight=WEIGHT)
    for weights in ((1.0, 3.0, 0.0)[: comm.size], (1.0,) * comm.size):
        shard = repartition(shard, Partition(weights), comm)
        start, stop = Partition(weights).range_of(ROWS, comm.rank)
        assert np.array_equal(shard.dataset.x.toarray(), KINDS[kind][start:stop])
        assert np.array_equal(shard.dataset.y, Y[start:stop])
        assert np.array_equal(shard.dataset.weight, WEIGHT[start:stop])


@mpi
@pytest.mark.ranks(2, 3)
def test_ranks_with_sparse_and_with_dense_rows(comm):
    x = scipy.sparse.csr_array(X) if comm.rank else X
    with pytest.raises(DataError, match="some ranks hold sparse rows, and others dense ones"):
        from_local(Dataset(x, Y), comm)


OPTIMIZERS = {
    "sgd": lambda: optim.SGD(lr=0.3),
    "one row": lambda: optim.SGD(lr=0.05),
    "adam": lambda: optim.Adam(lr=0.05),
    "average": lambda: optim.LocalSGD(optim.SGD(lr=0.1), sync_every=2),
    "lbfgs": optim.LBFGS,
    "newton-cg": optim.NewtonCG,
    "newton": optim.Newton,
}


@mpi
@pytest.mark.ranks(3)
@pytest.mark.parametrize(
    ("kind", "optimizer"),
    [
        *itertools.product(["linear", "logistic", "softmax"], OPTIMIZERS),
        *(("mlp", name) for name in ["sgd", "one row", "average"]),
        ("poisson", "newton-cg"),
        ("huber", "lbfgs"),
    ],
)
def test_training_is_that_of_dense_rows(comm, kind, optimizer):
    options: dict = {"l2": 1e-2, "seed": 2}
    if optimizer in ("lbfgs", "newton-cg", "newton"):
        options |= {"tol": 1e-9}
    else:
        options |= {"epochs": 2, "global_batch_size": {"one row": 1, "average": 12}.get(optimizer, 32)}
    found = []
    for sparse in (True, False):
        more = {"hidden": (8,)} if kind == "mlp" else {}
        model = models.build(kind, whole(Dataset(X, Y)).labels, dtype=np.float64, **more)
        shard = local(comm, X, weight=WEIGHT, sparse=sparse)
        found.append(fit(model, shard, comm, optimizer=OPTIMIZERS[optimizer](), **options))
    np.testing.assert_allclose(found[0].params, found[1].params, atol=1e-6 if "tol" in options else 1e-12)
    assert found[0].train_loss == pytest.approx(found[1].train_loss, rel=1e-9)


@pytest.mark.parametrize("weights", [(1, 1, 1), (2, 0, 1), (1, 3, 0)])
def test_ranges_of_rows_are_balanced_by_their_entries(weights):
    """The long rows come first: ranks that go through all rows once get fewer of them."""
    lengths = np.repeat([200, 20, 2, 0], 100)
    indices = np.concatenate([np.arange(count) for count in lengths])
    x = scipy.sparse.csr_array((np.ones(indices.size), indices, np.concatenate([[0], np.cumsum(lengths)])), (400, 200))
    partition = Partition(weights)
    shards = [whole(Dataset(x, np.arange(400) % 2), rank, 3, partition=partition) for rank in range(3)]
    some = [loader_of(shard, global_batch_size=400) for shard in shards]
    owned = [[batch.ids.copy() for batch in loader.sequential()] for loader in some]
    ids = [np.concatenate([*parts, np.empty(0, int)]).astype(int) for parts in owned]
    assert np.array_equal(np.concatenate(ids), np.arange(400))
    assert [len(own) for own in ids] == list(shards[0].counts) == [loader.rows_of_step(loader.rank) for loader in some]
    work = np.array([(lengths[own] + 4).sum() for own in ids])
    np.testing.assert_allclose(work, (lengths + 4).sum() * np.array(weights) / sum(weights), atol=204)
    (stepped,) = [[len(batch.y) for _, batches in loader.epoch(0) for batch in batches] for loader in some[:1]]
    assert sum(stepped) == len(ids[0])  # the one step of full-batch gradient descent is such a pass


@mpi
@pytest.mark.parametrize(("shuffle", "distribute"), [("global", None), ("local", None), ("local", "scatter")])
@pytest.mark.parametrize("kind", ["values", "ones"])
def test_libsvm_rows_stay_sparse(nodes, shared_folder, shuffle, kind, distribute):
    x = KINDS[kind]
    path = shared_folder(lambda folder: (folder / "a.svm").write_text(svm_text(x, Y, weight=WEIGHT))) / "a.svm"
    options = dict(shuffle=shuffle, distribute=distribute, valid=0.2, test_fraction=0.1, seed=5)
    ours, theirs = (data.load_sets(path, nodes, dense=dense, **options) for dense in (False, True))
    for one, other in zip(ours, theirs, strict=True):
        assert isinstance(one.dataset.x, SparseRows)
        assert one.dataset.x.dtype == (np.float64 if kind == "values" else np.float32) or not one.dataset.rows
        assert not isinstance(other.dataset.x, SparseRows)
        rows = slice(None)  # sparse rows that all ranks may get lie in the order that was drawn
        if shuffle == "global":
            rows = other.order.positions(0, other.dataset.rows)
        assert np.array_equal(one.dataset.x.toarray(), other.dataset.x[rows])
        assert np.array_equal(one.dataset.y, other.dataset.y[rows])
        assert np.array_equal(one.dataset.weight, other.dataset.weight[rows])
        loaders = [loader_of(each, global_batch_size=7) for each in (one, other)]
        for (_, sparse), (_, want) in zip(*(loader.epoch(1) for loader in loaders), strict=True):
            for batch, same in zip(sparse, want, strict=True):
                assert np.array_equal(batch.ids, same.ids)
                assert np.array_equal(dense(batch.x), same.x)
                assert np.array_equal(batch.weight, same.weight)
        passed = [[(*batch.ids, *batch.y) for batch in loader.sequential()] for loader in loaders]
        assert passed[0] == passed[1]
        assert one.counts == other.counts


@pytest.mark.ranks(1)
def test_values_are_rounded_as_they_are_read(folder, monkeypatch):
    """In small blocks; unless rows are held densely, whatever the first ones look like, or a value is out of range."""
    monkeypatch.setattr("distai_mpi.data.readers.text.BLOCK_BYTES", 1 << 9)
    options = {"test_fraction": 0, "sparse_dtype": "float32"}
    huge, full = X.copy(), RNG.normal(size=(400, 5))
    huge[100, 3] = 1e200
    full[:20, :4] = 0
    for name, x, kept in (("sparse", X, X.astype(np.float32)), ("huge", huge, huge), ("full", full, full)):
        (folder / f"{name}.svm").write_text(svm_text(x, np.arange(len(x)) % 2))
        found = load(f"{name}.svm", Alone(), **options)[0].dataset.x
        assert isinstance(found, SparseRows) == (name != "full")
        assert found.dtype == kept.dtype
        np.testing.assert_allclose(dense(found), kept, rtol=1e-7 if name == "huge" else 0)


@mpi
def test_rows_of_which_much_is_not_zero_are_held_densely(comm, folder):
    if comm.rank == 0:
        (folder / "a.svm").write_text(svm_text(np.abs(X[:, :3]) + 1, Y))
        (folder / "sparse.svm").write_text(svm_text(X, Y))
    comm.barrier()
    assert not load("a.svm", comm)[0].dataset.is_sparse
    assert load("sparse.svm", comm)[0].dataset.is_sparse
    assert not load("sparse.svm", comm, missing="mean")[0].dataset.is_sparse


def test_predictions(folder):
    model = models.Softmax(FEATURES, 2, dtype=np.float64)
    predictor = Predictor(model, RNG.normal(size=model.layout.size))
    want = predictor.predict_proba(X)
    np.testing.assert_allclose(predictor.predict_proba(scipy.sparse.csr_array(X)), want, rtol=1e-12)
    (folder / "a.svm").write_text(svm_text(X, Y))
    got = [part for part, _ in predictor.blocks("a.svm", "predict_proba")]
    np.testing.assert_allclose(np.concatenate(got), want, rtol=1e-12)
    with pytest.raises(DataError, match=r"x has shape \(203, 39\)"):
        predictor.predict(scipy.sparse.csr_array(X[:, 1:]))
