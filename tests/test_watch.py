"""The watch: who is late and why, how long ranks wait, and how the job ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from jobs import marked, run_job

from distai_mpi.comm import Communicator, processes, watch
from distai_mpi.comm.node_beacon import NodeBeacon
from distai_mpi.comm.processes import Process
from distai_mpi.comm.verdict import LEFT_SECONDS, STOPPED_SECONDS, WORK_SECONDS, judge, late_ranks, names, stall_text
from distai_mpi.comm.watch_page import LOCATION_BYTES, ROW, bytes_of, text_of
from distai_mpi.comm.whereabouts import Activity, Kind, kind_of, look_at, whereabouts
from distai_mpi.errors import ConfigError
from distai_mpi.exit_codes import EX_STUCK

# --- where a thread is


def test_code_belongs_to_somebody():
    import click
    import numba

    assert kind_of(threading.__file__) is Kind.LIBRARY
    assert kind_of(click.__file__) is Kind.LIBRARY
    assert kind_of(numba.__file__) is Kind.COMPILER
    assert kind_of(watch.__file__) is Kind.COMM
    assert kind_of(sys.modules["distai_mpi.errors"].__file__) is Kind.PACKAGE
    assert kind_of("/home/somebody/train.py") is Kind.USER


def test_a_thread_is_found_in_the_program_that_it_runs():
    end, began = threading.Event(), threading.Event()

    def sit():
        began.set()
        end.wait()

    thread = threading.Thread(target=sit)
    thread.start()
    began.wait()
    found = look_at(thread.ident)
    end.set()
    thread.join()
    assert found.activity is Activity.USER
    assert found.location.startswith("test_watch.py:")
    assert found.location.endswith(" in sit")
    assert look_at(thread.ident).activity is Activity.LEFT


def frame_in(file, source):
    """The frame in which ``found`` was called by ``source``, as if that stood in ``file``."""
    frames = []
    exec(compile(source, file, "exec"), {"found": lambda: frames.append(sys._getframe(1))})
    return frames[0]


def test_what_a_rank_does_by_its_innermost_frame():
    comm, package = os.path.dirname(watch.__file__), os.path.dirname(sys.modules["distai_mpi.errors"].__file__)
    waits = whereabouts(frame_in(f"{comm}/meeting.py", "def barrier(): found()\nbarrier()"))
    assert waits.activity is Activity.WAITING
    assert waits.location.startswith("<module> called at test_watch.py:")
    assert whereabouts(frame_in(f"{package}/data/readers/text.py", "found()")).activity is Activity.WORKING
    assert whereabouts(frame_in("/x/numba/core/dispatcher.py", "found()")).activity is Activity.COMPILING
    assert whereabouts(frame_in("/x/bdb.py", "found()")).activity is Activity.DEBUGGED
    leaves = whereabouts(frame_in(f"{comm}/leaving.py", "def leave_together(): found()\nleave_together()"))
    assert leaves.activity is Activity.LEFT


def test_processes_are_seen_to_stop_and_to_end():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        child.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + 10
        while processes.look_up(child.pid).state != "T" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert processes.look_up(child.pid).state == "T"
    finally:
        child.kill()
    deadline = time.monotonic() + 10
    while processes.look_up(child.pid).state != "Z" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert processes.look_up(child.pid).state == "Z"
    child.wait()
    assert processes.look_up(child.pid).state == "X"


def test_a_process_is_busy_by_its_processor_or_its_bytes():
    idle = Process("S", 100, 5000)
    assert not idle.busy_since(idle, 1.0)
    assert not Process("R", 110, 5000).busy_since(idle, 1.0)
    assert Process("R", 120, 5000).busy_since(idle, 1.0)
    assert Process("D", 100, 5000 + (1 << 20)).busy_since(idle, 1.0)
    before = processes.look_up(os.getpid())
    until = time.process_time() + 0.4
    while time.process_time() < until:
        pass
    assert processes.look_up(os.getpid()).busy_since(before, 1.0)


# --- what is made of it


def rows(*told):
    """Rows of ranks: (activity, state, busy, step)."""
    table = np.zeros(len(told), ROW)
    for row, (activity, state, busy, step) in zip(table, told, strict=True):
        row["activity"], row["state"], row["busy"], row["step"] = activity, ord(state) if state else 0, busy, step
        row["location"] = bytes_of("here.py:7 in f")
    return table


WAITS = (Activity.WAITING, "", 1, 812)


@pytest.mark.parametrize(
    ("told", "silent", "limit", "words"),
    [
        (
            (Activity.WORKING, "T", 0, 811),
            True,
            STOPPED_SECONDS,
            "is stopped (process state T), last seen in step 811, here.py:7",
        ),
        ((Activity.WAITING, "T", 0, 811), True, STOPPED_SECONDS, "is stopped"),
        ((Activity.WORKING, "X", 0, 811), True, STOPPED_SECONDS, "has died (process state X)"),
        ((Activity.WORKING, "D", 0, 811), True, 600, "waits for a device or a file system"),
        ((Activity.WORKING, "R", 1, 811), True, WORK_SECONDS, "is at work"),
        ((Activity.WORKING, "", 1, -1), False, WORK_SECONDS, "is at work in here.py:7 in f"),
        ((Activity.COMPILING, "", 1, 0), False, WORK_SECONDS, "compiles"),
        ((Activity.WORKING, "", 0, 811), False, 600, "is at work"),
        ((Activity.USER, "", 1, 811), False, 600, "runs code of the program's own"),
        ((Activity.LEFT, "", 0, -1), False, LEFT_SECONDS, "has left (here.py:7 in f)"),
        ((Activity.LEFT, "X", 0, -1), True, LEFT_SECONDS, "has left"),
        ((Activity.DEBUGGED, "", 0, 811), False, np.inf, "is in a debugger"),
        ((Activity.WORKING, "t", 0, 811), True, np.inf, "is at work"),
        ((Activity.WORKING, "", 1, 811), True, 600, "has not been heard of"),
    ],
)
def test_how_long_ranks_wait_depends_on_what_the_late_one_does(told, silent, limit, words):
    table, quiet = rows(WAITS, WAITS, told), np.array([False, False, silent])
    late = late_ranks(table, quiet)
    assert late == [2]
    verdict = judge(table, late, quiet, 600.0)
    assert verdict.limit == limit
    assert words in verdict.about(2, "node-7")
    assert verdict.about(2, "node-7").startswith("rank 2 on node-7, which ")
    assert verdict.status == (1 if told[0] is Activity.LEFT else EX_STUCK)
    assert judge(table, late, quiet, 2.0).limit == (limit if limit >= WORK_SECONDS else 2.0)


def test_ranks_in_different_calls_wait_for_each_other():
    table, quiet = rows(WAITS, WAITS), np.zeros(2, bool)
    assert late_ranks(table, quiet) == []
    assert judge(table, [], quiet, 60.0).limit == 60


def test_one_fault_is_enough():
    table = rows(WAITS, (Activity.WORKING, "", 1, 5), (Activity.USER, "T", 0, 5))
    assert judge(table, [1, 2], np.array([False, False, True]), 600.0).limit == STOPPED_SECONDS


def test_a_wait_that_is_over_is_told_in_training_alone():
    table = rows(WAITS, WAITS, (Activity.USER, "", 0, 812))
    assert stall_text([2], table, 20.3, 3) == "all other ranks waited 20 s in step 812 for rank 2 (here.py:7 in f)"
    assert stall_text([], table, 20.3, 3) is None
    assert stall_text([1], rows((Activity.WAITING, "", 1, -1), WAITS), 20.0, 2) is None


def test_names_of_many_ranks():
    assert names([4]) == "rank 4"
    assert names(range(10)) == "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 2 more"


def test_locations_fit_a_row():
    assert text_of(bytes_of("é" * LOCATION_BYTES)).startswith("é" * (LOCATION_BYTES // 2))


@pytest.mark.parametrize("text", ["-1", "soon", "inf", "nan"])
def test_a_limit_is_a_number_of_seconds(monkeypatch, text):
    monkeypatch.setenv("DISTAI_WATCH", text)
    assert str(watch.asked(None)).startswith(f"DISTAI_WATCH is '{text}'")
    assert str(watch.asked(text)).startswith(f"watch is '{text}'")
    assert watch.asked(0) == 0
    monkeypatch.setenv("DISTAI_WATCH", "90")
    assert watch.asked(None) == 90
    assert watch.asked(7) == 7


@pytest.mark.mpi
def test_a_communicator_refuses_what_is_no_limit():
    from mpi4py import MPI

    with pytest.raises(ConfigError, match="watch is -3: give the seconds"):
        Communicator(MPI.COMM_WORLD, watch=-3 if MPI.COMM_WORLD.rank == 0 else None)


@pytest.mark.mpi(min_size=2)
def test_nodes_hear_of_each_other(comm):
    """Datagrams between nodes of one rank each, which tell of ranks that stand still as well as of those that move."""

    class Alone:
        """A page of a rank that shares it with nobody."""

        def __init__(self):
            self.rows, self.local, self.leader = np.zeros(comm.size, ROW), (comm.rank,), True
            self.hosts = comm.allgather_object(os.uname().nodename)

    page = Alone()
    beacon = NodeBeacon(comm, page)
    others = [rank for rank in range(comm.size) if rank != comm.rank]
    page.rows[comm.rank]["step"], page.rows[comm.rank]["location"] = 10 + comm.rank, b"here"
    deadline = time.monotonic() + 20
    while page.rows[others]["step"].min() < 10 and time.monotonic() < deadline:
        beacon.send(np.zeros(comm.size))
        beacon.receive()
        time.sleep(0.01)
    beacon.send(np.zeros(comm.size))
    assert page.rows["step"].tolist() == [10 + rank for rank in range(comm.size)]
    assert not beacon.unheard
    before = page.rows.copy()
    forged = b"x" * 16 + bytes(8)  # without the token
    beacon._enter(forged)
    assert (page.rows == before).all()
    comm.barrier()


# --- jobs

PROGRAM = """
from distai_mpi.comm import alarm
alarm.DUMP_SECONDS = 1.0  # as the limit, short: those who wait take a core each
with Communicator(MPI.COMM_WORLD, watch={seconds}) as comm:
    comm.allreduce(np.ones(3))
    for _ in range(20):  # the watch has looked at every rank
        time.sleep(0.05)
        comm.barrier()
    if last: now()
    {what}
    comm.barrier()
    print("done", flush=True)
