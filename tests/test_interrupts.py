"""Signals from the first moment of a run on, what a run leaves behind, and runs that were completed before."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime

import numpy as np
import pytest
from commands import run_here
from run import limit

from distai_mpi.cli.finished import finished
from distai_mpi.cli.job import note
from distai_mpi.comm.allocation import Allocation, narrow_binding
from distai_mpi.exit_codes import EX_INTERRUPTED, EX_STUCK, EX_TERMINATED
from distai_mpi.signals import Signals, listening
from distai_mpi.train.provenance import slurm_job

mpi = pytest.mark.mpi
pytestmark = pytest.mark.ranks(2)
FLAGS = ["--data", "rows.npz", "--model", "softmax", "--dtype", "float64", "--allreduce", "ring", "--optimizer", "adam"]
FLAGS += ["--global-batch-size", "30", "-q"]


@pytest.fixture(scope="module")
def rows(shared_folder):
    """A folder with 300 rows in a file."""

    def write(folder):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(300, 8))
        np.savez(folder / "rows.npz", x=x, y=(x @ rng.normal(size=(8, 3))).argmax(1))

    return shared_folder(write)


# --- the signals of a process


def test_what_came_early_is_remembered_by_what_comes_later():
    with listening() as outer:
        os.kill(os.getpid(), signal.SIGUSR1)
        with listening() as inner:
            assert inner is outer
            assert inner.received == "SIGUSR1"
        os.kill(os.getpid(), signal.SIGTERM)
        assert outer.received == "SIGUSR1", "the first counts"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert not [thread for thread in threading.enumerate() if thread.name == "signals"]


def test_another_thread_changes_nothing():
    handlers = []

    def block():
        with listening():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=block)
    thread.start()
    thread.join()
    assert handlers == [signal.SIG_DFL]


def test_somebody_elses_wakeup_is_left_alone():
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write)
    try:
        with Signals() as here:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert here.received == "SIGUSR1"
        assert signal.set_wakeup_fd(before) == write
    finally:
        signal.set_wakeup_fd(before)
        os.close(read)
        os.close(write)


FORKED = """
import multiprocessing, os, signal, time
from distai_mpi.signals import listening
with listening() as here:
    ready, say = os.pipe()
    if (child := os.fork()) == 0:
        os.write(say, b"1")
        time.sleep(30)
        os._exit(7)
    os.read(ready, 1)
    os.kill(child, signal.SIGTERM)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(ended, here.received)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        print(pool.map(abs, [-1, 2]))
    time.sleep(0.5)
    print(here.received)
    os.kill(os.getpid(), signal.SIGTERM)
    print(here.received)
"""


def test_signals_of_a_forked_process_are_its_own():
    """A pool of workers in a callback is ended by SIGTERM to each of them, of which the run hears nothing."""
    done = subprocess.run(
        [sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=limit(60), check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{-signal.SIGTERM} None", "[1, 2]", "None", "SIGTERM"]


ALONE = """
import os, signal, sys, threading, time
from distai_mpi import signals
signals.PATIENCE = 0.2
with signals.listening() as here:
    here.on_leave = lambda status: print("left", status, flush=True)
    {setting}
    os.kill(os.getpid(), signal.{name})
    read, write = os.pipe()
    {wait}
    print("went on", flush=True)
