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
leave() { [ -z "$1" ] || printf 'status=%s\nout=%s\n' "$1" "$OUT" >"$DISTAI_RECORD"; }
echo "$OMP_NUM_THREADS $SRUN_CPUS_PER_TASK" >"$NOTES/threads"
[ -n "$(cat "$DISTAI_RECORD")" ] && touch "$NOTES/stale"
if [ "$STATUS" = wait ]; then
    touch "$NOTES/started"
    for _ in $(seq 300); do
        [ -e "$NOTES/go" ] && break
        /bin/sleep 0.1
    done
    trap 'echo USR1 >>"$NOTES/signals"; leave interrupted; exit 75' USR1
    leave running
    /bin/sleep 1.2
    [ -z "$LEAVES_LATER" ] || leave "$LEAVES_LATER"
    for _ in $(seq 300); do /bin/sleep 0.1 & wait $!; done
fi
leave "$LEAVES"
exit "$STATUS"
"""
)
PROGRAMS = {
    "srun": LAUNCHER,
    "mpiexec": LAUNCHER,
    "distai-mpi": STAND_IN,
    "scontrol": STAND_IN + 'case $1 in show) echo "JobId=42 $JOB_STATE" ;; *) exit "${REQUEUE_STATUS:-0}" ;; esac\n',
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
    "LEAVES": "completed",
    "JOB_STATE": "JobState=RUNNING Reason=None",
}


class Stage:
    """A folder of stand-ins for Slurm's and MPI's programs, and what they have noted."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.notes, self.work = folder / "bin", folder / "notes", folder / "work"
        for made in (self.bin, self.notes, self.work):
            made.mkdir()
        for name, text in PROGRAMS.items():
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(0o755)
        # the pause after a requeue, in which Slurm ends the script
        (self.bin / "sleep").write_text(STAND_IN + "/bin/sleep 0.05\n")
        (self.bin / "sleep").chmod(0o755)

    def start(self, script: Path, *words: str, **changes: str) -> subprocess.Popen[str]:
        env = {"PATH": f"{self.bin}:/usr/bin:/bin", "NOTES": str(self.notes), "HOME": "/", **JOB, **changes}
        return subprocess.Popen(
            ["bash", str(script), *words],
            cwd=self.work,
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

    def complete(self, folder: str, status: str = "completed") -> str:
        """A folder that holds the result of a run; its path."""
        (self.work / folder).mkdir(exist_ok=True)
        (self.work / folder / "result.json").write_text(json.dumps({"schema": 1, "status": status}, indent=2))
        return str(self.work / folder)

    def checkpoint(self, folder: str, step: int) -> None:
        """Leave a checkpoint of so many steps there."""
        where = self.work / folder / "checkpoints" / f"step-{step:09d}"
        where.mkdir(parents=True)
        (where / "manifest.json").touch()

    @property
    def requeued(self) -> bool:
        return self.has("scontrol") and self.noted("scontrol") == ["requeue", "42"]

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
    assert stage.noted("srun") == [
        "--wait=60",
        "--kill-on-bad-exit=1",
        "--mpi=pmix",
        str(stage.bin / "distai-mpi"),
        "train",
        *WORDS,
    ]
    assert stage.noted("threads") == ["3 3"]
    assert not stage.has("scontrol")


def test_the_gpu_script_asks_for_gpus_and_the_user_has_the_last_word(stage: Stage) -> None:
    stage.run(GPU, "--device", "auto")
    assert stage.noted("srun")[4:] == ["train", "--device", "gpu", "--device", "auto"]


LAUNCHERS = [
    ({}, ["srun", "--wait=60", "--kill-on-bad-exit=1", "--mpi=pmix"]),
    ({"OFFERED": "none pmi2"}, ["mpiexec", "-n", "8", "--map-by", "slot:PE=3", "--bind-to", "core"]),
    ({"OFFERED": "none pmi2", "SLURM_CPUS_PER_TASK": "1"}, ["mpiexec", "-n", "8"]),
    ({"OFFERED": "none pmi2", "LAUNCH_FLAGS": "--bind-to none"}, ["mpiexec", "-n", "8", "--bind-to", "none"]),
    ({"LIBRARY": "MPICH Version: 5.0"}, ["srun", "--wait=60", "--kill-on-bad-exit=1", "--mpi=pmi2"]),
    ({"LIBRARY": "MPICH Version: 5.0", "OFFERED": "none pmix", "MPIEXEC_VERSION": "HYDRA"}, ["mpiexec", "-n", "8"]),
    ({"LIBRARY": "CRAY MPICH version 8.1"}, ["srun", "--wait=60", "--kill-on-bad-exit=1", "--mpi=cray_shasta"]),
    ({"LIBRARY": "Intel(R) MPI Library 2021", "MPIEXEC_VERSION": "Intel(R) MPI"}, ["mpiexec", "-n", "8"]),
    ({"LAUNCH": "srun"}, ["srun", "--wait=60", "--kill-on-bad-exit=1"]),
    (
        {"LAUNCH": "pmi2", "LAUNCH_FLAGS": "-v --label"},
        ["srun", "--wait=60", "--kill-on-bad-exit=1", "--mpi=pmi2", "-v", "--label"],
    ),
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
        (["--config=run.toml"], "1", ["--resume"]),
        (["--config", "no-out.toml"], "1", []),  # the command refuses --resume without a folder
        (["--out", "run", "--resume"], "1", []),
        (["--epochs", "3"], "1", []),  # nothing was kept: from the start
    ],
)
def test_a_restarted_job_resumes(stage: Stage, words: list[str], restarts: str, added: list[str]) -> None:
    (stage.work / "run.toml").write_text("epochs = 3\n out='run'\n")
    (stage.work / "no-out.toml").write_text("epochs = 3\n# out = 'run'\n")
    stage.run(CPU, *words, SLURM_RESTART_COUNT=restarts)
    assert stage.noted("srun")[5:] == [*words, *added]


