"""Losses: closed forms, finite differences, optima of SciPy on any number of ranks, and losses of users' own."""

import numpy as np
import pytest
from problems import local_shard, uneven, whole_shard
from scipy import optimize

from distai_mpi import data, fit, models, optim
from distai_mpi.data import Batch
from distai_mpi.errors import ConfigError, DataError
from distai_mpi.models.kernels.linear import margins
from distai_mpi.models.passes import read_only
from distai_mpi.train import evaluate
from distai_mpi.train.evaluation import make_loader

mpi = pytest.mark.mpi
NEW = ("squared_hinge", "poisson", "huber")
POINTS = ("squared", "logistic", *NEW)


def plain(name, z, y):
    """The losses of rows, written for reading."""
    if name == "squared":
        return 0.5 * (z - y) ** 2
    if name == "logistic":
        return np.logaddexp(0, -np.where(y > 0, 1, -1) * z)
    if name == "squared_hinge":
        return np.maximum(0, 1 - np.where(y > 0, 1, -1) * z) ** 2
    if name == "poisson":
        return np.exp(z) - y * z
    size = abs(z - y)
    return np.where(size <= 1, 0.5 * size**2, size - 0.5)


def rows_for(name, rows=400, features=5):
    """Rows with targets of a known model and noise, of which some are outliers; float64."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((rows, features))
    z = x @ rng.standard_normal(features) * 0.6 + 0.4
    if models.LOSSES[name].classifies:
        return x, (z + rng.standard_normal(rows) > 0).astype(np.int64)
    return x, rng.poisson(np.exp(z)).astype(float) if name == "poisson" else z + rng.standard_t(1.5, rows)


@pytest.mark.parametrize("name", POINTS)
def test_derivatives_are_those_of_the_loss_and_compiled_code_gives_the_same(name):
    rng = np.random.default_rng(1)
    loss, z = models.LOSSES[name], 3 * rng.standard_normal(501)
    y = rng.integers(0, 2, 501) if loss.classifies else rng.integers(0, 5, 501).astype(float)
    z = z[abs(abs(z - y) - 1) > 1e-4] if name == "huber" else z  # its second derivative jumps there
    y, h = y[: z.size], 1e-5
    y = y[: z.size]
    z = np.where(abs(abs(z - y) - 1) < 1e-3, y, z) if name == "huber" else z
    values, slopes, curvatures = loss.point(z, y)
    np.testing.assert_allclose(values, plain(name, z, y), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(slopes, (plain(name, z + h, y) - plain(name, z - h, y)) / (2 * h), rtol=1e-7, atol=1e-8)
    second = (loss.point(z + h, y)[1] - loss.point(z - h, y)[1]) / (2 * h)
    away = abs(1 - np.where(y > 0, 1, -1) * z) > 1e-3 if name == "squared_hinge" else np.ones(z.size, bool)
    away &= abs(z - y) < 1 if name == "huber" else True
    np.testing.assert_allclose(np.broadcast_to(curvatures, z.shape)[away], second[away], rtol=1e-6, atol=1e-8)
    found = margins(loss).line(z, np.ones(z.size), 0.0, *read_only(y, np.empty(0)))
    assert found == pytest.approx((values.sum(), slopes.sum()), rel=1e-13)


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_gradients_and_curvatures_of_models(name, kind):
    """Against central differences of the loss, and of the gradient where it has derivatives."""
    loss = models.LOSSES[name]
    x, y = rows_for(name, 60)
    make = models.MLP if kind == "mlp" else models.LinearModel
    options = {"hidden": (3,), "activation": "tanh", "dropout": 0.0} if kind == "mlp" else {}
    model = make(5, 1, **options, loss=loss, dtype=np.float64)
    rng = np.random.default_rng(2)
    w, batch = 0.3 * rng.standard_normal(model.layout.size), Batch(x, y, rng.random(60), np.arange(60), 0, False)
    grad, scratch = np.empty_like(w), np.empty_like(w)
    sums, kept = model.linearize(w, batch, grad)
    assert sums.loss == pytest.approx(batch.weight @ plain(name, model.outputs(w, x)[:, 0], y), rel=1e-12)
    for i in range(w.size):
        step = np.eye(w.size)[i] * 1e-6
        rise = model.loss(w + step, batch).loss - model.loss(w - step, batch).loss
        assert grad[i] == pytest.approx(rise / 2e-6, rel=1e-5, abs=1e-6)
    jacobian, h = np.empty((60, w.size)), 1e-6
    for i in range(w.size):
        step = np.eye(w.size)[i] * h
        jacobian[:, i] = (model.outputs(w + step, x)[:, 0].copy() - model.outputs(w - step, x)[:, 0]) / (2 * h)
    curved = batch.weight * loss.point(model.outputs(w, x)[:, 0].copy(), y)[2]
    v = rng.standard_normal(w.size)
    kept.product(w, batch, v, scratch)
    np.testing.assert_allclose(scratch, jacobian.T @ (curved * (jacobian @ v)), rtol=1e-6, atol=1e-7)


def minimum(name, x, y, l2):
    """Optimal parameters and value, by SciPy."""
    loss = models.LOSSES[name]

    def value(w):
        _, slopes, _ = loss.point(x @ w[:-1] + w[-1], y)
        values = plain(name, x @ w[:-1] + w[-1], y)
        grad = np.append(x.T @ slopes, slopes.sum()) / len(y)
        grad[:-1] += l2 * w[:-1]
        return values.mean() + 0.5 * l2 * w[:-1] @ w[:-1], grad

    found = optimize.minimize(value, np.zeros(x.shape[1] + 1), jac=True, method="BFGS", options={"gtol": 1e-10})
    return found.x, found.fun


OPTIMIZERS = {
    "gd": lambda: optim.OPTIMIZERS["gd"](0.05),
    "lbfgs": lambda: optim.LBFGS(tol=1e-8),
    "newton": lambda: optim.Newton(tol=1e-8),
    "newton-cg": lambda: optim.NewtonCG(tol=1e-8),
    "auto": lambda: optim.Auto(tol=1e-8),
}


@mpi
@pytest.mark.ranks(1, 2, 3)
@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("l2", [0.0, 0.05])
@pytest.mark.parametrize("split", ["whole", "uneven"])
def test_every_optimizer_comes_to_the_optimum_on_any_ranks(comm, name, l2, split):
    x, y = rows_for(name)
    w, least = minimum(name, x, y, l2)
    shard = whole_shard(x, y, comm) if split == "whole" else local_shard(x, y, comm, uneven(len(y), comm.size))
    for optimizer, make in OPTIMIZERS.items():
        model = models.build(name, data.summarize(y, 5), dtype=np.float64)
        found = fit(model, shard, comm, optimizer=make(), **({"epochs": 400} if optimizer == "gd" else {}), l2=l2)
        loose = optimizer == "gd"
        np.testing.assert_allclose(found.params, w, rtol=0, atol=0.1 if loose else 1e-6)
        assert found.train_loss == pytest.approx(least, abs=1e-2 if loose else 1e-9)
        assert loose or found.converged


@mpi
@pytest.mark.ranks(1)
def test_optima_that_are_hard_to_begin_at(comm):
    """Counts around 10,000, where a first step is far too long; targets of which none is within 1; separable rows."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 5))
    counts = rng.poisson(np.exp(9.2 + 0.2 * x[:, 0])).astype(float)
    far = 100 * x[:, 1] + 500.0 + rng.standard_normal(300)
    for name, y in (("poisson", counts), ("huber", far)):
        found = fit(
            models.build(name, data.summarize(y, 5), dtype=np.float64),
            whole_shard(x, y, comm),
            comm,
            optimizer=optim.Newton(tol=1e-8),
        )
        assert found.converged, name
        if name == "huber":
            assert found.train_loss <= minimum(name, x, y, 0.0)[1] + 1e-9
        else:
            assert np.exp(x @ found.params[:-1] + found.params[-1]).mean() == pytest.approx(counts.mean(), rel=1e-9)
    separable = (x[:, 0] > 0).astype(np.int64)
    model = models.build("squared_hinge", data.summarize(separable, 5), dtype=np.float64)
    found = fit(model, whole_shard(x, separable, comm), comm, optimizer=optim.Newton(tol=1e-8))
    assert found.train_loss == pytest.approx(0, abs=1e-12)


