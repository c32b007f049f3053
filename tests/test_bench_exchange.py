"""``bench allreduce`` and ``bench step``: arithmetic and checks in one process, tiny runs on several ranks."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from alone import Alone
from run import limit

from distai_mpi import optim
from distai_mpi.cli.bench import allreduce, step
from distai_mpi.comm import ALGORITHMS, Communicator
from distai_mpi.errors import ConfigError, DistaiError
from distai_mpi.perf import charts, exchange, floors, malloc, pattern, turns
from distai_mpi.perf.exchange import Contender, Floor

mpi = pytest.mark.mpi
pytestmark = pytest.mark.ranks(2)
FACTS = {"ranks": 2, "nodes": 1, "bytes": 4000, "dtype": "float32"}

# --- what the command line says


@pytest.mark.parametrize(("text", "count"), [("4096", 4096), ("1KiB", 1024), ("3 mib", 3 << 20), ("2GiB", 2 << 30)])
def test_lengths_are_read(text, count):
    assert allreduce.Bytes().convert(text, None, None) == count


@pytest.mark.parametrize("text", ["", "0", "0KiB", "-1", "1.5KiB", "1KB", "many"])
def test_lengths_that_are_none(text):
    with pytest.raises(allreduce.click.BadParameter, match="write for example"):
        allreduce.Bytes().convert(text, None, None)


@pytest.mark.parametrize(
    ("bounds", "found"),
    [
        ((1024, 4096, 4), [1024, 4096]),
        ((1024, 10000, 2), [1024, 2048, 4096, 8192, 10000]),
        ((64, 64, 4), [64]),
    ],
)
def test_lengths_between_bounds(bounds, found):
    assert exchange.lengths(*bounds) == found


def test_types():
    assert allreduce.parse_dtypes("float32, int64,u1") == [np.float32, np.int64, np.uint8]


@pytest.mark.parametrize("text", ["", "float33", "float32,", "complex64", "bool", "str"])
def test_types_that_cannot_be_summed(text):
    with pytest.raises(ConfigError, match=r"--dtype .*no type of numbers"):
        allreduce.parse_dtypes(text)


@pytest.mark.parametrize(("bounds", "word"), [((4, 64), "--min-bytes 4"), ((64, 32), "--max-bytes 32")])
def test_bounds_that_cannot_be(bounds, word):
    with pytest.raises(ConfigError, match=word):
        allreduce.check_lengths(*bounds, 8)


def ranks_on(*leaders):
    return SimpleNamespace(size=4, leaders=leaders)


def test_names():
    assert allreduce.parse_names("ring, shared-once,ring", ranks_on(0)) == ["ring", "shared-once"]
    one, several = (allreduce.parse_names(None, ranks_on(*leaders)) for leaders in ((0,), (0, 2)))
    assert set(ALGORITHMS) | {"native-kept", "native-persistent", "auto"} == set(one) & set(several)
    assert {"shared", "shared-once"} == set(one) - set(several)
    assert {"hierarchical", "hierarchical-once"} == set(several) - set(one)


@pytest.mark.parametrize(
    ("text", "leaders", "word"), [("rign", (0,), "no 'rign'"), ("shared-once", (0, 2), "one node")]
)
def test_names_that_cannot_be(text, leaders, word):
    with pytest.raises(ConfigError, match=word):
        allreduce.parse_names(text, ranks_on(*leaders))


def test_one_rank_has_nothing_to_exchange():
    with pytest.raises(ConfigError, match="nothing to exchange"):
        allreduce.parse_names(None, Alone())


def test_optimizers():
    assert step.make_optimizer("adam") == optim.Adam()
    with pytest.raises(ConfigError, match="no 'adma'; choose from gd, sgd"):
        step.make_optimizer("adma")


# --- arithmetic


def contender(name, *seconds):
    return Contender(name, turns.nothing, turns.nothing, seconds=list(seconds), resolved=name)


def test_a_turn_is_the_median_of_its_samples_on_the_slowest_rank():
    first = [[[1.0, 9.0, 2.0], [5.0]], [[0.5], [0.5]]]  # candidate, turn, sample
    second = [[[3.0, 1.0, 7.0], [4.0]], [[0.1], [0.7]]]
    assert turns.merged([first, second]) == [[7.0, 5.0], [0.5, 0.7]]


def test_ratios_agree_with_the_seconds_beside_them():
    contenders = [contender("native", 1e-6, 2e-6, 9e-6), contender("ring", 4e-6, 3e-6, 3e-6)]
    (native, ring), _ = exchange.rows(contenders, [], FACTS)
    assert ring["ratio_to_native"] == ring["seconds"] / native["seconds"] == 1.5  # the turns' own: 4, 1.5 and 0.33


def test_ratios_are_to_the_faster_malloc():
    drift = (1.0, 4.0, 2.0)
    contenders = [
        contender("native", *(8e-6 * d for d in drift)),
        contender("native-kept", *(4e-6 * d for d in drift)),
        contender("shared", *(1e-6 * d for d in drift)),
        contender("shared-once", *(2e-6 * d for d in drift)),
    ]
    floors_ = [
        Floor("fast", turns.nothing, turns.nothing, seconds=[2e-6, 1e-6, 1e-6], once=True, traffic=6000),
        Floor("slow", turns.nothing, turns.nothing, seconds=[3e-6, 2e-6, 2e-6], once=True, traffic=6000),
    ]
    rows, memory = exchange.rows(contenders, floors_, FACTS)
    by_name = {row["algorithm"]: row for row in rows}
    assert {name: row["ratio_to_native"] for name, row in by_name.items()} == pytest.approx(
        {"native": 2, "native-kept": 1, "shared": 0.25, "shared-once": 0.5}
    )
    shared, once = by_name["shared"], by_name["shared-once"]
    assert (shared["seconds"], shared["fastest"], shared["turns"]) == pytest.approx((2e-6, 1e-6, 3))
    assert shared["bytes_per_second"] == pytest.approx(2e9)
    assert (shared["out"], shared["floor_seconds"], shared["ratio_to_floor"]) == ("in place", None, None)
    assert (once["out"], once["floor_seconds"], once["ratio_to_floor"]) == ("once", 1e-6, 4)
    assert [(one["loop"], one["seconds"], one["out"]) for one in memory] == [("fast", 1e-6, "once")]
    assert memory[0]["bytes_per_second_of_a_rank"] == pytest.approx(6e9)
    assert FACTS.items() <= rows[0].items()


def test_without_native_there_is_no_ratio():
    rows, memory = exchange.rows([contender("ring", 1.0)], [], FACTS)
    assert (rows[0]["ratio_to_native"], memory) == (None, [])


def test_the_table_has_a_line_for_each_row():
    rows, _ = exchange.rows([contender("native", 2e-6), contender("auto", 1e-6)], [], FACTS)
    rows[1]["resolved"] = "ring"
    memory = [FACTS | {"out": "once", "seconds": 5e-7}]
    longer = [row | {"bytes": 8000} for row in rows]
    lines = list(allreduce.lines([*rows, *longer, *memory]))
    assert [cells for cells, _ in lines[:3]] == [
        ["4,000", "native", "2.0", "2.00", "1.00", ""],
        ["4,000", "auto: ring", "1.0", "4.00", "0.50", ""],
        ["4,000", "floor, once", "0.5", "8.00", "", ""],
    ]
    assert [last for _, last in lines] == [False, False, True, False, True]


def test_the_remarks_tell_of_crowding_and_of_what_was_left_out():
    skipped = [FACTS | {"algorithm": None, "reason": "no room"}, FACTS | {"algorithm": "ring", "reason": "why"}]
    report = {"mpi": "Open MPI 5.0.11", "load": 0.26, "cpus": 1, "ranks": 2, "nodes": 1, "skipped": skipped}
    told = allreduce.remarks(report)
    assert "load before the run 0.3" in told[0]
    assert "more ranks than CPUs (1)" in told[1]
    assert told[2:] == [
        "left out: 4,000 bytes of float32: no room",
        "left out: 4,000 bytes of float32, ring: why",
    ]
    assert allreduce.crowding({"cpus": 2, "ranks": 4, "nodes": 2}) == []


def test_the_parts_of_steps_are_means_over_ranks():
    candidates = [contender("shared", 1.0), contender("native-replica", 4.0), contender("native-replica-kept", 2.0)]
    of_ranks = [[(1.0, 2.0, 3.0), (3.0, 4.0, 5.0)]] * 3
    ours, plain, kept = step.rows(candidates, of_ranks, {"ranks": 2})
    assert [ours[field] for field in step.FIELDS] == [2.0, 3.0, 4.0]
    assert [plain[field] for field in step.FIELDS] == [2.0, 3.0, 4.0]
    assert [row["ratio_to_native"] for row in (ours, plain, kept)] == [0.5, 2.0, 1.0]


def test_the_chart_has_a_column_for_each_type(tmp_path):
    pytest.importorskip("matplotlib", reason="not available: matplotlib")
    rows, _ = exchange.rows([contender("native", 2e-6), contender("auto", 1e-6)], [], FACTS)
    memory = [FACTS | {"out": "once", "seconds": 5e-7}]
    one = charts.exchange_chart(rows, memory, "title")
    two = charts.exchange_chart([*rows, *(row | {"dtype": "int8", "ratio_to_native": None} for row in rows)], [], "")
    assert [png[:4] for png in (one, two)] == [b"\x89PNG"] * 2
    assert int.from_bytes(two[16:20]) == 2 * int.from_bytes(one[16:20])
    report = {"ranks": 2, "nodes": 1, "rows": rows, "memory": memory}
    allreduce.write(report, str(tmp_path / "a.json"), str(tmp_path / "a.png"))
    assert (tmp_path / "a.png").read_bytes() == charts.exchange_chart(rows, memory, "sums over 2 ranks on 1 node")
    assert json.loads((tmp_path / "a.json").read_text()) == report


# --- what sums are checked with, and the floors


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.uint8])
@pytest.mark.parametrize("size", [1, 5, pattern.BLOCK, pattern.BLOCK + 3])
def test_the_pattern_sees_every_wrong_element(dtype, size):
    vectors = [np.empty(size, dtype) for _ in range(3)]
    for rank, x in enumerate(vectors):
        pattern.write(x, rank)
    summed = np.add.reduce(vectors, dtype=dtype)
    expected = pattern.total(3, dtype)
    assert pattern.repeats(summed, expected)
    for element in {0, size // 2, size - 1}:
        summed[element] += 1
        assert not pattern.repeats(summed, expected)
        summed[element] -= 1
    assert pattern.repeats(summed, expected)
    assert not pattern.repeats(vectors[0], expected)


@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize("m", [16, 2048, 5008])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_floors_do_the_work(dtype, m, k):
    rng = np.random.default_rng(0)
    start = rng.integers(0, 9, (k, m)).astype(dtype)
    total = start.sum(0, dtype=dtype)
    once, in_place = floors.loops(np.dtype(dtype))
    for loop in (floors.numpy_once, *once):
        x, room = start.copy(), np.zeros(m + 64, dtype)
        out = room[-room.ctypes.data % 64 // room.itemsize :][:m]
        loop(x, out)
        np.testing.assert_array_equal(out, total, loop.__name__)
        np.testing.assert_array_equal(x, start, loop.__name__)
    for loop in (floors.numpy_in_place, *in_place):
        x = start.copy()
        loop(x)
        np.testing.assert_array_equal(x, np.broadcast_to(total, (k, m)), loop.__name__)


FAULTS = """
import ctypes, resource
from distai_mpi.perf import malloc
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
def faults():
    for _ in range(2):  # the second counts
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        memory = libc.malloc(ctypes.c_size_t(64 << 20))
        ctypes.memset(memory, 1, 64 << 20)
        libc.free(memory)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
