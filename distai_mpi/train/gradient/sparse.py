"""First-order steps on sparse rows that touch the columns of their rows alone, many of them in one call.

A dense step makes, sums and applies as many numbers as there are parameters.  Here each rank makes the gradient of its
rows as index-value pairs, the owners of slices sum those of all ranks, and change the parameters and the optimizer's
state at these columns alone.  What the l2 penalty takes from all parameters is kept in one factor (Bottou 2012,
"Stochastic gradient descent tricks", section 5.1: w as the product of a number and a vector).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...comm import Exchange
from ...comm.exchange.pairs import PairExchange
from ...data import Batch, StepRows
from ...models import Sums
from ...objective import Objective
from ...optim import FirstOrder
from ...optim.columns import column_step, touches_columns
from .base import most_rows

Array = Any
LEAST = 1e-4  # of the factor: smaller, or negative, it is multiplied into the vector
LONGEST = 1.0  # numbers in the pairs of a step, as a fraction of the parameters: below it pairs are shorter
# Where several ranks read each other's in memory nothing travels, and a pair is divided, merged and applied at random
# places: so many numbers, and a fraction of the parameters, are worked through in the time of a dense step.  On 2 ranks
# SGD (AdaGrad) took 1.1 (1.3) times the CPU time of dense steps with 15,360 numbers of 100,000 parameters, 0.8 (0.9) of
# 300,000, 0.6 (0.5) of 1,000,000; with 3,840 of 100,000 0.7 (0.65), with 960 of 4,000 0.66.
FEW, LONGEST_IN_MEMORY = 5000, 0.06
RUN_ROWS, MOST_RUN_ROWS = 1 << 14, 1 << 18  # rows of all ranks that one call takes, see `SparseSteps.run_rows`


class SparseSteps:
    """Steps of SGD, AdaGrad or FTRL on sparse rows; making one is collective.

    On one rank a model of one output takes all steps of a call in compiled code; else each is a few calls of it.

    Args:
        objective: its model gives gradients as pairs.
        optimizer: see `optim.columns.touches_columns`.
        entries: of a row on average, over all ranks.

    Attributes:
        run_rows: rows of all ranks that one call takes: so many that it hides a copy of all parameters at its begin.
        usable: whether the ranks share what they have to; alike on all of them.
        publishes: all ranks have all parameters after `take`.
    """

    publishes = True

    def __init__(self, objective: Objective, optimizer: FirstOrder, entries: float) -> None:
        comm, loader, size = objective.comm, objective.loader, objective.layout.size
        model: Any = objective.model
        self._objective, self._model, self._optimizer = objective, model, optimizer
        self._compiled = comm.size == 1 and model.widths[-1] == 1
        self._decaying = model.widths[0] * model.widths[-1]  # parameters under the penalty: all but biases
        x = loader.shard.dataset.x
        longest = max(comm.allgather_object(int(np.diff(x.starts).max(initial=0))))
        most = most_rows(objective) * longest + 1
        one_copy = objective.exchange.shares
        exchanged = (comm, objective.owners, model.widths[-1], most, objective.dtype, x.indices.dtype, one_copy)
        self._pairs = PairExchange(*exchanged)
        self.usable = self._pairs.usable
        of_copy = comm.topology.plan(size, objective.dtype.itemsize).parts[comm.rank]
        self._share = of_copy if one_copy else slice(0, size)  # of its copy of the parameters, for this rank to scale
        self.run_rows = int(min(max(RUN_ROWS, size / max(1.0, entries)), MOST_RUN_ROWS))

    def warm_up(self, w_next: Array, state: dict[str, Any], batch: Batch) -> None:
        """Compile what `take` needs for batches like this one, by no step at all; local."""
        none, step = batch.take(slice(0)), column_step(self._optimizer, state, self._objective.dtype)
        if self._compiled:
            self._compiled_steps(
                w_next, state, StepRows(none, np.zeros(1, np.int64), np.empty(0, np.int64)), np.empty(0)
            )
            return
        self._model.loss_and_pairs(w_next, none, *self._pairs.work)
        zero = self._objective.dtype.type(0)
        step.update(
            *self._pairs.warm_up(), zero, 0, 0, w_next[:0], tuple(a[:0] for a in step.state), zero, step.settings
        )

    def take(self, w: Array, w_next: Array, state: dict[str, Any], run: StepRows, rates: Array) -> Sums:
        """Take the steps of ``run`` from ``w``, all into ``w_next``; return the sums of this rank's rows; collective.

        ``state`` is the optimizer's, of the owned slice, and ``rates``, float64, has the learning rate of each step.
        """
        share = self._share
        w_next[share] = w[share]
        if self._compiled:
            return self._compiled_steps(w_next, state, run, rates)
        self._pairs.meet()
        factor, sums = 1.0, Sums(0.0, 0.0)
        step = column_step(self._optimizer, state, self._objective.dtype)
        for k, scale in enumerate(self._scales(run).tolist()):
            batch = run.batch.take(slice(int(run.ends[k]), int(run.ends[k + 1])))
            more, factor = self._step(w_next, batch, step, scale, float(rates[k]), factor)
            sums += more
        self._shrink(w_next, factor)
        self._pairs.meet()
        return sums

    def _step(self, w: Array, batch: Batch, step: Any, scale: float, rate: float, factor: float) -> tuple[Sums, float]:
        """One step on the parameters ``factor`` · w (biases: w), in place; the sums, and the factor afterwards."""
        objective, pairs, number = self._objective, self._pairs, self._objective.dtype.type
        sums, count = Sums(0.0, 0.0), 0
        if len(batch.y):
            sums, count = self._model.loss_and_pairs(w, batch, *pairs.work, factor)
        columns, found = pairs.reduce(count)
        settings = step.settings
        if objective.l2:
            factor *= 1.0 - rate * objective.l2
            if not factor > LEAST:
                self._shrink(w, factor)
                pairs.meet()
                factor = 1.0
            settings = (number(1.0 / factor),)
        mine, decaying = objective.mine, self._decaying - objective.mine.start
        if rate:
            step.update(
                columns, found, number(1.0 / scale), mine.start, decaying, w[mine], step.state, number(rate), settings
            )
        pairs.publish(columns, w)
        return sums, factor

    def _compiled_steps(self, w: Array, state: dict[str, Any], run: StepRows, rates: Array) -> Sums:
        """All steps on one rank."""
        objective = self._objective
        step = column_step(self._optimizer, state, objective.dtype)
        update = tuple(step) if step.state else None
        return self._model.column_steps(
            w, run.batch, run.ends, self._scales(run), rates, objective.l2, update, self._pairs.work
        )

    def _scales(self, run: StepRows) -> Array:
        """What the gradients of the steps are divided by: the weight that so many rows have on average, float64."""
        loader = self._objective.loader
        return run.rows * (loader.total_weight / loader.shard.rows)

    def _shrink(self, w: Array, factor: float) -> None:
        """Multiply this rank's share of its copy of the parameters by ``factor``, biases not."""
        if factor != 1:
            w[self._share.start : min(self._share.stop, self._decaying)] *= w.dtype.type(factor)


