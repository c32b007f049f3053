"""Models: closed forms, finite differences, and the fused kernels against plain NumPy."""

import numpy as np
import pytest

from distai_mpi import models
from distai_mpi.backend import HOST
from distai_mpi.data import Batch
from distai_mpi.data.streams import GOLDEN, mix, stream_key
from distai_mpi.errors import ConfigError, DataError

MODELS = {
    "linear": lambda dtype: models.Linear(5, dtype=dtype),
    "linear, no bias": lambda dtype: models.Linear(5, bias=False, dtype=dtype),
    "logistic": lambda dtype: models.Logistic(5, dtype=dtype),
    "softmax": lambda dtype: models.Softmax(5, 4, dtype=dtype),
    "mlp relu": lambda dtype: models.MLP(5, 4, (7,), dtype=dtype),
    "mlp tanh": lambda dtype: models.MLP(5, 4, (7, 6), activation="tanh", dtype=dtype),
    "mlp gelu": lambda dtype: models.MLP(5, 4, (3, 6, 5), activation="gelu", dropout=0.3, dtype=dtype),
    "mlp, no bias": lambda dtype: models.MLP(5, 4, (7,), bias=False, dtype=dtype),
}


def make_batch(model, rows=11, seed=0, train=False, weighted=False):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 5)).astype(model.dtype)
    x[rng.random(x.shape) < 0.3] = 0
    if model.loss_function.name == "squared":
        y = rng.normal(size=rows).astype(model.dtype)
    else:
        y = rng.integers(0, 2 if model.loss_function.name == "logistic" else 4, rows)
    weight = rng.random(rows).astype(model.dtype) + 0.5 if weighted else None
    return Batch(x, y, weight, np.arange(rows), 0, train, key=stream_key(seed, "epoch", 0))


def start(model, seed=1):
    """Parameters, read-only as those of a run are: for others all kernels would be compiled once more."""
    rng = np.random.default_rng(seed)
    return HOST.read_only(rng.normal(0, 0.5, model.layout.size).astype(model.dtype))


def reference_loss(name, z, y):
    """Loss of each row from its outputs z, shape (rows, outputs), written for reading."""
    if name == "squared":
        return 0.5 * (z[:, 0] - y) ** 2
    if name == "logistic":
        return np.logaddexp(0, -np.where(y > 0, 1, -1) * z[:, 0])
    return np.log(np.exp(z - z.max(1, keepdims=True)).sum(1)) + z.max(1) - z[np.arange(len(y)), y]


def reference_outputs(model, w, x):
    """Outputs of a net without dropout, in plain NumPy."""
    views = model.layout.views(w)
    act = {
        "relu": lambda z: np.maximum(z, 0),
        "tanh": np.tanh,
        "gelu": lambda z: 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))),
    }[model.activation]
    for layer in range(1, model.layers + 1):
        x = x @ views[f"layer{layer}.weight"]
        if model.bias:
            x = x + views[f"layer{layer}.bias"]
        if layer < model.layers:
            x = act(x)
    return x


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_is_the_weighted_sum_of_row_losses(name, weighted):
    model = MODELS[name](np.float64)
    w, batch = start(model), make_batch(model, weighted=weighted)
    losses = reference_loss(model.loss_function.name, reference_outputs(model, w, batch.x), batch.y)
    weight = np.ones(len(losses)) if batch.weight is None else batch.weight
    sums = model.loss(w, batch)
    assert sums.loss == pytest.approx(losses @ weight, rel=1e-12)
    assert sums.weight == pytest.approx(weight.sum(), rel=1e-12)
    assert model.loss_and_grad(w, batch, np.empty_like(w)).loss == pytest.approx(losses @ weight, rel=1e-12)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("train", [False, True])
def test_gradient_agrees_with_central_differences(name, train):
    model = MODELS[name](np.float64)
    w, batch = start(model), make_batch(model, train=train, weighted=True)
    grad = np.full_like(w, np.nan)
    model.loss_and_grad(w, batch, grad)
    step, scratch = 1e-6, np.empty_like(w)
    for i in range(w.size):
        change = step * np.eye(w.size)[i]
        low, high = HOST.read_only(w - change), HOST.read_only(w + change)
        slope = model.loss_and_grad(high, batch, scratch).loss - model.loss_and_grad(low, batch, scratch).loss
        assert grad[i] == pytest.approx(slope / (2 * step), rel=1e-5, abs=1e-6), i


