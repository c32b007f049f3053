"""Jobs of the batch script, each struck by a signal at a random moment, on a real Slurm of two nodes.

    SLURM_CONF=... python tests/slurm_signals.py [--jobs 40] [--launch pmix,mpiexec] [--kinds usr1,term,...] [--seed 0]

The command ``distai-mpi`` beside this Python is run, with the MPI library that it finds.  Each job trains on one rank
of each node.  After its signal it is followed to its end; where that was not COMPLETED (it was cancelled, or was not to
be requeued) the same words are submitted again with ``--resume``.  What must hold: a job is COMPLETED only where
result.json says so, and a cancelled one stays cancelled; in the end every run has the weights of one that was never
interrupted, bit by bit; and a job that is requeued after its result was whole ends at once with 0 and leaves the result
as it was.

    usr1      SIGUSR1 to the batch script, as by --signal=B:USR1     kill  SIGKILL to one rank
    term      SIGTERM to the job's steps                             stop  SIGSTOP to one rank (needs train --watch)
    preempt   a job of a partition with a higher priority (``high``) takes the nodes
    scancel   the job is cancelled

Not a test of the suite: it takes half a minute a job.  The exit status is 0 only if all of it held.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SCRIPT = Path(__file__).parent.parent / "slurm" / "train_cpu.sbatch"
KINDS = ("usr1", "term", "preempt", "scancel", "kill", "stop")
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "BOOT_FAIL"}
WATCH = 5  # seconds that the ranks of a job with a stopped one wait
LIMIT = 240.0  # seconds for a job, requeues included


class Jobs:
    """Submits jobs, and follows and strikes them, in ``folder``."""

    def __init__(self, folder: Path, epochs: int) -> None:
        self.folder = folder
        words = f"--data rows.npz --model mlp --hidden 16 --allreduce ring --global-batch-size 20 --epochs {epochs}"
        self.words = [*words.split(), "--checkpoint-every", "1s", "--lr", "0.01", "-q"]
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(("OMPI_COMM", "PMI"))}
        self.env |= {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(SCRIPT.parent.parent),
            "START_LIMIT": "60",  # a rank that is stopped within MPI_Init or MPI_Finalize
            "END_LIMIT": "30",
            "OMPI_MCA_mpi_yield_when_idle": "1",  # the nodes may share this machine's cores
        }

    def __call__(self, *words: str, **changes: str) -> str:
        """What a command of Slurm prints; it may fail, as where a job is gone."""
        done = subprocess.run(
            words, cwd=self.folder, env=self.env | changes, capture_output=True, text=True, timeout=60, check=False
        )
        return done.stdout.strip()

    def submit(self, name: str, launch: str, *more: str) -> str:
        """Submit a run with the output folder ``name``; its job."""
        flags = ["--parsable", "--nodes=2", "--ntasks-per-node=1", f"--output={name}.txt", "--time=10"]
        return self("sbatch", *flags, str(SCRIPT), *self.words, "--out", name, *more, LAUNCH=launch)

    def state(self, job: str) -> str:
        found = re.search(r"JobState=(\w+)", self("scontrol", "show", "job", "-o", job))
        return found[1] if found else "UNKNOWN"

    def end(self, job: str) -> str:
        """Wait until the job has ended and will not begin again; its state."""
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            state = self.state(job)
            if state in ENDED:
                return state
            time.sleep(0.3)
        self("scancel", job)
        return "OVERDUE"

    def ranks(self, job: str) -> list[int]:
        """The processes of the job's ranks; empty before they are there."""
        found = []
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                env = (folder / "environ").read_bytes().split(b"\0")
                mine = f"SLURM_JOB_ID={job}".encode() in env and b"train" in words
                if mine and b"python" in os.path.basename(words[0]):
                    found.append(int(folder.name))
        return sorted(found)

    def strike(self, kind: str, job: str, chance: random.Random) -> str:
        """Do to the job what ``kind`` says; what was done, in words."""
        if kind == "usr1":
            self("scancel", "--batch", "--signal=USR1", job)
        elif kind == "term":
            self("scancel", "--signal=TERM", job)
        elif kind == "scancel":
            self("scancel", job)
        elif kind == "preempt":
            self("sbatch", "-p", "high", "-N2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
        else:
            ranks = self.ranks(job)
            if not ranks:
                return f"{kind}: no rank was there"
            number = signal.SIGKILL if kind == "kill" else signal.SIGSTOP
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(ranks), number)
        return kind

    def completed(self, name: str) -> bool:
        """Whether result.json says that the run was completed."""
        with contextlib.suppress(OSError, ValueError):
            return json.loads((self.folder / name / "result.json").read_text())["status"] == "completed"
        return False

    def weights(self, name: str) -> dict[str, bytes]:
        """All arrays of the model, bit by bit."""
        with np.load(self.folder / name / "model.npz", allow_pickle=False) as stored:
            return {key: stored[key].tobytes() for key in stored.files}


