"""An l1 penalty: solvers come to the optimum, on rows however shared out, one after another along a path."""

import json
import math

import numpy as np
import pytest
import scipy.sparse as sp
from commands import run_here
from problems import local_shard, make_rows, uneven, whole_shard

import distai_mpi
from distai_mpi import Checkpoint, Exchange, data, fit, l1_path, minimize, models, optim
from distai_mpi.data import Dataset
from distai_mpi.errors import ConfigError
from distai_mpi.models import load_model, save_model
from distai_mpi.optim.solvers.orthant import orthant, project, pseudo_gradient

mpi = pytest.mark.mpi
SOLVERS = {"lbfgs": optim.LBFGS(tol=1e-9, max_iter=1000), "newton-cg": optim.NewtonCG(tol=1e-7)}
L1, L2 = 0.03, 0.02


def mean_loss(kind, x, y, w):
    """Mean loss and gradient at ``w``, shape (features + 1, outputs), the last row the biases; textbook formulas."""
    z = np.c_[x, np.ones(len(x))] @ w
    if kind == "linear":
        loss, slope = 0.5 * (z[:, 0] - y) ** 2, z - y[:, None]
    elif kind == "logistic":
        loss = np.logaddexp(0, z[:, 0]) - y * z[:, 0]
        slope = 1 / (1 + np.exp(-z)) - y[:, None]
    else:
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        loss = -np.log(p[np.arange(len(y)), y])
        slope = p - np.eye(p.shape[1])[y]
    return loss.mean(), np.c_[x, np.ones(len(x))].T @ slope / len(x)


def reference(kind, x, y, l1, l2, steps=20_000):
    """The objective's minimum by accelerated proximal gradients with restarts (Beck & Teboulle 2009), and the point."""
    w = np.zeros((x.shape[1] + 1, 3 if kind == "softmax" else 1))
    rate = 1 / (np.linalg.norm(np.c_[x, np.ones(len(x))], 2) ** 2 / len(x) + l2)
    ahead, momentum = w.copy(), 1.0
    for _ in range(steps):
        grad = mean_loss(kind, x, y, ahead)[1]
        grad[:-1] += l2 * ahead[:-1]
        new = ahead - rate * grad
        new[:-1] = np.sign(new[:-1]) * np.maximum(np.abs(new[:-1]) - rate * l1, 0)
        if np.sum((ahead - new) * (new - w)) > 0:
            momentum = 1.0
        grown = 0.5 * (1 + math.sqrt(1 + 4 * momentum**2))
        moved = np.abs(new - w).max()
        ahead, w, momentum = new + (momentum - 1) / grown * (new - w), new, grown
        if moved < 1e-13:
            break
    return mean_loss(kind, x, y, w)[0] + l1 * np.abs(w[:-1]).sum() + 0.5 * l2 * np.sum(w[:-1] ** 2), w


def violation(kind, x, y, params, l1, l2):
    """How far parameters are off the conditions of the optimum: the largest of the pseudo-gradient."""
    w = params.astype(float).reshape(x.shape[1] + 1, -1)
    grad = mean_loss(kind, x, y, w)[1]
    grad[:-1] += l2 * w[:-1]
    strength = np.full_like(w, l1)
    strength[-1] = 0
    return np.abs(pseudo_gradient(w, grad, strength)).max()


def rows_for(kind, rows=150, features=8):
    """Rows of which some features tell nothing, and a mean far from 0 that the bias has to take."""
    x, _ = make_rows(rows=rows, features=features)
    x[:, 0] += 1.0
    score = x[:, :3] @ np.array([[1.0, -1, 0], [0.5, 0, 1], [-1, 1, 0.2]]) + 0.4 * np.random.default_rng(1).normal(
        size=(rows, 3)
    )
    return x, {"linear": score[:, 0] + 5, "logistic": (score[:, 0] > 0.5).astype(np.int64), "softmax": score.argmax(1)}[
        kind
    ]


def model_for(kind, features=8, **options):
    options = {"dtype": np.float64} | options
    kinds = {"linear": models.Linear, "logistic": models.Logistic}
    return models.Softmax(features, 3, **options) if kind == "softmax" else kinds[kind](features, **options)


