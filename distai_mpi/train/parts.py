"""A model split over the ranks of a mesh: each rank's part, and whole vectors of the parts'."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ConfigError
from ..models import Abilities, Model
from ..models.split import PartOfModel

if TYPE_CHECKING:
    from ..comm import Communicator, Mesh

Array = Any


def groups(comm: Communicator | Mesh) -> tuple[Communicator, Communicator]:
    """All ranks of ``comm``, and among them those that share rows with this one; local."""
    from ..comm import Mesh

    return (comm.comm, comm.data_group) if isinstance(comm, Mesh) else (comm, comm)


def split(model: Model, comm: Communicator | Mesh) -> tuple[Any, Communicator, Mesh | None]:
    """This rank's part of ``model``, the ranks that share rows with it, and the mesh; collective.

    Without a mesh, or on one that has copies of the whole model alone, the part is the model, and there is no mesh.

    Raises:
        ConfigError: the model cannot be split so; on all ranks.
    """
    from ..comm import ActivationExchange, Mesh

    if not isinstance(comm, Mesh):
        return model, comm, None
    if comm.shape.copy == 1:
        return model, comm.data_group, None
    able = Abilities.of(model).split
    with comm.comm.agreed():
        if able is None:
            raise ConfigError(
                f"mesh {comm.shape}: {type(model).__name__} cannot be split over ranks (it has no split()); leave the"
                " mesh out, or take an mlp"
            )
        part = able.split(comm.position.tensor, (1.0,) * comm.shape.tensor)
        part.join(ActivationExchange(comm.tensor_group, model.dtype))
    return part, comm.data_group, comm


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
        w: `Result.params` of this rank.
        mesh: the ranks that trained it.

    Returns:
        Shape (model.layout.size,), on rank 0; from a plain communicator ``w`` itself.
    """
    part, comm, split_over = split(model, mesh)
    if split_over is None:
        return w if comm.rank == 0 else None
    return gathered(part, w, split_over)


def gathered(part: Any, w: Array, mesh: Mesh) -> Array | None:
    """See `whole_params`; ``part`` is this rank's."""
    comm = mesh.comm
    first = mesh.position.data == 0
    told = comm.allgather_object((part.pieces, part.layout.size) if first else ((), 0))
    sizes = [size for _, size in told]
    got = np.empty(sum(sizes), w.dtype) if comm.rank == 0 else None
    comm.gatherv(np.ascontiguousarray(w) if first else w[:0], sizes, got)
    if got is None:
        return None
    whole, at = np.empty(part.whole.layout.size, w.dtype), 0
    arrays = list(part.whole.layout.views(whole).values())
    for pieces, _ in told:
        for piece in pieces:
            shape = tuple(index.stop - index.start for index in piece.ranges)
            arrays[piece.slot][piece.ranges] = got[at : at + math.prod(shape)].reshape(shape)
            at += math.prod(shape)
    return whole
