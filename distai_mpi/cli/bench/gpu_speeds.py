"""How fast a device copies, computes and exchanges."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ...backend import HOST


class Sizes(NamedTuple):
    """What is timed: bytes of copies, rows and features of a linear model, parameters of an update."""

    copied: int = 1 << 28
    staged: int = 1 << 26
    rows: int = 200_000
    features: int = 200
    parameters: int = 10**7
    batches: tuple[int, ...] = (128, 1024, 8192)
    hidden: tuple[int, ...] = (128,)
    reduced: tuple[int, ...] = (1 << 16, 1 << 20, 1 << 24, 1 << 26)
    seconds: float = 1.0  # for each figure


def timed(device: Any, call: Callable[[], object], seconds: float) -> float:
    """Median seconds of ``call`` until the device is done; after one call that does not count."""
    call()
    device.synchronize()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        began = time.perf_counter()
        call()
        device.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def on_device(device: Any, host: Any) -> Any:
    """A copy of the host array ``host`` on ``device``."""
    out = device.zeros(host.shape, host.dtype)
    device.put(np.ascontiguousarray(host), out)
    return out


def row(what: str, seconds: float, moved: float | None = None, samples: float | None = None) -> dict[str, Any]:
    """A line of the table; ``moved`` in bytes and ``samples`` are those of one call."""
    found: dict[str, Any] = {"what": what, "seconds": seconds}
    found |= {} if moved is None else {"bytes_per_second": moved / seconds}
    return found | ({} if samples is None else {"samples_per_second": samples / seconds})


def speeds(comm: Any, device: Any, sizes: Sizes) -> list[dict[str, Any]]:
    """Everything that one rank times; ``comm`` has one."""
    return [
        *copies(device, sizes),
        update(device, sizes),
        gradient(device, sizes),
        *(steps(comm, where, name, sizes, batch) for batch in sizes.batches for name, where in devices(device)),
    ]


def devices(device: Any) -> tuple[tuple[str, Any], ...]:
    """The device and, for comparison, the CPU."""
    return ("device", device), ("CPU", HOST)


def copies(device: Any, sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Inside the device, which is read and written; and between it and page-locked host memory."""
    a, b = (device.zeros(sizes.copied // 4, np.float32) for _ in range(2))

    def inside() -> None:
        b[...] = a

    yield row("copy in the device", timed(device, inside, sizes.seconds), 2 * a.nbytes)
    host, there = device.host_empty(sizes.staged // 4, np.float32), device.zeros(sizes.staged // 4, np.float32)
    host[:] = 1
    mib = f"{sizes.staged >> 20} MiB"
    yield row(f"host to device, {mib}", timed(device, lambda: device.put(host, there), sizes.seconds), host.nbytes)
    yield row(f"device to host, {mib}", timed(device, lambda: device.get(there, host), sizes.seconds), host.nbytes)


def update(device: Any, sizes: Sizes) -> dict[str, Any]:
    """A momentum step: reads parameters, gradient and momentum, writes parameters and momentum."""
    from ...optim import Momentum

    optimizer = Momentum()
    w, grad = device.zeros(sizes.parameters, np.float32), device.zeros(sizes.parameters, np.float32)
    state = optimizer.init(w, [(0, sizes.parameters)])
    seconds = timed(device, lambda: optimizer.step(w, grad, state), sizes.seconds)
    return row(f"momentum step, {sizes.parameters:.0e} parameters", seconds, 5 * w.nbytes)


def gradient(device: Any, sizes: Sizes) -> dict[str, Any]:
    """Loss and gradient of logistic regression over all rows; the bytes are those of the features, once."""
    from ...data import Batch
    from ...models import Logistic

    rng = np.random.default_rng(0)
    x = rng.standard_normal((sizes.rows, sizes.features), dtype=np.float32)
    y, ids = rng.integers(0, 2, sizes.rows), np.arange(sizes.rows)
    model = Logistic(sizes.features, dtype=np.dtype(np.float32))
    batch = Batch(on_device(device, x), on_device(device, y), None, ids, 0, False)
    w, grad = (device.zeros(model.layout.size, np.float32) for _ in range(2))
    seconds = timed(device, lambda: model.loss_and_grad(w, batch, grad), sizes.seconds)
    return row(f"logistic gradient, {sizes.rows:,} × {sizes.features} float32", seconds, x.nbytes, sizes.rows)


def steps(comm: Any, where: Any, name: str, sizes: Sizes, batch: int) -> dict[str, Any]:
    """A step of training the MNIST MLP, batches on their way from the host included."""
    from ...data import Dataset, whole
    from ...models import MLP
    from ...optim import Momentum
    from ...train import fit

    rng = np.random.default_rng(0)
    rows = min(8 * batch, 32_768) // batch * batch
    data = Dataset(rng.integers(0, 256, (rows, 784), np.uint8), rng.integers(0, 10, rows), scale=1 / 255)
    model, shard = MLP(784, 10, sizes.hidden), whole(data, comm.rank, comm.size)
    options: Any = {"global_batch_size": batch, "optimizer": Momentum(0.01), "device": where}
    fit(model, shard, comm, epochs=1, **options)  # compiles
    pilot: float = fit(model, shard, comm, epochs=1, **options).seconds
    epochs = max(1, min(200, int(sizes.seconds / max(pilot, 1e-4))))
    result: Any = fit(model, shard, comm, epochs=epochs, **options)
    return row(f"MNIST MLP step, batch {batch}, {name}", batch / result.samples_per_second, samples=batch)


def exchange_speeds(comm: Any, device: Any, sizes: Sizes) -> list[dict[str, Any]]:
    """Sums of device vectors over the ranks of ``comm``, the slowest rank's seconds; collective."""
    found = []
    for size in sizes.reduced:
        x = device.zeros(size // 4, np.float32)
        for algorithm in ("native", "ring"):
            seconds = []
            for _ in range(7):
                comm.barrier()
                began = time.perf_counter()
                comm.allreduce(x, algorithm)
                device.synchronize()
                seconds.append(time.perf_counter() - began)
            slowest = statistics.median(map(max, zip(*comm.allgather_object(seconds[2:]), strict=True)))
            found.append(row(f"allreduce, {size >> 10:,} KiB, {algorithm}, {comm.size} ranks", slowest, x.nbytes))
    return found
