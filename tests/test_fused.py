"""Small steps that are taken in one compiled loop are the plain steps, on ranks that wait for each other."""

import time

import numpy as np
import pytest
from fits import fit
from problems import local_shard, make_rows, uneven, whole_shard

from distai_mpi import models, optim
from distai_mpi.comm import node_barrier
from distai_mpi.data import Dataset, Partition, whole
from distai_mpi.train.gradient import fused

mpi = pytest.mark.mpi
KINDS = {
    "mlp": lambda: models.MLP(6, 3, (8, 5), dropout=0.3, dtype=np.float64),
    "softmax": lambda: models.Softmax(6, 3, dtype=np.float64),
    "no bias": lambda: models.MLP(6, 3, (4,), bias=False, activation="tanh", dtype=np.float64),
}


@pytest.fixture
def taken(monkeypatch):
    """The numbers of steps that were fused."""
    numbers, plain = [], fused.FusedSteps.take

    def take(self, *args):
        numbers.append(args[-2].steps)
        return plain(self, *args)

    monkeypatch.setattr(fused.FusedSteps, "take", take)
    return numbers


def train(comm, shard, size, model=None, optimizer=None, **options):
    model, optimizer = model or KINDS["mlp"](), optimizer or optim.SGD(0.05)
    return fit(model, shard, comm, optimizer=optimizer, epochs=2, global_batch_size=size, seed=4, **options)


def plainly(monkeypatch, *args, **options):
    with monkeypatch.context() as patch:
        patch.setattr(fused, "MOST_ROWS", 0)
        patch.setattr(fused, "MOST_ROWS_ALONE", 0)
        return train(*args, **options)


def agree(comm, ours, plain):
    np.testing.assert_allclose(ours.w, plain.w, rtol=1e-9, atol=1e-12)
    assert ours.iterations == plain.iterations
    for one, other in zip(ours.history, plain.history, strict=True):
        assert one["running_loss"] == pytest.approx(other["running_loss"], rel=1e-9)
    assert len(set(comm.allgather_object(ours.w.tobytes()))) == 1


