"""Models from JAX and PyTorch: our own networks once more, finite differences, and what is refused."""

import sys
from importlib.util import find_spec

import numpy as np
import pytest
from twins import LIBRARIES, twin

from distai_mpi import models
from distai_mpi.data import Batch, summarize
from distai_mpi.data.streams import stream_key
from distai_mpi.errors import ConfigError, DataError

OWN = {
    "linear": lambda dtype: models.Linear(5, dtype=dtype),
    "logistic": lambda dtype: models.Logistic(5, dtype=dtype),
    "softmax": lambda dtype: models.Softmax(5, 4, dtype=dtype),
    "relu": lambda dtype: models.MLP(5, 4, (7,), dropout=0, dtype=dtype),
    "tanh": lambda dtype: models.MLP(5, 4, (7, 6), activation="tanh", dropout=0, dtype=dtype),
    "gelu": lambda dtype: models.MLP(5, 4, (3, 6, 5), activation="gelu", dropout=0, dtype=dtype),
}
libraries = pytest.mark.parametrize("library", LIBRARIES)
needs_jax = pytest.mark.skipif(find_spec("jax") is None, reason="not available: jax")
needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="not available: torch")


def make_batch(own, rows=11, weighted=False, train=True, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 5)).astype(own.dtype)
    if own.loss_function.name == "squared":
        y = rng.normal(size=rows).astype(own.dtype)
    else:
        y = rng.integers(0, 2 if own.loss_function.name == "logistic" else 4, rows)
    weight = rng.random(rows).astype(own.dtype) + 0.5 if weighted else None
    return Batch(x, y, weight, np.arange(rows), 0, train, key=stream_key(seed, "epoch", 0))


def make_start(own, seed=1):
    w = np.random.default_rng(seed).normal(0, 0.5, own.layout.size).astype(own.dtype)
    w.flags.writeable = False  # as training hands it out
    return w


def cut(batch, start, stop):
    weight = None if batch.weight is None else batch.weight[start:stop]
    return batch._replace(x=batch.x[start:stop], y=batch.y[start:stop], weight=weight, position=batch.position + start)


@libraries
@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_same_network_has_the_same_loss_gradient_and_predictions(library, name, weighted):
    own = OWN[name](np.float64)
    model, into = twin(library, own)
    w, batch = make_start(own), make_batch(own, weighted=weighted)
    expected, grad = np.empty_like(w), np.full(w.size, np.nan)
    sums = model.loss_and_grad(into(w), batch, grad)
    assert sums == pytest.approx(own.loss_and_grad(w, batch, expected), rel=1e-12)
    np.testing.assert_allclose(grad, into(expected), rtol=1e-10, atol=1e-12)
    assert model.loss(into(w), batch) == pytest.approx(own.loss(w, batch), rel=1e-12)
    if own.loss_function.classifies:
        assert model.score(into(w), batch)[1] == pytest.approx(own.score(w, batch)[1], rel=1e-12)
    predicted = model.predict(into(w), batch.x)
    np.testing.assert_allclose(predicted, own.predict(w, batch.x), rtol=1e-10)
    assert predicted.shape == (11,)


@libraries
def test_float32_agrees_with_float64_and_writes_into_the_callers_gradient(library):
    own, wide = OWN["gelu"](np.float32), OWN["gelu"](np.float64)
    model, into = twin(library, own)
    w, batch = make_start(own), make_batch(own, weighted=True)
    exact, grad = np.empty(w.size), np.full(w.size + 2, 7, np.float32)
    batch64 = batch._replace(x=batch.x.astype(float), weight=batch.weight.astype(float))
    loss = wide.loss_and_grad(w.astype(float), batch64, exact).loss
    assert model.loss_and_grad(into(w), batch, grad[1:-1]).loss == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(grad[1:-1], into(exact), rtol=2e-4, atol=2e-5)
    assert grad[0] == grad[-1] == 7
    assert model.init(None).dtype == np.float32


