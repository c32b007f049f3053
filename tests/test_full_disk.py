"""What becomes of a trained model where the disk takes no more."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from commands import run_here
from run import limit

from distai_mpi.comm.ranks import Ranks
from distai_mpi.files import Unwritable, write_patiently, write_whole
from distai_mpi.train import report
from distai_mpi.train.report import ResultFiles

pytestmark = pytest.mark.ranks(2)

TRAIN = ("train", "--data", "rows.npz", "--model", "logistic", "--epochs", "2", "--seed", "3", "--out", "run")
FULL = "run/model.npz: cannot be written (No space left on device); make room or name another place"


class Disk:
    """Lets the end of every write to files below ``full`` fail as a full disk does, until ``tries`` are over."""

    def __init__(self, monkeypatch, *full, tries=1000):
        self.full, self.tries = [os.path.abspath(folder) + os.sep for folder in full], tries
        self.sync = os.fsync
        monkeypatch.setattr(os, "fsync", self)

    def __call__(self, file):
        path = os.readlink(f"/proc/self/fd/{file}")
        if self.tries > 0 and any(path.startswith(folder) and path.endswith("model.npz.tmp") for folder in self.full):
            self.tries -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.sync(file)


@pytest.fixture
def folder(shared_path, monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3))
    np.savez(shared_path / f"rows-{os.getpid()}.npz", x=x, y=(x[:, 0] > 0).astype(np.int64))
    os.replace(shared_path / f"rows-{os.getpid()}.npz", shared_path / "rows.npz")
    monkeypatch.setattr(report, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(report, "PAUSE_SECONDS", 0.05)
    return shared_path


@pytest.mark.mpi
def test_room_that_is_made_in_time_saves_the_model(folder, monkeypatch):
    Disk(monkeypatch, folder / "run", tries=3)
    waits = []
    monkeypatch.setattr(Ranks, "going_on", lambda comm: waits.append(comm.rank))
    done = run_here(*TRAIN, "-q", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(FULL) == 1
    assert f"{FULL}; trying again for 0 s" in done.stderr
    assert set(waits) <= {0}  # the ranks that wait are not to think that nothing happens
    assert json.loads((folder / "run" / "result.json").read_text())["status"] == "completed"
    with np.load(folder / "run" / "model.npz") as model:
        assert len(model.files) > 1


@pytest.mark.mpi
def test_a_spare_folder_takes_the_results(comm, folder, monkeypatch):
    monkeypatch.setenv("DISTAI_RECORD", str(folder / "record"))
    Disk(monkeypatch, folder / "run")
    done = run_here(*TRAIN, "--spare", "elsewhere", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert f"{FULL}; the results are in elsewhere" in done.stderr
    assert sorted(os.listdir(folder / "elsewhere")) == ["metrics.jsonl", "model.npz", "result.json", "settings.toml"]
    assert json.loads((folder / "elsewhere" / "result.json").read_text())["status"] == "completed"
    assert not (folder / "run" / "model.npz").exists()
    assert not (folder / "run" / "result.json").exists()  # nothing there looks complete
    lines = (folder / "elsewhere" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    again = run_here("evaluate", "elsewhere", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert f"out={folder / 'elsewhere'}\n" in (folder / "record").read_text(), "batch scripts look there"
    comm.barrier()  # the next start writes to the record
    monkeypatch.setattr("distai_mpi.cli.train.load_data", None)
    again = run_here(*TRAIN, "--spare", "elsewhere", "--resume", cwd=folder)
    assert again.returncode == 0, "it was completed: " + again.stderr


@pytest.mark.mpi
def test_what_is_lost_is_told_with_the_last_checkpoint(folder, monkeypatch):
    Disk(monkeypatch, folder / "run", folder / "elsewhere")
    done = run_here(*TRAIN, "--spare", "elsewhere", "--checkpoint-every", "1", cwd=folder)
    assert done.returncode == 2
    assert f"error: the results are lost: {FULL}; elsewhere/model.npz: cannot be written" in done.stderr
    assert "the last checkpoint is run/checkpoints/step-00000000" in done.stderr
    assert "--resume goes on from it" in done.stderr
    assert done.stderr.count("error:") == 1


@pytest.mark.mpi
def test_what_is_lost_without_a_checkpoint(folder, monkeypatch):
    Disk(monkeypatch, folder / "run")
    done = run_here(*TRAIN, "-q", cwd=folder)
    assert done.returncode == 2
    assert f"error: the results are lost: {FULL}; there is no checkpoint" in done.stderr


@pytest.mark.mpi
def test_a_line_of_metrics_that_does_not_fit_ends_no_training(folder, monkeypatch):
    """Nothing of it is left, and it comes with the next line that fits."""
    append, lengths = report._append, []

    def full(path, text):
        if len(lengths) < 1:
            lengths.append(len(text))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(path, text)

    monkeypatch.setattr(report, "_append", full)
    done = run_here(*TRAIN, "-q", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "run/metrics.jsonl: cannot be written (No space left on device); training goes on" in done.stderr
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]


@pytest.mark.mpi
@pytest.mark.parametrize("made_again", [True, False])
def test_a_folder_that_is_removed_meanwhile_has_all_in_the_end(comm, folder, monkeypatch, made_again):
    """Also where checkpoints have made it again, so that later lines could be written."""
    before = ResultFiles.on_epoch

    def on_epoch(self, run, record):
        before(self, run, record)
        if run.comm.rank == 0 and record["epoch"] == 2:
            shutil.rmtree("run")
            if made_again:
                os.mkdir("run")

    monkeypatch.setattr(ResultFiles, "on_epoch", on_epoch)
    done = run_here(*TRAIN, "--epochs", 4, "-q", cwd=folder)
    assert done.returncode == 0, done.stderr
    comm.barrier()
    assert {"metrics.jsonl", "model.npz", "result.json", "settings.toml"} <= set(os.listdir(folder / "run"))
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4]


def test_a_line_that_is_cut_off_is_taken_back(tmp_path):
    """A limit on the length of files stands for a disk that takes the first bytes of a line."""
    import resource
    import signal

    path, before = tmp_path / "lines", resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    path.write_bytes(b"first line\n")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16, before[1]))
        with pytest.raises(OSError, match="File too large"):
            report._append(str(path), b"second line\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"first line\n"
    report._append(str(path), b"second line\n")
    assert path.read_bytes() == b"first line\nsecond line\n"


KERNEL = """
import resource, sys
limit = int(sys.argv[1])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from distai_mpi.jit import kernel

