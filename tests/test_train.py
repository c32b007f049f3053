"""Training on ranks: the same as one process would do, step by step; and what a run tells."""

import inspect
import math

import numpy as np
import pytest
from fits import fit
from problems import local_shard, make_rows, uneven, whole_shard

import distai_mpi
from distai_mpi import Objective, models, optim
from distai_mpi.comm import CHOICES
from distai_mpi.data import Batch, Dataset, Permutation, from_local
from distai_mpi.data.streams import stream_key
from distai_mpi.errors import ConfigError, DataError
from distai_mpi.train import Callback, Checkpoint, evaluate
from distai_mpi.train.evaluation import make_loader

mpi = pytest.mark.mpi
pytestmark = pytest.mark.ranks(1, 2, 3, 4)
EPOCHS, SIZE, SEED, L2, LR = 3, 32, 7, 0.01, 0.2  # 203 rows: the last step of an epoch is short


def make_model(dtype=np.float64):
    return models.MLP(6, 3, (8,), dropout=0.3, dtype=dtype)


def batches(x, y, size):
    """Every step's batch of the whole training, for one process."""
    for epoch in range(EPOCHS):
        order = Permutation(len(y), SEED, "shuffle", epoch).positions(0, len(y))
        for first in range(0, len(y), size):
            ids = order[first : first + size]
            yield Batch(x[ids], y[ids], None, ids, first, True, stream_key(SEED, "epoch", epoch))


def mean_gradient(model, w, batch):
    """The gradient of the batch's mean loss and of the penalty, in plain NumPy."""
    grad = np.empty_like(w)
    model.loss_and_grad(w, batch, grad)
    grad /= len(batch.y)
    for low, high in model.layout.decay_ranges(0, w.size):
        grad[low:high] += L2 * w[low:high]
    return grad


def reference(x, y, momentum, size=SIZE):
    """Training written out for one process: every step's gradient and update in plain NumPy."""
    model = make_model()
    w = model.init(np.random.default_rng(SEED))
    velocity = np.zeros_like(w)
    for batch in batches(x, y, size):
        velocity = momentum * velocity + mean_gradient(model, w, batch)
        w = w - LR * velocity
    return w


@mpi
@pytest.mark.parametrize("algorithm", CHOICES)
@pytest.mark.parametrize("name", ["sgd", "momentum"])
def test_training_on_ranks_is_training_on_one(comm, algorithm, name):
    x, y = make_rows()
    optimizer = optim.OPTIMIZERS[name](lr=LR)
    result = fit(
        make_model(),
        whole_shard(x, y, comm),
        comm,
        optimizer=optimizer,
        epochs=EPOCHS,
        global_batch_size=SIZE,
        l2=L2,
        seed=SEED,
        allreduce=algorithm,
    )
    expected = reference(x, y, getattr(optimizer, "momentum", 0.0))
    np.testing.assert_allclose(result.w, expected, rtol=1e-11, atol=1e-12)
    assert result.iterations == EPOCHS * math.ceil(len(y) / SIZE)


def replica(x, y, optimizer):
    """As `reference`, with the optimizer's own step on the whole vector."""
    model = make_model()
    w = model.init(np.random.default_rng(SEED))
    state = optimizer.init(w, model.layout.decay_ranges(0, w.size))
    for batch in batches(x, y, SIZE):
        optimizer.step(w, mean_gradient(model, w, batch), state)
    return w


@mpi
@pytest.mark.parametrize("algorithm", ["native", "tree"])
@pytest.mark.parametrize("name", [*sorted(set(optim.OPTIMIZERS) - {"gd"}), "ftrl with l1"])
def test_every_optimizer_updates_slices_as_the_whole(comm, algorithm, name):
    x, y = make_rows()
    optimizer = optim.FTRL(0.05, l1=0.3, l2=0.1) if name == "ftrl with l1" else optim.OPTIMIZERS[name](lr=0.05)
    result = fit(
        make_model(),
        whole_shard(x, y, comm),
        comm,
        optimizer=optimizer,
        epochs=EPOCHS,
        global_batch_size=SIZE,
        l2=L2,
        seed=SEED,
        allreduce=algorithm,
    )
    expected = replica(x, y, optimizer)
    np.testing.assert_allclose(result.w, expected, rtol=1e-9, atol=1e-10)
    np.testing.assert_array_equal(result.w == 0, expected == 0)


@mpi
def test_float32_stays_close_to_float64(comm):
    x, y = make_rows()
    results = [
        fit(
            make_model(dtype),
            whole_shard(x, y, comm),
            comm,
            optimizer=optim.Momentum(LR / 4),
            epochs=2,
            global_batch_size=SIZE,
            seed=SEED,
        )
        for dtype in (np.float32, np.float64)
    ]
    assert results[0].w.dtype == np.float32
    assert results[0].train_loss == pytest.approx(results[1].train_loss, rel=1e-4)


