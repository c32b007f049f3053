"""Which method minimises an objective over all rows, and how its vectors lie."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..models import Model
from ..objective import Objective
from ..optim import LBFGS, Auto, Newton
from .deterministic import Deterministic, DeterministicSteps
from .newton import NewtonCGSteps, NewtonSteps
from .quasi_newton import QuasiNewtonSteps

if TYPE_CHECKING:
    from ..comm import Communicator

MOST_WHOLE = 16_384  # parameters: up to here one message of 128 KiB costs less than the three rounds of slices


def keeps_whole(model: Model, comm: Communicator, allreduce: str | None) -> bool:
    """Whether every rank keeps the method's vectors whole: they are short, and nobody asked for another exchange."""
    return model.layout.size <= MOST_WHOLE and (allreduce or comm.default_algorithm) in ("auto", "native")


def choose(optimizer: Auto, model: Model, rows: int, comm: Communicator) -> Deterministic:
    """The method for ``model`` on so many ``rows`` of all ranks; alike on every rank."""
    return LBFGS(sample=optimizer.sample)


def make_deterministic(
    objective: Objective, optimizer: Deterministic, start: Any, tol: float | None
) -> DeterministicSteps:
    """The steps of ``optimizer``."""
    if isinstance(optimizer, LBFGS):
        return QuasiNewtonSteps(objective, optimizer, start)
    if isinstance(optimizer, Newton):
        return NewtonSteps(objective, optimizer, start)
    return NewtonCGSteps(objective, optimizer, start, tol)
