"""The training loop: epochs of steps, evaluated and told to callbacks."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data import Loader, Share
from ..errors import ConfigError, DataError
from ..models import Model, Sums
from ..objective import Objective
from ..optim import FirstOrder, Momentum
from ..perf.machine import affinity, limited_blas
from .callbacks import Callback
from .evaluation import evaluate, make_loader
from .run import Result, Run

if TYPE_CHECKING:
    from ..comm import Communicator


def fit(
    model: Model,
    data: Share,
    comm: Communicator,
    *,
    test: Share | None = None,
    optimizer: FirstOrder | None = None,
    epochs: int = 5,
    global_batch_size: int = 256,
    l2: float = 0.0,
    seed: int = 0,
    allreduce: str | None = None,
    tol: float | None = None,
    callbacks: Sequence[Callback] = (),
) -> Result:
    """Train ``model`` on the rows of all ranks; collective.

    Args:
        model: built alike on every rank.
        data, test: this rank's share of the training and test rows, from `data.load`.
        comm: the ranks that train.
        optimizer: a first-order method; default momentum.
        epochs: passes over the training rows.
        global_batch_size: rows of a step, over all ranks together; a full-batch optimizer takes all rows.
        l2: strength of the penalty ½ l2 ‖w‖² over slots with decay.
        seed: of the start, the shuffling and dropout.  Unless rows were shuffled locally, the number
            of ranks changes nothing but the rounding of sums (which a long float32 training of a
            relu network amplifies: a unit that lands on the other side of zero is not rounding).
        allreduce: the algorithm that exchanges gradients, by name.
        tol: for full-batch optimizers, stop when the norm of the objective's gradient is at most ``tol``
            times that of the first step.
        callbacks: see `Callback`.

    Raises:
        ConfigError, DataError: a value that cannot work, or data that does not fit the model; on every rank.
    """
    optimizer = Momentum() if optimizer is None else optimizer
    _check(data, optimizer, epochs, global_batch_size, l2, tol)
    _check_rows(model, data, "training")
    if test is not None:
        _check_rows(model, test, "test")
    masks = comm.allgather_object(affinity())
    cpus = len(set().union(*(masks[rank] for rank in comm.node.ranks)))
    batch_size = data.rows if optimizer.full_batch else global_batch_size
    try:
        with limited_blas(comm.node.size, cpus), np.errstate(over="ignore", invalid="ignore"):  # the loss tells of both
            loader = make_loader(model, data, comm, batch_size, seed)
            test_loader = make_loader(model, test, comm) if test else None
            with comm.agreed():
                start = model.init(np.random.default_rng(seed))
            objective = Objective(model, loader, comm, l2=l2, algorithm=allreduce)
            run = Run(objective, optimizer, epochs, start, measures_norm=tol is not None)
            del start  # a copy of the parameters that nobody needs
            return _run(run, test_loader, callbacks, tol)
    finally:
        for callback in callbacks:
            callback.on_close()


def _run(run: Run, test_loader: Loader | None, callbacks: Sequence[Callback], tol: float | None) -> Result:
    """All epochs, until the tolerance is met or the loss is lost."""
    run.warm_up()
    for callback in callbacks:
        callback.on_start(run)
    result = Result(run.w)
    rounds, sent = run.comm.rounds, run.comm.bytes_sent
    first_norm = None
    while run.epoch < run.epochs and result.status == "completed" and not result.converged:
        run.sums = Sums(0.0, 0.0)
        _train_epoch(run, callbacks)
        first_norm = run.gradient_norm if first_norm is None else first_norm
        _close_epoch(run, result, test_loader, callbacks)
        if tol is not None and result.status == "completed":
            result.converged = run.gradient_norm <= tol * first_norm
    _finish(run, result, rounds, sent)
    for callback in callbacks:
        callback.on_end(run, result)
    return result


def _train_epoch(run: Run, callbacks: Sequence[Callback]) -> None:
    """All steps of one epoch; ``run.seconds`` grows by their time."""
    run.comm.barrier()
    began = time.perf_counter()
    for _ in run.steps():
        for callback in callbacks:
            callback.on_step(run)
    run.comm.barrier()
    run.seconds += run.comm.bcast_object(time.perf_counter() - began)
    run.epoch += 1


def _check(
    data: Share, optimizer: FirstOrder, epochs: int, global_batch_size: int, l2: float, tol: float | None
) -> None:
    if data.rows == 0:
        raise ConfigError("there are no rows to train on")
    if epochs < 1:
        raise ConfigError(f"epochs must be at least 1, got {epochs}")
    if global_batch_size < 1:
        raise ConfigError(f"the global batch size must be at least 1, got {global_batch_size}")
    if not (l2 >= 0 and math.isfinite(l2)):
        raise ConfigError(f"l2 must be a number from 0 up, got {l2}")
    if tol is not None and not 0 < tol < math.inf:
        raise ConfigError(f"the tolerance (tol) must be a positive number, got {tol}")
    if tol is not None and not optimizer.full_batch:
        raise ConfigError(f"a tolerance needs a full-batch optimizer such as gd, not {optimizer.name}")


def _check_rows(model: Model, share: Share, which: str) -> None:
    """Raise `DataError` if the model can tell that the rows do not fit it."""
    if hasattr(model, "check_data"):
        try:
            model.check_data(share.labels)
        except DataError as error:
            raise DataError(f"{share.name}, {which} rows: {error}") from None


def _close_epoch(run: Run, result: Result, test_loader: Loader | None, callbacks: Sequence[Callback]) -> None:
    """Sum the epoch's losses, evaluate, and tell the callbacks; every rank sees the same numbers."""
    running, weight = run.objective.mean(run._w, run.sums)
    if not math.isclose(weight, run.loader.share.rows, rel_tol=1e-9):
        raise ConfigError(
            f"the model gives {run.loader.share.rows:,} rows the weight {weight:g}; only 1 a row is supported"
        )
    record: dict[str, Any] = {"epoch": run.epoch, "iterations": run.iterations, "running_loss": running}
    if not math.isfinite(running):
        result.status, result.stop_reason = "diverged", "loss is not finite"
    if test_loader is not None:
        test = evaluate(run.objective.model, run.w, test_loader, run.comm)
        record |= {"test_loss": test.loss, "test_accuracy": test.accuracy}
        result.test_loss, result.test_accuracy = test.loss, test.accuracy
    record |= {"seconds": run.seconds, "samples_per_second": run.rows / run.seconds}
    result.history.append(record)
    for callback in callbacks:
        callback.on_epoch(run, record)


def _finish(run: Run, result: Result, rounds: int, sent: int) -> None:
    result.w = run.w
    if result.converged:
        result.stop_reason = "tolerance"
    result.epochs, result.iterations = run.epoch, run.iterations
    result.rounds = run.comm.rounds - rounds
    sent = run.comm.bytes_sent - sent
    result.bytes_moved = int(run.comm.sum([sent])[0])
    result.seconds = run.seconds
    result.samples_per_second = run.rows / result.seconds
    if result.status == "completed":
        result.train_loss = run.objective.value(run.w)
        if not math.isfinite(result.train_loss):
            result.train_loss = None
            result.status, result.stop_reason = "diverged", "loss is not finite"
