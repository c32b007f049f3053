"""Where and with what a run was made, for result.json."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from ..comm.mpi_library import library
from ..version import __version__

if TYPE_CHECKING:
    from ..comm import Communicator


def provenance(comm: Communicator) -> dict[str, Any]:
    """What is known when training begins, as plain values; collective, the same on every rank.

    hosts: the names of the nodes, in the order of their ranks.
    job: of Slurm, see `slurm_job`.
    versions: of this package, the MPI library, mpi4py, NumPy and Python.
    transport: what the MPI library of rank 0 tells about how it sends messages; None where it tells nothing.
    started: date and time in UTC, ISO 8601, to the second.
    """
    mpi = library()
    names = comm.allgather_object(os.uname().nodename)
    job = slurm_job(os.environ)
    transport = mpi.transport.partition(" (")[0]  # what follows is advice
    return comm.bcast_object(
        {
            "hosts": [names[leader] for leader in comm.leaders],
            "job": job,
            "versions": {
                "distai-mpi": __version__,
                "mpi": mpi.name,
                "mpi4py": mpi.bindings,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
            "transport": None if transport == "unknown" else transport,
            "started": utc(),
        }
    )


def slurm_job(env: Mapping[str, str]) -> dict[str, Any] | None:
    """The Slurm job of ``env``: its number, the array and task that it is of, how often it was requeued; else None."""
    if "SLURM_JOB_ID" not in env:
        return None
    names = {
        "id": "SLURM_JOB_ID",
        "array": "SLURM_ARRAY_JOB_ID",
        "task": "SLURM_ARRAY_TASK_ID",
        "restarts": "SLURM_RESTART_COUNT",
    }
    values = {key: env.get(name) for key, name in names.items()}
    counts = {key: int(value) for key, value in values.items() if value is not None and value.isdigit()}
    return values | {"restarts": 0} | counts


def utc() -> str:
    """Now, in UTC, as in ``2026-11-28T09:30:00Z``."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
