"""What earlier runs tell of predictions: by how much these were off, and how many iterations solvers made."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ..comm.mesh import MeshShape
from ..errors import DataError
from ..settings import called
from .model import Candidate, Learned, Planner
from .workload import SOLVER

RESULT = "result.json"
MAD = 1.4826  # of a normal distribution: its deviation over the median absolute deviation


def learn(planner: Planner, folder: str) -> Learned:
    """What the runs in ``folder``, and in folders inside of it, tell of the workload that ``planner`` has.

    Runs count that were completed on data of the same name, with as many parameters and by the same method; on any
    ranks and nodes.

    Raises:
        DataError: there is no such folder, a file in it is damaged, or none is of such a run.
    """
    name = called("folder", "--learn")
    if not os.path.isdir(folder):
        raise DataError(
            f"{called('folder', '--learn')} {folder}: there is no such folder; name one with folders that runs wrote"
        )
    work = planner.probe.workload
    logs: list[float] = []
    points: list[tuple[int, int, float, float]] = []
    iterations: list[int] = []
    seen = 0
    for path in _results(folder):
        seen += 1
        result = _read(path)
        if not _alike(result, planner):
            continue
        ranks, nodes = int(result["ranks"]), int(result["nodes"])
        count = result["iterations"] if work.kind == SOLVER else result["epochs"]
        if work.kind == SOLVER:
            iterations.append(count)
        shape = MeshShape(ranks, 1, 1)
        candidate = Candidate(nodes, ranks // nodes, shape, int(result.get("global_batch_size") or work.batch))
        known = replace(planner, learned=Learned(iterations=float(count) if work.kind == SOLVER else None))
        predicted = known.predict(candidate)
        expected = predicted.seconds / (count if work.kind == SOLVER else work.epochs)
        measured = result["seconds"] / count
        logs.append(math.log(measured / expected))
        points.append((ranks, nodes, measured, expected))
    if not logs:
        raise DataError(
            f"{name} {folder}: of {seen} files {RESULT} none is of a completed run of {work.parameters:,} parameters"
            f" by {work.optimizer}"
        )
    shift = statistics.median(logs)
    error = MAD * statistics.median(abs(log - shift) for log in logs) if len(logs) > 2 else max(map(abs, logs))
    made = float(statistics.median(iterations)) if iterations else None
    return Learned(shift, error, len(logs), made, tuple(points))


def _alike(result: dict[str, Any], planner: Planner) -> bool:
    """Whether a run that was completed is of the same workload, on ranks of which something can be predicted."""
    work, names = planner.probe.workload, ("ranks", "nodes", "iterations", "epochs", "seconds")
    if result.get("status") != "completed" or not all(result.get(name) for name in names):
        return False
    same = (result.get("parameters"), result.get("optimizer")) == (work.parameters, work.optimizer)
    same = same and os.path.basename(str(result.get("data"))) == os.path.basename(work.data)
    known = result["nodes"] == 1 or planner.machine.network is not None
    return same and known and result["ranks"] % result["nodes"] == 0


def _results(folder: str) -> Iterator[str]:
    """The result files of runs, in the order of their names."""
    for base, folders, files in os.walk(folder):
        folders.sort()
        if RESULT in files:
            yield os.path.join(base, RESULT)


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            found: Any = json.load(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: is no object of JSON")
    return found