@mpi
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("l2", [0.0, 0.1])
@pytest.mark.parametrize("size", [1, 2, 5, 16])
def test_fused_steps_are_the_plain_ones(comm, monkeypatch, taken, kind, l2, size):
    """Also where a rank has no row of a step, and with a short last step."""
    x, y = make_rows(rows=67)
    shard = whole_shard(x, y, comm)
    plain = plainly(monkeypatch, comm, shard, size, KINDS[kind](), l2=l2, factors=True)
    assert not taken
    ours = train(comm, shard, size, KINDS[kind](), l2=l2, factors=True)
    few = size <= (fused.MOST_ROWS_ALONE if comm.size == 1 else fused.MOST_ROWS)
    assert sum(taken) == 2 * (67 // size) * few
    agree(comm, ours, plain)
    assert ours.rounds <= plain.rounds
    assert (ours.bytes_moved > 0) == (comm.size > 1)


@mpi
def test_unequal_shards(comm, monkeypatch, taken):
    x, y = make_rows(rows=67)
    shard = whole(Dataset(x, y), comm.rank, comm.size, partition=Partition(tuple(range(1, comm.size + 1))))
    sharded = local_shard(x, y, comm, uneven(67, comm.size))
    train(comm, sharded, 5, factors=True)
    assert not taken  # rows that were shuffled locally are no part of one order
    agree(comm, train(comm, shard, 5, factors=True), plainly(monkeypatch, comm, shard, 5, factors=True))


@mpi
def test_who_waits_long_looks_at_mpi_and_goes_on(comm, monkeypatch, taken):
    """Ranks come late in turn, and nobody spins: the loop is left and entered again in the middle of a step."""
    x, y = make_rows(rows=300)
    shard = whole_shard(x, y, comm)
    plain = plainly(monkeypatch, comm, shard, 2, factors=True)
    monkeypatch.setattr(node_barrier, "YIELDS", 0)
    begin, looks = fused.FusedSteps.take, []

    def late(self, *args):
        if comm.node_barrier is not None:
            monkeypatch.setattr(comm.node_barrier, "_spins", 0)
            monkeypatch.setattr(comm.node_barrier, "_poll", lambda: looks.append(len(taken)))
        time.sleep(0.01 * (len(taken) % comm.size == comm.rank))
        return begin(self, *args)

    monkeypatch.setattr(fused.FusedSteps, "take", late)
    agree(comm, train(comm, shard, 2, factors=True), plain)
    assert looks or comm.size == 1


@mpi
@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": optim.Momentum(0.05)},
        {"half": True, "schedule": type("Half", (optim.Constant,), {"__call__": lambda self, step: 0.5})()},
        {"schedule": optim.Cosine(20)},
        {"clip_norm": 1.0},
        {"size": 17},
        {"weighted": True},
        {"model": type("Own", (models.MLP,), {"loss_and_grad": lambda self, *a: models.MLP.loss_and_grad(self, *a)})},
        {"wrapped": True, "model": type("Own", (models.MLP,), {"grad_of_factors": models.MLP.grad_of_factors})},
        {"large": True, "model": lambda features, *a, **k: models.MLP(features, 3, (1 << 18,), dtype=np.float64)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_is_no_plain_sgd_in_small_steps_is_not_fused(comm, taken, options):
    x, y = make_rows(rows=40)
    options = {name: value for name, value in options.items() if name not in ("half", "wrapped", "large")}
    weight = np.random.default_rng(1).random(40) if options.pop("weighted", False) else None
    kind = options.pop("model", models.MLP)
    shard = whole(Dataset(x, y, weight=weight), comm.rank, comm.size)
    train(comm, shard, options.pop("size", 2), kind(6, 3, (4,), dtype=np.float64), **options)
    assert not taken


@mpi
def test_who_is_traced_fuses_nothing_with_others(comm, taken, tmp_path):
    x, y = make_rows(rows=40)
    shard = whole_shard(x, y, comm)
    train(comm, shard, 2, factors=True, trace=comm.bcast_object(str(tmp_path / "trace.json")))
    assert (sum(taken) > 0) == (comm.size == 1)


@mpi
def test_an_epoch_of_one_step_has_the_rows_of_a_plain_one(comm, monkeypatch, taken):
    x, y = make_rows(rows=4)
    shard = whole_shard(x, y, comm)
    plain = plainly(monkeypatch, comm, shard, 4, factors=True)
    agree(comm, train(comm, shard, 4, factors=True), plain)
    assert taken


@mpi
@pytest.mark.parametrize("refused", [1, 2, 3])
def test_ranks_that_cannot_share_take_plain_steps(comm, monkeypatch, taken, refused):
    """Whichever of the vectors that fused steps need is refused, all ranks take plain steps."""
    from distai_mpi.comm import memory

    x, y = make_rows(rows=40)
    shard = whole_shard(x, y, comm)
    plain = plainly(monkeypatch, comm, shard, 2, factors=True)
    made, make, begin = [], memory._make, fused.FusedSteps.__init__

    def refuse(nbytes):
        made.append(nbytes)
        return "no memory, for once" if len(made) == refused else make(nbytes)

    def init(self, objective):
        with monkeypatch.context() as patch:
            patch.setattr(memory, "_make", refuse)
            begin(self, objective)

    monkeypatch.setattr(fused.FusedSteps, "__init__", init)
    agree(comm, train(comm, shard, 2, factors=True), plain)
    assert bool(taken) == (comm.size == 1)


@mpi
def test_what_rounding_takes_is_not_lost(comm, monkeypatch, taken):
    """Updates far below the last bit of float32 parameters add up as those of plain steps do."""
    x, y = make_rows(rows=400)
    shard, ways = whole_shard(x.astype(np.float32), y, comm), {}
    size = models.MLP(6, 3, (8,)).layout.size
    start = np.random.default_rng(1).standard_normal(size).astype(np.float32)
    monkeypatch.setattr(models.MLP, "init", lambda self, rng: start.astype(self.dtype))
    for dtype in (np.float32, np.float64):
        model = models.MLP(6, 3, (8,), dropout=0.0, dtype=dtype)
        result = fit(model, shard, comm, optimizer=optim.SGD(1e-7), epochs=3, global_batch_size=2, seed=4, factors=True)
        ways[dtype] = result.w.astype(np.float64) - start
    assert taken
    assert np.linalg.norm(ways[np.float32] - ways[np.float64]) < 0.1 * np.linalg.norm(ways[np.float64])


@mpi
def test_parameters_that_a_callback_holds_do_not_change(comm, taken):
    from distai_mpi.train import Callback

    x, y = make_rows(rows=600)
    held = []

    class Hold(Callback):
        def on_step(self, run):
            if held:
                np.testing.assert_array_equal(*held[-1])
            held.append((run.w, run.w.copy()))

    train(comm, whole_shard(x, y, comm), 2, factors=True, callbacks=[Hold()])
    assert len(taken) > 2
