"""What a planner measures: steps of the very workload on a few arrangements of the ranks of one job.

Some ranks sleep while others work.  The probe is bounded in time: what that does not suffice for is left out, last
arrangements first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..comm import Communicator, Mesh
from ..data import Partition, ShardedDataset, repartition
from ..errors import ConfigError, DistaiError
from ..models import Abilities, Model
from ..optim import FullBatchSolver
from ..perf.machine import held_blas, memory_left, node_cpus, peak_memory
from ..perf.scaling import packed
from ..settings import called
from .describe import describe
from .look import look_at, measure_messages
from .trial import Job, Trial
from .workload import Probe, Shape, Workload

Array = Any
COPIES = 2  # of the parameters that a node has


@dataclass(frozen=True)
class Arrangement:
    """So many ranks of a job, on ``nodes`` nodes (``local``: declared ones), ``tensor`` of which share a copy."""

    members: tuple[int, ...]
    nodes: int
    local: bool = False
    tensor: int = 1


def arrangements(comm: Communicator, most: int | None = None) -> list[Arrangement]:
    """What is measured, the most important first: one rank, a node's ranks, several nodes, a split model.

    Where the job has one node, its ranks are declared to be nodes.  ``most``: only so many ranks take part.
    """
    ranks = packed([next(node[0] for node in comm.topology.nodes if rank in node) for rank in range(comm.size)])[:most]
    nodes = [[rank for rank in node if rank in ranks] for node in comm.topology.nodes]
    nodes = [node for node in nodes if node]
    first = tuple(nodes[0])
    found = [Arrangement(first[:1], 1)]
    if len(first) > 1:
        found.append(Arrangement(first, 1))
    if len(nodes) > 1:
        found.append(Arrangement(tuple(ranks), len(nodes)))
    elif len(first) == comm.size > 1:
        found.append(Arrangement(first, len(first), local=True))
    if len(first) > 1:
        found.append(Arrangement(first, 1, tensor=len(first)))
    return found


def probe(comm: Communicator, mpi_comm: Any, job: Job, seconds: float, most: int | None = None) -> Probe:
    """Measure ``job`` for about ``seconds``, on at most ``most`` ranks; collective, the same on every rank.

    ``mpi_comm`` is the library's communicator of the same ranks.
    """
    began, load = time.perf_counter(), os.getloadavg()[0]
    deadline = began + seconds
    shapes: list[Shape] = []
    notes: tuple[str, ...] = ()
    workload: Workload | None = None
    messages = None
    with held_blas(comm.node.size, node_cpus(comm)) as threads:
        base = job.load(comm)
        machine = look_at(comm)
        planned = arrangements(comm, most)
        for number, arrangement in enumerate(planned):
            left = comm.bcast_object(deadline - time.perf_counter())
            if shapes and left < 0.05 * seconds:
                notes = (_untimed(planned[number:]),)
                break
            allotted = left / (len(planned) - number)  # what one leaves the next ones have
            found = _on(comm, mpi_comm, arrangement, job, base, threads, allotted)
            if found is None:
                continue
            shape, described, link = found
            shapes.append(shape)
            workload, messages = workload or described, messages or link
    assert workload is not None
    taken = comm.bcast_object(time.perf_counter() - began)
    link = None if messages is None else asdict(messages)
    return Probe(workload, asdict(machine), link, tuple(shapes), taken, comm.bcast_object(load), notes)


def _untimed(left: Sequence[Arrangement]) -> str:
    """That these arrangements were not measured, in words."""
    kinds = ["a split model" if each.tensor > 1 else "several nodes" if each.nodes > 1 else "a node" for each in left]
    return f"no time was left to measure {', '.join(kinds)}: nothing said of it is measured"


def _on(
    comm: Communicator,
    mpi_comm: Any,
    arrangement: Arrangement,
    job: Job,
    base: ShardedDataset,
    threads: int,
    allotted: float,
) -> tuple[Shape, Workload, Any] | None:
    """What is found on ``arrangement``, while other ranks sleep; None: the model cannot be split so; collective."""
    declared = Communicator(mpi_comm, nodes=[1] * comm.size) if arrangement.local else None
    outcome: Any = None
    part = (declared or comm).part(arrangement.members)
    if part is not None:
        try:
            with part:
                outcome = _measure(part, arrangement, job, base, threads, allotted)
        except DistaiError as error:  # all of the part have it, and the sleepers must get it
            outcome = error
    comm.barrier_asleep()
    outcome = comm.bcast_object(outcome, arrangement.members[0])
    if declared is not None:
        declared.free()
    if isinstance(outcome, DistaiError):
        if arrangement.tensor > 1:  # the model, or its method, cannot be split so
            return None
        raise outcome
    return outcome


def _measure(
    part: Communicator, arrangement: Arrangement, job: Job, base: ShardedDataset, threads: int, allotted: float
) -> tuple[Shape, Workload, Any] | None:
    deadline = time.perf_counter() + allotted
    ranks, split = part.size, arrangement.tensor
    mesh = Mesh(part, tensor=split) if split > 1 else None
    group = part if mesh is None else mesh.data_group
    shard = _shard(job, base, group)
    model = job.model(shard)
    able = Abilities.of(model)
    if (mesh is not None and able.split is None) or not _has_room(part, model, split):
        if mesh is not None:
            mesh.free()
        return None
    if able.threads is not None:
        able.threads.limit_threads(threads)
    trial = Trial(job, model, mesh or part, part, group, threads)
    shape = Shape(ranks, arrangement.nodes, split, (), arrangement.local)
    left = part.bcast_object(deadline - time.perf_counter())
    options = trial.options(shard)
    if isinstance(options["optimizer"], FullBatchSolver):
        shape = trial.solver(shape, shard, left)
    else:
        shape = trial.steps(shape, shard, left)
    link = measure_messages(part) if arrangement.local else None
    workload = describe(model, shard, options, trial.last)
    trial.last = None
    shape = replace(shape, peak_memory=max(part.allgather_object(peak_memory())))
    if mesh is not None:
        mesh.free()
    return shape, workload, link


def _has_room(part: Communicator, model: Model, split: int) -> bool:
    """Whether parameters, twice a node, and every rank's gradient fit the memory that is left; collective.

    Raises:
        ConfigError: they do not fit a rank alone; it says what is needed, and which mesh would hold the model.
    """
    left = part.bcast_object(memory_left())
    whole = model.layout.size * model.dtype.itemsize
    if whole / split * (COPIES + part.node.size) <= left:
        return True
    if part.size > 1:
        return False
    need, gib, parts = whole * (COPIES + 1), 2**30, 2
    while need / parts > left:
        parts *= 2
    narrowest = min(getattr(model, "widths", (0,)))
    splits = Abilities.of(model).split is not None and narrowest >= parts
    way = f"{called('mesh')} tensor={parts} on {parts} such nodes would hold it" if splits else "no mesh would hold it"
    raise ConfigError(
        f"the model's {model.layout.size:,} parameters and their gradient take {need / gib:.3g} GiB, and"
        f" {left / gib:.3g} GiB are left here: {way}; measure it where it fits, by 'distai-mpi bench probe', and give"
        f" {called('probe')}"
    )


def _shard(job: Job, base: ShardedDataset, group: Communicator) -> ShardedDataset:
    """The rows of this rank among those of ``group``; what all ranks hold already is not read again; collective."""
    if base.shuffle == "local":
        return base if group.size == len(base.counts) else job.load(group)
    return repartition(replace(base, rank=group.rank, partition=None), Partition.even(group.size), group)