@pytest.mark.parametrize("name", MODELS)
def test_float32_agrees_with_float64_and_writes_into_the_callers_gradient(name):
    wide, narrow = MODELS[name](np.float64), MODELS[name](np.float32)
    w, batch = start(wide), make_batch(wide, train=True)
    exact, grad = np.empty_like(w), np.empty(w.size, np.float32)
    loss = wide.loss_and_grad(w, batch, exact).loss
    y = batch.y if batch.y.dtype == np.int64 else batch.y.astype(np.float32)
    small = batch._replace(x=batch.x.astype(np.float32), y=y)
    assert narrow.loss_and_grad(HOST.read_only(w.astype(np.float32)), small, grad).loss == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(grad, exact, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", MODELS)
def test_sums_of_two_halves_are_the_whole_and_no_rows_give_zero(name):
    model = MODELS[name](np.float64)
    w, batch = start(model), make_batch(model, train=True)
    whole, first, second = np.empty_like(w), np.empty_like(w), np.empty_like(w)
    total = model.loss_and_grad(w, batch, whole)
    a = model.loss_and_grad(w, batch._replace(x=batch.x[:4], y=batch.y[:4]), first)
    b = model.loss_and_grad(w, batch._replace(x=batch.x[4:], y=batch.y[4:], position=4), second)
    np.testing.assert_allclose(first + second, whole, rtol=1e-12, atol=1e-13)
    assert a.loss + b.loss == pytest.approx(total.loss, rel=1e-12)
    empty = model.loss_and_grad(w, batch._replace(x=batch.x[:0], y=batch.y[:0]), whole)
    assert empty == (0.0, 0.0)
    assert not whole.any()


def test_dropout_follows_its_stream():
    """The kept units are those whose number, drawn in plain Python, falls below the threshold."""
    model = models.MLP(5, 4, (7,), dropout=0.4, dtype=np.float64)
    w, batch = start(model), make_batch(model, train=True)._replace(position=3)
    key = stream_key(batch.key, "dropout", 0)
    draws = [[mix(key + GOLDEN * ((3 + r) * 7 + j)) >> 32 for j in range(7)] for r in range(len(batch.x))]
    keep = np.array(draws) < round(0.6 * 2**32)
    views = model.layout.views(w)
    hidden = np.maximum(batch.x @ views["layer1.weight"] + views["layer1.bias"], 0) * keep / 0.6
    outputs = hidden @ views["layer2.weight"] + views["layer2.bias"]
    expected = reference_loss("softmax", outputs, batch.y).sum()
    assert model.loss_and_grad(w, batch, np.empty_like(w)).loss == pytest.approx(expected, rel=1e-9)
    assert 0.3 < keep.mean() < 0.9


def test_dropout_keeps_the_fraction_it_should():
    from distai_mpi.models.kernels import cpu

    a, slope = np.ones((1000, 128)), np.ones((1000, 128))
    cpu.dropout(a, slope, np.uint64(stream_key(5)), 0, 128, np.uint64(round(0.8 * 2**32)), 1 / 0.8)
    kept = a > 0
    assert abs(kept.mean() - 0.8) < 4 * np.sqrt(0.8 * 0.2 / kept.size)
    pairs = (kept[:, 1:] & kept[:, :-1]).mean()
    assert abs(pairs - 0.64) < 4 * np.sqrt(0.64 * 0.36 / kept.size)
    np.testing.assert_array_equal(a, slope)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("l2", [0.0, 0.1])
def test_fused_one_sample_steps_are_the_plain_ones(name, l2):
    model = MODELS[name](np.float64)
    fused, batch = start(model).copy(), make_batch(model, train=True, weighted=True)
    plain, grad, total = fused.copy(), np.empty_like(fused), 0.0
    decay = np.zeros_like(plain)
    for low, high in model.layout.decay_ranges(0, model.layout.size):
        decay[low:high] = l2
    for r in range(len(batch.x)):
        one = slice(r, r + 1)
        row = batch._replace(x=batch.x[one], y=batch.y[one], weight=batch.weight[one], position=r)
        total += model.loss_and_grad(HOST.read_only(plain), row, grad).loss
        plain -= 0.05 * (grad + decay * plain)
    sums = model.sgd_step(fused, batch, 0.05, l2)
    with pytest.raises(ValueError, match="3 steps of 1 rows"):
        model.sgd_step(fused.copy(), batch, 0.05, l2, steps=3)
    np.testing.assert_allclose(fused, plain, rtol=1e-10, atol=1e-12)
    assert sums.loss == pytest.approx(total, rel=1e-10)


@pytest.mark.parametrize("name", MODELS)
def test_predict_takes_the_best_output(name):
    model = MODELS[name](np.float64)
    w, batch = start(model), make_batch(model)
    outputs = reference_outputs(model, w, batch.x)
    expected = {
        "squared": lambda: outputs[:, 0],
        "logistic": lambda: (outputs[:, 0] > 0).astype(int),
        "softmax": lambda: outputs.argmax(1),
    }[model.loss_function.name]()
    np.testing.assert_allclose(model.predict(w, batch.x), expected, rtol=1e-12)


def test_logistic_takes_both_kinds_of_labels_and_does_not_overflow():
    model = models.Logistic(5, dtype=np.float64)
    w, batch = start(model), make_batch(model)
    signed = batch._replace(y=2 * batch.y - 1)
    assert model.loss(w, signed) == model.loss(w, batch)
    large = model.loss_and_grad(HOST.read_only(1e4 * w), batch, grad := np.empty_like(w))
    assert np.isfinite(large.loss)
    assert np.isfinite(grad).all()


def test_start_of_a_net():
    model = models.MLP(400, 10, (300, 200), dtype=np.float64)
    w = model.init(np.random.default_rng(0))
    views = model.layout.views(w)
    assert views["layer1.weight"].std() == pytest.approx(np.sqrt(1 / (3 * 400)), rel=0.02)
    assert views["layer2.weight"].std() == pytest.approx(np.sqrt(1 / (3 * 300)), rel=0.02)
    assert views["layer3.weight"].std() == pytest.approx(0.1 * np.sqrt(2 / 210), rel=0.05)
    tanh = models.MLP(400, 10, (300,), activation="tanh", dtype=np.float64)
    first = tanh.layout.views(tanh.init(np.random.default_rng(0)))["layer1.weight"]
    assert first.std() == pytest.approx(np.sqrt(2 / 700), rel=0.02)
    assert not views["layer1.bias"].any()
    assert not models.Softmax(4, 3).init(np.random.default_rng(0)).any()
    np.testing.assert_array_equal(w, model.init(np.random.default_rng(0)))


def test_mnist_net_has_the_parameters_it_should():
    assert models.MLP(784, 10).layout.size == 784 * 128 + 128 + 128 * 10 + 10


@pytest.mark.parametrize(
    "arguments", [{"activation": "swish"}, {"dropout": 1.0}, {"hidden": (0,)}, {"dtype": np.float16}]
)
def test_settings_that_cannot_work_are_refused(arguments):
    with pytest.raises(ConfigError):
        models.MLP(5, 4, **arguments)


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_losses_of_one_output_are_refused_several(loss):
    with pytest.raises(ConfigError, match="softmax takes several"):
        models.LinearModel(5, 2, loss=loss)


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_comes_back(name, tmp_path):
    model = MODELS[name](np.float32)
    w, path = start(model), str(tmp_path / "model.npz")
    models.save_model(path, model, w, {"data": "mnist"})
    again, w_again, extra = models.load_model(path)
    np.testing.assert_array_equal(w_again, w)
    assert models.to_config(again) == models.to_config(model)
    assert extra == {"data": "mnist"}
    np.load(path, allow_pickle=False).close()


def test_a_damaged_or_foreign_model_file_is_refused(tmp_path):
    model = models.Linear(5)
    path = tmp_path / "model.npz"
    models.save_model(str(path), model, start(model))
    content = path.read_bytes()
    for broken in (b"", b"hello", content[: len(content) // 2]):
        path.write_bytes(broken)
        with pytest.raises(DataError, match="model.npz"):
            models.load_model(str(path))
    np.savez(path, x=np.zeros(3))
    with pytest.raises(DataError, match="not a model"):
        models.load_model(str(path))
    with pytest.raises(DataError, match="no such file"):
        models.load_model(str(tmp_path / "none.npz"))


def test_a_model_of_the_users_own_is_saved_as_plain_arrays(tmp_path):
    class Own(models.MLP):
        pass

    model, path = Own(5, 4, (7,)), str(tmp_path / "model.npz")
    w = start(model)
    models.save_model(path, model, w)
    with np.load(path, allow_pickle=False) as file:
        np.testing.assert_array_equal(file["layer1.bias"], model.layout.views(w)["layer1.bias"])
    with pytest.raises(DataError, match="own"):
        models.load_model(path)
