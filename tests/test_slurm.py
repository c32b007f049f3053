"""The batch scripts: their arguments, launchers, signals and requeueing, with stand-ins and on a real cluster.

The tests on a cluster need a script that starts one: set DISTAI_SLURM_CLUSTER to a folder that holds
``start-slurm.sh FOLDER NODES CPUS``, which leaves FOLDER/env.sh, and ``stop-slurm.sh FOLDER``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SLURM = Path(__file__).parent.parent / "slurm"
SCRIPTS = sorted(SLURM.glob("*.sbatch"))
CPU, GPU = SLURM / "train_cpu.sbatch", SLURM / "train_gpu.sbatch"

# A program that notes its arguments, one a line, and then does as its name says.
STAND_IN = """#!/bin/bash
printf '%s\\n' "$@" >"$NOTES/${0##*/}"
"""
LAUNCHER = (
    STAND_IN
    + """
case $1 in
    --mpi=list) echo "MPI plugin types are..."; echo "    $OFFERED"; exit ;;
    --version) echo "$MPIEXEC_VERSION"; exit ;;
esac
echo "$OMP_NUM_THREADS $SRUN_CPUS_PER_TASK" >"$NOTES/threads"
trap 'echo USR1 >>"$NOTES/signals"; exit 75' USR1
if [ "$STATUS" = wait ]; then
    touch "$NOTES/started"
    for _ in $(seq 300); do command sleep 0.1 & wait $!; done
fi
exit "$STATUS"
"""
)
PROGRAMS = {
    "srun": LAUNCHER,
    "mpiexec": LAUNCHER,
    "distai-mpi": STAND_IN,
    "scontrol": STAND_IN + 'exit "${REQUEUE_STATUS:-0}"\n',
    "python": '#!/bin/bash\nprintf "%s" "$LIBRARY"\n',
}
JOB = {
    "SLURM_JOB_ID": "42",
    "SLURM_NTASKS": "8",
    "SLURM_CPUS_PER_TASK": "3",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "LIBRARY": "Open MPI v5.0.11",
    "MPIEXEC_VERSION": "mpiexec (Open MPI) 5.0.11",
    "OFFERED": "cray_shasta none pmi2 pmix",
    "STATUS": "0",
}


class Stage:
    """A folder of stand-ins for Slurm's and MPI's programs, and what they have noted."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.notes = folder / "bin", folder / "notes"
        self.bin.mkdir()
        self.notes.mkdir()
        for name, text in PROGRAMS.items():
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(0o755)
        # the pause after a requeue, in which Slurm ends the script
        (self.bin / "sleep").write_text(STAND_IN)
        (self.bin / "sleep").chmod(0o755)

    def start(self, script: Path, *words: str, **changes: str) -> subprocess.Popen[str]:
        env = {"PATH": f"{self.bin}:/usr/bin:/bin", "NOTES": str(self.notes), "HOME": "/", **JOB, **changes}
        return subprocess.Popen(
            ["bash", str(script), *words],
            env={name: value for name, value in env.items() if value},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, script: Path, *words: str, **changes: str) -> tuple[int, str]:
        process = self.start(script, *words, **changes)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output

    def noted(self, program: str) -> list[str]:
        return (self.notes / program).read_text().splitlines()

    def has(self, name: str) -> bool:
        return (self.notes / name).exists()


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(script: Path) -> None:
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False).stderr == ""
    header = {line.split()[1].partition("=")[0] for line in script.read_text().splitlines() if line.startswith("#SB")}
    assert {
        "--nodes",
        "--ntasks-per-node",
        "--cpus-per-task",
        "--time",
        "--signal",
        "--requeue",
        "--open-mode",
    } <= header


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(script: Path) -> None:
    beside = Path(sys.executable).parent / "shellcheck"
    program = str(beside) if beside.exists() else shutil.which("shellcheck")
    if program is None:
        pytest.skip("not available: shellcheck")
    checked = subprocess.run([program, str(script)], capture_output=True, text=True, check=False)
    assert checked.stdout == ""


def test_both_scripts_have_one_body() -> None:
    bodies = {script.read_text().partition("# ----- from here on")[2] for script in SCRIPTS}
    assert len(SCRIPTS) == 2
    assert len(bodies) == 1
    assert bodies != {""}


