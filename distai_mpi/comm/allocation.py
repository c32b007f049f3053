"""What Slurm has given the job that this process belongs to, as its environment tells; starts nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .launch import launcher, number, repeated


@dataclass(frozen=True)
class Allocation:
    """A Slurm job: its number, its nodes (how many, and their names as Slurm writes them), tasks and CPUs of a task."""

    job: str
    nodes: int
    names: str
    tasks: int
    cpus_per_task: int


def allocation(env: Mapping[str, str] | None = None) -> Allocation | None:
    """The Slurm job of ``env`` (default: this process's environment), None outside of one.

    Inside a step ``SLURM_NTASKS`` counts the tasks of the step.  Those of the job are then what its nodes
    hold by ``--ntasks-per-node`` and by their CPUs; where that was not asked for, the step's count is all
    there is.
    """
    env = os.environ if env is None else env
    if "SLURM_JOB_ID" not in env:
        return None
    nodes = number(env, "SLURM_JOB_NUM_NODES", number(env, "SLURM_NNODES", 1))
    cpus = max(1, number(env, "SLURM_CPUS_PER_TASK", 1))
    tasks, per_node = number(env, "SLURM_NTASKS", nodes), number(env, "SLURM_NTASKS_PER_NODE", 0)
    if launcher(env).name == "Slurm srun" and per_node:
        room = sum(repeated(env.get("SLURM_JOB_CPUS_PER_NODE", ""))) // cpus or nodes * per_node
        tasks = max(tasks, min(nodes * per_node, room))
    return Allocation(env["SLURM_JOB_ID"], nodes, env.get("SLURM_JOB_NODELIST", ""), tasks, cpus)


def idle_part(size: int, nodes: int, given: Allocation | None) -> str | None:
    """What a run of ``size`` ranks on ``nodes`` nodes leaves idle of its Slurm job, in words; None if nothing."""
    if given is None or (size >= given.tasks and nodes >= given.nodes):
        return None
    return (
        f"Slurm job {given.job} has {_count(given.tasks, 'task')} on {_count(given.nodes, 'node')}, but this run uses "
        f"{_count(size, 'rank')} on {_count(nodes, 'node')}: the rest idles. Start one rank a task (mpiexec -n "
        f"{given.tasks}, or srun without -n), or ask Slurm for less"
    )


def narrow_binding(cpus: Sequence[int], given: Allocation | None) -> str | None:
    """What is amiss where ranks may run on ``cpus`` CPUs each, fewer than the job asked for, in words; else None."""
    if given is None or min(cpus) >= given.cpus_per_task:
        return None
    rank, few = min(enumerate(cpus), key=lambda pair: pair[1])
    return (
        f"Slurm job {given.job} has {given.cpus_per_task} CPUs a task (--cpus-per-task), but rank {rank} is bound to "
        f"{few}, which its threads share: start with mpiexec --map-by slot:PE={given.cpus_per_task} --bind-to core, or "
        f"srun --cpus-per-task={given.cpus_per_task} --cpu-bind=cores"
    )


def _count(number: int, one: str) -> str:
    return f"{number} {one}{'' if number == 1 else 's'}"
