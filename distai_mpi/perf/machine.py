"""What one process may use of its machine: CPUs, memory, BLAS threads, GPU."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CGROUPS = Path("/sys/fs/cgroup")
CPUS = Path("/sys/devices/system/cpu")

# What a user sets to choose BLAS threads himself, and what we set for him.
BLAS_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
USER_VARIABLES = ("OMP_NUM_THREADS", *BLAS_VARIABLES)
_set_here: set[str] = set()  # the variables that hold our own choice


def affinity() -> tuple[int, ...]:
    """The CPUs (hardware threads) that this process may run on, ascending."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def _cgroup_folders(controller: str, root: Path, membership: Path) -> Iterator[Path]:
    """Folders of this process's control group and its parents, which all limit it (cgroup v1 and v2).

    A container often sees its own group mounted as the root while it is told the host's path to it:
    folders that don't exist are passed over.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / controller if controllers else root
        folder = mount / path.lstrip("/")
        for level in (folder, *folder.parents):
            if level.is_dir():
                yield level
            if level == mount:
                break


def _numbers(file: Path) -> list[float]:
    """The numbers in a control file, "max" as infinity; none if there is no such file."""
    try:
        return [float("inf") if word == "max" else float(word) for word in file.read_text().split()]
    except (OSError, ValueError):
        return []


def cpu_quota(root: Path = CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> float:
    """CPUs' worth of time that the control groups grant, infinity where nothing limits it."""
    quota = float("inf")
    for folder in _cgroup_folders("cpu", root, membership):
        numbers = _numbers(folder / "cpu.max") or (
            _numbers(folder / "cpu.cfs_quota_us") + _numbers(folder / "cpu.cfs_period_us")
        )
        if len(numbers) == 2 and numbers[0] > 0:  # v1 says -1 for "no limit"
            quota = min(quota, numbers[0] / numbers[1])
    return quota


def memory_left(root: Path = CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes that can still be allocated on this node: the machine's free memory or the control group's rest.

    File cache that the kernel can drop counts as free.
    """
    import psutil

    left = float(psutil.virtual_memory().available)
    for folder in _cgroup_folders("memory", root, membership):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            numbers = _numbers(folder / limit) + _numbers(folder / used)
            if len(numbers) == 2:
                left = min(left, numbers[0] - numbers[1] + _droppable(folder / "memory.stat"))
    return max(0, int(left))


def _droppable(stat: Path) -> int:
    """Bytes of file cache out of use in a control group."""
    try:
        facts = dict(line.split() for line in stat.read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(facts.get("total_inactive_file", facts.get("inactive_file", 0)))


def physical_cores(cpus: Path = CPUS) -> int:
    """Cores of this machine; hardware threads that share a core count once.

    Not loky's cpu_count, which counts those of this process's affinity mask: bound ranks would share them out again.
    """
    siblings = set()
    for folder in cpus.glob("cpu[0-9]*"):
        for name in ("core_cpus_list", "thread_siblings_list"):
            with contextlib.suppress(OSError):
                siblings.add((folder / "topology" / name).read_text().strip())
                break
    return len(siblings) or os.cpu_count() or 1


def blas_threads(
    ranks_on_node: int, mask: int | None = None, cores: int | None = None, quota: float | None = None
) -> int:
    """BLAS threads for each of ``ranks_on_node`` ranks, at least 1.

    A rank gets its part of the node's cores, but no more than the affinity ``mask`` lets it use.  The quota
    of a control group belongs to all ranks in it, so it is shared out too.  ``mask``, ``cores`` and ``quota``
    are counts of CPUs; by default those of this process and machine.
    """
    mask = len(affinity()) if mask is None else mask
    cores = physical_cores() if cores is None else cores
    quota = cpu_quota() if quota is None else quota
    return max(1, min(mask, int(min(cores, quota)) // max(1, ranks_on_node)))


def node_cpus(comm: Any) -> int:
    """CPUs that the ranks of this node may use together; ``comm`` is a `comm.Communicator`; collective."""
    masks = comm.allgather_object(affinity())
    return len(set().union(*(masks[rank] for rank in comm.node.ranks)))


def chosen_by_user() -> bool:
    """Whether the environment sets the number of BLAS threads, other than by `set_blas_threads`."""
    return any(user_environment().get(name) for name in USER_VARIABLES)


def user_environment() -> dict[str, str]:
    """The environment without what `set_blas_threads` has set, for programs started from here."""
    return {name: value for name, value in os.environ.items() if name not in _set_here}


def set_blas_threads(ranks_on_node: int) -> None:
    """Give this process its BLAS threads, unless the user has chosen; call before NumPy is loaded.

    A BLAS starts its threads when it is loaded, so the environment is the place.  Numba's own thread pool gets
    the same size.  For a BLAS that is already loaded use `limited_blas`.
    """
    if chosen_by_user():
        return
    threads = str(blas_threads(ranks_on_node))
    for name in (*BLAS_VARIABLES, "NUMBA_NUM_THREADS"):
        if name in _set_here or name not in os.environ:
            os.environ[name] = threads
            _set_here.add(name)


@contextlib.contextmanager
def limited_blas(ranks_on_node: int, cpus: int | None = None) -> Iterator[int]:
    """Hold the BLAS already loaded to this process's number of threads, unless the user has chosen; yields its threads.

    ``cpus`` counts the CPUs that the node's ranks may use together, where these are fewer than its cores.
    """
    if chosen_by_user():
        yield max((threads for _, threads in blas_libraries()), default=1)
        return
    from threadpoolctl import threadpool_limits

    cores = physical_cores()
    threads = blas_threads(ranks_on_node, cores=cores if cpus is None else min(cores, cpus))
    with threadpool_limits(threads, user_api="blas"):
        yield threads


@contextlib.contextmanager
def held_blas(ranks_on_node: int, cpus: int | None = None) -> Iterator[int]:
    """As `limited_blas`, and for blocks inside that would set a number of their own: fewer ranks get no more."""
    with limited_blas(ranks_on_node, cpus) as threads:
        if chosen_by_user():
            yield threads
            return
        before = os.environ.get("OMP_NUM_THREADS", "")
        os.environ["OMP_NUM_THREADS"] = str(threads)  # what `chosen_by_user` looks at
        try:
            yield threads
        finally:
            os.environ["OMP_NUM_THREADS"] = before


def blas_libraries() -> list[tuple[str, int]]:
    """(name and version, threads) of each BLAS that this process has loaded."""
    from threadpoolctl import threadpool_info

    return [
        (f"{pool['internal_api']} {pool['version'] or ''}".strip(), int(pool["num_threads"]))
        for pool in threadpool_info()
        if pool["user_api"] == "blas"
    ]


def peak_memory() -> int:
    """Most bytes of memory that this process has had resident so far."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def release(array: Any) -> None:
    """Give the pages back that hold nothing but the contiguous ``array``, of NumPy's, where the system can do so.

    Its values are undefined afterwards.  The array stays valid, and so does all memory around it.
    """
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    start, page = array.ctypes.data, mmap.PAGESIZE
    first, last = -(-start // page) * page, (start + array.nbytes) // page * page
    if last > first:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)


def memory_total() -> int:
    """Bytes of memory of this machine."""
    import psutil

    return psutil.virtual_memory().total


def gpus() -> list[str]:
    """Names of the NVIDIA GPUs that the kernel's driver shows; loads no GPU library."""
    names = []
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        with contextlib.suppress(OSError):
            facts = dict(line.split(":", 1) for line in file.read_text().splitlines() if ":" in line)
            names.append(facts.get("Model", "unknown").strip())
    return names
