"""What of a run is kept in a checkpoint: ranges of vectors, and plain numbers."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from ...backend import HOST, device_of, number
from ...data import ShardedDataset
from ...data.out_of_core import StoredRows
from ...data.partition import even_range
from ...data.sparse_rows import SparseRows
from ...errors import ConfigError
from ...models import Sums, name_of, to_config
from ...models.split import PartOfModel, whole_of
from ...optim import LocalSGD
from ...params import Ownership
from ...settings import called, worded
from ..checks import spelled
from ..run import Run
from .files import Part
from .strided import strided_of

Array = Any
SAMPLE = 64  # rows that stand for a data set
EARLIER = {"l1": 0.0}  # settings that checkpoints of earlier versions do not name, and what they were
SHOWN = 120  # characters of a list of names


def parts_to_write(run: Run) -> list[Part]:
    """This rank's ranges of all vectors: together the ranks write every element of one once."""
    owners, comm = run.objective.owners, run.objective.comm
    mine = None
    if owners.replicated:  # every rank has the whole: each writes a part of it
        mine = Ownership.sharded(owners.size, comm.size, run.objective.dtype.itemsize).slices[comm.rank]
    return [*_owned(run, mine), *_private(run), *_of_exchange(run)]


def parts_to_read(run: Run, body: dict[str, Any]) -> list[Part]:
    """This rank's ranges of all vectors as it needs them to go on, which may be more than it writes.

    What the exchange keeps is read where the checkpoint of the manifest ``body`` has it: it was written by a run that
    may have exchanged in another way.
    """
    kept = {section["name"] for shard in body["shards"] for section in shard["sections"]}
    return [*_owned(run), *_private(run), *(part for part in _of_exchange(run) if part.name in kept)]


def _of_exchange(run: Run) -> Iterator[Part]:
    for name, (array, start) in run.objective.exchange.state.items():
        yield _placed(run, f"exchange/{name}", array, start)


def _placed(run: Run, name: str, array: Array, start: int) -> Part:
    """Elements of a vector like the parameters, from number ``start`` of this rank's part of the model on."""
    model, layout = getattr(run.objective, "model", None), run.objective.layout
    if not isinstance(model, PartOfModel):
        return Part.range(name, array, start, layout.size)
    whole = model.whole.layout
    ranges = strided_of(layout, model.pieces, whole, start, start + array.size)
    return Part(name, array, tuple(ranges), whole.size)


def _owned(run: Run, written: slice | None = None) -> Iterator[Part]:
    """This rank's slices of all vectors, or the range ``written`` of them."""
    mine = run.objective.mine
    trees = {"steps": run.owned}
    if run.stopping is not None:
        trees["stopping"] = {"best": run.stopping.best}
    for name, array in _arrays(trees):
        if array.shape != (mine.stop - mine.start,):
            raise TypeError(f"{name}: state of shape {array.shape} is no slice of {mine.stop - mine.start} elements")
        part = mine if written is None else written
        yield _placed(run, name, array[part.start - mine.start : part.stop - mine.start], part.start)


def _private(run: Run) -> Iterator[Part]:
    for name, array in _arrays({"private": run.private}):
        yield Part.range(name, array, 0, array.size, run.comm.rank)


