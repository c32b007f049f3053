"""First-order updates against formulas written out, in the dtype's own precision."""

import numpy as np
import pytest

from distai_mpi import optim
from distai_mpi.errors import ConfigError


def run(optimizer, w, grads, dtype):
    """Steps of ``optimizer`` on a slice, each into a second buffer as training does it."""
    w = w.astype(dtype)
    state = optimizer.init(w)
    for grad in grads:
        out = np.full_like(w, np.nan)
        before = w.copy()
        optimizer.step(w, grad.astype(dtype), state, out=out)
        np.testing.assert_array_equal(w, before)
        w = out
    return w, state


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    return rng.normal(size=1000), rng.normal(size=(20, 1000))


@pytest.mark.parametrize("kind", [optim.SGD, optim.GradientDescent])
def test_sgd_subtracts_the_scaled_gradient(kind, problem):
    w, grads = problem
    result, _ = run(kind(lr=0.05), w, grads, np.float64)
    np.testing.assert_allclose(result, w - 0.05 * grads.sum(0), rtol=1e-12, atol=1e-13)


def test_momentum_accumulates_velocity(problem):
    w, grads = problem
    result, state = run(optim.Momentum(lr=0.05, momentum=0.8), w, grads, np.float64)
    velocity = np.zeros_like(w)
    for grad in grads:
        velocity = 0.8 * velocity + grad
        w = w - 0.05 * velocity
    np.testing.assert_allclose(result, w, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(state["velocity"], velocity, rtol=1e-12)


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_updates_in_place_without_a_second_buffer(name, problem):
    w, grads = problem
    optimizer = optim.OPTIMIZERS[name]()
    expected, _ = run(optimizer, w, grads[:3], np.float64)
    state, x = optimizer.init(w), w.copy()
    for grad in grads[:3]:
        optimizer.step(x, grad, state)
    np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_slices_update_as_the_whole(name, problem):
    w, grads = problem
    optimizer = optim.OPTIMIZERS[name]()
    whole, _ = run(optimizer, w, grads, np.float32)
    parts = [run(optimizer, w[part], grads[:, part], np.float32)[0] for part in (slice(0, 301), slice(301, 1000))]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    empty, _ = run(optimizer, w[:0], grads[:, :0], np.float32)
    assert empty.size == 0


def test_nesterov_looks_ahead(problem):
    w, grads = problem
    result, _ = run(optim.Nesterov(lr=0.05, momentum=0.8), w, grads, np.float64)
    velocity = np.zeros_like(w)
    for grad in grads:
        velocity = 0.8 * velocity + grad
        w = w - 0.05 * (grad + 0.8 * velocity)
    np.testing.assert_allclose(result, w, rtol=1e-12, atol=1e-13)


def test_nesterov_is_the_published_recursion_in_other_variables():
    """Sutskever's form keeps x = w + momentum · u and takes the gradient there; on a quadratic both agree."""
    rng = np.random.default_rng(0)
    matrix, mu, rate = np.diag(rng.uniform(0.1, 1, 5)), 0.9, 0.3
    optimizer, ours = optim.Nesterov(rate, mu), rng.normal(size=5)
    theta, u, state = ours.copy(), np.zeros(5), optimizer.init(ours)
    for _ in range(30):
        gradient = matrix @ (theta + mu * u)
        np.testing.assert_allclose(ours, theta + mu * u, rtol=1e-12, atol=1e-13)
        optimizer.step(ours, matrix @ ours, state)
        u = mu * u - rate * gradient
        theta = theta + u


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_follows_the_paper_and_adamw_decays_what_it_should(problem, decay):
    start, grads = problem
    ranges = [(0, 300), (301, 400), (990, 1000)]
    optimizer = optim.AdamW(lr=0.01, weight_decay=decay) if decay else optim.Adam(lr=0.01)
    decays = np.zeros(1000)
    for low, high in ranges:
        decays[low:high] = decay
    w, mean, square = start.copy(), np.zeros(1000), np.zeros(1000)
    ours, state = start.copy(), optimizer.init(start, ranges)
    for t, grad in enumerate(grads, start=1):
        optimizer.step(ours, grad, state)
        mean = 0.9 * mean + 0.1 * grad
        square = 0.999 * square + 0.001 * grad**2
        move = mean / (1 - 0.9**t) / (np.sqrt(square / (1 - 0.999**t)) + 1e-8)
        w = w - 0.01 * move - 0.01 * decays * w
    np.testing.assert_allclose(ours, w, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["gd", "sgd", "momentum", "nesterov"])
def test_updates_below_the_last_bit_are_not_lost(name):
    """1 + 4000 updates of -1e-8: a plain float32 sum stays at 1, for each rounds away."""
    kept = name in ("momentum", "nesterov")  # by a velocity that never fades
    grads = [np.full(3, 1e-7)] + [np.zeros(3) if kept else np.full(3, 1e-7)] * 3999
    optimizer = optim.OPTIMIZERS[name](lr=0.1, **({"momentum": 1.0} if kept else {}))
    w, _ = run(optimizer, np.ones(3), grads, np.float32)
    np.testing.assert_allclose(1 - w.astype(np.float64), 4000e-8, rtol=2e-3)


@pytest.mark.parametrize("make", [lambda: optim.SGD(0.0), lambda: optim.GradientDescent(-1.0),
                                  lambda: optim.Momentum(float("nan")), lambda: optim.Momentum(0.1, 1.5)])  # fmt: skip
def test_rates_that_cannot_work_are_refused(make):
    with pytest.raises(ConfigError):
        make()
