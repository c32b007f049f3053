"""Passes of linear models with several outputs, by the kernel and by BLAS, agree with plain NumPy in float64."""

import numpy as np
import pytest

from distai_mpi.data import Batch
from distai_mpi.data.rows import DenseRows
from distai_mpi.models import passes
from distai_mpi.models.kernels.cpu import residual_of
from distai_mpi.models.losses import LOSSES

DTYPES = {"float32": 2e-5, "float64": 1e-12}  # with the tolerance of results, relative to the sum of magnitudes
SHAPES = [(0, 7, 3), (1, 1, 2), (3, 50, 3), (131, 1, 6), (1003, 7, 5), (701, 20, 11), (333, 200, 10), (45, 1000, 4)]
SHAPES += [(40, 15, 2), (600, 16, 40), (39, 17, 1), (30, 257, 41), (5, 20_000, 3)]
WAYS = {"kernel": 1, "BLAS": 64}  # threads


def problem(rows, features, outputs, dtype, weighted=True):
    rng = np.random.default_rng(rows)
    x = rng.standard_normal((rows, features)).astype(dtype)
    w = (rng.standard_normal((features, outputs)) / np.sqrt(features)).astype(dtype)
    bias, weight = rng.standard_normal(outputs).astype(dtype), rng.random(rows if weighted else 0).astype(dtype)
    return x, w, bias, rng.integers(outputs, size=rows), weight


def by_way(threads, x, w, bias, y, weight):
    """(loss, z, grad, bias_grad) of `by_outputs`."""
    z, grad, bias_grad = (np.full(shape, np.nan, x.dtype) for shape in ((len(x), len(bias)), w.shape, bias.shape))
    batch = Batch(x, y, weight if weight.size else None, None, 0, train=False)
    loss = passes.by_outputs(batch, weight, w, bias, z, grad, bias_grad, threads, residual_of(LOSSES["softmax"]))
    return loss, z, grad, bias_grad


def plain(x, w, bias, y, weight):
    """Probabilities of the classes, the weighted rows' factors, losses and derivatives by the outputs; float64."""
    z = x.astype(np.float64) @ w.astype(np.float64) + bias
    z -= z.max(axis=1, keepdims=True)
    total = np.exp(z).sum(axis=1, keepdims=True)
    chance, label = np.exp(z) / total, np.eye(len(bias))[y]
    factor = weight.astype(np.float64) if weight.size else np.ones(len(x))
    return chance, factor, factor * (np.log(total[:, 0]) - (z * label).sum(1)), factor[:, None] * (chance - label)


def close(got, expected, magnitude, tolerance):
    assert (np.abs(got - expected) < tolerance * (magnitude + 1e-3)).all()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loss_gradient_and_product(way, dtype, weighted, shape):
    x, w, bias, y, weight = problem(*shape, dtype, weighted)
    loss, z, grad, bias_grad = by_way(WAYS[way], x, w, bias, y, weight)
    chance, factor, losses, residual = plain(x, w, bias, y, weight)
    wide, tolerance = x.astype(np.float64), DTYPES[dtype]
    close(z, residual, 1, tolerance)
    close(loss, losses.sum(), losses.sum() + len(x), tolerance)
    close(grad, wide.T @ residual, np.abs(wide).T @ np.abs(factor)[:, None], tolerance)
    close(bias_grad, residual.sum(0), factor.sum(), tolerance)

    p, p_bias = w[::-1].copy(), bias[::-1].copy()
    u, out, bias_out = np.full_like(z, np.nan), np.full_like(w, np.nan), np.full_like(bias, np.nan)
    batch = Batch(x, y, weight if weight.size else None, None, 0, train=False)
    passes.curved_by_outputs(batch, (weight, z), p, p_bias, u, out, bias_out, WAYS[way])
    along = wide @ p.astype(np.float64) + p_bias
    curved = factor[:, None] * chance * (along - (chance * along).sum(axis=1, keepdims=True))
    size = factor[:, None] * (np.abs(wide) @ np.abs(p) + np.abs(p_bias)).max(axis=1, keepdims=True, initial=0)
    close(u, curved, size, tolerance)
    close(out, wide.T @ curved, np.abs(wide).T @ size, tolerance)
    close(bias_out, curved.sum(0), size.sum(), tolerance)


@pytest.mark.parametrize("outputs", [2, 40, 41])
def test_the_kernel_is_for_few_outputs_and_few_threads(outputs):
    x, w = np.empty((5, 3)), np.empty((3, outputs))
    assert passes.takes_kernel(DenseRows(x), w, 1) == (outputs <= 40)
    assert not passes.takes_kernel(DenseRows(x), w, 3)
    assert not passes.takes_kernel(DenseRows(np.asfortranarray(x)), w, 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_outputs_far_apart(dtype):
    w, bias = np.array([[1, -1, 0], [0, 0, 1]], dtype), np.zeros(3, dtype)
    x = np.array([[1e4, 0], [-1e4, 0], [800, 799], [0, 0], [1e4, 1e4]], dtype)
    y, none = np.array([0, 0, 2, 1, 1]), np.empty(0, dtype)
    loss, z, _, _ = by_way(1, x, w, bias, y, none)
    expected = [0, 2e4, 1 + np.log1p(np.exp(-1)), np.log(3), 2e4 + np.log(2)]
    assert loss == pytest.approx(sum(expected), rel=1e-7)
    np.testing.assert_allclose(z[0], [0, 0, 0], atol=1e-7)
    np.testing.assert_allclose(z[1], [-1, 1, 0], atol=1e-7)
    np.testing.assert_allclose(z[4], [0.5, -1, 0.5], atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", [0, 39, 69])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_reaches_the_loss_and_no_other_row(dtype, row, bad):
    x, w, bias, y, weight = problem(70, 19, 3, dtype)
    _, clean, _, _ = by_way(1, x, w, bias, y, weight)
    x[row, 18 if row else 0] = bad
    loss, z, _, _ = by_way(1, x, w, bias, y, weight)
    assert not np.isfinite(loss)
    others = np.arange(70) != row
    np.testing.assert_array_equal(z[others], clean[others])


def test_float32_sums_over_many_rows_stay_accurate():
    rows = 400_000
    x = np.full((rows, 2), 0.1, np.float32)
    w, bias = np.zeros((2, 2), np.float32), np.zeros(2, np.float32)
    loss, _, grad, bias_grad = by_way(1, x, w, bias, np.zeros(rows, np.int64), np.empty(0, np.float32))
    assert loss == pytest.approx(rows * np.log(2), rel=1e-9)
    np.testing.assert_allclose(grad, [[-0.05 * rows, 0.05 * rows]] * 2, rtol=5e-6)
    np.testing.assert_allclose(bias_grad, [-0.5 * rows, 0.5 * rows], rtol=1e-6)