@pytest.mark.parametrize("status", ["75", "0", "1", "137"])
def test_an_interrupted_run_goes_back_to_the_queue_whatever_its_launcher_says(stage: Stage, status: str) -> None:
    stage.run(CPU, "--out", "run", STATUS=status, LEAVES="interrupted", OUT="/run", REQUEUE_ON_FAILURE="0")
    assert stage.requeued
    assert stage.noted("sleep") == ["120"], "the script waits for Slurm to end it"


@pytest.mark.parametrize("status", ["0", "1", "138"])
def test_a_completed_run_completes_the_job_whatever_its_launcher_says(stage: Stage, status: str) -> None:
    ended, output = stage.run(CPU, "--out", "run", STATUS=status, OUT=stage.complete("run"))
    assert ended == 0
    assert ("completed before its launcher ended" in output) == (status != "0")
    assert not stage.has("scontrol")
    assert [path.name for path in stage.work.iterdir()] == ["run"], "the run's word is removed"


@pytest.mark.parametrize("leaves", ["", "starting", "running"])
def test_status_0_completes_no_job_that_was_cut_short(stage: Stage, leaves: str) -> None:
    """So ends Open MPI's mpiexec after SIGTERM; the result in the folder is an earlier run's."""
    out = stage.complete("run")
    ended, output = stage.run(CPU, "--out", "run", LEAVES=leaves, OUT=out, REQUEUE_ON_FAILURE="0")
    assert ended == 1
    assert "not requeued: REQUEUE_ON_FAILURE=0" in output
    assert stage.run(CPU, "--epochs", "3", LEAVES=leaves)[0] == 1, "also where nothing is saved"


def test_a_result_that_says_otherwise_completes_no_job(stage: Stage) -> None:
    for out in (stage.complete("run", "interrupted"), "/nowhere"):
        ended, output = stage.run(CPU, "--out", "run", OUT=out)
        assert ended == 1
        assert "does not say that the run was completed" in output


def test_the_word_of_an_earlier_start_does_not_count(stage: Stage) -> None:
    stage.run(CPU, "--out", "run", LEAVES="interrupted", OUT="/run")
    assert (stage.work / ".distai-mpi-42" / "run").exists()
    assert not stage.has("stale")
    ended, _ = stage.run(CPU, "--out", "run", LEAVES="", STATUS="0", SLURM_RESTART_COUNT="1", REQUEUE_ON_FAILURE="0")
    assert ended == 1
    assert not stage.has("stale")


@pytest.mark.parametrize(
    ("leaves", "status", "again"),
    [
        ("running", "1", True),
        ("running", "137", True),
        ("running", "76", True),
        ("", "255", True),
        ("unsaved", "2", True),
        ("refused", "2", False),
        ("refused", "0", False),
        ("starting", "2", False),
        ("running", "130", False),
        ("", "127", False),
    ],
)
def test_which_failures_go_back_to_the_queue(stage: Stage, leaves: str, status: str, again: bool) -> None:
    ended, output = stage.run(CPU, "--out", "run", LEAVES=leaves, STATUS=status, OUT="/run")
    assert stage.requeued == again, output
    assert ended == int(status) or leaves == "refused"
    assert ended != 0


