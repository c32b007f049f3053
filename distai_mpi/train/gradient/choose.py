"""Which way gradients take, from what the user asks for and what the model, its rows and the ranks allow."""

from __future__ import annotations

from ...comm import Exchange
from ...errors import ConfigError
from ...objective import Objective
from ...optim import FirstOrder, Schedule
from ...settings import called
from . import factors, fused, overlapped, sparse
from .base import Gradients, most_rows
from .dense import DenseGradients


def make_gradients(objective: Objective, asked: Exchange) -> Gradients:
    """The exchange of gradients for the steps of ``objective``'s loader; collective.

    Between nodes ``overlap`` comes first, then ``factors``, which None stands for where they are shorter than the
    gradient.  On one node nothing travels, and nothing overlaps.

    Raises:
        ConfigError: the model, the device or the rows of a step do not allow what is asked for.
    """
    several = len(objective.comm.leaders) > 1
    obstacle = "" if asked.factors is False or (asked.overlap and several) else factors.find_obstacle(objective)
    if asked.factors and obstacle:
        raise ConfigError(f"{called('factors')}: {obstacle}; leave it out")
    if obstacle is None and (asked.factors or factors.are_shorter(objective)):
        return factors.FactorGradients(objective, most_rows(objective))
    if asked.overlap is False or not several:
        return DenseGradients(objective)
    obstacle = overlapped.find_obstacle(objective)
    if asked.overlap and obstacle:
        raise ConfigError(f"{called('overlap', '--early')}: {obstacle}; leave it out")
    return DenseGradients(objective) if obstacle else overlapped.OverlappedGradients(objective, asked.overlap)


def make_fused(
    objective: Objective,
    optimizer: FirstOrder,
    gradients: Gradients,
    schedule: Schedule,
    clip_norm: float | None,
    asked: Exchange,
) -> fused.FusedSteps | sparse.SparseSteps | None:
    """What takes many small steps in one call, to the same result as steps by ``gradients``; None: nothing; collective.

    Sparse rows: the columns of a step's rows alone; dense rows: plain SGD on few of them.
    """
    if objective.loader.sparse:
        return sparse.make_sparse(objective, optimizer, clip_norm, asked)
    return fused.make_fused(objective, optimizer, gradients, schedule, clip_norm, asked)
