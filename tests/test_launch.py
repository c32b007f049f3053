"""What launchers say, how MPI is started, and how the command line starts, fails and ends."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from commands import run_here
from run import find_mpiexec, limit, mpi_environment, mpiexec_command

from distai_mpi.cli.main import cli
from distai_mpi.cli.overview import overview
from distai_mpi.comm import launch, leaving
from distai_mpi.comm.allocation import Allocation, allocation, idle_part
from distai_mpi.comm.launch import Launcher, check_world, launcher
from distai_mpi.errors import ConfigError

Run = Callable[..., subprocess.CompletedProcess[str]]

OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "6",
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_RANK": "5",
}
HYDRA = {"PMI_SIZE": "3", "PMI_RANK": "2", "MPI_LOCALNRANKS": "3"}
BATCH = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_NNODES": "2"}
STEP = {
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "4,3",
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "6",
}
LAUNCHERS = [
    ({}, Launcher("none", 1, 0, 1, True)),
    (OPEN_MPI, Launcher("Open MPI", 6, 5, 2, False)),
    (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "6"}, Launcher("Open MPI", 6, 5, 6, True)),
    (HYDRA, Launcher("Hydra/PMI", 3, 2, 3, True)),
    (HYDRA | {"MPI_LOCALNRANKS": "1"}, Launcher("Hydra/PMI", 3, 2, 1, False)),
    (BATCH, Launcher("none", 1, 0, 1, True)),  # a batch script runs once, whatever the job was given
    (BATCH | STEP, Launcher("Slurm srun", 7, 6, 3, False)),
    (BATCH | STEP | {"SLURM_STEP_NUM_NODES": "1"}, Launcher("Slurm srun", 7, 6, 3, True)),
    (BATCH | STEP | {"PMI_SIZE": "7", "PMI_RANK": "6"}, Launcher("Slurm srun", 7, 6, 3, False)),  # --mpi=pmi2
    (BATCH | STEP | OPEN_MPI, Launcher("Open MPI", 6, 5, 2, False)),  # mpiexec started its daemons by srun
    (BATCH | STEP | HYDRA, Launcher("Hydra/PMI", 3, 2, 3, True)),
]


@pytest.mark.parametrize(("env", "expected"), LAUNCHERS)
def test_launcher(env: dict[str, str], expected: Launcher) -> None:
    assert launcher(env) == expected


@pytest.mark.parametrize(("counts", "node", "tasks"), [("4(x2),3", 1, 4), ("4(x2),3", 2, 3), ("2", 0, 2), ("", 0, 1)])
def test_tasks_on_node(counts: str, node: int, tasks: int) -> None:
    assert launch._tasks_on_node(counts, node) == tasks


SALLOC = BATCH | {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_CPUS_PER_TASK": "2"}
PER_NODE = {"SLURM_NTASKS_PER_NODE": "4", "SLURM_JOB_CPUS_PER_NODE": "8(x2)"}
ALLOCATIONS = [
    ({}, None),
    ({"SLURM_JOB_ID": "9"}, Allocation("9", 1, "", 1, 1)),
    (SALLOC, Allocation("7", 2, "n[1-2]", 8, 2)),
    (SALLOC | OPEN_MPI, Allocation("7", 2, "n[1-2]", 8, 2)),
    # a step of 3 tasks: its variables hide the job's count, which the nodes still tell
    (SALLOC | STEP | {"SLURM_NTASKS": "3"}, Allocation("7", 2, "n[1-2]", 3, 2)),
    (SALLOC | STEP | PER_NODE | {"SLURM_NTASKS": "3"}, Allocation("7", 2, "n[1-2]", 8, 2)),
    # -n 5 --ntasks-per-node 4: the latter is a limit, and the CPUs tell that there are 5
    (
        SALLOC | STEP | PER_NODE | {"SLURM_NTASKS": "5", "SLURM_JOB_CPUS_PER_NODE": "8,2"},
        Allocation("7", 2, "n[1-2]", 5, 2),
    ),
]


@pytest.mark.parametrize(("env", "expected"), ALLOCATIONS)
def test_allocation(env: dict[str, str], expected: Allocation | None) -> None:
    assert allocation(env) == expected


@pytest.mark.parametrize(
    ("size", "nodes", "words"),
    [(8, 2, []), (9, 2, []), (2, 2, ["8 tasks", "2 ranks on 2 nodes"]), (8, 1, ["2 nodes", "8 ranks on 1 node"])],
)
def test_idle_part_names_what_is_left_over(size: int, nodes: int, words: list[str]) -> None:
    told = idle_part(size, nodes, Allocation("7", 2, "n[1-2]", 8, 2))
    assert (told is None) == (words == [])
    assert all(word in (told or "") for word in words)
    assert idle_part(size, nodes, None) is None


@pytest.mark.mpi
def test_train_warns_of_an_idle_allocation_once(
    shared_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SALLOC.items():
        monkeypatch.setenv(name, value)
    folder = shared_folder(lambda folder: np.savez(folder / "rows.npz", x=np.eye(20), y=np.arange(20) % 2))
    run = run_here("train", "--data", "rows.npz", "--epochs", 1, cwd=folder)
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("distai-mpi: warning: Slurm job 7 has 8 tasks on 2 nodes") == 1


@pytest.mark.parametrize(
    ("started", "fits"),
    [(Launcher("none"), True), (Launcher("Open MPI", 1), True), (Launcher("Slurm srun", 2), False)],
)
def test_check_world_of_one(started: Launcher, fits: bool) -> None:
    check_world(2, started)
    if fits:
        check_world(1, started)
    else:
        with pytest.raises(ConfigError, match=r"2 processes.*--mpi=pmix"):
            check_world(1, started)


def test_prepare_environment_is_for_one_node_and_yields_to_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*launch.ONE_NODE_SETTINGS, *OPEN_MPI]:
        monkeypatch.delenv(name, raising=False)
    for name, value in OPEN_MPI.items():
        monkeypatch.setenv(name, value)
    launch.prepare_environment()
    assert "OMPI_MCA_btl" not in os.environ

    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "6")
    monkeypatch.setenv("OMPI_MCA_btl", "tcp,self")
    launch.prepare_environment()
    assert os.environ["OMPI_MCA_btl"] == "tcp,self"
    assert os.environ["OMPI_MCA_mtl"] == "^ofi"
    for name in launch.ONE_NODE_SETTINGS:
        monkeypatch.delenv(name, raising=False)


def test_mpich_is_started_on_a_new_heap_under_srun() -> None:
    """In a thread of its own; what is raised there is raised here, and the process ends as ever."""
    program = "from distai_mpi.comm import launch; launch.world(); from mpi4py import MPI; print(MPI.Is_thread_main())"
    for words, told in (({}, "True"), ({"PMI_FD": "99", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0"}, "False")):
        env = {k: v for k, v in mpi_environment().items() if not k.startswith(("OMPI_COMM", "PMI"))} | words
        done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout.strip()) == (0, told), done.stderr


def command(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """``distai-mpi words...`` without a launcher."""
    return subprocess.run(
        [sys.executable, "-m", "distai_mpi", *words],
        env=dict(os.environ) | (env or {}),
        capture_output=True,
        text=True,
        timeout=limit(60),
        check=False,
    )


def test_help_starts_no_mpi() -> None:
    program = (
        "import sys; from distai_mpi.cli.entry import main; sys.argv = ['distai-mpi', '--help']; status = main(); "
        "print(status, [name for name in ('mpi4py.MPI', 'numba', 'rich', 'click', 'inspect') if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=limit(60), check=False
    )
    assert run.stdout.endswith("0 []\n")
    assert "Train a model" in run.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["inof"], "no command 'inof': did you mean 'info'?"),
        (["xyz"], "no command 'xyz': choose from train, evaluate"),
        (["--versoin"], "--version"),
        (["info", "--all"], "--all"),
        (["info", "surplus"], "surplus"),
    ],
)
def test_usage_errors_name_the_way_out(words: list[str], message: str) -> None:
    run = command(*words)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("distai-mpi: error: ")
    assert message in run.stderr
    assert run.stderr.count("\n") == 1


def test_version_and_bare_command() -> None:
    assert command("--version").stdout.startswith("distai-mpi 0.")
    bare = command()
    assert (bare.returncode, bare.stdout) == (0, command("--help").stdout)


def test_the_help_without_click_is_clicks_own() -> None:
    assert overview() + "\n" == CliRunner().invoke(cli, ["--help"], prog_name="distai-mpi").output


def test_higher_ranks_are_quiet_before_mpi_starts() -> None:
    second = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
    for words, status in ((["--help"], 0), (["info", "--help"], 0), (["nonsense"], 2)):
        run = command(*words, env=second)
        assert (run.returncode, run.stdout, run.stderr) == (status, "", "")


PROGRAM = """
import sys
import click
from distai_mpi.cli import main as cli
from distai_mpi.comm import launch
from distai_mpi.comm.allocation import Allocation, allocation, idle_part
from distai_mpi.errors import DataError

