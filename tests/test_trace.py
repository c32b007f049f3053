"""The recorder of phases, the clocks of nodes, and what a traced run leaves behind."""

import gzip
import json
import os
import signal
import time
from collections import defaultdict
from itertools import pairwise

import numpy as np
import pytest
from fits import fit
from problems import local_shard, make_rows, uneven, whole_shard

from distai_mpi import models, optim
from distai_mpi.comm import Communicator
from distai_mpi.comm.clocks import Offset, offsets
from distai_mpi.comm.wire import MPIWire
from distai_mpi.errors import ConfigError
from distai_mpi.trace import (
    COMPUTE,
    EVALUATE,
    EXCHANGE,
    LEFT_OUT,
    OTHER,
    PHASES,
    REDUCE,
    STEP,
    UPDATE,
    WAIT,
    Recorder,
    during,
)
from distai_mpi.train import Callback, Checkpoint
from distai_mpi.train.tracing import TICK, _Clock, balance

mpi = pytest.mark.mpi
EPOCHS, SIZE, STEPS = 2, 32, 7  # 203 rows


class Clock:
    """Goes on by random nanoseconds whenever it is looked at."""

    def __init__(self, seed):
        self.rng, self.now = np.random.default_rng(seed), 0

    def __call__(self):
        self.now += int(self.rng.integers(1, 1000))
        return self.now


def recorded(steps, limit, seed=0):
    """A recorder after random steps, and what it was told, as (phase, begin, end)."""
    clock, rng, told = Clock(seed), np.random.default_rng(seed + 1), []
    recorder = Recorder(limit, clock)
    since, phase = clock.now, OTHER

    def heard(following):
        nonlocal since, phase
        told.append((phase, since, clock.now))
        since, phase = clock.now, following

    for number in range(steps):
        recorder.step(number)
        heard(COMPUTE)
        for following in rng.integers(1, OTHER, rng.integers(1, 6)).tolist():
            assert recorder.mark(following) == phase
            heard(following)
        recorder.mark(OTHER)
        heard(OTHER)
    recorder.close()
    heard(None)
    return recorder, told


@pytest.mark.parametrize(("steps", "limit"), [(0, 100), (1, 100), (50, 10_000), (3000, 100_000), (500, 40), (9, 1)])
def test_sums_are_of_all_phases_whatever_is_left_out(steps, limit):
    recorder, told = recorded(steps, limit)
    sums = np.zeros(len(PHASES))
    for phase, begin, end in told:
        sums[phase] += (end - begin) * 1e-9
    assert recorder.sums[:OTHER] == pytest.approx(sums[:OTHER], rel=1e-12)
    # in the midst of other the recorder looks at the clock for itself, when it puts something away
    assert recorder.sums.sum() == pytest.approx(sums.sum(), rel=1e-12)


def test_rows_are_what_was_told():
    recorder, told = recorded(3000, 100_000)
    rows = recorder.rows()
    phases = [(kind, begin, end) for kind, _, begin, end in rows.tolist() if kind != STEP]
    assert phases == [event for event in told if event[0] != OTHER]
    steps = rows[rows[:, 0] == STEP]
    np.testing.assert_array_equal(steps[:, 1], np.arange(3000))
    firsts = [begin for phase, begin, _ in told if phase == COMPUTE and begin in set(steps[:, 2].tolist())]
    assert firsts == steps[:, 2].tolist()
    ends = [begin for phase, begin, _ in told if phase == OTHER][1:]
    assert ends == steps[:, 3].tolist()
    of_first = rows[1 : 1 + int((phases_of(rows, 0)).sum())]
    assert of_first[-1, 3] == steps[0, 3]


def phases_of(rows, number):
    """Which rows are the phases of a step."""
    step = rows[(rows[:, 0] == STEP) & (rows[:, 1] == number)][0]
    return (rows[:, 0] != STEP) & (rows[:, 2] >= step[2]) & (rows[:, 3] <= step[3])


