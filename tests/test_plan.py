"""Plans: predictions against closed forms by hand, the choice, what earlier runs teach, and what is refused."""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest

from distai_mpi import Communicator, data, models, world
from distai_mpi.cli.main import main
from distai_mpi.comm import Exchange
from distai_mpi.comm.mesh import MeshShape
from distai_mpi.errors import ConfigError, DataError
from distai_mpi.optim import LBFGS, SGD
from distai_mpi.plan import (
    Candidate,
    Job,
    Learned,
    Link,
    Machine,
    Planner,
    Probe,
    Shape,
    Timing,
    Workload,
    candidates,
    check_memory,
    check_mesh,
    check_split,
    choose,
    from_toml,
    learn,
    look,
    probe,
    trial,
)
from distai_mpi.plan.network import Nodes, travel

probing = importlib.import_module("distai_mpi.plan.probe")  # the function of this name hides it in the package
NETWORK = Link(latency=1e-4, bandwidth=1e8)
MACHINE = Machine("made up", 2, 8 << 30, 1e10, 1e10, 2e-6, NETWORK)
WORK = Workload("rows.npz", "MLP", "sgd", rows=1000, batch=100, epochs=4, parameters=1 << 20, widths=(512, 1024, 512))
BYTES = 4 << 20


def steps(per_row, constant, *rows):
    """Timings of steps that take ``constant`` seconds and ``per_row`` for each row."""
    return tuple(Timing(each, (constant + per_row * each,) * 2) for each in rows)


def made_up(work=WORK, *, local=0.0, **more):
    """A probe of 1 and 2 ranks on a machine like `MACHINE`; as two nodes a step takes ``local`` seconds more."""
    machine = asdict(replace(MACHINE, network=None))
    messages = {"latency": 1e-6, "bandwidth": 1e10, "shared": False}
    shapes = (
        Shape(1, 1, 1, steps(1e-3, 0.02, 10, 100), peak_memory=200 << 20),
        Shape(2, 1, 1, steps(1.2e-3, 0.03, 10, 50)),
        Shape(2, 2, 1, steps(1.2e-3, 0.03 + local, 10, 50), local=True, calls=2, bytes=2 * BYTES),
    )
    return Probe(work, machine, messages, shapes, **more)