@libraries
def test_gradient_under_dropout_agrees_with_central_differences(library):
    own = OWN["tanh"](np.float64)
    model, into = twin(library, own, dropout=0.4)
    w, batch = into(make_start(own)), make_batch(own, weighted=True)
    grad, scratch, step = np.empty_like(w), np.empty_like(w), 1e-6
    model.loss_and_grad(w, batch, grad)
    plain = np.empty_like(w)
    model.loss_and_grad(w, batch._replace(train=False), plain)
    assert not np.allclose(grad, plain)
    for i in range(w.size):
        low, high = w.copy(), w.copy()
        low[i] -= step
        high[i] += step
        slope = model.loss_and_grad(high, batch, scratch).loss - model.loss_and_grad(low, batch, scratch).loss
        assert grad[i] == pytest.approx(slope / (2 * step), rel=1e-5, abs=1e-6), i


@libraries
@pytest.mark.parametrize("name", [name for name in OWN if name != "relu"])  # differences must not cross its kinks
def test_hessian_products_agree_with_differences_of_the_gradient(library, name):
    own = OWN[name](np.float64)
    model, into = twin(library, own)
    w, batch = into(make_start(own)), make_batch(own, weighted=True)
    u, v = np.random.default_rng(3).normal(size=(2, w.size))
    product, step = model.curvature_at(w, batch), 1e-5
    low, high, out, back = np.empty((4, w.size))
    model.loss_and_grad(w - step * v, batch, low)
    model.loss_and_grad(w + step * v, batch, high)
    product(v, out)
    np.testing.assert_allclose(out, (high - low) / (2 * step), rtol=1e-6, atol=1e-6)
    product(u, back)
    assert u @ out == pytest.approx(v @ back, rel=1e-10)
    product(v, high)
    assert (high == out).all()
    model.curvature_at(w, cut(batch, 0, 0))(v, out)
    assert not out.any()


@libraries
def test_sums_of_parts_are_the_whole_and_no_rows_give_zero(library):
    own = OWN["gelu"](np.float64)
    # a row's dropout does not depend on the batch it comes in under JAX; PyTorch draws a batch at once
    model, into = twin(library, own, dropout=0.4 if library == "jax" else 0)
    w, batch = into(make_start(own)), make_batch(own, rows=41, weighted=True)
    whole, part, total = np.empty_like(w), np.empty_like(w), np.zeros_like(w)
    sums, parts = model.loss_and_grad(w, batch, whole), models.Sums(0.0, 0.0)
    for start, stop in ((0, 1), (1, 24), (24, 24), (24, 41)):
        parts += model.loss_and_grad(w, cut(batch, start, stop), part)
        total += part
    assert parts == pytest.approx(sums, rel=1e-12)
    np.testing.assert_allclose(total, whole, rtol=1e-11, atol=1e-12)
    none = cut(batch, 5, 5)
    assert model.loss_and_grad(w, none, whole) == model.loss(w, none) == (0.0, 0.0)
    assert not whole.any()
    assert model.predict(w, none.x).shape == (0,)


@libraries
def test_dropout_follows_key_and_position_and_is_off_in_evaluation(library):
    own = OWN["tanh"](np.float64)
    model, into = twin(library, own, dropout=0.5)
    w, batch = into(make_start(own)), make_batch(own)
    grad = np.empty_like(w)

    def loss(**changes):
        return model.loss_and_grad(w, batch._replace(**changes), grad).loss

    again = loss()
    others = [loss(key=batch.key + 1), loss(position=1), loss(train=False)]
    assert loss() == again
    assert len({again, *others}) == 4
    assert others[-1] == pytest.approx(model.loss(w, batch).loss, rel=1e-12)


@libraries
def test_nothing_of_a_batch_is_kept(library):
    own = OWN["relu"](np.float32)
    model, into = twin(library, own)
    w, first, second = into(make_start(own)), make_batch(own), make_batch(own, seed=5)
    expected, grad = np.empty_like(w), np.empty_like(w)
    sums = model.loss_and_grad(w, second, expected)
    kept = model.loss_and_grad(w, first, grad)
    before, predicted = grad.copy(), model.predict(w, first.x)
    labels = predicted.copy()
    first.x[:], first.y[:] = second.x, second.y  # the loader fills its buffers anew
    assert (grad == before).all()
    assert (predicted == labels).all()
    assert kept != sums
    assert model.loss_and_grad(w, first, grad) == sums
    assert (grad == expected).all()


