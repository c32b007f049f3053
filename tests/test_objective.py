"""The objective over ranks: serial values, derivatives, unequal and empty shards, known optima."""

import numpy as np
import pytest
import scipy.optimize
from fits import fit
from problems import local_shard, make_rows, uneven, whole_shard

from distai_mpi import Objective, models, optim
from distai_mpi.comm import CHOICES, Exchange
from distai_mpi.train.evaluation import make_loader

pytestmark = [pytest.mark.mpi, pytest.mark.ranks(1, 2, 3, 4)]
KINDS = {"linear": "value", "logistic": "binary", "softmax": "class", "mlp": "class"}


def make_model(name):
    extra = {"hidden": (5,), "dropout": 0.0} if name == "mlp" else {}
    sizes = (6,) if KINDS[name] != "class" else (6, 3)
    return models.MODELS[name](*sizes, dtype=np.float64, **extra)


def serial_value(model, w, x, y, l2):
    """The objective written out in NumPy, for models without hidden layers."""
    views = model.layout.views(w)
    weight, z = views["layer1.weight"], x @ views["layer1.weight"] + views["layer1.bias"]
    if model.loss_function.name == "squared":
        losses = 0.5 * (z[:, 0] - y) ** 2
    elif model.loss_function.name == "logistic":
        losses = np.logaddexp(0, -(2 * y - 1) * z[:, 0])
    else:
        losses = scipy.special.logsumexp(z, axis=1) - z[np.arange(len(y)), y]
    return losses.mean() + 0.5 * l2 * (weight**2).sum()


@pytest.mark.parametrize("name", ["linear", "logistic", "softmax"])
@pytest.mark.parametrize("sharding", ["whole", "uneven"])
def test_value_is_the_mean_over_all_rows_plus_the_penalty(comm, name, sharding):
    x, y = make_rows(kind=KINDS[name])
    shard = whole_shard(x, y, comm) if sharding == "whole" else local_shard(x, y, comm, uneven(len(y), comm.size))
    model = make_model(name)
    w = np.random.default_rng(1).normal(size=model.layout.size)
    objective = Objective(model, make_loader(model, shard, comm), comm, l2=0.3)
    assert objective.value(w) == pytest.approx(serial_value(model, w, x, y, 0.3), rel=1e-12)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("algorithm", CHOICES)
def test_gradient_agrees_with_central_differences(comm, name, algorithm):
    x, y = make_rows(kind=KINDS[name])
    model = make_model(name)
    shard = local_shard(x, y, comm, uneven(len(y), comm.size))
    objective = Objective(model, make_loader(model, shard, comm), comm, l2=0.3, asked=Exchange(algorithm))
    w = np.random.default_rng(1).normal(size=model.layout.size)
    grad = np.full_like(w, np.nan)
    value = objective.value_and_grad(w, grad)
    assert value == pytest.approx(objective.value(w), rel=1e-12)
    for i in range(0, w.size, 3):
        step = np.zeros_like(w)
        step[i] = 1e-6
        slope = (objective.value(w + step) - objective.value(w - step)) / 2e-6
        assert grad[i] == pytest.approx(slope, rel=1e-5, abs=1e-7)


def test_many_blocks_give_the_gradient_of_one(comm):
    x, y = make_rows()
    model = make_model("softmax")
    w = np.random.default_rng(1).normal(size=model.layout.size)
    gradients = []
    for block_rows in (1000, 7):
        loader = make_loader(model, whole_shard(x, y, comm), comm)
        loader.block_rows = block_rows
        gradients.append(np.empty_like(w))
        Objective(model, loader, comm).value_and_grad(w, gradients[-1])
    np.testing.assert_allclose(gradients[0], gradients[1], rtol=1e-12, atol=1e-14)


def test_gradient_descent_finds_the_closed_form_of_ridge_regression(comm):
    x, y = make_rows(kind="value")
    model = make_model("linear")
    result = fit(
        model,
        local_shard(x, y, comm, uneven(len(y), comm.size)),
        comm,
        optimizer=optim.GradientDescent(lr=0.5),
        epochs=2000,
        l2=0.1,
        tol=1e-9,
    )
    columns = np.hstack([x, np.ones((len(y), 1))])
    penalty = 0.1 * np.diag([1.0] * 6 + [0.0])
    exact = np.linalg.solve(columns.T @ columns / len(y) + penalty, columns.T @ y / len(y))
    assert result.converged
    assert result.stop_reason == "tolerance"
    assert result.iterations < 2000
    np.testing.assert_allclose(result.w, exact, rtol=1e-7)


def test_gradient_descent_finds_the_optimum_that_scipy_finds(comm):
    x, y = make_rows()
    model = make_model("softmax")
    result = fit(
        model, whole_shard(x, y, comm), comm, optimizer=optim.GradientDescent(lr=1.0), epochs=5000, l2=0.05, tol=1e-8
    )
    best = scipy.optimize.minimize(lambda w: serial_value(model, w, x, y, 0.05), np.zeros(model.layout.size), tol=1e-10)
    assert result.converged
    assert result.train_loss == pytest.approx(best.fun, rel=1e-8)


def test_rounds_and_bytes_are_counted(comm):
    x, y = make_rows()
    model = make_model("softmax")
    objective = Objective(model, make_loader(model, whole_shard(x, y, comm), comm), comm, asked=Exchange("ring"))
    rounds, sent = objective.rounds, objective.bytes_moved
    objective.value_and_grad(model.init(np.random.default_rng(0)), np.empty(model.layout.size))
    alone = comm.size == 1
    assert objective.rounds - rounds == (0 if alone else 3)  # losses, reduce-scatter, allgather
    assert (objective.bytes_moved > sent) != alone
