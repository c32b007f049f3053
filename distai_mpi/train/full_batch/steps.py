"""A full-batch solver in the place of the steps of a run: an iteration a step, on the rows of all ranks."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from ...backend import HOST
from ...data import Batch
from ...errors import ConfigError
from ...models import Sums
from ...objective import Objective
from ...optim import LBFGS, FullBatchSolver, Newton, NewtonCG
from ...perf.machine import memory_left
from ...settings import called
from ..steps import Steps
from .abilities import is_linear
from .exchanged import ReplicatedProblem, ShardedProblem
from .problem import RowsProblem
from .sample import MOST_DENSE, compile_passes, spread_of, warm_up
from .units import in_other_units

Array = Any


class FullBatchSteps(Steps):
    """Binds model, rows and exchange as a `Problem`, and steps the solver on it.

    Args:
        objective, start: see `Steps`; ``objective.whole`` says how vectors lie.
        solver: the method.

    Attributes:
        problem: the objective, in units that suit the method.
        state: the solver's.
        prepared: seconds that were spent on the units, before the first step.
    """

    searches = measures = True

    def __init__(self, objective: Objective, solver: FullBatchSolver, start: Array) -> None:
        _check(objective, solver)
        columns = units = None
        if is_linear(objective.model):
            compile_passes(objective)
            objective.comm.barrier()  # not to count what ranks wait for each other
        began = time.perf_counter()
        if is_linear(objective.model):
            columns = spread_of(objective)
            objective, units = in_other_units(objective, columns)
            if units is not None:
                columns = spread_of(objective)
                if start.any():  # zeros are the best constant model in these units
                    start = units.inward(objective.model, start)
        super().__init__(objective, start, None)
        kind = ReplicatedProblem if objective.whole else ShardedProblem
        kept = _keeps_rows(objective, solver)
        self.problem: RowsProblem = kind(objective, kept, self._w, self._w_next, columns, units)
        if isinstance(self.problem, ShardedProblem) and self.problem.is_linear:
            self.problem.find_diagonal()
        self.prepared = time.perf_counter() - began
        self.state = solver.start(self.problem)

    @property
    def w(self) -> Array:
        """See `Steps`; in the units of the rows."""
        return HOST.read_only(self.problem.outward)

    @property
    def inside(self) -> tuple[Objective, Array]:
        """See `Steps`: in the units of the method, the parameters ``w`` as they are rounded in those of the rows."""
        return self.objective, HOST.read_only(self.problem.rounded.astype(self._w.dtype, copy=False))

    @property
    def owned(self) -> dict[str, Any]:
        """See `Steps`."""
        return {"w": self.problem.w, **self.state.arrays}

    @property
    def private(self) -> dict[str, Any]:
        """See `Steps`."""
        return {}

    @property
    def value(self) -> float | None:
        """See `Steps`."""
        return None if self.state.at is None else self.state.at.value

    @property
    def counts(self) -> tuple[int, int]:  # type: ignore[override]
        """See `Steps`."""
        return self.problem.counts["evaluations"], self.problem.counts["products"]

    @property
    def first_norm(self) -> float | None:
        """See `Steps`."""
        return self.state.progress.first_norm

    @property
    def relative_gap(self) -> float | None:
        """See `Steps`."""
        return self.state.progress.gap

    @property
    def met(self) -> bool | None:  # type: ignore[override]
        """See `Steps`."""
        return self.state.met

    @property
    def collinear(self) -> list[int] | None:  # type: ignore[override]
        """See `Steps`."""
        return self.problem.collinear

    def step(self, rows: int, weight: float, batches: Iterable[Batch], factor: float) -> Sums:
        """See `Steps.step`; takes all rows in their own order, and no ``batches``."""
        state = self.state
        if state.at is None:
            state.init()
        assert state.at is not None
        before = state.at.sums
        state.step()
        self._w, self._w_next = self.problem.point, self.problem.trial
        self.gradient_norm, self.stop_reason, self.failed = state.gradient_norm, state.stop_reason, state.failed
        return before

    def close_epoch(self) -> None:
        """See `Steps`: ``w`` is up to date after every step."""

    def restored(self) -> None:
        """See `Steps`."""
        super().restored()
        self.problem.restored()
        self.state.at, self.state.resumed = None, True

    def warm_up(self, batch: Batch) -> None:
        """See `Steps`."""
        self.problem.warm_up(batch)
        self.state.warm_up()
        if self.state.brings_hessian:
            self.problem.warm_up_hessian(batch)
        elif self.problem.is_linear:
            warm_up(self.objective)

    def settle(self, batch: Batch) -> None:
        """See `Steps`."""
        self.problem.settle()


def _keeps_rows(objective: Objective, solver: FullBatchSolver) -> bool:
    """Whether linearizations of the rows serve: for products or the Hessian, or for values along lines."""
    return not isinstance(solver, LBFGS) or objective.abilities.margins


def _check(objective: Objective, solver: FullBatchSolver) -> None:
    """Raise `ConfigError` on all ranks where ``solver`` cannot minimise ``objective``; collective."""
    model, abilities = objective.model, objective.abilities
    if objective.loader.device is not HOST:
        raise ConfigError(f"{called('optimizer')} {solver.name} is for the CPU: choose {called('device')} cpu")
    if isinstance(solver, LBFGS):
        _check_memory(objective, solver.memory)
    if isinstance(solver, NewtonCG) and not (abilities.curvature or abilities.hessian):
        needs = "needs a model with Hessian products (curvature_at); lbfgs takes every model"
        raise ConfigError(f"{called('optimizer')} newton-cg {needs}")
    if not isinstance(solver, Newton):
        return
    limit = None
    if not is_linear(model):
        limit = "linear models, logistic, softmax and others without hidden layers: newton-cg takes nets too"
    elif model.layout.size > MOST_DENSE:
        limit = f"up to {MOST_DENSE:,} parameters, not {model.layout.size:,}: newton-cg takes more"
    elif not objective.whole:
        exchange = called("algorithm", "--allreduce")
        limit = f"{exchange} auto or native, not {objective.exchange.name}: newton-cg takes any"
    if limit is not None:
        raise ConfigError(f"{called('optimizer')} newton is for {limit}")


def _check_memory(objective: Objective, memory: int) -> None:
    """Raise `ConfigError` on all ranks where a node has too little room for the history; collective."""
    comm, owned = objective.comm, objective.mine.stop - objective.mine.start
    needed = 2 * (memory + 1) * owned * objective.model.dtype.itemsize * comm.node.size
    left = memory_left()
    with comm.agreed():
        if needed > left:
            raise ConfigError(
                f"{called('memory')} {memory}: the pairs take {needed / 1e9:.3g} GB on a node, and {left / 1e9:.3g} are"
                " left; lower it"
            )
