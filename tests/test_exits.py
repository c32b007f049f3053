"""How a job ends when one rank leaves it, and when all do."""

from __future__ import annotations

import os

import pytest
from jobs import marked, run_job

# A program that hands mpi4py's own communicator over, where the line WHERE is run by the last rank.
PROGRAM = """
from distai_mpi.comm import exits
exits.GRACE_SECONDS = 1.0
def go():
    now()
    {how}
if {where} == "before" and last: go()
with Communicator(MPI.COMM_WORLD) as comm:
    comm.allreduce(np.ones(3))
    if {where} == "inside" and last: go()
    comm.allreduce(np.ones(3))
if {where} == "after" and last: go()
MPI.COMM_WORLD.Barrier()
"""
WHERE = ("before", "inside", "after")


def job(how, where, **env):
    return run_job(PROGRAM.format(how=how, where=repr(where)), 2, env)


@pytest.mark.parametrize("where", WHERE)
def test_an_exception_on_one_rank_ends_the_job(where):
    status, output, seconds = job("raise KeyError('boom')", where)
    assert status != 0
    assert seconds < 5
    lines = marked(output, 1, 2)
    assert "Traceback (most recent call last):" in lines[0]
    assert lines[-1].endswith("KeyError: 'boom'")
    assert not marked(output, 0, 2)


@pytest.mark.parametrize("where", ["before", "inside"])
def test_sys_exit_on_one_rank_ends_the_job_with_its_status(where):
    status, output, seconds = job("sys.exit(7)", where)
    assert status == 7, output
    assert seconds < 8
    assert "left by sys.exit (status 7)" in marked(output, 1, 2)[0]


def test_the_message_of_sys_exit_is_shown_once():
    for where in ("inside", "after"):
        status, output, _ = job("sys.exit('no input for this rank')", where)
        assert (status, output.count("no input for this rank")) == (1, 1)


def test_a_rank_that_leaves_without_an_error_while_others_wait():
    status, output, seconds = job("sys.exit(0)", "inside", DISTAI_WATCH="2")
    assert status == 1, output
    assert seconds < 15
    assert "for rank 1 on " in output
    assert "has left" in output


@pytest.mark.parametrize(
    "line", ["sys.exit(9)", "raise SystemExit(9)", "with Communicator(MPI.COMM_WORLD): sys.exit(9)"]
)
def test_all_ranks_leave_at_once_with_their_status(line):
    status, output, seconds = run_job(f"comm = Communicator(MPI.COMM_WORLD)\nif last: now()\n{line}", 2)
    assert status == 9, output
    assert seconds < 3
    assert "left by" not in output


def test_an_exit_that_was_caught_is_none():
    program = """
from distai_mpi.comm import exits
exits.GRACE_SECONDS = 1.0
comm = Communicator(MPI.COMM_WORLD)
try:
    sys.exit(5)
except SystemExit:
    pass
comm.barrier()
if not last: time.sleep(2)
"""
    status, output, _ = run_job(program, 2)
    assert status == 0, output


def test_an_interrupt_is_told_in_one_line():
    status, output, seconds = job("raise KeyboardInterrupt", "inside")
    assert status == 130
    assert seconds < 5
    assert len(marked(output, 1, 2)) == 1
    assert "Traceback" not in output


def test_a_helping_thread_may_fail():
    program = """
comm = Communicator(MPI.COMM_WORLD)
def fail(): raise KeyError("boom")
if last:
    helper = threading.Thread(target=fail)
    helper.start()
    helper.join()
comm.barrier()
print("went on", flush=True)
"""
    status, output, _ = run_job(program, 2)
    assert status == 0
    assert output.count("went on") == 2
    assert "KeyError: 'boom'" in output


def test_a_thread_that_exchanges_may_not_fail():
    program = """
def train():
    comm = Communicator(MPI.COMM_WORLD)
    if last:
        now()
        raise KeyError("boom")
    comm.barrier()
thread = threading.Thread(target=train)
thread.start()
thread.join()
"""
    status, output, seconds = run_job(program, 2)
    assert status == 1
    assert seconds < 5
    assert marked(output, 1, 2)[-1].endswith("KeyError: 'boom'")


def test_in_an_interactive_session_an_error_ends_nothing():
    program = """
sys.ps1 = ">>> "
comm = Communicator(MPI.COMM_WORLD)
if last:
    try:
        raise KeyError("boom")
    except KeyError:
        sys.excepthook(*sys.exc_info())
comm.barrier()
"""
    status, output, _ = run_job(program, 2)
    assert status == 0, output
    assert "KeyError: 'boom'" in output
    assert not marked(output, 1, 2)


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="not available: /dev/shm")
@pytest.mark.parametrize("end", ["comm.free()", "pass", "if last: raise KeyError('boom')\ncomm.barrier()"])
def test_nothing_of_ours_stays_in_shared_memory(end):
    """The package's memory has no name; MPI libraries leave files of their own there when a job is aborted."""
    status, output, _ = run_job(
        "comm = Communicator(MPI.COMM_WORLD)\n"
        "array, vector = comm.node_array((1000, 100), 'f4'), comm.empty(100_000, 'f4')\n"
        "named = {line.split()[-1] for line in open('/proc/self/maps') if '/dev/shm/' in line}\n"
        "if MPI.COMM_WORLD.rank == 0: print('named', *named, flush=True)\n" + end,
        2,
    )
    assert (status == 0) == ("raise" not in end), output
    named = next(line for line in output.splitlines() if line.startswith("named")).split()[1:]
    libraries = ("osc_", "open_mpi.", "mpich", "vader_", "sm_segment.", "psm", "Intel", "ucx", "ofi", "fi_")
    assert all(os.path.basename(name).startswith(libraries) for name in named)
