"""Models, optimizers and training on a device, against the host's compiled kernels; `test_gpu` runs them on a GPU.

The device here is a pretended one that fails on every hidden copy to or from the host.
"""

import copy
import os
import pickle
import shutil
import signal
import sys
import tempfile
import types
from dataclasses import replace
from itertools import cycle

import numpy as np
import pytest
from fake_device import FUNCTIONS, FakeArray, FakeDevice, HiddenTransfer
from fits import fit
from problems import local_shard, make_rows, uneven, whole_shard

from distai_mpi import backend, models, optim
from distai_mpi.backend import HOST, as_host, device_of, namespace, number
from distai_mpi.data import Batch, Dataset, encode, encode_labels, fill_missing
from distai_mpi.data.sharded import whole
from distai_mpi.data.streams import stream_key
from distai_mpi.errors import ConfigError
from distai_mpi.objective import square
from distai_mpi.train import Callback, Checkpoint, evaluate
from distai_mpi.train.evaluation import make_loader

pytestmark = pytest.mark.ranks(2)

MODELS = {
    "linear": lambda dtype: models.Linear(6, dtype=dtype),
    "linear, no bias": lambda dtype: models.Linear(6, bias=False, dtype=dtype),
    "logistic": lambda dtype: models.Logistic(6, dtype=dtype),
    "softmax": lambda dtype: models.Softmax(6, 3, dtype=dtype),
    "mlp relu": lambda dtype: models.MLP(6, 3, (7,), dropout=0, dtype=dtype),
    "mlp relu dropout": lambda dtype: models.MLP(6, 3, (7, 5), dtype=dtype),
    "mlp tanh": lambda dtype: models.MLP(6, 3, (7,), activation="tanh", dropout=0, dtype=dtype),
    "mlp tanh dropout": lambda dtype: models.MLP(6, 3, (7, 6), activation="tanh", dtype=dtype),
    "mlp gelu": lambda dtype: models.MLP(6, 3, (7,), activation="gelu", dropout=0, dtype=dtype),
    "mlp gelu dropout": lambda dtype: models.MLP(6, 3, (4, 6, 5), activation="gelu", dropout=0.3, dtype=dtype),
    "mlp, no bias": lambda dtype: models.MLP(6, 3, (7,), bias=False, dtype=dtype),
}
KINDS = {"linear": "value", "linear, no bias": "value", "logistic": "binary"}
TOLERANCE = {np.float64: 1e-12, np.float32: 1e-5}
OPTIMIZERS = {name: kind() for name, kind in optim.OPTIMIZERS.items()} | {
    "ftrl with l1": optim.FTRL(beta=0.1, l1=0.05, l2=0.1),
    "average": optim.LocalSGD(optim.Momentum(), sync_every=2),
    "diloco": optim.LocalSGD(optim.AdamW(), 3, outer_lr=0.7, outer_momentum=0.9),
}


@pytest.fixture
def device():
    return FakeDevice()


@pytest.fixture
def tolerance():
    """Relative, by dtype."""
    return TOLERANCE


def on_device(device, x):
    out = device.zeros(x.shape, x.dtype)
    device.put(np.ascontiguousarray(x), out)
    return out


def close(ours, theirs, relative, scale=None):
    """Agreement relative to the largest element: where sums cancel, rounding stays what it was."""
    ours, theirs = np.asarray(as_host(ours)), np.asarray(theirs)
    largest = np.abs(theirs).max(initial=1e-300) if scale is None else scale
    np.testing.assert_allclose(ours, theirs, rtol=relative, atol=relative * largest)


def make_batch(model, weighted, train, rows=11, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 6)).astype(model.dtype)
    x[rng.random(x.shape) < 0.3] = 0
    if model.loss_function.name == "squared":
        y = rng.normal(size=rows).astype(model.dtype)
    else:
        y = rng.integers(0, 2 if model.loss_function.name == "logistic" else 3, rows)
    weight = rng.random(rows).astype(model.dtype) + 0.5 if weighted else None
    return Batch(x, y, weight, np.arange(rows), 5, train, key=stream_key(seed, "epoch", 0))


def lift(device, batch):
    weight = None if batch.weight is None else on_device(device, batch.weight)
    return batch._replace(x=on_device(device, batch.x), y=on_device(device, batch.y), weight=weight)