def make_sparse(
    objective: Objective, optimizer: FirstOrder, clip_norm: float | None, asked: Exchange
) -> SparseSteps | None:
    """Steps that touch the columns of their rows, where these are few, and nothing else is asked for; collective.

    A step of B rows makes up to B · entries pairs of an index and a value for each output; dense gradients have a value
    for each parameter.  Whichever is shorter by the entries of all ranks' rows is taken, for the whole run; where ranks
    read them in their node's memory, long ones have to be much shorter.
    """
    loader, comm = objective.loader, objective.comm
    if loader.stored is not None:  # rows come by blocks
        return None
    if not loader.sparse or objective.abilities.columns is None or not touches_columns(optimizer, objective.l2):
        return None
    if clip_norm is not None or asked.compressed or asked.overlap or objective.mesh is not None:
        return None
    if comm.size > 1 and objective.owners.replicated:
        return None
    x = loader.shard.dataset.x
    counts = comm.allgather_object((x.entries, len(x)))
    entries = sum(count for count, _ in counts) / max(1, sum(rows for _, rows in counts))
    outputs = objective.abilities.columns.widths[-1]
    pairs = entries * loader.global_batch_size * (1 + outputs)
    most = LONGEST * objective.layout.size
    if comm.size > 1 and len(comm.leaders) == 1 and objective.exchange.shares:
        most = min(most, FEW + LONGEST_IN_MEMORY * objective.layout.size)
    if pairs >= most:
        return None
    steps = SparseSteps(objective, optimizer, entries)
    return steps if steps.usable else None
