"""How fast each rank is on a model, so that rows can be shared out by it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend import Device
from ..data import Batch, Loader, Partition, ShardedDataset
from ..errors import ConfigError
from ..models import Abilities, Model
from ..perf.machine import limited_blas, node_cpus
from ..settings import called
from .checks import agree_on_device
from .evaluation import make_loader

if TYPE_CHECKING:
    from ..comm import Communicator

Array = Any
SECONDS = 0.4  # of timing, after a warm-up
WINDOWS = 8  # timings that the median is taken of: each is long beside the scheduler's slices of some milliseconds
DIGITS = 3  # of a rate: more would be noise


def calibrate(
    model: Model,
    shard: ShardedDataset,
    comm: Communicator,
    global_batch_size: int = 256,
    *,
    seed: int = 0,
    device: str | Device = "cpu",
) -> Partition:
    """Time ``model`` on every rank, and return weights in proportion to the ranks' speeds; collective.

    Every rank takes loss and gradient of rows that its loader hands it, in batches of about the size of its
    training, for `SECONDS` (longer only where a single block of rows takes longer).  The ranks do it at the same
    time, because those of a node share its memory's bandwidth and, if they outnumber them, its cores.  The speed is
    the median over `WINDOWS` intervals of that time.  A rank without rows of its own is timed on rows of zeros.

    Args:
        model: built alike on every rank; its parameters are those of ``seed``.
        shard: this rank's shard of the training rows; `data.repartition` makes the new one.
        comm: the ranks.
        global_batch_size: rows of a step, over all ranks together.
        seed: of the parameters and of the rows taken.
        device: where the model will be trained, as for `fit`.

    Returns:
        A partition whose weights are rows per second, to three digits; replicated.

    Raises:
        ConfigError, DataError: there are no rows, or they do not fit the model; on every rank.
    """
    if shard.rows == 0:
        raise ConfigError(f"{called('shards')} speed: there are no rows to measure with")
    able = Abilities.of(model)
    if able.data_check is not None:
        able.data_check.check_data(shard.labels)
    cpus = node_cpus(comm)
    chosen = agree_on_device(device, model, comm)
    loader = make_loader(model, shard, comm, max(global_batch_size, comm.size), seed, chosen)
    with limited_blas(comm.node.size, cpus) as threads, np.errstate(over="ignore", invalid="ignore"):
        if able.threads is not None:
            able.threads.limit_threads(threads)
        with comm.agreed():
            start = np.array(model.init(np.random.default_rng(seed)), model.dtype)
            w, grad = chosen.zeros(start.shape, start.dtype), chosen.zeros(start.shape, start.dtype)
            chosen.put(start, w)
        batches = _endless(loader, max(1, global_batch_size // comm.size))
        model.loss_and_grad(w, next(batches), grad)
        comm.barrier()
        rate = _rate(model, w, grad, batches, chosen)
    return Partition(tuple(float(f"{r:.{DIGITS}g}") for r in comm.allgather_object(rate)))


def _endless(loader: Loader, rows: int) -> Iterator[Batch]:
    """This rank's batches, epoch after epoch; ``rows`` rows of zeros where it has none."""
    epoch = 0
    while True:
        found = False
        for _, batches in loader.epoch(epoch):
            for batch in batches:
                found = True
                yield batch
        epoch += 1
        if not found:
            x, y = np.zeros((min(rows, loader.block_rows), loader.shard.features), loader.dtype), loader.target_dtype
            batch = loader.to_device(Batch(x, np.zeros(len(x), y), None, np.zeros(len(x), np.int64), 0, train=True))
            while True:
                yield batch


def _rate(model: Model, w: Array, grad: Array, batches: Iterator[Batch], device: Device) -> float:
    """Rows per second, the median of short intervals; local."""
    rates = []
    now = time.perf_counter()
    deadline = now + SECONDS
    while now < deadline:
        began, rows = now, 0
        while now < began + SECONDS / WINDOWS:
            batch = next(batches)
            model.loss_and_grad(w, batch, grad)
            rows += len(batch.y)
            device.synchronize()
            now = time.perf_counter()
        rates.append(rows / (now - began))
    return statistics.median(rates)
