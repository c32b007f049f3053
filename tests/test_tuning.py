"""What ``auto`` chooses, from timings that are made up; what it remembers; and that it is correct and agreed."""

import json
import os
import re
import shutil
import tempfile
import time
from itertools import pairwise, product

import numpy as np
import pytest

from distai_mpi.comm import ALGORITHMS, SHARING, Communicator, findings, trial, tuning
from distai_mpi.comm.findings import Findings, folder
from distai_mpi.comm.trial import Verdict, contest, orders
from distai_mpi.comm.tuning import MARGIN, ORDER, Case, Tuner, between, inferred, kind_of, pick
from distai_mpi.errors import ConfigError

mpi = pytest.mark.mpi
HOST = {"cpu": "test", "nodes": [2]}


# --- which of the measured


@pytest.mark.parametrize(
    ("times", "steps", "name"),
    [
        ({"native": 1.0, "ring": 2.0}, False, "native"),
        ({"native": 1.0, "ring": 0.95}, False, "native"),  # within the margin: the order counts
        ({"native": 1.0, "ring": 0.85}, False, "ring"),
        ({"shared": 1.0, "native": 1.0, "ring": 0.92}, True, "shared"),
        ({"shared": 1.01, "native": 1.0}, True, "native"),
        ({"hierarchical": 0.99, "native": 1.0, "ring": 0.91}, True, "hierarchical"),
        ({"hierarchical": 0.99, "native": 1.0, "ring": 0.89}, True, "ring"),
        ({"hierarchical": 1.0, "native": 1.0, "rabenseifner": 0.5, "ring": 0.52}, True, "rabenseifner"),
        ({"native": 1.0, "recursive_doubling": 0.85}, False, "recursive_doubling"),
        ({"native": 1.0, "recursive_doubling": 0.85}, True, "native"),  # its update costs every rank the whole vector
        ({"native": 1.0, "recursive_doubling": 0.7}, True, "recursive_doubling"),
    ],
)
def test_the_first_that_is_hardly_slower_than_the_fastest_is_taken(times, steps, name):
    assert pick(times, steps) == name


def test_nothing_that_is_taken_is_slower_than_the_librarys_own():
    rng = np.random.default_rng(3)
    for steps, _ in product((False, True), range(500)):
        names = ["native", *rng.choice([name for name in ORDER if name != "native"], rng.integers(0, 5), replace=False)]
        times = dict(zip(names, np.exp(rng.normal(0, 0.3, len(names))), strict=True))
        assert times[pick(times, steps)] <= times["native"]


def test_noise_within_the_margin_changes_nothing():
    rng = np.random.default_rng(4)
    times = {"shared": 1.0, "native": 1.1, "ring": 0.99}
    for _ in range(200):
        noisy = {name: least * rng.uniform(1, 1 + MARGIN / 2) for name, least in times.items()}
        assert pick(noisy, True) == "shared"


def test_every_algorithm_has_a_place_in_the_order():
    assert sorted(ORDER) == sorted([*ALGORITHMS, *SHARING])


# --- what is measured


def test_candidates():
    def names(nodes, nbytes, shared=True, steps=True, dtype="f4"):
        return Case.of(steps, nbytes, np.dtype(dtype), shared).candidates(nodes)

    assert names([2], 1 << 20) == ["shared", "native", "ring"]
    assert names([2], 1 << 20, shared=False) == ["native", "ring"]
    assert names([2], 1 << 20, dtype="f2") == ["native", "ring"]
    assert names([3], 1 << 20) == ["shared", "native", "rabenseifner", "ring"]
    assert names([1, 3], 1 << 20) == ["hierarchical", "native", "rabenseifner", "ring"]
    assert names([1, 1], 1 << 20) == ["native", "ring"]  # nobody to share with
    assert names([4], 300) == ["shared", "native", "rabenseifner", "recursive_doubling", "tree"]
    assert "ring" not in names([64], 1 << 13), "slices are too short"


@pytest.mark.parametrize(("nbytes", "level", "stand_in"), [(256, 9, 256), (511, 9, 256), (512, 10, 512)])
def test_classes(nbytes, level, stand_in):
    case = Case.of(True, nbytes, np.dtype("f4"), True)
    assert (case.level, case.nbytes) == (level, stand_in)