WORDS = ["--data", "my rows.npz", "--out", "a b", "--hidden", "8,4", "", "$HOME", "*"]


def test_arguments_arrive_as_they_are(stage: Stage) -> None:
    status, _ = stage.run(CPU, *WORDS)
    assert status == 0
    assert stage.noted("srun") == ["--wait=60", "--mpi=pmix", str(stage.bin / "distai-mpi"), "train", *WORDS]
    assert stage.noted("threads") == ["3 3"]
    assert not stage.has("scontrol")


def test_the_gpu_script_asks_for_gpus_and_the_user_has_the_last_word(stage: Stage) -> None:
    stage.run(GPU, "--device", "auto")
    assert stage.noted("srun")[3:] == ["train", "--device", "gpu", "--device", "auto"]


LAUNCHERS = [
    ({}, ["srun", "--wait=60", "--mpi=pmix"]),
    ({"OFFERED": "none pmi2"}, ["mpiexec", "-n", "8", "--map-by", "slot:PE=3", "--bind-to", "core"]),
    ({"OFFERED": "none pmi2", "SLURM_CPUS_PER_TASK": "1"}, ["mpiexec", "-n", "8"]),
    ({"OFFERED": "none pmi2", "LAUNCH_FLAGS": "--bind-to none"}, ["mpiexec", "-n", "8", "--bind-to", "none"]),
    ({"LIBRARY": "MPICH Version: 5.0"}, ["srun", "--wait=60", "--mpi=pmi2"]),
    ({"LIBRARY": "MPICH Version: 5.0", "OFFERED": "none pmix", "MPIEXEC_VERSION": "HYDRA"}, ["mpiexec", "-n", "8"]),
    ({"LIBRARY": "CRAY MPICH version 8.1"}, ["srun", "--wait=60", "--mpi=cray_shasta"]),
    ({"LIBRARY": "Intel(R) MPI Library 2021", "MPIEXEC_VERSION": "Intel(R) MPI"}, ["mpiexec", "-n", "8"]),
    ({"LAUNCH": "srun"}, ["srun", "--wait=60"]),
    ({"LAUNCH": "pmi2", "LAUNCH_FLAGS": "-v --label"}, ["srun", "--wait=60", "--mpi=pmi2", "-v", "--label"]),
    ({"LAUNCH": "mpiexec", "SLURM_CPUS_PER_TASK": "1"}, ["mpiexec", "-n", "8"]),
]


@pytest.mark.parametrize(("changes", "words"), LAUNCHERS)
def test_launchers(stage: Stage, changes: dict[str, str], words: list[str]) -> None:
    status, output = stage.run(CPU, "--seed", "1", **changes)
    assert status == 0, output
    assert stage.noted(words[0]) == [*words[1:], str(stage.bin / "distai-mpi"), "train", "--seed", "1"]
    assert f"{' '.join(words)} distai-mpi train --seed 1" in output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"VENV": "/nowhere"}, "VENV=/nowhere is no virtual environment"),
        ({"MODULES": "openmpi"}, "module load openmpi failed"),
        ({"PATH": "/usr/bin:/bin"}, "distai-mpi is not on PATH: set VENV or MODULES"),
    ],
)
def test_a_wrong_environment_is_an_error(stage: Stage, changes: dict[str, str], message: str) -> None:
    status, output = stage.run(CPU, **changes)
    assert status == 2
    assert f"distai-mpi job 42: error: {message}" in output
    assert not stage.has("srun")


@pytest.mark.parametrize(
    ("words", "restarts", "added"),
    [
        (["--out", "run"], "0", []),
        (["--out", "run"], "2", ["--resume"]),
        (["--out=run"], "1", ["--resume"]),
        (["--config", "run.toml"], "1", ["--resume"]),
        (["--out", "run", "--resume"], "1", []),
        (["--epochs", "3"], "1", []),  # nothing was kept: from the start
    ],
)
def test_a_restarted_job_resumes(stage: Stage, words: list[str], restarts: str, added: list[str]) -> None:
    stage.run(CPU, *words, SLURM_RESTART_COUNT=restarts)
    assert stage.noted("srun")[4:] == [*words, *added]