"""
STOP = "if last: os.kill(os.getpid(), signal.SIGSTOP)"


def watched(what, seconds=2.0, ranks=2, **env):
    return run_job(PROGRAM.format(what=what, seconds=seconds), ranks, env)


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_stopped_rank_ends_the_job(ranks):
    status, output, seconds = watched(STOP, ranks=ranks)
    assert status == EX_STUCK, output
    assert 2 < seconds < 15
    waiting = "rank 0 has" if ranks == 2 else "ranks 0, 1 have"
    assert re.search(rf"error: {waiting} waited [23] s in barrier called at <string>:", output)
    assert f"for rank {ranks - 1} on {os.uname().nodename}, which is stopped (process state T), last seen in " in output
    assert output.count("distai-mpi: error:") == 1
    for rank in range(ranks - 1):
        assert any("thread MainThread" in line for line in marked(output, rank, ranks))


@pytest.mark.parametrize("what", ["time.sleep(1000)", "while True: pass"])
def test_a_rank_that_is_stuck_in_the_program_ends_the_job(what):
    status, output, seconds = watched(f"\n    if last:\n        {what}")
    assert status == EX_STUCK, output
    assert seconds < 15
    assert "which runs code of the program's own in <string>:" in output
    assert any("line" in line and "<module>" in line for line in marked(output, 1, 2))  # its stack


def test_ranks_in_different_calls_end_the_job():
    status, output, seconds = watched("comm.bcast_object(1, 1) if not last else comm.sum([1])")
    assert status == EX_STUCK, output
    assert seconds < 15
    assert re.search("ranks 0, 1 have waited [23] s for each other: in bcast_object called at", output)
    assert "; in sum called at" in output


@pytest.mark.parametrize("nodes", ["1,1,1", "2,1"])
def test_nodes_watch_each_other(nodes):
    status, output, _ = watched(STOP, ranks=3, DISTAI_NODES=nodes)
    assert status == EX_STUCK, output
    assert "for rank 2 on " in output
    assert "which has not been heard of (last seen in " in output


def test_a_rank_that_comes_late_is_waited_for():
    status, output, _ = watched("\n    if last: time.sleep(2)", seconds=8.0)
    assert (status, output.count("done")) == (0, 2), output


@pytest.mark.parametrize("off", ["watch=0", "DISTAI_WATCH"])
def test_a_watch_that_is_off_ends_nothing(off):
    program = PROGRAM.format(what="if last: time.sleep(3)", seconds="None" if off == "DISTAI_WATCH" else "0")
    status, output, _ = run_job(program, 2, {"DISTAI_WATCH": "0" if off == "DISTAI_WATCH" else "1"})
    assert (status, output.count("done")) == (0, 2), output


def test_a_stall_in_training_is_told():
    program = """