# --- models


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_models_compute_on_a_device_as_on_the_host(name, weighted, dtype, device, tolerance):
    model, relative = MODELS[name](dtype), tolerance[dtype]
    w = HOST.read_only(np.random.default_rng(1).normal(0, 0.5, model.layout.size).astype(dtype))
    there = on_device(device, w)
    for train, rows in ((True, 11), (False, 4), (True, 13)):  # buffers shrink and grow
        batch = make_batch(model, weighted, train, rows)
        lifted = lift(device, batch)
        grad, grad_there = np.empty_like(w), device.xp.empty(w.shape, w.dtype)
        theirs, ours = model.loss_and_grad(w, batch, grad), model.loss_and_grad(there, lifted, grad_there)
        assert (number(ours.loss), number(ours.weight)) == pytest.approx(tuple(theirs), rel=relative)
        close(grad_there, grad, relative)
        close(model.outputs(there, lifted.x), model.outputs(w, batch.x), relative)
        np.testing.assert_array_equal(
            as_host(model.predict(there, lifted.x)).round(4), model.predict(w, batch.x).round(4)
        )
        (ours, right), (theirs, right_here) = model.score(there, lifted), model.score(w, batch)
        assert (number(ours.loss), number(right)) == pytest.approx((theirs.loss, right_here), rel=relative)
        assert number(model.loss(there, lifted).loss) == pytest.approx(theirs.loss, rel=relative)


@pytest.mark.parametrize("name", MODELS)
def test_stretches_told_ready_on_a_device_are_final(name, device):
    model = MODELS[name](np.float64)
    w, grad = on_device(device, np.full(model.layout.size, 0.1)), device.zeros(model.layout.size, np.float64)
    then, told = np.full(model.layout.size, np.nan), []

    def on_ready(low, high):
        then[low:high] = as_host(grad[low:high])
        told.append((low, high))

    model.loss_and_grad(w, lift(device, make_batch(model, False, True)), grad, on_ready)
    np.testing.assert_array_equal(then, as_host(grad))
    assert sorted(told, reverse=True) == told
    assert sum(high - low for low, high in told) == model.layout.size


@pytest.mark.parametrize("name", MODELS)
def test_no_rows_give_zero(name, device):
    model = MODELS[name](np.float64)
    batch = make_batch(model, False, True)
    w, grad = on_device(device, np.ones(model.layout.size)), device.xp.empty(model.layout.size, np.float64)
    sums = model.loss_and_grad(w, lift(device, batch._replace(x=batch.x[:0], y=batch.y[:0])), grad)
    assert (number(sums.loss), number(sums.weight)) == (0.0, 0.0)
    assert not as_host(grad).any()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("first", [0, 7, (1 << 40) + 3])
def test_dropout_masks_are_the_same_bits(dtype, first, device):
    from distai_mpi.models.kernels import array, cpu

    key, threshold = np.uint64(stream_key(5, "dropout")), np.uint64(round(0.7 * 2**32))
    here = np.ones((2, 50, 33), dtype)
    there = on_device(device, here)
    stream = (key, first, 33, threshold, np.dtype(dtype).type(1 / 0.7))
    cpu.dropout(here[0], here[1], *stream)
    array.dropout(there[0], there[1], *stream)
    np.testing.assert_array_equal(as_host(there), here)
    assert 0 < (here == 0).mean() < 1
    z, slope, z_there, slope_there = here[0] - 0.5, here[1], there[0] - 0.5, there[1]
    bias = np.zeros(33, dtype)
    cpu.relu_dropout(z, bias, slope, *stream)
    array.relu_dropout(z_there, on_device(device, bias), slope_there, *stream)
    np.testing.assert_array_equal(as_host(z_there), z)
    np.testing.assert_array_equal(as_host(slope_there), slope)


def test_a_copy_of_a_used_model_takes_no_scratch_along(device):
    model = MODELS["mlp gelu dropout"](np.float64)
    w, batch = HOST.read_only(np.full(model.layout.size, 0.1)), make_batch(model, False, True)
    first = model.loss_and_grad(w, batch, np.empty_like(w))
    model.loss_and_grad(on_device(device, w), lift(device, batch), device.zeros(w.shape, w.dtype))
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert again.loss_and_grad(w, batch, np.empty_like(w)) == first


