"""Models of which several ranks hold a part each: what a part offers, and how dense layers are shared out.

Column-parallel and row-parallel layers: Shoeybi, Patwary, Puri, LeGresley, Casper & Catanzaro 2019, "Megatron-LM:
Training Multi-Billion Parameter Language Models Using Model Parallelism", section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, runtime_checkable

from ..errors import ConfigError
from .base import Model

Array = Any
COLUMN, ROW = "column", "row"
ALIGNED_UNITS = 16  # cuts fall on multiples of so many units, whole cache lines, where every part has twice as many
CALL_UNITS = 64  # what a call costs, in numbers that travel for a row


class ActivationSums(Protocol):
    """What the parts of a model exchange in a pass, matrices of shape (rows, units); see `comm.activations`.

    All methods are collective over the ranks that hold the parts, and give all of them the same bits.  ``cuts``, one
    more than there are parts, say which columns belong to each; ``slot`` tells exchanges of one pass apart.
    """

    def partial(self, slot: int, rows: int, units: int) -> Array:
        """Where this rank writes what `sum` adds up: a matrix whose contents are undefined."""
        ...

    def sum(self, partial: Array) -> Array:
        """The sum over the ranks of their matrices from `partial`, in place; valid until the next call of the slot."""
        ...

    def scatter(self, slot: int, partial: Array, cuts: Sequence[int], out: Array) -> None:
        """``out`` ← this rank's columns of the sum of all ranks' ``partial``."""
        ...

    def gather(self, slot: int, own: Array, cuts: Sequence[int], out: Array) -> None:
        """``out`` ← the columns of all ranks, of which ``own`` are this one's."""
        ...


class Piece(NamedTuple):
    """Where the array of a part's slot lies within the array of a slot of the whole model.

    Attributes:
        slot: the number of the whole model's slot.
        ranges: along each of its axes.
    """

    slot: int
    ranges: tuple[slice, ...]


@runtime_checkable
class PartOfModel(Model, Protocol):
    """The part of a model that one rank of several holds: a model whose passes are collective over these ranks.

    It is a `Model` whose parameters are this rank's alone.  ``loss_and_grad`` and ``loss`` take the same rows on all of
    these ranks and return the same sums, those of the whole model; ``predict`` gives the whole model's answers.
    """

    whole: Model
    pieces: tuple[Piece, ...]

    def join(self, sums: ActivationSums) -> None:
        """Be given what the ranks that hold the parts exchange by, before the first pass."""
        ...


@runtime_checkable
class SupportsSplit(Protocol):
    """Can be trained by several ranks of which each holds a part of the parameters."""

    def split(self, rank: int, shares: Sequence[float]) -> Any:
        """The `PartOfModel` of rank number ``rank`` of len(shares), whose size is in proportion to its share.

        The pieces of all ranks together are the whole model's slots, each element once.

        Raises:
            ConfigError: the model cannot be shared out in this way.
        """
        ...


def whole_of(model: Any) -> Any:
    """The whole model that ``model`` is a part of; itself where it is none."""
    return model.whole if isinstance(model, PartOfModel) else model


def cut_units(units: int, shares: Sequence[float], what: str) -> list[int]:
    """Cuts of ``units`` in proportion to ``shares``: part r has the units cuts[r] to cuts[r + 1] - 1, one at least.

    Raises:
        ConfigError: there are more parts than units; ``what`` names these.
    """
    parts = len(shares)
    if units < parts:
        raise ConfigError(
            f"{what} has {units} unit{'s' if units > 1 else ''}, too few for {parts} parts: choose tensor={units} or"
            " less in the mesh, or wider layers"
        )
    step = ALIGNED_UNITS if units >= 2 * ALIGNED_UNITS * parts else 1
    total, cuts = math.fsum(shares), [0]
    for part in range(1, parts):
        wanted = round(units * math.fsum(shares[:part]) / total / step) * step
        cuts.append(min(max(wanted, cuts[-1] + 1), units - (parts - part)))
    return [*cuts, units]


def choose_kinds(
    widths: Sequence[int], splits_outputs: bool, given: bool = False, passed_on: bool = False
) -> list[str]:
    """`COLUMN` or `ROW` for each dense layer: the choice by which the fewest numbers travel for a row.

    A column-parallel layer takes its whole input and gives a part of its output; a row-parallel one takes a part of its
    input and gives a summand of its output.  Between two layers, of the u units there, the ranks exchange

        column → row      nothing                                   row → row    a part of the sum, and back all: 2 u
        column → column   all of them, and back a part of a sum: 2 u   row → column    two sums: 4 u

    times (parts - 1) / parts.  Outputs of a row-parallel layer are summed, 2 u; those of a column-parallel one may stay
    where they are if ``splits_outputs``, for the loss takes three numbers of each part.

    Args:
        widths: of the input and of every layer's output.
        splits_outputs: whether the loss can be had from outputs that are split.
        given: whether the input comes from another stage, which wants its gradient: of a column-parallel layer a sum,
            2 u, of a row-parallel one the ranks' parts of it, u.
        passed_on: whether the outputs go whole to another stage: those of a column-parallel layer are put together, u.
    """
    inner = {(COLUMN, ROW): (0, 0), (ROW, ROW): (2, 2), (COLUMN, COLUMN): (2, 2), (ROW, COLUMN): (4, 2)}
    best: dict[str, tuple[float, list[str]]] = {COLUMN: (0.0, [COLUMN])}  # every rank has the rows
    if given:
        best = {kind: (numbers * widths[0], [kind]) for kind, numbers in ((COLUMN, 2.0), (ROW, 1.0))}
    for _, units in pairwise(widths[:-1]):
        step: dict[str, tuple[float, list[str]]] = {}
        for (before, after), (numbers, calls) in inner.items():
            if before not in best:
                continue
            cost, kinds = best[before]
            cost += numbers * units + calls * CALL_UNITS
            if after not in step or cost < step[after][0]:
                step[after] = cost, [*kinds, after]
        best = step
    of_losses = 12.0  # three float64 numbers, twice as long
    ends = {ROW: 2.0 * widths[-1] + CALL_UNITS, COLUMN: (widths[-1] if passed_on else of_losses) + CALL_UNITS}
    if not (splits_outputs or passed_on):
        best.pop(COLUMN, None)
    if not best:
        raise ConfigError("a model of one layer with one output cannot be split over ranks: leave the mesh out")
    return min((cost + ends[kind], kinds) for kind, (cost, kinds) in best.items())[1]
