"""What binds a run to the job around it: its warnings, its end, and what it leaves behind for the job's script.

That is a file of a few lines, named by ``DISTAI_RECORD``:

    status=completed
    out=/home/me/run

``out`` is the folder of result.json (that of ``--spare`` where ``--out`` was full), and empty for a run without.
A launcher's exit status does not tell whether a run was completed (Open MPI's mpiexec ends with 0 when SIGTERM ended
it), and result.json may be an earlier run's.  The script removes the file before it starts the ranks.  ``status`` is
one of

    starting     the command has begun; its ranks may not have found each other
    running      all ranks are there, and take signals
    completed    result.json and the model are written
    interrupted  by a signal, on which all ranks agreed, or before training began: started again, the run goes on
    unsaved      by a signal, and the run could not be saved
    refused      an error that the user can mend; training that diverged is one
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ..comm.allocation import allocation, idle_part, narrow_binding
from ..messages import tell
from ..perf import machine
from ..signals import Signals

if TYPE_CHECKING:
    from ..comm import Communicator

VARIABLE = "DISTAI_RECORD"


def note(status: str, out: str | None) -> None:
    """Write the record, if there is to be one; for one rank at a time."""
    path = os.environ.get(VARIABLE)
    if not path:
        return
    text = f"status={status}\nout={os.path.abspath(out) if out else ''}\n"
    try:
        temporary = f"{path}.{os.uname().nodename}.{os.getpid()}"
        with open(temporary, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError as error:
        tell(f"{path}: cannot be written ({error.strerror}): who started this run will not know how it ended", True)


def what_to_warn_of(comm: Communicator, settings: dict[str, Any]) -> list[str]:
    """What is amiss between this run and its Slurm job, in words; collective."""
    given, cpus = allocation(), comm.allgather_object(len(machine.affinity()))
    told = [idle_part(comm.size, len(comm.leaders), given), narrow_binding(cpus, given)]
    if given is not None and not settings["out"]:
        told.append(
            "without --out nothing is saved, neither a model nor checkpoints: what is not done at the job's time limit"
            " is lost"
        )
    return [warning for warning in told if warning]


def asked_to_end(comm: Communicator, settings: dict[str, Any], signals: Signals) -> bool:
    """Whether a signal has asked any rank to end before training began, which then needs no saving; collective."""
    if not settings["out"]:
        return False
    if not comm.sum([signals.received is not None])[0]:
        return False
    signals.answered.set()
    if comm.rank == 0:
        note("interrupted", settings["out"])
        tell("stopped by a signal before training began: a new start with --resume begins where this one did", True)
    return True


def result_folder(settings: dict[str, Any]) -> str | None:
    """Where a run that was completed has its result; it removed an earlier one from ``out`` when it began.  Local."""
    out, spare = settings["out"], settings["spare"]
    return spare if spare and not os.path.exists(os.path.join(out, "result.json")) else out
