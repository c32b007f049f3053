"""A model split over the ranks of a mesh: each rank's part, and whole vectors of the parts'."""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import time
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..errors import ConfigError
from ..models import Abilities, Model
from ..models.split import PartOfModel
from .checkpoint.strided import put, strided_of

if TYPE_CHECKING:
    from ..comm import Communicator, Mesh

Array = Any
T = TypeVar("T")
PRODUCT_ROWS, PRODUCT_WIDTH, PRODUCT_SECONDS = 32, 1024, 0.1  # of what speeds are measured with
CHUNK = 1 << 21  # numbers of a part that rank 0 collects at once
MAPPED_BYTES = 64 << 20  # whole vectors that are longer are collected in a file


def groups(comm: Communicator | Mesh) -> tuple[Communicator, Communicator]:
    """All ranks of ``comm``, and among them those that share rows with this one; local."""
    from ..comm import Mesh

    if isinstance(comm, Mesh) and comm.shape.stage > 1:
        from ..models import blas  # noqa: F401 - SciPy's, whose threads are limited with the others' once it is loaded

    return (comm.comm, comm.data_group) if isinstance(comm, Mesh) else (comm, comm)


def split(
    model: Model, comm: Communicator | Mesh, rows: int = 1, optimizer: Any = None
) -> tuple[Any, Communicator, Mesh | None]:
    """This rank's part of ``model``, the ranks that share rows with it, and the mesh; collective.

    Without a mesh, or on one that has copies of the whole model alone, the part is the model, and there is no mesh.

    Args:
        model: the whole model.
        comm: the ranks.
        rows, optimizer: of all copies' batch, and the method, by which stages are chosen: see `stages.pipelined`.

    Raises:
        ConfigError: the model cannot be split so; on all ranks.
    """
    from ..comm import ActivationExchange, Mesh

    if not isinstance(comm, Mesh):
        return model, comm, None
    if comm.shape.copy == 1 and hasattr(model, "loss_and_grad"):  # else it computes in parts alone
        return model, comm.data_group, None
    shares, abilities = shares_of(comm), Abilities.of(model)
    able = abilities.split
    if comm.shape.stage > 1 or (able is None and abilities.stages is not None):
        from .stages import pipelined

        return pipelined(model, comm, shares, -(-rows // comm.shape.data), optimizer), comm.data_group, comm
    with comm.comm.agreed():
        if able is None:
            raise ConfigError(
                f"mesh {comm.shape}: {type(model).__name__} cannot be split over ranks (it has no split()); leave the"
                " mesh out, or take an mlp"
            )
        part = able.split(comm.position.tensor, shares)
        part.join(ActivationExchange(comm.tensor_group, model.dtype))
    return part, comm.data_group, comm


def shares_of(mesh: Mesh) -> tuple[float, ...]:
    """How large the parts of layers are; collective where the ranks' speeds are measured.

    Copies of the model are cut alike: of ranks that hold the same part in each, the slowest counts.  A mesh measures
    once, so that a model has the same parts later.
    """
    if not isinstance(mesh.parts, str):
        return mesh.parts
    mesh.comm.barrier()
    speeds = mesh.comm.allgather_object((mesh.position.tensor, product_rate()))
    slowest = [min(rate for tensor, rate in speeds if tensor == part) for part in range(mesh.shape.tensor)]
    mesh.parts = tuple(float(f"{rate:.2g}") for rate in slowest)
    return mesh.parts


def product_rate() -> float:
    """Floating-point operations per second of a product of float32 matrices on this rank; local, about 0.1 s."""
    x, w = np.ones((PRODUCT_ROWS, PRODUCT_WIDTH), np.float32), np.ones((PRODUCT_WIDTH, PRODUCT_WIDTH), np.float32)
    out = np.empty_like(x)
    rates: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() < began + PRODUCT_SECONDS or len(rates) < 3:
        start = time.perf_counter()
        np.dot(x, w, out=out)
        rates.append(2.0 * x.size * PRODUCT_WIDTH / (time.perf_counter() - start))
    return statistics.median(rates)


def alike(run: Any, found: T) -> T:
    """What rank 0 has ``found``, on all ranks of a mesh: its data groups may add in other orders; collective."""
    return found if run.objective.mesh is None else run.comm.bcast_object(found)


def part_of(model: Any, w: Array) -> Array:
    """Of the whole vector ``w`` what belongs to the part ``model``; ``w`` itself where that is no part; local."""
    if not isinstance(model, PartOfModel) or w.size != model.whole.layout.size:
        return w
    arrays, part = list(model.whole.layout.views(w).values()), np.empty(model.layout.size, w.dtype)
    for own, piece in zip(model.layout.views(part).values(), model.pieces, strict=True):
        own[...] = arrays[piece.slot][piece.ranges]
    return part


def whole_params(model: Model, w: Array, mesh: Communicator | Mesh) -> Array | None:
    """The parameters of the whole ``model`` on rank 0, from every rank's part ``w``; None elsewhere; collective.

    Args:
        model: the whole model.
            It must be the one that was trained: cuts of stages that were measured are kept with it.
        w: `Result.params` of this rank.
        mesh: the ranks that trained it.

    Returns:
        Shape (model.layout.size,), on rank 0; from a plain communicator ``w`` itself.
    """
    part, comm, split_over = split(model, mesh)
    if split_over is None:
        return w if comm.rank == 0 else None
    return collect(part, w, split_over)


def collect(part: Any, w: Array, mesh: Mesh, folder: str | None = None) -> Array | None:
    """The parameters of the whole model on rank 0, from every rank's ``part`` and its parameters ``w``; collective.

    They come `CHUNK` numbers at a time: beside them rank 0 needs little.  A long vector is mapped from a file without a
    name in ``folder``, where one is given, which takes room on the disk and not in memory; in memory if there is none.
    """
    comm, first = mesh.comm, mesh.position.data == 0
    tables = comm.allgather_object((part.layout, part.pieces) if first else None)
    whole, chunk = None, np.empty(0, w.dtype)
    if comm.rank == 0:
        whole = _long_vector(part.whole.layout.size, w.dtype, folder)
        chunk = np.empty(CHUNK, w.dtype)
    for rank, table in enumerate(tables):
        if table is None:
            continue
        layout, pieces = table
        for start in range(0, layout.size, CHUNK):
            stop = min(start + CHUNK, layout.size)
            counts = [stop - start if other == rank else 0 for other in range(comm.size)]
            sent = np.ascontiguousarray(w[start:stop]) if comm.rank == rank else w[:0]
            comm.gatherv(sent, counts, None if whole is None else chunk[: stop - start])
            if whole is not None:
                put(chunk[: stop - start], strided_of(layout, pieces, part.whole.layout, start, stop), whole)
    return whole


def _long_vector(size: int, dtype: np.dtype, folder: str | None) -> Array:
    if folder is not None and size * dtype.itemsize > MAPPED_BYTES:
        with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size * dtype.itemsize)  # a full disk shows now, and not as a signal
            return np.memmap(file, dtype, "r+", shape=(size,))
    return np.empty(size, dtype)
