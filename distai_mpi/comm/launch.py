"""What the launcher says before MPI starts, and how this package starts MPI.

Nothing here loads MPI when it is imported: the command line asks `launcher()`
for the rank that may print, and only `world()` starts MPI.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..errors import ConfigError
from . import edges, exits


class Launcher(NamedTuple):
    """Who started this process, as told by environment variables.

    ``local_size`` counts the processes started on this node, 1 if the launcher does not say;
    ``one_node`` is true where all processes are known to run on this node.
    """

    name: str  # "Open MPI", "Hydra/PMI", "Slurm srun" or "none"
    size: int = 1
    rank: int = 0
    local_size: int = 1
    one_node: bool = True


def launcher(env: Mapping[str, str] | None = None) -> Launcher:
    """The launcher that ``env`` (default: this process's environment) speaks of.

    The innermost launcher counts: an mpiexec inside of a Slurm job inherits Slurm's variables,
    and so does a plain ``python`` in a batch script, which no ``srun`` has started.
    """
    env = os.environ if env is None else env
    if "OMPI_COMM_WORLD_SIZE" in env:
        size = number(env, "OMPI_COMM_WORLD_SIZE", 1)
        local = number(env, "OMPI_COMM_WORLD_LOCAL_SIZE", 1)
        return Launcher("Open MPI", size, number(env, "OMPI_COMM_WORLD_RANK", 0), local, local == size)
    if "PMI_SIZE" in env and ("MPI_LOCALNRANKS" in env or "SLURM_STEP_ID" not in env):
        size = number(env, "PMI_SIZE", 1)
        local = number(env, "MPI_LOCALNRANKS", 1)
        return Launcher("Hydra/PMI", size, number(env, "PMI_RANK", 0), local, local == size)
    if "SLURM_STEP_ID" in env and "SLURM_PROCID" in env:
        size = number(env, "SLURM_STEP_NUM_TASKS", number(env, "SLURM_NTASKS", 1))
        nodes = number(env, "SLURM_STEP_NUM_NODES", number(env, "SLURM_NNODES", 1))
        local = _tasks_on_node(env.get("SLURM_STEP_TASKS_PER_NODE", ""), number(env, "SLURM_NODEID", 0))
        return Launcher("Slurm srun", size, number(env, "SLURM_PROCID", 0), local, nodes == 1)
    return Launcher("none")


def number(env: Mapping[str, str], name: str, default: int) -> int:
    """The count that the variable ``name`` holds, ``default`` where it holds none."""
    value = env.get(name, "")
    return int(value) if value.isdigit() else default


def repeated(counts: str) -> list[int]:
    """The numbers in one of Slurm's lists of counts by node, such as ``4(x2),3``."""
    numbers: list[int] = []
    for part in counts.split(","):
        count, _, times = part.partition("(x")
        if count.isdigit():
            numbers += [int(count)] * int(times.rstrip(")") or 1)
    return numbers


def _tasks_on_node(counts: str, node: int) -> int:
    """Tasks of the node with index ``node`` in a list of counts, 1 if the list does not say."""
    return dict(enumerate(repeated(counts))).get(node, 1)


# Start-up of Open MPI on one node.  Looking for fabrics through libfabric takes a second and finds nothing that
# shared memory does not do better; its UCX windows complain where there is no UCX device.  Jobs that span nodes
# need all of these.
ONE_NODE_SETTINGS = {"OMPI_MCA_btl": "^ofi", "OMPI_MCA_mtl": "^ofi", "OMPI_MCA_osc": "^ucx"}


def prepare_environment() -> None:
    """Set what MPI reads from the environment when it starts; a user's own settings win."""
    os.environ.setdefault("HOME", os.path.expanduser("~"))  # in an empty environment Open MPI fails for want of it
    started = launcher()
    if started.name == "none":
        os.environ.setdefault("OMPI_MCA_btl", "self")  # a single process has nobody to share a segment with
    if started.one_node:
        for name, value in ONE_NODE_SETTINGS.items():
            os.environ.setdefault(name, value)


def world(check: bool = True) -> Any:
    """Start MPI if it has not been started, and return ``MPI.COMM_WORLD``.

    An exception that nothing catches will from now on end the whole job, and so will ``sys.exit`` with an error
    on some ranks alone (see `exits`).  Raises `ConfigError` where the launcher started several processes that MPI
    does not connect, unless ``check`` is false.
    """
    started = launcher()
    edges.begin(started.rank, started.size)
    prepare_environment()
    if "PMI_FD" in os.environ and started.name == "Slurm srun":
        _import_in_thread()
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    if check:
        check_world(comm.size, started)
    exits.install()
    return comm


def _import_in_thread() -> None:
    """Import mpi4py.MPI in a thread of its own, whose heap (an arena of glibc's) is new and holds zeros.

    MPICH 5 with UCX puts its address of some 200 bytes into Slurm's key-value store as 4 KiB, with whatever comes after
    it on the heap.  Zeros are packed; old contents of the heap make lines longer than the 1024 bytes that Slurm's
    plugin pmi2 reads, and the ranks wait in MPI_Init for ever.
    """
    from concurrent.futures import ThreadPoolExecutor
    from importlib import import_module

    with ThreadPoolExecutor(1) as thread:
        thread.submit(import_module, "mpi4py.MPI").result()


def check_world(size: int, started: Launcher) -> None:
    """Raise `ConfigError` if the world has one rank (``size`` 1) and the launcher started more."""
    if size > 1 or started.size == 1:
        return
    if started.name == "Slurm srun":
        remedy = "start it with 'srun --mpi=pmix' (Open MPI) or 'srun --mpi=pmi2' (MPICH); 'srun --mpi=list' shows both"
    else:
        remedy = "use the mpiexec that belongs to the MPI library which mpi4py has loaded ('distai-mpi info' names it)"
    raise ConfigError(
        f"{started.name} started {started.size} processes, but MPI gives each of them a world of its own: "
        f"every one would do the whole work. The launcher and the MPI library do not fit: {remedy}"
    )


def on_terminal() -> bool:
    """Whether what this process prints is shown on a terminal.

    Open MPI gives its ranks a pseudo-terminal, wherever its own output goes: there the output of the
    parent counts, which on the first node is mpiexec itself.
    """
    if not sys.stdout.isatty():
        return False
    if launcher().name != "Open MPI":
        return True
    try:
        return os.readlink(f"/proc/{os.getppid()}/fd/1").startswith(("/dev/pts/", "/dev/tty"))
    except OSError:
        return False
