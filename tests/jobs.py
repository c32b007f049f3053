"""Jobs of their own for tests of how jobs end: started by mpiexec, and ended whatever becomes of them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from run import limit, mpi_environment, mpiexec_command

LIMIT = 60.0  # seconds of a quiet machine after which a job is ended from outside

BEGIN = """
import os, pathlib, signal, sys, threading, time
import numpy as np
from mpi4py import MPI
pathlib.Path(os.environ["TEST_PIDS"], str(MPI.COMM_WORLD.rank)).write_text(str(os.getpid()))
from distai_mpi import Communicator
last = MPI.COMM_WORLD.rank == MPI.COMM_WORLD.size - 1
def now():
    print("now", time.time(), flush=True)
"""


class Ended(NamedTuple):
    """How a job has ended: its status, all output, and seconds from its "now" mark (None without one) to its end."""

    status: int
    output: str
    seconds: float | None


def run_job(program: str, ranks: int = 3, env: Mapping[str, str] | None = None) -> Ended:
    """Run ``program`` on so many ranks; `BEGIN` comes before it.

    No process of it is left, not even a stopped one.
    """
    keep = ("OMPI_ALLOW_", "OMPI_MCA_btl", "OMPI_MCA_mtl", "OMPI_MCA_osc")
    launcher = ("OMPI_", "PMIX_", "PRTE_", "PMI_")
    clean = {k: v for k, v in mpi_environment().items() if k.startswith(keep) or not k.startswith(launcher)}
    with tempfile.TemporaryDirectory() as folder:
        command = [*mpiexec_command(ranks), sys.executable, "-c", BEGIN + program]
        process = subprocess.Popen(
            command,
            env=clean | {"TEST_PIDS": folder} | dict(env or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            output, _ = process.communicate(timeout=limit(LIMIT))
            end = time.time()
        finally:
            process.kill()
            for path in Path(folder).iterdir():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(path.read_text()), signal.SIGKILL)
    began = [float(line.split()[-1]) for line in output.splitlines() if line.startswith("now ")]
    return Ended(process.returncode, output, end - began[0] if began else None)


def marked(output: str, rank: int, ranks: int = 3) -> list[str]:
    """The lines of ``output`` that are marked with ``rank``."""
    return [line for line in output.splitlines() if line.startswith(f"[rank {rank} of {ranks} on ")]