def one_way(nodes, per_node=1, batch=100, tensor=1, wire="float32"):
    ranks = nodes * per_node
    return Candidate(nodes, per_node, MeshShape(ranks // tensor, 1, tensor), batch, wire)


def test_one_node():
    planner = Planner(made_up(), MACHINE)
    alone, both = (planner.predict(one_way(1, ranks)) for ranks in (1, 2))
    assert alone.epoch_seconds == pytest.approx(10 * 0.12)  # ten steps
    assert alone.seconds == pytest.approx(4 * alone.epoch_seconds)
    assert both.epoch_seconds == pytest.approx(10 * 0.09)
    assert (alone.efficiency, both.efficiency) == (pytest.approx(1), pytest.approx(0.12 / 0.18))
    assert both.weak_speedup == pytest.approx(2 * 0.07 / 0.09)
    assert planner.predict(one_way(1, 2, batch=200)).epoch_seconds == pytest.approx(5 * 0.15)  # the line goes on
    assert alone.low == pytest.approx(alone.seconds)  # timings that do not differ have no error
    noisy = replace(planner.probe.shapes[0], timings=(Timing(100, (0.1, 0.11, 0.12)),))
    seen = Planner(replace(planner.probe, shapes=(noisy,)), MACHINE).predict(one_way(1))
    deviation = np.std(np.log([0.1, 0.11, 0.12]), ddof=1)
    assert math.log(seen.high / seen.seconds) == pytest.approx(2 * deviation)
    faster = Planner(made_up(), replace(MACHINE, flops=2e10)).predict(one_way(1))
    assert faster.seconds == pytest.approx(alone.seconds / 2)
    # memory: two copies of the parameters a node, a gradient a rank, activations
    more = planner.memory(one_way(1, 2)) - planner.memory(one_way(1, 1))
    assert more == pytest.approx(-BYTES - 4 * 50 * 2048 * 4)


def test_several_nodes():
    planner = Planner(made_up(), MACHINE)
    local = travel(WORK, 100, Nodes(2, 1, Link(1e-6, 1e10), 5e9 / 3), nbytes=BYTES, compressed=False, solved=None)
    assert local.bytes == 2 * BYTES
    # Rabenseifner on two nodes: half a vector each way, one message each, and half of it is summed
    way = 1e-4 + BYTES / 2 / 1e8
    expected = 0.09 + 2 * way + BYTES / 2 / (5e9 / 3) - local.seconds
    found = planner.predict(one_way(2))
    assert found.epoch_seconds == pytest.approx(10 * expected)
    assert found.bytes_moved == 10 * 2 * BYTES
    assert found.rounds == 20
    assert found.communication == pytest.approx((2 * way + BYTES / 2 / (5e9 / 3)) / expected, rel=1e-6)
    four = planner.step(one_way(4)).known.seconds  # a ring of powers of two: 3/4 each way in two messages
    assert four == pytest.approx(0.06 + 2 * (2e-4 + 0.75 * BYTES / 1e8) + 0.75 * BYTES / (5e9 / 3) - local.seconds)
    slow = replace(MACHINE, network=replace(NETWORK, shared=True), emulated=True)
    shared = Planner(made_up(), slow).step(one_way(2)).known.seconds
    assert shared == pytest.approx(expected + 2 * BYTES / 2 / 1e8)  # both nodes send by one wire
    assert Planner(made_up(local=0.5), MACHINE).step(one_way(2)).known.seconds == pytest.approx(expected + 0.5)
    half = planner.step(one_way(2, wire="float16"))
    assert half.bytes == BYTES
    hides = replace(WORK, overlaps=True, first_slot=0.25)
    early = Planner(made_up(hides), MACHINE).predict(one_way(2))
    hidden = min(2 / 3 * 0.09, 0.75 * (way + BYTES / 2 / (5e9 / 3)))
    assert early.early
    assert early.epoch_seconds == pytest.approx(10 * (expected - hidden))


def test_a_better_network_is_never_slower():
    rng = np.random.default_rng(0)
    kinds = [
        WORK,
        replace(WORK, kind="average", sync_every=10),
        replace(WORK, factor_size=100),
        replace(WORK, entries=20.0, takes_pairs=True, widths=()),
    ]
    for work in kinds:
        for nodes in (2, 3, 4, 8):
            low, high = sorted(rng.uniform(1e6, 1e10, 2))
            short, long = sorted(rng.uniform(1e-6, 1e-2, 2))
            links = [Link(short, high), Link(short, low), Link(long, low)]
            planners = [Planner(made_up(work), replace(MACHINE, network=link)) for link in links]
            seconds = [planner.predict(one_way(nodes, 2)).seconds for planner in planners]
            assert seconds == sorted(seconds)
            more = [planner.step(one_way(nodes)).bytes for planner in planners]
            assert more[0] == more[1] == more[2] > 0


def test_what_travels():
    nodes = Nodes(2, 1, NETWORK, math.inf)

    def moved(work, batch=100):
        return travel(work, batch, nodes, nbytes=BYTES, compressed=False, solved=None)

    assert moved(replace(WORK, kind="average", sync_every=10)).bytes == pytest.approx(moved(WORK).bytes / 10)
    factors = replace(WORK, factor_size=2000)
    assert factors.route(100, 2, 2) == "factors"
    assert factors.route(2000, 2, 2) == "dense"
    assert replace(factors, factors=False).route(100, 2, 2) == "dense"
    assert moved(factors).bytes == BYTES + 100 * 2000 * 4  # the parameters come back whole
    pairs = replace(WORK, entries=10.0, takes_pairs=True, widths=())
    assert pairs.route(100, 2, 2) == "pairs"
    assert pairs.route(1 << 20, 2, 2) == "dense"
    pair = 4 + 4  # a rank sends 50 rows' pairs, half of them of the other's slice, and then what 500 changed in its own
    assert moved(pairs).bytes == 2 * (16 + 250 * pair + 500 * pair)


def solved():
    """A probe of a solver: 8 gradients in 4 iterations, and a start that is shared out."""
    work = replace(WORK, kind="solver", batch=1000, epochs=100, optimizer="lbfgs", widths=(), dense=False)
    counted = {"passes": 8, "iterations": 4, "ended": True}
    shapes = (
        Shape(1, 1, 1, steps(1e-4, 0.0, 250, 1000), setup=0.4, **counted),
        Shape(2, 1, 1, steps(1e-4, 0.0, 125, 500), setup=0.2, **counted),
        Shape(2, 2, 1, steps(1e-4, 0.0, 125, 500), True, 1, 2000, 0.2, 3, 6000, **counted),
    )
    return replace(made_up(work), shapes=shapes)


def test_solvers():
    planner = Planner(solved(), MACHINE)
    assert planner.predict(one_way(1)).seconds == pytest.approx(0.4 + 8 * 0.1)
    assert planner.predict(one_way(1, 2)).seconds == pytest.approx(0.2 + 8 * 0.05)
    assert planner.predict(one_way(1, 2)).epoch_seconds == pytest.approx(2 * 0.05)
    four = planner.predict(one_way(4))
    messages, sent = 2 * 1e-4, 1000 * (3 / 4) / (1 / 2)  # of a node: 3/4 of a vector in place of 1/2
    there = 1e-6 + 1000 / 1e10  # what messages on one machine took
    one_pass = 0.025 + messages + sent / 1e8 - there
    setup = 0.1 + 3 * messages + 3 * sent / 1e8
    assert four.seconds == pytest.approx(setup + 8 * one_pass)
    assert (four.rounds, four.bytes_moved) == (2, pytest.approx(2 * 4 * sent))
    unfinished = replace(solved(), shapes=tuple(replace(shape, ended=False) for shape in solved().shapes))
    assert Planner(unfinished, MACHINE).predict(one_way(1)).seconds == pytest.approx(0.4 + 200 * 0.1)
    known = Planner(unfinished, MACHINE, Learned(iterations=10.0))
    assert known.predict(one_way(1)).seconds == pytest.approx(0.4 + 20 * 0.1)


def plans(planner, most_nodes=4):
    made = list(candidates(planner, most_nodes, None, lambda ranks: [100, 400]))
    return [planner.predict(candidate) for candidate in check_memory(planner, made)]


def test_the_choice():
    found = plans(Planner(made_up(), replace(MACHINE, network=Link(1e-6, 1e10))))
    assert {(each.candidate.nodes, each.candidate.per_node) for each in found} == {
        (n, r) for n in (1, 2, 4) for r in (1, 2)
    }
    assert any(each.candidate.wire == "float16" for each in found)
    best, reason = choose(found, None, None, 100)
    assert best.candidate.batch == 100
    assert best.efficiency >= 0.5
    assert "use their ranks well" in reason
    alike = [each for each in found if each.candidate.batch == 100 and each.candidate.wire == "float32"]
    fastest = min(each.seconds for each in alike)
    cheapest = min(alike, key=lambda each: each.node_hours)
    assert choose(found, 1e6, None, 100).best.node_hours == cheapest.node_hours
    tight = choose(found, fastest * 1.01, None, 100).best
    assert tight.high <= fastest * 1.01
    rich = choose(found, None, 1e6, 100).best
    assert rich.seconds <= 1.05 * fastest
    with pytest.raises(ConfigError, match=r"deadline 1 s: no plan meets it; the nearest is 4 nodes of 2 ranks"):
        choose(found, 1.0, None, 100)
    with pytest.raises(ConfigError, match="budget 1e-06: no plan takes so few node hours; the nearest is 1 node"):
        choose(found, None, 1e-6, 100)


def test_meshes_and_memory():
    work = replace(WORK, parameters=1 << 30, widths=(1 << 15, 1 << 15, 10))  # 4 GiB
    planner = Planner(made_up(work), replace(MACHINE, memory=8 << 30))
    with pytest.raises(
        ConfigError,
        match=r"fits no node: 1,073,741,824 parameters.*1 rank.*have 8 GiB; mesh data=1,stage=1,tensor=2 on 2",
    ):
        check_memory(planner, list(candidates(planner, 1, None, lambda ranks: [100])))
    narrow = Planner(made_up(replace(work, widths=(1 << 29, 2, 2))), MACHINE)
    with pytest.raises(ConfigError, match="no mesh would hold it"):
        check_memory(narrow, list(candidates(narrow, 1, None, lambda ranks: [100])))
    held = list(candidates(planner, 4, "tensor=4", lambda ranks: [100]))
    assert {(each.nodes, each.mesh.tensor) for each in check_memory(planner, held)} == {(2, 4), (4, 4)}
    for asked, why in [
        ("tensor=3", "fits none of 1, 2, 4 ranks"),
        ("stage=2", "stages are not planned yet"),
        ("tensor=2,2", "expected lengths"),
    ]:
        with pytest.raises(ConfigError, match=why):
            check_mesh(asked, 2, 2)
    with pytest.raises(ConfigError, match="cannot be split"):
        check_split(replace(WORK, widths=()), "tensor=2")
    # a split model that was measured: half of the rows' time, and as much more as was seen
    shapes = (*made_up().shapes, Shape(2, 1, 2, steps(1.2e-3, 0.2, 50, 100)))
    split = Planner(replace(made_up(), shapes=shapes), MACHINE).step(one_way(1, 2, tensor=2)).known.seconds
    assert split == pytest.approx(0.2 + 0.12)


def test_a_model_that_this_machine_cannot_hold(monkeypatch):
    node = SimpleNamespace(size=1)
    alone = SimpleNamespace(size=1, node=node, bcast_object=lambda value: value)
    together = SimpleNamespace(size=2, node=SimpleNamespace(size=2), bcast_object=lambda value: value)
    model = models.MLP(1000, 10, hidden=(1000,))  # about a million parameters, three vectors of 4 MB on one rank
    monkeypatch.setattr(probing, "memory_left", lambda: 13 * 10**6)
    assert probing._has_room(alone, model, 1)
    assert not probing._has_room(together, model, 1)
    assert probing._has_room(together, model, 2)
    monkeypatch.setattr(probing, "memory_left", lambda: 5 * 10**6)
    told = r"1,011,010 parameters and their gradient take 0.0113 GiB, and 0.00466 .* mesh tensor=4 on 4 such nodes"
    with pytest.raises(ConfigError, match=told):
        probing._has_room(alone, model, 1)


def test_earlier_runs(tmp_path):
    planner = Planner(made_up(), MACHINE)
    result = {"status": "completed", "data": "rows.npz", "parameters": 1 << 20, "optimizer": "sgd"}
    for number, (ranks, factor) in enumerate([(1, 1.5), (2, 1.5), (2, 1.5 * math.e**0.1)]):
        seconds = factor * planner.predict(one_way(1, ranks)).epoch_seconds * 3
        fields = {
            "ranks": ranks,
            "nodes": 1,
            "epochs": 3,
            "iterations": 30,
            "seconds": seconds,
            "global_batch_size": 100,
        }
        (tmp_path / f"run{number}").mkdir()
        (tmp_path / f"run{number}" / "result.json").write_text(json.dumps(result | fields))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "result.json").write_text(json.dumps(result | {"optimizer": "adam"}))
    learned = learn(planner, str(tmp_path))
    assert (learned.runs, learned.shift, learned.iterations) == (3, pytest.approx(math.log(1.5)), None)
    better = replace(planner, learned=learned)
    assert better.predict(one_way(1, 2)).seconds == pytest.approx(1.5 * planner.predict(one_way(1, 2)).seconds)
    assert len(better.measured_speedups()) == 3 + 3
    with pytest.raises(DataError, match="of 1 files result.json none is of a completed run"):
        learn(planner, str(tmp_path / "other"))
    (tmp_path / "other" / "result.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        learn(planner, str(tmp_path / "other"))


TEXT = MACHINE.to_toml()


def test_machines_are_written_and_read():
    assert from_toml(TEXT, "m.toml") == MACHINE
    assert from_toml(TEXT.replace("memory = 8589934592", 'memory = "8GiB"'), "m.toml") == MACHINE
    alone = replace(MACHINE, network=None)
    assert from_toml(alone.to_toml(), "m.toml") == alone


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("cores = 2", "", "lacks cores"),
        ("cores = 2", "cores = 2.5", "whole number"),
        ("flops = 10000000000.0", "flops = 0", r"node.flops must lie between 1e\+07 and 1e\+15, got 0"),
        ("flops = 10000000000.0", "flops = nan", "must be a number"),
        ("latency = 0.0001", "latency = -1", "network.latency must lie"),
        ("bandwidth = 100000000.0", 'bandwidth = "fast"', "network.bandwidth must be a number"),
        ("memory = 8589934592", 'memory = "lots"', "must be a size"),
        ("[network]", "[net]", "did you mean network"),
        ("barrier", "barier", "did you mean barrier"),
        ("emulated = false", "emulated = 1", "true or false"),
        ("[node]", "[node", "is no TOML file"),
    ],
)
def test_machines_that_cannot_be(old, new, why):
    assert old in TEXT
    with pytest.raises(ConfigError, match=why):
        from_toml(TEXT.replace(old, new), "--machine m.toml")


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = made_up(flags=("--data", "rows.npz", "--global-batch-size", "100"))
    (tmp_path / "probe.json").write_text(json.dumps(asdict(found)))
    (tmp_path / "m.toml").write_text(TEXT)
    words = ["plan", "--probe", "probe.json", "--machine", "m.toml", "--max-nodes", "2"]
    assert main([*words, "--deadline", "1h", "--json", "plan.json", "--save-machine", "saved.toml"]) == 0
    out, plan = capsys.readouterr().out, json.loads((tmp_path / "plan.json").read_text())
    best = plan["best"]
    assert "the fewest node hours that meet the deadline" in out
    assert best["commands"][0] in " ".join(out.split())
    start = f"sbatch --nodes={best['nodes']} --ntasks-per-node={best['ranks'] // best['nodes']} --cpus-per-task=1"
    assert best["commands"][0].startswith(f"{start} --time=00:")
    assert best["commands"][0].endswith("slurm/train_cpu.sbatch --data rows.npz --global-batch-size 100")
    assert set(plan["laws"]) == {"Amdahl", "Gustafson"}
    assert len(plan["plans"]) == 6
    assert (tmp_path / "saved.toml").read_text() == TEXT
    planted = replace(found, shapes=(replace(found.shapes[0], timings=(Timing(100, (0.0, 0.0)),)),))
    (tmp_path / "planted.json").write_text(json.dumps(asdict(planted)))
    for refused, why in [
        ([*words, "--deadline", "1ms"], "--deadline '1ms': give a time such as 90s, 30min or 2h"),
        ([*words, "--deadline", "1s"], "no plan meets it; the nearest is"),
        (
            [*words, "--epochs", "3"],
            "was measured with --data rows.npz --global-batch-size 100, and not with --epochs 3",
        ),
        (["plan", "--probe", "probe.json", "--max-nodes", "2"], "nothing tells how fast messages between nodes are"),
        (["plan", "--probe", "planted.json"], "a speed of 100 rows in (0.0, 0.0) s is none"),
        (["plan", "--probe", "m.toml"], "was not written by 'bench probe --json'"),
        (["plan", "--probe", "none.json"], "cannot be read (No such file or directory)"),
        ([*words, "--learn", "nowhere"], "there is no such folder"),
        (["plan", "--device", "gpu"], "a plan is for CPUs"),
    ]:
        assert main(refused) == 2
        captured = capsys.readouterr()
        assert why in captured.err, refused
        assert captured.err.count("error:") == 1, refused


