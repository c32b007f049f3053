"""Rows on which methods of second order have a hard time: shared out badly, separable, singular, not numbers."""

from itertools import pairwise

import numpy as np
import pytest
from fake_device import FakeDevice
from fits import fit
from problems import local_shard, make_rows, uneven, whole_shard
from second_order import METHODS, minimise, rows_for

from distai_mpi import models, optim
from distai_mpi.data import Dataset, standardize, whole
from distai_mpi.errors import ConfigError, DataError
from distai_mpi.models.curvature import MarginRows

mpi = pytest.mark.mpi


@mpi
@pytest.mark.parametrize("name", METHODS)
def test_uneven_and_empty_shards_and_shards_of_one_class(comm, name):
    x, y = rows_for("logistic")
    order = np.argsort(y, kind="stable")  # ranks get rows of one class each
    x, y = x[order], y[order]
    one = minimise(comm, whole_shard(x, y, comm), "logistic", METHODS[name]())
    counts = uneven(len(y), comm.size)
    other = minimise(comm, local_shard(x, y, comm, counts), "logistic", METHODS[name](sample=100))
    np.testing.assert_allclose(other.w, one.w, rtol=1e-7, atol=1e-8)


@mpi
@pytest.mark.parametrize("name", METHODS)
def test_columns_that_repeat_or_never_change(comm, name):
    x, y = rows_for("logistic")
    x[:, 1], x[:, 3], x[:, 4] = x[:, 0], 0.0, 2.5
    shard = whole_shard(x, y, comm)
    result = minimise(comm, shard, "logistic", METHODS[name](), l2=0.0, tol=1e-7)
    assert result.status == "completed"
    assert result.converged
    x2 = np.delete(x, [1, 3, 4], axis=1)
    model = models.Logistic(3, dtype=np.float64)
    plain = fit(model, whole_shard(x2, y, comm), comm, optimizer=METHODS[name](), epochs=100, tol=1e-9)
    assert result.train_loss == pytest.approx(plain.train_loss, rel=1e-8)


@mpi
@pytest.mark.parametrize("name", METHODS)
def test_separable_rows_without_a_penalty_stop_and_say_so(comm, name, capsys):
    x, _ = rows_for("logistic")
    x[:, 0] += np.where(x[:, 0] > 0, 0.5, -0.5)  # so wide a gap is found in few iterations
    shard = whole_shard(x, (x[:, 0] > 0).astype(np.int64), comm)
    result = minimise(comm, shard, "logistic", METHODS[name](), l2=0.0, tol=1e-30, epochs=12)
    assert result.status == "completed"
    assert not result.converged
    assert result.stop_reason in ("iterations", "no further decrease")
    assert np.isfinite(result.w).all()
    assert "separable" in result.without_optimum
    met = minimise(comm, shard, "logistic", METHODS[name](), l2=0.0, tol=1e-2)
    assert met.stop_reason == "tolerance"
    assert met.converged is False
    assert capsys.readouterr().err.count("separable") == 2 * (comm.rank == 0)
    assert minimise(comm, shard, "logistic", METHODS[name](), l2=1e-3).without_optimum is None
    assert capsys.readouterr().err == ""


@mpi
def test_what_is_separable_and_what_is_not(comm):
    x, y = make_rows(rows=90)
    corners = np.argmax(x[:, :3], axis=1)
    net = models.MLP(6, 3, (8,), activation="tanh", dtype=np.float64)
    for model, labels, epochs, expected in (
        (models.Softmax(6, 3, dtype=np.float64), corners, 60, True),
        (models.Softmax(6, 3, dtype=np.float64), y, 60, False),
        (net, corners, 200, True),
        (net, y, 0, False),
        (models.Linear(6, dtype=np.float64), x @ np.arange(6.0), 20, False),
    ):
        shard = whole_shard(x, labels, comm)
        result = fit(model, shard, comm, optimizer=optim.LBFGS(), epochs=max(epochs, 1), tol=1e-12, l2=0.0)
        assert (result.without_optimum is not None) == expected
    wrong = corners.copy()
    wrong[5] = (wrong[5] + 1) % 3  # a row that does not count
    weight = np.ones(90)
    weight[5] = 0
    counts = uneven(90, comm.size)
    options = {"optimizer": optim.LBFGS(), "epochs": 60, "tol": 1e-12, "l2": 0.0}
    model = models.Softmax(6, 3, dtype=np.float64)
    assert fit(model, local_shard(x, wrong, comm, counts, weight), comm, **options).without_optimum is not None
    assert fit(model, local_shard(x, wrong, comm, counts), comm, **options).without_optimum is None


