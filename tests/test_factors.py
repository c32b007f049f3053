"""Stretches of the gradient that are told ready, and sufficient factors against the gradient that they stand for."""

import copy
import pickle
from itertools import pairwise

import numpy as np
import pytest
from test_models import MODELS, make_batch, start

from distai_mpi import models
from distai_mpi.backend import HOST
from distai_mpi.models import dense, factors

ALL = MODELS | {
    "logistic, no bias": lambda dtype: models.Logistic(5, bias=False, dtype=dtype),
    "mlp of one unit": lambda dtype: models.MLP(5, 4, (1,), dropout=0.3, dtype=dtype),
    "mlp dropout, no bias": lambda dtype: models.MLP(5, 4, (40, 3), dropout=0.5, bias=False, dtype=dtype),
}
# rows of each rank: one and more, none, up to 8 in all and above, which other code handles
SOURCES = [(1,), (1, 1), (2, 0, 1), (4,), (0, 5), (3, 1, 2), (1, 6), (8,), (9,), (0, 4, 0, 7, 1), (1,) * 12, (20, 13)]
TOLERANCE = {np.float64: 1e-12, np.float32: 2e-5}


def take(batch, low, high):
    """Rows ``low`` to ``high - 1`` of ``batch`` as a batch of their own."""
    weight = None if batch.weight is None else batch.weight[low:high]
    return batch._replace(x=batch.x[low:high], y=batch.y[low:high], weight=weight, position=batch.position + low)


def sources_of(model, w, batch, rows):
    """(flat factors, rows) of ranks that have so many of the rows of ``batch``, and the sums of their losses."""
    sources, total, low = [], models.Sums(0.0, 0.0), 0
    for count in rows:
        flat = np.full(count * model.factor_size + 7, np.nan, model.dtype)
        total += model.loss_and_factors(w, take(batch, low, low + count), flat)
        assert np.isnan(flat[count * model.factor_size :]).all()
        flat.flags.writeable = False
        sources.append((flat, count))
        low += count
    return sources, total


def part(model, sources, low, high):
    """Elements ``low`` to ``high - 1`` of the gradient from factors; nothing beside them is written."""
    frame = np.full(high - low + 2, np.nan, model.dtype)
    model.grad_of_factors(sources, low, high, frame[1:-1])
    assert np.isnan(frame[[0, -1]]).all()
    return frame[1:-1]


def close(ours, theirs, tolerance):
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance * np.abs(theirs).max(initial=1e-300))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", SOURCES, ids=str)
@pytest.mark.parametrize("name", ALL)
def test_factors_make_the_gradient(name, rows, dtype):
    model, relative = ALL[name](dtype), TOLERANCE[dtype]
    w, size = start(model), model.layout.size
    batch = make_batch(model, sum(rows), seed=len(rows), train=True, weighted=len(rows) % 2 == 0)
    batch.x[:, 2] = 0  # a row of zeros in the first matrix' gradient
    grad = np.empty_like(w)
    sums = model.loss_and_grad(w, batch, grad)
    sources, total = sources_of(model, w, batch, rows)
    assert tuple(total) == pytest.approx(tuple(sums), rel=relative)
    whole = part(model, sources, 0, size)
    close(whole, grad, relative)
    rng = np.random.default_rng(5)
    for low, high in np.sort(rng.integers(0, size + 1, (20, 2)), axis=1):
        # of sizes of its own BLAS may sum in another order
        close(part(model, sources, int(low), int(high)), grad[low:high], 10 * relative)
    np.testing.assert_array_equal(part(model, sources, 0, size), whole)


