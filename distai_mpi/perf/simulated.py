"""Collectives and training steps on a simulated network, where messages and sums take time and carry nothing.

The algorithms are the plain functions of `comm.collectives`.  What they need of an array, its length and its items'
size, a `SizeOnlyVector` has; what they need of a wire, a `SimulatedWire` gets from a `Network`, which knows the time.
The network of a discrete-event simulator is in ``examples/simulated_network.py``, that of clocks that obey
``perf/costs.py`` in the tests.  Nothing here imports a simulator, MPI or Numba: simulators bring their own Python.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from ..comm.collectives import ALGORITHMS, even_slices
from . import costs

UPDATE_PASSES = 5  # momentum reads gradient, velocity and parameters and writes the last two
FLOAT32 = np.dtype(np.float32)


class Transfer(Protocol):
    """One side of a message that has begun."""

    def wait(self) -> object:
        """Return when the message has arrived."""


class Network(Protocol):
    """Messages between ranks, and time, in a simulation.  Each call is of the rank that is running."""

    def send(self, source: int, dest: int, nbytes: int) -> Transfer:
        """Begin to send ``nbytes`` bytes from ``source``, the caller, to ``dest``; messages of a pair stay in order."""

    def receive(self, source: int, dest: int) -> Transfer:
        """Begin to receive a message from ``source`` on ``dest``, the caller."""

    def sleep(self, seconds: float) -> None:
        """Let the calling rank compute for so long."""


class SizeOnlyVector:
    """A vector that has a length and no elements: what collectives see of an array of any size.

    Slices are size-only vectors too.  A ufunc with ``out`` computes nothing and calls ``summing`` with the bytes of its
    result.
    """

    def __init__(self, size: int, dtype: np.dtype[Any], summing: Callable[[int], object]) -> None:
        self.size = size
        self.dtype = dtype
        self.summing = summing

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return self.size * self.itemsize

    def __getitem__(self, part: slice) -> SizeOnlyVector:
        start, stop, _ = part.indices(self.size)
        return SizeOnlyVector(max(0, stop - start), self.dtype, self.summing)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = ()) -> Any:
        if ufunc is not np.add or method != "__call__" or len(out) != 1 or {x.size for x in inputs} != {out[0].size}:
            return NotImplemented
        self.summing(out[0].nbytes)
        return out[0]


class SizeOnlyWorkspace:
    """A `comm.workspace.Workspace` without memory, so long that no message is cut into segments."""

    def segment(self, dtype: np.dtype[Any]) -> SizeOnlyVector:
        """Return a vector that is longer than any other."""
        return SizeOnlyVector(1 << 62, dtype, lambda nbytes: None)


class SimulatedWire:
    """A `comm.wire.Wire` of one rank over a simulated network; looks at sizes alone."""

    def __init__(self, rank: int, size: int, network: Network) -> None:
        self.rank = rank
        self.size = size
        self.network = network

    def sendrecv(self, send: Any, dest: int, recv: Any, source: int) -> None:
        """Do as `Wire.sendrecv` says, in both directions at once."""
        transfers = []
        if send is not None and send.size:
            transfers.append(self.network.send(self.rank, dest, send.nbytes))
        if recv is not None and recv.size:
            transfers.append(self.network.receive(source, self.rank))
        for transfer in transfers:
            transfer.wait()


@dataclass(frozen=True)
class Machine:
    """What every rank has.

    Attributes:
        flops: floating-point operations per second.
        memory: bytes per second that rows are read and parameters are updated at.
        reduce_rate: bytes per second of summing two vectors.
    """

    flops: float
    memory: float
    reduce_rate: float


@dataclass(frozen=True)
class Workload:
    """A training step in numbers.

    Attributes:
        parameters: of the model; gradients and parameters travel as ``dtype``.
        flops_per_row, bytes_per_row: of loss and gradient; the slower of the two counts (Williams, Waterman & Patterson
            2009, the roofline).
        batch: rows of a step over all ranks, strong scaling.
        batch_per_rank: rows of a step on each rank, weak scaling.
        updates: whether ranks own slices, which they update between a reduce_scatter and an allgather.  Else one
            allreduce brings loss and gradient to all ranks, as an evaluation of a small model by a full-batch solver.
    """

    name: str
    parameters: int
    flops_per_row: float
    bytes_per_row: float
    batch: int
    batch_per_rank: int
    updates: bool = True
    dtype: np.dtype[Any] = FLOAT32

    @property
    def nbytes(self) -> int:
        """Bytes of a gradient."""
        return self.parameters * self.dtype.itemsize

    def rows(self, rank: int, ranks: int, weak: bool) -> int:
        """Rows of a rank's share of a step."""
        if weak:
            return self.batch_per_rank
        return self.batch * (rank + 1) // ranks - self.batch * rank // ranks

    def gradient_seconds(self, rows: int, machine: Machine) -> float:
        """Seconds of loss and gradient of ``rows`` rows."""
        return rows * max(self.flops_per_row / machine.flops, self.bytes_per_row / machine.memory)

    def update_seconds(self, parameters: float, machine: Machine) -> float:
        """Seconds of updating so many parameters by momentum."""
        return UPDATE_PASSES * parameters * self.dtype.itemsize / machine.memory