@mpi
def test_what_margins_promise_is_looked_at(comm, monkeypatch):
    asked = 0

    def line(self, other, t):
        nonlocal asked
        asked += 1
        return 0.0, 0.0

    monkeypatch.setattr(MarginRows, "line", line)
    method = optim.LBFGS(search=optim.StrongWolfe(1e-4, 1e-3), sample=0)  # trials beyond the first are on margins
    result = minimise(comm, whole_shard(*rows_for("logistic"), comm), "logistic", method, epochs=20)
    losses = [record["running_loss"] for record in result.history]
    assert asked
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(losses))


@mpi
@pytest.mark.parametrize("name", METHODS)
def test_one_class_alone(comm, name):
    x, _ = rows_for("logistic")
    result = minimise(comm, whole_shard(x, np.ones(len(x), np.int64), comm), "logistic", METHODS[name](), epochs=30)
    assert result.status == "completed"
    assert result.train_loss < 0.05
    assert "all rows are of one class" in result.without_optimum


@mpi
def test_classes_without_rows_that_count(comm):
    x, y = make_rows(rows=90)
    options = {"optimizer": optim.LBFGS(), "epochs": 30, "tol": 1e-6, "l2": 1e-2}
    model = models.Softmax(6, 4, dtype=np.float64)
    assert "no row is of class 3" in fit(model, whole_shard(x, y, comm), comm, **options).without_optimum
    shard = local_shard(x, y, comm, uneven(90, comm.size), (y != 1).astype(float))
    assert "no row is of class 1, 3" in fit(model, shard, comm, **options).without_optimum
    one = whole_shard(x, np.zeros(90, np.int64), comm)
    assert fit(models.Softmax(6, 1, dtype=np.float64), one, comm, **options).without_optimum is None
    model = models.Softmax(6, 4, bias=False, dtype=np.float64)
    assert fit(model, shard, comm, **options).without_optimum is None
    model = models.Logistic(6, bias=False, dtype=np.float64)
    nothing = whole_shard(np.zeros((9, 6)), np.zeros(9, np.int64), comm)  # on no side
    assert fit(model, nothing, comm, **options | {"l2": 0.0}).without_optimum is None


@mpi
@pytest.mark.parametrize("name", METHODS)
def test_features_that_are_not_numbers(comm, name):
    x, y = rows_for("logistic")
    x[7, 2] = np.nan
    result = minimise(comm, whole_shard(x, y, comm), "logistic", METHODS[name]())
    assert (result.status, result.stop_reason) == ("diverged", "loss is not finite")


