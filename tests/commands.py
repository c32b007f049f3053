"""``distai-mpi`` in processes that are there already, for a job of its own takes seconds to start and to import.

    mpiexec -n N python tests/commands.py PID

runs command lines one after another in one job; see `CommandJob`.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from subprocess import CompletedProcess
from typing import Any
from unittest import mock

import psutil
from run import limit, mpi_environment, mpiexec_command

import distai_mpi
from distai_mpi import compiling
from distai_mpi.cli.main import main
from distai_mpi.comm import launch, leaving

Path = str | os.PathLike[str]


def on_ranks(function: Callable[[], Any], cwd: Path = ".", ranks: int | None = None) -> list[Any]:
    """What ``function()`` returns in the folder ``cwd`` on the first ``ranks`` ranks of this job (default: all).

    Collective over all ranks; those ranks are the world of ``function``.
    """
    world, value = launch.world(), None
    ranks = world.size if ranks is None else ranks
    with contextlib.chdir(cwd), _part(ranks) as part:
        if part:
            value = function()
    return world.allgather(value)[:ranks]


def run_here(*words: object, cwd: Path = ".", ranks: int | None = None) -> CompletedProcess[str]:
    """``distai-mpi words...`` in the folder ``cwd``, on the first ``ranks`` ranks of this job (default: all).

    Collective over all ranks, and alike on all of them: the exit status, in which the ranks must agree, and all
    that they have printed, rank by rank.  An exception that would end a job is raised here.  Errors that ranks
    agree on are for all ranks of the job alone: they leave together.  Commands without MPI run on rank 0.
    """
    line, out, err = [str(word) for word in words], io.StringIO(), io.StringIO()
    serial = line[0] in ("predict", "plot", "plan")
    patient = mock.patch.object(compiling, "PATIENCE", math.inf)  # what is left to compile depends on earlier tests
    leave = mock.patch.object(leaving, "leave_together", return_value=True) if serial else contextlib.nullcontext()

    def run() -> tuple[int, str, str]:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), leave, patient:
            return main(line), out.getvalue(), err.getvalue()

    ends = on_ranks(run, cwd, 1 if serial else ranks)
    statuses = {status for status, _, _ in ends}
    assert len(statuses) == 1, ends
    return CompletedProcess(line, *statuses, *("".join(end[i] for end in ends) for i in (1, 2)))


@contextlib.contextmanager
def _part(ranks: int) -> Iterator[bool]:
    """Make the first ``ranks`` ranks the world of the block; False on the others, which then sleep until its end."""
    world = launch.world()
    if ranks == world.size:
        yield True
        return
    inside = world.rank < ranks
    part = world.Split(0 if inside else 1)
    part_world = mock.Mock(return_value=part)
    with mock.patch.object(distai_mpi, "world", part_world), mock.patch.object(launch, "world", part_world):
        yield inside
    part.Free()
    request = world.Ibarrier()  # a blocking one would take a core from those who work
    while not request.Test():
        time.sleep(0.005)


class CommandJob:
    """A job of ``ranks`` ranks that runs one command line after another: starting and importing take longest.

    What it runs is alone as far as the environment and the folder go, but not as far as the state of modules goes.
    """

    def __init__(self, ranks: int) -> None:
        command = [*mpiexec_command(ranks), sys.executable, __file__, str(os.getpid())]
        pipe, self._errors = subprocess.PIPE, tempfile.TemporaryFile("w+")
        self._job = subprocess.Popen(
            command, env=mpi_environment(), stdin=pipe, stdout=pipe, stderr=self._errors, text=True
        )

    def run(self, words: Sequence[str], cwd: Path, env: Mapping[str, str | None], seconds: float) -> Any:
        """How the command line ``words`` ended; the job is ended where that takes longer than ``seconds``."""
        assert self._job.stdin is not None
        assert self._job.stdout is not None
        timer = threading.Timer(seconds, self._job.terminate)
        timer.start()
        try:
            self._job.stdin.write(json.dumps([list(words), os.fspath(cwd), dict(env)]) + "\n")
            self._job.stdin.flush()
            for line in self._job.stdout:
                if line.startswith(MARK):
                    return CompletedProcess(words, *json.loads(line.removeprefix(MARK)))
        except BrokenPipeError:
            pass
        finally:
            timer.cancel()
        self.end()
        self._errors.seek(0)
        raise RuntimeError(f"{' '.join(words)}: the job has ended or was too slow: {self._errors.read()[-5000:]}")

    @property
    def alive(self) -> bool:
        """Whether it can take another command line."""
        return self._job.poll() is None

    def end(self) -> None:
        """Let it end; an mpiexec need not pass on that its standard input has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired, OSError):
            self._job.communicate(END, timeout=limit(10))
        self._job.terminate()


MARK, END = "ended: ", "\n"


def next_line(starter: int) -> str:
    """What rank 0 is to run next; `END` also where the process ``starter`` is no more."""
    while not select.select([sys.stdin], [], [], 1.0)[0]:
        if not psutil.pid_exists(starter):
            return END
    return sys.stdin.readline() or END


def serve(starter: int) -> None:
    """Run the command lines that rank 0 reads until there are no more, and print how each has ended."""
    world, line = launch.world(), END
    while True:
        if world.rank == 0:
            line = next_line(starter)
        request = world.Ibarrier()
        while not request.Test():  # a blocking one would take a core
            time.sleep(0.01)
        line = world.bcast(line)
        if line == END:
            return
        words, cwd, changes = json.loads(line)
        env = {name: value for name, value in (os.environ | changes).items() if value is not None}
        with mock.patch.dict(os.environ, env, clear=True):
            done = run_here(*words, cwd=cwd)
        if world.rank == 0:
            print(MARK + json.dumps((done.returncode, done.stdout, done.stderr)), flush=True)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
