"""The training loop: epochs of steps, evaluated and told to callbacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..backend import Device, as_host
from ..comm import Exchange
from ..data import Loader, ShardedDataset
from ..errors import ConfigError
from ..files import check_writable
from ..messages import tell
from ..models import Abilities, Model, Sums
from ..optim import Auto, FullBatchSolver, Momentum
from ..perf.machine import limited_blas, node_cpus, peak_memory
from ..settings import keywords
from ..trace import CHECKPOINT, EVALUATE, during
from .balance import Balance, Balancer
from .callbacks import Callback
from .checkpoint import Checkpoint, Saver, saving
from .checks import (
    agree_on_device,
    check_alike,
    check_l1,
    check_metric,
    check_range,
    check_rows,
    check_settings,
    check_start,
)
from .early_stopping import EarlyStopping
from .evaluation import evaluate, make_loader
from .full_batch import choose
from .parts import alike, groups
from .run import Optimizer, Result, Run
from .stages import pipeline_figures
from .state import Saved, TrainState, restore
from .tracing import Trace, Tracer, tracing

if TYPE_CHECKING:
    from ..comm import Communicator, Mesh

EPOCHS, BATCH_SIZE = 5, 256  # unless somebody says otherwise
MOVED = {  # where keywords of earlier versions went
    "schedule": "give it to the optimizer, as in optim.SGD(schedule=...)",
    "clip_norm": "give it to the optimizer, as in optim.SGD(clip_norm=...)",
    "tol": "give it to the optimizer, as in optim.LBFGS(tol=...)",
    "min_decrease": "give it to the optimizer, as in optim.LBFGS(min_decrease=...)",
    "max_iter": "give it to the optimizer, as in optim.LBFGS(max_iter=...)",
    "valid": "give callbacks=[EarlyStopping(valid)]",
    "metric": "give callbacks=[EarlyStopping(valid, metric=...)]",
    "patience": "give callbacks=[EarlyStopping(valid, patience=...)]",
    "checkpoint": "give callbacks=[Checkpoint(...)]",
    "trace": "give callbacks=[Trace(path)]",
    "allreduce": "give exchange=Exchange(algorithm=...)",
    "wire": "give exchange=Exchange(dtype=...)",
    "early": "give exchange=Exchange(overlap=...)",
    "factors": "give exchange=Exchange(factors=...)",
    "watch": "give it to the communicator, as in Communicator(comm, watch=...)",
    "state": "give start=state",
}


@keywords(MOVED)
def fit(
    model: Model,
    data: ShardedDataset,
    comm: Communicator | Mesh,
    *,
    optimizer: Optimizer | Auto | None = None,
    epochs: int | None = None,
    global_batch_size: int | None = None,
    batch_size: int | None = None,
    l2: float = 0.0,
    l1: float = 0.0,
    seed: int = 0,
    test: ShardedDataset | None = None,
    device: str | Device = "cpu",
    exchange: Exchange | None = None,
    start: TrainState | Any = None,
    callbacks: Sequence[Callback | EarlyStopping | Checkpoint | Trace | Balance] = (),
) -> Result:
    """Train ``model`` on the rows of all ranks; collective.

    Args:
        model: built alike on every rank.
        data: this rank's shard of the training rows, from `data.load`.
        comm: the ranks that train.  A `Mesh` of them splits the model: then ``data`` and ``test`` are loaded with its
            data group, and `Result.params` are those of this rank's part, see `whole_params`.
        optimizer: a method of `optim`: of first order (default momentum), `LocalSGD`, or one that sees all rows in
            every iteration and searches along directions.
        epochs: passes over the rows; default 5.  Methods that search along directions have ``max_iter`` instead.
        global_batch_size: rows of a step, over all ranks together; default 256.  A full-batch optimizer takes all rows.
        batch_size: rows of a step on each rank, in place of ``global_batch_size``.
        l2: strength of the penalty ½ l2 ‖w‖² over slots with decay.
        l1: strength of the penalty l1 ‖w‖₁ over them, which makes many of them 0; of `optim.LBFGS`, `NewtonCG` (linear
            models) and `Auto`.  With ``l2`` it is the elastic net.
        seed: of the start, the shuffling and dropout.  Unless rows were shuffled locally, the number
            of ranks changes nothing but the rounding of sums (which a long float32 training of a
            relu network amplifies: a unit that lands on the other side of zero is not rounding).
            `LocalSGD` depends on the number of ranks.
        test: this rank's shard of the test rows.
        device: ``cpu``, ``gpu`` (one for each rank, see `backend.choose`), ``auto``, or a device of one's own.  On a
            GPU live parameters, gradient and the optimizer's state; batches are copied to it, and
            gradients travel through host memory.
        exchange: how gradients travel; default: as the communicator exchanges vectors.
        start: what training begins with: parameters, shape (layout.size,), the same on every rank, or the `TrainState`
            of a run of the same model, rows and methods, which this one goes on with, on any ranks; None: the
            model's own parameters.  A checkpoint that is resumed comes first.
        callbacks: what watches the run, see `Callback`; among them `EarlyStopping`, `Checkpoint` (which also resumes
            it), `Trace` and `Balance`.

    Rows with weights: a step divides the sum of its weighted gradients by the weight that a batch of its length
    has on average, so that steps are unbiased and need no message for it.

    Raises:
        ConfigError, DataError: a value that cannot work, or data that does not fit the model; on every rank.
    """
    optimizer = Momentum() if optimizer is None else optimizer
    exchange = exchange or Exchange()
    ranks, comm, sharing = comm, *groups(comm)
    watching = Watching.of(callbacks, comm)
    early = watching.early
    check_alike(
        comm,
        optimizer=optimizer,
        epochs=epochs,
        global_batch_size=global_batch_size,
        batch_size=batch_size,
        l2=l2,
        l1=l1,
        seed=seed,
        exchange=exchange,
        data=data.rows,
        valid=None if early is None else early.valid.rows,
        test=None if test is None else test.rows,
    )
    if sharing is not comm:  # each data group has its own shards, which have to be cut alike
        sets = {"training": data, "test": test, "validation": None if early is None else early.valid}
        for which, shard in sets.items():
            if shard is not None:
                check_alike(comm, **{f"{which} rows of the ranks": (shard.counts, repr(shard.partition))})
    if isinstance(optimizer, Auto):
        optimizer = choose(optimizer, model, data.rows, sharing, exchange, l1, l2)
    check_settings(data, optimizer, epochs, global_batch_size, batch_size, l2, seed)
    check_l1(l1, optimizer)
    saved = start.saved if isinstance(start, TrainState) else None
    parameters = start.start if isinstance(start, TrainState) else start
    check_start(parameters, model, comm)
    valid = None if early is None else early.valid
    for shard, which in ((data, "training"), (valid, "validation"), (test, "test")):
        if shard is not None:
            check_rows(model, shard, which)
            check_range(model, shard, which, sharing)
    if early is not None:
        check_metric(model, early.valid, early.metric)
    chosen = agree_on_device(device, model, comm)
    rows = data.rows if optimizer.full_batch else global_batch_size or (batch_size or 0) * sharing.size or BATCH_SIZE
    epochs = optimizer.max_iter if isinstance(optimizer, FullBatchSolver) else epochs or EPOCHS

    def make(threads: int) -> tuple[Run, dict[str, Loader]]:
        if (threaded := Abilities.of(model).threads) is not None:
            threaded.limit_threads(threads)
        sets = {"valid": valid, "test": test}.items()
        watched = {name: make_loader(model, shard, sharing, device=chosen) for name, shard in sets if shard is not None}
        new = TrainState(model, optimizer, epochs, rows, l2, seed, chosen, exchange, early, saved, l1, parameters)
        return new.bind(ranks, data), watched

    return drive(make, comm, watching, saved)


class Watching(NamedTuple):
    """The callbacks of a run, of which it has at most one of each kind that comes with the package."""

    early: EarlyStopping | None
    checkpoint: Checkpoint | None
    trace: Trace | None
    balance: Balance | None
    others: list[Callback]

    @classmethod
    def of(cls, callbacks: Sequence[Any], comm: Communicator) -> Watching:
        """``callbacks``, refused where they cannot be; collective."""
        kinds = (EarlyStopping, Checkpoint, Trace, Balance)
        found: list[Any] = [[each for each in callbacks if isinstance(each, kind)] for kind in kinds]
        for kind, own in zip(kinds, found, strict=True):
            if len(own) > 1:
                raise ConfigError(f"callbacks: {len(own)} of {kind.__name__}, of which a run takes one")
        early, checkpoint, trace, balance = (own[0] if own else None for own in found)
        check_alike(comm, early_stopping=early, checkpoint=checkpoint, trace=trace, balance=balance)
        others = [each for each in callbacks if not isinstance(each, kinds)]
        for each in others:
            if isinstance(each, type) or not hasattr(each, "on_step"):
                raise ConfigError(f"callbacks must be objects such as Checkpoint('folder') or a Callback, got {each!r}")
        if trace is not None:
            with comm.agreed():
                if comm.rank == 0:
                    check_writable(trace.path)
        return cls(early, checkpoint, trace, balance, others)


def drive(
    make: Callable[[int], tuple[Run, dict[str, Loader]]],
    comm: Communicator,
    watching: Watching,
    saved: Saved | None = None,
) -> Result:
    """The run, and rows to evaluate by name, that ``make`` gives for so many threads of BLAS: to its end; collective.

    See `fit` for the other arguments.
    """
    try:
        with (
            limited_blas(comm.node.size, node_cpus(comm)) as threads,
            np.errstate(over="ignore", invalid="ignore"),  # the loss tells of both
        ):
            run, watched = make(threads)
            balancer = Balancer(watching.balance, run)
            with (
                saving(watching.checkpoint, run) as saver,
                tracing(None if watching.trace is None else watching.trace.path, run) as tracer,
                comm.watched(lambda: run.iterations),
            ):
                return _run(run, watched, watching.others, saver, tracer, balancer, saved)
    finally:
        for callback in watching.others:
            callback.on_close()


def _run(
    run: Run,
    watched: dict[str, Loader],
    callbacks: Sequence[Callback],
    saver: Saver | None,
    tracer: Tracer,
    balancer: Balancer,
    saved: Saved | None,
) -> Result:
    """All epochs, until the tolerance is met, nothing improves, the loss is lost, or a signal comes."""
    run.warm_up()
    resumed = saver is not None and saver.start()
    if saved is not None and not resumed:
        restore(run, saved)
        resumed = True
    for callback in callbacks:
        callback.on_start(run)
    tracer.start()
    balancer.start()
    if not resumed:
        run.count_from()
    result = Result(run.w, history=run.history, stop_reason="iterations" if run.searches else "epochs")
    done = run.epoch > 0 and run.epoch_steps == 0 and _ends(run, result)
    while run.epoch < run.epochs and not done:
        if _train_epoch(run, callbacks, saver, balancer):
            break
        record = _close_epoch(run, watched)
        done = _ends(run, result)
        for callback in callbacks:
            callback.on_epoch(run, record)
        if saver is None:
            continue
        with during(run.comm.recorder, CHECKPOINT):
            if result.status == "diverged":
                saver.drain()
            elif saver.after_epoch(last=done or run.epoch >= run.epochs):
                break
    if saver is not None and saver.ending is not None:
        result.status, result.stop_reason = saver.ending
    result.rebalanced = balancer.stop()
    _finish(run, result, watched)
    result.time = tracer.stop()
    for callback in callbacks:
        callback.on_end(run, result)
    tracer.write(result)
    return result


def _train_epoch(run: Run, callbacks: Sequence[Callback], saver: Saver | None, balancer: Balancer) -> bool:
    """The steps left of an epoch; return whether a signal has ended the run before its end."""
    if balancer.before_epoch() and saver is not None:
        saver.rows_moved()
    with run.timed():
        for _ in run.steps():
            balancer.after_step()
            for callback in callbacks:
                callback.on_step(run)
            if saver is not None and saver.after_step():
                return True
    run.epoch, run.epoch_steps = run.epoch + 1, 0
    return False


def _close_epoch(run: Run, watched: dict[str, Loader]) -> dict[str, Any]:
    """Sum the epoch's losses and evaluate; the record of the epoch.

    It is the same on every rank, but for the times of full-batch solvers, which become rank 0's at the end.
    """
    running = run.epoch_loss()
    run.sums = Sums(0.0, 0.0)
    record: dict[str, Any] = {"epoch": run.epoch, "iterations": run.iterations, "running_loss": running}
    for name, loader in watched.items():
        asked = name == "valid" and run.stopping is not None and run.stopping.metric not in ("loss", "accuracy")
        with during(run.comm.recorder, EVALUATE), run.uncounted():
            found = alike(run, evaluate(run.objective.model, run.w, loader, run.objective.comm, every_metric=asked))
        metrics = {"loss": found.loss, "accuracy": found.accuracy, **found.metrics}
        record |= {f"{name}_{key}": value for key, value in metrics.items()}
    record |= {"rounds": run.rounds, "seconds": run.seconds, "samples_per_second": run.rate_of_epoch}
    record |= run.figures()
    run.history.append(record)
    if math.isfinite(running) and run.stopping is not None:
        run.stopping.look(run.epoch, record.get(f"valid_{run.stopping.metric}"), run.owned["w"])
    return record


def _ends(run: Run, result: Result) -> bool:
    """Whether training ends with the epoch that is done, of which the result gets the figures, and why."""
    record = run.history[-1]
    result.test_loss, result.test_accuracy = record.get("test_loss"), record.get("test_accuracy")
    if not math.isfinite(record["running_loss"]):
        result.status, result.stop_reason = "diverged", "loss is not finite"
        return True
    result.converged = run.met
    if result.converged:
        result.stop_reason = run.stop_reason or "tolerance"
        return True
    if run.failed:
        result.status, result.stop_reason = "diverged", run.stop_reason or ""
        return True
    if run.min_decrease is not None and len(run.history) > 1:
        before, now = run.history[-2]["running_loss"], record["running_loss"]
        if before - now < run.min_decrease * abs(now):
            result.stop_reason = "small decrease"
            return True
    if run.stopping is not None and run.stopping.exhausted:
        result.stop_reason = "no improvement"
        return True
    if run.stop_reason is not None:
        result.stop_reason = run.stop_reason
        return True
    return False


def _finish(run: Run, result: Result, watched: dict[str, Loader]) -> None:
    """What the run comes to, at the parameters that it ends with."""
    if run.stopping is not None and run.stopping.best_epoch is not None:
        result.best_epoch = run.stopping.best_epoch
        if result.best_epoch < run.epoch:
            run.comm.barrier()  # callbacks may still read the parameters, which a node may have once
            run.owned["w"][:] = run.stopping.best
            run.restored()
    result.params = as_host(run.w)
    result.epochs, result.iterations = run.epoch, run.iterations
    result.rounds, result.calls = run.rounds, run.calls
    stored = getattr(run.loader, "stored", None)  # `minimize` has no rows
    bytes_read = None if stored is None else stored.prefetcher.bytes_read  # a rank without rows has a length of 0
    of_ranks = run.comm.allgather_object((run.bytes_sent, peak_memory(), bytes_read))
    sent, peaks, read = zip(*of_ranks, strict=True)
    result.bytes_moved, result.peak_memory = sum(sent), max(peaks)
    result.bytes_read = None if stored is None else sum(read)
    result.pipeline = pipeline_figures(run)
    run.finish(result)
    result.seconds = run.seconds
    result.samples_per_second = run.rows / result.seconds
    if result.status != "completed":
        return
    with during(run.comm.recorder, EVALUATE):
        _evaluate_last(run, result, watched)


def _evaluate_last(run: Run, result: Result, watched: dict[str, Loader]) -> None:
    """The objective, and how good the parameters are on the test rows."""
    result.train_loss = run.final_loss()
    if not math.isfinite(result.train_loss):
        result.train_loss = None
        result.status, result.stop_reason = "diverged", "loss is not finite"
        return
    result.without_optimum = run.without_optimum()
    if result.without_optimum is not None:
        result.converged = False if result.converged is not None else None
        if run.comm.rank == 0:
            tell(result.without_optimum, warning=True)
    if "test" in watched:
        test = alike(run, evaluate(run.objective.model, run.w, watched["test"], run.objective.comm, every_metric=True))
        result.test_loss, result.test_accuracy, result.metrics = test