def rows_with_rare_columns(seed=3, rows=4000):
    """Ten columns of normal numbers, and ten that are 1 in a few rows; labels that nothing separates."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, 20))
    x[:, 10:] = rng.random((rows, 10)) < 0.003
    y = (x @ rng.standard_normal(20) > rng.logistic(size=rows)).astype(np.int64)
    for j in range(10, 20):
        hit = np.flatnonzero(x[:, j])
        y[hit] = np.arange(len(hit)) % 3 == 0
    return x, y


@mpi
@pytest.mark.parametrize("standard", [False, True])
@pytest.mark.parametrize("kind", ["linear", "logistic", "softmax"])
@pytest.mark.parametrize("name", ["lbfgs", "newton-cg"])
def test_columns_that_are_rare_in_the_sample(comm, name, kind, standard):
    x, y = rows_with_rare_columns()
    shard = whole_shard(x, y, comm)
    if standard:
        (shard,) = standardize(shard, comm=comm)
    build = {"linear": models.Linear, "logistic": models.Logistic, "softmax": lambda f, **o: models.Softmax(f, 2, **o)}
    model = build[kind](20, dtype=np.float32 if kind == "softmax" else np.float64)
    options = {"epochs": 60, "tol": 1e-5, "l2": 0.0}
    best = fit(model, shard, comm, optimizer=optim.LBFGS(sample=0), **options | {"epochs": 300, "tol": 1e-6})
    for sample in (None, 30):
        result = fit(model, shard, comm, optimizer=METHODS[name](sample=sample), **options)
        assert result.converged
        assert result.train_loss == pytest.approx(best.train_loss, rel=1e-6)
        assert result.evaluations <= (20 if sample is None else 30)


@mpi
@pytest.mark.parametrize("name", METHODS)
def test_samples_of_rows_that_mostly_do_not_count(comm, name):
    x, y = rows_with_rare_columns()
    weight = np.where(np.arange(len(x)) % 50 == 7, 1.0, 0.0)
    shard = local_shard(x[:, :10], y, comm, uneven(len(x), comm.size), weight)
    model, options = models.Logistic(10, dtype=np.float64), {"epochs": 60, "tol": 1e-6, "l2": 1e-3}
    result = fit(model, shard, comm, optimizer=METHODS[name](), **options)
    few = fit(model, whole_shard(x[7::50, :10], y[7::50], comm), comm, optimizer=optim.Newton(sample=0), **options)
    assert result.converged
    assert result.evaluations < 25
    np.testing.assert_allclose(result.w, few.w, rtol=1e-4, atol=1e-5)


@mpi
@pytest.mark.parametrize("allreduce", ["native", "ring"])
def test_iterations_on_rounding_alone_end(comm, allreduce):
    x, y = rows_for("logistic")
    scaled = x * np.array([1e6, 1, 1e-6, 1, 1, 1])
    method = optim.LBFGS(sample=0)
    result = minimise(
        comm, whole_shard(scaled, y, comm), "logistic", method, np.float32, l2=0.0, tol=1e-30, allreduce=allreduce
    )
    assert result.status == "completed"
    assert result.stop_reason == "no further decrease"
    assert result.iterations < 150


@mpi
def test_a_history_without_room_is_refused(comm):
    shard = whole_shard(*rows_for("logistic"), comm)
    with pytest.raises(ConfigError, match="^memory 10000000000000: the pairs take .* GB"):
        minimise(comm, shard, "logistic", optim.LBFGS(memory=10**13))


@mpi
@pytest.mark.parametrize("name", METHODS)
def test_features_too_large_for_their_squares(comm, name):
    x, y = rows_for("logistic")
    with pytest.raises(DataError, match="feature 0 .* too large"):
        minimise(comm, whole_shard(1e160 * x, y, comm), "logistic", METHODS[name](sample=0), epochs=9)


@mpi
def test_columns_of_other_scales_without_a_sample(comm):
    x, y = rows_for("logistic")
    x[:, 2] *= 1e6
    result = minimise(comm, whole_shard(x, y, comm), "logistic", optim.LBFGS(sample=0), epochs=300, tol=1e-6)
    assert result.iterations > 3
    assert result.train_loss < 0.6


@mpi
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("seed", [1, 3, 5])
def test_softmax_in_single_precision_with_a_sample(comm, name, seed):
    """Its biases may all grow alike: a null space, in which rounding must not be blown up."""
    x, y = make_rows(rows=4000, seed=seed)
    shard = whole_shard(x, y, comm)
    result = minimise(comm, shard, "softmax", METHODS[name](), np.float32, l2=1e-3, tol=1e-5, epochs=60)
    best = minimise(comm, shard, "softmax", optim.LBFGS(sample=0), l2=1e-3)
    assert result.train_loss == pytest.approx(best.train_loss, rel=1e-6)
    assert np.abs(result.w).max() < 10 * np.abs(best.w).max()
    assert result.evaluations < 40


@mpi
@pytest.mark.parametrize("name", METHODS)
def test_bytes_and_standardized_columns_are_what_their_values_are(comm, name):
    x, y = rows_for("logistic")
    pixels = np.clip(40 * x + 128, 0, 255).astype(np.uint8)
    options = {"l2": 0.01, "tol": 1e-9}
    for dataset, values in (
        (Dataset(pixels, y, scale=1 / 255), pixels / 255),
        (Dataset(3 * x + 7, y), (x - x.mean(axis=0)) / x.std(axis=0)),
    ):
        shard = whole(dataset, comm.rank, comm.size)
        if dataset.scale == 1:
            (shard,) = standardize(shard, comm=comm)
        result = minimise(comm, shard, "logistic", METHODS[name](), **options)
        plain = minimise(comm, whole_shard(values, y, comm), "logistic", METHODS[name](), **options)
        assert result.converged
        np.testing.assert_allclose(result.w, plain.w, rtol=1e-7, atol=1e-8)


@mpi
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("allreduce", [None, "hierarchical"])
def test_several_nodes(nodes, name, allreduce):
    if name == "newton":
        allreduce = None  # it is for whole vectors
    shard = whole_shard(*rows_for("softmax"), nodes)
    result = minimise(nodes, shard, "softmax", METHODS[name](), allreduce=allreduce)
    plain = minimise(nodes, shard, "softmax", optim.LBFGS(sample=0), allreduce="native")
    assert result.converged
    assert result.train_loss == pytest.approx(plain.train_loss, rel=1e-12)
    np.testing.assert_allclose(result.w[:18], plain.w[:18], rtol=1e-6, atol=1e-7)


@mpi
@pytest.mark.parametrize("name", METHODS)
def test_devices_and_messages_that_they_cannot_use_are_refused(nodes, name):
    comm, shard = nodes, whole_shard(*rows_for("logistic"), nodes)
    with pytest.raises(ConfigError, match=f"optimizer {name} is for the CPU"):
        minimise(comm, shard, "logistic", METHODS[name](), device=FakeDevice())
    with pytest.raises(ConfigError, match=f"gradients, from which {name}"):  # on one node, too
        minimise(comm, shard, "logistic", METHODS[name](), np.float32, wire="float16", allreduce="hierarchical")
