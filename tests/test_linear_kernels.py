"""Kernels of linear models agree with plain NumPy in float64."""

import warnings

import numpy as np
import pytest

from distai_mpi.data.row_kernels import squares as sum_squares
from distai_mpi.models.kernels.linear import margins
from distai_mpi.models.losses import LOSSES
from distai_mpi.models.passes import read_only

DTYPES = {"float32": 2e-5, "float64": 1e-12}  # with the tolerance of results, relative to the sum of magnitudes
SHAPES = [(0, 7), (1, 1), (3, 50), (131, 1), (1003, 7), (5001, 50), (333, 200), (45, 1000), (70, 1024), (9, 40_000)]
SHAPES += [(40, 15), (2100, 16), (39, 17), (100, 1030)]


class Passes:
    """The passes of a loss over read-only arrays and with a bias of their type, as models call them."""

    def __init__(self, kind):
        self.margins = margins(LOSSES[kind])

    def loss_and_grad(self, x, y, weight, w, bias, *others):
        return self.margins.loss_and_grad(*read_only(x, y, weight, w), x.dtype.type(bias), *others)

    def product(self, x, y, curvature, p, bias, *others):
        return self.margins.product(*read_only(x, y, curvature, p), x.dtype.type(bias), *others)

    def line(self, margin, step, t, y, weight):
        return self.margins.line(margin, step, t, *read_only(y, weight))


of = Passes


def problem(rows, features, dtype, weighted=True, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, features)).astype(dtype)
    w = (rng.standard_normal(features) / np.sqrt(features)).astype(dtype)
    weight = rng.random(rows if weighted else 0).astype(dtype)
    return x, w, rng.integers(0, 2, rows), weight


def plain_losses(kind, margin, y, weight):
    """Losses, and first and second derivatives, of the rows, in float64 or in the longer type of the margins."""
    margin = np.asarray(margin, np.result_type(margin, np.float64))
    factor = weight.astype(np.float64) if weight.size else np.ones(len(margin))
    if kind == "squared":
        return factor * (margin - y) ** 2 / 2, factor * (margin - y), factor * np.ones_like(margin)
    sign = np.where(y > 0, 1, -1)
    tail = np.exp(-np.abs(margin))
    near, far = tail / (1 + tail), 1 / (1 + tail)
    residual = -sign * np.where(sign * margin >= 0, near, far)
    return factor * (np.log1p(tail) + np.maximum(-sign * margin, 0)), factor * residual, factor * near * far


def close(got, expected, magnitude, tolerance):
    np.testing.assert_array_less(np.abs(got - expected), tolerance * (magnitude + 1e-3))