@libraries
def test_names_and_penalty(library):
    model = twin(library, OWN["relu"](np.float32)).model
    names = {"jax": "layer1.bias layer1.weight layer2.bias layer2.weight", "torch": "0.weight 0.bias 3.weight 3.bias"}
    assert [slot.name for slot in model.layout.slots] == names[library].split()
    assert all(slot.decay == slot.name.endswith("weight") for slot in model.layout.slots)


@libraries
def test_model_files_hold_plain_arrays(library, tmp_path):
    own = OWN["relu"](np.float32)
    model, into = twin(library, own)
    w, path = into(make_start(own)), str(tmp_path / "model.npz")
    models.save_model(path, model, w)
    with np.load(path, allow_pickle=False) as file:
        for name, view in model.layout.views(w).items():
            np.testing.assert_array_equal(file[name], view)
    with pytest.raises(DataError, match="model of your own"):
        models.load_model(path)


@libraries
def test_rows_that_the_loss_cannot_take_are_refused(library):
    own = OWN["softmax"](np.float32)
    model = twin(library, own).model
    fitting = make_batch(own)
    model.check_data(summarize(fitting.y, 5))
    with pytest.raises(DataError, match="6 features"):
        model.check_data(summarize(fitting.y, 6))
    if library == "torch":  # JAX takes any label, and gives nan
        with pytest.raises(DataError, match="labels from 0 to 4"):
            model.check_data(summarize(np.arange(5), 5))


