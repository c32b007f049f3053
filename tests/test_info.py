"""The machine's facts, and what ``distai-mpi info`` shows and warns of."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from run import limit

from distai_mpi.cli.info import Facts, describe_job, describe_nodes, find_trouble
from distai_mpi.comm.allocation import Allocation
from distai_mpi.comm.launch import Launcher
from distai_mpi.perf import machine

Run = Callable[..., subprocess.CompletedProcess[str]]
INFINITE = float("inf")


def control_groups(tmp_path: Path, membership: str, files: dict[str, str]) -> tuple[Path, Path]:
    """A pretend tree of control groups and the file that tells our place in it."""
    root, own = tmp_path / "cgroup", tmp_path / "membership"
    own.write_text(membership)
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root, own


V1 = "12:pids:/\n4:cpu,cpuacct:/docker/ab\n3:memory:/docker/ab\n"
QUOTAS = [
    ("0::/job/step\n", {"job/cpu.max": "150000 100000\n", "job/step/cpu.max": "max 100000\n"}, 1.5),
    ("0::/job/step\n", {"job/cpu.max": "400000 100000\n", "job/step/cpu.max": "200000 100000\n"}, 2.0),
    ("0::/job\n", {"job/cpu.max": "max 100000\n"}, INFINITE),
    ("0::/elsewhere\n", {"cpu.max": "300000 100000\n"}, 3.0),  # a container: its group is mounted as the root
    (V1, {"cpu/docker/ab/cpu.cfs_quota_us": "50000", "cpu/docker/ab/cpu.cfs_period_us": "100000"}, 0.5),
    (V1, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, INFINITE),
    ("", {}, INFINITE),
]


@pytest.mark.parametrize(("membership", "files", "quota"), QUOTAS)
def test_cpu_quota(tmp_path: Path, membership: str, files: dict[str, str], quota: float) -> None:
    assert machine.cpu_quota(*control_groups(tmp_path, membership, files)) == quota


MIB = 2**20
MEMORIES = [
    ("0::/job\n", {"job/memory.max": f"{64 * MIB}", "job/memory.current": f"{24 * MIB}"}, 40 * MIB),
    (
        "0::/job\n",
        {
            "job/memory.max": f"{64 * MIB}",
            "job/memory.current": f"{24 * MIB}",
            "job/memory.stat": f"anon 1\ninactive_file {8 * MIB}\n",
        },
        48 * MIB,
    ),
    (V1, {"memory/memory.limit_in_bytes": f"{9 * MIB}", "memory/memory.usage_in_bytes": f"{2 * MIB}"}, 7 * MIB),
    ("0::/job\n", {"job/memory.max": "1000", "job/memory.current": "2000"}, 0),
]


@pytest.mark.parametrize(("membership", "files", "left"), MEMORIES)
def test_memory_left(tmp_path: Path, membership: str, files: dict[str, str], left: int) -> None:
    assert machine.memory_left(*control_groups(tmp_path, membership, files)) == left


def test_memory_left_without_limits_is_the_machines(tmp_path: Path) -> None:
    root, own = control_groups(tmp_path, "0::/job\n", {"job/memory.max": "max", "job/memory.current": "5"})
    assert MIB < machine.memory_left(root, own) <= machine.memory_total()


def test_physical_cores_count_siblings_once(tmp_path: Path) -> None:
    for cpu, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        topology = tmp_path / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "core_cpus_list").write_text(siblings)
    (tmp_path / "cpufreq").mkdir()
    assert machine.physical_cores(tmp_path) == 2


@pytest.mark.parametrize(
    ("ranks", "mask", "cores", "quota", "threads"),
    [
        (1, 16, 8, INFINITE, 8),
        (2, 16, 8, INFINITE, 4),
        (2, 1, 8, INFINITE, 1),  # bound to one core
        (3, 16, 8, INFINITE, 2),
        (16, 16, 8, INFINITE, 1),
        (2, 16, 8, 4.5, 2),  # the quota is for both ranks
        (1, 16, 8, 0.5, 1),
    ],
)
def test_blas_threads(ranks: int, mask: int, cores: int, quota: float, threads: int) -> None:
    assert machine.blas_threads(ranks, mask, cores, quota) == threads


THREADS_SEEN = """
from distai_mpi.perf import machine
machine.physical_cores = lambda: 64
machine.affinity = lambda: tuple(range(64))
machine.cpu_quota = lambda: float("inf")
machine.set_blas_threads({ranks})
import os, numpy
print(os.environ.get("OPENBLAS_NUM_THREADS"), machine.chosen_by_user())
with machine.limited_blas({ranks}) as threads:
    print(threads)
