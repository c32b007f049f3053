"""Speeds of the machine that a job runs on: cores, memory, barriers, and messages between nodes."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np

from ..comm import Communicator
from ..perf import costs
from ..perf.compare import sgemm_peak
from ..perf.machine import memory_total, node_cpus, physical_cores
from .machine import Link, Machine

EXCHANGED = (1 << 10, 4 << 20)  # bytes of the vectors that latency and bandwidth are fitted to
STREAMED = 4 << 20  # numbers of each of three vectors: beyond most caches
MULTIPLIED = 1024  # rows and columns of matrices
SAMPLES, BARRIERS = 5, 20


def look_at(comm: Communicator) -> Machine:
    """The machine under ``comm``, and its network where there are several nodes; all ranks work at once; collective.

    Nodes that DISTAI_NODES declares are parts of one machine.
    """
    emulated = bool(os.environ.get("DISTAI_NODES"))
    cores = min(physical_cores(), node_cpus(comm))
    flops = statistics.median(comm.allgather_object(sgemm_peak(1, repeats=3, n=MULTIPLIED)))
    rates = comm.allgather_object(_stream_rate(comm))
    here = rates if emulated else [rates[rank] for rank in comm.node.ranks]
    network = measure_messages(comm, emulated) if len(comm.leaders) > 1 else None
    return comm.bcast_object(
        Machine(platform.node(), cores, memory_total(), flops, sum(here), _barrier(comm), network, emulated)
    )


def measure_messages(comm: Communicator, shared: bool = False) -> Link:
    """Latency and bandwidth of messages between one rank of each node, by two lengths of a ring; collective.

    Args:
        comm: ranks of several nodes.
        shared: nodes share the bandwidth, as on one machine.
    """
    leaders = list(comm.leaders)
    part = comm.part(leaders)
    found: Link | None = None
    if part is not None:
        with part:
            short, long = (_ring_seconds(part, nbytes) for nbytes in EXCHANGED)
        path, nodes = costs.path("allreduce", "ring", len(leaders), EXCHANGED[1]), len(leaders)
        sent = path.sent * (nodes if shared else 1)
        found = Link(short / path.messages, sent / max(long - short, 1e-9), shared)
    comm.barrier_asleep()
    return comm.bcast_object(found, leaders[0])


def _ring_seconds(comm: Communicator, nbytes: int) -> float:
    x = np.ones(nbytes // 4, np.float32)
    return _median(comm, lambda: comm.allreduce(x, "ring"), SAMPLES)


def _barrier(comm: Communicator) -> float:
    """Seconds of a barrier of the node's ranks: half of the shortest sum in shared memory."""
    if comm.node.size == 1 and len(comm.leaders) == comm.size:
        return 1e-6  # there is none to measure, and none is waited for
    x = comm.empty(64, np.float32)

    def barriers() -> None:
        for _ in range(BARRIERS):
            comm.allreduce(x, "hierarchical")

    return _median(comm, barriers, SAMPLES) / BARRIERS / 2


def _stream_rate(comm: Communicator) -> float:
    """Bytes a second that this rank reads and writes while the others do so too."""
    a, b, out = (np.ones(STREAMED, np.float32) for _ in range(3))
    return 3 * a.nbytes / _median(comm, lambda: np.add(a, b, out=out), SAMPLES)


def _median(comm: Communicator, call: Callable[[], object], samples: int) -> float:
    """Median seconds of ``call``, which all ranks make at once, after one that does not count."""
    times = []
    for _ in range(samples + 1):
        comm.barrier()
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return max(statistics.median(times[1:]), 1e-9)