@pytest.mark.parametrize("kind", ["squared", "logistic"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loss_and_grad(kind, dtype, weighted, shape):
    x, w, y, weight = problem(*shape, dtype, weighted)
    y = y if kind == "logistic" else np.random.default_rng(1).standard_normal(len(y)).astype(dtype)
    grad = np.full(shape[1], np.nan, dtype)
    margin, curvature = np.empty(len(x), dtype), np.empty(len(x), dtype)
    loss, bias_grad = of(kind).loss_and_grad(x, y, weight, w, 0.25, grad, margin, curvature)
    wide = x.astype(np.float64)
    z = wide @ w.astype(np.float64) + 0.25
    losses, residual, curved = plain_losses(kind, z, y, weight)
    tolerance = DTYPES[dtype]
    close(margin, z, np.abs(wide) @ np.abs(w) + 1, tolerance)
    close(loss, losses.sum(), losses.sum(), tolerance)
    close(bias_grad, residual.sum(), np.abs(residual).sum(), tolerance)
    close(grad, wide.T @ residual, np.abs(wide).T @ np.abs(residual), tolerance)
    close(curvature, curved, 1, tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["squared", "logistic"])
def test_what_is_not_wanted_may_be_empty(dtype, kind):
    x, w, y, weight = problem(500, 21, dtype)
    full, bare, none = np.empty(21, dtype), np.empty(21, dtype), np.empty(0, dtype)
    margin, curvature = np.empty(500, dtype), np.empty(500, dtype)
    y = y if kind == "logistic" else y.astype(dtype)
    expected = of(kind).loss_and_grad(x, y, weight, w, 0.5, full, margin, curvature)
    assert of(kind).loss_and_grad(x, y, weight, w, 0.5, bare, none, none) == expected
    np.testing.assert_array_equal(bare, full)
    step, out = np.empty(500, dtype), np.empty(21, dtype)
    expected = of(kind).product(x, y, curvature, w, 0.5, full, step)
    assert of(kind).product(x, y, curvature, w, 0.5, out, none) == expected
    np.testing.assert_array_equal(out, full)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_product_and_diagonal(dtype, shape):
    x, p, y, curvature = problem(*shape, dtype)
    out, squares = np.full(shape[1], np.nan, dtype), np.full(shape[1], np.nan, dtype)
    step = np.empty(len(x), dtype)
    bias = of("logistic").product(x, y, curvature, p, -0.75, out, step)
    sum_squares(*read_only(x), curvature, squares)
    wide, tolerance = x.astype(np.float64), DTYPES[dtype]
    z = wide @ p.astype(np.float64) - 0.75
    close(step, z, np.abs(wide) @ np.abs(p) + 1, tolerance)
    close(bias, curvature @ z, curvature @ np.abs(z), tolerance)
    close(out, wide.T @ (curvature * z), np.abs(wide).T @ (curvature * np.abs(z)), tolerance)
    expected = curvature.astype(np.float64) @ wide**2
    close(squares, expected, expected, tolerance)


@pytest.mark.parametrize("kind", ["squared", "logistic"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 255, 256, 1001])
def test_values_and_line(kind, dtype, weighted, rows):
    _, _, y, weight = problem(rows, 1, dtype, weighted)
    y = y if kind == "logistic" else y.astype(dtype)
    rng = np.random.default_rng(2)
    margin, step = (3 * rng.standard_normal((2, rows))).astype(dtype)
    losses, _, _ = plain_losses(kind, margin, y, weight)
    assert of(kind).line(margin, margin, 0.0, y, weight)[0] == pytest.approx(losses.sum(), rel=1e-13)
    moved = margin.astype(np.float64) + 0.7 * step.astype(np.float64)
    losses, residual, _ = plain_losses(kind, moved, y, weight)
    loss, slope = of(kind).line(margin, step, 0.7, y, weight)
    assert loss == pytest.approx(losses.sum(), rel=1e-13)
    assert slope == pytest.approx(residual @ step, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_logistic_loss_is_exact(dtype):
    """To a few units in the last place of float64, also where losses are tiny."""
    margin = np.concatenate([np.linspace(-40, 40, 4001), np.linspace(-1, 1, 2001), np.linspace(-700, 700, 2001)])
    margin = margin.astype(dtype)
    wide, none = margin.astype(np.longdouble), np.empty(0, dtype)
    y, x, one = np.ones(1, np.int64), np.ones((1, 1), np.float64), np.ones(1)
    for z, exact in zip(margin, plain_losses("logistic", wide, np.ones(len(wide)), none)[0], strict=True):
        loss, _ = of("logistic").line(np.array([z]), np.zeros(1, dtype), 0.0, y, none)
        assert loss == pytest.approx(float(exact), rel=1e-15, abs=0)
    grad, curvature = np.empty(1), np.empty(1)
    for z, *exact in zip(wide, *plain_losses("logistic", wide, np.ones(len(wide)), none)[1:], strict=True):
        of("logistic").loss_and_grad(x, y, one, np.array([z], np.float64), 0.0, grad, np.empty(0), curvature)
        assert [grad[0], curvature[0]] == pytest.approx([float(e) for e in exact], rel=1e-15, abs=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_margins(dtype):
    x, w = np.array([[1000.0], [-1000.0], [1e30], [-1e30], [0.0]], dtype), np.ones(1, dtype)
    none = np.empty(0, dtype)
    grad, margin, curvature = np.empty(1, dtype), np.empty(5, dtype), np.empty(5, dtype)
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        for y, loss, first in (
            (np.ones(5, int), 1000 + 1e30, 1001 + 1e30),
            (np.zeros(5, int), 1000 + 1e30, 1001 + 1e30),
        ):
            got, _ = of("logistic").loss_and_grad(x, y, none, w, 0.0, grad, margin, curvature)
            assert got == pytest.approx(loss, rel=1e-6)
            assert abs(grad[0]) == pytest.approx(first, rel=1e-6)
            np.testing.assert_allclose(curvature, [0, 0, 0, 0, 0.25], atol=1e-300)
            two = of("logistic").loss_and_grad(x[:2], y[:2], none, w, 0.0, grad, none, none)[0]
            assert two == pytest.approx(1000.0, rel=1e-12)
            assert of("logistic").line(margin[:2], margin[:2], 0.0, y[:2], none)[0] == two
            assert of("logistic").line(margin[:2], margin[:2], -1.0, y[:2], none)[0] == pytest.approx(2 * np.log(2))


@pytest.mark.parametrize("dtype", DTYPES)
def test_labels_of_both_kinds(dtype):
    x, w, y, weight = problem(99, 7, dtype)
    one, other, none = np.empty(7, dtype), np.empty(7, dtype), np.empty(0, dtype)
    expected = of("logistic").loss_and_grad(x, y, weight, w, 0.1, one, none, none)
    floats = [] if dtype == "float32" else [(2 * y - 1).astype(dtype), y.astype(dtype)]  # compiled for one dtype only
    for labels in (2 * y - 1, *floats):
        assert of("logistic").loss_and_grad(x, labels, weight, w, 0.1, other, none, none) == expected
        np.testing.assert_array_equal(other, one)


@pytest.mark.parametrize("kind", ["squared", "logistic"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", [0, 70, 98])
def test_nan_reaches_the_loss(kind, dtype, row):
    x, w, y, weight = problem(99, 50, dtype)
    x[row, 17] = np.nan
    grad, margin, none = np.empty(50, dtype), np.empty(99, dtype), np.empty(0, dtype)
    y = y if kind == "logistic" else y.astype(dtype)
    loss, bias_grad = of(kind).loss_and_grad(x, y, weight, w, 0.0, grad, margin, none)
    assert np.isnan([loss, bias_grad, of(kind).line(margin, margin, 0.0, y, weight)[0]]).all()
    assert np.isnan(of(kind).line(margin, margin, 0.5, y, weight)).all()
    assert np.isnan(grad).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("features", [1, 15, 16, 50, 1030])
def test_a_row_is_not_mixed_with_the_next(dtype, features):
    """Vectors reach beyond the end of a row, but not into its margin."""
    x, w, y, weight = problem(99, features, dtype)
    margin, expected, grad = np.empty(99, dtype), np.empty(99, dtype), np.empty(features, dtype)
    of("logistic").loss_and_grad(x, y, weight, w, 0.0, grad, expected, weight[:0])
    for row in (1, 50, 97):
        x[row, 0] = np.nan
    of("logistic").loss_and_grad(x, y, weight, w, 0.0, grad, margin, weight[:0])
    assert np.flatnonzero(np.isnan(margin)).tolist() == [1, 50, 97]
    np.testing.assert_array_equal(margin[~np.isnan(margin)], expected[~np.isnan(margin)])


def test_float32_sums_over_many_rows_stay_accurate():
    rows = 400_000
    x, w, none = np.full((rows, 2), 0.1, np.float32), np.zeros(2, np.float32), np.empty(0, np.float32)
    grad = np.empty(2, np.float32)
    of("logistic").loss_and_grad(x, np.zeros(rows, int), none, w, 0.0, grad, none, none)
    np.testing.assert_allclose(grad, rows * np.float64(np.float32(0.1)) / 2, rtol=1e-5)
