"""Messages between the stages of a pipeline: activations on, and their gradients back."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..trace import EXCHANGE, WAIT, during
from .mesh import Mesh
from .wire import Array

TAG = 17  # beside those of `wire`


class StageLinks:
    """This rank's links to the ranks of its copy of the model that hold the same part of the other stages' layers.

    Messages are sent without waiting, any number of them, from buffers that are used again once they have come; those
    between two ranks come in the order in which they were sent.  Receives are not posted ahead: MPI libraries move long
    messages only while they are called, and so as soon as the receiver asks for them.

    Args:
        mesh: of the ranks.

    Attributes:
        stage, stages: the number of this one, and how many there are.
    """

    def __init__(self, mesh: Mesh) -> None:
        from mpi4py import MPI

        self.stage, self.stages = mesh.position.stage, mesh.shape.stage
        self._comm, self._tensor, self._part = mesh.copy_group, mesh.shape.tensor, mesh.position.tensor
        self._everyone, self._byte = mesh.comm, MPI.BYTE
        self._sent: list[tuple[Any, Array]] = []
        self._free: dict[int, list[Array]] = {}  # buffers by their bytes

    def send(self, stage: int, x: Array) -> None:
        """See `models.pipeline.StageLinks`."""
        with during(self._everyone.recorder, EXCHANGE):
            self._reuse()
            wire, kept = self._comm.wire, self._free.setdefault(x.nbytes, [])
            message = kept.pop() if kept else np.empty(x.nbytes, np.uint8)
            message[:] = x.reshape(-1).view(np.uint8)
            dest = stage * self._tensor + self._part
            for start in range(0, message.size, wire.chunk_bytes):
                piece = message[start : start + wire.chunk_bytes]
                self._sent.append((wire.comm.Isend((piece, self._byte), dest, TAG), message))
                wire.messages_sent += 1
            wire.bytes_sent += message.size

    def receive(self, stage: int, out: Array) -> Array:
        """See `models.pipeline.StageLinks`."""
        with during(self._everyone.recorder, WAIT):
            wire, into = self._comm.wire, out.reshape(-1).view(np.uint8)
            for start in range(0, into.size, wire.chunk_bytes):
                piece = into[start : start + wire.chunk_bytes]
                wire.comm.Recv((piece, self._byte), stage * self._tensor + self._part, TAG)
            self._comm.going_on()
        return out

    def flush(self) -> None:
        """See `models.pipeline.StageLinks`."""
        with during(self._everyone.recorder, WAIT):
            for request, _ in self._sent:
                request.Wait()
            self._reuse()

    def from_last(self, x: Array) -> Array:
        """See `models.pipeline.StageLinks`."""
        with during(self._everyone.recorder, WAIT):
            self._comm.bcast(x.reshape(-1), (self.stages - 1) * self._tensor)
        return x

    def _reuse(self) -> None:
        """Take back the buffers of messages that have come."""
        while self._sent and self._sent[0][0].Test():
            _, message = self._sent.pop(0)
            if not self._sent or self._sent[0][1] is not message:  # all its pieces have
                self._free[message.size].append(message)
