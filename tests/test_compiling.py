"""Kernels are compiled by one process of the machine and read by the others."""

from __future__ import annotations

import fcntl
import gc
import importlib.util
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numba
import pytest
from alone import Alone

from distai_mpi import compiling
from distai_mpi.errors import ConfigError

SOURCE = """
from distai_mpi.jit import kernel

@kernel()
def inner(a, b):
    return a * b

@kernel()
def add(a, b):
    return a + inner(b, 2)
"""
PROGRAM = f"""
import sys
{SOURCE}
sys.stdin.readline()
print(add(2, 3), sum(add.stats.cache_misses.values()), sum(add.stats.cache_hits.values()))
"""
numbers = itertools.count()


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Loads the kernels of SOURCE as a new process would; they are kept in tmp_path."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(compiling, "compiling", compiling.Compiling())
    monkeypatch.setattr(compiling._Lock, "useful", True)
    path = tmp_path / "kernels.py"
    path.write_text(SOURCE)

    def fresh():
        spec = importlib.util.spec_from_file_location(f"kernels{next(numbers)}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.add

    return fresh


def files(tmp_path: Path, suffix: str) -> list[Path]:
    return sorted((tmp_path / "cache").rglob(f"*add*{suffix}"))


def met(kernel) -> tuple[int, int]:
    """How often ``kernel`` was compiled, and how often read."""
    return sum(kernel.stats.cache_misses.values()), sum(kernel.stats.cache_hits.values())


def test_one_process_compiles_and_the_others_read(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    env = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, "program.py"], cwd=tmp_path, env=env, **pipes) for _ in range(3)]
    told = sorted(process.communicate("go\n", timeout=100)[0].split() for process in processes)
    assert told == [["8", "0", "1"], ["8", "0", "1"], ["8", "1", "0"]]


def test_a_kernel_is_counted_once_with_those_that_it_needs(load):
    state = compiling.compiling
    assert load()(2, 3) == 8
    assert (state.kernels, state.folder is not None) == (1, True)
    again = load()
    assert (again(2, 3), met(again)) == (8, (0, 1))
    assert state.kernels == 1, "what is read at once is not counted"


def test_no_garbage_is_looked_for_meanwhile(load, monkeypatch):
    paused = []
    monkeypatch.setattr(compiling.gc, "disable", lambda: paused.append(None))
    assert load()(2, 3) == 8
    assert len(paused) == 2
    assert gc.isenabled()
    assert load()(2, 3) == 8
    assert len(paused) == 2  # where it is read, a pause would leave the garbage of loading to what is timed


def test_each_kind_of_processor_has_its_files(load, tmp_path, monkeypatch):
    load()(2, 3)
    (mine,) = files(tmp_path, ".nbi")
    codegen = numba.core.registry.cpu_target.target_context.codegen()
    kind = codegen.magic_tuple()
    monkeypatch.setattr(type(codegen), "magic_tuple", lambda self: (*kind[:1], "another", *kind[2:]))
    other = load()
    assert (other(2, 3), met(other)) == (8, (1, 0))
    assert len(files(tmp_path, ".nbi")) == len(files(tmp_path, ".nbc")) == 2
    monkeypatch.undo()
    assert mine in files(tmp_path, ".nbi")


def test_signatures_have_files_of_their_own(load, tmp_path):
    kernel = load()
    assert (kernel(2, 3), kernel(2.5, 3.5)) == (8, 9.5)
    assert len(files(tmp_path, ".nbc")) == 2
    again = load()
    assert (again(2.5, 3.5), again(2, 3), met(again)) == (9.5, 8, (0, 2))