"""


@pytest.mark.parametrize(
    ("user", "ranks", "told"),
    [({}, 64, "1 False 1"), ({}, 32, "2 False 2"), ({"OMP_NUM_THREADS": "1"}, 32, "None True 1")],
)
def test_a_users_choice_of_threads_wins(user: dict[str, str], ranks: int, told: str) -> None:
    env = {name: value for name, value in os.environ.items() if name not in machine.USER_VARIABLES} | user
    program = THREADS_SEEN.format(ranks=ranks)
    run = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert run.stdout.split() == told.split()


def facts(node: int = 0, mask: tuple[int, ...] = (0, 1), threads: int = 1, cores: int = 2) -> Facts:
    """One rank of host n<node>."""
    return Facts(f"n{node}", node, mask, cores, INFINITE, 2**30, 2**31, (("openblas 1.0", threads),), ())


MPIEXEC = Launcher("Open MPI", 2, 0, 2)
TROUBLES = [
    ([facts(), facts()], MPIEXEC, []),
    ([facts(mask=(0,)), facts(mask=(1,))], MPIEXEC, []),
    ([facts(threads=2)], Launcher("none"), []),
    ([facts(threads=2), facts(threads=2)], MPIEXEC, ["n0: 4 BLAS threads of 2 ranks on 2 cores"]),
    ([facts(mask=(1,)), facts(mask=(1,))], MPIEXEC, ["n0: ranks 0-1 share CPU 1"]),
    ([facts(), facts(), facts()], MPIEXEC, ["n0: ranks 0-2 share CPUs 0-1"]),
    ([facts(), facts(), facts(2), facts(2)], MPIEXEC, []),
    ([facts(), facts(1, threads=8), facts(1)], MPIEXEC, ["n1: 9 BLAS threads of 2 ranks on 2 cores"]),
    ([facts()], MPIEXEC, ["Open MPI started 2 processes, but MPI gives each of them a world of its own"]),
]


@pytest.mark.parametrize(("ranks", "started", "expected"), TROUBLES)
def test_find_trouble(ranks: list[Facts], started: Launcher, expected: list[str]) -> None:
    found = find_trouble(ranks, started)
    assert len(found) == len(expected)
    assert all(text.startswith(start) for text, start in zip(found, expected, strict=True))


def test_a_slurm_job_is_shown_and_measured_against_its_use() -> None:
    given = Allocation("7", 2, "n[1-2]", 4, 1)
    assert describe_job(None) == []
    assert describe_job(given) == [("Slurm", "job 7 on n[1-2]: 2 nodes, 4 tasks, 1 CPU a task")]
    assert find_trouble([facts(), facts(), facts(2), facts(2)], MPIEXEC, given) == []
    (told,) = find_trouble([facts(), facts(2)], MPIEXEC, given)
    assert told.startswith("Slurm job 7 has 4 tasks on 2 nodes, but this run uses 2 ranks on 2 nodes")


def test_ranks_that_run_alike_share_a_line() -> None:
    lines = describe_nodes([facts(), facts(), facts(2, (3,)), facts(2, (5, 6, 8))])
    assert [text for _, text in lines] == [
        "4 on 2 nodes",
        "ranks 0-1; 2 cores; 1.0 of 2.0 GiB memory left",
        "ranks 0-1 on CPUs 0-1, BLAS openblas 1.0 with 1 thread",
        "ranks 2-3; 2 cores; 1.0 of 2.0 GiB memory left",
        "rank 2 on CPU 3, BLAS openblas 1.0 with 1 thread",
        "rank 3 on CPUs 5-6,8, BLAS openblas 1.0 with 1 thread",
    ]


@pytest.mark.parametrize("ranks", [1, 3])
def test_info_prints_one_table(run_command: Run, ranks: int) -> None:
    run = run_command(ranks, "info")
    assert (run.returncode, run.stderr) == (0, "")
    labels = [line[:12].strip() for line in run.stdout.splitlines()]
    for label in ("distai-mpi", "MPI", "transport", "launcher", "ranks", "exchange", "GPU"):
        assert labels.count(label) == 1
    assert f"{ranks} on 1 node" in run.stdout


def test_info_warns_of_a_launcher_that_does_not_fit() -> None:
    """A process that another MPI's launcher has started is alone in its world; only the first one speaks."""
    foreign = {"PMI_SIZE": "2", "MPI_LOCALNRANKS": "2", "PYTHONWARNINGS": "ignore"}
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMPI_COMM", "PMIX", "PMI_"))}
    shown = [
        subprocess.run(
            [sys.executable, "-m", "distai_mpi", "info"],
            env=clean | foreign | {"PMI_RANK": rank},
            capture_output=True,
            text=True,
            timeout=limit(60),
            check=False,
        )
        for rank in "01"
    ]
    if "MPICH" in shown[0].stdout or shown[0].returncode:
        pytest.skip("not available: an MPI library that takes no notice of PMI")
    assert "warning: Hydra/PMI started 2 processes" in shown[0].stdout
    assert shown[1].stdout == ""
