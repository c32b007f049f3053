"""Messages between the stages of a pipeline: activations on, and their gradients back."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from ..trace import EXCHANGE, WAIT, during
from .mesh import Mesh
from .wire import Array

TAG = 17  # beside those of `wire`
EAGER_BYTES = 2048  # messages up to here MPI libraries send at once
PAUSE = 1e-3  # seconds between two looks of the thread, as in `exchange.overlap`


class StageLinks:
    """This rank's links to the ranks of its copy of the model that hold the same part of the other stages' layers.

    Messages are sent without waiting, any number of them, from buffers that are used again once they have come; those
    between two ranks come in the order in which they were sent.  Receives are not posted ahead: the receiver has
    nothing else to do when it asks.

    MPI libraries may move a long message only while its sender calls them (Open MPI over TCP, and on one node where
    processes cannot read each other's memory: a message waited for 0.3 s while its sender slept so long).  So a thread
    looks after those that are on their way while the stage computes, never while the main thread calls MPI; where the
    stage's ranks exchange parts of activations, which may be such calls, `progress` after each does instead.

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
        self._threads = self._tensor == 1 and MPI.Query_thread() >= MPI.THREAD_SERIALIZED
        self._calling = threading.Lock()  # of the thread that calls MPI
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def send(self, stage: int, x: Array) -> None:
        """See `models.pipeline.StageLinks`."""
        with during(self._everyone.recorder, EXCHANGE), self._calling:
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
        if self._threads and self._thread is None and message.size > EAGER_BYTES:
            self._stop.clear()
            self._thread = threading.Thread(target=self._look_after, name="distai-mpi stage links", daemon=True)
            self._thread.start()

    def receive(self, stage: int, out: Array) -> Array:
        """See `models.pipeline.StageLinks`."""
        with during(self._everyone.recorder, WAIT), self._calling:
            wire, into = self._comm.wire, out.reshape(-1).view(np.uint8)
            for start in range(0, into.size, wire.chunk_bytes):
                piece = into[start : start + wire.chunk_bytes]
                wire.comm.Recv((piece, self._byte), stage * self._tensor + self._part, TAG)
            self._comm.going_on()
        return out

    def flush(self) -> None:
        """See `models.pipeline.StageLinks`."""
        self.give_up()
        with during(self._everyone.recorder, WAIT):
            for request, _ in self._sent:
                request.Wait()
            self._reuse()

    def give_up(self) -> None:
        """See `models.pipeline.StageLinks`."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None

    def from_last(self, x: Array) -> Array:
        """See `models.pipeline.StageLinks`."""
        with during(self._everyone.recorder, WAIT):
            self._comm.bcast(x.reshape(-1), (self.stages - 1) * self._tensor)
        return x

    def progress(self) -> None:
        """Let messages that are on their way move on."""
        if self._sent and self._thread is None:
            self._reuse()

    def _look_after(self) -> None:
        while not self._stop.wait(PAUSE):
            if self._calling.acquire(blocking=False):
                try:
                    self._reuse()
                finally:
                    self._calling.release()

    def _reuse(self) -> None:
        """Take back the buffers of messages that have come."""
        while self._sent and self._sent[0][0].Test():
            _, message = self._sent.pop(0)
            if not self._sent or self._sent[0][1] is not message:  # all its pieces have
                self._free[message.size].append(message)
