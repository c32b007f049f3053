"""Which method minimises an objective over all rows, and how its vectors lie."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING

from ...comm import Exchange
from ...errors import ConfigError
from ...models import Model
from ...optim import LBFGS, Auto, FullBatchSolver, Newton, NewtonCG
from ...settings import called
from .sample import MOST_DENSE, is_linear

if TYPE_CHECKING:
    from ...comm import Communicator

MOST_WHOLE = 16_384  # parameters: up to here one message of 128 KiB costs less than the three rounds of slices
# Of `choose`; iterations are those from a sampled start to a relative gap of 1e-7 on 200,000 × 200 rows.
BYTES_PER_SECOND, FLOPS_PER_SECOND, ROUND_SECONDS = 10e9, 30e9, 20e-6
NEWTON_ITERATIONS, LBFGS_ITERATIONS = 4, 7


def keeps_whole(size: int, comm: Communicator, asked: Exchange) -> bool:
    """Whether every rank keeps the method's vectors whole: they are short, and nobody asked for another exchange."""
    return size <= MOST_WHOLE and (asked.algorithm or comm.default_algorithm) in ("auto", "native")


def choose(
    optimizer: Auto, model: Model, rows: int, comm: Communicator, asked: Exchange, l1: float = 0.0, l2: float = 0.0
) -> FullBatchSolver:
    """The method for ``model`` on so many ``rows`` of all ranks; alike on every rank.

    Times are estimates from a core of an AMD EPYC (Zen 4), which need to be right to a factor:
    passes over the rows at `BYTES_PER_SECOND`, Hessians at `FLOPS_PER_SECOND`, and rounds.
    """
    size, given = model.layout.size, asdict(optimizer)
    if l1 and is_linear(model):
        return NewtonCG(**given)  # proximal Newton
    if not is_linear(model) or (size <= MOST_DENSE and not keeps_whole(size, comm, asked)):
        return LBFGS(**given)
    if size > MOST_DENSE:
        # Of 200,000 × 100,000 sparse rows L-BFGS takes 9 passes in place of 14 with l2 = 1e-4, 57 in place of 89 with
        # 1e-8.  Without a penalty it may take thousands; Newton-CG is as fast on MNIST, and safer.  With several
        # outputs the history's vectors cost more than the rows.
        curved = not model.loss_function.quadratic and model.widths[-1] == 1  # type: ignore[attr-defined]
        preconditioned = l2 > 0 and not keeps_whole(size, comm, asked)
        return LBFGS(**given) if curved and preconditioned else NewtonCG(**given)
    if model.loss_function.quadratic:  # type: ignore[attr-defined]
        return Newton(**given | {"sample": 0})  # whose one step is the solution
    own = rows / comm.size
    one_pass = own * size * model.dtype.itemsize / BYTES_PER_SECOND
    hessian = own * size * size / FLOPS_PER_SECOND + size**3 / 3 / (FLOPS_PER_SECOND / 8)
    one_round = ROUND_SECONDS * math.ceil(math.log2(comm.size)) if comm.size > 1 else 0.0
    newton = NEWTON_ITERATIONS * (one_pass + hessian + one_round)
    lbfgs = LBFGS_ITERATIONS * (one_pass + one_round)
    return Newton(**given) if newton < lbfgs else LBFGS(**given)


def check_exchange(optimizer: FullBatchSolver, exchange: Exchange) -> None:
    """Raise `ConfigError` at what has no meaning where a search finds the length of steps on all rows.

    Also at float16 on one node, where nothing would be rounded: what a command may say does not depend on nodes.
    """
    if exchange.compressed:
        raise ConfigError(
            f"{called('dtype', '--wire')} {exchange.dtype} rounds gradients, from which {optimizer.name} takes"
            " differences: leave it out"
        )
    for given, name in ((exchange.factors, called("factors")), (exchange.overlap, called("overlap", "--early"))):
        if given:
            raise ConfigError(
                f"{name} is nothing for {optimizer.name}, which searches along its directions: leave it out"
            )