def test_who_waits_goes_on_when_the_holder_dies(load, tmp_path):
    load()(2, 3)
    (lock,) = files(tmp_path, ".lock")
    for path in (*files(tmp_path, ".nbi"), *files(tmp_path, ".nbc")):
        path.unlink()
    hold = f"import fcntl, time; f = open({str(lock)!r}); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True)"
    holder = subprocess.Popen([sys.executable, "-c", f"{hold}; time.sleep(60)"], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    holder.stdout.readline()
    began = time.monotonic()
    threading.Timer(0.3, holder.send_signal, [signal.SIGKILL]).start()
    kernel = load()
    assert (kernel(2, 3), met(kernel)) == (8, (1, 0))
    assert 0.3 <= time.monotonic() - began
    holder.wait(10)


def test_who_waits_reads_what_the_holder_kept(load, tmp_path):
    load()(2, 3)
    (lock,), (index,) = files(tmp_path, ".lock"), files(tmp_path, ".nbi")
    kept = index.rename(index.with_suffix(".away"))
    with open(lock) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        threading.Timer(0.2, lambda: (kept.rename(index), fcntl.flock(file, fcntl.LOCK_UN))).start()
        kernel = load()
        assert (kernel(2, 3), met(kernel)) == (8, (0, 1))
    assert compiling.compiling.kernels == 2, "one was waited for"


def test_a_holder_that_stands_still_is_not_waited_for_forever(load, tmp_path, monkeypatch):
    monkeypatch.setattr(compiling, "LONGEST_WAIT", 0.1)
    load()(2, 3)
    (lock,), (index,) = files(tmp_path, ".lock"), files(tmp_path, ".nbi")
    index.unlink()
    with open(lock) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        kernel = load()
        assert (kernel(2, 3), met(kernel)) == (8, (1, 0))


def test_damaged_files_are_replaced(load, tmp_path):
    load()(2, 3)
    for suffix in (".nbi", ".nbc"):
        (path,) = files(tmp_path, suffix)
        path.write_bytes(path.read_bytes()[:20])
        kernel, again = load(), load()
        assert (kernel(2, 3), met(kernel)) == (8, (1, 0))
        assert (again(2, 3), met(again)) == (8, (0, 1))


def test_progress_is_told_where_it_takes_long(capsys):
    state = compiling.Compiling()
    state.told = compiling.Progress(expected=20)
    state.begin()
    state.end("cache")
    assert capsys.readouterr().err == ""
    for seconds in (2.0, 3.0, 4.5):
        state.seconds = seconds
        state.begin()
        state.end("cache")
    state.begin()
    state.seconds = 12.0
    state.end(None)
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "distai-mpi: compiling kernels for this machine (once): 2 of about 20 after 2 s ...",
        "distai-mpi: compiling kernels for this machine (once): 4 of about 20 after 5 s ...",
        "distai-mpi: compiling kernels for this machine (not kept: name a folder that can be written by"
        " NUMBA_CACHE_DIR): 5 of about 20 after 12 s ...",
    ]


def test_models_take_the_rows_that_warm_writes(tmp_path):
    from distai_mpi.cli import warm
    from distai_mpi.cli.build import load_data, make_model
    from distai_mpi.cli.train import command as train

    warm.write_rows(str(tmp_path))
    for flags in warm.cases(str(tmp_path)):
        with train.make_context("train", list(flags)) as context:
            if "--data" in flags:
                labels = load_data(context.params, Alone()).train.labels
                assert labels.values == (0.0, 1.0)
                make_model(context.params, labels)


def test_warm_compiles_by_runs_of_the_command(monkeypatch, capsys):
    from distai_mpi.cli import warm
    from distai_mpi.cli.train import command as train

    ran = []
    monkeypatch.setattr(train, "main", lambda words, standalone_mode: ran.append(words))
    warm.warm(train)
    assert ran[0] == ["-q", "--epochs", "1"]
    assert ["--model", "softmax", "--optimizer", "lbfgs", "-q", "--max-iter", "2"] in ran
    assert {words[i + 1] for words in ran for i, word in enumerate(words) if word == "--dtype"} == {
        "float32",
        "float64",
    }
    assert "compiled" in capsys.readouterr().out
    monkeypatch.setattr(warm.launch, "launcher", lambda: warm.launch.Launcher("Open MPI", size=2))
    with pytest.raises(ConfigError, match="start it without mpiexec"):
        warm.warm(train)