"""


@pytest.mark.parametrize(
    ("setting", "name", "status"),
    [
        ("pass", "SIGTERM", EX_TERMINATED),
        ("pass", "SIGUSR1", EX_INTERRUPTED),
        ("here.begin()", "SIGTERM", EX_TERMINATED),
        ("here.begin()", "SIGUSR1", None),
        ("here.answered.set()", "SIGTERM", None),
        ("here.begin(); here.longest = 60.0", "SIGTERM", None),
        ("here.save_nothing()", "SIGUSR1", None),
        ("here.save_nothing()", "SIGTERM", -signal.SIGTERM),
    ],
)
@pytest.mark.parametrize(
    "wait", ["time.sleep(0.9)", "until = time.monotonic() + 0.9\n    while time.monotonic() < until: pass"]
)
def test_a_signal_that_nobody_answers(setting, name, status, wait):
    """A process that cannot act, in one long call or in many short ones, ends by itself where waiting leads nowhere."""
    program = ALONE.format(setting=setting, name=name, wait=wait)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=limit(60), check=False
    )
    assert done.returncode == (status or 0), done.stderr
    assert ("went on" in done.stdout) == (status is None)
    if status in (EX_TERMINATED, EX_INTERRUPTED):
        assert done.stdout == f"left {status}\n"
        assert f"{name} came" in done.stderr


def test_statuses_are_told_apart():
    assert len({0, 1, 2, EX_INTERRUPTED, EX_STUCK, EX_TERMINATED}) == 6
    assert EX_INTERRUPTED == os.EX_TEMPFAIL


# --- in a run: a program that sends itself a signal at a certain moment

PROGRAM = """
import os, signal, sys, threading, time

if "LIMIT" in os.environ:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # the record can be written, and no part of a checkpoint
WHEN, NUMBER, WHO = sys.argv.pop(1), getattr(signal, sys.argv.pop(1)), sys.argv.pop(1)
from distai_mpi import signals
from distai_mpi.comm import launch

def mine():
    rank, size = launch.launcher().rank, launch.launcher().size
    return WHO == "all" or rank == size - 1

def strike():
    if mine():
        os.kill(os.getpid(), NUMBER)

def after(owner, name):
    before = getattr(owner, name)
    def wrapper(*args, **kwargs):
        result = before(*args, **kwargs)
        strike()
        return result
    setattr(owner, name, wrapper)

if WHEN == "import":
    class Struck(signals.Signals):
        def __enter__(self):
            super().__enter__()
            strike()
            return self
    signals.Signals = Struck
elif WHEN != "never":
    import distai_mpi.cli.train as train
    from distai_mpi.train.run import Run
    from distai_mpi.train.checkpoint.saver import Saver
    after(*{"world": (launch, "world"), "read": (train, "load_data"), "compile": (Run, "warm_up"),
            "resume": (Saver, "start")}[WHEN])
from distai_mpi.cli import entry
sys.exit(entry.main())
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "struck.py"
    path.write_text(PROGRAM)
    return str(path)


def word(record):
    """What a run has noted, as a dictionary."""
    return dict(line.split("=", 1) for line in record.read_text().splitlines())


def weights(folder):
    with np.load(folder / "model.npz", allow_pickle=False) as stored:
        return [stored[name].tobytes() for name in sorted(stored.files) if name != "config"]


@pytest.mark.parametrize(
    ("ranks", "when", "name", "who"),
    [
        (1, "import", "SIGUSR1", "all"),
        (2, "import", "SIGTERM", "last"),
        (2, "world", "SIGTERM", "all"),
        (2, "read", "SIGUSR1", "last"),
        (3, "compile", "SIGTERM", "last"),
        (2, "resume", "SIGUSR1", "all"),
    ],
)
def test_a_signal_during_start_up_loses_nothing(mpirun, run_command, rows, tmp_path, program, ranks, when, name, who):
    record, out = tmp_path / "record", tmp_path / "run"
    env = {"DISTAI_RECORD": str(record)}
    words = ["train", *FLAGS, "--epochs", "3", "--out", str(out), "--resume"]
    ended = mpirun(ranks, program, when, name, who, *words, cwd=rows, env=env)
    assert ended.returncode == EX_INTERRUPTED, ended.stderr
    assert word(record) == {"status": "interrupted", "out": str(out)}
    begun = when in ("compile", "resume")
    assert ("before training began" in ended.stderr) != begun
    assert ("saved in" in ended.stderr) == begun
    assert (out / "result.json").exists() == begun
    assert not (out / "model.npz").exists()
    again = run_command(ranks, *words, cwd=rows, env=env)
    assert again.returncode == 0, again.stderr
    assert word(record)["status"] == "completed"
    if begun:
        straight = run_command(ranks, *words[:-2], tmp_path / "straight", cwd=rows)
        assert straight.returncode == 0, straight.stderr
        assert weights(out) == weights(tmp_path / "straight")


