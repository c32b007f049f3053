"""Rows that follow the ranks' speeds while a run goes on; times are simulated, or planted sleeps."""

import json
import sys

import numpy as np
import pytest
from commands import run_here
from fits import fit
from problems import local_shard, make_rows, whole_shard

from distai_mpi import Balance, models, optim
from distai_mpi.data import Dataset, Partition, repartition, whole
from distai_mpi.data.partition import capped_counts
from distai_mpi.errors import ConfigError
from distai_mpi.train import Callback, Checkpoint
from distai_mpi.train.balance import _arriving, rows_that_fit
from distai_mpi.train.speeds import LookPolicy, SpeedWindow, better

mpi = pytest.mark.mpi


def simulate(steps, seconds, noise, seed, rows=192, caps=None):
    """Steps of ranks whose rows take ``seconds(step)`` each; at which steps rows changed, and times to the ideal."""
    rng, ranks = np.random.default_rng(seed), len(seconds(0))
    counts, asked, changed, times = Partition.even(ranks).counts(rows), None, [], []
    windows, policy = [SpeedWindow() for _ in range(ranks)], LookPolicy()
    for step in range(steps):
        of_row = np.array(seconds(step))
        times.append((of_row * counts).max() * (1 / of_row).sum() / rows)
        spent = of_row * counts * np.maximum(0.05, 1 + noise * rng.normal(size=ranks))
        for window, time, count in zip(windows, spent, counts, strict=True):
            window.add(time, count)
        due = policy.step()
        if asked is not None:
            change = policy.decide(better(asked, counts, caps or (rows,) * ranks))
            asked = None
            if change is not None:
                counts = change.partition.counts(rows)
                changed.append(step)
                policy.reset()
                for window in windows:
                    window.clear()
        elif due:
            asked = np.array([window.summary() for window in windows])
    return changed, times, counts


@pytest.mark.parametrize("turn", [60, 67, 75])
def test_a_rank_that_turns_slower_is_relieved_within_40_steps(turn):
    for noise, others in ((0.0, [1.0]), (0.03, [1.0, 1.0]), (0.1, [1.0, 1.0])):

        def seconds(step, others=others):
            return [*others, 3.0 if step >= turn else 1.0]

        changed, times, _ = simulate(160, seconds, noise, turn)
        assert len(changed) == 1
        assert max(times[turn + 40 :]) <= 1.15
        assert max(times[:turn]) == 1.0
    changed, times, counts = simulate(300, lambda step: [1.0, 1.0, 3.0 if 60 <= step < 150 else 1.0], 0.03, turn)
    assert len(changed) == 2, "there and back"
    assert max(times[190:]) <= 1.15
    assert max(counts) - min(counts) <= 6


@pytest.mark.parametrize("noise", [0.1, 0.2])
def test_noise_moves_nothing(noise):
    assert simulate(1000, lambda _: [1.0] * 3, noise, 1)[0] == []
    changed, times, _ = simulate(1000, lambda _: [1.0, 1.0, 3.0], noise, 2)
    assert len(changed) == 1
    assert times[-1] <= 1.15


def test_small_differences_show_in_long_windows():
    changed, times, _ = simulate(400, lambda _: [1.0, 1.0, 1.4], 0.1, 3)
    assert 1 <= len(changed) <= 2
    assert times[-1] <= 1.1


def test_memory_is_a_second_limit():
    assert capped_counts((1, 1, 2), 100, (100, 100, 100)) == (25, 25, 50)
    assert capped_counts((1, 1, 2), 100, (100, 100, 30)) == (35, 35, 30)
    assert capped_counts((1, 1, 2), 100, (30, 100, 30)) == (30, 40, 30)
    assert capped_counts((1, 3, 6), 100, (100, 10, 10)) == (80, 10, 10)
    assert capped_counts((0, 1, 1), 7, (9, 3, 4)) == (0, 3, 4)
    assert capped_counts((2.0, 1.0), 0, (0, 0)) == (0, 0)
    rng = np.random.default_rng(0)
    for _ in range(50):  # water-filling: one level for all that are not full
        weights, caps = rng.uniform(0.1, 9, 5), rng.integers(1, 400, 5)
        rows = int(rng.integers(0, caps.sum() + 1))
        found = np.array(capped_counts(weights.tolist(), rows, caps.tolist()))
        assert found.sum() == rows
        assert (found <= caps).all()
        part = found < caps
        if part.any():
            assert (found / weights)[part].max() <= ((found + 1) / weights)[part].min() + 1e-9
            assert ((found - 1) / weights)[~part].max(initial=0) <= ((found + 1) / weights)[part].min()
    with pytest.raises(ConfigError, match="memory for 7 rows of 8"):
        capped_counts((0, 1, 1), 8, (9, 3, 4))
    assert rows_that_fit(1000, 10, 128, 5000) == 100
    assert rows_that_fit(1280, 10, 128, 5000) == 5000, "block by block"
    assert rows_that_fit(1000, 10, 128, 60) == 60
    assert _arriving((5, 5, 0), (2, 4, 4)) == [0, 3, 4]
    _, times, counts = simulate(200, lambda _: [1.0, 1.0, 3.0], 0.0, 0, caps=(70, 192, 192))
    assert counts[0] == 70
    assert times[-1] < times[0]


