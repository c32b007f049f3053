"""Ranks as a grid: copies of a model, the stages of a copy, and the parts of a stage's layers."""

from __future__ import annotations

import math
import re
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple

from ..errors import ConfigError
from ..settings import called, setting, settings
from .checks import check_same
from .communicator import Communicator

AXES = ("data", "stage", "tensor")


class MeshShape(NamedTuple):
    """How many copies of the model there are, stages of a copy, and parts of every layer of a stage."""

    data: int
    stage: int
    tensor: int

    @classmethod
    def of(cls, ranks: int, data: int | None = None, stage: int = 1, tensor: int = 1) -> MeshShape:
        """The shape for so many ``ranks``; without ``data`` as many copies as they allow.

        Raises:
            ConfigError: the product is not the number of ranks, or a length is below 1.
        """
        for name, length in (("data", data), ("stage", stage), ("tensor", tensor)):
            if length is not None and (isinstance(length, bool) or not isinstance(length, int) or length < 1):
                raise ConfigError(f"mesh: {name} must be a whole number from 1 up, got {length!r}")
        one_copy = stage * tensor
        copies = max(1, ranks // one_copy) if data is None else data
        if copies * one_copy != ranks:
            lengths = ([] if data is None else [f"data={data}"]) + [f"stage={stage}", f"tensor={tensor}"]
            asked = " × ".join(name for name in lengths if not name.endswith("=1")) or "1 rank"
            product = "whole copies of" if data is None else "exactly"
            raise ConfigError(
                f"mesh: {asked} needs {product} {one_copy if data is None else copies * one_copy} ranks, and there are"
                f" {ranks}: start a fitting number, or choose lengths whose product is {ranks}"
            )
        return cls(copies, stage, tensor)

    @classmethod
    def parse(cls, text: str, ranks: int) -> MeshShape:
        """The shape that ``text``, such as ``data=2,tensor=2``, describes for so many ``ranks``.

        Raises:
            ConfigError: the text says something else, or see `of`.
        """
        lengths: dict[str, int] = {}
        for part in text.split(","):
            found = re.fullmatch(r"\s*(\w+)\s*=\s*(\d+)\s*", part)
            if found is None or found[1] not in AXES or found[1] in lengths:
                raise ConfigError(f"mesh: expected lengths such as data=2,stage=1,tensor=2, each once, got {text!r}")
            lengths[found[1]] = int(found[2])
        return cls.of(ranks, **lengths)

    @property
    def copy(self) -> int:
        """Ranks of one copy of the model."""
        return self.stage * self.tensor

    def __str__(self) -> str:
        return ",".join(f"{name}={length}" for name, length in zip(AXES, self, strict=True))


def arrange(nodes: Sequence[Sequence[int]], shape: MeshShape) -> list[int]:
    """The ranks in the order of the grid, tensor the fastest axis, data the slowest.

    A tensor group stays within a node as far as the nodes' ranks allow, and so does a copy of the model.

    Args:
        nodes: the ranks of each node, of all ``math.prod(shape)`` ranks.
        shape: of the grid.
    """
    groups: list[Sequence[int]] = []
    for length in dict.fromkeys((shape.copy, shape.tensor)):  # whole copies first, then tensor groups
        taken = {rank for group in groups for rank in group}
        for node in nodes:
            free = [rank for rank in node if rank not in taken]
            groups += [free[i : i + length] for i in range(0, len(free) - length + 1, length)]
    taken = {rank for group in groups for rank in group}
    rest = [rank for node in nodes for rank in node if rank not in taken]
    order = [rank for group in groups for rank in group] + rest
    assert len(order) == math.prod(shape)
    return order


def check_parts(parts: Sequence[float] | str | None, tensor: int) -> tuple[float, ...] | str:
    """One number a part, or ``speed``.

    Raises:
        ConfigError: they are not one a part, or not all above 0 and finite.
    """
    if parts is None or parts == "speed":
        return parts or (1.0,) * tensor
    name = called("parts")
    shares = tuple(float(part) for part in parts)
    if len(shares) != tensor:
        raise ConfigError(f"{name}: {len(shares)} weights for tensor={tensor}; give {tensor}, or speed")
    if not all(math.isfinite(share) and share > 0 for share in shares):
        raise ConfigError(f"{name}: {', '.join(f'{share:g}' for share in shares)} are not all finite and above 0")
    return shares


@settings
class Pipeline:
    """How batches go through the stages of a mesh.

    Attributes:
        micro_batches: into how many a batch of one copy of the model is cut; None: four for each stage, by which stages
            stand idle for less than a fifth of the time (Huang et al. 2019, "GPipe", section 2.3).
        recompute: whether stages keep their inputs alone, and compute activations again for the backward pass: less
            memory, a third more work.
        cuts: the numbers, from 0, of the layers that stages begin with, but the first: of four layers in two stages
            (3,) gives the first three to stage 0.  None: by the layers' times, measured on all ranks, and their memory.

    Raises:
        ConfigError: a value that cannot be.
    """

    micro_batches: int | None = setting(kind="int", low=1, default=None)
    recompute: bool = setting(kind="bool", default=False)
    cuts: tuple[int, ...] | None = None

    def check(self) -> None:
        """Refuse cuts that are none."""
        if self.cuts is None:
            return
        listed = isinstance(self.cuts, tuple | list)
        whole = listed and all(isinstance(cut, int) and not isinstance(cut, bool) for cut in self.cuts)
        if not whole or list(self.cuts) != sorted(set(self.cuts)) or min(self.cuts, default=1) < 1:
            raise ConfigError(f"cuts must be ascending numbers of layers from 1 up, got {self.cuts!r}")


class Mesh:
    """All ranks of ``comm`` as a grid; `fit` takes it in place of a communicator, and splits the model over it.

    Collective: every rank makes the same one.

    Args:
        comm: the ranks; it stays the caller's.
        data: copies of the model, each of which learns from its own rows; None: as many as the ranks allow.
        stage: consecutive parts of a copy, between which activations travel (pipeline parallel).
        tensor: parts of every layer of a stage (tensor parallel).
        parts: how large each of these parts is, in proportion, such as (3, 1); ``speed``: as fast as the ranks multiply
            matrices when training begins; None: alike.
        pipeline: how batches go through several stages; None: `Pipeline()`.

    Attributes:
        comm: all ranks.
        parts: one number a part; ``speed`` until speeds are measured.
        shape: `MeshShape`.
        pipeline: as given.
        position: this rank's coordinates, as a `MeshShape`.
        data_group: the ranks that hold the same part of the model, one of each copy: they share the rows out, and sum
            gradients.  Data is loaded with it.
        copy_group: the ranks of this rank's copy of the model; stages one after another.
        tensor_group: the ranks that hold parts of the same layers of the same copy.

    Raises:
        ConfigError: the shape does not fit the ranks, the parts do not fit it, or ranks ask for different meshes.
    """

    def __init__(
        self,
        comm: Communicator,
        *,
        data: int | None = None,
        stage: int = 1,
        tensor: int = 1,
        parts: Sequence[float] | str | None = None,
        pipeline: Pipeline | None = None,
    ) -> None:
        asked = f"data={data}, stage={stage}, tensor={tensor}, parts={parts}, {pipeline}"
        check_same(comm.allgather_object, asked, "meshes")
        self.comm, self.shape = comm, MeshShape.of(comm.size, data, stage, tensor)
        self.parts, self.pipeline = check_parts(parts, tensor), pipeline or Pipeline()
        self._cuts: dict[int, tuple[Any, Any]] = {}  # by id of a model: a reference to it, and what is remembered
        order = arrange(comm.topology.nodes, self.shape)
        index = order.index(comm.rank)
        copy, inside = divmod(index, self.shape.copy)
        self.position = MeshShape(copy, *divmod(inside, self.shape.tensor))
        self.data_group = comm.group(inside, index)
        self.copy_group = comm.group(copy, index)
        self.tensor_group = comm.group(index // self.shape.tensor, index)

    @property
    def groups(self) -> tuple[Communicator, ...]:
        """The communicators that the mesh has made."""
        return self.data_group, self.copy_group, self.tensor_group

    def remember(self, model: Any, cuts: Any) -> None:
        """Keep ``cuts``, by which ``model`` was cut into stages, as long as there is this model; local."""
        self._cuts[id(model)] = weakref.ref(model), cuts

    def recall(self, model: Any) -> Any:
        """What was remembered of ``model``; None: nothing."""
        known, cuts = self._cuts.get(id(model), (lambda: None, None))
        return cuts if known() is model else None

    def free(self) -> None:
        """Give back the groups' communicators; collective."""
        for group in self.groups:
            group.free()

    def __enter__(self) -> Mesh:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if kind is None:  # see `Communicator.__exit__`
            self.free()
