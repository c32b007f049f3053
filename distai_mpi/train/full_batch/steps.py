"""A full-batch solver in the place of the steps of a run: an iteration an epoch, on the rows of all ranks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ...backend import HOST
from ...errors import ConfigError
from ...objective import DistributedSum, Objective
from ...optim import LBFGS, Constant, FullBatchSolver, Newton, NewtonCG
from ...perf.machine import memory_left
from ...settings import called
from ...trace import OTHER
from ..run import Result, Run
from .exchanged import ExchangedProblem
from .problem import ReplicatedRows, ShardedRows
from .sample import MOST_DENSE, compile_passes, is_linear, spread_of
from .units import in_other_units

Array = Any


class SolverRun(Run):
    """A run of a full-batch solver: an epoch is an iteration on the whole objective.

    Args:
        objective: what the user minimises.
        problem: what the solver does, which may be the same in other units; it keeps the parameters.
        solver: the method.

    Attributes:
        state: the solver's.
    """

    searches, fuses, steps_per_epoch = True, False, 1

    def __init__(self, objective: DistributedSum, problem: ExchangedProblem, solver: FullBatchSolver) -> None:
        super().__init__(objective, None, solver, solver.max_iter, Constant())
        self.problem, self.state = problem, solver.start(problem)

    @property
    def w(self) -> Array:
        """See `Run`; in the units of the rows."""
        return HOST.read_only(self.problem.outward)

    @property
    def owned(self) -> dict[str, Any]:
        """See `Run`."""
        return {"w": self.problem.w, **self.state.arrays}

    @property
    def met(self) -> bool | None:
        """See `Run`."""
        return None if self.tol is None else bool(self.state.met)

    def warm_up(self) -> None:
        """See `Run`."""
        self.state.warm_up()
        self.problem.warm_up(self.state.brings_hessian)
        self.problem.settle()

    def steps(self) -> Iterator[None]:
        """Make an iteration."""
        state = self.state
        self._begin_step()
        if state.at is None:
            state.init()
        sums = state.at.sums
        state.step()
        self.gradient_norm, self.stop_reason, self.failed = state.gradient_norm, state.stop_reason, state.failed
        self.first_norm = state.progress.first_norm
        self._count(self.problem.terms, sums, 1)
        yield
        self.objective.mark(OTHER)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """See `Run.timed`: iterations are exchanges that all ranks wait for, and each takes its own time."""
        if not self.epoch:
            self._meet()
        self._began = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - self._began
        self._began = None

    def epoch_loss(self) -> float:
        """See `Run`: after the iteration."""
        return self.state.at.value

    def figures(self) -> dict[str, Any]:
        """See `Run`."""
        return {"gradient_norm": self.gradient_norm, "relative_gap": self.state.progress.gap, **self.problem.counts}

    def restored(self) -> None:
        """See `Run`."""
        self.problem.restored()
        self.state.at, self.state.resumed = None, True

    def final_loss(self) -> float:
        """See `Run`."""
        known = self.state.at is not None and self.problem.rounding() is None
        return self.state.at.value if known else self.problem.value()

    def without_optimum(self) -> str | None:
        """See `Run`."""
        return self.problem.without_optimum()

    def finish(self, result: Result) -> None:
        """See `Run`: what was counted, and rank 0's times for the ranks' own."""
        names = ("seconds", "samples_per_second")
        times = [{name: record[name] for name in names} for record in self.history]
        times, self.seconds = self.comm.bcast_object((times, self.seconds))
        for record, figures in zip(self.history, times, strict=True):
            record |= figures
        result.evaluations, result.products = self.problem.counts["evaluations"], self.problem.counts["products"]
        if result.best_epoch in (None, self.epoch):
            result.gradient_norm, result.relative_gap = self.gradient_norm, self.state.progress.gap
        else:  # parameters of an earlier one are the result: the tolerance was met at another iterate
            result.converged = None
        result.collinear = self.problem.collinear


def bind(objective: Objective, solver: FullBatchSolver, start: Array) -> SolverRun:
    """A run of ``solver`` on ``objective``, in units that suit it; collective.

    Raises:
        ConfigError: the solver cannot minimise the objective; on every rank.
    """
    _check(objective, solver)
    linear, columns, units = is_linear(objective.model), None, None
    if linear:
        compile_passes(objective)
        objective.comm.barrier()  # not to count what ranks wait for each other
    began, outer = time.perf_counter(), objective
    if linear:
        columns = spread_of(objective)
        objective, units = in_other_units(objective, columns)
        if units is not None:
            columns = spread_of(objective)
            if start.any():  # zeros are the best constant model in these units
                start = units.inward(objective.model, start)
    objective.exchange_touched()
    kind = ReplicatedRows if objective.whole else ShardedRows
    problem = kind(objective, start, _keeps_rows(objective, solver), columns, units)
    if isinstance(problem, ShardedRows) and linear:
        problem.find_diagonal()
    run = SolverRun(outer, problem, solver)
    run.seconds = time.perf_counter() - began
    return run


def _keeps_rows(objective: Objective, solver: FullBatchSolver) -> bool:
    """Whether linearizations of the rows serve: for products or the Hessian, or for values along lines."""
    return not isinstance(solver, LBFGS) or objective.abilities.margins


def _check(objective: Objective, solver: FullBatchSolver) -> None:
    """Raise `ConfigError` on all ranks where ``solver`` cannot minimise ``objective``; collective."""
    model, abilities = objective.model, objective.abilities
    if objective.loader.device is not HOST:
        raise ConfigError(f"{called('optimizer')} {solver.name} is for the CPU: choose {called('device')} cpu")
    if isinstance(solver, LBFGS):
        check_memory(objective, solver.memory)
    if isinstance(solver, NewtonCG) and not (abilities.curvature or abilities.hessian):
        needs = "needs a model with Hessian products (curvature_at); lbfgs takes every model"
        raise ConfigError(f"{called('optimizer')} newton-cg {needs}")
    if isinstance(solver, NewtonCG) and objective.l1 and not is_linear(model):
        needs = f"with {called('l1')} is for linear models; lbfgs takes every model"
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


def check_memory(objective: DistributedSum, memory: int) -> None:
    """Raise `ConfigError` on all ranks where a node has too little room for the history; collective."""
    comm, owned = objective.everyone, objective.mine.stop - objective.mine.start
    needed = 2 * (memory + 1) * owned * objective.dtype.itemsize * comm.node.size
    left, name = memory_left(), called("memory", "--history")
    with comm.agreed():
        if needed > left:
            raise ConfigError(
                f"{name} {memory}: the pairs take {needed / 1e9:.3g} GB on a node, and {left / 1e9:.3g} are"
                " left; lower it"
            )
