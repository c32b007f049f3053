"""``distai-mpi`` in processes that are there already, for a job of its own takes seconds to start and to import.

    mpiexec -n N python tests/commands.py '[["train", "--epochs", "1"], ["evaluate", "run"]]'

runs command lines one after another in one job; rank 0 prints how they ended as JSON.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from subprocess import CompletedProcess
from typing import Any
from unittest import mock

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
    serial = line[0] in ("predict", "plot")
    leave = mock.patch.object(leaving, "leave_together", return_value=True) if serial else contextlib.nullcontext()

    def run() -> tuple[int, str, str]:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), leave:
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
    with mock.patch.object(launch, "world", return_value=part):
        yield inside
    part.Free()
    request = world.Ibarrier()  # a blocking one would take a core from those who work
    while not request.Test():
        time.sleep(0.005)


def in_one_job(mpirun: Callable[..., Any], ranks: int, *lines: tuple, **options: Any) -> list[CompletedProcess[str]]:
    """How each of the command ``lines`` ended, run one after another in one job of ``ranks`` ranks.

    ``options`` are those of ``mpirun``.
    """
    done = mpirun(ranks, __file__, json.dumps([[str(word) for word in words] for words in lines]), **options)
    assert done.returncode == 0, done.stderr
    ends = json.loads(done.stdout.splitlines()[-1])
    return [CompletedProcess(words, *end) for words, end in zip(lines, ends, strict=True)]


if __name__ == "__main__":
    ends = [run_here(*words) for words in json.loads(sys.argv[1])]
    if launch.world().rank == 0:
        print(json.dumps([(done.returncode, done.stdout, done.stderr) for done in ends]))
