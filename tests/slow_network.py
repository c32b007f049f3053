"""Runs a command where MPI's messages between processes of this machine are as slow as a network's.

    python tests/slow_network.py [--rate 1gbit] -- mpiexec -n 4 python train.py

The command gets a network namespace of its own, which holds nothing but a loopback interface whose traffic a token
bucket holds back (``tc-tbf``), and the settings that make Open MPI use it instead of shared memory.  Whatever
one rank sends to another then takes at least size / rate seconds, and all ranks share the rate.  The namespace is
gone with the last process in it, however that ends; nothing else on the machine is slowed down, and nothing outside
can be reached from inside.  Memory that ranks share themselves (MPI windows) is as fast as ever.

Needs Linux, ``unshare`` (util-linux), ``ip`` and ``tc`` (iproute2), and root or user namespaces that any user may make.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys

OPEN_MPI = {
    "OMPI_MCA_pml": "ob1",
    "OMPI_MCA_btl": "tcp,self",
    "OMPI_MCA_btl_tcp_if_include": "lo",
    "OMPI_MCA_mtl": "^ofi",
    "OMPI_MCA_osc": "^ucx",
}
TOOLS = {"unshare": "util-linux", "ip": "iproute2", "tc": "iproute2"}  # and the packages they are in
SHAPE = (
    '"$1" link set lo up && "$2" qdisc add dev lo root tbf rate "$3" burst "$4" latency 50ms && shift 4 && exec "$@"'
)


def find_tool(name: str) -> str | None:
    """Where a tool is: on PATH, or where root's are, which other users may not search."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))


def slowed(command: list[str], rate: str = "1gbit", burst: str = "256kb") -> list[str]:
    """The words that run ``command`` in a slow network.

    ``rate`` and ``burst`` in tc's units: so much passes in a second, and so much at once after a silence.
    """
    tools = {name: find_tool(name) or name for name in TOOLS}
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    shape = ["sh", "-c", SHAPE, "sh", tools["ip"], tools["tc"], rate, burst]
    return [tools["unshare"], "--net", *user, "--", *shape, *command]


def environment() -> dict[str, str]:
    """This process's environment with the settings that make ranks talk by the network."""
    return {**os.environ, **OPEN_MPI, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def missing(rate: str = "1gbit", burst: str = "256kb") -> str | None:
    """What keeps this machine from slowing a network down; None if it can."""
    absent = [f"{name} (package {package})" for name, package in TOOLS.items() if find_tool(name) is None]
    if absent:
        return ", ".join(absent)
    trial = subprocess.run(
        slowed(["true"], rate, burst), capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=30, check=False
    )
    if trial.returncode == 0:
        return None
    who = "" if os.geteuid() == 0 else ", not being root"
    return f"a shaped network namespace{who}: {' '.join(trial.stderr.split())}"


def main() -> int:
    """Become the command, in a slow network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", default="1gbit", help="in tc's units: 100mbit, 1gbit, ... (default: %(default)s)")
    parser.add_argument("--burst", default="256kb", help="what passes at once after a silence (default: %(default)s)")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="after --: what to run")
    options = parser.parse_args()
    command = options.command[options.command[:1] == ["--"] :]
    if not command:
        parser.error("no command: python tests/slow_network.py -- mpiexec -n 2 ...")
    if reason := missing(options.rate, options.burst):
        print(f"{parser.prog}: error: not available: {reason}", file=sys.stderr)
        return 2
    words = slowed(command, options.rate, options.burst)
    os.execve(words[0], words, environment())


if __name__ == "__main__":
    sys.exit(main())