@pytest.mark.parametrize("rows", [(1, 1), (3, 0, 4), (16, 1)], ids=str)
def test_slices_of_a_wide_net_cover_its_gradient(rows):
    """Cut where ranks cut: at multiples of 16 elements, in the middle of rows longer than a vector register."""
    model = models.MLP(45, 10, (70, 33), dtype=np.float32)
    rng = np.random.default_rng(0)
    w, size = start(model), model.layout.size
    batch = make_batch(model, sum(rows), train=True)._replace(
        x=rng.random((sum(rows), 45), dtype=np.float32) * (rng.random(45) < 0.4), y=rng.integers(0, 10, sum(rows))
    )
    grad = np.empty_like(w)
    model.loss_and_grad(w, batch, grad)
    sources, _ = sources_of(model, w, batch, rows)
    for ranks in (2, 3, 4, 7, 40):
        cuts = [size * rank // ranks // 16 * 16 for rank in range(ranks)] + [size]
        parts = [part(model, sources, low, high) for low, high in pairwise(cuts)]
        close(np.concatenate(parts), grad, 2e-5)


def test_factors_are_inputs_and_weighted_residuals():
    """The closed form of a linear model: x, and weight · (x · w + bias - y)."""
    model = ALL["linear"](np.float64)
    w = start(model)
    for rows in (3, 11):
        batch = make_batch(model, rows, weighted=True)
        flat = np.empty(rows * 6)
        assert model.factor_size == 6
        model.loss_and_factors(w, batch, flat)
        np.testing.assert_array_equal(flat[: 5 * rows].reshape(rows, 5), batch.x)
        np.testing.assert_allclose(flat[5 * rows :], batch.weight * (batch.x @ w[:5] + w[5] - batch.y), rtol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_fused_factors_and_those_by_blas_are_the_same(name, monkeypatch):
    model = ALL[name](np.float64)
    w, batch, got = start(model), make_batch(model, 7, train=True, weighted=True), []
    for limit in (0, 100):
        monkeypatch.setattr(dense, "FUSED_ROWS", limit)
        got.append(np.empty(7 * model.factor_size))
        got.append(np.array(model.loss_and_factors(w, batch, got[0 if limit == 0 else 2])))
    close(got[2], got[0], 1e-12)
    close(got[3], got[1], 1e-12)


@pytest.mark.parametrize("name", ALL)
def test_the_kernel_and_blas_make_the_same_gradient(name, monkeypatch):
    model = ALL[name](np.float64)
    w, batch = start(model), make_batch(model, 6, train=True)
    sources, _ = sources_of(model, w, batch, (1, 3, 2))
    low, high = 3, model.layout.size - 1
    by_kernel = part(model, sources, low, high)
    monkeypatch.setattr(factors, "FEW_ROWS", 0)
    close(part(model, sources, low, high), by_kernel, 1e-12)


def test_no_rows_have_no_factors_and_a_gradient_of_zeros():
    model = ALL["mlp relu"](np.float64)
    w, batch = start(model), make_batch(model)
    assert model.loss_and_factors(w, take(batch, 0, 0), np.empty(0)) == (0.0, 0.0)
    for sources in ([], [(np.empty(0), 0)], [(np.full(9, np.nan), 0)] * 3):
        assert not part(model, sources, 2, 40).any()


def test_arrays_of_wrong_sizes_are_refused():
    model = ALL["mlp relu"](np.float64)
    w, batch = start(model), make_batch(model, 9)
    for rows in (3, 9):
        short = np.empty(rows * model.factor_size - 1)
        with pytest.raises(ValueError, match="factors of"):
            model.loss_and_factors(w, take(batch, 0, rows), short)
        for sources in ([(short, rows)], [(HOST.read_only(np.zeros(model.factor_size)), 1), (short, rows)]):
            with pytest.raises(ValueError, match="factors of"):
                model.grad_of_factors(sources, 0, 4, np.empty(4))
        with pytest.raises(ValueError, match="do not go into"):
            model.grad_of_factors([(np.zeros(rows * model.factor_size), rows)], 0, 4, np.empty(5))


def test_a_copy_of_a_used_model_makes_factors_too():
    model = ALL["mlp tanh"](np.float64)
    w, batch = start(model), make_batch(model, 9, train=True)
    whole = part(model, sources_of(model, w, batch, (2, 7))[0], 0, model.layout.size)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(part(again, sources_of(again, w, batch, (2, 7))[0], 0, w.size), whole)


@pytest.mark.parametrize("rows", [0, 1, 11])
@pytest.mark.parametrize("name", ALL)
def test_stretches_are_final_when_they_are_told_ready(name, rows):
    model = ALL[name](np.float64)
    w, batch = start(model), make_batch(model, rows, train=True)
    grad, plain, told = np.full(model.layout.size, np.nan), np.empty(model.layout.size), []
    sums = model.loss_and_grad(w, batch, grad, lambda low, high: told.append((low, high, grad[low:high].copy())))
    assert model.tells_ready
    assert sums == model.loss_and_grad(w, batch, plain)
    np.testing.assert_array_equal(grad, plain)
    assert [high for _, high, _ in told] == [w.size, *(low for low, _, _ in told[:-1])]  # from the end, without gaps
    assert told[-1][0] == 0
    assert len(told) == model.layers
    for low, high, then in told:
        np.testing.assert_array_equal(grad[low:high], then)
        names = {slot.name.split(".")[0] for slot in model.layout.slots if low <= slot.start < high}
        assert len(names) == 1