@click.command()
@click.argument("failing", type=int)
def command(failing):
    world = launch.world()
    if failing in (world.rank, -1):
        raise {error}
    world.Barrier()

sys.modules["distai_mpi.cli.info"] = sys.modules["__main__"]
sys.exit(cli.main(["info", "--", sys.argv[1]]))
"""


@pytest.mark.parametrize(
    ("error", "failing", "message"),
    [
        ("DataError('bad file')", -1, "distai-mpi: error: bad file"),  # agreed: all ranks raise it
        ("DataError('bad file')", 0, "distai-mpi: error: bad file"),
        ("DataError('bad file')", 1, "distai-mpi: error: rank 1: bad file"),
        ("ZeroDivisionError('a bug')", 1, "[rank 1 of 2"),
    ],
)
def test_errors_end_all_ranks_with_one_message(
    mpirun: Run, tmp_path: Path, error: str, failing: int, message: str
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(error=error))
    run = mpirun(2, str(program), str(failing), timeout=30)
    assert run.returncode != 0
    assert run.stderr.count(message) >= 1
    assert run.stderr.count("distai-mpi: error:") == (1 if error.startswith("DataError") else 0)
    assert ("Traceback" in run.stderr) == error.startswith("Zero")


def test_usage_error_under_mpiexec_is_printed_once(mpirun: Run) -> None:
    run = mpirun(2, "-m", "distai_mpi", "nonsense")
    assert run.returncode == 2
    assert run.stderr.count("distai-mpi: error:") == 1


def test_help_under_mpiexec_is_printed_once(mpirun: Run) -> None:
    run = mpirun(3, "-m", "distai_mpi", "--help")
    assert run.returncode == 0
    assert run.stdout.count("Usage:") == 1


def test_shared_windows_are_quiet(mpirun: Run) -> None:
    """Our settings alone silence what the MPI library of the wheel has to say about fabrics."""
    program = (
        "from distai_mpi.comm import launch; world = launch.world(); from mpi4py import MPI; "
        "window = MPI.Win.Allocate_shared(8, 1, comm=world); window.Free()"
    )
    run = mpirun(2, "-c", program, env=dict.fromkeys(launch.ONE_NODE_SETTINGS))
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize(("started", "shown"), [("mpiexec", False), ("script", True)])
def test_on_terminal_is_asked_of_mpiexec(tmp_path: Path, started: str, shown: bool) -> None:
    """Output to a pipe is no terminal, though Open MPI's ranks see one; within ``script`` there is one."""
    if find_mpiexec() is None or shutil.which("script") is None:
        pytest.skip("not available: mpiexec or script")
    program = tmp_path / "program.py"
    program.write_text("from distai_mpi.comm import launch; print('terminal', launch.on_terminal())")
    words = [*mpiexec_command(1), sys.executable, str(program)]
    if started == "script":
        words = ["script", "-qec", shlex.join(words), "/dev/null"]
    run = subprocess.run(
        words,
        env=mpi_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=limit(60),
        check=False,
    )
    assert f"terminal {shown}" in run.stdout


@pytest.mark.mpi
def test_world_counts_as_the_launcher_does() -> None:
    comm = launch.world()
    started = launcher()
    assert (comm.size, comm.rank) == (started.size, started.rank)
    assert leaving.connected() == (comm.size > 1)
    assert leaving.leave_together()


@pytest.mark.mpi(min_size=2)
def test_leave_together_gives_up_on_those_who_stay() -> None:
    comm = launch.world()
    if comm.rank < comm.size - 1:
        assert not leaving.leave_together(seconds=0.2)
    comm.Barrier()  # what was begun there is no part of it
    if comm.rank == comm.size - 1:
        assert not leaving.leave_together(seconds=0.2)  # the others are gone
    comm.Barrier()
    assert leaving.leave_together(seconds=10.0)
