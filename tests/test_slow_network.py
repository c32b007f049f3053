"""The slow network: it holds messages back, MPI's too, and passes on how its command ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import slow_network
from run import find_mpiexec, limit, mpiexec_command

SCRIPT = Path(slow_network.__file__)
RATE = "80mbit"  # 10 MB/s
BYTES = 2_000_000
HELD = (BYTES - 256 * 1024) / 10e6  # seconds that so many bytes take at least, the first burst being free

SOCKETS = f"""
import socket, threading, time
server = socket.create_server(("127.0.0.1", 0))
sender = socket.create_connection(server.getsockname())
receiver = server.accept()[0]
message, left = bytes({BYTES}), {BYTES}
thread = threading.Thread(target=sender.sendall, args=(message,))
start = time.perf_counter()
thread.start()
while left:
    left -= len(receiver.recv(1 << 16))
print(time.perf_counter() - start)
"""

RANKS = f"""
import time
import numpy as np
from mpi4py import MPI
comm = MPI.COMM_WORLD
x = np.ones({BYTES}, "u1")
comm.Barrier()
start = time.perf_counter()
if comm.rank == 0:
    comm.Send(x, 1)
else:
    comm.Recv(x, 0)
    print(time.perf_counter() - start)
"""


@pytest.fixture(scope="module")
def slow():
    """``slow(*words)``: the command in a slow network."""
    if reason := slow_network.missing(RATE):
        pytest.skip(f"not available: {reason}")

    def run(*words):
        command = [sys.executable, str(SCRIPT), "--rate", RATE, "--", *words]
        return subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=limit(60), check=False
        )

    return run


def test_bytes_are_held_back(slow):
    run = slow(sys.executable, "-c", SOCKETS)
    assert (run.returncode, run.stderr) == (0, "")
    assert float(run.stdout) >= HELD


def test_ranks_talk_by_it(slow):
    if find_mpiexec() is None:
        pytest.skip("not available: mpiexec")
    run = slow(*mpiexec_command(2), sys.executable, "-c", RANKS)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) >= HELD


def test_nothing_outside_is_slowed_or_changed(slow):
    inside = slow(
        sys.executable, "-c", "import os, socket; print(socket.if_nameindex(), os.readlink('/proc/self/ns/net'))"
    )
    assert "[(1, 'lo')]" in inside.stdout
    assert os.readlink("/proc/self/ns/net") not in inside.stdout


def test_the_end_of_the_command_is_passed_on(slow):
    assert slow("sh", "-c", "exit 7").returncode == 7
    assert slow("sh", "-c", "kill -TERM $$").returncode == -signal.SIGTERM
    assert slow("sh", "-c", 'echo "$0 $1"', "a b", "-c").stdout == "a b -c\n"


def test_what_is_missing_is_said():
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "--rate", "nonsense", "--", "true"],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=limit(60), check=False,
    )  # fmt: skip
    assert run.returncode == 2
    assert "error: not available: " in run.stderr
    bare = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=limit(60), check=False)
    assert (bare.returncode, "no command" in bare.stderr) == (2, True)


def test_tools_are_named(monkeypatch):
    monkeypatch.setattr(slow_network, "find_tool", lambda name: None)
    assert slow_network.missing() == "unshare (package util-linux), ip (package iproute2), tc (package iproute2)"
