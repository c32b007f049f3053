"""Products with the curvature, its diagonal and its matrix agree with derivatives of the gradient."""

import numpy as np
import pytest

from distai_mpi import models
from distai_mpi.backend import HOST
from distai_mpi.data import Batch
from distai_mpi.models import passes

MODELS = {
    "linear": lambda bias: models.Linear(5, bias=bias, dtype=np.float64),
    "logistic": lambda bias: models.Logistic(5, bias=bias, dtype=np.float64),
    "softmax": lambda bias: models.Softmax(5, 3, bias=bias, dtype=np.float64),
    "mlp": lambda bias: models.MLP(5, 3, (4, 6), activation="tanh", bias=bias, dtype=np.float64),
}


def problem(name, bias, weighted, rows=40):
    rng = np.random.default_rng(2)
    model = MODELS[name](bias)
    x = rng.standard_normal((rows, 5))
    y = rng.integers(0, 2 if name == "logistic" else 3, rows)
    y = y.astype(float) if name == "linear" else y
    weight = np.where(np.arange(rows) % 7 == 3, 0.0, rng.random(rows)) if weighted else None
    w = HOST.read_only(0.5 * rng.standard_normal(model.layout.size))  # as in a run: others are compiled for once more
    return model, Batch(x, y, weight, np.arange(rows), 0, False), w, rng


def columns(model, w, batch):
    """The curvature by products with unit vectors."""
    size = model.layout.size
    grad, out, matrix = np.empty(size), np.empty(size), np.empty((size, size))
    _, kept = model.linearize(w, batch, grad)
    for i in range(size):
        kept.product(w, batch, np.eye(size)[i], out)
        matrix[:, i] = out
    return matrix


