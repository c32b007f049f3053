"""``distai-mpi bench checkpoint``: how fast checkpoints are written, and how long they stop training."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from typing import Any

import click

from ...comm import launch
from ...errors import ConfigError

VECTORS = 3  # of momentum: parameters, velocity and what rounding has taken
COPIES = 4  # in memory: the state, two images, a plain copy; on the disk: two checkpoints and a plain file


class Count(click.ParamType):
    """A whole number such as 100000 or 1e8."""

    name = "N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            count = int(float(value))
        except (ValueError, OverflowError):
            count = 0
        if count < 1:
            self.fail(f"{value!r} is no count; write for example 1e8", param, ctx)
        return count


@click.command()
@click.option("--parameters", type=Count(), default="1e8", show_default=True, help="float32, trained by momentum.")
@click.option("--ranks", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Turns; medians are shown.")
@click.option("--dir", "folder", default=".", show_default=True, help="A folder on the disk that is measured.")
@click.option("--json", "json_file", metavar="FILE", help="Write the numbers here.")
@click.option("--timeout", type=click.FloatRange(min=1), default=600, show_default=True, help="Seconds for all.")
@click.option("--worker", hidden=True, help="Be a rank of the benchmark.")
def command(
    parameters: int, ranks: int, repeats: int, folder: str, json_file: str | None, timeout: float, worker: str | None
) -> None:
    """Write speed of checkpoints beside the disk's own, and the time that one stops training."""
    if worker:
        return measure(parameters, repeats, folder, worker)
    if launch.launcher().size > 1:
        raise ConfigError("bench checkpoint starts its own ranks: run it without a launcher, with --ranks N")
    from ...files import check_writable, write_json

    if json_file:
        check_writable(json_file)
    _check_room(parameters, folder)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="distai-bench-", dir=folder) as scratch:
        words = ["--parameters", str(parameters), "--repeats", str(repeats), "--dir", scratch]
        report = _start(ranks, [*words, "--worker", os.path.join(scratch, "report.json")], timeout) | {"load": load}
    show(report)
    if json_file:
        write_json(json_file, report)


def _check_room(parameters: int, folder: str) -> None:
    """Raise `ConfigError` unless the disk and the memory have room for what the benchmark needs."""
    from ...perf.machine import memory_left

    if not os.path.isdir(folder):
        raise ConfigError(f"--dir {folder}: there is no such folder")
    needed = 4 * VECTORS * COPIES * parameters
    for what, free in ((f"--dir {folder}: the disk", shutil.disk_usage(folder).free), ("memory", memory_left())):
        if needed > 0.9 * free:
            raise ConfigError(
                f"{what} has {free / 1e9:.1f} GB free, and {needed / 0.9e9:.1f} are needed; lower --parameters"
            )


def _start(ranks: int, words: list[str], timeout: float) -> dict[str, Any]:
    """Run the ranks and return what they have measured."""
    from .ranks import ranks_command

    command = ranks_command(ranks, None, ["bench", "checkpoint", *words])
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    try:
        with open(words[-1]) as file:
            return json.load(file)
    except OSError:
        raise ConfigError(f"the ranks of the benchmark failed:\n{done.stderr.strip()}") from None


def measure(parameters: int, repeats: int, folder: str, report: str) -> None:
    """One rank's part: the disk, a checkpoint and a copy in memory in turn; collective."""
    from ...comm import Communicator
    from ...train.checkpoint import Checkpoint, saving
    from ...train.checkpoint.files import Image
    from ...train.checkpoint.state import parts_to_write

    with Communicator(launch.world()) as comm:
        run = make_run(parameters, comm)
        with saving(Checkpoint(os.path.join(folder, "checkpoints"), 1, keep=1), run) as saver:
            assert saver is not None
            saver.start()
            parts = parts_to_write(run)
            image = Image(parts)
            shards = [part.array for part in parts]
            copies = [array.copy() for array in shards]
            rows: list[tuple[float, ...]] = []
            for _ in range(repeats):
                run.iterations += 1
                plain, direct = (
                    _alike(comm, _write, folder, comm.rank, image.memory, flag) for flag in (0, os.O_DIRECT)
                )
                whole = _alike(comm, saver.save)
                stopped = max(comm.allgather_object(saver.stopped[-1]))
                rows.append((plain, direct, whole, stopped, _alike(comm, _copy, shards, copies)))
            count = int(comm.sum([sum(array.nbytes for array in shards)])[0])
        if comm.rank == 0:
            _report(report, parameters, comm.size, count, rows)