@mpi
def test_one_row_steps_equal_the_reference_fused_or_not(comm):
    x, y = make_rows(rows=57)
    result = fit(
        make_model(),
        whole_shard(x, y, comm),
        comm,
        optimizer=optim.SGD(LR),
        epochs=EPOCHS,
        global_batch_size=1,
        l2=L2,
        seed=SEED,
    )
    np.testing.assert_allclose(result.w, reference(x, y, 0.0, size=1), rtol=1e-9, atol=1e-11)
    assert result.iterations == EPOCHS * 57


@mpi
@pytest.mark.parametrize("rows", [2, 203])
def test_shards_of_any_length_train_under_the_local_shuffle(comm, rows):
    x, y = make_rows(rows=max(rows, 3))
    x, y = x[:rows], y[:rows]
    shard = local_shard(x, y, comm, uneven(rows, comm.size))
    model = models.Softmax(6, 3, dtype=np.float64)
    result = fit(model, shard, comm, optimizer=optim.Momentum(0.1), epochs=30, global_batch_size=SIZE)
    assert result.status == "completed"
    assert result.train_loss < math.log(3) / 2  # of the start, where all classes are equally likely
    weights = comm.allgather_object(result.w)
    assert all((weights[0] == w).all() for w in weights)


@mpi
def test_more_ranks_than_rows_of_a_batch(comm):
    x, y = make_rows(rows=40)
    kwargs = {"optimizer": optim.SGD(LR), "epochs": EPOCHS, "global_batch_size": 2, "l2": L2, "seed": SEED}
    result = fit(make_model(), whole_shard(x, y, comm), comm, **kwargs)
    np.testing.assert_allclose(result.w, reference(x, y, 0.0, size=2), rtol=1e-10, atol=1e-11)


class Recorder(Callback):
    def __init__(self):
        self.calls, self.steps = [], 0

    def on_start(self, run):
        self.calls.append("start")

    def on_step(self, run):
        self.steps += 1
        assert not run.w.flags.writeable

    def on_epoch(self, run, record):
        self.calls.append(record["epoch"])

    def on_end(self, run, result):
        self.calls.append("end")


@mpi
def test_callbacks_and_history_tell_the_run(comm):
    x, y = make_rows()
    recorder = Recorder()
    shard = whole_shard(x, y, comm)
    result = fit(make_model(), shard, comm, test=shard, epochs=3, global_batch_size=SIZE, callbacks=[recorder])
    assert recorder.calls == ["start", 1, 2, 3, "end"]
    assert recorder.steps == result.iterations == 21
    assert [record["epoch"] for record in result.history] == [1, 2, 3]
    assert result.test_loss == result.history[-1]["test_loss"] == pytest.approx(result.train_loss, rel=1e-12)
    assert 0.5 < result.test_accuracy <= 1
    assert comm.allgather_object(result.test_accuracy) == [result.test_accuracy] * comm.size
    assert (result.bytes_moved > 0) == (comm.size > 1)


@mpi
def test_a_run_that_diverges_says_so_on_all_ranks(comm):
    x, y = make_rows(kind="value")
    result = fit(
        models.Linear(6), whole_shard(x, y, comm), comm, optimizer=optim.SGD(1e4), epochs=20, global_batch_size=SIZE
    )
    assert result.status == "diverged"
    assert result.epochs < 20
    assert result.train_loss is None


@mpi
@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"epochs": 0}, "epochs"),
        ({"global_batch_size": 0}, "batch"),
        ({"tol": 1e-3}, "Momentum has no parameter tol"),
        ({"allreduce": "fast"}, "ring"),
        ({"l2": math.nan}, "l2"),
        ({"epochs": 2.5}, "whole number"),
        ({"seed": -1}, "seed"),
        ({"watch": 5.0}, r"Communicator\(comm, watch="),
        ({"state": None}, "give start=state"),
        ({"optimizer": "sgd"}, "optim.Momentum"),
        ({"optimizer": optim.SGD}, "optim.Momentum"),
    ],
)
def test_values_that_cannot_work_are_refused_on_all_ranks(comm, wrong, name):
    x, y = make_rows()
    with pytest.raises(ConfigError, match=name):
        fit(make_model(), whole_shard(x, y, comm), comm, **wrong)


def test_fit_has_at_most_twelve_keywords():
    assert len(inspect.getfullargspec(inspect.unwrap(distai_mpi.fit)).kwonlyargs) <= 12


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", lambda rank: 1 + rank),
        ("global_batch_size", lambda rank: 20 + rank),
        ("optimizer", lambda rank: optim.SGD(0.1 * (1 + rank))),
        ("checkpoint", lambda rank: Checkpoint("one" if rank else "other")),
    ],
)
def test_ranks_that_want_different_things_are_told_so(comm, name, value):
    x, y = make_rows()
    with pytest.raises(ConfigError, match=f"{name} is .* on rank 0 and .* on rank 1"):
        fit(make_model(), whole_shard(x, y, comm), comm, **{name: value(comm.rank)})


