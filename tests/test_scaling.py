"""Scaling: curves against closed forms, parts of a communicator, and ``bench scaling`` itself."""

import json
import os
import time
from types import SimpleNamespace

import numpy as np
import pytest
from alone import Alone
from commands import run_here

from distai_mpi import data
from distai_mpi.cli.bench import scaling as command
from distai_mpi.errors import ConfigError
from distai_mpi.perf import charts, laws, machine
from distai_mpi.perf.scaling import LAWS, curve, default_counts, packed


@pytest.mark.parametrize(
    ("size", "counts"), [(2, [1, 2]), (3, [1, 2, 3]), (4, [1, 2, 4]), (6, [1, 2, 4, 6]), (16, [1, 2, 4, 8, 16])]
)
def test_default_counts(size, counts):
    assert default_counts(size) == counts


def test_packed_fills_node_after_node():
    assert packed([0, 1, 0, 1, 4]) == [0, 2, 1, 3, 4]


@pytest.mark.parametrize("kind", ["strong", "weak"])
@pytest.mark.parametrize("p", [0.0, 0.25, 0.9, 1.0])
def test_the_fit_finds_the_fraction_that_made_the_rates(kind, p):
    law = laws.amdahl if kind == "strong" else laws.gustafson
    drift = (1.0, 0.5, 2.0)  # of the machine, from turn to turn: ratios within a turn do not see it
    rates = {n: [1000 * law(n, p) * d for d in drift] for n in (1, 2, 3, 8)}
    found = curve(kind, rates)
    assert found.share == pytest.approx(p, abs=1e-12)
    assert not found.at_bound
    assert [point.ranks for point in found.points] == [1, 2, 3, 8]
    for point in found.points:
        assert point.speedup == pytest.approx(law(point.ranks, p))
        assert point.law == pytest.approx(point.speedup)
        assert point.efficiency == pytest.approx(point.speedup / point.ranks)
        assert (point.rate, point.side_by_side) == pytest.approx((1000 * law(point.ranks, p), 1000 * point.ranks))
        assert point.share is None if point.ranks == 1 else point.share == pytest.approx(p, abs=1e-12)


@pytest.mark.parametrize("kind", ["strong", "weak"])
@pytest.mark.parametrize(("speedup", "fraction"), [(2.5, 1.0), (0.5, 0.0)])
def test_a_speedup_that_no_fraction_explains_is_shown_as_it_is(kind, speedup, fraction):
    found = curve(kind, {1: [10.0], 2: [10 * speedup]})
    assert (found.share, found.at_bound) == (fraction, True)
    last = found.points[-1]
    assert last.speedup == speedup
    assert last.share == LAWS[kind].fraction(2, speedup)
    assert not 0 <= last.share <= 1
    told = command.verdict(found)
    assert "from one ratio alone" in told
    assert "outside 0 to 1" in told


def test_the_verdict_names_amdahls_limit():
    told = command.verdict(curve("strong", {n: [laws.amdahl(n, 0.9)] for n in (1, 2, 4)}))
    assert told == "Amdahl: parallel fraction p = 0.9000; at most 10.0 times one rank, however many work"


@pytest.mark.parametrize("rates", [{1: [1.0]}, {2: [1.0], 4: [2.0]}])
def test_a_curve_needs_one_rank_and_others(rates):
    with pytest.raises(ValueError, match="rates of one rank and of others"):
        curve("strong", rates)


@pytest.mark.parametrize(("ranks", "counts"), [(None, [1, 2, 4]), ("2,4", [1, 2, 4]), ("3", [1, 3]), ("1, 4", [1, 4])])
def test_counts(ranks, counts):
    assert command.parse_counts(ranks, 4) == counts


@pytest.mark.parametrize("ranks", ["", "5", "0,2", "1", "two", "2,,4", "-1,2"])
def test_counts_that_cannot_be(ranks):
    with pytest.raises(ConfigError, match=r"--ranks .*from 1 to 4"):
        command.parse_counts(ranks, 4)


def test_one_rank_has_nothing_to_compare():
    with pytest.raises(ConfigError, match="mpiexec -n N"):
        command.parse_counts(None, 1)


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (("--out", "x"), "--out"),
        (("--json",), "--json"),
        (("--trace", "t.json"), "--trace"),
        (("--shards", "3,1"), "--shards"),
        (("--optimizer", "gd", "--tol", "1e-3"), "--tol"),
        (("--model", "softmax", "--hidden", "3"), "--hidden belongs to"),
    ],
)
def test_flags_that_do_not_belong(flags, word):
    with pytest.raises(ConfigError, match=word):
        command.train_settings(flags)