def one(jobs: Jobs, number: int, kind: str, launch: str, straight: str, seconds: float, seed: int) -> list[str]:
    """One job to its end; what did not hold."""
    chance, name, wrong = random.Random(f"{seed} {number} {launch}"), f"{launch}-{number:02d}-{kind}", []
    more = ["--watch", str(WATCH)] if kind == "stop" else []
    wait = chance.uniform(0, seconds)
    job = jobs.submit(name, launch, *more)
    time.sleep(wait)
    was_running = jobs.state(job) in ("PENDING", "RUNNING")
    done = jobs.strike(kind, job, chance)
    states = [jobs.end(job)]
    if kind == "scancel" and states == ["COMPLETED"] and was_running:
        wrong.append("cancelled, it went on")
    while states[-1] != "COMPLETED" and len(states) < 4:
        if jobs.completed(name) and kind not in ("scancel", "preempt"):
            wrong.append(f"{states[-1]}, though result.json says completed")
        job = jobs.submit(name, launch, *more, "--resume")
        states.append(jobs.end(job))
    log = (jobs.folder / f"{name}.txt").read_text()
    starts = len(re.findall(r"^distai-mpi job \d+: start ", log, re.MULTILINE))
    if states[-1] != "COMPLETED":
        wrong.append(f"never completed: {states}")
    elif not jobs.completed(name):
        wrong.append("COMPLETED, but result.json does not say so")
    elif jobs.weights(name) != jobs.weights(straight):
        wrong.append("other weights than those of a run that was never interrupted")
    else:
        wrong += again(jobs, job, name)
    ends = re.findall(r"distai-mpi job \d+: (?!start|SIG)(.*)", log)
    print(f"{name:20} {wait:5.1f} s: {done}; {' '.join(states)}, {starts} starts; {' | '.join(ends)}", flush=True)
    for line in wrong:
        print(f"    WRONG: {line}", flush=True)
    return wrong


def again(jobs: Jobs, job: str, name: str) -> list[str]:
    """Requeue the completed job; what did not hold."""
    files = {file: file.stat().st_mtime_ns for file in (jobs.folder / name).glob("*.*")}
    jobs("scontrol", "requeue", job)
    state = jobs.end(job)
    log = (jobs.folder / f"{name}.txt").read_text()
    wrong = [] if state == "COMPLETED" else [f"requeued after it was completed, it ended {state}"]
    if "start 1" not in log and "start 2" not in log:
        wrong.append("was not requeued")
    changed = [file.name for file, time in files.items() if not file.exists() or file.stat().st_mtime_ns != time]
    return wrong + [f"requeued after it was completed, it changed {', '.join(changed)}"] * bool(changed)


def main() -> int:
    """Run the jobs; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=40)
    parser.add_argument("--launch", default="pmix,mpiexec", help="values of the script's LAUNCH, in turn")
    parser.add_argument("--kinds", default=None, help=f"of {','.join(KINDS)}, in turn; default: all that can be")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=1500)
    options = parser.parse_args()
    if not os.environ.get("SLURM_CONF"):
        parser.error("SLURM_CONF must name the configuration of a running Slurm with two nodes")
    program = Path(sys.executable).parent / "distai-mpi"
    watches = "--watch" in subprocess.run([program, "train", "--help"], capture_output=True, text=True).stdout
    kinds = options.kinds.split(",") if options.kinds else [kind for kind in KINDS if watches or kind != "stop"]
    launches = options.launch.split(",")

    folder = Path(tempfile.mkdtemp(prefix="slurm-signals-"))
    rng = np.random.default_rng(options.seed)
    x = rng.normal(size=(800, 12)).astype(np.float32)
    np.savez(folder / "rows.npz", x=x, y=(x @ rng.normal(size=(12, 3))).argmax(1))
    jobs = Jobs(folder, options.epochs)
    seconds = {}
    for launch in launches:  # kernels are compiled by the first
        for _ in range(2):
            began = time.monotonic()
            assert jobs.end(jobs.submit(f"straight-{launch}", launch)) == "COMPLETED", folder
            seconds[launch] = time.monotonic() - began
        print(f"{folder}: {launch}: {seconds[launch]:.1f} s uninterrupted", flush=True)
    wrong = []
    for number in range(options.jobs):
        launch = launches[number % len(launches)]
        kind = kinds[number // len(launches) % len(kinds)]
        wrong += one(jobs, number, kind, launch, f"straight-{launch}", seconds[launch], options.seed)
    print(f"{options.jobs} jobs, {len(wrong)} wrong")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