def test_failures_are_counted_until_there_is_a_newer_checkpoint(stage: Stage) -> None:
    def fails(restarts: int) -> str:
        for name in ("scontrol", "sleep"):
            (stage.notes / name).unlink(missing_ok=True)
        words = {"LEAVES": "running", "STATUS": "137", "OUT": str(stage.work / "run"), "REQUEUE_ON_FAILURE": "2"}
        return stage.run(CPU, "--out", "run", SLURM_RESTART_COUNT=str(restarts), **words)[1]

    assert "time 1 without a newer checkpoint" in fails(0)
    assert "time 2 without a newer checkpoint" in fails(1)
    stage.checkpoint("run", 7)
    assert "time 1 without a newer checkpoint" in fails(2)
    stage.checkpoint("run", 12)
    assert "time 1 without a newer checkpoint" in fails(3)
    assert "time 2 without a newer checkpoint" in fails(4)
    assert stage.requeued
    assert "status 137; not requeued: REQUEUE_ON_FAILURE=2" in fails(5)
    assert not stage.requeued
    assert not (stage.work / ".distai-mpi-42").exists()


def test_a_place_that_takes_no_notes_is_told(stage: Stage) -> None:
    """Without a record START_LIMIT would end a sound run; without a count failures would have no end."""
    notes = stage.work / ".distai-mpi-42"
    (notes / "failures").mkdir(parents=True)
    ended, output = stage.run(CPU, "--out", "run", LEAVES="running", STATUS="137", OUT="/run")
    assert ended == 137
    assert "takes no count of failures" in output
    assert not stage.requeued
    (notes / "run").mkdir(parents=True)
    ended, output = stage.run(CPU, "--out", "run")
    assert ended == 2
    assert "run: cannot be written" in output
    assert ": start " not in output


def test_without_a_folder_nothing_goes_back_to_the_queue(stage: Stage) -> None:
    status, output = stage.run(CPU, "--epochs", "3", LEAVES="running", STATUS="143")
    assert status == 143
    assert "without --out nothing was saved: not requeued" in output
    assert not stage.requeued


@pytest.mark.parametrize(
    ("state", "again"),
    [
        ("JobState=RUNNING Reason=None", True),
        ("JobState=CANCELLED Reason=None", False),
        ("JobState=COMPLETING Reason=None", False),
        ("JobState=COMPLETING Reason=TimeLimit", True),
        ("", True),
    ],
)
def test_a_cancelled_job_stays_cancelled(stage: Stage, state: str, again: bool) -> None:
    stage.run(CPU, "--out", "run", LEAVES="interrupted", STATUS="75", OUT="/run", JOB_STATE=state)
    assert stage.requeued == again


def test_requeueing_has_an_end(stage: Stage) -> None:
    changes = {"STATUS": "75", "LEAVES": "interrupted", "OUT": "/run", "SLURM_RESTART_COUNT": "3", "MAX_RESTARTS": "3"}
    status, output = stage.run(CPU, "--out", "run", **changes)
    assert status == 75
    assert "not requeued: started 3 times again already" in output
    assert not stage.has("scontrol")


def test_a_refused_requeue_is_told(stage: Stage) -> None:
    changes = {"STATUS": "75", "LEAVES": "interrupted", "OUT": "/run", "REQUEUE_STATUS": "1"}
    status, output = stage.run(CPU, "--out", "run", **changes)
    assert status == 75
    assert "cannot be requeued; submit it again with --resume" in output


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
@pytest.mark.parametrize("launch", ["pmix", "mpiexec"])
def test_slurms_signals_reach_the_ranks_once_they_listen(stage: Stage, launch: str, number: signal.Signals) -> None:
    """The launcher, which would die of a signal before its ranks are there, gets it then alone."""
    process = stage.start(CPU, "--out", "run", STATUS="wait", LAUNCH=launch, OUT="/run")
    try:
        wait_for(lambda: stage.has("started"))
        process.send_signal(number)
        time.sleep(0.5)
        assert process.poll() is None
        assert not stage.has("signals")
        (stage.notes / "go").touch()
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert stage.noted("signals") == ["USR1"]
    assert "the ranks are told to save" in output
    assert stage.requeued


