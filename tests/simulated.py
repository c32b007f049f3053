"""Ranks that are threads of one process, to run and count what collectives send; and tables of who owns what."""

import queue
import threading

import numpy as np

from distai_mpi.params import Ownership


class CountingWire:
    """One of several ranks that are threads of this process; counts what it sends."""

    def __init__(self, rank, size, boxes):
        self.rank, self.size, self.boxes = rank, size, boxes
        self.messages = self.bytes = 0

    def sendrecv(self, send, dest, recv, source):
        if send is not None and send.size:
            self.messages += 1
            self.bytes += send.nbytes
            self.boxes[self.rank, dest].put(send.copy())
        if recv is not None and recv.size:
            message = self.boxes[source, self.rank].get(timeout=10)
            assert message.dtype == recv.dtype
            assert message.shape == recv.shape
            recv[:] = message


def simulate(size, work):
    """Run ``work(wire)`` on ``size`` simulated ranks; return the wires and what each returned."""
    boxes = {(a, b): queue.SimpleQueue() for a in range(size) for b in range(size)}
    wires = [CountingWire(rank, size, boxes) for rank in range(size)]
    results, errors = [None] * size, []

    def run(rank):
        try:
            results[rank] = work(wires[rank])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    if errors:
        raise errors[0]
    assert all(box.empty() for box in boxes.values()), "messages that nobody received"
    return wires, results


def tables(size, length, itemsize):
    """Even, lopsided, and with empty slices at the ends and in the middle."""
    rng = np.random.default_rng(size + length)
    yield Ownership.sharded(length, size, itemsize)
    for cuts in (
        np.sort(rng.integers(0, length + 1, size - 1)),
        np.sort(rng.choice([0, length // 2, length], size - 1)),
    ):
        edges = [0, *map(int, cuts), length]
        yield Ownership(length, tuple(map(slice, edges, edges[1:])))