def test_huge_vectors_are_measured_by_shorter_ones():
    cases = [Case.of(True, nbytes, np.dtype("f8"), True) for nbytes in (1 << 23, 1 << 30, 1 << 50)]
    assert len(set(cases)) == 1
    assert cases[0].nbytes <= 8 << 20


def test_kinds():
    kinds = [kind_of(np.dtype(name)) for name in ("f2", "f4", "f8", "i4", "u1")]
    assert kinds == ["half", "float", "float", "integer", "integer"]


class Simulated:
    """A rank alone, on which an exchange takes what it is told to, by a clock of its own."""

    rank = 0

    def __init__(self, costs, disturb=lambda: 1.0):
        self.costs, self.disturb, self.now, self.runs = costs, disturb, 0.0, []

    def bcast_object(self, value):
        return value

    def barrier(self):
        pass

    def clock(self):
        return self.now

    def run(self, name, repeats):
        self.runs.append((name, repeats))
        self.now += self.costs[name] * repeats * self.disturb()

    def contest(self, seconds):
        return contest(self, list(self.costs), self.run, seconds, self.clock)


def test_a_quiet_machine_is_done_at_once():
    machine = Simulated({"shared": 1e-5, "native": 4e-5, "ring": 5e-5})
    verdict = machine.contest(0.1)
    assert verdict.settled
    assert verdict.times == pytest.approx(machine.costs)
    assert machine.now < 0.003
    assert ("shared", 20) in machine.runs, "short ones are timed many at once"


def test_disturbances_are_left_out():
    rng = np.random.default_rng(5)
    machine = Simulated({"shared": 1e-4, "native": 3e-4}, lambda: 1.0 if rng.random() < 0.6 else 1 + 30 * rng.random())
    verdict = machine.contest(1.0)
    assert verdict.settled
    assert verdict.times == pytest.approx(machine.costs)


def test_a_machine_that_is_never_quiet_is_not_believed():
    rng = np.random.default_rng(6)
    machine = Simulated({"shared": 1e-4, "native": 3e-4}, lambda: 1 + 30 * rng.random())
    assert not machine.contest(10.0).settled
    assert len(machine.runs) == 2 * (1 + trial.TURNS)


@pytest.mark.parametrize("seconds", [0.0, 0.01, 0.3])
def test_the_time_granted_is_kept(seconds):
    rng = np.random.default_rng(7)
    machine = Simulated({"shared": 3e-3, "native": 0.01, "ring": 0.02, "tree": 0.05}, lambda: 1 + rng.random())
    verdict = machine.contest(seconds)
    assert set(verdict.times) == set(machine.costs), "all were looked at once"
    assert machine.now <= 2 * sum(machine.costs.values()) + trial.LATE * seconds + 0.1


def test_what_is_surely_slow_is_left_alone_but_for_the_librarys_own():
    machine = Simulated({"ring": 1e-4, "native": 1e-2, "tree": 5e-3})
    machine.disturb = lambda: 1 + 0.2 * len(machine.runs) if machine.runs[-1][0] == "ring" else 1.0
    machine.contest(1e9)
    counts = {name: sum(run == name for run, _ in machine.runs) for name in machine.costs}
    assert counts == {"tree": 1 + trial.LOOKS, "native": 1 + trial.TURNS, "ring": 1 + trial.TURNS}


def test_orders_end_with_a_verdict():
    referee = orders(["native"], 1.0, lambda: 0.0)
    order = next(referee)
    while not isinstance(order, Verdict):
        order = referee.send(order[1] * 2e-6)
    assert order == ({"native": pytest.approx(2e-6)}, True)
    with pytest.raises(StopIteration):
        referee.send(0.0)


# --- what lies between


def test_between_is_a_line_of_logarithms():
    low, high = {"native": 1e-5, "ring": 1e-4, "tree": 1.0}, {"native": 1e-3, "ring": 1e-4}
    assert between(12, (10, low), (14, high)) == pytest.approx({"native": 1e-4, "ring": 1e-4})
    assert between(11, (10, low), (14, high))["native"] == pytest.approx(10**-4.5)