def test_a_time_limit_that_comes_before_anything_is_saved_counts(stage: Stage) -> None:
    """A start-up that takes all of the job's time would be repeated again and again."""
    (stage.notes / "go").touch()
    for restarts, again, step in (("0", True, 0), ("1", True, 7), ("2", True, 0), ("3", False, 0)):
        if step:
            stage.checkpoint("run", step)
        for note in (stage.notes / "scontrol", stage.notes / "signals", stage.work / ".distai-mpi-42" / "run"):
            note.unlink(missing_ok=True)
        changes = {"OUT": str(stage.work / "run"), "SLURM_RESTART_COUNT": restarts, "REQUEUE_ON_FAILURE": "1"}
        process = stage.start(CPU, "--out", "run", STATUS="wait", **changes)
        try:
            wait_for(lambda: (stage.work / ".distai-mpi-42" / "run").exists())
            process.send_signal(signal.SIGUSR1)
            output, _ = process.communicate(timeout=60)
        finally:
            process.kill()
        assert stage.has("signals")
        assert ("interrupted before anything new was saved" in output) == (step == 0)
        assert stage.requeued == again


@pytest.mark.parametrize("warned", [False, True])
def test_ranks_that_do_not_come_are_not_waited_for(stage: Stage, warned: bool) -> None:
    """One that is stopped in MPI_Init, where nothing else watches."""
    process = stage.start(CPU, "--out", "run", STATUS="wait", START_LIMIT="600" if warned else "1")
    try:
        wait_for(lambda: stage.has("started"))
        if warned:
            process.send_signal(signal.SIGUSR1)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert f"not all ranks have come within {30 if warned else 1} s" in output
    assert "the run failed with status 143 (time 1 " in output
    assert stage.requeued


@pytest.mark.parametrize(
    ("leaves", "status"), [("completed", 0), ("interrupted", 75), ("unsaved", 143), ("running", None)]
)
def test_a_rank_that_does_not_leave_is_not_waited_for(stage: Stage, leaves: str, status: int | None) -> None:
    """One that is stopped in MPI_Finalize; what the run left behind decides.  One that trains is waited for."""
    (stage.notes / "go").touch()
    changes = {"STATUS": "wait", "OUT": stage.complete("run"), "END_LIMIT": "3", "LEAVES_LATER": leaves}
    process = stage.start(CPU, "--out", "run", **changes)
    try:
        if status is None:
            with pytest.raises(subprocess.TimeoutExpired):
                process.communicate(timeout=2)
            return
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert f"the run was noted as {leaves}, and not all ranks have left within 3 s" in output
    assert process.returncode == status
    assert stage.requeued == (status != 0)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
@pytest.mark.parametrize("words", [["--out", "run"], []])
def test_a_signal_before_the_ranks_are_started(stage: Stage, number: signal.Signals, words: list[str]) -> None:
    (stage.bin / "python").write_text('#!/bin/bash\ntouch "$NOTES/asked"\n/bin/sleep 0.7\nprintf "%s" "$LIBRARY"\n')
    process = stage.start(CPU, *words)
    try:
        wait_for(lambda: stage.has("asked"))
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert stage.requeued == (words != []), output
    goes_on = not words and number == signal.SIGUSR1
    assert ("start 0" in output) == goes_on
    assert process.returncode == (0 if goes_on else 75 if words else 143)


def test_without_a_folder_the_warning_is_not_passed_on(stage: Stage) -> None:
    process = stage.start(CPU, STATUS="wait")
    try:
        (stage.notes / "go").touch()
        wait_for(lambda: (stage.work / ".distai-mpi-42" / "run").exists())
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert not stage.has("signals")
    assert "without --out nothing is saved, and the run goes on" in output
    assert process.returncode == 143
    assert not stage.requeued


ARRAY = {"SLURM_ARRAY_JOB_ID": "40", "SLURM_ARRAY_TASK_ID": "7"}


@pytest.mark.parametrize(
    ("word", "became"),
    [
        ("runs/%a", "runs/7"),
        ("%A_%a-%j", "40_7-42"),
        ("--out=%a%a", "--out=77"),
        ("100%%a", "100%a"),
        ("5% of %b %", "5% of %b %"),
        ("%%%a", "%7"),
    ],
)
def test_words_of_job_arrays(stage: Stage, word: str, became: str) -> None:
    status, output = stage.run(CPU, "--label", word, **ARRAY)
    assert status == 0, output
    assert stage.noted("srun")[5:] == ["--label", became]