def small(optimizer, batch, **more):
    """A job of few rows; `Job`."""
    rng = np.random.default_rng(0)
    rows = data.Dataset(rng.normal(size=(512, 64)).astype("f4"), rng.integers(0, 2, 512))
    model = models.Logistic(64) if isinstance(optimizer, LBFGS) else models.MLP(64, 2, hidden=(32,))
    given = {"optimizer": optimizer, "global_batch_size": batch, "l2": 1e-3, "l1": 0.0, "seed": 0, "epochs": 2}
    given["exchange"] = Exchange(factors=False)
    return Job(lambda comm: data.whole(rows, comm.rank, comm.size), lambda _: model, lambda *_: given)


@pytest.mark.mpi
@pytest.mark.ranks(2)
def test_a_probe(monkeypatch):
    monkeypatch.setattr(trial, "WINDOWS", 1)
    monkeypatch.setattr(trial, "FEWEST_WINDOWS", 1)
    monkeypatch.setattr(trial, "WINDOW_SECONDS", 0.01)
    monkeypatch.setattr(look, "MULTIPLIED", 64)
    monkeypatch.setattr(look, "SAMPLES", 1)
    monkeypatch.setattr(look, "BARRIERS", 2)
    monkeypatch.setattr(look, "STREAMED", 1 << 12)
    monkeypatch.setattr(look, "EXCHANGED", (1 << 10, 1 << 16))
    mpi_comm = world()
    with Communicator(mpi_comm) as comm:
        found = probe(comm, mpi_comm, small(SGD(lr=0.1), 256), 100)
        assert comm.allgather_object(found) == [found] * comm.size
        assert Probe.from_dict(json.loads(json.dumps(asdict(found)))) == found
        kinds = [(shape.ranks, shape.nodes, shape.tensor) for shape in found.shapes]
        assert kinds == [(1, 1, 1), (2, 1, 1), (2, 2, 1), (2, 1, 2)]
        assert [[timing.rows for timing in shape.timings][-1] for shape in found.shapes[:3]] == [256, 128, 128]
        assert all(min(timing.seconds) > 0 for shape in found.shapes for timing in shape.timings)
        work, declared = found.workload, found.shapes[2]
        nodes = Nodes(2, 1, Link(**found.messages), math.inf)
        expected = travel(work, 256, nodes, nbytes=work.bytes, compressed=False, solved=None)
        assert declared.bytes == pytest.approx(expected.bytes)  # what was counted is the closed form
        assert declared.calls == 2
        assert (work.rows, work.batch, work.parameters) == (512, 256, 64 * 32 + 32 + 32 * 2 + 2)
        solver = probe(comm, mpi_comm, small(LBFGS(), 256), 100)
        shape = solver.shapes[0]
        assert solver.workload.kind == "solver"
        assert shape.ended
        assert shape.passes >= shape.iterations > 0
        machine = replace(Machine.from_dict(solver.machine), network=NETWORK)
        for planner in (Planner(found, machine), Planner(solver, machine)):
            predicted = [planner.predict(one_way(nodes, each, 256)) for nodes in (1, 2) for each in (1, 2)]
            assert all(0 < each.low <= each.seconds <= each.high < math.inf for each in predicted)