def mlp(name: str, widths: tuple[int, ...], batch: int, batch_per_rank: int) -> Workload:
    """A network of dense layers with biases: three products per layer and row, but two in the first layer."""
    weights = [a * b for a, b in pairwise(widths)]
    return Workload(
        name,
        parameters=sum(weights) + sum(widths[1:]),
        flops_per_row=6 * sum(weights) - 2 * weights[0],
        bytes_per_row=4 * widths[0],
        batch=batch,
        batch_per_rank=batch_per_rank,
    )


WORKLOADS = (
    mlp("MNIST MLP 784-128-10", (784, 128, 10), batch=8192, batch_per_rank=128),
    mlp("MLP 784-7000-7000-7000-10", (784, 7000, 7000, 7000, 10), batch=8192, batch_per_rank=128),
    Workload(
        "logistic regression, 200 features",
        parameters=201,
        flops_per_row=4 * 200,
        bytes_per_row=4 * 200,
        batch=10_000_000,
        batch_per_rank=1_000_000,
        updates=False,
        dtype=np.dtype(np.float64),
    ),
)


def replay_allreduce(network: Network, rank: int, ranks: int, algorithm: str, nbytes: int, reduce_rate: float) -> None:
    """Sum ``nbytes`` bytes of float32 over ``ranks`` ranks, as rank ``rank`` does it."""
    x: Any = SizeOnlyVector(nbytes // 4, FLOAT32, lambda summed: network.sleep(summed / reduce_rate))
    workspace: Any = SizeOnlyWorkspace()
    ALGORITHMS[algorithm].allreduce(SimulatedWire(rank, ranks, network), x, workspace)


def replay_step(
    network: Network, rank: int, ranks: int, work: Workload, machine: Machine, algorithm: str, weak: bool
) -> None:
    """Take one training step, as rank ``rank`` of ``ranks`` does it."""
    wire: Any = SimulatedWire(rank, ranks, network)
    workspace: Any = SizeOnlyWorkspace()
    functions = ALGORITHMS[algorithm]
    x: Any = SizeOnlyVector(work.parameters, work.dtype, lambda summed: network.sleep(summed / machine.reduce_rate))
    network.sleep(work.gradient_seconds(work.rows(rank, ranks, weak), machine))
    if functions.reduce_scatter is None or functions.allgather is None or not work.updates:
        functions.allreduce(wire, x, workspace)
        if work.updates:
            network.sleep(work.update_seconds(x.size, machine))
        return
    slices = even_slices(x.size, ranks, x.itemsize)
    functions.reduce_scatter(wire, x, slices, workspace)
    network.sleep(work.update_seconds(x[slices[rank]].size, machine))
    functions.allgather(wire, x, slices, workspace)


def step_seconds(
    ranks: int, work: Workload, machine: Machine, algorithm: str, weak: bool, latency: float, bandwidth: float
) -> float:
    """Return the closed form of `replay_step`: the rank of most rows, then the critical path of ``perf/costs.py``."""

    def exchange(collective: str) -> float:
        path = costs.path(collective, algorithm, ranks, work.nbytes)
        return path.seconds(latency, bandwidth, machine.reduce_rate)

    most = work.rows(ranks - 1, ranks, weak)  # the last share is never smaller than another
    gradient = work.gradient_seconds(most, machine)
    if not work.updates:
        return gradient + exchange("allreduce")
    if ALGORITHMS[algorithm].sliced:
        update = work.update_seconds(work.parameters / ranks, machine)
        return gradient + exchange("reduce_scatter") + update + exchange("allgather")
    return gradient + exchange("allreduce") + work.update_seconds(work.parameters, machine)