from distai_mpi.comm import watch
watch.LOOK_SECONDS, watch.TOLD_SECONDS = 0.2, 1.0
with Communicator(MPI.COMM_WORLD, watch=60.0) as comm, comm.watched(lambda: 812):
    comm.barrier()
    if last: time.sleep(2)
    comm.barrier()
    time.sleep(2)
    comm.barrier()
"""
    status, output, _ = run_job(program, 2)
    assert status == 0, output
    told = [line for line in output.splitlines() if "waited" in line]
    assert len(told) == 1, output
    assert "in step 812 for rank 1 (<string>:" in told[0]


def test_training_names_the_step_and_the_call():
    program = """
from distai_mpi import models
from distai_mpi.data import Dataset, whole
from distai_mpi.train import fit
from distai_mpi.train.callbacks import Callback

class Stop(Callback):
    def on_step(self, run):
        if run.iterations == 20 and last:
            time.sleep(1)  # the watch looks at this place
            now()
            os.kill(os.getpid(), signal.SIGSTOP)

with Communicator(MPI.COMM_WORLD, watch=2.0) as comm:
    x = np.random.default_rng(0).normal(size=(64, 4))
    data = whole(Dataset(x, (x[:, 0] > 0).astype(np.int64)), comm.rank, comm.size)
    fit(models.MLP(4, 2, (8,)), data, comm, epochs=100, global_batch_size=32, callbacks=[Stop()])
"""
    status, output, seconds = run_job(program, 2)
    assert status == EX_STUCK, output
    assert seconds < 15
    assert re.search("error: rank 0 has waited [23] s in step 20 in ", output)
    assert ", which is stopped (process state T), last seen in step 20, <string>:" in output
    assert " in on_step" in output