def test_a_run_that_could_not_be_saved_says_so(mpirun, rows, tmp_path, program):
    record, env = tmp_path / "record", {"DISTAI_RECORD": str(tmp_path / "record"), "LIMIT": "1"}
    words = ["train", *FLAGS, "--model", "mlp", "--hidden", "512", "--epochs", "99", "--out", str(tmp_path / "run")]
    ended = mpirun(2, program, "resume", "SIGTERM", "last", *words, cwd=rows, env=env)
    assert ended.returncode == 2, ended.stderr
    assert word(record)["status"] == "unsaved"
    assert (
        ended.stderr.count("distai-mpi: error: training was stopped by a signal, and the run could not be saved") == 1
    )


@pytest.mark.parametrize("when", ["import", "compile"])
def test_without_a_folder_the_warning_does_nothing_and_sigterm_ends_the_run(mpirun, rows, tmp_path, program, when):
    record = tmp_path / "record"
    words = ["train", *FLAGS, "--epochs", "3"]
    env = {"DISTAI_RECORD": str(record), "SLURM_JOB_ID": "42"}
    warned = mpirun(2, program, when, "SIGUSR1", "all", *[w for w in words if w != "-q"], cwd=rows, env=env)
    assert warned.returncode == 0, warned.stderr
    assert warned.stderr.count("without --out nothing is saved") == 1
    assert word(record) == {"status": "completed", "out": ""}
    record.unlink()
    ended = mpirun(2, program, when, "SIGTERM", "all", *words, cwd=rows, env=env)
    assert ended.returncode not in (0, EX_INTERRUPTED)
    assert not record.exists() or word(record)["status"] in ("starting", "running")


DEAD_PEER = """
import os, signal, sys, threading
from distai_mpi import signals
from distai_mpi.comm import launch
from distai_mpi.train.run import Run
signals.PATIENCE = 1.0
rank, count = launch.launcher().rank, Run._count

def counted(self, rows, sums, steps):
    count(self, rows, sums, steps)
    if self.iterations == 200:
        if rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)  # its launcher would end the others if it were gone
        threading.Timer(1.0, os.kill, [os.getpid(), signal.SIGTERM]).start()

Run._count = counted
from distai_mpi.cli import entry
sys.exit(entry.main())
"""


@pytest.mark.parametrize(("ranks", "algorithm"), [(2, "shared"), (3, "ring")])
def test_sigterm_because_a_peer_has_died_is_no_request_to_save(mpirun, rows, tmp_path, ranks, algorithm):
    """As Slurm 26.05 sends it to the tasks that are left: they wait for the dead one, in MPI or in shared memory."""
    program, record, out = tmp_path / "dead.py", tmp_path / "record", tmp_path / "run"
    program.write_text(DEAD_PEER)
    words = ["train", *FLAGS, "--allreduce", algorithm, "--epochs", "1000000", "--out", str(out)]
    began = time.monotonic()
    done = mpirun(ranks, str(program), *words, cwd=rows, env={"DISTAI_RECORD": str(record)}, timeout=60)
    assert done.returncode not in (0, EX_INTERRUPTED)
    assert "SIGTERM came" in done.stderr
    assert "one of them may have died" in done.stderr
    assert time.monotonic() - began < 40
    assert word(record)["status"] == "running"
    assert not (out / "result.json").exists()


# --- what a run leaves behind


