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


@pytest.mark.parametrize("initial", [0.0, 0.1])
def test_adagrad_follows_the_paper(problem, initial):
    """Duchi, Hazan & Singer 2011: the gradient over δ plus the root of the sum of squares so far."""
    w, grads = problem
    optimizer = optim.AdaGrad(lr=0.05, initial=initial, epsilon=1e-6)
    ours, state, squares = w.copy(), optimizer.init(w), np.full(1000, initial)
    for grad in grads:
        optimizer.step(ours, grad, state)
        squares = squares + grad**2
        w = w - 0.05 * grad / (np.sqrt(squares) + 1e-6)
        np.testing.assert_allclose(ours, w, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(initial + state["squares"], squares, rtol=1e-12)


def ftrl_of_the_paper(start, gradients, alphas, beta, l1, l2, penalised):
    """McMahan et al. 2013, algorithm 1, number by number: the weights after each step.

    As published it starts from z = 0, which are weights of 0.  Here z = -β/α · start, so that the quadratic about the
    origin that β stands for is one about the start; and α may change: each step adds what 1/η has grown by.
    """
    w, z, n, found = start.copy(), -beta / alphas[0] * start, np.zeros_like(start), []
    last = alphas[0]
    for alpha, grad_of in zip(alphas, gradients, strict=True):
        grad = grad_of(w)
        for i, g in enumerate(grad):
            if g == 0:
                continue
            one, two = (l1, l2) if penalised[i] else (0.0, 0.0)
            sigma = (beta + np.sqrt(n[i] + g * g)) / alpha - (beta + np.sqrt(n[i])) / last
            z[i] += g - sigma * w[i]
            n[i] += g * g
            w[i] = 0.0
            if abs(z[i]) > one:
                w[i] = -(z[i] - np.sign(z[i]) * one) / ((beta + np.sqrt(n[i])) / alpha + two)
        last = alpha
        found.append(w.copy())
    return found


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("alphas", [[0.1] * 40, list(np.linspace(0.02, 0.3, 20)) + list(np.linspace(0.3, 1e-3, 20))])
@pytest.mark.parametrize(("l1", "l2"), [(0.0, 0.0), (0.0, 2.0), (0.7, 0.0), (0.7, 2.0), (5.0, 0.1)])
def test_ftrl_follows_the_paper(l1, l2, alphas, started):
    """Gradients of a quadratic, so that weights stay near a point and cross zero; biases are not penalised."""
    rng = np.random.default_rng(3)
    start = rng.normal(0, 0.3, 60) * started
    targets, penalised = rng.normal(0, 0.5, (40, 60)), np.arange(60) % 5 < 4
    gradients = [lambda w, target=target: w - target for target in targets]
    optimizer = optim.FTRL(lr=0.1, beta=0.5, l1=l1, l2=l2)
    ranges = [(i, i + 4) for i in range(0, 60, 5)]
    ours, state, zeros = start.copy(), optimizer.init(start, ranges), 0
    expected = ftrl_of_the_paper(start, gradients, alphas, 0.5, l1, l2, penalised)
    for alpha, gradient, theirs in zip(alphas, gradients, expected, strict=True):
        optimizer.step(ours, gradient(ours), state, factor=alpha / 0.1)
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(ours == 0, theirs == 0)
        zeros += np.count_nonzero(ours == 0)
    assert (zeros > 0) == (l1 > 0), "zeros are exact"
    assert ours[~penalised].all()


def test_ftrl_without_penalties_is_gradient_descent_at_rates_of_its_own(problem):
    w, grads = problem
    ours, _ = run(optim.FTRL(lr=0.05, beta=2.0), w, grads, np.float64)
    squares = np.zeros_like(w)
    for grad in grads:
        squares += grad**2
        w = w - 0.05 / (2 + np.sqrt(squares)) * grad
    np.testing.assert_allclose(ours, w, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["adagrad", "ftrl"])
def test_gradients_of_zero_keep_weights(name, problem):
    """Also those of a start that l1 would draw in, and at any rate; a rate of 0 keeps them too."""
    w, grads = problem
    optimizer = optim.OPTIMIZERS[name](**({"l1": 0.5, "l2": 0.1} if name == "ftrl" else {}))
    state, kept = optimizer.init(w, [(0, 900)]), w.copy()
    for factor in (1.0, 0.1, 2.0):
        optimizer.step(kept, np.zeros_like(w), state, factor=factor)
    np.testing.assert_array_equal(kept, w)
    for grad in grads:
        optimizer.step(kept, grad, state)
    moved = kept.copy()
    optimizer.step(kept, grads[0], state, factor=0.0)
    optimizer.step(kept, np.zeros_like(w), state, factor=0.3)
    np.testing.assert_array_equal(kept, moved)


def test_small_gradients_of_weights_at_zero_are_not_lost():
    """l1 holds a weight at 0 until the gradients' sum exceeds it, each of them below its last bit in float32."""
    optimizer = optim.FTRL(l1=1.0)
    w = np.zeros(3, np.float32)
    state = optimizer.init(w, [(0, 3)])
    optimizer.step(w, np.full(3, -0.9999, np.float32), state)
    for _ in range(9000):
        optimizer.step(w, np.full(3, -1e-8, np.float32), state)
    assert not w.any()
    for _ in range(3000):
        optimizer.step(w, np.full(3, -1e-8, np.float32), state)
    assert (w > 0).all()


@pytest.mark.parametrize("name", ["adagrad", "ftrl"])
def test_lost_numbers_are_passed_on(name):
    optimizer = optim.OPTIMIZERS[name](**({"l1": 0.5} if name == "ftrl" else {}))
    w = np.zeros(2)
    optimizer.step(w, np.array([np.nan, 1.0]), optimizer.init(w, [(0, 2)]))
    np.testing.assert_array_equal(np.isnan(w), [True, False])


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: optim.AdaGrad(0.0), "lr of AdaGrad"),
        (lambda: optim.AdaGrad(initial=-1.0), "initial of AdaGrad"),
        (lambda: optim.AdaGrad(epsilon=0.0), "epsilon of AdaGrad"),
        (lambda: optim.FTRL(0.0), "lr of FTRL"),
        (lambda: optim.FTRL(beta=0.0), "beta of FTRL"),
        (lambda: optim.FTRL(l1=-0.1), "l1 of FTRL"),
        (lambda: optim.FTRL(l2=float("nan")), "l2 of FTRL"),
        (lambda: optim.LocalSGD(optim.FTRL(l1=0.1)), "l1 of ftrl"),
    ],
)
def test_parameters_that_cannot_work_are_refused_by_name(make, name):
    with pytest.raises(ConfigError, match=f"^{name}"):
        make()


@pytest.mark.parametrize("name", ["gd", "sgd", "momentum", "nesterov", "adagrad", "ftrl"])
def test_updates_below_the_last_bit_are_not_lost(name):
    """1 + 4000 updates of -1e-8: a plain float32 sum stays at 1, for each rounds away."""
    kept = name in ("momentum", "nesterov")  # by a velocity that never fades
    grads = [np.full(3, 1e-7)] + [np.zeros(3) if kept else np.full(3, 1e-7)] * 3999
    more = {"momentum": 1.0} if kept else {"initial": 1.0} if name == "adagrad" else {}
    optimizer = optim.OPTIMIZERS[name](lr=0.1, **more)
    w, _ = run(optimizer, np.ones(3), grads, np.float32)
    np.testing.assert_allclose(1 - w.astype(np.float64), 4000e-8, rtol=2e-3)


@pytest.mark.parametrize("make", [lambda: optim.SGD(0.0), lambda: optim.GradientDescent(-1.0),
                                  lambda: optim.Momentum(float("nan")), lambda: optim.Momentum(0.1, 1.5)])  # fmt: skip
def test_rates_that_cannot_work_are_refused(make):
    with pytest.raises(ConfigError):
        make()