def _report(path: str, parameters: int, ranks: int, count: int, rows: list[tuple[float, ...]]) -> None:
    plain, direct, whole, stopped, copied = (statistics.median(column) for column in zip(*rows, strict=True))
    fields = {
        "parameters": parameters,
        "ranks": ranks,
        "repeats": len(rows),
        "bytes": count,
        "plain": count / plain,
        "direct": count / direct,
        "disk": count / min(plain, direct),
        "checkpoint": count / whole,
        "share_of_disk": statistics.median(min(row[:2]) / row[2] for row in rows),
        "stopped_seconds": stopped,
        "copy_seconds": copied,
        "stopped_to_copy": statistics.median(row[3] / row[4] for row in rows),
    }
    with open(path, "w") as file:
        json.dump(fields, file)


def make_run(parameters: int, comm: Any) -> Any:
    """A run of a model that does nothing but have parameters."""
    import numpy as np

    from ... import data, optim
    from ...objective import Objective
    from ...params import Layout
    from ...train.evaluation import make_loader
    from ...train.run import Run
    from ...train.steps import SynchronousSteps

    class Parameters:
        layout = Layout.of([("w", (parameters,), True)])
        dtype = np.dtype(np.float32)

    model: Any = Parameters()
    shard = data.whole(data.Dataset(np.zeros((2, 1)), np.zeros(2)), comm.rank, comm.size)
    objective = Objective(model, make_loader(model, shard, comm), comm)
    optimizer = optim.Momentum()
    steps = SynchronousSteps(objective, optimizer, np.ones(1, np.float32))
    steps.owned["w"][:] = np.random.default_rng(comm.rank).random(steps.owned["w"].size, np.float32)
    return Run(objective, steps, optimizer, 10**9, optim.Constant())


def _alike(comm: Any, work: Any, *arguments: Any) -> float:
    """Seconds that all ranks together take for ``work``, which they begin together."""
    comm.barrier()
    began = time.perf_counter()
    work(*arguments)
    comm.barrier()
    return time.perf_counter() - began


def _write(folder: str, rank: int, memory: memoryview, direct: int) -> None:
    """The disk's own speed: whole pages, one block after another, then fsync."""
    from ...train.checkpoint.files import BLOCK

    path = os.path.join(folder, f"plain-{rank}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        file = os.open(path, flags | direct, 0o600)
    except OSError:  # a file system that knows no direct writes
        file = os.open(path, flags, 0o600)
    try:
        for start in range(0, len(memory), BLOCK):
            os.write(file, memory[start : start + BLOCK])
        os.fsync(file)
    finally:
        os.close(file)
    os.remove(path)


def _copy(arrays: list[Any], copies: list[Any]) -> None:
    for array, copy in zip(arrays, copies, strict=True):
        copy[:] = array


def show(report: dict[str, Any]) -> None:
    """Print the numbers."""
    r = report
    click.echo(f"{r['parameters']:,} parameters, momentum, {r['ranks']} ranks: {r['bytes'] / 1e9:.2f} GB")
    click.echo(
        f"disk {r['disk'] / 1e9:.2f} GB/s (through the cache {r['plain'] / 1e9:.2f}, direct {r['direct'] / 1e9:.2f}),"
        f" checkpoint {r['checkpoint'] / 1e9:.2f} GB/s: {100 * r['share_of_disk']:.0f} %"
    )
    click.echo(
        f"training stops for {1e3 * r['stopped_seconds']:.0f} ms, as long as {r['stopped_to_copy']:.2f} copies of the"
        f" state in memory ({1e3 * r['copy_seconds']:.0f} ms); load before the run {r['load']:.1f}"
    )