def made(*levels, sure=True, cost=1e-6):
    """Findings of sums of private floats at some levels: native takes cost · level, ring twice that."""
    known = Findings(HOST, None)
    for level in levels:
        times = {"native": cost * level, "ring": 2 * cost * level}
        known.add(str(Case(False, "float", False, level)), times, sure)
    return known


def test_inferred():
    case = Case(False, "float", False, 12)
    assert inferred(case, made(10, 14), reach=2)["native"] == pytest.approx((10 * 14) ** 0.5 * 1e-6)
    assert inferred(case, made(11, 13, 10, 14), reach=2)["native"] == pytest.approx((11 * 13) ** 0.5 * 1e-6)
    assert inferred(case, made(10, 15), reach=2) is None
    assert inferred(case, made(10), reach=2) is None
    assert inferred(case, made(10), reach=9, beyond=4)["native"] == pytest.approx(1e-5)
    assert inferred(case, made(16), reach=9, beyond=4)["native"] == pytest.approx(1.6e-5)
    assert inferred(case, made(7), reach=9, beyond=4) is None, "too far to go by one side alone"
    assert inferred(case, made(10, 14, sure=False), reach=9, beyond=9) is None
    assert inferred(Case(True, "float", False, 12), made(10, 14), reach=2) is None


# --- what is remembered


@pytest.fixture(autouse=True)
def quiet_machine(monkeypatch):
    """Measurements count, whatever else runs while the tests do."""
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))


@pytest.fixture
def fresh(monkeypatch):
    """A process that has measured nothing."""
    monkeypatch.setattr(findings, "_known", {})


TIMES = {"shared": 1.5e-5, "native": 1e-4}


def test_findings_come_back(tmp_path):
    place = tmp_path / "new" / "cache"
    first = Findings(HOST, str(place))
    assert first.get("step") is None
    first.add("step", TIMES, True)
    first.add("sum", TIMES | {"shared": 2e-5}, False)
    again = Findings(HOST, str(place))
    assert again.earlier == {"step", "sum"}
    assert (again.get("step").times, again.get("step").sure) == (TIMES, True)
    assert not again.get("sum").sure
    assert len(list(place.iterdir())) == 1, "no temporary file is left"
    assert not first.earlier


def test_two_jobs_add_to_one_file(tmp_path):
    jobs = [Findings(HOST, str(tmp_path)) for _ in range(2)]
    for number, job in enumerate(jobs):
        job.add(f"sum {number}", TIMES, True)
    assert Findings(HOST, str(tmp_path)).earlier == {"sum 0", "sum 1"}


def test_other_machines_have_other_files(tmp_path):
    Findings(HOST, str(tmp_path)).add("sum", TIMES, True)
    other = Findings(HOST | {"cpu": "another"}, str(tmp_path))
    assert other.get("sum") is None
    os.rename(Findings(HOST, str(tmp_path)).path, other.path)  # the name alone is not believed
    assert Findings(other.host, str(tmp_path)).get("sum") is None


GOOD = {"times": TIMES, "sure": True, "when": time.time()}
DAMAGED = [
    GOOD | {"times": {"shared": 1e-5}},  # without native
    GOOD | {"times": TIMES | {"ring": -1.0}},
    GOOD | {"times": TIMES | {"ring": float("nan")}},
    GOOD | {"times": TIMES | {"ring": 1e9}},
    GOOD | {"times": TIMES | {"ring": "fast"}},
    GOOD | {"times": TIMES | {"warp": 1e-5}},
    GOOD | {"times": [1, 2]},
    GOOD | {"sure": 1},
    GOOD | {"when": "now"},
    GOOD | {"when": time.time() + 1e6},
    GOOD | {"when": time.time() - findings.KEPT_SECONDS - 1},
    GOOD | {"sure": False, "when": time.time() - findings.UNSURE_SECONDS - 1},
    GOOD | {"more": 1},
    {"times": TIMES},
    None,
]