def test_pseudo_gradients_and_orthants_are_those_of_the_paper():
    w, grad = np.array([2.0, -2.0, 0, 0, 0, 0]), np.array([1.0, 1, 3, -3, 0.5, 0.5])
    l1 = np.array([1.0, 1, 1, 1, 1, 0])
    slope = pseudo_gradient(w, grad, l1)
    np.testing.assert_array_equal(slope, [2, 0, 2, -2, 0, 0.5])
    signs = orthant(w, slope, l1)
    np.testing.assert_array_equal(signs, [1, -1, -1, 1, np.nan, 0])
    np.testing.assert_array_equal(project(np.array([-1.0, -1, -1, -1, 1, -1]), signs), [0, -1, -1, 0, 0, -1])


def test_columns_that_are_orthogonal_have_soft_thresholds(comm):
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(40, 6)))
    x = q * math.sqrt(40)  # xᵀx / 40 is the identity
    y = x @ np.array([1.0, -0.5, 0.2, 0.05, 0, 0]) + 0.01 * np.random.default_rng(2).normal(size=40)
    ordinary = x.T @ y / 40
    expected = np.sign(ordinary) * np.maximum(np.abs(ordinary) - 0.1, 0) / (1 + 0.5)
    for solver in SOLVERS.values():
        found = fit(models.Linear(6, bias=False, dtype=np.float64), whole_shard(x, y, comm), comm, optimizer=solver,
                    l1=0.1, l2=0.5)  # fmt: skip
        np.testing.assert_allclose(found.params, expected, atol=1e-8)
        assert (found.params[3:] == 0).all()
        assert found.converged
    assert not fit(model_for("linear"), whole_shard(*rows_for("linear"), comm), comm, optimizer=optim.LBFGS(max_iter=2),
                   l1=0.1).converged  # fmt: skip


@pytest.mark.parametrize("kind", ["linear", "logistic", "softmax"])
@mpi
def test_solvers_come_to_the_optimum_on_rows_however_shared_out(comm, kind):
    x, y = rows_for(kind)
    least, w = reference(kind, x, y, L1, L2)
    assert 0 < np.count_nonzero(w[:-1]) < w[:-1].size
    shard = local_shard(x, y, comm, uneven(len(y), comm.size))
    for solver in SOLVERS.values():
        for exchange in (Exchange(), Exchange(algorithm="ring")):
            found = fit(model_for(kind), shard, comm, optimizer=solver, l1=L1, l2=L2, exchange=exchange)
            assert found.converged
            assert found.train_loss == pytest.approx(least, rel=1e-9)
            np.testing.assert_array_equal(found.params == 0, w.ravel() == 0)
            assert violation(kind, x, y, found.params, L1, L2) < 1e-6


