"""The float16 wire of a run: what travels between nodes, and what one step's rounding leaves for the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import DTypeLike

from ..backend import HOST, Device
from ..errors import ConfigError
from .half import half_allgather, half_reduce_scatter, words
from .wire import Array, Wire
from .workspace import Workspace

if TYPE_CHECKING:
    from .communicator import Communicator

WIRES = ("float32", "float16")


class HalfMessages:
    """Float16 messages for one gradient and one vector of parameters, step after step: a flat algorithm with a memory.

    It belongs to a run, not to a communicator: another run starts without residual.
    """

    def __init__(self) -> None:
        self.residual: Array | None = None  # what the parameters that this rank sends lack, float32
        self._compile()

    def reduce_scatter(self, wire: Wire, x: Array, slices: Sequence[slice], work: Workspace) -> None:
        """See `half.half_reduce_scatter`."""
        half_reduce_scatter(wire, x, slices, work)

    def since(self, base: Array) -> Changes:
        """What changes from ``base``, which all ranks have alike; its slices are the same in all steps."""
        return Changes(self, base)

    def _compile(self) -> None:
        """Compile the kernels before the first step is timed."""
        from . import half_kernels

        x, base, residual = np.zeros((3, 1), np.float32)
        message = np.zeros(words(1), np.uint16)
        half_kernels.pack(x, message)
        half_kernels.add(message, x)
        half_kernels.pack_change(x, base, residual, message)
        half_kernels.shift(message, base, x)


@dataclass(frozen=True)
class Changes:
    """Parameters as they travel: their changes since ``base``, float32, shape (n,)."""

    half: HalfMessages
    base: Array

    def within(self, stretch: slice) -> Changes:
        """Those of a stretch of the parameters."""
        return Changes(self.half, self.base[stretch])

    def allgather(self, wire: Wire, x: Array, slices: Sequence[slice], work: Workspace) -> None:
        """See `half.half_allgather`."""
        if self.half.residual is None:
            mine = slices[wire.rank]
            self.half.residual = np.zeros(mine.stop - mine.start, np.float32)
        half_allgather(wire, x, self.base, self.half.residual, slices, work)


def choose_messages(
    comm: Communicator, wire: str, algorithm: str | None, dtype: DTypeLike, device: Device
) -> tuple[str | None, HalfMessages | None]:
    """The algorithm to resolve, and how numbers travel between nodes; None: as what they are.

    ``wire`` is one of `WIRES`.  ``auto`` becomes ``hierarchical`` where float16 is asked for and there are several
    nodes; on one node nothing travels, and nothing is rounded.

    Raises:
        ConfigError: float16 is asked for where it cannot be had; on all ranks, whatever their nodes.
    """
    if wire not in WIRES:
        raise ConfigError(f"unknown wire {wire!r}: choose one of {', '.join(WIRES)}")
    if wire == "float32":
        return algorithm, None
    name = comm.default_algorithm if algorithm is None else algorithm
    if np.dtype(dtype) != np.float32:
        raise ConfigError(f"--wire float16 stands for float32 numbers, not {np.dtype(dtype)}: leave it out")
    if device is not HOST:
        raise ConfigError("--wire float16 is for the CPU: leave it out, or train with --device cpu")
    if name not in ("hierarchical", "auto", "shared"):
        raise ConfigError(f"--wire float16 is for --allreduce hierarchical or auto, not {name}: leave one of them out")
    if len(comm.leaders) == 1:
        return algorithm, None
    return "hierarchical" if name == "auto" else name, HalfMessages()