def test_status_75_goes_back_to_the_queue(stage: Stage) -> None:
    stage.run(CPU, "--out", "run", STATUS="75")
    assert stage.noted("scontrol") == ["requeue", "42"]
    assert stage.has("sleep"), "the script waits for Slurm to end it"


@pytest.mark.parametrize("status", ["0", "1", "2", "74", "130", "137"])
def test_other_statuses_end_the_job(stage: Stage, status: str) -> None:
    assert stage.run(CPU, STATUS=status)[0] == int(status)
    assert not stage.has("scontrol")


def test_requeueing_has_an_end(stage: Stage) -> None:
    status, output = stage.run(CPU, STATUS="75", SLURM_RESTART_COUNT="3", MAX_RESTARTS="3")
    assert status == 75
    assert "not requeued: started 3 times again already" in output
    assert not stage.has("scontrol")


def test_a_refused_requeue_is_told(stage: Stage) -> None:
    status, output = stage.run(CPU, STATUS="75", REQUEUE_STATUS="1")
    assert status == 75
    assert "cannot be requeued; submit it again with --resume" in output


@pytest.mark.parametrize("launch", ["pmix", "mpiexec"])
def test_slurms_warning_reaches_the_ranks(stage: Stage, launch: str) -> None:
    process = stage.start(CPU, STATUS="wait", LAUNCH=launch)
    try:
        wait_for(lambda: stage.has("started"))
        process.send_signal(signal.SIGUSR1)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert stage.noted("signals") == ["USR1"]
    assert "time is nearly over" in output
    assert stage.noted("scontrol") == ["requeue", "42"]