def test_a_lost_number_shows_in_the_loss(device):
    for name in ("mlp relu dropout", "mlp tanh", "mlp gelu", "logistic", "linear"):
        model = MODELS[name](np.float32)
        batch = make_batch(model, False, False)
        batch.x[3, 2] = np.nan
        w = on_device(device, np.full(model.layout.size, 0.5, np.float32))
        assert np.isnan(number(model.loss(w, lift(device, batch)).loss)), name


def test_array_functions_run_on_numpy_too():
    from distai_mpi.models.kernels import array, cpu
    from distai_mpi.models.losses import LOSSES

    rng = np.random.default_rng(0)
    z, bias = rng.normal(size=(9, 4)), rng.normal(size=4)
    y, weight = rng.integers(0, 4, 9), rng.random(9)
    here, there, sums, sums_there = z.copy(), z.copy(), np.empty(4), np.empty(4)
    loss = cpu.residual_of(LOSSES["softmax"])(here, bias, y, weight, sums, np.empty(0))
    found = array.residual_of(LOSSES["softmax"])(there, bias, y, weight, sums_there, np.empty(0))
    assert found == pytest.approx(loss, rel=1e-13)
    np.testing.assert_allclose(there, here, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(sums_there, sums, rtol=1e-12, atol=1e-14)


# --- optimizers


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("name", [*optim.OPTIMIZERS, "ftrl with l1"])
def test_updates_on_a_device_are_those_of_the_host(name, in_place, dtype, device, tolerance):
    rng = np.random.default_rng(0)
    optimizer, decay = replace(OPTIMIZERS[name], lr=0.05), [(0, 300), (301, 400)]
    w = rng.normal(size=500).astype(dtype)
    there = on_device(device, w)
    state, state_there = optimizer.init(w, decay), optimizer.init(there, decay)
    for _ in range(20):
        grad = rng.normal(size=500).astype(dtype)
        out = w if in_place else np.empty_like(w)
        out_there = there if in_place else device.xp.empty(w.shape, w.dtype)
        optimizer.step(w, grad, state, out=out, factor=0.9)
        optimizer.step(there, on_device(device, grad), state_there, out=out_there, factor=0.9)
        w, there = out, out_there
    close(there, w, tolerance[dtype])
    assert (name == "ftrl with l1") == (w == 0).any()
    for key, value in state.items():
        if isinstance(value, np.ndarray):  # what rounding took is itself no larger than rounding
            scale = np.abs(w).max() if key == "carry" else None
            close(state_there[key], value, tolerance[dtype], scale)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("gd", {}),
        ("sgd", {}),
        ("momentum", {"momentum": 0.0}),
        ("nesterov", {"momentum": 0.0}),
        ("adagrad", {"initial": 1.0}),
        ("ftrl", {}),
    ],
)
def test_updates_below_the_last_bit_are_not_lost(name, more, device):
    optimizer = optim.OPTIMIZERS[name](lr=0.1, **more)
    w, grad = on_device(device, np.ones(3, np.float32)), on_device(device, np.full(3, 1e-7, np.float32))
    state = optimizer.init(w)
    for _ in range(1000):
        optimizer.step(w, grad, state)
    np.testing.assert_allclose(1 - as_host(w).astype(np.float64), 1000e-8, rtol=7e-3)


# --- training on one and more ranks


def train(comm, name, dtype, device, *, shard=whole_shard, weighted=False, **options):
    kind = KINDS.get(name, "class")
    x, y = make_rows(rows=53, kind=kind)
    if shard is local_shard:
        data = local_shard(x, y, comm, uneven(53, comm.size))
    elif weighted:
        data = whole(Dataset(x, y, weight=np.random.default_rng(2).random(53) + 0.5), comm.rank, comm.size)
    else:
        data = whole_shard(x, y, comm)
    options = {
        "epochs": 2,
        "global_batch_size": 16,
        "l2": 0.01,
        "test": data,
        "allreduce": "native",
        "factors": False,
    } | options
    return fit(MODELS[name](dtype), data, comm, device=device, **options)


def alike(mine, others, relative):
    return mine is others is None or mine == pytest.approx(others, rel=relative)