def test_the_flags_of_train_are_taken():
    settings = command.train_settings(("--lr", "0.5", "--hidden", "3,2", "--batch-size", "7"))
    assert (settings["lr"], settings["hidden"], settings["batch_size"]) == (0.5, (3, 2), 7)
    assert settings["data"] == "mnist"


def test_a_saved_run_can_be_measured_again(tmp_path):
    saved = tmp_path / "run.toml"
    saved.write_text(
        "lr = 0.25\nout = 'elsewhere'\nvalid = 0.1\npatience = 3\nepochs = 7\n"
        "checkpoint-every = 2\nshards = [3.0, 1.0]\n"
    )
    settings = command.train_settings(("--config", str(saved), "--epochs", "2"))
    assert (settings["lr"], settings["epochs"]) == (0.25, 2)
    assert (settings["out"], settings["valid"], settings["patience"]) == (None, None, None)
    assert (settings["checkpoint_every"], settings["shards"]) == (None, None)
    with pytest.raises(ConfigError, match="--out does not belong"):
        command.train_settings(("--config", str(saved), "--out", "x"))


def test_the_chart_shows_both_curves(tmp_path):
    pytest.importorskip("matplotlib", reason="not available: matplotlib")
    rates = {1: [1.0, 2.0], 2: [1.5, 5.0], 4: [3.0, 7.0]}
    chart = charts.scaling_chart([curve("strong", rates), curve("weak", rates)], "title")
    assert chart.startswith(b"\x89PNG\r\n")
    alone = charts.scaling_chart([curve("strong", rates)], "title")
    width = [int.from_bytes(png[16:20]) for png in (alone, chart)]
    assert width[1] == 2 * width[0]


def test_files_are_checked_before_the_measurement(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"FILE\.png"):
        command.check_files(None, "chart.pdf")
    with pytest.raises(ConfigError, match="cannot be written"):
        command.check_files(str(tmp_path / "none" / "x.json"), None)
    monkeypatch.setattr(charts, "find_spec", lambda name: None)
    command.check_files(str(tmp_path / "x.json"), None)
    with pytest.raises(ConfigError, match=r"matplotlib: pip install 'distai-mpi\[plot\]'"):
        command.check_files(None, str(tmp_path / "x.png"))


def test_held_threads_outlive_a_wish_for_more(monkeypatch):
    for name in machine.USER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(machine, "physical_cores", lambda: 4)
    monkeypatch.setattr(machine, "affinity", lambda: (0, 1, 2, 3))
    monkeypatch.setattr(machine, "cpu_quota", lambda: float("inf"))
    with machine.held_blas(2) as threads:
        assert threads == 2
        with machine.limited_blas(1) as inner:
            assert inner == 2, "the number is held"
    with machine.limited_blas(4) as threads:
        assert threads == 1


@pytest.mark.parametrize("shuffle", ["global", "local"])
def test_same_rows_are_each_ranks_own_and_disjoint(shuffle):
    x = np.arange(20.0).reshape(10, 2)
    whole = data.Dataset(x, np.arange(10) % 2, scale=0.5)
    taken = []
    for rank in range(3):
        comm = Alone()
        comm.rank = rank if shuffle == "global" else 0
        shard = data.whole(whole) if shuffle == "global" else data.from_local(whole, Alone())
        own = command.same_rows(shard, comm, 3)
        assert own.shuffle == "local"
        assert own.dataset.scale == 0.5
        taken.append(own.dataset.x[:, 0].tolist())
    assert taken == ([[0, 2, 4], [6, 8, 10], [12, 14, 16]] if shuffle == "global" else [[0, 2, 4]] * 3)
    with pytest.raises(ConfigError, match="a row for each rank"):
        command.same_rows(shard, Alone(), 0)


# --- parts of a communicator


@pytest.fixture
def rows(shared_folder):
    rng = np.random.default_rng(0)
    x, y = rng.random((400, 5)), rng.integers(0, 3, 400)
    return shared_folder(lambda folder: np.savez(folder / "rows.npz", x=x, y=y)) / "rows.npz"


@pytest.mark.mpi
def test_parts_are_communicators_of_their_own(comm):
    for ranks in ([0], list(range(comm.size)), list(reversed(range(comm.size))), [comm.size - 1]):
        part = comm.part(ranks)
        assert (part is None) == (comm.rank not in ranks)
        if part is not None:
            with part:
                assert (part.rank, part.size) == (ranks.index(comm.rank), len(ranks))
                x = np.full(3, comm.rank + 1, np.float64)
                part.allreduce(x)
                assert x.tolist() == [sum(rank + 1 for rank in ranks)] * 3
                shared = part.node_array((4,), np.float64)
                part.barrier()
                shared[:] = 1
        comm.barrier_asleep()