def test_arrays_are_told_what_would_not_work(stage: Stage) -> None:
    status, output = stage.run(CPU, "--out", "runs/%a")
    assert status == 2
    assert "%a in 'runs/%a', but this is no job array" in output
    assert "all tasks of this array" in stage.run(CPU, "--out", "run", OUT=stage.complete("run"), **ARRAY)[1]
    assert "all tasks of this array" not in stage.run(CPU, "--out", "%a", OUT=stage.complete("7"), **ARRAY)[1]
    assert stage.run(CPU, "--data", "%A-%j.npz")[0] == 0, "outside of arrays both are the job's number"
    assert stage.noted("srun")[-1] == "42-42.npz"


def test_a_script_outside_of_slurm_and_a_heterogeneous_job_are_told(stage: Stage) -> None:
    status, output = stage.run(CPU, SLURM_JOB_ID="")
    assert status == 2
    assert "this script is for sbatch" in output
    assert output.count("\n") == 1
    assert "first of the job's 3 components alone" in stage.run(CPU, SLURM_HET_SIZE="3")[1]


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


OLD_HEAP = """
import ctypes
from distai_mpi.comm import launch

libc, blocks = ctypes.CDLL(None), []
libc.malloc.restype = ctypes.c_void_p
for n in range(60_000):
    size = (216, 224, 240, 300, 500, 1000, 2000, 5000, 9000)[n % 9]
    blocks.append(ctypes.c_void_p(libc.malloc(ctypes.c_size_t(size))))
    libc.memset(blocks[-1], 0xA5, ctypes.c_size_t(size))
for block in blocks[::2]:
    libc.free(block)
world = launch.world()
print("sum", world.allreduce(1), flush=True)
"""


def test_mpi_starts_under_pmi2_whatever_the_heap_holds(cluster: Cluster) -> None:
    (cluster.folder / "heap.py").write_text(OLD_HEAP)
    which = cluster(sys.executable, "-c", "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; "
                    "print(MPI.Get_library_version())").stdout  # fmt: skip
    if "MPICH" not in which:
        pytest.skip("not available: MPICH")
    done = cluster("srun", "--mpi=pmi2", "-N2", "-n2", "--time=1", sys.executable, "heap.py")
    assert (done.returncode, done.stdout) == (0, "sum 2\nsum 2\n"), done.stderr


def test_info_shows_the_job_and_what_idles(cluster: Cluster) -> None:
    script = cluster.folder / "info.sh"
    script.write_text("#!/bin/bash\nmpiexec -n 1 python -m distai_mpi info\n")
    status, output = submit(cluster, "info", "-N2", "--ntasks-per-node=2", str(script))
    assert status == 0, output
    assert re.search(r"Slurm +job \d+ on n\[1-2\]: 2 nodes, 4 tasks, 1 CPU a task", output)
    assert re.search(r"warning: Slurm job \d+ has 4 tasks on 2 nodes, but this run uses 1 rank on 1 node", output)


STOPPABLE = """#!/bin/bash
note() { printf 'status=%s\nout=%s\n' "$1" "$PWD/x" >"$DISTAI_RECORD"; }
trap 'echo "rank $SLURM_PROCID saves"; note interrupted; exit 75' USR1
echo "arguments: $*"
[[ " $* " == *" --resume "* ]] && note completed && exit 0
note running
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
    done = cluster.folder / "x" / "result.json"
    done.parent.mkdir()
    done.write_text('{\n  "status": "completed"\n}\n')
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


def test_jobs_that_are_struck(cluster: Cluster) -> None:
    """A few of what `slurm_signals` does in numbers."""
    program = str(Path(__file__).parent / "slurm_signals.py")
    done = cluster(sys.executable, program, "--jobs", "3", "--launch", "pmix", "--kinds", "usr1,scancel,kill")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 jobs, 0 wrong" in done.stdout


HIERARCHY = """
import sys
import numpy as np
from distai_mpi.comm import Communicator, launch

with Communicator(launch.world(), "auto") as comm:
    for length in (1000, 300_001):
        x, w = comm.empty(length, np.float64), comm.empty(length, np.float64, one_copy=True)
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
        print("nodes", nodes, "shared", comm.vectors.find(x) is not None, flush=True)
"""


@pytest.mark.parametrize("ranks", [8, 7])
def test_hierarchical_sums_on_four_nodes(cluster: Cluster, ranks: int) -> None:
    """Memory is shared on each of them, also where the last has fewer ranks, and messages go between them."""
    (cluster.folder / "hierarchy.py").write_text(HIERARCHY)
    words = ["srun", "--mpi=pmix", "-N4", f"-n{ranks}", sys.executable, "-m", "mpi4py", "hierarchy.py"]
    done = cluster(*words)
    assert done.returncode == 0, done.stderr
    assert f"nodes [2, 2, 2, {ranks - 6}] shared True" in done.stdout