def assert_same_run(ours, theirs, relative):
    assert isinstance(ours.w, np.ndarray)
    close(ours.w, theirs.w, relative)
    assert ours.train_loss == pytest.approx(theirs.train_loss, rel=relative)
    for mine, others in zip(ours.history, theirs.history, strict=True):
        for key in ("running_loss", "test_loss", "test_accuracy"):
            assert alike(mine.get(key), others.get(key), 10 * relative), key
    assert ours.metrics.keys() == theirs.metrics.keys()
    for key, value in theirs.metrics.items():
        assert alike(ours.metrics[key], value, 10 * relative), key
    assert (ours.iterations, ours.rounds, ours.bytes_moved) == (theirs.iterations, theirs.rounds, theirs.bytes_moved)


PAIRS = [(i + j, name, optimizer) for i, name in enumerate(MODELS) for j, optimizer in enumerate(OPTIMIZERS)]
CASES = [(name, optimizer, np.float64) for turn, name, optimizer in PAIRS if turn % 3 == 0]  # every one of both
CASES += [(name, optimizer, np.float32) for name, optimizer in zip(MODELS, cycle(OPTIMIZERS), strict=False)]


@pytest.mark.mpi
@pytest.mark.parametrize(("name", "optimizer", "dtype"), CASES)
def test_training_on_a_device_is_training_on_the_host(name, optimizer, dtype, comm, device, tolerance):
    method = OPTIMIZERS[optimizer]
    theirs = train(comm, name, dtype, "cpu", optimizer=method)
    assert_same_run(train(comm, name, dtype, device, optimizer=method), theirs, 5 * tolerance[dtype])


SETTINGS = {
    "clipped": {"clip_norm": 0.05},
    "clipped averaging": {"clip_norm": 0.05, "optimizer": OPTIMIZERS["average"]},
    "tolerance": {"optimizer": optim.GradientDescent(), "tol": 0.9, "epochs": 6},
    "one row a step": {"optimizer": optim.SGD(0.01), "global_batch_size": 1},
    "own rows": {"shard": local_shard},
    "weights": {"weighted": True},
    "replicated": {"allreduce": "tree"},
    "ring": {"allreduce": "ring"},
    "schedule": {"schedule": optim.Step(3)},
}


@pytest.mark.mpi
@pytest.mark.parametrize("settings", SETTINGS)
def test_settings_of_training_work_on_a_device(settings, comm, device, tolerance):
    options = SETTINGS[settings]
    theirs = train(comm, "mlp tanh dropout", np.float64, "cpu", **options)
    ours = train(comm, "mlp tanh dropout", np.float64, device, **options)
    assert_same_run(ours, theirs, 5 * tolerance[np.float64])


@pytest.mark.mpi
@pytest.mark.parametrize("weighted", [False, True])
def test_rows_of_classes_that_are_not_known_count_as_wrong_on_a_device(weighted, comm, device):
    x, y = make_rows(kind="class")
    other, weight = np.where(np.arange(len(y)) % 5, y, 9), np.arange(len(y)) + 1.0 if weighted else None
    train, filled = encode_labels(whole_shard(x, y, comm), comm=comm)[0], np.where(x > 1, np.nan, x)
    test = whole(Dataset(filled, other, weight), comm.rank, comm.size)
    (test,) = fill_missing(encode(test, train.classes, comm, "nobody has"), comm=comm, by="median")
    model, ends = models.Softmax(6, 3, dtype=np.float64), []
    for chosen in (HOST, device):
        w = chosen.zeros(model.layout.size, model.dtype)
        chosen.put(np.random.default_rng(0).normal(size=w.shape), w)
        ends.append(evaluate(model, w, make_loader(model, test, comm, device=chosen), comm, every_metric=True))
    assert ends[0] == ends[1]
    assert ends[0].loss is None
    assert 0 < ends[0].accuracy < 0.8


@pytest.mark.mpi
def test_early_stopping_keeps_the_best_on_a_device(comm, device, tolerance):
    x, y = make_rows(rows=40, seed=1)
    options = {"valid": whole_shard(x, y, comm), "metric": "accuracy", "patience": 2, "epochs": 8}
    theirs = train(comm, "mlp relu", np.float64, "cpu", **options)
    ours = train(comm, "mlp relu", np.float64, device, **options)
    assert ours.best_epoch == theirs.best_epoch
    close(ours.w, theirs.w, 5 * tolerance[np.float64])


