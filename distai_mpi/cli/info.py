"""``distai-mpi info``: where this job runs, on what, and what will hurt."""

from __future__ import annotations

import platform
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import click

from ..comm import launch
from ..comm.allocation import Allocation, allocation, idle_part
from ..perf import machine

SHOWN_SIZES = (500, 100_000)  # numbers of parameters for which the exchange is shown


@dataclass(frozen=True)
class Facts:
    """What one rank sees of its node; sizes in bytes, CPUs as numbers of hardware threads."""

    host: str
    node: int  # the lowest rank of the node
    mask: tuple[int, ...]
    cores: int
    quota: float
    memory_left: int
    memory_total: int
    blas: tuple[tuple[str, int], ...]
    gpus: tuple[str, ...]

    @property
    def threads(self) -> int:
        """BLAS threads of this rank."""
        return max((threads for _, threads in self.blas), default=1)


@click.command(name="info")
@click.option("--warm", is_flag=True, help="Compile the kernels of the usual runs now, so that none has to wait.")
def command(warm: bool) -> None:
    """Show MPI, ranks, CPUs, BLAS and GPU, and warn of what will hurt."""
    if warm:
        from .train import command as train
        from .warm import warm as compile_all

        return compile_all(train)
    started = launch.launcher()
    mpi_comm = launch.world(check=False)  # a world that does not fit is what this command is asked about
    from ..comm import Communicator

    with Communicator(mpi_comm) as comm, machine.limited_blas(comm.node.size, machine.node_cpus(comm)):
        ranks: list[Facts] = comm.allgather_object(gather(comm.node.ranks[0]))
        if comm.rank == 0 and (comm.size > 1 or started.rank == 0):
            lines = [
                *describe_software(started),
                *describe_job(allocation()),
                *describe_nodes(ranks),
                *describe_exchange(comm),
                *describe_gpus(ranks),
            ]
            for label, text in lines:
                click.echo(f"{label:12}{text}")
            for text in find_trouble(ranks, started, allocation()):
                click.echo(f"warning: {text}")


def gather(node: int) -> Facts:
    """The facts of this rank."""
    return Facts(
        host=platform.node(),
        node=node,
        mask=machine.affinity(),
        cores=machine.physical_cores(),
        quota=machine.cpu_quota(),
        memory_left=machine.memory_left(),
        memory_total=machine.memory_total(),
        blas=tuple(machine.blas_libraries()),
        gpus=tuple(machine.gpus()),
    )


def describe_software(started: launch.Launcher) -> list[tuple[str, str]]:
    """Versions, the MPI library and the launcher, as (label, text)."""
    import numpy as np

    from .. import __version__
    from ..comm.mpi_library import library

    mpi = library()
    return [
        ("distai-mpi", f"{__version__}, Python {platform.python_version()}, NumPy {np.__version__}"),
        ("MPI", f"{mpi.name} ({mpi.standard}), mpi4py {mpi.bindings}"),
        ("transport", mpi.transport),
        ("launcher", f"{started.name}, {_count(started.size, 'process', 'processes')}"),
    ]


def describe_job(given: Allocation | None) -> list[tuple[str, str]]:
    """The Slurm job around this run, as (label, text); nothing outside of one."""
    if given is None:
        return []
    size = f"{_count(given.nodes, 'node')}, {_count(given.tasks, 'task')}, {_count(given.cpus_per_task, 'CPU')} a task"
    return [("Slurm", f"job {given.job} on {given.names}: {size}")]