@mpi
def test_functions_among_the_settings_are_no_difference(comm):
    """Their addresses differ between ranks."""
    x, y = make_rows()
    schedule = optim.WarmUp(2, lambda step: 1 / (1 + step))
    result = fit(make_model(), whole_shard(x, y, comm), comm, schedule=schedule, epochs=1, global_batch_size=SIZE)
    assert result.status == "completed"


class Mean:
    """A user's own model without a base class: the mean of y, by squared loss."""

    def __init__(self):
        from distai_mpi.params import Layout

        self.layout = Layout.of([("mean", (1,), False)])
        self.dtype = self.target_dtype = np.dtype(np.float64)

    def init(self, rng):
        return np.zeros(1)

    def loss_and_grad(self, w, batch, grad):
        grad[:] = (w - batch.y).sum()
        return self.loss(w, batch)

    def loss(self, w, batch):
        return 0.5 * float(((w - batch.y) ** 2).sum()), float(len(batch.y))

    def predict(self, w, x):
        return np.full(len(x), w[0])


@mpi
def test_a_users_own_model_trains(comm):
    x, y = make_rows(kind="value")
    shard = whole_shard(x, y, comm)
    result = fit(Mean(), shard, comm, test=shard, optimizer=optim.GradientDescent(0.5), epochs=60)
    assert result.w[0] == pytest.approx(y.mean(), rel=1e-10)
    assert result.test_loss == pytest.approx(0.5 * y.var(), rel=1e-9)
    assert result.test_accuracy is None


class Weighty(Mean):
    """Its rows weigh 10 each."""

    def loss(self, w, batch):
        loss, rows = super().loss(w, batch)
        return 10 * loss, 10 * rows


@mpi
def test_weights_that_training_would_ignore_are_refused(comm):
    x, y = make_rows(kind="value")
    with pytest.raises(ConfigError, match="weight"):
        fit(Weighty(), whole_shard(x, y, comm), comm)


@mpi
def test_real_targets_reach_a_model_that_says_nothing_of_them(comm):
    x, y = make_rows(kind="value")
    model = Mean()
    del model.target_dtype
    result = fit(model, whole_shard(x, y, comm), comm, optimizer=optim.GradientDescent(0.5), epochs=60)
    assert result.w[0] == pytest.approx(y.mean(), rel=1e-10)


@mpi
@pytest.mark.parametrize(
    ("model", "kind", "word"),
    [
        (lambda: models.MLP(6, 2), "class", "labels 0 to 1"),
        (lambda: models.MLP(6, 3), "value", "whole numbers"),
        (lambda: models.Logistic(6), "class", "0 and 1"),
        (lambda: models.Linear(5), "value", "5"),
    ],
)
def test_data_that_does_not_fit_the_model_is_refused_before_any_kernel_sees_it(comm, model, kind, word):
    x, y = make_rows(kind=kind)
    shard = whole_shard(x, y, comm)
    with pytest.raises(DataError, match=word):
        fit(model(), shard, comm)
    with pytest.raises(DataError, match=word):
        Objective(model(), make_loader(model(), shard, comm), comm)
    with pytest.raises(DataError, match=word):
        evaluate(model(), np.zeros(model().layout.size, np.float32), make_loader(model(), shard, comm), comm)
    x, y = make_rows(kind={"value": "value", "class": "binary"}[kind])
    wrong = make_rows(features=7)
    with pytest.raises(DataError):
        fit(model(), whole_shard(x, y, comm), comm, test=whole_shard(*wrong, comm))


@mpi
@pytest.mark.parametrize("model", [lambda: models.Linear(6), lambda: models.MLP(6, 3, dropout=0.0)])
def test_a_run_that_diverges_in_its_last_step_says_so(comm, model):
    x, y = make_rows(kind="value" if isinstance(model(), models.Linear) else "class")
    result = fit(model(), whole_shard(x, y, comm), comm, optimizer=optim.GradientDescent(1e38), epochs=1)
    assert result.status == "diverged"
    assert result.train_loss is None


@mpi
def test_rows_that_ranks_hold_already(comm):
    x, y = make_rows()
    counts = uneven(len(y), comm.size)
    start = sum(counts[: comm.rank])
    mine = slice(start, start + counts[comm.rank])
    shard = from_local(Dataset(x[mine], y[mine]), comm)
    assert shard.counts == tuple(counts)
    assert shard.labels.classes == 3
    result = fit(models.Softmax(6, 3), shard, comm, epochs=3, global_batch_size=SIZE)
    assert result.status == "completed"
    broken = x.copy()
    broken[-1, 2] = np.nan  # on the last rank alone
    with pytest.raises(DataError, match="nan"):
        from_local(Dataset(broken[mine], y[mine]), comm)
