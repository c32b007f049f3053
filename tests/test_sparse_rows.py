"""Sparse rows, and the passes of models over them, agree with dense ones of the same numbers."""

import numpy as np
import pytest
from scipy import sparse

from distai_mpi import models
from distai_mpi.data import Batch
from distai_mpi.data.rows import DenseRows, Rows
from distai_mpi.data.sparse_rows import SparseRows, sparse_rows
from distai_mpi.errors import DataError
from distai_mpi.models.losses import LOSSES

DTYPES = {"float32": 3e-5, "float64": 1e-12}  # with the tolerance of results, relative to the sum of magnitudes
FEATURES = 40
SHAPES = {"none": (0, 7), "one": (1, 1), "few": (9, 3), "strips": (1201, FEATURES), "wide": (60, 12_000)}
LONG, SHORT = 10_000, 3  # entries of the longest rows, and of others


def table(rows, features, dtype, ones=False, seed=0):
    """Numbers of which most are 0: rows of 0, 1, few and many entries, and features that no row has."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, features)) * (rng.random((rows, features)) < 0.3)
    if features > FEATURES:
        x[1:] = 0
        x[1:, :SHORT] = 1.5
        x[rows // 2, -LONG:] = rng.standard_normal(LONG)
    x[:, 2::7] = 0
    x[rows // 4 : rows // 3] = 0
    return ((x != 0) if ones else x).astype(dtype)


def compressed(x):
    """``x`` as sparse rows of its dtype."""
    found = sparse_rows(sparse.csr_matrix(x)).astype(x.dtype)
    assert (found.values.size == 0) == bool((x[x != 0] == 1).all())
    return found


def vectors(size, outputs, dtype, seed=1):
    return np.random.default_rng(seed).standard_normal((size, outputs) if outputs else size).astype(dtype)


def close(got, expected, magnitude, tolerance):
    assert np.shape(got) == np.shape(expected)
    assert (np.abs(got - expected) <= tolerance * (magnitude + 1e-3)).all()


@pytest.fixture(params=SHAPES)
def shape(request):
    return SHAPES[request.param]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ones", [False, True], ids=["values", "ones"])
@pytest.mark.parametrize("outputs", [None, 1, 3, 16, 37])
def test_products(shape, dtype, ones, outputs):
    x, tolerance = table(*shape, dtype, ones), DTYPES[dtype]
    rows, wide = compressed(x), np.abs(x.astype(np.float64))
    w, v = vectors(shape[1], outputs, dtype), vectors(shape[0], outputs, dtype)
    expected = x.astype(np.float64) @ w.astype(np.float64)
    out = np.full(expected.shape, np.nan, dtype)
    assert rows.dot(w, out=out) is out
    close(out, expected, wide @ np.abs(w), tolerance)
    np.testing.assert_array_equal(rows.dot(w), out)
    expected = x.T.astype(np.float64) @ v.astype(np.float64)
    out = np.full(expected.shape, np.nan, dtype)
    assert rows.t_dot(v, out=out) is out
    close(out, expected, wide.T @ np.abs(v), tolerance)
    np.testing.assert_array_equal(rows.t_dot(v), out)
    rows.squares(v, out)
    close(out, np.square(wide).T @ v.astype(np.float64), np.square(wide).T @ np.abs(v), tolerance)


@pytest.mark.parametrize("outputs", [None, 1, 3])
def test_products_into_parts_of_arrays(outputs):
    x = table(50, FEATURES, "float64")
    w, v = vectors(FEATURES, outputs, "float64"), vectors(50, outputs, "float64")
    for product, number, expected in ((compressed(x).dot, w, x @ w), (compressed(x).t_dot, v, x.T @ v)):
        whole = np.full((*expected.shape, 2), np.nan)
        product(number, out=whole[..., 0])
        np.testing.assert_allclose(whole[..., 0], expected, atol=1e-12)
        assert np.isnan(whole[..., 1]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ones", [False, True], ids=["values", "ones"])
def test_parts_of_the_rows(dtype, ones):
    x = table(300, FEATURES, dtype, ones)
    rows, numbers = compressed(x), np.array([7, 3, 3, 299, 0])
    assert isinstance(rows, Rows)
    for which in (slice(20, 250), slice(290, 400), slice(5, 5), slice(9, 4), slice(0, 300, 7), numbers):
        part, expected = rows.take(which), x[which]
        assert part.shape == expected.shape
        assert np.shares_memory(part.indices, rows.indices) == (isinstance(which, slice) and which.step is None)
        for name, argument in (("dot", vectors(FEATURES, 3, dtype)), ("t_dot", vectors(len(expected), 3, dtype))):
            plain = getattr(DenseRows(expected), name)(argument)
            np.testing.assert_allclose(getattr(part, name)(argument), plain, rtol=1e-4, atol=1e-4)
        found = np.full(expected.shape, np.nan, dtype)
        part.fill(found)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("form", ["csr_matrix", "csr_array", "csc_matrix", "coo_array", "lil_matrix"])
def test_matrices_of_scipy_are_taken(form):
    x = table(60, FEATURES, "float64")
    rows = sparse_rows(getattr(sparse, form)(x))
    assert (rows.dtype, rows.indices.dtype, rows.starts.dtype) == ("float64", "uint32", "int64")
    found = np.empty_like(x)
    rows.fill(found)
    np.testing.assert_array_equal(found, x)
    assert sparse_rows(rows) is rows


def test_entries_of_scipy_are_summed_and_sorted():
    data, indices, room = [1.0, 2.0, 0.5, 4.0, 9.0], [3, 0, 3, 1, 7], [0, 3, 3, 4]
    given = sparse.csr_matrix((data, indices, room), shape=(3, 4))  # with room for one more entry
    rows = sparse_rows(given)
    assert rows.indices.tolist() == [0, 3, 1]
    assert rows.values.tolist() == [2.0, 1.5, 4.0]
    assert rows.dtype == np.float32
    assert rows.starts.tolist() == [0, 2, 2, 3]
    assert given.indices[:4].tolist() == indices[:4]


@pytest.mark.parametrize("dtype", [bool, np.int8, np.int64, np.float64])
def test_values_are_held_in_as_few_bytes_as_lose_nothing(dtype):
    x = np.array([[1, 0, 1], [0, 1, 0]], dtype)
    assert sparse_rows(sparse.csr_array(x)).values.size == 0
    if dtype is np.float64:
        for number, expected in ((0.5, np.float32), (np.nan, np.float32), (0.1, np.float64), (1e300, np.float64)):
            assert sparse_rows(sparse.csr_array(np.where(x > 0, number, 0))).dtype == expected
    with pytest.raises(DataError, match="store integers or floats"):
        sparse_rows(sparse.csr_array(x.astype(complex)))


def test_more_features_than_32_bits_number():
    x = table(80, FEATURES, "float32")
    narrow = compressed(x)
    wide = SparseRows(narrow.starts, narrow.indices.astype(np.uint64), narrow.values, FEATURES)
    for outputs in (None, 3):
        w, v = vectors(FEATURES, outputs, "float32"), vectors(80, outputs, "float32")
        np.testing.assert_array_equal(wide.dot(w), narrow.dot(w))
        np.testing.assert_array_equal(wide.t_dot(v), narrow.t_dot(v))
    assert sparse_rows(sparse.csr_array(([1.0], ([0], [1 << 33])), shape=(1, 1 << 34))).indices.tolist() == [1 << 33]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
def test_scaled_gram(dtype, bias):
    x = table(700, FEATURES, dtype)
    scale = np.random.default_rng(0).random(700).astype(dtype)
    outs = np.ones((2, FEATURES + bias, FEATURES + bias))
    for rows, out in zip((DenseRows(x), compressed(x)), outs, strict=True):
        rows.scaled_gram(scale, bias, out)
    np.testing.assert_allclose(outs[1], outs[0], rtol=1e-5, atol=1e-4)


def frequencies(rows):
    """Rows of ones in which features are in all rows, in every third, ninth and so on, and the last one in none."""
    numbers, step = np.arange(rows), 3 ** np.arange(9)
    inside = numbers[:, None] % step == 0
    inside[:, -1] = False
    starts = np.concatenate(([0], np.cumsum(inside.sum(1))))
    return SparseRows(starts, np.nonzero(inside)[1].astype(np.uint32), np.empty(0, np.float32), 9)


@pytest.mark.parametrize("outputs", [None, 1, 5])
def test_sums_of_many_rows_keep_their_figures(outputs):
    rows, number = 200_000, np.float32(0.3)
    x = frequencies(rows)
    found = x.t_dot(np.full((rows, outputs) if outputs else rows, number, np.float32))
    expected = np.append(np.ceil(rows / 3.0 ** np.arange(8)), 0) * float(number)
    tolerance = 1e-5  # float32 alone: 2e-3
    for column in found.reshape(9, -1).T:
        np.testing.assert_allclose(column, expected, rtol=tolerance)
    if outputs is None:
        model, y = models.Linear(9, bias=False), np.full(rows, -number)
        grad = np.empty(9, np.float32)
        model.loss_and_grad(np.zeros(9, np.float32), batch_of(x, y, "float32", False, "float32"), grad)
        np.testing.assert_allclose(grad, expected, rtol=tolerance)


def test_frequent_features_are_found_once_for_all_views():
    x = frequencies(3 * 3**7)
    found = x.frequent
    assert found.features.tolist() == [0, 1, 2]  # 6561, 2187 and 729 rows have them
    assert found.reach[:4].tolist() == [1, 2, 2, 3]
    assert found.reach[-1] == 3
    assert x.take(slice(1000, 3000)).frequent is found
    assert x.take(slice(1000, 1100)).frequent.features.size == 0
    assert x.astype(np.float64).frequent.features.size == 0


def targets(loss, rows, outputs):
    rng = np.random.default_rng(3)
    if LOSSES[loss].classifies:
        return rng.integers(0, max(2, outputs), rows)
    return rng.integers(0, 4, rows) if loss == "poisson" else rng.standard_normal(rows)


def batch_of(x, y, dtype, weighted, target_dtype):
    weight = np.random.default_rng(4).random(len(y)).astype(dtype) if weighted else None
    return Batch(x, y.astype(target_dtype), weight, np.arange(len(y)), 0, train=True)


def both(model, x, dtype, weighted):
    """The same rows densely and in compressed form."""
    y = targets(model.loss_function.name, len(x), model.widths[-1])
    return [batch_of(rows, y, dtype, weighted, model.target_dtype) for rows in (x, compressed(x))]


POINTS = sorted(name for name, loss in LOSSES.items() if not loss.several)


def check_passes(model, x, dtype, weighted, tolerance):
    """`loss_and_grad`, `linearize` and products at sparse rows are what they are at dense ones."""
    dense, rows = both(model, x, dtype, weighted)
    rng = np.random.default_rng(5)
    w, v = (rng.standard_normal((2, model.layout.size)) / np.sqrt(1 + (x != 0).sum(1).max(initial=0))).astype(dtype)
    grads = np.full((2, w.size), np.nan, dtype)
    expected, kept = model.linearize(w, dense, grads[0])
    sums, found = model.linearize(w, rows, grads[1])
    np.testing.assert_allclose(sums, expected, rtol=tolerance)
    scale = tolerance * (1 + np.abs(grads[0]).max())
    np.testing.assert_allclose(grads[1], grads[0], rtol=tolerance, atol=scale)
    for name in ("margin", "curvature", "delta"):
        if hasattr(kept, name):
            np.testing.assert_allclose(getattr(found, name), getattr(kept, name), rtol=tolerance, atol=tolerance * 10)
    again = np.full_like(w, np.nan)
    assert model.loss_and_grad(w, rows, again) == sums
    np.testing.assert_array_equal(again, grads[1])
    np.testing.assert_allclose(model.loss(w, rows), expected, rtol=tolerance)
    outs = np.full((2, w.size), np.nan, dtype)
    for batch, one, out in ((dense, kept, outs[0]), (rows, found, outs[1])):
        one.product(w, batch, v, out)
    np.testing.assert_allclose(outs[1], outs[0], rtol=tolerance, atol=tolerance * (1 + np.abs(outs[0]).max()))
    return (dense, kept), (rows, found)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize(
    ("loss", "dtype"),  # each loss is seconds of compiling in each dtype
    [*((loss, "float64") for loss in [*POINTS, "softmax"]), ("logistic", "float32"), ("softmax", "float32")],
)
def test_linear_models(loss, bias, weighted, dtype):
    outputs, tolerance = (5 if loss == "softmax" else 1), {"float32": 3e-4, "float64": 1e-10}[dtype]
    for name, (rows, features) in SHAPES.items():
        model = models.LinearModel(features, outputs, loss=loss, bias=bias, dtype=dtype)
        x = table(rows, features, dtype, ones=name == "few")
        pair = check_passes(model, x, dtype, weighted, tolerance)
        if features <= FEATURES:
            size = model.layout.size
            matrices, diagonals = np.zeros((2, size, size)), np.zeros((2, size))
            for (batch, kept), matrix, diagonal in zip(pair, matrices, diagonals, strict=True):
                kept.add_matrix(batch, matrix)
                kept.add_diagonal(batch, diagonal)
            for found in (matrices, diagonals):
                np.testing.assert_allclose(found[1], found[0], rtol=tolerance, atol=tolerance * (1 + found[0].max()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_mlp(dtype):
    for rows, features in SHAPES.values():
        model = models.MLP(features, 4, (9,), dropout=0, dtype=dtype)
        check_passes(model, table(rows, features, dtype), dtype, True, {"float32": 1e-3, "float64": 1e-9}[dtype])


@pytest.mark.parametrize("loss", sorted(set(LOSSES) - {"huber"}))  # whose products are with something larger
def test_products_are_differences_of_gradients(loss):
    model = models.LinearModel(FEATURES, 4 if loss == "softmax" else 1, loss=loss, dtype="float64")
    _, batch = both(model, table(500, FEATURES, "float64"), "float64", True)
    rng = np.random.default_rng(2)
    w, v = rng.standard_normal((2, model.layout.size)) / 10
    step, grads, out = 1e-6, np.empty((2, w.size)), np.empty(w.size)
    _, kept = model.linearize(w, batch, out)
    for sign, grad in zip((1, -1), grads, strict=True):
        model.loss_and_grad(w + sign * step * v, batch, grad)
    kept.product(w, batch, v, out)
    # the squared hinge has kinks of the gradient, few of which lie between the two points
    np.testing.assert_allclose(out, (grads[0] - grads[1]) / (2 * step), rtol=1e-5, atol=1e-5 * np.abs(out).max())


@pytest.mark.parametrize("loss", ["squared", "logistic", "softmax"])
@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_values_that_are_no_numbers_show_in_the_loss(loss, bad):
    x = table(600, FEATURES, "float32")
    x[17, 3] = bad
    model = models.LinearModel(FEATURES, 3 if loss == "softmax" else 1, loss=loss)
    grad = np.empty(model.layout.size, np.float32)
    with np.errstate(invalid="ignore"):
        sums = model.loss_and_grad(np.full_like(grad, -1), both(model, x, "float32", False)[1], grad)
    assert not np.isfinite(sums.loss) or not np.isfinite(grad).all()