@pytest.mark.mpi
@pytest.mark.parametrize("optimizer", ["adamw", "diloco"])
def test_a_run_on_a_device_stops_in_the_middle_of_an_epoch_and_goes_on(comm, device, tolerance, optimizer, monkeypatch):
    class Interrupt(Callback):
        def on_step(self, run):
            if run.iterations == 5 and run.comm.rank == 0:
                os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr("distai_mpi.train.checkpoint.saver.CHECK_SECONDS", 0.0)
    told, options = [], {"optimizer": OPTIMIZERS[optimizer], "epochs": 5, "allreduce": "ring"}
    straight = train(comm, "mlp tanh", np.float64, device, **options)
    folder = comm.bcast_object(tempfile.mkdtemp() if comm.rank == 0 else None)
    try:
        saved = Checkpoint(folder, tell=lambda *words: told.append(words))
        stopped = train(comm, "mlp tanh", np.float64, device, checkpoint=saved, callbacks=[Interrupt()], **options)
        assert stopped.status == "interrupted"
        assert 5 <= stopped.iterations < straight.iterations
        resumed = train(comm, "mlp tanh", np.float64, device, checkpoint=replace(saved, resume=True), **options)
    finally:
        comm.barrier()
        if comm.rank == 0:
            shutil.rmtree(folder)
    assert_same_run(resumed, straight, tolerance[np.float64])


# --- collectives of device vectors


@pytest.mark.mpi
@pytest.mark.parametrize("algorithm", ["native", "ring", "tree", "auto"])
def test_collectives_take_device_vectors(algorithm, comm, device):
    n = 1000
    comm.empty(n, np.float64)  # that there are vectors which `auto` may find
    mine = np.random.default_rng(comm.rank).normal(size=n)
    total = mine.copy()
    comm.allreduce(total, algorithm)
    owners = comm.ownership(n, np.float64, algorithm)
    part = owners.slices[comm.rank]
    there = on_device(device, mine)
    comm.allreduce(there, algorithm)
    np.testing.assert_array_equal(as_host(there), total)
    there = on_device(device, mine)
    owned = comm.reduce_scatter(there, owners, algorithm)
    np.testing.assert_allclose(as_host(owned), total[part], rtol=1e-13, atol=1e-14)
    assert device_of(owned) is device_of(there)
    owned *= 2.0  # a view: what is handed round is what was written here
    comm.allgather(there, owners, algorithm)
    np.testing.assert_allclose(as_host(there), 2 * total, rtol=1e-13, atol=1e-13)
    comm.bcast(there := on_device(device, mine), root=comm.size - 1)
    np.testing.assert_array_equal(as_host(there), np.random.default_rng(comm.size - 1).normal(size=n))
    with pytest.raises(ValueError, match="host memory"):
        comm.gatherv(there, [n] * comm.size, None)
    sums = comm.sum([1.0, square(on_device(device, mine))])
    np.testing.assert_allclose(sums, comm.sum([1.0, mine @ mine]), rtol=1e-13)


# --- what travels: of the pretended device alone


class Watch(Callback):
    """The transfers of every step, and of nothing else."""

    def __init__(self, device):
        self.device, self.steps = device, []

    def on_start(self, run):
        self.device.transfers.clear()

    def on_step(self, run):
        self.steps.append(self.device.transfers[:])
        self.device.transfers.clear()