def test_the_benchmark_shows_windows(tmp_path):
    from distai_mpi.cli.bench.shards import windows

    found = windows([1.0] * 20 + [3.0] * 15 + [2.1] * 25, 20, [1.0, 2.0])
    assert [window["to_ideal"] for window in found["windows"]] == [1, 1, 1.5, pytest.approx(1.275), 1.05, 1.05]
    assert found["steps_until_near"] == 20
    assert windows([3.0] * 20, 10, [1.0, 2.0])["steps_until_near"] is None
    flags = ("--ranks", 2, "--delay", 0.01, "--turn", 4, "--steps", 12, "--global-batch-size", 16)
    done = run_here("bench", "shards", *flags, "--json", tmp_path / "found.json")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "found.json").read_text())
    assert len(report["windows"]) == 2
    assert report["ideal_seconds"] == pytest.approx([16e-5 / 2, 16e-5 / (4 / 3)])
    assert "rows changed" in done.stdout


def test_wrong_settings():
    for given in ({"memory": 0}, {"row_bytes": 1.5}):
        with pytest.raises(ConfigError, match=f"{next(iter(given))} must be a whole number"):
            Balance(**given)


class Ticking:
    """Stands in for the module `time` where steps are timed: only the rows' planted seconds pass."""

    now = 0.0

    def perf_counter(self):
        return self.now


class Turning:
    """``model`` whose rows take a second, and three from a given call on."""

    def __init__(self, model, clock, turn=10**9):
        self.model, self.clock, self.turn, self.calls = model, clock, turn, 0

    def __getattr__(self, name):
        return getattr(self.model, name)

    def _pass(self, batch):
        self.calls += 1
        self.clock.now += len(batch.y) * (3 if self.calls > self.turn else 1)

    def loss_and_grad(self, w, batch, grad, on_ready=None):
        self._pass(batch)
        return self.model.loss_and_grad(w, batch, grad, on_ready)

    def loss_and_factors(self, w, batch, factors):
        self._pass(batch)
        return self.model.loss_and_factors(w, batch, factors)

    def grad_of_factors(self, *given):  # defined together, or factors are not those of this class
        return self.model.grad_of_factors(*given)


class Seen(Callback):
    """Notes how many rows each rank takes."""

    def __init__(self):
        self.counts, self.shards = [], None

    def on_step(self, run):
        self.counts.append(tuple(run.loader.rows_of_step(rank) for rank in range(run.loader.ranks)))

    def on_end(self, run, result):
        self.shards = run.loader.shard.partition


@pytest.fixture
def clock(monkeypatch):
    made = Ticking()
    monkeypatch.setattr(sys.modules["distai_mpi.train.steps"], "time", made)
    return made