@libraries
def test_a_missing_library_is_named(library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    build = {"jax": models.from_jax, "torch": models.from_torch}[library]
    with pytest.raises(ConfigError, match=rf"distai-mpi\[{library}\]"):
        build(None, None)


# ----- JAX


def row_losses(params, x, y):
    return (x @ params["weight"] + params["bias"] - y) ** 2


def linear_params():
    return {"weight": np.arange(5.0), "bias": np.float64(0.5)}


@needs_jax
def test_jax_compiles_few_lengths_and_filling_changes_nothing():
    traced = []

    def loss(params, x, y):
        traced.append(len(x))
        return row_losses(params, x, y)

    model = models.from_jax(loss, linear_params(), dtype=np.float64)
    w, rng = model.init(None), np.random.default_rng(0)
    grad, x = np.empty_like(w), rng.normal(size=(300, 5))
    y = rng.normal(size=300)
    for rows in [*range(1, 35), 85, 86, 128, 129, 255, 256, 299, 300]:
        batch = Batch(x[:rows], y[:rows], None, None, 0, train=True)
        sums = model.loss_and_grad(w, batch, grad)
        residual = x[:rows] @ np.arange(5.0) + 0.5 - y[:rows]
        assert sums == pytest.approx((residual @ residual, rows), rel=1e-12)
        np.testing.assert_allclose(grad, [2 * residual.sum(), *(2 * residual @ x[:rows])], rtol=1e-10, atol=1e-10)
    assert len(traced) == len(set(traced)) <= 32
    assert {1, 2, 16, 128, 256} <= set(traced)
    assert all(
        8 * length <= 9 * rows for rows in (17, 85, 86, 129, 300) for length in [min(n for n in traced if n >= rows)]
    )


@needs_jax
def test_a_row_that_must_not_be_zero_can_be_filled_up():
    model = models.from_jax(lambda params, x, y: params * (x[:, 0] * (x[:, 0] - 3)) ** -0.5, np.ones(1))
    grad = np.empty(1, np.float32)
    sums = model.loss_and_grad(
        np.ones(1, np.float32), Batch(np.full((17, 1), 4, np.float32), np.zeros(17), None, None, 0, True), grad
    )
    assert sums.loss == grad[0] == 8.5


@needs_jax
def test_jax_works_in_64_bits_for_this_model_alone():
    import jax.numpy as jnp

    model = models.from_jax(row_losses, linear_params(), dtype=np.float64)
    batch = Batch(np.full((1, 5), 1e-9), np.zeros(1), None, None, 0, train=True)
    assert model.loss(model.init(None), batch).loss == pytest.approx((0.5 + 1e-8) ** 2, rel=1e-15)
    assert jnp.zeros(1).dtype == np.float32


@needs_jax
def test_jax_trees_of_any_shape_come_back():
    params = {"b": [np.ones((2, 3)), (np.zeros(2), np.float32(7))], "a": {"c": np.full((1, 2, 2), 3.0)}}
    model = models.from_jax(lambda p, x, y: x[:, 0] * p["b"][1][1], params, decay=lambda name, shape: name == "b.1.0")
    assert [(s.name, s.shape) for s in model.layout.slots] == [
        ("a.c", (1, 2, 2)), ("b.0", (2, 3)), ("b.1.0", (2,)), ("b.1.1", ()),
    ]  # fmt: skip
    assert [s.name for s in model.layout.slots if s.decay] == ["b.1.0"]
    back = model.params(model.init(None))
    assert (back["b"][1][1], back["a"]["c"].tolist()) == (7, [[[3, 3], [3, 3]]])
    single = models.from_jax(lambda p, x, y: x @ p, np.ones(5))
    assert [slot.name for slot in single.layout.slots] == ["params"]


@needs_jax
def test_threads_of_jax_can_be_limited_without_compiling_again():
    traced = []
    model = models.from_jax(lambda p, x, y: (traced.append(1), x @ p)[1], np.ones(5))
    batch, grad = Batch(np.ones((3, 5), np.float32), np.zeros(3), None, None, 0, train=True), np.empty(5, np.float32)
    for threads in (1, 1, 2, 3):
        model.limit_threads(threads)
        assert model.loss_and_grad(model.init(None), batch, grad) == (15, 3)
    assert len(traced) == 2


@needs_jax
@pytest.mark.parametrize(
    ("params", "word"),
    [
        ({"n": np.arange(3)}, "n is of type int64"),
        ({"a": "text"}, "real numbers"),
        ({"a": {"b": np.array([1.0, np.nan])}}, "a.b is not finite"),
        ({"z": np.ones(2, complex)}, "complex"),
        ({}, "no parameter"),
        ({"a.b": np.ones(1), "a": {"b": np.ones(1)}}, "names of their own"),
    ],
)
def test_jax_parameters_that_cannot_be_trained(params, word):
    with pytest.raises(ConfigError, match=word):
        models.from_jax(row_losses, params)


@needs_jax
def test_jax_dtypes():
    import jax.numpy as jnp

    model = models.from_jax(row_losses, {"weight": jnp.ones(5, jnp.bfloat16), "bias": np.float64(1)})
    assert (model.init(None) == 1).all()
    assert model.init(None).dtype == np.float32
    with pytest.raises(ConfigError, match="float16"):
        models.from_jax(row_losses, linear_params(), dtype=np.float16)


@needs_jax
@pytest.mark.parametrize(
    ("loss", "word"),
    [
        (lambda p, x, y: row_losses(p, x, y).mean(), "one number for"),
        (lambda p, x, y: row_losses(p, x, y)[:, None], r"shape \(\d+, 1\)"),
        (lambda p, x, y: row_losses(p, x, y) - y[:, None], r"shape \(\d+, \d+\)"),
        (lambda p, x, y: (x[:, 0] > 0).astype(int), "whole numbers"),
    ],
)
def test_jax_losses_that_are_no_losses_of_rows(loss, word):
    model = models.from_jax(loss, linear_params())
    batch = Batch(np.ones((4, 5), np.float32), np.zeros(4, np.float32), None, None, 0, train=True)
    with pytest.raises(ConfigError, match=word):
        model.loss_and_grad(model.init(None), batch, np.empty(6, np.float32))
    with pytest.raises(ConfigError, match=word):
        model.check_data(summarize(np.zeros(4), 5))


@needs_jax
def test_jax_predictions_need_a_function_of_the_right_shape():
    x = np.ones((4, 5), np.float32)
    model = models.from_jax(row_losses, linear_params())
    with pytest.raises(ConfigError, match="predict="):
        model.predict(model.init(None), x)
    wrong = models.from_jax(row_losses, linear_params(), predict=lambda p, x: x.sum())
    with pytest.raises(ConfigError, match=r"shape \(\) for 4 rows"):
        wrong.predict(wrong.init(None), x)


# ----- PyTorch


def squared(outputs, y):
    return (outputs[:, 0] - y) ** 2


def values(rows=4):
    return Batch(np.ones((rows, 5), np.float32), np.zeros(rows, np.float32), None, None, 0, train=True)


@needs_torch
def test_the_module_itself_is_left_alone_until_it_is_loaded():
    import torch

    module = torch.nn.Linear(5, 1)
    model = models.from_torch(module, squared)
    parameters, before = list(module.parameters()), model.init(None)
    w, grad = before + 1, np.empty_like(before)
    model.loss_and_grad(w, values(), grad)
    model.curvature_at(w, values())(w, grad)
    model.score(w, values())
    assert all(a is b and a.grad is None for a, b in zip(module.parameters(), parameters, strict=True))
    assert (np.concatenate([p.detach().numpy().ravel() for p in parameters]) == before).all()
    assert model.load(w) is module
    assert (np.concatenate([p.detach().numpy().ravel() for p in parameters]) == w).all()
    assert not np.shares_memory(parameters[0].detach().numpy(), w)


@needs_torch
def test_a_module_that_fails_gets_its_parameters_back():
    import torch

    module = torch.nn.Linear(5, 1)
    weight = module.weight
    model = models.from_torch(module, squared)
    with pytest.raises(RuntimeError, match="shapes"):
        model.loss(model.init(None), values()._replace(x=np.ones((4, 6), np.float32)))
    assert module.weight is weight


@needs_torch
def test_tied_frozen_strided_and_unused_parameters():
    import torch

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Linear(5, 5), torch.nn.Linear(5, 5)
            self.b.weight = self.a.weight  # tied
            self.b.bias.requires_grad_(False)
            self.b.bias.data += 3
            self.strided = torch.nn.Parameter(torch.arange(10.0).reshape(2, 5).T)
            self.unused = torch.nn.Parameter(torch.ones(4))

        def forward(self, x):
            return self.b(self.a(x)) @ self.strided[:, :1]

    torch.manual_seed(0)
    net = Net().double()
    model = models.from_torch(net, squared)
    assert [slot.name for slot in model.layout.slots] == ["strided", "unused", "a.weight", "a.bias"]
    rng = np.random.default_rng(0)
    batch = Batch(rng.normal(size=(7, 5)), rng.normal(size=7), None, None, 0, train=True)
    w, grad = model.init(None), np.full(model.layout.size, np.nan)
    np.testing.assert_array_equal(model.layout.views(w)["strided"], net.strided.detach().numpy())
    sums = model.loss_and_grad(w, batch, grad)
    loss = squared(net(torch.from_numpy(batch.x)), torch.from_numpy(batch.y)).sum()
    loss.backward()
    assert sums.loss == pytest.approx(loss.item(), rel=1e-12)
    views = model.layout.views(grad)
    assert not views.pop("unused").any()
    for name, view in views.items():
        np.testing.assert_allclose(view, dict(net.named_parameters())[name].grad.numpy(), rtol=1e-12, atol=1e-12)
    out, v = np.full_like(w, np.nan), rng.normal(size=w.size)
    model.curvature_at(w, batch)(v, out)
    assert not model.layout.views(out)["unused"].any()
    assert np.isfinite(out).all()


@needs_torch
def test_a_recurrent_module_sees_the_parameters_in_its_place():
    import torch

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.out = torch.nn.GRU(1, 3, batch_first=True), torch.nn.Linear(3, 1)

        def forward(self, x):
            return self.out(self.rnn(x[:, :, None])[0][:, -1])

    model = models.from_torch(Net().double(), squared)
    rng = np.random.default_rng(0)
    batch = Batch(rng.normal(size=(6, 5)), rng.normal(size=6), None, None, 0, train=True)
    w, v, scratch = model.init(None) + 0.1, rng.normal(size=model.layout.size), np.empty(model.layout.size)
    slope = [model.loss_and_grad(w + step * v, batch, scratch).loss for step in (1e-6, -1e-6)]
    model.loss_and_grad(w, batch, scratch)
    assert scratch @ v == pytest.approx((slope[0] - slope[1]) / 2e-6, rel=1e-6)


@needs_torch
def test_predictions_of_single_outputs_and_by_a_rule_of_ones_own():
    import torch

    module, x = torch.nn.Linear(1, 1, bias=False), np.array([[-2.0], [3.0]], np.float32)
    y = np.array([-1, 1])
    batch, w = Batch(x, y, None, None, 0, train=False), np.ones(1, np.float32)
    plain = models.from_torch(module, squared)
    assert plain.predict(w, x).tolist() == [-2, 3]
    assert np.isnan(plain.score(w, batch)[1])
    margins = models.from_torch(module, squared, target_dtype=np.int64)
    assert margins.predict(w, x).tolist() == [0, 1]
    assert margins.score(w, batch)[1] == 2
    own = models.from_torch(module, squared, predict=lambda outputs: torch.sign(outputs[:, 0]).int())
    assert own.predict(w, x).tolist() == [-1, 1]
    assert own.score(w, batch)[1] == 2


@needs_torch
def test_modules_that_cannot_be_trained():
    import torch
    from torch import nn

    def shared():
        module = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 1))
        module[1].weight = nn.Parameter(module[0].weight.data[:1])
        return module

    def broken():
        module = nn.Linear(5, 1)
        module.bias.data[0] = torch.inf
        return module

    for module, word in (
        (nn.ReLU(), "nothing to train"),
        (nn.Linear(5, 1).requires_grad_(False), "nothing to train"),
        (nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5)), "BatchNorm1d 1 couples"),
        (nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 1).double()), "float32 and float64"),
        (nn.Linear(5, 1).half(), "float16"),
        (nn.LazyLinear(1), "no shape yet"),
        (nn.Linear(5, 1, device="meta"), "is on meta"),
        (shared(), "share memory"),
        (broken(), "bias is not finite"),
        (torch.jit.script(nn.Linear(5, 1)), "not a script"),
        (lambda x: x, "torch.nn.Module"),
    ):
        with pytest.raises(ConfigError, match=word):
            models.from_torch(module, squared)
    with pytest.raises(ConfigError, match="parameters of its own"):
        models.from_torch(nn.Linear(5, 1), nn.Linear(1, 1))