@pytest.mark.mpi
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("allreduce", ["native", "tree"])
def test_a_step_moves_its_batch_and_the_gradient_and_nothing_else(allreduce, weighted, comm):
    device = FakeDevice()
    watch = Watch(device)
    options = {"epochs": 1, "global_batch_size": 8 * comm.size, "test": None, "callbacks": [watch]}
    train(comm, "mlp relu dropout", np.float32, device, allreduce=allreduce, weighted=weighted, **options)
    model = MODELS["mlp relu dropout"](np.float32)
    n = model.layout.size
    owners = comm.ownership(n, np.float32, allreduce)
    part = owners.slices[comm.rank]
    float32, int64 = np.dtype(np.float32), np.dtype(np.int64)
    exchange = []
    if comm.size > 1 and owners.replicated:
        exchange = [("down", n), ("up", n)]
    elif comm.size > 1:
        own = part.stop - part.start
        others = [("up", length) for length in (part.start, n - part.stop) if length]
        exchange = [("down", n), ("up", own), ("down", own), *others]
    batch = [("up", (8, 6), float32), ("up", (8,), int64), *([("up", (8,), float32)] if weighted else [])]
    expected = batch + [(way, (length,), float32) for way, length in exchange]
    assert watch.steps[: 53 // (8 * comm.size)] == [expected] * (53 // (8 * comm.size))
    assert device.synchronized == 1  # an epoch


def test_staging_keeps_one_buffer_for_each_dtype(device):
    from distai_mpi.comm.staging import Staging

    staging = Staging()
    x = on_device(device, np.arange(10.0))
    first = staging.down(x, slice(0, 10))
    second = staging.down(x[:6], slice(2, 4))
    assert np.shares_memory(first, second)
    np.testing.assert_array_equal(second[2:4], [2.0, 3.0])
    staging.up(second * 10, x[:6], [slice(2, 3), slice(4, 4)])
    np.testing.assert_array_equal(as_host(x)[:4], [0.0, 1.0, 20.0, 3.0])
    host = np.arange(3.0)
    assert staging.down(host, slice(0, 3)) is host


# --- the pretended device itself


ACCIDENTS = {
    "np.asarray": lambda x: np.asarray(x),
    "np.array": lambda x: np.array([1.0, x[0]]),
    "a function of NumPy": lambda x: np.sum(x),
    "a ufunc of NumPy": lambda x: np.tanh(x),
    "an output of NumPy": lambda x: np.add(np.ones(3), 1, out=x),
    "a NumPy operand": lambda x: x + np.ones(3),
    "a NumPy operand, reflected": lambda x: np.ones(3) * x,
    "a NumPy array of shape ()": lambda x: x * np.array(2.0),
    "in place with NumPy": lambda x: x.__iadd__(np.ones(3)),
    "into NumPy": lambda x: np.ones(3).__setitem__(slice(None), x),
    "from NumPy": lambda x: x.__setitem__(slice(None), np.ones(3)),
    "an index of NumPy": lambda x: x[np.array([0, 1])],
    "np.copyto": lambda x: np.copyto(np.ones(3), x),
    "float": lambda x: float(x[0]),
    "int": lambda x: int(x[0]),
    "bool": lambda x: bool(x[0] > 0),
    "if": lambda x: 1 if x[0] > 0 else 2,
    "iteration": lambda x: list(x),
    "unpacking": lambda x: (lambda *parts: parts)(*x),
    "in": lambda x: 1.0 in x,
    "item": lambda x: x[0].item(),
    "tolist": lambda x: x.tolist(),
    "format": lambda x: f"{x[0]:.3f}",
    "writeable": lambda x: setattr(x.flags, "writeable", False),
    "max of nothing": lambda x: namespace(x).max(x[:0].reshape(0, 1), axis=1),
    "dot into another dtype": lambda x: namespace(x).dot(x, x, out=namespace(x).zeros((), np.float32)),
}


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_hidden_copies_fail_on_the_pretended_device(accident):
    x = on_device(FakeDevice(), np.array([1.0, 2.0, 3.0]))
    with pytest.raises((HiddenTransfer, TypeError, ValueError, AttributeError)):
        ACCIDENTS[accident](x)
    np.testing.assert_array_equal(as_host(x), [1.0, 2.0, 3.0])


def test_the_pretended_device_offers_what_cupy_has():
    cupy = pytest.importorskip("cupy", reason="not available: CuPy")
    assert [name for name in FUNCTIONS if not hasattr(cupy, name)] == []
    methods = [name for name in vars(FakeArray) if not name.startswith("_") and name != "memory"]
    assert [name for name in methods if not hasattr(cupy.ndarray, name)] == []


# --- choosing a device


def test_host_arrays_are_at_home():
    x = np.arange(3.0)
    assert device_of(x) is HOST
    assert device_of(x[1]) is HOST
    assert namespace(x) is np
    assert as_host(x) is x
    out = np.empty(3)
    HOST.get(x, out)
    np.testing.assert_array_equal(out, x)
    assert not HOST.read_only(x).flags.writeable
    free, total = HOST.memory()
    assert 0 < free <= total


def stand_in_cupy(monkeypatch, gpus, used):
    """A module called cupy with so many devices; an exception in place of a number is raised."""

    class CUDARuntimeError(RuntimeError):
        pass

    def count():
        if gpus is None:
            raise CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
        return gpus

    runtime = types.SimpleNamespace(getDeviceCount=count, CUDARuntimeError=CUDARuntimeError)
    choice = lambda index: types.SimpleNamespace(use=lambda: used.append(index))  # noqa: E731
    cupy, cupyx = types.ModuleType("cupy"), types.ModuleType("cupyx")
    cupy.cuda, cupy.ndarray, cupyx.empty_pinned = types.SimpleNamespace(runtime=runtime, Device=choice), Watch, np.empty
    cupy.__spec__ = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "cupyx", cupyx)
    monkeypatch.setattr(backend, "_BY_TYPE", {})