def test_the_record_is_written_where_it_is_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("DISTAI_RECORD", raising=False)
    note("running", "x")
    monkeypatch.setenv("DISTAI_RECORD", str(tmp_path / "record"))
    monkeypatch.chdir(tmp_path)
    note("running", "a b")
    assert word(tmp_path / "record") == {"status": "running", "out": str(tmp_path / "a b")}
    assert [path.name for path in tmp_path.iterdir()] == ["record"]
    monkeypatch.setenv("DISTAI_RECORD", str(tmp_path / "none" / "record"))
    note("completed", None)
    assert "will not know how it ended" in capsys.readouterr().err


@mpi
@pytest.mark.parametrize(
    ("words", "status", "left"),
    [
        (["--epochs", "2"], 0, "completed"),
        (["--epochs", "50", "--lr", "1e6", "--optimizer", "sgd", "--model", "linear"], 2, "refused"),
        (["--epochs", "0"], 2, "refused"),
        (["--patience", "2"], 2, "refused"),
    ],
)
def test_the_record_of_how_runs_end(comm, rows, shared_path, monkeypatch, words, status, left):
    monkeypatch.setenv("DISTAI_RECORD", str(shared_path / "record"))
    done = run_here("train", *FLAGS, *words, "--out", shared_path / "run", cwd=rows)
    assert done.returncode == status, done.stderr
    assert word(shared_path / "record")["status"] == left


@mpi
def test_result_json_tells_where_and_with_what_a_run_was_made(comm, rows, shared_path, monkeypatch):
    for name, value in (("SLURM_JOB_ID", "42"), ("SLURM_ARRAY_JOB_ID", "40"), ("SLURM_ARRAY_TASK_ID", "3")):
        monkeypatch.setenv(name, value)
    done = run_here("train", *FLAGS, "--json", "--epochs", "1", "--out", shared_path / "run", cwd=rows)
    assert done.returncode == 0, done.stderr
    result = json.loads((shared_path / "run" / "result.json").read_text())
    assert result["hosts"] == [os.uname().nodename]
    assert result["job"] == {"id": 42, "array": 40, "task": 3, "restarts": 0}
    assert result["versions"]["numpy"] == np.__version__
    assert result["versions"]["python"] == sys.version.split()[0]
    assert set(result["versions"]) == {"distai-mpi", "mpi", "mpi4py", "numpy", "python"}
    assert result["transport"] is None or "(" not in result["transport"]
    started, ended = (datetime.fromisoformat(result[name]) for name in ("started", "ended"))
    assert started <= ended
    assert abs(time.time() - ended.timestamp()) < 60
    if comm.rank == 0:
        printed = json.loads(done.stdout.splitlines()[-1])
        assert printed["hosts"] == result["hosts"]


def test_the_job_of_an_environment():
    assert slurm_job({}) is None
    assert slurm_job({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "2"}) == {
        "id": 7,
        "array": None,
        "task": None,
        "restarts": 2,
    }


@pytest.mark.parametrize(
    ("cpus", "words"),
    [([4, 4], []), ([4, 8], []), ([4, 1, 2], ["rank 1 is bound to 1", "slot:PE=4"]), ([1], ["rank 0"])],
)
def test_ranks_on_fewer_cpus_than_the_job_has_for_them_are_told(cpus, words):
    told = narrow_binding(cpus, Allocation("7", 2, "n[1-2]", 2, 4))
    assert (told is None) == (words == [])
    assert all(word in (told or "") for word in words)
    assert narrow_binding(cpus, None) is None


# --- a run that was completed before


def stamps(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.is_file()}


@mpi
@pytest.mark.parametrize("more", [[], ["--checkpoint-every", "1"]])
def test_a_completed_run_ends_at_once_with_its_result(comm, rows, shared_path, monkeypatch, more):
    out = shared_path / "run"
    words = ["train", *FLAGS[:-1], "--epochs", "2", *more, "--out", out]
    first = run_here(*words, cwd=rows)
    assert first.returncode == 0, first.stderr
    before = stamps(out)
    monkeypatch.setattr("distai_mpi.cli.train.load_data", None)  # it reads nothing
    again = run_here(*words, "--resume", "-v", "--keep-checkpoints", "7", cwd=rows)
    assert again.returncode == 0, again.stderr
    assert stamps(out) == before
    if comm.rank == 0:
        assert again.stdout.splitlines() == first.stdout.splitlines()[-1:]
        assert "the run is complete already" in again.stderr
    told = run_here(*words, "--resume", "--json", cwd=rows)
    if comm.rank == 0:
        assert json.loads(told.stdout) == json.loads((out / "result.json").read_text())