@pytest.mark.parametrize("entry", DAMAGED, ids=lambda entry: str(entry)[-70:])
def test_entries_that_make_no_sense_are_passed_over(tmp_path, entry):
    kept = Findings(HOST, str(tmp_path))
    whole = {"format": findings.FORMAT, "host": HOST, "found": {"good": GOOD, "bad": entry}}
    with open(kept.path, "w") as file:
        json.dump(whole, file)
    assert Findings(HOST, str(tmp_path)).earlier == {"good"}


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "\0\1\2", "[" * 100_000, '{"format": 1}', json.dumps({"format": 0, "host": HOST}), "é" * 9],
)
def test_a_damaged_file_is_passed_over_and_replaced(tmp_path, text):
    kept = Findings(HOST, str(tmp_path))
    with open(kept.path, "wb") as file:
        file.write(text.encode("latin-1"))
    known = Findings(HOST, str(tmp_path))
    assert not known.earlier
    known.add("sum", TIMES, True)
    assert Findings(HOST, str(tmp_path)).earlier == {"sum"}


@pytest.mark.parametrize("place", ["/dev/null/x", "/proc/none/here"])
def test_where_nothing_can_be_written_things_are_remembered_all_the_same(place):
    known = Findings(HOST, place)
    known.add("sum", TIMES, True)
    assert known.get("sum").times == TIMES
    assert not Findings(HOST, place).earlier


def test_forgetting_is_for_this_process(tmp_path):
    known = Findings(HOST, str(tmp_path))
    known.add("sum", TIMES, True)
    known.left = 0.0
    known.forget()
    assert (known.get("sum"), known.left) == (None, findings.BUDGET_SECONDS)
    known.add("step", TIMES, True)
    assert known.get("sum") is None
    assert Findings(HOST, str(tmp_path)).earlier == {"sum", "step"}


@pytest.mark.parametrize(
    ("env", "place"),
    [
        ({"HOME": "/home/a"}, "/home/a/.cache/distai-mpi"),
        ({"HOME": "/home/a", "XDG_CACHE_HOME": "/var/b"}, "/var/b/distai-mpi"),
        ({"HOME": "/home/a", "XDG_CACHE_HOME": "b"}, "/home/a/.cache/distai-mpi"),  # not absolute: to be ignored
        ({"HOME": "/home/a", "DISTAI_CACHE": "/c"}, "/c"),
        ({"HOME": "/home/a", "DISTAI_CACHE": "0"}, None),
        ({"HOME": "/home/a", "DISTAI_CACHE": "None"}, None),
        ({"HOME": ""}, None),
        ({}, None),
    ],
)
def test_folder(env, place):
    assert folder(env) == place


# --- on several ranks


def fixed(comm, calls, faster=()):
    """A measurement that takes no time: native takes 100 µs, the rank number makes it another on every rank."""

    def measure(of, steps, nbytes, dtype, shared, names, seconds):
        assert of is comm
        calls.append((steps, nbytes, str(dtype), shared, list(names), seconds))
        times = {name: (1e-6 if name in faster else 2e-4) for name in names} | {"native": 1e-4}
        if comm.rank:  # what other ranks think would lead elsewhere
            times = {name: 1e-9 * (1 + (number + comm.rank) % len(names)) for number, name in enumerate(names)}
        return Verdict(times, comm.rank == 0)

    return measure


@pytest.fixture
def world(request, fresh):
    """A communicator, of pretended nodes where the test names some that fit."""
    from mpi4py import MPI

    nodes = getattr(request, "param", None)
    if nodes is not None and sum(nodes) != MPI.COMM_WORLD.size:
        nodes = None
    with Communicator(MPI.COMM_WORLD, nodes=nodes) as communicator:
        yield communicator


NODES = [None, [1, 1], [1, 2], [1, 3], [2, 2], [1, 1, 1, 1]]