@needs_torch
def test_a_module_whose_buffers_move_in_training_is_refused_and_left_as_it_was():
    from torch import nn

    norm = nn.InstanceNorm1d(1, affine=True, track_running_stats=True)
    module = nn.Sequential(nn.Unflatten(1, (1, 5)), norm, nn.Flatten(), nn.Linear(5, 1))
    with pytest.raises(ConfigError, match=r"buffer 1\.running_"):
        models.from_torch(module, squared).check_data(summarize(np.zeros(4), 5))
    assert (norm.running_mean.item(), norm.running_var.item()) == (0, 1)


@needs_torch
@pytest.mark.parametrize(
    ("loss", "word"),
    [
        (lambda z, y: squared(z, y).mean(), "one number for"),
        (lambda z, y: (z - y) ** 2, r"shape \(\d, \d\)"),
        (lambda z, y: (z[:, 0] > y).long(), "whole numbers"),
        (lambda z, y: squared(z.detach(), y), "detached"),
        (lambda z, y: 1.0, "gives a float"),
    ],
)
def test_torch_losses_that_are_no_losses_of_rows(loss, word):
    import torch

    model = models.from_torch(torch.nn.Linear(5, 1), loss)
    with pytest.raises(ConfigError, match=word):
        model.loss_and_grad(model.init(None), values(), np.empty(6, np.float32))
    with pytest.raises(ConfigError, match=word):
        model.check_data(summarize(np.zeros(4), 5))


@needs_torch
def test_trying_a_module_leaves_the_generator_alone():
    import torch

    model = models.from_torch(torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(5, 1)), squared)
    before = torch.get_rng_state()
    model.check_data(summarize(np.zeros(4), 5))
    assert torch.equal(torch.get_rng_state(), before)
