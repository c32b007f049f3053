"""Where to cut a model's layers into the stages of a pipeline: the slowest stage as short as possible.

Dynamic programming over the ends of stages: Narayanan et al. 2019, "PipeDream: Generalized Pipeline Parallelism for DNN
Training", section 3.1, for stages that are given to ranks of known speeds, and here within their memory too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, combinations, pairwise

from ..errors import ConfigError

Times = Sequence[Sequence[float]]
SLACK = 1e-9  # by which times of stages that differ by rounding alone may differ


@dataclass(frozen=True)
class StageMemory:
    """How many bytes stages take, and have.

    In one-forward-one-backward order stage s of n keeps the activations of up to n - s micro-batches (Narayanan et al.
    2021, "Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM", section 2.2).

    Attributes:
        parameters: bytes for each layer's parameters, their gradient, and the optimizer's state.
        kept: bytes that a micro-batch keeps of each layer for its backward pass.
        inputs: bytes of a micro-batch's input of each layer: what a stage that begins there receives.
        limits: bytes that a rank of each stage has.
        micro_batches: of a step.
        recompute: whether inputs alone are kept, and activations of one micro-batch at a time.
        tensor: ranks that share each layer, and among which all these bytes are divided already.
    """

    parameters: Sequence[float]
    kept: Sequence[float]
    inputs: Sequence[float]
    limits: Sequence[float]
    micro_batches: int
    recompute: bool = False
    tensor: int = 1

    def need(self, stage: int, first: int, stop: int) -> float:
        """Bytes that layers ``first`` to ``stop`` - 1 take as this stage."""
        in_flight = max(1, min(self.micro_batches, len(self.limits) - stage))
        kept, inputs = math.fsum(self.kept[first:stop]), self.inputs[first] if first else 0.0
        activations = kept + in_flight * inputs if self.recompute else in_flight * (kept + inputs)
        return math.fsum(self.parameters[first:stop]) + activations


def stage_times(costs: Sequence[float], speeds: Sequence[float]) -> list[list[float]]:
    """Time of every layer on every stage's ranks, of layers that cost so much and ranks that do so much in a second.

    Args:
        costs: of each layer, in any unit, such as floating-point operations of a row.
        speeds: of each stage's ranks, in this unit per second.

    Raises:
        ConfigError: a speed is not above 0, or a cost is below it.
    """
    for stage, speed in enumerate(speeds):
        if not (speed > 0 and math.isfinite(speed)):
            raise ConfigError(f"the speed of stage {stage} must be a number above 0, got {speed:g}")
    for layer, cost in enumerate(costs, 1):
        if not (cost >= 0 and math.isfinite(cost)):
            raise ConfigError(f"the cost of layer {layer} must be a number from 0 up, got {cost:g}")
    return [[cost / speed for cost in costs] for speed in speeds]


def choose_cuts(times: Times, memory: StageMemory | None = None) -> tuple[int, ...]:
    """The cuts by which the slowest stage is as short as possible; among these, by which all take the least together.

    Args:
        times: seconds of each layer on each stage's ranks, by stage and layer.
        memory: what must fit; None: everything does.

    Returns:
        The numbers, from 0, of the layers that stages begin with, but the first: stages - 1 ascending numbers.

    Raises:
        ConfigError: there are more stages than layers, or no stages of them fit; what would is told.
    """
    check_stages(len(times), len(times[0]))
    best = _cheapest(times, memory, math.inf, slowest=True)
    if best is None:
        assert memory is not None
        raise ConfigError(_why_nothing_fits(memory, len(times[0])))
    longest = max(seconds_of(times, best))
    found = _cheapest(times, memory, longest * (1 + SLACK), slowest=False)
    assert found is not None
    return found


def check_stages(stages: int, layers: int) -> None:
    """Raise `ConfigError` where there are more stages than layers."""
    if stages > layers:
        raise ConfigError(
            f"mesh: stage={stages}, but the model has {layers} layer{'s' if layers > 1 else ''}, of which a stage needs"
            f" one at least: choose stage={layers} or less, and tensor= or data= for the other ranks"
        )


def seconds_of(times: Times, cuts: Sequence[int]) -> list[float]:
    """What each stage takes under these ``cuts``."""
    bounds = (0, *cuts, len(times[0]))
    return [math.fsum(of_stage[low:high]) for of_stage, (low, high) in zip(times, pairwise(bounds), strict=True)]


def all_cuts(layers: int, stages: int) -> Iterator[tuple[int, ...]]:
    """Every way to cut ``layers`` into ``stages``."""
    return combinations(range(1, layers), stages - 1)


def _cheapest(times: Times, memory: StageMemory | None, most: float, slowest: bool) -> tuple[int, ...] | None:
    """The cuts with the smallest sum of the stages' times, or with ``slowest`` the smallest of their largest ones.

    No stage takes longer than ``most``.  None: nothing fits.
    """
    layers = len(times[0])
    found: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}  # by the layer that the next stage begins with
    for stage, of_stage in enumerate(times):
        sums, left = [0.0, *accumulate(of_stage)], len(times) - stage - 1
        after: dict[int, tuple[float, tuple[int, ...]]] = {}
        for first, (cost, cuts) in found.items():
            for stop in range(first + 1, layers - left + 1) if left else (layers,):
                own = sums[stop] - sums[first]
                if own > most or (memory is not None and memory.need(stage, first, stop) > memory.limits[stage]):
                    continue
                total = max(cost, own) if slowest else cost + own
                if stop not in after or total < after[stop][0]:
                    after[stop] = total, (*cuts, first) if stage else cuts
        found = after
    return found[layers][1] if layers in found else None


def _why_nothing_fits(memory: StageMemory, layers: int) -> str:
    """What needs more memory than there is, and which mesh would hold it."""
    stages, limit = len(memory.limits), max(memory.limits)
    needs = [min(memory.need(stage, layer, layer + 1) for stage in range(stages)) for layer in range(layers)]
    largest = max(range(layers), key=needs.__getitem__)
    if needs[largest] > limit:
        rest = limit - needs[largest] + memory.parameters[largest]  # that is left for parameters
        tensor = math.ceil(memory.tensor * memory.parameters[largest] / rest) if rest > 0 else None
        way = "more micro-batches, or smaller batches" if tensor is None else f"tensor={tensor} in the mesh"
        return (
            f"layer {largest + 1} of {layers} needs {_bytes(needs[largest])} on a rank (parameters, gradient,"
            f" the optimizer's state, and activations), and none has more than {_bytes(limit)} left: choose {way}"
        )
    for more in range(stages + 1, layers + 1):
        larger = replace(memory, limits=(min(memory.limits),) * more)
        if _cheapest([[0.0] * layers] * more, larger, math.inf, slowest=True) is not None:
            return (
                f"mesh: no {stages} stages of {layers} layers fit into {_bytes(min(memory.limits))} to {_bytes(limit)}"
                f" on a rank: choose stage={more}, or tensor={2 * memory.tensor}"
            )
    return (
        f"mesh: {layers} layers fit into no {stages} stages of {_bytes(min(memory.limits))} to {_bytes(limit)} on a"
        f" rank: choose tensor={2 * memory.tensor}, or more micro-batches"
    )


def _bytes(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"