@mpi
@pytest.mark.parametrize("world", NODES, indirect=True)
@pytest.mark.parametrize("faster", ["native", "shared", "hierarchical", "ring", "recursive_doubling"])
def test_rank_0_decides_for_all(world, faster):
    calls = []
    world.tuning = Tuner(world, fixed(world, calls, [faster]))
    names = {nbytes: world.resolve("auto", nbytes // 4, "f4") for nbytes in (4096, 1 << 16, 1 << 26)}
    assert len(set(world.allgather_object(tuple(names.items())))) == 1
    assert len(set(world.allgather_object(len(calls)))) == 1
    if world.size == 1:
        assert (set(names.values()), calls) == ({"native"}, [])
        return
    for (nbytes, name), call in zip(names.items(), calls, strict=True):
        assert name == (faster if faster in call[4] else "native")
        assert call[:4] == (True, min(nbytes, 4 << 20), "float32", True)
    assert calls[0][5] <= tuning.STEP_SECONDS


@mpi
def test_what_was_measured_once_is_not_measured_again(world):
    calls = []
    world.tuning = Tuner(world, fixed(world, calls, ["ring"]))
    x = np.ones(10_000)
    for _ in range(3):
        world.allreduce(x)
        assert world.resolve("auto", 10_000, "f8") == ("ring" if world.size > 1 else "native")
    world.allreduce(np.ones(11_000))
    world.allreduce(np.ones(20_000, "f4"))
    several = world.size > 1
    assert [call[:4] for call in calls] == [(False, 65536, "float64", False), (True, 65536, "float64", True)] * several
    world.allreduce(np.ones(10_000, "i8"))
    shared = world.empty(10_000, "f8")
    world.allreduce(shared)
    assert world.tuning.named(shared) == ("ring" if several else "native")
    assert [call[2:4] for call in calls[2:]] == [("int64", False), ("float64", True)] * several
    with Communicator(world._comm) as second:
        second.tuning = Tuner(second, fixed(second, []))
        assert second.resolve("auto", 10_000, "f8") == ("ring" if several else "native")


@mpi
def test_tiny_vectors_and_single_ranks_are_not_measured(world):
    calls = []
    world.tuning = Tuner(world, fixed(world, calls, ["ring"]))
    for size in (0, 1, 511):
        x = np.ones(size)
        world.allreduce(x)
        np.testing.assert_array_equal(x, world.size)
        assert world.resolve("auto", size, "f8") == "native"
    assert world.tuning.explain(511, "f8") is None
    assert not calls


@mpi
def test_the_budget_is_for_all_and_then_neighbours_tell(world):
    if world.size == 1:
        return
    calls = []

    def measure(*args):
        time.sleep(args[-1])
        return slow(*args)

    slow = fixed(world, calls, ["ring"])
    world.tuning = Tuner(world, measure)
    began = time.perf_counter()
    sizes = [1 << power for power in range(12, 24)]
    names = [world.tuning.allreduce(np.empty(nbytes, "u1"))[0] for nbytes in sizes]
    assert len(set(world.allgather_object(tuple(names)))) == 1
    assert sum(call[5] for call in calls) <= findings.BUDGET_SECONDS + 1e-9
    assert len(calls) < len(sizes) or time.perf_counter() - began < 1.0
    asked = [call[1] for call in calls]
    assert all(b >= 2 * a for a, b in pairwise(asked))
    longest = world.tuning.step(1 << 20, "f4")  # nothing like it is known: what is usual
    assert longest == ("shared" if len(world.leaders) == 1 else "hierarchical")
    assert len(calls) == len(asked)


@mpi
def test_on_a_busy_machine_the_usual_is_taken(world):
    if world.size == 1:
        return
    calls = []
    sure = fixed(world, calls, ["ring"])
    world.tuning = Tuner(world, lambda *args: Verdict(sure(*args).times, False))
    usual = "shared" if len(world.leaders) == 1 else "hierarchical"
    assert world.resolve("auto", 1 << 16, "f4") == usual
    assert world.resolve("auto", 1 << 10, "f4") == "native"
    assert world.resolve("auto", 1 << 16, "f4") == usual
    assert len(calls) == 2
    if world.rank == 0:
        assert "too busy to tell" in str(world.tuning.explain(1 << 16, "f4"))


@mpi
def test_where_memory_cannot_be_shared_the_rest_is_chosen_from(world):
    calls = []
    whole = fixed(world, calls, ["ring"])

    def measure(*args):
        verdict = whole(*args)
        return Verdict({name: t for name, t in verdict.times.items() if name not in SHARING}, verdict.settled)

    world.tuning = Tuner(world, measure)
    assert world.resolve("auto", 1 << 16, "f4") == ("ring" if world.size > 1 else "native")


@pytest.fixture
def cache(world, monkeypatch):
    """A folder that all ranks see, for what is found."""
    path = world.bcast_object(tempfile.mkdtemp(prefix="findings") if world.rank == 0 else None)
    monkeypatch.setenv("DISTAI_CACHE", path)
    yield path
    world.barrier()
    if world.rank == 0:
        shutil.rmtree(path)


@mpi
@pytest.mark.parametrize("damage", [False, True])
def test_a_later_process_goes_by_the_file(world, cache, monkeypatch, damage):
    if world.size == 1:
        return
    calls = []
    world.tuning = Tuner(world, fixed(world, calls, ["ring"]))
    assert world.resolve("auto", 1 << 16, "f4") == "ring"
    if world.rank == 0:
        (name,) = os.listdir(cache)
        if damage:
            with open(os.path.join(cache, name), "r+") as file:
                file.truncate(100)
    world.barrier()
    monkeypatch.setattr(findings, "_known", {})
    world.tuning = Tuner(world, fixed(world, calls, ["native"]))
    assert world.resolve("auto", 1 << 16, "f4") == ("native" if damage else "ring")
    assert len(calls) == 1 + damage
    if world.rank == 0:
        told = str(world.tuning.explain(1 << 16, "f4"))
        assert ("in an earlier run" in told) != damage
        assert re.match(r"(ring|native) \(µs for 256 KiB: ", told)
        with open(os.path.join(cache, name)) as file:
            assert json.load(file)["host"]["nodes"] == [world.size]


@mpi
def test_the_key_tells_jobs_apart(world):
    host = findings.host([2, 2], 1 << 30, {"OMPI_MCA_btl": "tcp,self", "USER": "me"})
    assert host["transport"] == {"OMPI_MCA_btl": "tcp,self"}
    assert host["nodes"] == [2, 2]
    assert re.match(r".+ \d+\.\d+", host["mpi"])
    assert host["cpu"]
    assert host["package"]
    assert json.loads(json.dumps(host)) == host
    others = [findings.host([4], 1 << 30, {}), findings.host([2, 2], 1 << 30, {}), findings.host([2, 2], 99, {})]
    assert len({findings.digest(each) for each in [host, *others]}) == 4


# --- the real measurement


@mpi
@pytest.mark.parametrize("world", NODES, indirect=True)
def test_auto_sums_rightly_at_any_length_and_counts_only_what_was_asked_for(world, monkeypatch):
    monkeypatch.setattr(world, "_check", True)
    rounds, sent = world.rounds, world.bytes_sent
    lengths = [1, 100, 5_000, 70_001, 5_000, 1_000_003]
    for length, dtype in product(lengths, ("f4", "f8")):
        for x in (np.empty(length, dtype), world.empty(length, dtype)):
            x[:] = np.arange(length) % 100 + world.rank
            world.allreduce(x)
            expected = world.size * (np.arange(length) % 100) + sum(range(world.size))
            np.testing.assert_array_equal(x, expected.astype(dtype))
    assert world.rounds - rounds == (2 * 2 * len(lengths) if world.size > 1 else 0)
    moved = world.sum(world.bytes_sent - sent)[0]
    nbytes = 2 * sum(lengths) * (4 + 8)
    assert moved <= 2 * world.size * nbytes  # measuring alone is ten times as much
    assert (moved > 0) == (world.size > 1)


@mpi
@pytest.mark.parametrize("world", NODES, indirect=True)
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_resolve_measures_counts_nothing_and_gives_what_steps_can_use(world, dtype):
    rounds, sent = world.rounds, world.bytes_sent
    for size in (200, 40_000, 3_000_000):
        name = world.resolve("auto", size, dtype)
        assert name in ALGORITHMS or name == ("shared" if len(world.leaders) == 1 else "hierarchical")
        assert len(set(world.allgather_object(name))) == 1
    assert (world.rounds, world.bytes_sent) == (rounds, sent)


@mpi
def test_a_recorder_hears_nothing_of_it(world):
    class Heard(list):
        def mark(self, phase):
            self.append(phase)
            return phase

        def timed(self, phase, work):
            return lambda: self.append(phase) or work()

    heard = Heard()
    world.empty(10, "f4")
    world.trace(heard)
    world.resolve("auto", 40_000, "f4")
    assert not heard
    world.allreduce(np.ones(1000), "ring")
    before = len(heard)
    world.allreduce(np.ones(1000), "ring")
    assert (len(heard) > before) == (world.size > 1)


@mpi
def test_scratch_is_given_back(world):
    world.empty(10, "f4")
    before = len(world._sharing._registry._found)
    world.resolve("auto", 3_000_000, "f4")
    assert len(world._sharing._registry._found) == before


@mpi
def test_a_vector_on_a_device_is_not_shared(world):
    from distai_mpi import backend

    calls = []
    world.tuning = Tuner(world, fixed(world, calls))
    device = object.__new__(backend.Device)
    assert world.resolve("auto", 1 << 16, "f4", device) == "native"
    assert all(not set(call[4]) & set(SHARING) for call in calls)


@mpi
def test_ranks_that_ask_for_different_sums_are_told(world, monkeypatch):
    monkeypatch.setattr(world, "_check", True)
    x = np.ones(1000 + world.rank)
    if world.size > 1:
        with pytest.raises(ConfigError, match="vectors of allreduce differ"):
            world.allreduce(x)


# --- the commands


def job(run_command, tmp_path, *words, ranks=2):
    done = run_command(ranks, *words, env={"DISTAI_CACHE": str(tmp_path / "cache")}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_training_measures_once_and_tells(run_command, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "rows.npz", x=rng.normal(size=(64, 40)), y=rng.integers(0, 2, 64))
    flags = ("train", "--data", "rows.npz", "--epochs", "1", "--hidden", "50", "--model", "mlp", "--out", "run")
    first, second, named = (
        job(run_command, tmp_path, *flags, *more) for more in (["-v"], ["-v"], ["-v", "--allreduce", "ring"])
    )
    pattern = r"^exchange (\w+) \(µs for 8 KiB: .*native [\d.,]+.*; (.*)\)$"
    (chosen, how), (again, whence) = (re.search(pattern, text, re.MULTILINE).groups() for text in (first, second))
    assert how.startswith("measured now")
    assert whence.startswith("in an earlier run")
    assert chosen == again
    assert "exchange ring\n" in named
    assert json.loads((tmp_path / "run/result.json").read_text())["allreduce"] == "ring"
    assert "exchange" not in job(run_command, tmp_path, *flags)
    assert json.loads((tmp_path / "run/result.json").read_text())["allreduce"] == chosen
    assert "exchange native\n" in job(run_command, tmp_path, *flags, "-v", ranks=1)


def test_a_run_that_goes_on_keeps_its_exchange(run_command, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "rows.npz", x=rng.normal(size=(64, 40)), y=rng.integers(0, 2, 64))
    flags = ("train", "--data", "rows.npz", "--model", "softmax", "--out", "run", "--checkpoint-every", "1", "-v")
    job(run_command, tmp_path, *flags, "--epochs", "1", "--allreduce", "rabenseifner")
    told = job(run_command, tmp_path, *flags, "--epochs", "2", "--resume")
    assert "exchange rabenseifner\n" in told
    assert json.loads((tmp_path / "run/result.json").read_text())["allreduce"] == "rabenseifner"
    assert "rabenseifner" not in (tmp_path / "run/settings.toml").read_text()
    assert "exchange native\n" in job(run_command, tmp_path, *flags, "--epochs", "3", "--resume", ranks=1)


def test_info_tells_what_is_known_and_measures_when_asked(run_command, tmp_path):
    assert "not measured here yet" in job(run_command, tmp_path, "info")
    shown = [job(run_command, tmp_path, "info", *more) for more in (["--measure"], [])]
    for text, source in zip(shown, ("measured now", "in an earlier run"), strict=True):
        lines = [line for line in text.splitlines() if "(µs for" in line]
        assert [re.search(r"for (.*?):", line)[1] for line in lines] == ["4 KiB", "256 KiB", "4 MiB or more"]
        assert all(source in line for line in lines)
    alone = job(run_command, tmp_path, "info", "--measure", ranks=1)
    assert "µs" not in alone
    assert "not measured" not in alone


@mpi
def test_a_load_beyond_the_job_is_a_busy_machine(monkeypatch, world):
    """On which measurements do not count."""
    monkeypatch.setattr("os.getloadavg", lambda: (99.0, 0.0, 0.0))
    assert world.tuning._busy()
    monkeypatch.setattr("os.getloadavg", lambda: (0.5, 0.0, 0.0))
    assert not world.tuning._busy()