def describe_nodes(ranks: Sequence[Facts]) -> list[tuple[str, str]]:
    """Nodes, their CPUs and memory, and where their ranks run, as (label, text)."""
    nodes = _by_node(ranks)
    lines = [("ranks", f"{len(ranks)} on {_count(len(nodes), 'node')}")]
    for members in nodes.values():
        first = ranks[members[0]]
        quota = f", {first.quota:g} CPUs' time granted" if first.quota < float("inf") else ""
        memory = f"{first.memory_left / 2**30:.1f} of {first.memory_total / 2**30:.1f} GiB memory left"
        lines.append((f"  {first.host}", f"{_ranks(members)}; {_count(first.cores, 'core')}{quota}; {memory}"))
        placed: dict[tuple, list[int]] = defaultdict(list)
        for rank in members:
            placed[ranks[rank].mask, ranks[rank].blas].append(rank)
        for (mask, blas), sharing in placed.items():
            lines.append(("", f"{_ranks(sharing)} on {_cpus(mask)}, BLAS {_blas(blas)}"))
    return lines


def describe_exchange(comm: Any) -> list[tuple[str, str]]:
    """How gradients are exchanged, and what ``auto`` takes for some numbers of parameters, as (label, text)."""
    from ..comm import CHOICES, Exchange
    from ..comm.exchange.choice import resolve

    lines = [("exchange", f"auto (--allreduce offers also {', '.join(name for name in CHOICES if name != 'auto')})")]
    return lines + [("", f"{size:,} parameters: {resolve(comm, Exchange(), size, 'float32')}") for size in SHOWN_SIZES]


def describe_gpus(ranks: Sequence[Facts]) -> list[tuple[str, str]]:
    """The GPUs of the nodes, and who can use them, as (label, text)."""
    from importlib.util import find_spec

    from ..comm.mpi_library import library

    lines = []
    for members in _by_node(ranks).values():
        first = ranks[members[0]]
        if first.gpus:
            lines.append(("GPU", f"{first.host}: {', '.join(first.gpus)}"))
    if not lines:
        lines.append(("GPU", "none found"))
    cupy = "installed" if find_spec("cupy") else "not installed"
    return [*lines, ("", f"CuPy {cupy}; MPI takes GPU memory: {library().gpu_memory}")]


def find_trouble(ranks: Sequence[Facts], started: launch.Launcher, given: Allocation | None = None) -> list[str]:
    """Warnings about settings that slow a job down or are not what was meant."""
    found = []
    try:
        launch.check_world(len(ranks), started)
    except launch.ConfigError as error:
        found.append(str(error))
    else:
        idle = idle_part(len(ranks), len(_by_node(ranks)), given)
        found += [idle] if idle else []
    for members in _by_node(ranks).values():
        first = ranks[members[0]]
        threads = sum(ranks[rank].threads for rank in members)
        usable = len(set().union(*(ranks[rank].mask for rank in members)))
        cores = max(1, int(min(first.cores, first.quota, usable)))
        if threads > cores and threads > len(members):
            found.append(
                f"{first.host}: {threads} BLAS threads of {_count(len(members), 'rank')} on "
                f"{_count(cores, 'core')}: unset OMP_NUM_THREADS and its like, or set it to "
                f"{max(1, cores // len(members))}"
            )
        for mask in sorted({ranks[rank].mask for rank in members}):
            inside = [rank for rank in members if set(ranks[rank].mask) <= set(mask)]
            if len(inside) > len(mask):
                found.append(
                    f"{first.host}: {_ranks(inside)} share {_cpus(mask)}: start fewer ranks, or see that your "
                    "launcher binds them to different cores (mpiexec --report-bindings, srun --cpu-bind=verbose)"
                )
    return found


def _by_node(ranks: Sequence[Facts]) -> dict[int, list[int]]:
    """Rank numbers by node, ascending."""
    nodes: dict[int, list[int]] = defaultdict(list)
    for rank, facts in enumerate(ranks):
        nodes[facts.node].append(rank)
    return nodes


def _ranges(numbers: Iterable[int]) -> str:
    """Ascending numbers in short: 0-3,8."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _ranks(numbers: Sequence[int]) -> str:
    return f"rank{'s' if len(numbers) > 1 else ''} {_ranges(numbers)}"


def _cpus(mask: Sequence[int]) -> str:
    return f"CPU{'s' if len(mask) > 1 else ''} {_ranges(mask)}"


def _blas(libraries: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{name} with {_count(threads, 'thread')}" for name, threads in libraries) or "unknown"
