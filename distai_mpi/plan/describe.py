"""A workload in numbers, from the objects that make it."""

from __future__ import annotations

from typing import Any

from ..data import ShardedDataset
from ..data.sparse_rows import SparseRows
from ..models import Abilities, Model
from ..models.losses.softmax import Softmax
from ..optim import FullBatchSolver, LocalSGD
from ..optim.columns import touches_columns
from .workload import AVERAGE, SOLVER, STEPS, Workload

Array = Any


def describe(model: Model, shard: ShardedDataset, options: dict[str, Any], run: Any = None) -> Workload:
    """The `Workload` of training ``model`` on the rows of ``shard`` with ``options`` as `train.fit` takes them.

    ``run`` is one of them that is bound, whose optimizer's state is counted; local.
    """
    able, optimizer, exchange = Abilities.of(model), options["optimizer"], options["exchange"]
    solver = isinstance(optimizer, FullBatchSolver)
    kind = SOLVER if solver else AVERAGE if isinstance(optimizer, LocalSGD) else STEPS
    x = shard.dataset.x
    sparse = isinstance(x, SparseRows) and able.sparse
    slots = model.layout.slots
    outputs = able.columns.widths[-1] if able.columns is not None else 1
    pairs = able.columns is not None and sparse and kind == STEPS and touches_columns(optimizer, options["l2"])
    widths = tuple(getattr(model, "widths", ())) if able.split is not None else ()
    inputs = slots[0].stop - slots[0].start
    return Workload(
        data=shard.name,
        model=type(model).__name__,
        optimizer=optimizer.name,
        rows=shard.rows,
        batch=shard.rows if solver or optimizer.full_batch else options["global_batch_size"],
        epochs=optimizer.max_iter if solver else options["epochs"],
        parameters=model.layout.size,
        itemsize=model.dtype.itemsize,
        kind=kind,
        sync_every=optimizer.sync_every if kind == AVERAGE else 1,
        states=_states(optimizer, run),
        row_bytes=_row_bytes(x, len(shard.dataset.y)),
        replicated_rows=shard.shuffle == "global",
        entries=x.entries / max(1, len(x)) if sparse else 0.0,
        outputs=outputs,
        takes_pairs=bool(pairs and getattr(optimizer, "clip_norm", None) is None and not exchange.compressed),
        widths=widths,
        splits_outputs=isinstance(getattr(model, "loss_function", None), Softmax),
        factor_size=0 if able.factors is None or sparse else able.factors.factor_size,
        factors=exchange.factors,
        compressed=exchange.compressed,
        first_slot=inputs / model.layout.size,
        overlaps=bool(able.overlap and kind == STEPS and not sparse and exchange.overlap is not False),
        dense=len(slots) > 2,
    )


def _row_bytes(x: Array, rows: int) -> float:
    nbytes = getattr(x, "nbytes", None)
    return 0.0 if nbytes is None else nbytes / max(1, rows)


def _states(optimizer: Any, run: Any) -> int:
    """Vectors of a slice's length that the method keeps."""
    if isinstance(optimizer, FullBatchSolver):
        return 2 * getattr(optimizer, "memory", 0) + 4
    state = getattr(getattr(run, "training", None), "state", None) or {}
    return sum(1 for value in state.values() if getattr(value, "ndim", 0) == 1 and value.size)
