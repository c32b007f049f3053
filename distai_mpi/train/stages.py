"""Stages of a pipeline: where a model is cut, by times measured on the ranks, and what a run tells of it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..comm import ActivationExchange, StageLinks
from ..data import Batch
from ..errors import ConfigError
from ..models import Abilities
from ..models.pipeline import PassTimes, PipelinedModel, bounds_of
from ..perf.laws import pipeline_latency, pipeline_seconds
from ..perf.machine import memory_left
from ..perf.stage_cuts import StageMemory, check_stages, choose_cuts, seconds_of

if TYPE_CHECKING:
    from ..comm import Mesh
    from ..models.stages import LayerCost, Stage, SupportsStages

Array = Any
MICRO_BATCHES = 4  # for each stage, unless somebody says otherwise
MOST_ROWS = 4096  # of a batch that cuts are chosen for: longer ones come in blocks
TIMINGS = 5  # of each layer, after a warm-up; the shortest counts, for what delays the others is not the layer's own


class Cuts(NamedTuple):
    """Where a model is cut into stages.

    Attributes:
        layers: the numbers of those that stages begin with, but the first.
        seconds: that each stage was expected to take for a micro-batch; None: the user has chosen.
    """

    layers: tuple[int, ...]
    seconds: list[float] | None


def pipelined(model: Any, mesh: Mesh, shares: Sequence[float], rows: int, optimizer: Any) -> PipelinedModel:
    """This rank's stage of ``model``; collective over the ranks of ``mesh``.

    A model is cut once: later calls give the same stages.

    Args:
        model: the whole model.
        mesh: of all ranks.
        shares: how large the parts of each layer are, in proportion.
        rows: of a batch of one copy of the model.
        optimizer: the method, whose state takes memory too.

    Raises:
        ConfigError: it cannot be cut so; on all ranks.
    """
    able = Abilities.of(model).stages
    if able is None:
        raise ConfigError(
            f"mesh {mesh.shape}: {type(model).__name__} cannot be cut into stages (it has no stage()); leave stage="
            " out of the mesh, or take an mlp"
        )
    micro_batches = mesh.pipeline.micro_batches or MICRO_BATCHES * mesh.shape.stage
    cuts = mesh.recall(model)
    if cuts is None:
        rows = -(-min(rows, MOST_ROWS) // micro_batches)
        cuts = _find_cuts(able, mesh, shares, rows, micro_batches, vectors_of(optimizer, mesh.shape.data))
        mesh.remember(model, cuts)
    bounds = bounds_of(cuts.layers, len(able.layer_costs()), mesh.position.stage)
    with mesh.comm.agreed():
        stage = able.stage(*bounds, mesh.position.tensor, shares)
    links = StageLinks(mesh)
    part = PipelinedModel(model, stage, bounds, links, micro_batches, mesh.pipeline.recompute)
    part.join(ActivationExchange(mesh.tensor_group, part.dtype, links.progress))
    return part


def vectors_of(optimizer: Any, copies: int) -> float:
    """About how many numbers a rank holds for each of its parameters: twice itself, its gradient, the method's state.

    ``copies`` of the model share the state out.
    """
    methods = [getattr(optimizer, name) for name in ("inner", "outer") if hasattr(optimizer, name)] or [optimizer]
    held = 3.0 + (len(methods) - 1)
    for method in methods:
        if hasattr(method, "init"):
            state = method.init(np.zeros(1))
            held += sum(value.size for value in state.values() if isinstance(value, np.ndarray)) / copies
        else:  # a full-batch solver: pairs of its history, directions and trials
            held += (2 * getattr(method, "memory", 1) + 3) / copies
    return held


def _find_cuts(
    able: SupportsStages, mesh: Mesh, shares: Sequence[float], rows: int, micro_batches: int, vectors: float
) -> Cuts:
    """The cuts that the user gives, or those by which the slowest stage is as short as possible; collective."""
    costs = able.layer_costs()
    stages, layers = mesh.shape.stage, len(costs)
    check_stages(stages, layers)
    if stages == 1:
        return Cuts((), None)
    given = mesh.pipeline.cuts
    if given is not None:
        if len(given) != stages - 1 or given[-1] >= layers:
            raise ConfigError(
                f"cuts {','.join(map(str, given))}: {stages} stages of {layers} layers need {stages - 1} number"
                f"{'s' if stages > 2 else ''} from 1 to {layers - 1}"
            )
        return Cuts(tuple(given), None)
    memory, times = _memory(able, mesh, rows, micro_batches, vectors), [[0.0] * layers for _ in range(stages)]
    choose_cuts(times, memory)  # what fits nowhere is refused before it is tried
    again = mesh.pipeline.recompute and mesh.position.stage < stages - 1
    own = [sum(_seconds_of_layer(able, layer, mesh, shares, rows, 1 + again)) for layer in range(layers)]
    for stage, seconds in mesh.comm.allgather_object((mesh.position.stage, own)):
        times[stage] = [max(pair) for pair in zip(times[stage], seconds, strict=True)]
    chosen = choose_cuts(times, memory)
    return Cuts(chosen, seconds_of(times, chosen))


def _memory(able: Any, mesh: Mesh, rows: int, micro_batches: int, vectors: float) -> StageMemory:
    """What layers need, and what the ranks of each stage have; collective."""
    limits = [math.inf] * mesh.shape.stage
    for stage, left in mesh.comm.allgather_object((mesh.position.stage, memory_left() / mesh.comm.node.size)):
        limits[stage] = min(limits[stage], left)
    costs: Sequence[LayerCost] = able.layer_costs()
    tensor, itemsize = mesh.shape.tensor, np.dtype(able.dtype).itemsize
    before = [0, *(cost.outputs for cost in costs)]
    return StageMemory(
        parameters=[cost.parameters * vectors * itemsize / tensor for cost in costs],
        kept=[cost.kept * rows * itemsize / tensor for cost in costs],
        inputs=[outputs * rows * itemsize for outputs in before[: len(costs)]],
        limits=limits,
        micro_batches=micro_batches,
        recompute=mesh.pipeline.recompute,
        tensor=tensor,
    )


def _seconds_of_layer(
    able: Any, layer: int, mesh: Mesh, shares: Sequence[float], rows: int, times_forward: int
) -> tuple[float, float]:
    """The time of a layer's forward passes, so many, and of its backward pass on this rank, beside the others'.

    Collective.

    The layer stands alone, so that no rank needs room for more.  Rows are dense zeros.
    """
    with mesh.comm.agreed():
        stage: Stage = able.stage(layer, layer + 1, mesh.position.tensor, shares)
        w, grad = np.full(stage.layout.size, 1e-2, able.dtype), np.zeros(stage.layout.size, able.dtype)
    stage.join(ActivationExchange(mesh.tensor_group, able.dtype))
    costs = able.layer_costs()
    target = getattr(able, "target_dtype", None) or np.int64
    none = np.zeros(rows, np.int64)
    x = np.zeros((rows, able.widths[0] if layer == 0 else costs[layer - 1].outputs), able.dtype)
    batch = Batch(x, np.zeros(rows, target), None, none, 0, train=True)
    given, last = None if layer == 0 else x, layer == len(costs) - 1
    seconds = []
    for _ in range(1 + TIMINGS):
        began = time.perf_counter()
        if last:
            stage.losses(w, batch, given, 0)
        else:
            delta = np.array(stage.forward(w, batch, given, 0))
        between = time.perf_counter()
        stage.backward(w, batch, given, 0, None if last else delta, grad)
        seconds.append((between - began, time.perf_counter() - between))
    forward, backward = (min(found) for found in zip(*seconds[1:], strict=True))
    return times_forward * forward, backward


def pipeline_figures(run: Any) -> dict[str, Any] | None:
    """What `Result.pipeline` tells; None of runs without stages; collective."""
    model, mesh = getattr(run.objective, "model", None), run.objective.mesh
    if not isinstance(model, PipelinedModel):
        return None
    cuts, stages = mesh.recall(model.whole), mesh.shape.stage
    recent = list(model.passes)[-max(1, run.iterations) :]  # others were before the first step
    most = max((times.micro_batches for times in recent), default=0)
    own = np.median([times for times in recent if times.micro_batches == most] or np.zeros((1, 4)), axis=0)
    everyone = mesh.comm.allgather_object((mesh.position.stage, PassTimes(most, *own[1:].tolist())))
    most = max(times.micro_batches for _, times in everyone)  # less where a copy has had no rows
    of_stage = [[times for at, times in everyone if (at, times.micro_batches) == (s, most)] for s in range(stages)]
    busy = [max(times.busy for times in found) for found in of_stage]
    slowest = max(busy)
    return {
        "stages": stages,
        "micro_batches": most,
        "recompute": model.recompute,
        "cuts": list(cuts.layers),
        "expected_stage_seconds": cuts.seconds,
        "stage_seconds": busy,
        "latency": pipeline_latency(stages, slowest) if slowest else None,
        "measured_latency": max(times.first for times in of_stage[0]),
        "step_seconds": pipeline_seconds(stages, most, slowest) if slowest else None,
        "measured_step_seconds": max(times.total for times in of_stage[0]),
    }