@kernel()
def add(a, b):
    return a + b

print(add(2, 3))
"""


def test_kernels_do_without_a_cache_that_takes_nothing_or_is_damaged(tmp_path):
    (tmp_path / "program.py").write_text(KERNEL)
    env = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}

    def run(room):
        words = [sys.executable, "program.py", str(room)]
        return subprocess.run(
            words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=limit(120), check=False
        )

    for room in (10, 0):
        done = run(room)
        assert (done.returncode, done.stdout) == (0, "5\n"), done.stderr
    files = [path for path in (tmp_path / "cache").rglob("*.nb?") if path.is_file()]
    assert {path.suffix for path in files} == {".nbi", ".nbc"}, "where there is room it is kept"
    for path in files:
        path.write_bytes(path.read_bytes()[:20])
        done = run(0)
        assert (done.returncode, done.stdout) == (0, "5\n"), done.stderr


def test_writing_is_tried_until_the_time_is_over(tmp_path):
    calls, told = [], []

    def write():
        calls.append(1)
        write_whole(str(tmp_path / "missing" / "x"), lambda file: file.write(b"x"))

    with pytest.raises(Unwritable, match="cannot be written"):
        write_patiently(write, 0.2, 0.02, told.append, lambda: None)
    assert len(calls) > 3
    assert len(told) == 1


def test_spare_is_another_folder():
    done = run_here("train", "--out", "x", "--spare", "./x")
    assert done.returncode == 2
    assert "--spare ./x is the folder of --out" in done.stderr
    assert "--spare needs --out" in run_here("train", "--spare", "x").stderr