@pytest.mark.parametrize(("features", "classes"), [(3, 17), (9, 2), (40, 5), (4, 1)])
@pytest.mark.parametrize("bias", [False, True])
def test_matrices_of_softmax_are_those_of_its_products(features, classes, bias):
    rng = np.random.default_rng(3)
    rows = 4000  # more than one block
    model = models.Softmax(features, classes, bias=bias, dtype=np.float64)
    weight = np.where(np.arange(rows) % 7 == 3, 0.0, rng.random(rows))
    x, y = rng.standard_normal((rows, features)), rng.integers(0, classes, rows)
    batch, w = Batch(x, y, weight, np.arange(rows), 0, False), HOST.read_only(rng.standard_normal(model.layout.size))
    matrix, size = columns(model, w, batch), model.layout.size
    _, kept = model.linearize(w, batch, np.empty(size))
    whole, diagonal = np.ones((size, size)), np.ones(size)
    kept.add_matrix(batch, whole)
    kept.add_diagonal(batch, diagonal)
    np.testing.assert_allclose(whole - 1, matrix, rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(diagonal - 1, np.diag(matrix), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", ["linear", "logistic", "softmax"])
def test_rows_may_lie_in_any_way(name):
    model, batch, w, rng = problem(name, True, True)
    v, size = rng.standard_normal(model.layout.size), model.layout.size
    found = []
    for x in (batch.x, np.asfortranarray(batch.x), np.repeat(batch.x, 2, axis=0)[::2], batch.x[::-1].copy()[::-1]):
        grad, out, diagonal = np.empty(size), np.empty(size), np.zeros(size)
        sums, kept = model.linearize(w, batch._replace(x=x), grad)
        kept.product(w, batch._replace(x=x), v, out)
        kept.add_diagonal(batch._replace(x=x), diagonal)
        found.append(np.concatenate([[sums.loss], grad, out, diagonal]))
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", ["linear", "logistic", "softmax"])
def test_of_linear_models_it_is_the_hessian(name, bias, weighted):
    model, batch, w, _ = problem(name, bias, weighted)
    size = model.layout.size
    low, high, hessian = np.empty(size), np.empty(size), np.empty((size, size))
    for i in range(size):
        step = np.eye(size)[i] * 1e-5
        model.loss_and_grad(HOST.read_only(w - step), batch, low)
        model.loss_and_grad(HOST.read_only(w + step), batch, high)
        hessian[:, i] = (high - low) / 2e-5
    matrix = columns(model, w, batch)
    np.testing.assert_allclose(matrix, hessian, atol=1e-7)
    _, kept = model.linearize(w, batch, np.empty(size))
    whole, diagonal = np.zeros((size, size)), np.zeros(size)
    kept.add_matrix(batch, whole)
    kept.add_diagonal(batch, diagonal)
    np.testing.assert_allclose(whole, matrix, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(diagonal, np.diag(matrix), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_of_a_net_it_is_the_gauss_newton_matrix(bias, weighted):
    """Σ weight · Jᵀ (diag(p) - ppᵀ) J with J by central differences of the outputs."""
    model, batch, w, _ = problem("mlp", bias, weighted)
    size, rows = model.layout.size, len(batch.x)
    jacobian, outputs = np.empty((rows, 3, size)), lambda w: model.outputs(HOST.read_only(w), batch.x)
    for i in range(size):
        step = np.eye(size)[i] * 1e-5
        jacobian[:, :, i] = (outputs(w + step).copy() - outputs(w - step)) / 2e-5
    z = model.outputs(w, batch.x)
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    second = p[:, :, None] * np.eye(3) - p[:, :, None] * p[:, None, :]
    if weighted:
        second *= batch.weight[:, None, None]
    expected = np.einsum("rki,rkl,rlj->ij", jacobian, second, jacobian)
    np.testing.assert_allclose(columns(model, w, batch), expected, atol=1e-7)


@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_is_that_of_loss_and_grad_and_arrays_are_lent(name):
    model, batch, w, rng = problem(name, True, True)
    grad, other = np.empty(model.layout.size), np.empty(model.layout.size)
    sums, kept = model.linearize(w, batch, grad)
    assert model.loss_and_grad(w, batch, other) == pytest.approx(sums, rel=1e-14)
    np.testing.assert_allclose(grad, other, rtol=1e-13, atol=1e-13)
    elsewhere = HOST.read_only(w + rng.standard_normal(w.size))
    again = model.linearize(elsewhere, batch, grad, kept)[1]
    assert again is kept
    fresh = model.linearize(elsewhere, batch, grad)[1]
    v, one, two = rng.standard_normal(w.size), np.empty(w.size), np.empty(w.size)
    kept.product(elsewhere, batch, v, one)
    fresh.product(elsewhere, batch, v, two)
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", ["linear", "logistic"])
def test_many_threads_take_blas_to_the_same_result(name, bias, weighted, monkeypatch):
    monkeypatch.setattr(passes, "BLAS_BYTES", 1)  # blocks are as short as they get
    model, batch, w, rng = problem(name, bias, weighted, rows=600)
    other = MODELS[name](bias)
    other.limit_threads(16)
    v, found = rng.standard_normal(w.size), []
    for one in (model, other):
        grad, out = np.full(w.size, np.nan), np.full(w.size, np.nan)
        sums, kept = one.linearize(w, batch, grad)
        kept.product(w, batch, v, out)
        found.append([sums.loss, *grad, *out, *kept.margin, *kept.curvature])
        assert one.loss_and_grad(w, batch, grad) == sums
    np.testing.assert_allclose(*found, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("name", ["linear", "logistic"])
def test_lines_need_no_pass_over_the_rows(name):
    model, batch, w, rng = problem(name, True, True)
    size = model.layout.size
    way, grad = rng.standard_normal(size), np.empty(size)
    here, there = (model.linearize(at, batch, grad)[1] for at in (w, w + 2 * way))
    for t in (-0.5, 0.0, 0.3, 1.7):
        sums, _ = model.linearize(w + 2 * t * way, batch, grad)
        loss, slope = here.line(there, t)
        assert loss == pytest.approx(sums.loss, rel=1e-12)
        assert slope == pytest.approx(2 * grad @ way, rel=1e-10)


def test_dense_algebra_in_order():
    from distai_mpi.optim.solvers import ordered

    rng = np.random.default_rng(0)
    for n in (1, 3, 4, 9, 70):
        a = rng.standard_normal((n, n + 2))
        a = a @ a.T + 0.1 * np.eye(n)
        u, b = a.copy(), rng.standard_normal(n)
        assert ordered.cholesky(u, 1e-14)
        np.testing.assert_allclose(np.triu(u), np.linalg.cholesky(a).T, rtol=1e-9, atol=1e-12)
        x = b.copy()
        ordered.solve_transposed(u, x)
        ordered.solve(u, x)
        np.testing.assert_allclose(a @ x, b, atol=1e-8)
        assert ordered.dot(x, b) == pytest.approx(x @ b, rel=1e-12)
    singular = np.ones((6, 6))
    assert not ordered.cholesky(singular, 1e-12)
    assert not ordered.cholesky(np.full((2, 2), np.nan), 1e-12)