@pytest.mark.parametrize("limit", [40, 200, 999, 5000])
def test_a_long_run_keeps_its_first_and_its_last_steps(limit):
    total = 5000
    recorder, told = recorded(total, limit, seed=limit)
    rows = recorder.rows()
    assert limit / 4 < len(rows) <= limit + 1
    kinds, numbers = rows[:, 0], rows[:, 1]
    gap = int(np.flatnonzero(kinds == LEFT_OUT)[0])
    kept = numbers[kinds == STEP]
    assert recorder.steps_left_out == numbers[gap] == total - len(kept)
    assert (kept[0], kept[-1]) == (0, total - 1)
    assert np.count_nonzero(np.diff(kept) != 1) == 1, "one gap"
    assert kinds[gap + 1] == STEP, "the last ones begin with a whole step"
    assert (np.diff(rows[:, 2]) >= 0).all()
    assert rows[:gap, 3].max() <= rows[gap, 2] <= rows[gap, 3] <= rows[gap + 1, 2]
    events = {event for event in told if event[0] != OTHER}
    assert {tuple(row) for row in rows[kinds < OTHER][:, [0, 2, 3]].tolist()} <= events
    for number in (kept[0], kept[-1]):
        assert phases_of(rows, number).sum() >= 2


def test_memory_is_bounded():
    recorder, _ = recorded(20_000, 1000)
    assert sum(map(len, [*recorder._first, *recorder._last])) < 1500
    assert len(recorder._times) < 100


def test_a_phase_within_another_gives_way_to_it_afterwards():
    recorder = Recorder(100, Clock(3))
    recorder.mark(UPDATE)
    recorder.timed(WAIT, lambda a, b: recorder.mark(EXCHANGE) and a + b)(1, 2)
    with during(recorder, EVALUATE):
        recorder.mark(REDUCE)
    recorder.close()
    assert recorder.rows()[:, 0].tolist() == [UPDATE, WAIT, EXCHANGE, UPDATE, EVALUATE, REDUCE, UPDATE]
    with during(None, EVALUATE):
        pass


def test_a_step_ends_where_the_next_begins_if_nothing_else_ends_it():
    recorder = Recorder(100, Clock(4))
    for number in (5, 6):
        recorder.step(number)
        recorder.mark(UPDATE)
    recorder.close()
    rows = recorder.rows()
    assert rows[:, 0].tolist() == [STEP, COMPUTE, UPDATE] * 2
    assert rows[0, 3] == rows[3, 2] == rows[2, 3]
    assert rows[3, 3] == rows[5, 3]


# --- clocks


@mpi
def test_clocks_are_compared_within_their_error(comm):
    shift = 5_000_000_000 * comm.rank - 123_456
    found = offsets(MPIWire(comm._comm), range(comm.size), lambda: time.perf_counter_ns() + shift)
    if comm.rank:
        assert found == []
        return
    assert found[0][:2] == (0, 0)
    for rank, offset in enumerate(found):
        assert abs(offset.ahead - 5_000_000_000 * rank) <= offset.error
        assert abs(offset.at - time.perf_counter_ns() - shift) < 60e9


@mpi
def test_ranks_of_a_node_have_one_clock(comm):
    assert len(comm.clock_offsets()) == (len(comm.leaders) if comm.rank == 0 else 0)


def test_drift_between_two_comparisons_is_taken_to_be_even():
    start, end = Offset(1_000_000, 10, 0), Offset(3_000_000, 10, 8_000_000_000)
    own = np.array([1_000_000, 4_002_000_000, 8_003_000_000])
    np.testing.assert_allclose(_Clock(start, end).of_rank_0(own) * TICK, [0, 4e9, 8e9], atol=2 * TICK + 1000)