found = [faults()]
for change in (malloc.keep, malloc.give_back, malloc.keep) if malloc.why_not() is None else ():
    change()
    found.append(faults())
print(*(count > 100 for count in found))
"""


def test_malloc_keeps_what_it_keeps_by_its_environment():
    if malloc.why_not({}) is not None:
        pytest.skip("not available: malloc of glibc")
    plain = {name: value for name, value in os.environ.items() if name not in malloc.VARIABLES}
    kept = plain | {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}
    found = [
        subprocess.run(
            [sys.executable, "-c", FAULTS], env=env, capture_output=True, text=True, timeout=limit(60), check=True
        )
        for env in (plain, kept)
    ]
    assert [run.stdout.split() for run in found] == [["True", "False", "True", "False"], ["False"]]


def test_a_malloc_that_the_user_has_told_is_left_alone():
    assert "MALLOC_MMAP_MAX_" in malloc.why_not({"MALLOC_MMAP_MAX_": "0"})
    assert "GLIBC_TUNABLES" in malloc.why_not({"GLIBC_TUNABLES": "glibc.malloc.mmap_max=0"})


# --- on several ranks


@pytest.fixture
def quick(monkeypatch):
    """Two samples a visit: ranks that share a processor take their time."""
    monkeypatch.setattr(turns, "MOST_SAMPLES", 1)
    monkeypatch.setattr(exchange, "CALLS", 2)


def world():
    from mpi4py import MPI

    return MPI.COMM_WORLD


def check_rows(report, comm, names, lengths):
    assert json.loads(json.dumps(report)) == report
    left_out = {one["algorithm"] for one in report["skipped"]}
    assert left_out <= {"native-kept", "native-persistent"}
    expected = [(length, name) for length in lengths for name in names if name not in left_out]
    assert [(row["bytes"], row["algorithm"]) for row in report["rows"]] == expected
    for row in report["rows"]:
        assert (row["ranks"], row["nodes"], row["dtype"]) == (comm.size, len(comm.leaders), "float32")
        assert row["turns"] == turns.FEWEST_TURNS
        assert min(row[key] for key in ("seconds", "fastest", "bytes_per_second", "ratio_to_native")) > 0
    kinds = [] if max(map(len, comm.topology.nodes)) == 1 else ["in place", "once"]
    found = [(one["bytes"], one["out"]) for one in report["memory"]]
    assert sorted(found) == [(length, kind) for length in lengths for kind in kinds]
    assert all(one["bytes_per_second_of_a_rank"] > 0 for one in report["memory"])


@mpi(min_size=2)
def test_all_contenders_are_measured_and_their_memory_goes(comm, quick):
    names = exchange.default_names(comm)
    report = allreduce.run(comm, world(), names, [np.dtype(np.float32)], [64, 100_000], 0.0)
    check_rows(report, comm, names, [64, 100_000])
    assert [row["calls"] for row in report["rows"]][:: len(report["rows"]) - 1] == [2, 1]
    assert comm.vectors._registry._found == {}


@mpi(min_size=2)
@pytest.mark.parametrize("last", [1, None])
def test_several_nodes(comm, quick, last):
    nodes = [1] * comm.size if last is None else [comm.size - 1, 1]
    with Communicator(world(), nodes=nodes) as pretended:
        names = ["native", "hierarchical", "hierarchical-once", "auto"]
        report = allreduce.run(pretended, world(), names, [np.dtype(np.float32)], [4000], 0.0)
        check_rows(report, pretended, names, [4000])


@mpi(min_size=2)
def test_a_wrong_sum_is_seen(comm, quick, monkeypatch):
    right = ALGORITHMS["ring"]

    def wrong(wire, x, work):
        right.allreduce(wire, x, work)
        if wire.rank == 1:
            x[-1] += 1

    monkeypatch.setattr(comm.exchange("ring"), "_named", replace(right, allreduce=wrong))
    with pytest.raises(DistaiError, match="rank 1: ring: the sum of 400 bytes of float64 is wrong"):
        allreduce.run(comm, world(), ["native", "ring"], [np.dtype(np.float64)], [400], 0.0)


@mpi(min_size=2)
def test_lengths_that_do_not_fit_are_left_out_and_told(comm, quick, monkeypatch):
    left = 9 * 4096 * comm.size if comm.rank else 4096 * comm.size  # enough for the shorter on all ranks but the first
    monkeypatch.setattr(exchange, "memory_left", lambda: left)
    report = allreduce.run(comm, world(), ["ring"], [np.dtype(np.float32)], [64, 4096], 0.0)
    assert [row["bytes"] for row in report["rows"]] == [64]
    assert [(one["bytes"], one["algorithm"]) for one in report["skipped"]] == [(4096, None)]
    assert f"{left if comm.rank == 0 else 4096 * comm.size:,} left" in report["skipped"][0]["reason"]


@mpi(min_size=2)
@pytest.mark.parametrize("optimizer", [optim.Momentum(), optim.AdamW()], ids=lambda one: one.name)
def test_all_kinds_of_steps_are_measured(comm, quick, optimizer):
    report = step.run(comm, 1001, optimizer, "float32", 2)
    assert json.loads(json.dumps(report)) == report
    ours = "shared" if len(comm.leaders) == 1 else "hierarchical"
    names = [ours, "native", "ring", "rabenseifner", "native-replica", "native-replica-kept", "floor"]
    left_out = {one["algorithm"] for one in report["skipped"]}
    assert [row["algorithm"] for row in report["rows"]] == [name for name in names if name not in left_out]
    for row in report["rows"]:
        assert (row["ranks"], row["parameters"], row["optimizer"]) == (comm.size, 1001, optimizer.name)
        assert row["turns"] == 2
        assert min(row[key] for key in ("seconds", "fastest", "ratio_to_native")) > 0
        parts = [row[key] for key in ("waiting", "reducing", "updating")]
        assert parts == [None] * 3 if row["algorithm"] == "floor" else min(parts) > 0


@mpi(min_size=2)
def test_wrong_parameters_are_seen(comm, quick, monkeypatch):
    lazy = replace(ALGORITHMS["ring"], allgather=lambda *arguments: None)
    monkeypatch.setattr(comm.exchange("ring"), "_named", lazy)
    with pytest.raises(DistaiError, match="ring: the parameters are wrong"):
        step.run(comm, 1001, optim.SGD(), "float64", 1)


@mpi(min_size=2)
def test_too_many_parameters(comm):
    with pytest.raises(ConfigError, match="lower --parameters"):
        step.run(comm, 10**12, optim.SGD(), "float64", 1)


# --- the commands


def test_bench_allreduce(run_command, tmp_path):
    words = ["--algorithms", "native,ring,auto", "--min-bytes", "64", "--max-bytes", "512", "--seconds", "0"]
    run = run_command(2, "bench", "allreduce", *words, "--json", str(tmp_path / "a.json"))
    assert run.returncode == 0, run.stderr
    report = json.loads((tmp_path / "a.json").read_text())
    assert [row["bytes"] for row in report["rows"]] == [64] * 3 + [256] * 3 + [512] * 3
    assert run.stdout.count("floor, in place") == 3
    assert os.listdir(tmp_path) == ["a.json"]


def test_bench_step(run_command, tmp_path):
    words = ["--parameters", "1e3", "--repeats", "1", "--json", str(tmp_path / "s.json")]
    run = run_command(2, "bench", "step", *words)
    assert run.returncode == 0, run.stderr
    names = [row["algorithm"] for row in json.loads((tmp_path / "s.json").read_text())["rows"]]
    assert [word for word in run.stdout.split() if word in names[1:]][-len(names[1:]) :] == names[1:]
    assert "1,000 parameters of float32, momentum, 2 ranks on 1 node" in run.stdout


def test_errors_are_told_once(run_command):
    run = run_command(2, "bench", "allreduce", "--algorithms", "rign")
    assert run.returncode == 2
    assert run.stderr.count("distai-mpi: error:") == 1
    assert "no 'rign'; choose from native," in run.stderr