def test_steps_that_their_projection_spoils_are_replaced(comm):
    """Features of many scales, and softmax, whose Hessian is singular: steps that leave the orthant in many ways."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 30)) * 10.0 ** rng.integers(-3, 4, size=30) + rng.choice([0, 1e5], size=30)
    y = ((x - x.mean(axis=0)) / x.std(axis=0))[:, :3].argmax(axis=1)
    found = [
        fit(models.Softmax(30, 3, dtype=np.float64), whole_shard(x, y, comm), comm, optimizer=solver, l1=6.0)
        for solver in (optim.NewtonCG(tol=1e-6), optim.LBFGS(tol=1e-7, max_iter=2000))
    ]
    assert all(one.converged for one in found)
    assert found[0].train_loss == pytest.approx(found[1].train_loss, rel=1e-9)


@mpi
def test_the_path_loses_no_feature_and_is_that_of_separate_fits(comm):
    x, y = rows_for("logistic", features=40)
    shard = local_shard(x, y, comm, uneven(len(y), comm.size))
    solver = SOLVERS["newton-cg"]
    points = l1_path(model_for("logistic", 40), shard, comm, n=6, min_ratio=0.02, solver=solver, test=shard)
    assert points[0].nonzeros == 0  # the largest useful penalty
    assert points[1].nonzeros > 0
    assert [point.l1 for point in points] == pytest.approx(points[0].l1 * np.logspace(0, math.log10(0.02), 6))
    values = [point.objective for point in points]
    assert values == sorted(values, reverse=True)
    for point in points:
        assert point.converged
        assert violation("logistic", x, y, point.params, point.l1, 0) < 1e-6
        assert point.nonzeros == np.count_nonzero(point.params[:-1])
        assert point.test_accuracy == np.mean((x @ point.params[:-1] + point.params[-1] > 0) == y)
    share = y.mean()
    assert points[0].params[-1] == pytest.approx(math.log(share / (1 - share)))  # the bias is not penalised
    for point in points[2::3]:
        alone = fit(model_for("logistic", 40), shard, comm, optimizer=solver, l1=point.l1)
        assert alone.train_loss == pytest.approx(point.objective, rel=1e-12)
        started = fit(model_for("logistic", 40), shard, comm, optimizer=solver, l1=point.l1, start=point.params)
        assert started.iterations <= 1
    given = l1_path(model_for("logistic", 40), shard, comm, l1=[0.01, 0.05], l2=0.1, solver=solver)
    assert [point.l1 for point in given] == [0.05, 0.01]
    assert violation("logistic", x, y, given[1].params, 0.01, 0.1) < 1e-6


@mpi
def test_the_path_of_sparse_rows_is_that_of_dense_ones(comm):
    rng = np.random.default_rng(3)
    x = sp.random_array((300, 60), density=0.1, rng=rng, format="csr", dtype=np.float32)
    y = (x @ np.linspace(2, -2, 60) + 0.3 * rng.normal(size=300) > 0).astype(np.int64)
    part = slice(comm.rank * 300 // comm.size, (comm.rank + 1) * 300 // comm.size)
    model = models.Logistic(60, bias=False, dtype=np.float32)
    sparse, dense = (
        l1_path(model, data.from_local(Dataset(rows, y[part]), comm), comm, n=5, solver=optim.NewtonCG(tol=1e-4))
        for rows in (x[part], x[part].toarray())
    )
    for one, other in zip(sparse, dense, strict=True):
        assert one.objective == pytest.approx(other.objective, rel=1e-6)
        np.testing.assert_allclose(one.params, other.params, atol=2e-3 * max(1.0, abs(other.params).max()))


@pytest.mark.parametrize("name", SOLVERS)
@mpi
@pytest.mark.ranks(2)
def test_runs_that_are_resumed_come_to_the_same_bits(comm, name, tmp_path):
    x, y = rows_for("logistic")
    folder = comm.bcast_object(str(tmp_path))
    for exchange in (Exchange(), Exchange(algorithm="ring")):
        found = []
        for at, limits in enumerate(((2, 5), (5,))):
            for turn, limit in enumerate(limits):
                kind = type(SOLVERS[name])(tol=1e-12, max_iter=limit)
                keep = Checkpoint(f"{folder}/{exchange.algorithm}{at}", 1, turn > 0)
                last = fit(model_for("logistic"), whole_shard(x, y, comm), comm, optimizer=kind, l1=L1,
                           exchange=exchange, callbacks=[keep])  # fmt: skip
            found.append(last.params)
        np.testing.assert_array_equal(*found)


@mpi
def test_functions_and_nets_take_lbfgs_with_l1(comm):
    target = np.linspace(-1, 1, 30)

    def function(w, grad):
        grad[:] = (w - target) / comm.size
        return float(0.5 * np.sum((w - target) ** 2) / comm.size)

    for exchange in (Exchange(), Exchange(algorithm="ring")):
        found = minimize(function, np.ones(30), comm, optim.LBFGS(tol=1e-9), l1=0.4, exchange=exchange)
        np.testing.assert_allclose(found.params, np.sign(target) * np.maximum(np.abs(target) - 0.4, 0), atol=1e-7)
        assert np.count_nonzero(found.params) == np.count_nonzero(np.abs(target) > 0.4)
    x, y = make_rows()
    net = models.MLP(6, 3, (8,), activation="tanh", dropout=0.0, dtype=np.float64)
    result = fit(net, whole_shard(x, y, comm), comm, optimizer=optim.LBFGS(max_iter=60), l1=0.01)
    assert 0.1 < np.mean(result.params == 0) < 0.9
    assert result.train_loss < 0.9 * fit(net, whole_shard(x, y, comm), comm, optimizer=optim.LBFGS(max_iter=1),
                                         l1=0.01).train_loss  # fmt: skip


@pytest.mark.parametrize(
    ("optimizer", "options", "told"),
    [
        (optim.Adam(), {"l1": 0.1}, "l1 is nothing for optimizer adam: ftrl, lbfgs, newton-cg, auto take it"),
        (optim.Newton(), {"l1": 0.1}, "l1 is nothing for optimizer newton"),
        (optim.FTRL(), {"l1": 0.1}, r"give optim.FTRL\(l1=...\)"),
        (optim.LBFGS(), {"l1": -0.1}, "l1 must be"),
        (optim.LBFGS(), {"start": np.zeros(3)}, "start must be 9 finite numbers"),
    ],
)
def test_what_cannot_be_penalised_is_refused(comm, optimizer, options, told):
    with pytest.raises(ConfigError, match=told):
        fit(model_for("logistic"), whole_shard(*rows_for("logistic"), comm), comm, optimizer=optimizer, **options)


def test_newton_cg_and_paths_are_for_linear_models(comm):
    net, rows = models.MLP(8, 2, (4,), dtype=np.float64), whole_shard(*rows_for("logistic"), comm)
    with pytest.raises(ConfigError, match="linear models; lbfgs takes every model"):
        fit(net, rows, comm, optimizer=optim.NewtonCG(), l1=0.1)
    with pytest.raises(ConfigError, match="is for linear models"):
        l1_path(net, rows, comm)
    with pytest.raises(ConfigError, match="l1 is empty"):
        l1_path(model_for("logistic"), rows, comm, l1=[])


def test_files_of_models_keep_few_weights_as_pairs(tmp_path):
    model, w = models.Softmax(800, 3), np.zeros(2403, np.float32)
    w[[5, 77, 2400]] = 1.5, -2, 3
    path = str(tmp_path / "model.npz")
    save_model(path, model, w, {"note": 1})
    with np.load(path, allow_pickle=False) as file:
        assert set(file.files) == {"config", "layer1.weight.index", "layer1.weight.value", "layer1.bias"}
        members = {name: file[name] for name in file.files}
    found, params, extra = load_model(path)
    np.testing.assert_array_equal(params, w)
    assert extra == {"note": 1}
    assert found.widths == (800, 3)
    x = sp.random_array((5, 800), density=0.1, rng=np.random.default_rng(0), format="csr")
    np.testing.assert_array_equal(distai_mpi.load(path).predict(x), distai_mpi.load(path).predict(x.toarray()))
    for index in ([77, 5], [5, 2400], [-1, 5], [5, 5]):
        np.savez(path, **members | {"layer1.weight.index": np.array(index)})
        with pytest.raises(distai_mpi.errors.DataError, match="damaged"):
            load_model(path)
    save_model(path, model, np.arange(2403, dtype=np.float32))
    with np.load(path, allow_pickle=False) as file:
        assert set(file.files) == {"config", "layer1.weight", "layer1.bias"}


@mpi
@pytest.mark.ranks(2)
def test_the_command_keeps_the_best_model_of_a_path(comm, tmp_path):
    folder = comm.bcast_object(str(tmp_path))
    x, y = rows_for("logistic", rows=200, features=1100)
    if comm.rank == 0:
        np.savez(f"{folder}/rows.npz", x_train=x[:150], y_train=y[:150], x_test=x[150:], y_test=y[150:])
    comm.barrier()
    words = [
        "train",
        "--data",
        f"{folder}/rows.npz",
        "--model",
        "logistic",
        "--optimizer",
        "auto",
        "--dtype",
        "float64",
    ]
    done = run_here(*words, "--l1-path", 5, "--l1-min-ratio", 0.1, "--out", f"{folder}/run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("objective ") == 5
    if comm.rank > 0:
        return
    result = json.loads((tmp_path / "run/result.json").read_text())
    best = min(result["l1_path"], key=lambda point: point["test_loss"])
    assert result["l1"] == best["l1"]
    assert result["converged"]
    assert result["test_accuracy"] == best["test_accuracy"]
    with np.load(tmp_path / "run/path.npz", allow_pickle=False) as file:
        path = sp.csr_array((file["data"], file["indices"], file["indptr"]), shape=file["shape"]).toarray()
        kept = path[int(np.argmin(file["test_loss"]))]
    np.testing.assert_allclose(distai_mpi.load(tmp_path / "run").params, kept, atol=1e-6)
