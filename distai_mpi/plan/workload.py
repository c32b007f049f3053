"""What a run does in a step, in numbers: rows, parameters, and what has to travel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from ..models.split import choose_kinds

STEPS, SOLVER, AVERAGE = "steps", "solver", "average"
FACTORS, PAIRS, DENSE = "factors", "pairs", "dense"


@dataclass(frozen=True)
class Workload:
    """A model, its rows and its method.

    Attributes:
        data, model, optimizer: their names.
        rows: of the training set.
        batch: rows of a step over all ranks; of full-batch methods all rows.
        epochs: passes over the rows; of a solver iterations at most.
        parameters: numbers in the model; ``itemsize`` bytes each.
        kind: `STEPS` of first order, iterations of a full-batch `SOLVER`, or steps with now and then an `AVERAGE`.
        sync_every: steps between two averages.
        states: vectors of the length of the parameters that the method keeps in slices over the ranks.
        row_bytes: of a row as it is held.
        replicated_rows: every node holds all rows (the global shuffle); else a rank holds its own.
        entries: values of a row that are held, where rows are sparse; else 0.
        outputs: of the model's last layer.
        takes_pairs: whether gradients may travel as index-value pairs, where these are shorter.
        widths: of inputs and layers, where the model can be split over ranks; else none.
        splits_outputs: see `models.split.choose_kinds`.
        factor_size: numbers in the sufficient factors of a row; 0: the model has none.
        factors: whether factors are exchanged; None: where they are shorter.
        compressed: messages between nodes are of float16.
        first_slot: part of the parameters whose gradient is ready last.
        overlaps: whether gradients may travel during the backward pass.
        dense: whether a row's time goes into matrix products, and not into reading.
    """

    data: str
    model: str
    optimizer: str
    rows: int
    batch: int
    epochs: int
    parameters: int
    itemsize: int = 4
    kind: str = STEPS
    sync_every: int = 1
    states: int = 0
    row_bytes: float = 0.0
    replicated_rows: bool = True
    entries: float = 0.0
    outputs: int = 1
    takes_pairs: bool = False
    widths: tuple[int, ...] = ()
    splits_outputs: bool = False
    factor_size: int = 0
    factors: bool | None = None
    compressed: bool = False
    first_slot: float = 1.0
    overlaps: bool = False
    dense: bool = True

    @property
    def bytes(self) -> int:
        """Of a vector of all parameters."""
        return self.parameters * self.itemsize

    @property
    def rounds_messages(self) -> bool:
        """Whether messages of float16 are another way to run."""
        takes = self.kind in (STEPS, AVERAGE) and self.itemsize == 4 and not self.takes_pairs
        return takes and not self.compressed and self.factors is not True

    def steps(self, batch: int) -> float:
        """Steps of an epoch, the last one in proportion to its rows."""
        return 1.0 if self.kind == SOLVER else self.rows / min(batch, self.rows)

    def route(self, batch: int, nodes: int, ranks: int) -> str:
        """What gradients travel as, by the rules of `train.gradient.choose` and `train.gradient.sparse`."""
        if self.kind != STEPS or ranks == 1:
            return DENSE
        if self.takes_pairs and batch * self.entries * (1 + self.outputs) < self.parameters:
            return PAIRS
        if self.factors is False or not self.factor_size:
            return DENSE
        exchanged = 1 if nodes == 1 or self.compressed else 2
        shorter = batch * self.factor_size < exchanged * self.parameters
        return FACTORS if self.factors or shorter else DENSE

    def split_numbers(self) -> tuple[float, int]:
        """Numbers of a row that ranks of a tensor group exchange in a pass, and in how many calls.

        Times (parts - 1) / parts; Shoeybi et al. 2019, as `models.split.choose_kinds` counts them.
        """
        kinds = choose_kinds(self.widths, self.splits_outputs)
        numbers, calls = 0.0, 0
        for before, after, units in zip(kinds[:-1], kinds[1:], self.widths[1:-1], strict=True):
            cost, made = {("column", "row"): (0, 0), ("row", "column"): (4, 2)}.get((before, after), (2, 2))
            numbers, calls = numbers + cost * units, calls + made
        return numbers + (2.0 * self.widths[-1] if kinds[-1] == "row" else 12.0), calls + 1

    def check_split(self, parts: int) -> str | None:
        """Why the model cannot be cut into so many ``parts``; None where it can."""
        if parts == 1:
            return None
        if not self.widths:
            return f"{self.model} cannot be split over ranks"
        try:
            choose_kinds(self.widths, self.splits_outputs)
        except ConfigError as error:
            return str(error)
        least = min(self.widths[1:-1], default=self.widths[-1])
        return f"a layer of {least} units is too narrow for {parts} parts" if least < parts else None


@dataclass(frozen=True)
class Timing:
    """Seconds of a step on one arrangement of ranks.

    Attributes:
        rows: of a step on one rank, or on one copy of a model that is split.
        seconds: of a step, one for each window; of a solver of a pass over the rows.
    """

    rows: float
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class Shape:
    """What was measured on an arrangement of ranks.

    Attributes:
        ranks, nodes, tensor: of the arrangement.
        timings: by growing number of rows.
        local: nodes are declared ones on one machine.
        calls, bytes: of a step, or pass: collective calls, and bytes that all ranks sent.
        setup: seconds of a solver before and besides its passes; ``setup_calls`` and ``setup_bytes`` likewise.
        passes: of a solver, evaluations and products together; ``iterations`` of the run.
        ended: whether the solver came to its end, so that these are the run's own.
        peak_memory: of the rank that has most resident, in bytes.
    """

    ranks: int
    nodes: int
    tensor: int
    timings: tuple[Timing, ...]
    local: bool = False
    calls: float = 0.0
    bytes: float = 0.0
    setup: float = 0.0
    setup_calls: float = 0.0
    setup_bytes: float = 0.0
    passes: float = 0.0
    iterations: int = 0
    ended: bool = False
    peak_memory: int = 0


@dataclass(frozen=True)
class Probe:
    """What a probe has found.

    Attributes:
        workload: what was measured.
        machine: that it was measured on, as a dictionary; see `plan.Machine`.
        messages: latency and bandwidth between the declared nodes of that machine, as of a `Link`; None: unknown.
        shapes: the first of one rank.
        seconds: that the probe took, reading the data included.
        load: of the machine before it.
        notes: for the user, a sentence each.
        flags: of `train`, with which it was measured.
    """

    workload: Workload
    machine: dict[str, Any]
    messages: dict[str, Any] | None
    shapes: tuple[Shape, ...]
    seconds: float = 0.0
    load: float = 0.0
    notes: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Probe:
        """The probe whose `asdict`, perhaps by way of JSON, these are."""
        workload = Workload(**{**values["workload"], "widths": tuple(values["workload"]["widths"])})
        shapes = [_shape(each) for each in values["shapes"]]
        texts = {name: tuple(values[name]) for name in ("notes", "flags")}
        return cls(**{**values, **texts, "workload": workload, "shapes": tuple(shapes)})

    def check(self, where: str) -> None:
        """Raise `ConfigError` at figures that nothing can have; ``where`` names what they are from."""
        for shape in self.shapes:
            for timing in shape.timings:
                if not (timing.rows > 0 and timing.seconds and min(timing.seconds) > 0):
                    raise ConfigError(f"{where}: a speed of {timing.rows:g} rows in {timing.seconds} s is none")
        if not self.shapes or self.shapes[0].ranks != 1 or not self.shapes[0].timings:
            raise ConfigError(f"{where}: has no timing of one rank")


def _shape(values: dict[str, Any]) -> Shape:
    timings: Sequence[dict[str, Any]] = values["timings"]
    return Shape(**{**values, "timings": tuple(Timing(each["rows"], tuple(each["seconds"])) for each in timings)})