def test_a_link_that_leads_nowhere_is_no_change_of_the_data(tmp_path):
    """Editors lock files by such links."""
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "a.csv").write_text("1,2\n")
    (tmp_path / "parts" / ".#a.csv").symlink_to("me@host.1234")
    os.utime(tmp_path / "parts" / "a.csv", (1, 1))
    os.utime(tmp_path / "parts", (1, 1))
    for name, text in (("result.json", '{"status": "completed"}'), ("settings.toml", "seed = 1"), ("model.npz", "")):
        (tmp_path / name).write_text(text)
    settings = {"out": str(tmp_path), "spare": None, "data": str(tmp_path / "parts"), "test_data": None, "valid": None}
    assert finished(settings, ["seed = 1"]) == ({"status": "completed"}, "")
    os.utime(tmp_path / "parts" / "a.csv", None)
    os.utime(tmp_path / "settings.toml", (2, 2))
    fields, told = finished(settings, ["seed = 1"])
    assert fields is None
    assert "a.csv has changed since" in told
    # of a method that `auto` came to nothing is said where another setting differs
    fields, told = finished(settings, ["seed = 2\noptimizer = 'auto'", "seed = 2"])
    assert fields is None
    assert "(seed 1, here 2)" in told


@mpi
def test_a_run_that_went_on_and_was_completed_ends_at_once(comm, rows, shared_path, monkeypatch):
    """Its settings.toml has the method that ``auto`` came to when it began."""
    words = ["train", "--data", "rows.npz", "--model", "softmax", "--optimizer", "auto", "--out", shared_path / "run"]
    assert run_here(*words, "--max-iter", 1, "--checkpoint-every", 1, cwd=rows).returncode == 0
    words += ["--max-iter", 3, "--resume"]
    assert run_here(*words, cwd=rows).returncode == 0
    monkeypatch.setattr("distai_mpi.cli.train.load_data", None)
    again = run_here(*words, cwd=rows)
    assert again.returncode == 0, again.stderr
    if comm.rank == 0:
        assert "the run is complete already" in again.stderr
        assert "other settings" not in again.stderr


@mpi
@pytest.mark.parametrize("change", ["epochs", "data", "model", "status", "without"])
def test_another_run_does_not_end_with_that_result(comm, rows, shared_path, change):
    out = shared_path / "run"
    words = ["train", *FLAGS, "--epochs", "2", "--out", out]
    assert run_here(*words, cwd=rows).returncode == 0
    more, told = ["--resume"], ""
    if change == "epochs":
        more, told = ["--resume", "--epochs", "3"], "other settings (epochs 2, here 3)"
    if change == "without":
        more = []
    comm.barrier()
    if comm.rank == 0:
        if change == "data":
            os.utime(out / "settings.toml", (1, 1))
        if change == "model":
            (out / "model.npz").unlink()
        if change == "status":
            text = (out / "result.json").read_text().replace('"completed"', '"interrupted"')
            (out / "result.json").write_text(text)
    comm.barrier()
    told = "rows.npz has changed since" if change == "data" else told
    before = (out / "result.json").stat().st_mtime_ns
    again = run_here(*words, *more, cwd=rows)
    assert again.returncode == 0, again.stderr
    assert (out / "result.json").stat().st_mtime_ns != before, "it trained"
    if comm.rank == 0:
        assert told in again.stderr
    result = json.loads((out / "result.json").read_text())
    assert result["epochs"] == (3 if change == "epochs" else 2)
