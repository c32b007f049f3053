"""Ways to run that a machine allows, and which of them is best."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ..comm.mesh import MeshShape
from ..errors import ConfigError
from ..settings import called
from .model import Candidate, Planner, Prediction
from .workload import SOLVER, STEPS, Workload

MOST_PARTS = 16  # of a layer, where memory does not ask for more
ENOUGH = 1.05  # a plan that takes up to so many times the least time is as good, if it takes fewer nodes
WORTHWHILE = 0.5  # efficiency below which further ranks are a waste, where nobody gives a deadline or a budget


Batches = Callable[[int], Sequence[int]]


class Choice(NamedTuple):
    """The best of several predictions, and why it is."""

    best: Prediction
    reason: str


def candidates(planner: Planner, most_nodes: int, mesh: str | None, batches: Batches) -> Iterator[Candidate]:
    """Every combination of nodes, ranks of a node, mesh, batch and exchange; those that fit no memory too.

    Args:
        planner: of workload and machine.
        most_nodes: how many there are.
        mesh: the shape that the user asked for, such as ``tensor=2``; None: any.
        batches: rows of a step that are of interest, for a number of ranks.
    """
    work, cores = planner.probe.workload, planner.machine.cores
    per_node = [cores] if planner.machine.emulated else powers(cores)
    for nodes in powers(most_nodes):
        for each in range(1, cores // nodes + 1) if planner.machine.emulated and nodes > 1 else per_node:
            for shape in meshes(planner, nodes * each, mesh):
                for batch in batches(nodes * each):
                    if work.kind == SOLVER or batch >= shape.data:
                        yield Candidate(nodes, each, shape, batch)
                        if nodes > 1 and shape.data > 1 and work.rounds_messages:
                            yield Candidate(nodes, each, shape, batch, "float16")


def powers(most: int) -> list[int]:
    """1, 2, 4, ... up to ``most``, and that itself."""
    return [*(1 << i for i in range((most - 1).bit_length())), most]


def meshes(planner: Planner, ranks: int, asked: str | None) -> Iterator[MeshShape]:
    """Shapes for so many ranks: the one ``asked`` for, if it fits them, else all over which the model can be split.

    Splits are offered where the probe has measured one: nothing else tells what narrow layers cost.
    """
    work = planner.probe.workload
    if asked is not None:
        try:
            yield MeshShape.parse(asked, ranks)
        except ConfigError:
            return
        return
    parts = 1
    while parts <= min(ranks, MOST_PARTS):
        splits = parts == 1 or (planner.measured.split is not None and work.check_split(parts) is None)
        if ranks % parts == 0 and splits:
            yield MeshShape(ranks // parts, 1, parts)
        parts *= 2


def check_mesh(asked: str, cores: int, most_nodes: int) -> None:
    """Raise `ConfigError` where the mesh that is ``asked`` for fits no number of ranks that is planned."""
    counts = sorted({nodes * each for nodes in powers(most_nodes) for each in powers(cores)})
    name, fitting, why = called("mesh"), [], ""
    for ranks in counts:
        try:
            fitting.append(MeshShape.parse(asked, ranks))
        except ConfigError as error:
            why = str(error)
    if not fitting:
        raise ConfigError(f"{name} {asked} fits none of {', '.join(map(str, counts))} ranks, which are planned ({why})")
    if fitting[0].stage > 1:
        raise ConfigError(f"{name} {asked}: stages are not planned yet; leave stage out")


def check_split(work: Workload, asked: str) -> None:
    """Raise `ConfigError` where the model cannot be split as the mesh that is ``asked`` for wants it."""
    parts = max((int(part.partition("=")[2]) for part in asked.split(",") if "tensor" in part), default=1)
    reason = work.check_split(parts)
    if reason is not None:
        raise ConfigError(f"{called('mesh')} {asked}: {reason}")


def check_memory(planner: Planner, made: Sequence[Candidate]) -> list[Candidate]:
    """Those of ``made`` that fit the memory of their nodes.

    Raises:
        ConfigError: none does; it says what is needed, and the mesh by which it would fit.
    """
    fitting = [candidate for candidate in made if planner.fits(candidate)]
    if fitting:
        return fitting
    least = min(made, key=lambda candidate: planner.memory(candidate) * candidate.per_node)
    gib, needed = 2**30, planner.memory(least) * least.per_node
    raise ConfigError(
        f"the model fits no node: {planner.probe.workload.parameters:,} parameters, their gradient, the method's state"
        f" and the rows take {needed / gib:.3g} GiB on a node with {_named(least)}, and nodes have"
        f" {planner.machine.memory / gib:.3g} GiB; {_way_out(planner, least)}"
    )


def _named(candidate: Candidate) -> str:
    mesh = f" of {called('mesh')} {candidate.mesh}" if candidate.mesh.copy > 1 else ""
    return f"{candidate.per_node} rank{'s' if candidate.per_node > 1 else ''}{mesh}"


def _way_out(planner: Planner, least: Candidate) -> str:
    """The smallest mesh of one rank a node that would hold the model, in words."""
    work, parts = planner.probe.workload, 2
    while work.kind == STEPS and work.check_split(parts) is None:
        shape = Candidate(parts, 1, MeshShape(1, 1, parts), least.batch)
        if planner.fits(shape):
            return f"{called('mesh')} {shape.mesh} on {parts} nodes would hold it"
        parts *= 2
    why = work.check_split(parts) or "a solver's vectors are not split"
    return f"no mesh would hold it ({why}): take nodes with more memory, or a smaller model"


def choose(
    found: Sequence[Prediction], deadline: float | None, budget: float | None, asked_batch: int | None = None
) -> Choice:
    """The best of ``found``, among those that train alike: of the batch asked for, and of messages that nothing rounds.

    Args:
        found: predictions.
        deadline: seconds that the run may take, by the upper end of its error bar; None: any.
        budget: node hours likewise.
        asked_batch: rows of a step; None: any.

    Raises:
        ConfigError: none meets deadline and budget; the nearest is named.
    """
    alike = [each for each in found if each.candidate.wire == "float32"]
    alike = [each for each in alike if asked_batch in (None, each.candidate.batch)]
    in_time = [each for each in alike if deadline is None or each.high <= deadline]
    if not in_time:
        nearest = min(alike, key=lambda each: each.high)
        raise ConfigError(
            f"{called('deadline')} {told(deadline or 0)}: no plan meets it; the nearest is {words(nearest)}, which may"
            f" take {told(nearest.high)}"
        )
    paid = [each for each in in_time if budget is None or each.node_hours <= budget]
    if not paid:
        nearest = min(in_time, key=lambda each: each.node_hours)
        within = "" if deadline is None else " within the deadline"
        raise ConfigError(
            f"{called('budget')} {budget:g}: no plan takes so few node hours{within}; the nearest is {words(nearest)},"
            f" which may take {nearest.node_hours:.3g}"
        )
    if deadline is not None:
        best = min(paid, key=lambda each: (each.node_hours, each.seconds))
        return Choice(best, "the fewest node hours that meet the deadline")
    if budget is not None:
        return Choice(_fastest(paid), "the fastest within the budget")
    worth = [each for each in paid if each.efficiency >= WORTHWHILE]
    best = _fastest(worth or paid)
    why = "the fastest" if not worth or len(worth) == len(paid) else "the fastest of those that use their ranks well"
    return Choice(best, f"{why}, on the fewest nodes within {100 * (ENOUGH - 1):.0f} %")


def _fastest(found: Sequence[Prediction]) -> Prediction:
    least = min(each.seconds for each in found)
    near = [each for each in found if each.seconds <= ENOUGH * least]
    return min(near, key=lambda each: (each.candidate.nodes, each.candidate.mesh.copy, each.seconds))


def words(prediction: Prediction) -> str:
    """A plan in words."""
    nodes, per_node, mesh, batch, wire = prediction.candidate
    parts = [f"{nodes} node{'s' if nodes > 1 else ''} of {per_node} rank{'s' if per_node > 1 else ''}"]
    parts += [f"mesh {mesh}"] * (mesh.copy > 1)
    parts += [f"batch {batch:,}"]
    parts += ["overlapped"] * prediction.early + [f"messages of {wire}"] * (wire != "float32")
    return ", ".join(parts)


def told(seconds: float) -> str:
    """A time in words."""
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"