@pytest.mark.parametrize(("errors", "ahead"), [((700, 900), 5000), ((900, 700), 6500)])
def test_no_drift_is_seen_where_two_comparisons_agree_within_their_errors(errors, ahead):
    clock = _Clock(Offset(5000, errors[0], 0), Offset(6500, errors[1], 10_000))
    own = np.array([0, 1000, 10_000_000])
    np.testing.assert_array_equal(clock.of_rank_0(own), (own - ahead) // TICK)


# --- the line


def table(**phases):
    ranks = len(next(iter(phases.values())))
    return {name: list(phases.get(name, [0.0] * ranks)) for name in PHASES}


@pytest.mark.parametrize(
    ("time", "text"),
    [
        (table(compute=[3.0], update=[1.0]), "time: compute 75 %, update 25 %"),
        (
            table(compute=[1.0, 3.0, 1.0], wait=[3.0, 1.0, 3.0]),
            "time: compute 42 %, wait 58 %; rank 1 is slow: compute 3.00 s, the others 1.00 s",
        ),
        (
            table(compute=[2.0, 2.0], update=[1.0, 2.0], exchange=[5.0, 5.0], wait=[2.0, 1.0]),
            "time: compute 20 %, wait 15 %, exchange 50 %, update 15 %; "
            "rank 1 is slow: update 2.00 s, the others 1.00 s",
        ),
        (
            table(compute=[2.0, 2.1], exchange=[4.0, 8.0], wait=[4.1, 0.0]),
            "time: compute 20 %, wait 20 %, exchange 59 %; no rank is slower than the others",
        ),
    ],
)
def test_the_line_names_the_slow_rank_and_what_it_is_slow_in(time, text):
    assert balance(time) == text


# --- whole runs


def some_nodes(ranks):
    """Pretended nodes, of unequal sizes where that is possible."""
    return {1: [1], 2: [1, 1], 3: [2, 1], 4: [3, 1]}[ranks]


@pytest.fixture(params=["native", "ring", "tree", "shared", "hierarchical"])
def exchange(request):
    """A communicator and the algorithm to train with."""
    from mpi4py import MPI

    several = request.param == "hierarchical"
    with Communicator(MPI.COMM_WORLD, nodes=some_nodes(MPI.COMM_WORLD.size) if several else None) as comm:
        yield comm, request.param


@pytest.fixture
def folder(comm, tmp_path):
    """A folder that all ranks name alike."""
    return comm.bcast_object(str(tmp_path))


class Tired(models.Softmax):
    """Sleeps on one rank before it works."""

    seconds = 0.0

    def loss_and_grad(self, w, batch, grad):
        time.sleep(self.seconds)
        return super().loss_and_grad(w, batch, grad)


def train(comm, path, algorithm="native", optimizer=None, seconds=0.0, shard=None, **options):
    x, y = make_rows()
    model = options.pop("model", None) or Tired(6, 3, dtype=np.float64)
    model.seconds = seconds
    shard = shard or whole_shard(x, y, comm)
    options = {"epochs": EPOCHS, "global_batch_size": SIZE, "test": whole_shard(x, y, comm)} | options
    return fit(model, shard, comm, optimizer=optimizer, allreduce=algorithm, trace=path, **options)


def read(path):
    """The file, and for each rank the complete events in their order."""
    with gzip.open(path, "rt") if path.endswith(".gz") else open(path) as file:
        whole = json.load(file)
    of_ranks = defaultdict(list)
    for event in whole["traceEvents"]:
        if event["ph"] == "X":
            of_ranks[event["tid"] - 1].append(event)
    return whole, of_ranks


def check_events(events, steps):
    """Phases are in order and don't overlap; steps are whole, and hold theirs."""
    phases = [e for e in events if e["name"] in PHASES]
    for before, after in pairwise(phases):
        assert before["ts"] + before["dur"] <= after["ts"]
    assert [e["args"]["number"] for e in events if e["name"] == "step"] == list(steps)
    for i, step in enumerate(events):
        if step["name"] == "step":
            end = step["ts"] + step["dur"]
            assert events[i + 1]["ts"] == step["ts"]
            assert events[i + 1]["name"] == "compute"
            inside = [e for e in phases if step["ts"] <= e["ts"] < end]
            assert all(e["ts"] + e["dur"] <= end for e in inside)
            assert {"compute", "reduce", "update", "publish"} <= {e["name"] for e in inside}


@mpi
def test_a_traced_run_is_the_same_run_and_leaves_a_trace(exchange, folder):
    comm, algorithm = exchange
    path = os.path.join(folder, f"{algorithm}.json")
    plain, result = train(comm, None, algorithm), train(comm, path, algorithm)
    np.testing.assert_array_equal(plain.w, result.w)
    assert plain.time is None
    assert (plain.rounds, plain.bytes_moved) == (result.rounds, result.bytes_moved)
    assert comm.recorder is None
    assert set(result.time) == set(PHASES)
    assert all(len(seconds) == comm.size for seconds in result.time.values())
    if comm.rank > 0:
        return
    whole, of_ranks = read(path)
    assert sorted(of_ranks) == list(range(comm.size))
    assert whole["otherData"]["steps"] == [0, EPOCHS * STEPS]
    assert whole["otherData"]["steps_left_out"] == [0] * comm.size
    assert whole["otherData"]["allreduce"] == algorithm if comm.size > 1 else True
    for rank, events in of_ranks.items():
        check_events(events, range(EPOCHS * STEPS))
        found = defaultdict(float)
        for event in events:
            found[event["name"]] += event["dur"]
        assert {"compute", "wait", "reduce", "update", "publish", "evaluate"} <= set(found)
        assert "exchange" in found or comm.size == 1
        for name in set(PHASES) - {"other"}:
            count = sum(e["name"] == name for e in events)
            assert found[name] * 1e-6 == pytest.approx(result.time[name][rank], abs=count * 2 * TICK * 1e-9, rel=1e-9)
    named = {(e["pid"], e["tid"]): e["args"]["name"] for e in whole["traceEvents"] if e["name"] == "thread_name"}
    nodes = comm.topology.nodes
    assert named == {(node, rank + 1): f"rank {rank}" for node, ranks in enumerate(nodes, 1) for rank in ranks}
    tracks = {(e["pid"], e["tid"]) for e in whole["traceEvents"] if e["ph"] == "X"}
    assert tracks == set(named)
    hosts = [e["args"]["name"] for e in whole["traceEvents"] if e["name"] == "process_name"]
    assert [host.split(" (")[0] for host in hosts] == [f"node {node}" for node in range(len(nodes))]


@mpi(min_size=2)
def test_a_slow_rank_computes_while_the_others_wait(exchange, folder):
    comm, algorithm = exchange
    pause = 0.03
    path = os.path.join(folder, f"slow-{algorithm}.json.gz")
    time = train(comm, path, algorithm, seconds=pause if comm.rank == 1 else 0.0, epochs=1).time
    slept = pause * STEPS
    others = [rank for rank in range(comm.size) if rank != 1]
    assert time["compute"][1] >= slept
    for rank in others:
        # on several nodes a rank may wait for one that waits for the slow one, or for its message
        assert time["wait"][rank] >= 0.3 * slept
        assert time["compute"][1] - time["compute"][rank] > 0.3 * slept
    assert "rank 1 is slow: compute" in balance(time)
    if comm.rank == 0:
        read(path)


class Pause(Callback):
    """Keeps rank 1 from going on after each step."""

    def on_step(self, run):
        time.sleep(0.03 if run.comm.rank == 1 else 0.0)


@mpi
@pytest.mark.parametrize("options", [{"wire": "float16"}, {"early": True}, {"wire": "float16", "early": True}], ids=str)
def test_other_messages_between_nodes_are_told_from_waiting_too(folder, options):
    from mpi4py import MPI

    nodes = {1: [1], 2: [1, 1], 3: [1, 1, 1], 4: [2, 2]}[MPI.COMM_WORLD.size]
    path = os.path.join(folder, f"{'-'.join(options)}.json")
    x, y = make_rows()
    with Communicator(MPI.COMM_WORLD, nodes=nodes) as comm:
        shard = whole_shard(x.astype(np.float32), y, comm)
        options = {"epochs": 1, "global_batch_size": SIZE, "factors": False, "callbacks": [Pause()], **options}
        model = models.MLP(6, 3, (8,), dtype=np.float32)
        fit(model, shard, comm, epochs=1, global_batch_size=SIZE, factors=False)  # compiles what would take the time
        time = fit(model, shard, comm, allreduce="hierarchical", trace=path, **options).time
    if comm.rank > 0 or comm.size == 1:
        return
    assert "rank 1 is slow: other" in balance(time)
    _, of_ranks = read(path)
    for rank, events in of_ranks.items():
        check_events(events, range(STEPS))
        messages = [e for e in events if e["name"] == "exchange"]
        assert len(messages) >= 2 * STEPS
        if rank != 1:
            assert time["wait"][rank] >= 0.3 * 0.03 * STEPS


@mpi
def test_averaging_on_uneven_shards_is_traced_too(comm, folder):
    path = os.path.join(folder, "average.json")
    x, y = make_rows()
    method = optim.LocalSGD(optim.SGD(0.1), sync_every=3)
    shard = local_shard(x, y, comm, uneven(len(y), comm.size))
    train(comm, path, "shared", method, shard=shard)
    if comm.rank == 0:
        whole, of_ranks = read(path)
        for events in of_ranks.values():
            phases = [e for e in events if e["name"] in PHASES]
            assert all(a["ts"] + a["dur"] <= b["ts"] for a, b in pairwise(phases))
            assert sum(e["name"] == "step" for e in events) == whole["otherData"]["steps"][1] > 0
            assert {"compute", "update", "publish"} <= {e["name"] for e in events}


@mpi
@pytest.mark.parametrize("algorithm", ["shared", "ring"])
@pytest.mark.parametrize("factors", [True, False])
def test_gradients_from_factors_and_in_many_parts_are_traced_alike(comm, folder, monkeypatch, algorithm, factors):
    monkeypatch.setattr("distai_mpi.comm.exchange.node.PART_BYTES", 64)
    monkeypatch.setattr("distai_mpi.train.gradient.factors.PART_BYTES", 64)
    path = os.path.join(folder, f"parts-{algorithm}-{factors}.json")
    x, y = make_rows()
    model = models.MLP(6, 3, (8,), dtype=np.float64)
    shard = whole_shard(x, y, comm)
    options = {"epochs": 1, "global_batch_size": SIZE, "allreduce": algorithm, "factors": factors}
    fit(model, shard, comm, trace=path, **options)
    if comm.rank == 0:
        _, of_ranks = read(path)
        for events in of_ranks.values():
            check_events(events, range(STEPS))
        in_parts = factors or (algorithm == "shared" and comm.size > 1)
        updates = sum(e["name"] == "update" for e in of_ranks[0])
        assert updates >= 2 * STEPS if in_parts else updates == STEPS


@mpi(min_size=2)
@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("wire", ["float32", "float16"])
def test_messages_of_all_kinds_are_exchange(folder, monkeypatch, wire, early):
    """A late node's are waited for before, whether they are rounded or have started early."""
    from mpi4py import MPI

    model = models.MLP(6, 3, (8,), dtype=np.float32)
    with Communicator(MPI.COMM_WORLD, nodes=[1] * MPI.COMM_WORLD.size) as comm:
        x, y = make_rows()
        last, work = comm.size - 1, model.loss_and_grad

        class Late(models.MLP):
            tells_ready = True

            def loss_and_grad(self, *args, on_ready=None):
                time.sleep(0.02 * (comm.rank == last))
                return work(*args, on_ready)

        shard = whole_shard(x.astype(np.float32), y, comm)
        result = train(comm, os.path.join(folder, f"{wire}.json"), "hierarchical", shard=shard, test=None, wire=wire,
                       early=early, factors=False, model=Late(6, 3, (8,), dtype=np.float32))  # fmt: skip
    first = {name: seconds[0] for name, seconds in result.time.items()}
    assert first["exchange"] > 0
    assert first["wait"] > first["reduce"] + first["publish"]


@mpi
def test_what_does_not_fit_is_left_out_and_told(comm, folder, monkeypatch):
    monkeypatch.setattr("distai_mpi.train.tracing.ROWS", 0)
    monkeypatch.setattr("distai_mpi.train.tracing.FEWEST_ROWS", 100)
    path = os.path.join(folder, "long.json")
    train(comm, path, epochs=10)
    if comm.rank == 0:
        whole, of_ranks = read(path)
        for rank, events in of_ranks.items():
            assert len(events) <= 101
            [gap] = [e for e in events if e["name"] == "steps left out"]
            kept = [e["args"]["number"] for e in events if e["name"] == "step"]
            assert (kept[0], kept[-1]) == (0, 10 * STEPS - 1)
            assert gap["args"]["count"] == whole["otherData"]["steps_left_out"][rank] == 10 * STEPS - len(kept) > 0


class Signal(Callback):
    def on_step(self, run):
        if run.iterations == 3:
            os.kill(os.getpid(), signal.SIGUSR1)


@mpi
def test_a_run_that_a_signal_ends_is_traced_and_so_is_its_second_part(comm, folder):
    path, checkpoint = os.path.join(folder, "part.json"), Checkpoint(os.path.join(folder, "saved"), resume=True)
    options = {"epochs": 40, "checkpoint": checkpoint}
    first = train(comm, path, callbacks=[Signal()], **options)
    assert first.status == "interrupted"
    assert sum(first.time["checkpoint"]) > 0
    if comm.rank == 0:
        whole, of_ranks = read(path)
        assert whole["otherData"]["status"] == "interrupted"
        for events in of_ranks.values():
            check_events(events, range(first.iterations))
            assert "checkpoint" in {e["name"] for e in events}
    second = train(comm, path, **options)
    assert second.status == "completed"
    if comm.rank == 0:
        whole, of_ranks = read(path)
        assert whole["otherData"]["steps"] == [first.iterations, 40 * STEPS]
        for events in of_ranks.values():
            check_events(events, range(first.iterations, 40 * STEPS))


@mpi
def test_a_run_that_diverges_is_traced(comm, folder):
    path = os.path.join(folder, "lost.json")
    x, y = make_rows(kind="value")
    model = models.Linear(6, dtype=np.float64)
    result = fit(model, whole_shard(x, y, comm), comm, optimizer=optim.SGD(1e200), epochs=3, trace=path)
    assert result.status == "diverged"
    if comm.rank == 0:
        assert read(path)[0]["otherData"]["status"] == "diverged"


class Failure(Callback):
    def on_epoch(self, run, record):
        raise RuntimeError("a bug")


@mpi
def test_a_run_that_dies_leaves_no_trace(comm, folder):
    path = os.path.join(folder, "dead.json")
    with pytest.raises(RuntimeError, match="a bug"):
        train(comm, path, callbacks=[Failure()])
    assert comm.recorder is None
    comm.barrier()
    assert not os.path.exists(path)


@mpi
def test_a_place_that_cannot_be_written_is_told_before_training(comm, folder):
    class Never(Callback):
        def on_start(self, run):
            raise AssertionError("it trains")

    there = os.path.join(folder, "folder.json")
    os.makedirs(there, exist_ok=True)
    comm.barrier()
    for path in (os.path.join(folder, "none", "t.json"), there):
        with pytest.raises(ConfigError, match="cannot be written"):
            train(comm, path, callbacks=[Never()])


# --- the command


def test_the_flag_and_what_it_leaves(run_command, tmp_path):
    words = ["train", "--epochs", "1", "--model", "softmax"]
    file = tmp_path / "run.toml"
    file.write_text(f"trace = '{tmp_path / 't.json.gz'}'\n")
    done = run_command(2, *words, "--config", str(file), "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2].startswith("time: compute")
    assert done.stdout.splitlines()[-2].endswith(f"→ {tmp_path / 't.json.gz'}")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    whole, of_ranks = read(str(tmp_path / "t.json.gz"))
    assert whole["otherData"]["seconds"] == result["time"]
    assert len(of_ranks) == 2
    again = (tmp_path / "run" / "settings.toml").read_text()
    assert "t.json.gz" in again
    done = run_command(1, *words, "-q", "--out", str(tmp_path / "plain"))
    assert json.loads((tmp_path / "plain" / "result.json").read_text())["time"] is None


@pytest.mark.parametrize(
    ("path", "told"),
    [("t.txt", "FILE.json"), ("", "FILE.json"), ("none/t.json", "none/t.json: cannot be written")],
)
def test_names_that_are_refused(path, told, capfd, tmp_path, monkeypatch):
    from distai_mpi.cli.main import main

    monkeypatch.chdir(tmp_path)
    assert main(["train", "--trace", path]) == 2
    error = capfd.readouterr().err
    assert told in error
    assert error.count("distai-mpi: error:") == 1
