"""From what a user asks for to the exchange of a run: a fixed rule, and no measurement.

``auto`` is

* ``native``, the MPI library's own, on one rank, and for vectors shorter than `SHARED_BYTES`, whose time is that of the
  calls; for vectors on a GPU, which travel through host memory that no rank shares; and for numbers other than float32
  and float64;
* else ``shared`` on one node and ``hierarchical`` on several, which read the neighbours' vectors where they lie: from
  64 KiB up 2 to 9 times as fast as Open MPI's Allreduce on 2 to 16 ranks of a node.

What is chosen depends on the job alone, never on a measurement: runs that are repeated add in the same order.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from ...backend import HOST, Device
from ...errors import ConfigError
from ...settings import called
from ..communicator import SHARED_BYTES, Communicator
from .base import VectorExchange
from .compressed import CompressedExchange
from .hierarchical import HierarchicalExchange
from .settings import SHARING, Exchange

ALGORITHM, DTYPE = ("algorithm", "--allreduce"), ("dtype", "--wire")


class Choice(NamedTuple):
    """The name of an algorithm, and why it was taken; no reason where it was asked for."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} (auto: {self.reason})" if self.reason else self.name


def resolve(comm: Communicator, asked: Exchange, size: int, dtype: DTypeLike, device: Device = HOST) -> Choice:
    """The algorithm for gradients of ``size`` elements; local, the same on all ranks.

    Raises:
        ConfigError: it cannot be had among these ranks; on all of them.
    """
    nodes, dtype, name = len(comm.leaders), np.dtype(dtype), asked.algorithm or comm.default_algorithm
    if name != "auto":
        comm.exchange(name)  # refuses what there is not
        return Choice("shared" if name == "hierarchical" and nodes == 1 else name, "")
    if (asked.overlap or asked.compressed) and nodes > 1:
        return Choice("hierarchical", "asked for with float16 messages or overlap")
    nbytes = size * dtype.itemsize
    if comm.size == 1:
        return Choice("native", "one rank")
    if device is not HOST or dtype.char not in "fd":
        return Choice("native", f"{dtype} on {device.name}")
    if nbytes < SHARED_BYTES:
        return Choice("native", f"gradients shorter than {SHARED_BYTES >> 10} KiB")
    return Choice("shared", "one node") if nodes == 1 else Choice("hierarchical", f"{nodes} nodes")


def choose_exchange(
    comm: Communicator, asked: Exchange, size: int, dtype: DTypeLike, device: Device = HOST
) -> VectorExchange:
    """The exchange for gradients of ``size`` elements; rank 0 decides; collective.

    Raises:
        ConfigError: it cannot be had among these ranks; on all of them.
    """
    if asked.compressed:
        _check_compressed(asked.algorithm or comm.default_algorithm, np.dtype(dtype), device)
    found = comm.exchange(comm.bcast_object(resolve(comm, asked, size, dtype, device).name))
    if asked.compressed and isinstance(found, HierarchicalExchange):
        return CompressedExchange(found, size)
    return found


def _check_compressed(name: str, dtype: np.dtype, device: Device) -> None:
    """Refuse float16 where it cannot be had; also on one node, where nothing would be rounded."""
    wire = f"{called(*DTYPE)} float16"
    if dtype != np.float32:
        raise ConfigError(f"{wire} stands for float32 numbers, not {dtype}: leave it out")
    if device is not HOST:
        raise ConfigError(f"{wire} is for the CPU: leave it out, or train with {called('device')} cpu")
    if name not in ("auto", *SHARING):
        raise ConfigError(f"{wire} is for {called(*ALGORITHM)} hierarchical or auto, not {name}: leave one of them out")