@pytest.mark.parametrize(("local_rank", "index"), [(0, 0), (1, 1), (2, 0), (5, 1)])
def test_ranks_of_a_node_share_out_its_gpus(local_rank, index, monkeypatch):
    used = []
    stand_in_cupy(monkeypatch, 2, used)
    for name in ("gpu", "auto"):
        assert backend.choose(name, local_rank).name == "gpu"
    assert used == [index, index]


def test_without_cupy_auto_is_the_host_and_gpu_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert backend.choose("auto") is HOST
    with pytest.raises(ConfigError, match=r"distai-mpi\[cuda12\]"):
        backend.choose("gpu")


@pytest.mark.parametrize("gpus", [0, None])
def test_without_a_gpu_auto_is_the_host_and_gpu_says_so(gpus, monkeypatch):
    stand_in_cupy(monkeypatch, gpus, [])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert backend.choose("auto") is HOST
    with pytest.raises(ConfigError, match="no CUDA device"):
        backend.choose("gpu")


def test_unknown_devices_are_refused():
    with pytest.raises(ConfigError, match="tpu"):
        backend.choose("tpu")


class HostModel:
    """A user's model that knows NumPy alone."""

    def __init__(self):
        inner = models.Linear(6, dtype=np.float64)
        self.layout, self.dtype = inner.layout, inner.dtype
        self.init, self.loss_and_grad, self.loss, self.predict = (
            inner.init,
            inner.loss_and_grad,
            inner.loss,
            inner.predict,
        )


@pytest.mark.mpi
def test_a_model_of_the_host_is_not_put_on_a_device(comm, device):
    x, y = make_rows(kind="value")
    data = whole_shard(x, y, comm)
    with pytest.raises(ConfigError, match="HostModel computes on the host alone"):
        fit(HostModel(), data, comm, device=device, epochs=1)
    assert fit(HostModel(), data, comm, device="auto", epochs=1, optimizer=optim.SGD(0.01)).status == "completed"


@pytest.mark.mpi
def test_auto_takes_the_host_where_one_rank_has_no_gpu(comm, monkeypatch):
    from distai_mpi.train import checks

    device = FakeDevice()
    monkeypatch.setattr(checks, "choose", lambda name, rank: HOST if comm.rank == comm.size - 1 else device)
    assert checks.agree_on_device("auto", models.Linear(6), comm) is HOST
    monkeypatch.setattr(checks, "choose", lambda name, rank: device)
    assert checks.agree_on_device("auto", models.Linear(6), comm) is device


def test_the_command_refuses_a_gpu_that_is_not_there_once(mpirun, tmp_path):
    (tmp_path / "cupy.py").write_text("raise ModuleNotFoundError('No module named cupy', name='cupy')\n")
    path = f"{tmp_path}:{sys.path[0]}:{':'.join(p for p in sys.path if p)}"
    words = ("-m", "distai_mpi", "train", "--device", "gpu", "--epochs", "1")
    done = mpirun(2, *words, env={"PYTHONPATH": path})
    assert done.returncode != 0
    assert (done.stdout + done.stderr).count("distai-mpi[cuda12]") == 1
    assert "Traceback" not in done.stderr
