"""Gradients that start to travel during the backward pass: the same training, whatever nodes, stretches and rows."""

import json
import threading
import time

import numpy as np
import pytest
from fits import fit
from problems import local_shard, make_rows, uneven, whole_shard
from test_shared import sent_in_messages

from distai_mpi import models, optim
from distai_mpi.comm import Communicator
from distai_mpi.comm.exchange import overlap
from distai_mpi.errors import ConfigError
from distai_mpi.train.gradient import overlapped

mpi = pytest.mark.mpi


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Small models have stretches, and messages of several pieces, as large ones do."""
    monkeypatch.setattr(overlap, "LEAST_BYTES", 256)
    monkeypatch.setattr(overlap, "PIECE_BYTES", 1024)


def can_be(comm):
    return len(comm.leaders) > 1 and len({len(ranks) for ranks in comm.topology.nodes}) == 1


class Watcher:
    """Sees how a run exchanges gradients."""

    def on_start(self, run):
        self.early = run.training.gradients.overlaps

    def __getattr__(self, name):
        return lambda *args: None


def train(comm, early, shard=None, *, model=None, dtype=np.float64, **options):
    x, y = make_rows(rows=131, features=20)
    options = {"epochs": 2, "global_batch_size": 12, "optimizer": optim.Momentum(0.05), "l2": 0.01} | options
    options = {"allreduce": "hierarchical"} | options
    seen = Watcher()
    result = fit(
        model or models.MLP(20, 3, (24, 16, 9), dropout=0.2, dtype=dtype),
        shard or whole_shard(x.astype(dtype), y, comm),
        comm,
        seed=3,
        factors=False,
        early=early,
        callbacks=[seen],
        **options,
    )
    return result.w, seen.early


def threads():
    """Those that look after sums."""
    return [thread for thread in threading.enumerate() if thread.name == overlap.THREAD]


def compare(comm, **options):
    plain, _ = train(comm, False, **options)
    w, was_early = train(comm, True if can_be(comm) else None, **options)
    assert was_early == can_be(comm)
    assert len(set(comm.allgather_object(w.tobytes()))) == 1
    if len(comm.leaders) <= 2:
        assert w.tobytes() == plain.tobytes()
    np.testing.assert_allclose(w, plain, rtol=1e-12, atol=1e-14)
    assert not threads()


@mpi
@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("least", [256, 1 << 20])
def test_it_is_the_same_training(nodes, monkeypatch, least, clip):
    monkeypatch.setattr(overlap, "LEAST_BYTES", least)
    compare(nodes, clip_norm=clip)


@mpi
def test_ranks_with_few_rows_and_with_none(nodes):
    x, y = make_rows(rows=131, features=20)
    compare(nodes, shard=local_shard(x, y, nodes, uneven(131, nodes.size)))
    compare(nodes, global_batch_size=2)


@mpi
@pytest.mark.parametrize("hidden", [(), (700,)])
def test_one_layer_and_long_ones(nodes, hidden):
    one_layer = models.LinearModel(20, 3, loss="softmax", dtype=np.float64)
    model = models.MLP(20, 3, hidden, dtype=np.float64) if hidden else one_layer
    compare(nodes, model=model, optimizer=optim.Adam(0.01))


@mpi
def test_float16_messages(nodes):
    plain, _ = train(nodes, False, dtype=np.float32, wire="float16")
    w, _ = train(nodes, True if can_be(nodes) else None, dtype=np.float32, wire="float16")
    np.testing.assert_allclose(w, plain, atol=1e-3)
    assert len(set(nodes.allgather_object(w.tobytes()))) == 1


@mpi
def test_as_many_bytes_travel(nodes):
    if not can_be(nodes):
        return
    sent = []
    for wanted in (False, True):
        before = sent_in_messages(nodes)
        train(nodes, wanted, epochs=20)
        sent.append(sent_in_messages(nodes) - before)
    total = nodes.sum(sent)
    assert total[1] == pytest.approx(total[0], rel=0.01)  # one gradient more, before the first step


@mpi
def test_it_is_chosen_by_measurement(nodes, monkeypatch):
    """The slowest rank decides, and all ranks take its choice."""
    last = nodes.rank == nodes.size - 1
    for times, expected in (((1.0, 0.9), True), ((1.0, 0.99), False)):
        of_rank = times if last else (0.1, 0.2)
        monkeypatch.setattr(overlapped.OverlappedGradients, "_seconds", lambda self, w, batch, on, t=of_rank: t[on])
        assert train(nodes, None, epochs=1)[1] == (expected and can_be(nodes))
    monkeypatch.undo()
    _, chosen = train(nodes, None, epochs=1)  # whatever it is, here
    assert len(set(nodes.allgather_object(chosen))) == 1


@mpi
def test_what_cannot_be_is_said(nodes):
    class Own(models.MLP):
        def loss_and_grad(self, w, batch, grad):
            return super().loss_and_grad(w, batch, grad)

    own = Own(20, 3, (24,), dtype=np.float64)
    assert not train(nodes, None, model=own)[1]
    if len(nodes.leaders) == 1:
        assert not train(nodes, True, model=own)[1]
        return
    if not can_be(nodes):
        with pytest.raises(ConfigError, match="overlap: nodes have different numbers of ranks; leave it out"):
            train(nodes, True)
        return
    with pytest.raises(ConfigError, match="does not tell which parts of its gradient are ready"):
        train(nodes, True, model=own)
    with pytest.raises(ConfigError, match="hierarchical or auto, not ring"):
        train(nodes, True, allreduce="ring")
    with pytest.raises(ConfigError, match="local SGD"):
        train(nodes, True, optimizer=optim.LocalSGD(inner=optim.SGD(0.1)))


@mpi
def test_parts_that_are_told_in_another_order(nodes):
    """A model whose batches tell other stretches than its first: what was not told comes in the end."""

    class Odd(models.MLP):
        tells_ready, calls = True, 0

        def loss_and_grad(self, w, batch, grad, on_ready=None):
            told = []
            sums = super().loss_and_grad(w, batch, grad, lambda *stretch: told.append(stretch))
            self.calls += 1
            if on_ready is not None:
                for stretch in told if self.calls < 8 else told[::-1][: self.calls % 4]:
                    on_ready(*stretch)
            return sums

    def odd():
        return Odd(20, 3, (24, 16, 9), dtype=np.float64)

    plain, _ = train(nodes, False, model=odd())
    w, _ = train(nodes, True if can_be(nodes) else None, model=odd())
    np.testing.assert_allclose(w, plain, rtol=1e-12, atol=1e-14)


@mpi
def test_errors_of_the_thread_reach_the_main_one(nodes, monkeypatch):
    if not can_be(nodes):
        return

    def fail(self):
        raise RuntimeError("nothing comes")

    monkeypatch.setattr(overlap.OverlappedReduction, "_receive", fail)
    with pytest.raises(RuntimeError, match="nothing comes"):
        train(nodes, True)
    assert not threads()


def test_short_stretches_are_taken_together():
    told = [(90, 100), (50, 90), (45, 50), (0, 45)]
    assert overlap.merged(told, 100, 1) == told
    assert overlap.merged(told, 100, 20) == [(50, 100), (0, 50)]
    assert overlap.merged(told, 100, 1000) == [(0, 100)]
    for wrong in ([], told[1:], told[:-1], told[::-1], [(0, 50), (50, 100)]):
        assert overlap.merged(wrong, 100, 1) is None


def test_the_flag(run_command, tmp_path):
    x, y = make_rows(rows=60)
    np.savez(tmp_path / "rows.npz", x=x.astype(np.float32), y=y)
    words = ["train", "--data", str(tmp_path / "rows.npz"), "--epochs", "1", "-q", "--json"]
    for nodes, flags, expected in (("1", ["--early"], True), ("1", ["--no-early"], False), ("2", ["--early"], False)):
        done = run_command(2, *words, *flags, env={"DISTAI_NODES": nodes})
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert result["early"] is expected
        assert result["allreduce"] == "hierarchical" or not expected


@pytest.mark.mpi(min_size=2)
def test_a_pass_that_fails_takes_back_what_was_to_come():
    """Without an error of its own, which would hide the pass's; also where some has come; the ranks can go on."""
    from mpi4py import MPI

    size = 300_000
    for pause in (0.0, 0.05):
        with Communicator(MPI.COMM_WORLD, "hierarchical", nodes=[1] * MPI.COMM_WORLD.size) as comm:
            exchange, x = comm.exchange("hierarchical"), comm.empty(size, np.float32)
            sums = overlap.OverlappedReduction(exchange, x, [(size // 2, size), (0, size // 2)])
            sums.ready(size // 2, size)
            time.sleep(pause)
            sums.give_up()
            total = np.ones(5)
            comm.allreduce(total, "ring")
            assert (total == comm.size).all()