@mpi
@pytest.mark.ranks(1, 2)
def test_metrics_of_counts(comm):
    x, y = rows_for("poisson")
    model = models.build("poisson", data.summarize(y, 5), dtype=np.float64)
    shard, w = whole_shard(x, y, comm), np.full(6, 0.1)
    mean = np.exp(x @ w[:5] + 0.1)
    found = evaluate(model, w, make_loader(model, shard, comm), comm, every_metric=True)
    assert found.accuracy is None
    ratio = np.where(y > 0, y, 1) / mean
    assert found.metrics["poisson_deviance"] == pytest.approx(2 * np.mean(y * np.log(ratio) - (y - mean)), rel=1e-10)
    assert found.metrics["mae"] == pytest.approx(np.abs(mean - y).mean(), rel=1e-12)


@pytest.mark.parametrize(
    ("name", "y", "match"),
    [
        (
            "squared_hinge",
            [0, 1, 2],
            "needs labels 0 and 1, or -1 and 1.*softmax takes more classes",
        ),
        ("squared_hinge", [1.5, 1.5], "only one class"),
        ("poisson", [3.0, -1.0], "poisson loss needs targets from 0 up.*-1 to 3"),
        ("poisson", [0.0, 0.0], "all are 0"),
    ],
)
def test_labels_that_do_not_fit_are_refused(name, y, match):
    with pytest.raises(DataError, match=match):
        models.build(name, data.summarize(np.array(y), 2))