def trained(comm, clock, turn, shuffle="global", size=60, weights=None, **options):
    """A net with dropout in float64 whose last rank turns slower; its result, and the rows of the steps."""
    x, y = make_rows(900)
    weight = None if shuffle == "global" else np.linspace(0.5, 2, 900)
    counts = [900 * (rank + 1) // comm.size - 900 * rank // comm.size for rank in range(comm.size)]
    rows = whole_shard(x, y, comm) if shuffle == "global" else local_shard(x, y, comm, counts, weight)
    if weights is not None:
        rows = repartition(rows, Partition(tuple(weights)), comm)
    model = Turning(models.MLP(6, 3, (8,), dropout=0.2, dtype=np.float64), clock)
    model.turn = turn if comm.rank == comm.size - 1 else 10**9
    seen, told = Seen(), []
    balance = [] if turn is None else [Balance(tell=lambda *words: told.append(words))]
    model.turn = 10**9 if turn is None else model.turn
    options = {"epochs": 4, "optimizer": optim.Adam(lr=0.01)} | options
    options["callbacks"] = [seen, *balance, *options.get("callbacks", ())]
    return fit(model, rows, comm, global_batch_size=size, **options), seen, told


@mpi
@pytest.mark.ranks(2, 3)
def test_the_result_does_not_depend_on_what_moved(comm, clock, shared_path):
    even, _, _ = trained(comm, clock, None)
    assert even.rebalanced is None
    trace, ideal = shared_path / "trace.json", Partition((3.0,) * (comm.size - 1) + (1.0,)).counts(60)
    ways = ({"trace": trace}, {"factors": True}, {"factors": True, "allreduce": "shared"})
    for way in ways if comm.size == 2 else ways[:2]:
        moved, seen, told = trained(comm, clock, 6, **way)
        (entry,) = moved.rebalanced
        assert entry["step"] <= 6 + 40
        assert f"rank {comm.size - 1} computed" in entry["why"]
        assert set(comm.allgather_object(json.dumps(moved.rebalanced))) == {json.dumps(moved.rebalanced)}
        assert seen.counts[0] == Partition.even(comm.size).counts(60)
        assert seen.counts[-1] == ideal == seen.shards.counts(60)
        assert len(told) == (comm.rank == 0)
        np.testing.assert_allclose(moved.params, even.params, rtol=1e-12, atol=1e-12)
        assert moved.train_loss == pytest.approx(even.train_loss, rel=1e-12)
        if comm.rank == 0 and "trace" in way:
            marks = [event for event in json.loads(trace.read_text())["traceEvents"] if event["ph"] == "i"]
            assert any(event["name"] == f"rows by rank changed: {entry['why']}" for event in marks)


@mpi
@pytest.mark.ranks(2)
def test_a_checkpoint_keeps_what_moved(comm, clock, shared_path):
    folder = str(shared_path / "kept")
    whole_run, _, _ = trained(comm, clock, 6)
    trained(comm, clock, 6, checkpoint=Checkpoint(folder, every=1), epochs=2)
    told = []
    again = Checkpoint(folder, every=1, resume=True, tell=lambda message, _: told.append(message))
    resumed, _, _ = trained(comm, clock, 0, checkpoint=again)
    assert len(resumed.rebalanced) == 2, "the resumed run found the ranks anew"
    assert resumed.rebalanced[0] == whole_run.rebalanced[0]
    assert comm.rank or "shards" in told[0]
    np.testing.assert_allclose(resumed.params, whole_run.params, rtol=1e-12, atol=1e-12)


@mpi
@pytest.mark.ranks(2, 3)
def test_rows_that_belong_to_ranks_move_after_an_epoch(comm, clock, shared_path):
    folder = str(shared_path / "local")
    result, seen, _ = trained(comm, clock, 3, "local", epochs=3, checkpoint=Checkpoint(folder, every=1))
    (entry,) = result.rebalanced
    assert entry["step"] == 15
    assert entry["seconds"] > 0
    counts = comm.allgather_object(seen.counts[-1])[0]
    assert counts[-1] < counts[0]
    again = Checkpoint(folder, every=1, resume=True, tell=lambda *_: None)
    resumed, seen, _ = trained(comm, clock, 0, "local", epochs=4, checkpoint=again, weights=entry["weights"])
    assert (resumed.epochs, resumed.rebalanced, seen.shards.weights) == (4, [entry], tuple(entry["weights"]))
    even, _, _ = trained(comm, clock, None, "local", epochs=3)
    assert result.train_loss == pytest.approx(even.train_loss, rel=0.2), "the same rows, in other batches"


@mpi
@pytest.mark.ranks(2)
def test_a_loader_that_got_rows_hands_out_what_a_new_one_does(comm):
    from distai_mpi.train.evaluation import make_loader

    x, y = make_rows(100)
    model = models.Softmax(6, 3, dtype=np.float64)
    for shard in (whole_shard(x, y, comm), local_shard(x, y, comm, [100, 0], np.arange(100) + 1.0)):
        loader = make_loader(model, shard, comm, 20)
        partition = Partition((1.0, 3.0))
        new = repartition(shard, partition, comm)
        loader.repartition(partition) if shard.shuffle == "global" else loader.move(new)
        expected = make_loader(model, new, comm, 20)
        assert loader.shard.counts == new.counts
        for mine, other in zip(loader.epoch(3), expected.epoch(3), strict=True):
            assert mine[0] == other[0]
            for batch, twin in zip(mine[1], other[1], strict=True):
                np.testing.assert_array_equal(batch.x, twin.x)
                np.testing.assert_array_equal(batch.ids, twin.ids)
                assert batch.position == twin.position
                assert shard.shuffle == "global" or (batch.weight == twin.weight).all()
        pairs = zip(loader.sequential(), expected.sequential(), strict=True)
        assert all((mine.y == other.y).all() for mine, other in pairs)


@mpi
@pytest.mark.ranks(2)
def test_where_nothing_can_follow_it_is_said(comm):
    x, y = make_rows(60)
    told = []
    asked = Balance(tell=lambda message, _: told.append(message))
    shard = whole(Dataset(x, y), comm.rank, comm.size)
    result = fit(models.Softmax(6, 3), shard, comm, optimizer=optim.LBFGS(max_iter=2), callbacks=[asked])
    assert result.rebalanced == []
    assert told == ["rows do not follow the ranks' speeds: full-batch solvers and averaging keep the shards"
                    " that they began with"][: comm.rank == 0]  # fmt: skip


@mpi
@pytest.mark.ranks(2)
def test_the_command_follows_speeds(shared_folder, shared_path):
    x, y = make_rows(300)
    rows = shared_folder(lambda folder: np.savez(folder / "rows.npz", x=x, y=y))
    flags = ("--data", "rows.npz", "--epochs", 2, "--model", "softmax", "--global-batch-size", 64, "-q", "--out")
    for shards, kind in (("speed", list), ("even", type(None))):
        done = run_here("train", *flags, shared_path / shards, "--shards", shards, cwd=rows)
        assert done.returncode == 0, done.stderr
        assert isinstance(json.loads((shared_path / shards / "result.json").read_text())["rebalanced"], kind)