def _arrays(tree: dict[str, Any], path: str = "") -> Iterator[tuple[str, Array]]:
    """The arrays in nested dictionaries, each with the keys that lead to it."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _arrays(value, f"{path}{key}/")
        elif isinstance(value, np.ndarray) or device_of(value) is not HOST:
            yield f"{path}{key}", value


def _numbers(tree: dict[str, Any]) -> dict[str, Any]:
    """Plain numbers, and lists of them, in nested dictionaries; what else is there is the slice's, and made anew.

    Lists are copied: a run goes on changing its own while a checkpoint is written.
    """
    kept = {key: _numbers(value) if isinstance(value, dict) else value for key, value in tree.items()}
    kept = {key: list(value) if isinstance(value, list) else value for key, value in kept.items()}
    plain = dict | list | int | float | str
    return {key: value for key, value in kept.items() if value is None or isinstance(value, plain)}


def _set_numbers(tree: dict[str, Any], numbers: dict[str, Any]) -> None:
    for key, value in numbers.items():
        if isinstance(value, dict):
            _set_numbers(tree[key], value)
        else:
            tree[key] = value


def common(run: Run) -> dict[str, Any]:
    """What all ranks know alike; plain values."""
    return {
        "epoch": run.epoch,
        "epochs": run.epochs,
        "epoch_steps": run.epoch_steps,
        "iterations": run.iterations,
        "rows": run.rows,
        "seconds": run.elapsed,
        "calls": run.calls,
        "first_norm": run.first_norm,
        "gradient_norm": run.gradient_norm,
        "history": list(run.history),
        "rebalanced": list(run.rebalanced),
        "state": _numbers(run.owned),
        "stopping": None if run.stopping is None else dict(run.stopping.state),
    }


def own(run: Run) -> dict[str, Any]:
    """What this rank alone knows; plain values.

    ``bytes_sent`` may be added up over the ranks, ``sums`` over those that are the first of their copy of a model.
    """
    mesh = run.objective.mesh
    return {
        "sums": [number(part) for part in run.sums],
        "mesh": None if mesh is None else str(mesh.shape),
        "first_of_copy": mesh is None or mesh.copy_group.rank == 0,
        "bytes_sent": run.bytes_sent,
        "state": _numbers(run.private),
    }


def restore(run: Run, common: dict[str, Any], owns: list[dict[str, Any]]) -> None:
    """Set a run to what was kept, once its vectors have been read; collective.

    ``owns`` has an entry for each rank that wrote.  Where the ranks are others, the first copy takes all sums.
    """
    for name in ("epoch", "epoch_steps", "iterations", "rows", "seconds", "first_norm"):
        setattr(run, name, common[name])
    run.history[:] = common["history"]
    run.rebalanced[:] = common.get("rebalanced", [])  # which earlier versions do not have
    run.gradient_norm = common["gradient_norm"]
    _set_numbers(run.owned, common["state"])
    if run.stopping is not None and common["stopping"] is not None:
        run.stopping.state.update(common["stopping"])
    objective = run.objective
    mesh = None if objective.mesh is None else str(objective.mesh.shape)
    if len(owns) == run.comm.size and all(entry.get("mesh") == mesh for entry in owns):
        mine = owns[run.comm.rank]
        _set_numbers(run.private, mine["state"])
        sums, sent = mine["sums"], mine["bytes_sent"]
    else:
        of_copies = [entry["sums"] for entry in owns if entry.get("first_of_copy", True)]
        sums = [sum(column) for column in zip(*of_copies, strict=True)] if objective.comm.rank == 0 else [0.0, 0.0]
        sent = sum(entry["bytes_sent"] for entry in owns) if run.comm.rank == 0 else 0
    run.sums = Sums(*sums)
    run.restored()
    run.count_from(common["calls"], sent)


def identity(run: Run) -> dict[str, Any]:
    """What must be the same in a run that goes on from a checkpoint; collective, the same on every rank."""
    objective, model = run.objective, whole_of(getattr(run.objective, "model", None))
    layout = objective.layout if model is None else model.layout
    about = {
        "class": "function" if model is None else type(model).__name__,
        "slots": [[slot.name, list(slot.shape)] for slot in layout.slots],
        "dtype": objective.dtype.name,
        "config": to_config(model) if model is not None and name_of(model) else None,
    }
    same = {"metric": None, **run.fixed, "model": about}
    return json.loads(json.dumps(same if run.loader is None else same | _of_rows(run)))


def _of_rows(run: Run) -> dict[str, Any]:
    """What must be the same of the rows and of how they are dealt out; collective."""
    shard, averages = run.loader.shard, isinstance(run.optimizer, LocalSGD)
    return {
        "data": {
            "rows": shard.rows,
            "features": shard.features,
            "sample": data_sample(run),
            "standardized": shard.dataset.standard is not None,
            **_table(shard),
        },
        "shuffle": shard.shuffle,
        "rows_of_ranks": list(shard.counts) if averages or shard.shuffle == "local" else None,
    }


def _table(shard: ShardedDataset) -> dict[str, str]:
    """What must be the same of the table that the rows are from, where there is any of it."""
    facts = {
        "classes": shard.classes and ", ".join(map(str, shard.classes)),
        "weights of classes": shard.class_weights and ", ".join(f"{weight:g}" for weight in shard.class_weights),
        "feature names": shard.feature_names and ", ".join(shard.feature_names),
    }
    if shard.dataset.fill is not None:
        facts["values in place of missing ones"] = ", ".join(map(str, shard.dataset.fill.values.tolist()))
    return {name: _shortened(text) for name, text in facts.items() if text}


def _shortened(text: str) -> str:
    """``text``, or of a long one its beginning and its checksum."""
    return text if len(text) < SHOWN else f"{text[:SHOWN]}... (CRC-32 {zlib.crc32(text.encode()):08x})"


def variable(run: Run) -> dict[str, Any]:
    """What may change when a run goes on, as a person reads it."""
    partition = run.loader and run.loader.shard.partition
    return {
        "ranks": run.comm.size,
        "mesh": None if run.objective.mesh is None else str(run.objective.mesh.shape),
        "epochs": run.epochs,
        "optimizer": spelled(run.optimizer),
        "schedule": spelled(run.schedule),
        "clip_norm": run.clip_norm,
        "allreduce": run.objective.exchange.name,
        "shards": partition and list(partition.weights),
    }


def data_sample(run: Run) -> int:
    """A sum over some rows of the training set that does not depend on who holds them; collective.

    The CRC-32 of up to `SAMPLE` rows spread over the set, as they are held, with position, label, weight and scale.
    """
    shard, comm = run.loader.shard, run.objective.comm
    local, data, total = shard.shuffle == "local", shard.dataset, 0
    first = shard.starts[comm.rank] if local else 0
    low, high = (first, first + shard.counts[comm.rank]) if local else even_range(shard.rows, comm.size, comm.rank)
    positions = {shard.rows * i // SAMPLE for i in range(SAMPLE)}
    for position in sorted(position for position in positions if low <= position < high):
        row = position - first
        if not local:
            row = shard.first + position
            row = row if shard.in_order else int(shard.order.positions(row, row + 1)[0])
        check = zlib.crc32(_bytes_of(data.x, row), position & 0xFFFFFFFF)
        check = zlib.crc32(np.float64(data.y[row]).tobytes(), check)
        if data.weight is not None:
            check = zlib.crc32(data.weight[row].tobytes(), check)
        if data.scale != 1:
            check = zlib.crc32(np.float64(data.scale).tobytes(), check)
        total += check
    return int(comm.sum([total])[0])


def _bytes_of(x: Any, row: int) -> bytes:
    """A row of features as it is held."""
    if isinstance(x, StoredRows):
        return _bytes_of(x.row(row), 0)
    if isinstance(x, SparseRows):
        entries = slice(int(x.starts[row]), int(x.starts[row + 1]))
        return x.indices[entries].tobytes() + x.values[entries].tobytes()
    return np.ascontiguousarray(x[row]).tobytes()


def check_identity(step: str, kept: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise `ConfigError` if the checkpoint in the folder ``step`` is not one of this run."""
    anew = f"or train anew: leave {called('resume')} out, and {step} away"
    for name, here in now.items():
        there: Any = kept.get(name, EARLIER.get(name))
        if there == here:
            continue
        if name == "rows_of_ranks" and there and here:
            raise ConfigError(
                f"{step}: was written by {len(there)} ranks, each with rows of its own (local shuffle or averaging);"
                f" give these {len(there)} ranks and shards, {anew}"
                if len(there) != len(here)
                else f"{step}: its ranks held other numbers of rows; give the same {called('shards')}, {anew}"
            )
        if name in ("model", "data"):
            told = _differences(_flat(there), _flat(here)) or "its layers differ"
            more = worded("", ", --test-fraction and --valid") if name == "data" else ""
            raise ConfigError(f"{step}: is of other {name} ({told}); give the same {name}{more}, {anew}")
        if name == "metric":
            way = f"{called('valid')} and {called('metric')} {there}" if there else f"no {called('valid')}"
            raise ConfigError(f"{step}: was trained with other validation rows; give {way}, {anew}")
        flag = called("inner", "--inner-optimizer") if name == "inner" else called(name)
        way = f"{flag} {'as it was' if isinstance(there, bool) else there}"
        raise ConfigError(f"{step}: was trained with {name} {there}, not {here}; give {way}, {anew}")


def _flat(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts and those of the model's own description in one dictionary, without the long list of slots."""
    own = facts.get("config") or {}
    return {key: value for key, value in {**facts, **own}.items() if key not in ("config", "slots")}


def _differences(there: dict[str, Any], here: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}, here {here.get(key)}" for key, value in there.items() if value != here.get(key))
