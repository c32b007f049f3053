"""``distai-mpi bench gpu``: whether a GPU's results are the CPU's, and how fast it is."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import click

from ...comm import launch
from ...errors import ConfigError, DistaiError
from .ranks import ranks_command

JOB_RANKS, JOB_SECONDS = 2, 200  # of the job that is started for the exchange


@click.command()
@click.option("--json", "json_file", metavar="FILE", help="Write all checks and figures here.")
def command(json_file: str | None) -> None:
    """Check a GPU against the CPU and time it, in at most 6 minutes: distai-mpi bench gpu.

    Every model is trained for a few steps by every first-order optimizer on both, and the parameters are compared:
    the largest difference as a fraction of the largest parameter, against a stated tolerance.  Two ranks that share the
    GPU (a job of its own; or the ranks of mpiexec -n N distai-mpi bench gpu) do the same by every exchange.

    The speeds stand beside the device's copy bandwidth, measured in the same run: a copy inside the device's
    memory counts its bytes twice, read and written.

    Ends with 1 if a check fails, with 2 where there is no GPU or no CuPy.
    """
    from ...backend import choose, count_gpus
    from ...files import check_writable, write_whole

    job: dict[str, Any] = {}
    if launch.launcher().name == "none":
        count_gpus()  # before MPI is started, and another job
        job = exchange_job()
    from ...comm import Communicator

    with Communicator(launch.world()) as comm:
        with comm.agreed():
            count_gpus()
            device = choose("gpu", comm.node.rank)
            if comm.rank == 0 and json_file:
                check_writable(json_file)
        report = merged(run(comm, device), job)
        with comm.agreed():
            if comm.rank == 0:
                show(report)
                if json_file:
                    text = json.dumps(report, indent=2) + "\n"
                    write_whole(json_file, lambda file: file.write(text.encode()))
            failed = [check["name"] for check in report["checks"] if not check["passed"]]
            if failed:
                raise DistaiError(f"{len(failed)} of {len(report['checks'])} checks failed: {', '.join(failed[:5])}")


def exchange_job() -> dict[str, Any]:
    """What `JOB_RANKS` ranks report that share this machine's GPU; a ``remark`` alone where they cannot be started."""
    from ...perf.compare import LAUNCHER_VARIABLES
    from ...perf.machine import user_environment

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        try:
            words = ranks_command(JOB_RANKS, None, ["bench", "gpu", "--json", str(path)], crowded=True)
        except ConfigError as error:
            return {"remarks": [f"the exchange was left out: {error}"]}
        env = {k: v for k, v in user_environment().items() if not k.startswith(LAUNCHER_VARIABLES)}
        told = "took too long"
        try:
            done = subprocess.run(
                words, env=env, timeout=JOB_SECONDS, stdin=subprocess.DEVNULL, capture_output=True, text=True
            )
            told = f"ended with status {done.returncode}: {done.stderr.strip()[-300:]}"
        except subprocess.TimeoutExpired:
            pass
        if path.exists():
            return json.loads(path.read_text())
        check = {"name": f"a job of {JOB_RANKS} ranks", "passed": False}
        return {"checks": [check], "remarks": [f"the job of {JOB_RANKS} ranks {told}"]}


def run(comm: Any, device: Any) -> dict[str, Any]:
    """Check and time ``device`` on the ranks of ``comm``: alone its own speed, on several ranks the exchange's."""
    from ...perf.machine import gpus
    from .gpu_checks import checks
    from .gpu_speeds import Sizes, exchange_speeds, speeds

    measure = speeds if comm.size == 1 else exchange_speeds
    report: dict[str, Any] = {
        "ranks": comm.size,
        "device": ", ".join(gpus()) or device.name,
        "load": os.getloadavg()[0],
    }
    return report | {"checks": checks(comm, device), "speeds": measure(comm, device, Sizes()), "remarks": []}


def merged(report: dict[str, Any], job: dict[str, Any]) -> dict[str, Any]:
    """``report`` with the checks and speeds of a job beside it."""
    return report | {name: report[name] + job.get(name, []) for name in ("checks", "speeds", "remarks")}


def show(report: dict[str, Any]) -> None:
    """Print a line for each kind of check, those that failed in full, and the table of speeds."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    watched = launch.on_terminal()  # mpiexec makes every output look like one
    console = Console(force_terminal=watched, width=None if watched else 100, highlight=False)
    console.print(f"{report['device']}; load {report['load']:.1f}")
    for check in report["checks"]:
        told = f"{check['difference']:.1e} of at most {check['tolerance']:.0e}" if "difference" in check else ""
        console.print(f"{'PASS' if check['passed'] else 'FAIL'}  {check['name']}  {told}".rstrip())
    table = Table(title="speeds", title_justify="left", box=SIMPLE)
    for title in ("what", "ms", "rate", "GB/s", "of copy"):
        table.add_column(title, justify="left" if title == "what" else "right")
    copy = next((row["bytes_per_second"] for row in report["speeds"] if row["what"] == "copy in the device"), None)
    for row in report["speeds"]:
        rate, speed = row.get("samples_per_second"), row.get("bytes_per_second")
        table.add_row(
            row["what"],
            f"{1e3 * row['seconds']:.3f}",
            "" if rate is None else f"{rate:,.0f} samples/s",
            "" if speed is None else f"{speed / 1e9:.1f}",
            "" if speed is None or copy is None else f"{speed / copy:.2f}",
        )
    console.print(table)
    for text in report["remarks"]:
        console.print(text)
