"""`fit` with what a test asks for beside the rows in one line."""

from dataclasses import replace

import distai_mpi
from distai_mpi import EarlyStopping, Exchange, Trace, optim

EXCHANGE = {"allreduce": "algorithm", "wire": "dtype", "early": "overlap", "factors": "factors"}
STOP = {"metric": "metric", "patience": "patience"}
METHOD = ("schedule", "clip_norm", "tol", "min_decrease", "max_iter")


def fit(model, data, comm, *, optimizer=None, callbacks=(), valid=None, trace=None, checkpoint=None, **options):
    """As `distai_mpi.fit`; fields of its objects may be given apart, and ``epochs`` are iterations of solvers."""
    optimizer, callbacks = optimizer or optim.Momentum(), list(callbacks)
    if isinstance(optimizer, optim.FullBatchSolver):
        options = {"tol": None} | options
        if "epochs" in options:
            options["max_iter"] = options.pop("epochs")
    given = {name: options.pop(name) for name in METHOD if name in options}
    given = {name: value for name, value in given.items() if value is not None or hasattr(optimizer, name)}
    if isinstance(optimizer, optim.LocalSGD):
        optimizer = replace(optimizer, inner=replace(optimizer.inner, **given))
    elif given:
        optimizer = replace(optimizer, **given)
    exchange = {field: options.pop(name) for name, field in EXCHANGE.items() if name in options}
    stop = {name: options.pop(name) for name in STOP if name in options}
    if valid is not None:
        callbacks.append(EarlyStopping(valid, **stop))
    if checkpoint is not None:
        callbacks.append(checkpoint)
    if trace is not None:
        callbacks.append(Trace(str(trace)))
    if exchange:
        options["exchange"] = Exchange(**exchange)
    return distai_mpi.fit(model, data, comm, optimizer=optimizer, callbacks=callbacks, **options)
