"""Minimisation of a function of the user's own, of which every rank computes a part."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..comm import Exchange
from ..data import Batch, Dataset, from_local
from ..errors import ConfigError
from ..messages import tell
from ..models import Sums
from ..optim import LBFGS
from ..params import Layout
from ..settings import keywords
from .callbacks import Callback
from .checkpoint import Checkpoint
from .checks import check_alike
from .early_stopping import EarlyStopping
from .loop import MOVED, fit
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
    exchange: Exchange | None = None,
    callbacks: Sequence[Callback | EarlyStopping | Checkpoint | Trace] = (),
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
        exchange, callbacks: see `fit`.

    Returns:
        As `fit`; ``train_loss`` is the objective.  Where that or its gradient is not finite, points nearer by are
        tried; if all are lost, a warning names the iteration, ``status`` is ``diverged``, ``train_loss`` None and ``w``
        the point before.

    Raises:
        ConfigError: the start differs between ranks or has a wrong shape or dtype, or ``function`` does not keep its
            promise at the start, where it is called once more to see; on every rank.
    """
    solver = LBFGS() if solver is None else solver
    check_alike(comm, solver=solver)
    with comm.agreed():
        if not isinstance(solver, LBFGS):
            raise ConfigError(f"minimize takes optim.LBFGS(), which needs gradients alone, and not {solver!r}")
        model = _FunctionModel(function, w, 1.0 / comm.size)
    _check_alike(comm, model)
    with comm.agreed():
        model.check()
    row = Dataset(np.zeros((1, 1)), np.zeros(1), np.full(1, model.weight))
    result = fit(
        model,
        from_local(row, comm),
        comm,
        optimizer=solver,
        l2=l2,
        exchange=exchange,
        callbacks=callbacks,
    )
    if result.status == "diverged" and comm.rank == 0:
        tell(f"iteration {result.iterations}: {result.stop_reason}; w is what it was before", warning=True)
    return result


class _FunctionModel:
    """A function in the place of a model; each rank has one row, which stands for its part."""

    def __init__(self, function: Function, start: Array, weight: float) -> None:
        if not callable(function):
            raise ConfigError(f"the objective must be a function of (w, grad), not {function!r}")
        if not isinstance(start, np.ndarray) or start.ndim != 1 or start.dtype not in (np.float32, np.float64):
            found = f"{start.dtype} {start.shape}" if isinstance(start, np.ndarray) else type(start).__name__
            raise ConfigError(f"the start w must be an array of float32 or float64 of one dimension, not {found}")
        if not start.size:
            raise ConfigError("the start w is empty: there is nothing to minimise")
        self.function, self.start, self.dtype, self.weight = function, start, start.dtype, weight
        self.layout = Layout.of([("w", start.shape, True)])
        self._scratch: Array | None = None

    def init(self, rng: np.random.Generator) -> Array:
        """The start."""
        return self.start

    def loss_and_grad(self, w: Array, batch: Batch, grad: Array) -> Sums:
        """This rank's part."""
        return Sums(self._value(self.function(w, grad)), self.weight)

    def loss(self, w: Array, batch: Batch) -> Sums:
        """The value alone."""
        if self._scratch is None:
            self._scratch = np.empty_like(self.start)
        return self.loss_and_grad(w, batch, self._scratch)

    def predict(self, w: Array, x: Array) -> Array:
        """Nothing can be predicted."""
        raise ConfigError("a function predicts nothing")

    can_predict = False
    needs_warm_up = False  # `check` has called the function

    def check(self) -> None:
        """Raise `ConfigError` unless the function does what it has to at the start; local."""
        grad, w = np.full_like(self.start, np.nan), self.start.view()
        w.flags.writeable = False
        value = self._value(self.function(w, grad))
        if not math.isfinite(value):
            raise ConfigError(f"the objective is {value} at the start: begin where it is finite")
        wrong = np.count_nonzero(~np.isfinite(grad))
        if wrong:
            raise ConfigError(
                f"the objective left {wrong:,} of {grad.size:,} elements of grad unset or not finite: it must"
                " overwrite all of them in place (grad[:] = ...)"
            )

    def _value(self, value: Any) -> float:
        number = isinstance(value, float | int | np.floating | np.integer) and not isinstance(value, bool)
        if not (number or (isinstance(value, np.ndarray) and value.shape == () and value.dtype.kind == "f")):
            shape = f" of shape {value.shape}" if isinstance(value, np.ndarray) else ""
            raise ConfigError(
                f"the objective must return one float, its value, and not {type(value).__name__}{shape};"
                " the gradient goes into grad"
            )
        return float(value)


def _check_alike(comm: Communicator, model: _FunctionModel) -> None:
    start = model.start
    told = (start.size, start.dtype.name, zlib.crc32(np.ascontiguousarray(start).data.cast("B")))
    others = comm.allgather_object(told)
    unlike = [rank for rank, other in enumerate(others) if other != others[0]]
    if unlike:
        raise ConfigError(f"the start w differs between ranks 0 and {unlike[0]}: give all ranks the same")