@pytest.mark.mpi
@pytest.mark.parametrize("wrong", [[], [0, 0], [-1], [1000]])
def test_parts_of_nobody(comm, wrong):
    with pytest.raises(ValueError, match="each once"):
        comm.part(wrong)


@pytest.mark.mpi(min_size=2)
def test_those_who_wait_sleep(comm):
    comm.barrier()
    used = time.process_time()
    if comm.rank == 0:
        time.sleep(1.0)
    comm.barrier_asleep()
    assert time.process_time() - used < 0.5, "of CPU time in a wait of 1 s: the rank spins"


@pytest.mark.mpi
@pytest.mark.parametrize("kind", ["strong", "weak"])
def test_all_counts_do_the_work_they_should(comm, rows, kind, monkeypatch):
    """What reaches `fit` at each count: rows, global batch, and the same one on all of a part's ranks."""
    from distai_mpi import train

    seen = []

    def fit(model, shard, part, *, global_batch_size, **options):
        seen.append((part.size, shard.rows, shard.counts[part.rank], global_batch_size, options["epochs"]))
        return SimpleNamespace(status="completed", samples_per_second=100.0 * part.size)

    monkeypatch.setattr(train, "fit", fit)
    flags = ("--data", str(rows), "--test-fraction", "0", "--global-batch-size", "240", "--epochs", "3")
    settings = command.train_settings(("--model", "softmax", *flags))
    bench = command.Bench(comm, settings, default_counts(comm.size))
    rates = bench.run([kind], 2)
    assert rates == {kind: {n: [100.0 * n] * 2 for n in default_counts(comm.size)}}
    counts = [n for n in default_counts(comm.size) if comm.rank < n]
    rows, batch = 400, 240
    if kind == "strong":
        shards = {n: rows * (comm.rank + 1) // n - rows * comm.rank // n for n in counts}
        expected = [(n, rows, shards[n], batch) for n in counts]
    else:
        each = rows // comm.size
        expected = [(n, n * each, each, batch // comm.size * n) for n in counts]
    assert [one[:4] for one in seen] == expected * 3
    assert [one[4] for one in seen] == [1] * len(counts) + [3] * 2 * len(counts)


# --- the command


@pytest.mark.mpi(min_size=4)  # once: drawing takes long
def test_bench_scaling(comm, rows):
    pytest.importorskip("matplotlib", reason="not available: matplotlib")
    folder = rows.parent
    files = ["--json", folder / "s.json", "--plot", folder / "s.png"]
    flags = ["--data", rows, "--model", "softmax", "--epochs", 2, "--batch-size", 8]
    run = run_here("bench", "scaling", *files, "--repeats", 2, *flags)
    assert run.returncode == 0, run.stderr
    for words in ("strong scaling", "weak scaling", "Amdahl: parallel fraction p", "Gustafson: parallel fraction p"):
        assert run.stdout.count(words) == 1
    report = json.loads((folder / "s.json").read_text())
    assert report["placement"] == "packed"
    for kind, law in (("strong", "Amdahl"), ("weak", "Gustafson")):
        assert report[kind]["law"] == law
        assert [point["ranks"] for point in report[kind]["points"]] == default_counts(comm.size)
        assert all(len(point["rates"]) == 2 and min(point["rates"]) > 0 for point in report[kind]["points"])
    assert (folder / "s.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(os.listdir(folder)) == ["rows.npz", "s.json", "s.png"]


@pytest.mark.mpi(min_size=3)
def test_one_kind_and_chosen_counts(rows):
    run = run_here("bench", "scaling", "--weak", "--ranks", 3, "--repeats", 1, "--data", rows, "--model", "softmax")
    assert run.returncode == 0, run.stderr
    assert "strong" not in run.stdout
    assert [line.split()[0] for line in run.stdout.splitlines() if line.split() and line.split()[0].isdigit()] == [
        "1",
        "3",
    ]


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "nowhere.npz"], "nowhere.npz"),  # found by the one rank that works, while the others sleep
        (["--ranks", "{more}"], "--ranks {more}: give counts from 1 to {size}"),
        (["--plot", "x.pdf"], "--plot x.pdf"),
        (["--l2", "10", "--lr", "1e30", "--batch-size", "1"], "diverged"),
    ],
)
def test_errors_reach_all_ranks(comm, rows, flags, message):
    counts = {"size": comm.size, "more": comm.size + 1}
    flags = [flag.format(**counts) for flag in flags]
    run = run_here("bench", "scaling", "--data", rows, "--model", "softmax", *flags)
    assert run.returncode == 2
    assert run.stderr.count("distai-mpi: error:") == 1
    assert message.format(**counts) in run.stderr
