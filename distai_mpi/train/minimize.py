"""Minimisation of a function of the user's own, of which every rank computes a part."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend import HOST
from ..comm import Exchange
from ..errors import ConfigError
from ..messages import tell
from ..models import Sums
from ..objective import DistributedSum
from ..optim import LBFGS
from ..options import OPTIONS
from ..params import Layout
from ..settings import fixed, keywords
from .callbacks import Callback
from .checkpoint import Checkpoint
from .checks import check_alike
from .full_batch import SolverRun, check_exchange, check_memory, keeps_whole
from .full_batch.exchanged import ExchangedProblem, ReplicatedProblem, ShardedProblem
from .loop import MOVED, Watching, drive
from .run import Result
from .tracing import Trace

if TYPE_CHECKING:
    from ..comm import Communicator

Array = Any
Function = Callable[[Array, Array], float]


@keywords(MOVED | dict.fromkeys(("optimizer", "max_iter", "tol"), "give solver=LBFGS(max_iter=..., tol=...)"))
def minimize(
    function: Function,
    w: Array,
    comm: Communicator,
    solver: LBFGS | None = None,
    *,
    l2: float = 0.0,
    l1: float = 0.0,
    exchange: Exchange | None = None,
    callbacks: Sequence[Callback | Checkpoint | Trace] = (),
) -> Result:
    """Minimise the sum over the ranks of ``function``, from ``w`` on; collective.

    The parameters, the history and all sums are shared out over the ranks as in `fit`: a rank needs room for ``w``
    (of which ranks of one node share two copies under ``shared``), for its gradient, and for its slice of the history.

    Args:
        function: ``function(w, grad)`` returns this rank's part of the objective at ``w``, a float, and overwrites
            ``grad`` with the gradient of that part; both have the shape (n,) and dtype of the start; ``w`` is
            read-only.
        w: start, shape (n,), float32 or float64, the same on every rank; stays as it is.
        comm: the ranks.
        solver: the method, with its limit of iterations and its tolerance; default ``LBFGS()``.
        l2: adds ½ l2 ‖w‖² to the objective.
        l1: adds l1 ‖w‖₁ to it: many parameters become 0.
        exchange, callbacks: see `fit`.

    Returns:
        As `fit`; ``train_loss`` is the objective.  Where that or its gradient is not finite, points nearer by are
        tried; if all are lost, a warning names the iteration, ``status`` is ``diverged``, ``train_loss`` None and ``w``
        the point before.

    Raises:
        ConfigError: the start differs between ranks or has a wrong shape or dtype, or ``function`` does not keep its
            promise at the start, where it is called once more to see; on every rank.
    """
    solver, exchange = LBFGS() if solver is None else solver, exchange or Exchange()
    check_alike(comm, solver=solver, l2=l2, l1=l1, exchange=exchange)
    watching = Watching.of(callbacks, comm)
    with comm.agreed():
        if not isinstance(solver, LBFGS):
            raise ConfigError(f"minimize takes optim.LBFGS(), which needs gradients alone, and not {solver!r}")
        if watching.early is not None:
            raise ConfigError("EarlyStopping is nothing for minimize: a function has no validation rows")
        OPTIONS["l2"].check("l2", l2)
        OPTIONS["l1"].check("l1", l1)
        check_exchange(solver, exchange)
        _check_start(function, w)
    check_alike(comm, **{"the start w": (w.size, w.dtype.name, zlib.crc32(np.ascontiguousarray(w).data))})
    with comm.agreed():
        _check_function(function, w)

    def make(threads: int) -> tuple[SolverRun, dict[str, Any]]:
        whole = keeps_whole(w.size, comm, exchange)
        layout = Layout.of([("w", w.shape, True)])
        objective = DistributedSum(layout, w.dtype, comm, l2=l2, l1=l1, asked=exchange, whole=whole)
        check_memory(objective, solver.memory)
        problem = (ReplicatedFunction if whole else ShardedFunction)(objective, w)
        problem.function = function
        run = SolverRun(objective, problem, solver)
        run.fixed = {"l2": l2, "l1": l1, "optimizer": solver.name, **fixed(solver)}
        return run, {}

    result = drive(make, comm, watching)
    if result.status == "diverged" and comm.rank == 0:
        tell(f"iteration {result.iterations}: {result.stop_reason}; w is what it was before", warning=True)
    return result


class FunctionProblem(ExchangedProblem):
    """The sum over the ranks of ``function``, and the penalty, as a `Problem`."""

    function: Function

    def _sums(self, w: Array) -> Sums:
        """See `ExchangedProblem`; all ranks together have the weight 1."""
        value = _number(self.function(HOST.read_only(w), self._grad_all))
        return Sums(value, float(self.objective.comm.rank == 0))


class ShardedFunction(FunctionProblem, ShardedProblem):
    """Of many parameters."""


class ReplicatedFunction(FunctionProblem, ReplicatedProblem):
    """Of few parameters."""


def _check_start(function: Function, start: Array) -> None:
    """Raise `ConfigError` at what is no function or no start; local."""
    if not callable(function):
        raise ConfigError(f"the objective must be a function of (w, grad), not {function!r}")
    if not isinstance(start, np.ndarray) or start.ndim != 1 or start.dtype not in (np.float32, np.float64):
        found = f"{start.dtype} {start.shape}" if isinstance(start, np.ndarray) else type(start).__name__
        raise ConfigError(f"the start w must be an array of float32 or float64 of one dimension, not {found}")
    if not start.size:
        raise ConfigError("the start w is empty: there is nothing to minimise")


def _check_function(function: Function, start: Array) -> None:
    """Raise `ConfigError` unless the function does what it has to at the start; local."""
    grad = np.full_like(start, np.nan)
    value = _number(function(HOST.read_only(start), grad))
    if not math.isfinite(value):
        raise ConfigError(f"the objective is {value} at the start: begin where it is finite")
    wrong = np.count_nonzero(~np.isfinite(grad))
    if wrong:
        raise ConfigError(
            f"the objective left {wrong:,} of {grad.size:,} elements of grad unset or not finite: it must"
            " overwrite all of them in place (grad[:] = ...)"
        )


def _number(value: Any) -> float:
    """What the function returned, as a float."""
    number = isinstance(value, float | int | np.floating | np.integer) and not isinstance(value, bool)
    if not (number or (isinstance(value, np.ndarray) and value.shape == () and value.dtype.kind == "f")):
        shape = f" of shape {value.shape}" if isinstance(value, np.ndarray) else ""
        raise ConfigError(
            f"the objective must return one float, its value, and not {type(value).__name__}{shape};"
            " the gradient goes into grad"
        )
    return float(value)
