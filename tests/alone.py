"""A communicator of one rank without MPI, for serial tests of what is handed one."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np

from distai_mpi.data.feature_blocks import feature_blocks
from distai_mpi.data.wording import worded_errors


class Alone:
    """The part of `comm.Communicator` that the data layer uses, on one rank."""

    rank, size, leaders = 0, 1, (0,)
    node = SimpleNamespace(ranks=(0,), rank=0, size=1)

    def __init__(self):
        self.scattered = []  # elements of each message

    def agreed(self):
        return nullcontext()

    def barrier(self):
        pass

    def sum(self, values):
        return np.array(values, np.float64, ndmin=1)

    def bcast(self, x, root=0):
        pass

    def bcast_object(self, value, root=0):
        return value

    def allgather_object(self, value):
        return [value]

    def scatterv(self, send, counts, recv, root=0):
        assert list(counts) == [recv.size] == [send.size]
        self.scattered.append(recv.size)
        recv[:] = send

    def alltoallv(self, send, send_counts, recv, recv_counts):
        assert list(send_counts) == list(recv_counts) == [send.size] == [recv.size]
        recv[:] = send

    def node_array(self, shape, dtype, touch=True):
        return np.empty(shape, dtype)


@worded_errors()
def load_features(data, **options):
    """The rows of ``data`` without their labels, as predictions read them, in one block."""
    (shard,) = feature_blocks(data, block_bytes=1 << 40, **options)
    return shard
