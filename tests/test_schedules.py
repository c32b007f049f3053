"""Schedules against their formulas written out, and their place in a training."""

import math

import numpy as np
import pytest
from fits import fit
from problems import make_rows, whole_shard

from distai_mpi import models, optim
from distai_mpi.data import Permutation
from distai_mpi.errors import ConfigError


def test_constant_and_step():
    assert [optim.Constant()(t) for t in (0, 1, 999)] == [1.0, 1.0, 1.0]
    assert [optim.Step(3, 0.5)(t) for t in range(7)] == [1, 1, 1, 0.5, 0.5, 0.5, 0.25]


def test_cosine_falls_to_its_floor_and_stays():
    schedule = optim.Cosine(10, final_factor=0.2)
    assert schedule(0) == 1.0
    assert schedule(5) == pytest.approx(0.6)
    assert schedule(2) == pytest.approx(0.2 + 0.4 * (1 + math.cos(0.2 * math.pi)))
    assert schedule(10) == schedule(99) == pytest.approx(0.2)


def test_warm_up_rises_and_hands_over():
    schedule = optim.WarmUp(4, optim.Step(2, 0.1))
    assert [schedule(t) for t in range(8)] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 0.1, 0.1])
    assert optim.WarmUp(0, optim.Step(2, 0.1))(0) == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: optim.Step(0),
        lambda: optim.Step(3, 0.0),
        lambda: optim.Cosine(0),
        lambda: optim.Cosine(3, 1.5),
        lambda: optim.WarmUp(-1),
    ],
)
def test_values_that_cannot_work(make):
    with pytest.raises(ConfigError, match="of (Step|Cosine|WarmUp) must be"):
        make()


@pytest.mark.parametrize("name", sorted(set(optim.OPTIMIZERS)))
def test_the_factor_multiplies_the_rate(name):
    rng = np.random.default_rng(0)
    w, grad = rng.normal(size=(2, 50))
    kind = optim.OPTIMIZERS[name]
    scheduled, plain = w.copy(), w.copy()
    kind(lr=0.4).step(scheduled, grad, kind(lr=0.4).init(w, [(0, 20)]), factor=0.25)
    kind(lr=0.1).step(plain, grad, kind(lr=0.1).init(w, [(0, 20)]))
    np.testing.assert_allclose(scheduled, plain, rtol=1e-14)


@pytest.mark.mpi
def test_training_follows_the_schedule(comm):
    """Gradient descent on one number, (w - mean)² / 2: the distance to the mean shrinks by 1 - rate in each step."""
    x, y = make_rows(kind="value")
    model = models.Linear(6, bias=True, dtype=np.float64)
    schedule = optim.WarmUp(2, optim.Cosine(4))
    shard = whole_shard(np.zeros_like(x), y, comm)
    result = fit(model, shard, comm, optimizer=optim.GradientDescent(0.3), schedule=schedule, epochs=5)
    left = math.prod(1 - 0.3 * schedule(t) for t in range(5))
    assert result.w[-1] == pytest.approx(y.mean() * (1 - left), rel=1e-12)


@pytest.mark.mpi
def test_one_row_steps_with_a_schedule_are_not_fused_at_one_rate(comm):
    x, y = make_rows(rows=20, kind="value")
    model = models.Linear(6, dtype=np.float64)
    shard = whole_shard(np.zeros_like(x), y, comm)
    options = {"optimizer": optim.SGD(0.5), "schedule": optim.Step(1, 0.5), "epochs": 1, "global_batch_size": 1}
    result = fit(model, shard, comm, **options)
    w = 0.0
    for step, row in enumerate(Permutation(20, 0, "shuffle", 0).positions(0, 20)):
        w -= 0.5 * 0.5**step * (w - y[row])
    assert result.w[-1] == pytest.approx(w, rel=1e-12)
