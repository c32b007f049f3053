"""A rank that is stopped where the watch cannot see it: before MPI starts, in MPI_Finalize, and what is left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from distai_mpi.comm import edges

Run = Callable[..., subprocess.CompletedProcess[str]]

STOPS = """
import atexit, os, signal, sys
from distai_mpi.comm import Communicator, edges, launch
rank = launch.launcher().rank
def stop():
    if rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
if sys.argv[1] == "begin":
    edges.begin(rank, 2)
    stop()
else:
    atexit.register(stop)  # what is registered first comes last
with Communicator(launch.world()) as comm:
    print("sum", comm.sum([1])[0], flush=True)
"""


@pytest.mark.parametrize("where", ["begin", "end"])
def test_a_stopped_rank_ends_the_job(mpirun: Run, where: str) -> None:
    run = mpirun(2, "-c", STOPS, where, env={"DISTAI_WATCH": "2"}, timeout=50)
    told = f"rank 1 on {os.uname().nodename} (process "
    assert run.returncode != 0
    assert f"distai-mpi: error: {told}" in run.stderr
    assert "has been stopped for 2 s (process state T) at the start or end of MPI: it is killed" in run.stderr
    assert run.stdout.count("sum 2") == (0 if where == "begin" else 2)


ALONE = """
import os, signal, sys, time
from distai_mpi.comm import edges
edges.begin(3, 4)
print(os.getpid(), flush=True)
if sys.argv[1] == "within":
    edges.tell(edges.WITHIN)
if sys.argv[1] == "ended":
    edges.end()
os.kill(os.getpid(), signal.SIGSTOP)
print("goes on", flush=True)
"""


def test_who_is_killed() -> None:
    """In the time in which one is killed the others are not."""
    killed, others = ("edge", "1"), [("edge", "0"), ("within", "1"), ("ended", "1"), ("edge", "30")]
    processes = {}
    for case in (*others, killed):
        env = os.environ | {"DISTAI_WATCH": case[1]}
        command = [sys.executable, "-c", ALONE, case[0]]
        processes[case] = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    try:
        for process in processes.values():
            assert process.stdout is not None
            assert int(process.stdout.readline()) == process.pid
        rest, _ = processes[killed].communicate(timeout=30)  # also of the small process, which ends with it
        assert (processes[killed].returncode, rest) == (-9, "")
        time.sleep(1)
        for case in others:
            assert processes[case].poll() is None, case
            processes[case].send_signal(signal.SIGCONT)
            rest, _ = processes[case].communicate(timeout=30)
            assert (processes[case].returncode, rest) == (0, "goes on\n"), case
    finally:
        for process in processes.values():
            process.kill()


@pytest.mark.parametrize(
    ("text", "seconds"), [("", 30), ("600", 30), ("5", 5), ("0.2", 1), ("0", 0), ("often", 30), ("nan", 30)]
)
def test_limits(monkeypatch: pytest.MonkeyPatch, text: str, seconds: int) -> None:
    monkeypatch.setenv("DISTAI_WATCH", text)
    assert edges._seconds() == seconds
