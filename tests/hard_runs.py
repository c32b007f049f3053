"""Fits hard problems on the ranks of one job, by the package's API, and writes down what came of each.

    mpiexec -n N python tests/hard_runs.py FOLDER

FOLDER/tasks.json lists [seed, number, attempt]; a line of JSON for each is added to FOLDER/results.jsonl when it ends.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from fits import fit
from hard_tables import Problem, draw

from distai_mpi import Communicator, data, models, optim
from distai_mpi.comm import launch
from distai_mpi.errors import DistaiError

TOL = 1e-5  # what `distai-mpi train` asks full-batch methods for unless it is told otherwise
METHODS = {"lbfgs": optim.LBFGS, "newton": optim.Newton, "newton-cg": optim.NewtonCG, "auto": optim.Auto}


def sets_of(problem: Problem, comm: Communicator, folder: Path) -> Any:
    """The training rows of ``problem``, as they come to the ranks; collective."""
    if problem.feed == "whole":
        return data.whole(data.Dataset(problem.x, problem.y, problem.weight), comm.rank, comm.size)
    if problem.feed == "shards":
        mine = slice(*np.array(_cuts(len(problem.y), comm.size))[[comm.rank, comm.rank + 1]])
        weight = None if problem.weight is None else problem.weight[mine]
        return data.from_local(data.Dataset(problem.x[mine], problem.y[mine], weight), comm)
    path = folder / f"table.{problem.feed}"
    with comm.agreed():
        if comm.rank == 0:
            (write_csv if problem.feed == "csv" else write_npz)(problem, path)
    columns = {"label": "label"} if problem.feed == "csv" else {}
    if columns and problem.weight is not None:
        columns["weight"] = "weight"
    held = np.float64 if problem.standardize else np.dtype(problem.dtype)  # as `distai-mpi train` holds text
    return data.load_sets(path, comm, test_fraction=0, dtype=held, **columns).train


def _cuts(rows: int, ranks: int) -> list[int]:
    """Where shards of unequal length begin and end."""
    parts = np.arange(1, ranks + 1) ** 2
    return [0, *(rows * parts.cumsum() // parts.sum()).tolist()]


def write_csv(problem: Problem, path: Path) -> None:
    """A table in which every number has as many digits as it takes to read it again exactly."""
    names = [f"f{j}" for j in range(problem.x.shape[1])] + ["label"] + ["weight"] * (problem.weight is not None)
    columns = [*problem.x.T, problem.y] + ([] if problem.weight is None else [problem.weight])
    lines = (",".join(map(repr, row)) for row in zip(*(column.tolist() for column in columns), strict=True))
    path.write_text("\n".join([",".join(names), *lines]) + "\n")


def write_npz(problem: Problem, path: Path) -> None:
    """Arrays x, y and perhaps weight."""
    np.savez(path, x=problem.x, y=problem.y, **({} if problem.weight is None else {"weight": problem.weight}))


def run(problem: Problem, comm: Communicator, folder: Path) -> dict[str, Any]:
    """What came of ``problem``; the same on every rank but where ranks disagree; collective."""
    try:
        shard = sets_of(problem, comm, folder)
        if problem.standardize:
            (shard,) = data.standardize(shard, comm=comm)
        model = models.build(problem.model, shard.labels, dtype=np.dtype(problem.dtype))
        result = fit(model, shard, comm, optimizer=METHODS[problem.method](), l2=problem.l2, tol=TOL)
    except DistaiError as error:
        return {"refused": str(error)}
    found = {
        "w": np.asarray(result.w, np.float64).tolist(),
        "converged": result.converged,
        "status": result.status,
        "reason": result.stop_reason,
        "iterations": result.iterations,
        "told_gap": getattr(result, "relative_gap", None),
    }
    everyones = comm.allgather_object(json.dumps(found))
    return found | {"alike": everyones.count(everyones[0]) == comm.size}


def main(folder: Path) -> None:
    """All tasks, one after another."""
    tasks = json.loads((folder / "tasks.json").read_text())
    with contextlib.ExitStack() as kept:
        comm = kept.enter_context(Communicator(launch.world()))
        lines = kept.enter_context(open(folder / "results.jsonl", "a")) if comm.rank == 0 else None
        for seed, number, attempt in tasks:
            problem = draw(seed, number, attempt)
            assert problem is not None
            if comm.rank == 0:
                print(f"----- {number}: {problem}", file=sys.stderr, flush=True)
            found = run(problem, comm, folder)
            if lines is not None:
                lines.write(json.dumps({"number": number, **found}) + "\n")
                lines.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