def wait_for(true, seconds: float = 60.0) -> None:
    """Wait until ``true()`` is."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)


# --- on a cluster of four nodes


class Cluster:
    """A running Slurm; commands run in ``folder``."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder, self.env = folder, env

    def __call__(self, *words: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words,
            cwd=self.folder,
            env=self.env | changes,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    given = os.environ.get("DISTAI_SLURM_CLUSTER")
    if not given:
        pytest.skip("not available: a Slurm cluster (DISTAI_SLURM_CLUSTER)")
    state = tempfile.mkdtemp(prefix="distai-slurm-")  # short: sockets with long paths are refused
    os.chmod(state, 0o755)
    jobs = Path(state) / "jobs"
    jobs.mkdir()
    try:
        started = subprocess.run(
            [f"{given}/start-slurm.sh", state, "4", "2"], capture_output=True, text=True, timeout=120, check=False
        )
        assert started.returncode == 0, started.stderr
        told = re.search(r"SLURM_CONF=(\S+)", (Path(state) / "env.sh").read_text())
        assert told is not None
        outside = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_", "PMI_", "SLURM_"))}
        env = outside | {
            "SLURM_CONF": told[1],
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(SLURM.parent),
            "OMPI_MCA_mpi_yield_when_idle": "1",  # the nodes share this machine's cores
        }
        if os.geteuid() == 0:
            env |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        yield Cluster(jobs, env)
    finally:
        subprocess.run([f"{given}/stop-slurm.sh", state], capture_output=True, timeout=120, check=False)
        shutil.rmtree(state, ignore_errors=True)


def submit(cluster: Cluster, name: str, *words: str, **changes: str) -> tuple[int, str]:
    """Run a job to its end; its exit status and output."""
    done = cluster("sbatch", "--wait", f"--output={name}.txt", *words, **changes)
    return done.returncode, (cluster.folder / f"{name}.txt").read_text()


@pytest.mark.parametrize("launch", ["", "mpiexec"])
def test_a_job_trains_on_two_nodes(cluster: Cluster, launch: str) -> None:
    out = f"run {launch}"
    words = ["--ntasks-per-node=1", str(CPU), "--epochs", "1", "--shuffle", "global", "--out", out]
    status, output = submit(cluster, f"train{launch}", *words, LAUNCH=launch)
    assert status == 0, output
    result = json.loads((cluster.folder / out / "result.json").read_text())
    assert (result["status"], result["ranks"], result["nodes"]) == ("completed", 2, 2)
    assert result["test_accuracy"] > 0.9
    assert "warning" not in output


def test_srun_without_mpi_is_refused(cluster: Cluster) -> None:
    refused = cluster("srun", "-N2", "--ntasks-per-node=1", sys.executable, "-m", "distai_mpi", "train")
    assert refused.returncode != 0
    assert refused.stderr.count("Slurm srun started 2 processes, but MPI gives each of them a world of its own") == 1


def test_info_shows_the_job_and_what_idles(cluster: Cluster) -> None:
    script = cluster.folder / "info.sh"
    script.write_text("#!/bin/bash\nmpiexec -n 1 python -m distai_mpi info\n")
    status, output = submit(cluster, "info", "-N2", "--ntasks-per-node=2", str(script))
    assert status == 0, output
    assert re.search(r"Slurm +job \d+ on n\[1-2\]: 2 nodes, 4 tasks, 1 CPU a task", output)
    assert re.search(r"warning: Slurm job \d+ has 4 tasks on 2 nodes, but this run uses 1 rank on 1 node", output)


STOPPABLE = """#!/bin/bash
trap 'echo "rank $SLURM_PROCID saves"; exit 75' USR1
echo "arguments: $*"
[[ " $* " == *" --resume "* ]] && exit 0
for _ in $(seq 600); do sleep 0.1 & wait $!; done
exit 1
"""


def test_a_warned_job_goes_back_to_the_queue_and_resumes(cluster: Cluster) -> None:
    """What `--signal=B:USR1@60` sends, sent at once."""
    (cluster.folder / "bin").mkdir()
    program = cluster.folder / "bin" / "distai-mpi"
    program.write_text(STOPPABLE)
    program.chmod(0o755)
    path = f"{program.parent}:{cluster.env['PATH']}"
    words = ["--parsable", "--ntasks-per-node=1", "--output=queue.txt", str(CPU), "--out", "x"]
    job = cluster("sbatch", *words, PATH=path).stdout.strip()
    log = cluster.folder / "queue.txt"
    wait_for(lambda: log.exists() and log.read_text().count("arguments:") == 2)
    assert cluster("scancel", "--batch", "--signal=USR1", job).returncode == 0
    wait_for(lambda: "JobState=COMPLETED" in cluster("scontrol", "show", "job", "-o", job).stdout, seconds=120)
    told = log.read_text()
    assert told.count("saves") == 2
    assert told.count("arguments: train --out x --resume") == 2
    assert f"distai-mpi job {job}: start 1 on n[1-2]" in told


HIERARCHY = """
import sys
import numpy as np
from distai_mpi.comm import Communicator, launch

with Communicator(launch.world(), "auto") as comm:
    for length in (1000, 300_001):
        x, w = comm.empty(length, np.float64), comm.empty(length, np.float64, once=True)
        everyone = np.random.default_rng(length).integers(0, 99, (comm.size, length)).astype(float)
        owners = comm.ownership(length, np.float64, "hierarchical")
        mine = owners.slices[comm.rank]
        for _ in range(3):
            x[:] = everyone[comm.rank]
            w[mine] = 2 * comm.reduce_scatter(x, owners, "hierarchical", release=False)
            comm.allgather(w, owners, "hierarchical")
            assert (w == 2 * everyone.sum(0)).all()
            comm.allreduce(x, "native")
    nodes = [len(ranks) for ranks in comm.topology.nodes]
    if comm.rank == 0:
        print("nodes", nodes, "shared", comm._sharing.find(x) is not None, flush=True)
"""


@pytest.mark.parametrize("ranks", [8, 7])
def test_hierarchical_sums_on_four_nodes(cluster: Cluster, ranks: int) -> None:
    """Memory is shared on each of them, also where the last has fewer ranks, and messages go between them."""
    (cluster.folder / "hierarchy.py").write_text(HIERARCHY)
    words = ["srun", "--mpi=pmix", "-N4", f"-n{ranks}", sys.executable, "-m", "mpi4py", "hierarchy.py"]
    done = cluster(*words)
    assert done.returncode == 0, done.stderr
    assert f"nodes [2, 2, 2, {ranks - 6}] shared True" in done.stdout