def test_names_that_are_not_known_are_refused():
    with pytest.raises(ConfigError, match="unknown loss 'hinge': choose one of squared,"):
        models.LinearModel(3, loss="hinge")
    with pytest.raises(ConfigError, match="huber loss is of one output"):
        models.LinearModel(3, 2, loss="huber")


@pytest.mark.parametrize("name", NEW)
def test_saved_models_come_back(name, tmp_path):
    model = models.build(name, data.summarize(rows_for(name)[1], 5))
    w = np.arange(6, dtype=np.float32)
    models.save_model(str(tmp_path / "m.npz"), model, w)
    again, values, _ = models.load_model(str(tmp_path / "m.npz"))
    assert (again.loss_function.name, values.tolist()) == (name, w.tolist())


class LogCosh(models.PointLoss):
    """log cosh (z - y), of a user's own."""

    name = "log cosh"
    of_difference = True

    @staticmethod
    def point(z, y):
        off = z - y
        tail = exp_of_negative(-2 * absolute(off))
        slope = where(off > 0, 1.0, -1.0) * (1 - tail) / (1 + tail)
        return absolute(off) + log1p(tail) - 0.6931471805599453, slope, 1 - slope * slope


from distai_mpi.models.losses.arithmetic import absolute, exp_of_negative, log1p, where  # noqa: E402 - as users do


@mpi
@pytest.mark.ranks(1, 2)
def test_a_loss_of_a_users_own(comm):
    x, y = rows_for("huber")
    found = fit(
        models.LinearModel(5, loss=LogCosh(), dtype=np.float64),
        whole_shard(x, y, comm),
        comm,
        optimizer=optim.Newton(tol=1e-8),
    )
    best = optimize.minimize(
        lambda w: np.log(np.cosh(x @ w[:5] + w[5] - y)).mean(), np.zeros(6), options={"gtol": 1e-8}
    )
    np.testing.assert_allclose(found.params, best.x, atol=1e-6)
