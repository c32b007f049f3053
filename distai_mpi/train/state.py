"""What a run needs to go on, and how a run is made of it on any ranks."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..backend import HOST, Device, as_host, device_of
from ..comm import Exchange
from ..data import ShardedDataset
from ..errors import ConfigError
from ..models import Model
from ..models.split import whole_of
from ..objective import Objective
from ..optim import FTRL, Constant, FirstOrder, FullBatchSolver, LocalSGD, Schedule
from ..optim.schedules import over
from ..options import OPTIONS
from ..perf.machine import memory_left
from ..settings import called, fixed, setting, settings
from .checkpoint import state as kept
from .checkpoint.strided import put, take
from .early_stopping import BestParameters, EarlyStopping
from .evaluation import make_loader
from .full_batch import bind, check_exchange, keeps_whole
from .gradient.choose import make_fused, make_gradients
from .parts import part_of, split
from .run import Optimizer, Run
from .steps import AveragingSteps, Steps, SynchronousSteps

if TYPE_CHECKING:
    from ..comm import Communicator, Mesh

Array = Any
HELD = 4  # methods that read all rows again and again hold them converted where that takes this part of free memory


class Saved(NamedTuple):
    """How far a run has come, in host memory; the same on every rank.

    Attributes:
        identity: what must be the same in a run that goes on.
        common: what all ranks knew alike: plain values.
        own: what each rank alone knew, by rank.
        vectors: whole ones by name and, for those that every rank has for itself, rank; else None.
    """

    identity: dict[str, Any]
    common: dict[str, Any]
    own: list[dict[str, Any]]
    vectors: dict[tuple[str, int | None], Array]


@settings
class TrainState:
    """Everything that a run needs to go on: what it trains and how, and how far it has come.

    That is parameters, the optimizer's and the exchange's state, the position among the rows, and early stopping; a
    checkpoint keeps the same in files.  ``saved`` None: at the beginning.

    Attributes:
        model, optimizer, global_batch_size, l2, seed, exchange, l1, start: see `fit`.
        epochs: passes over the rows, or iterations of full-batch solvers.
        device: where arrays live.
        early: early stopping, where there are validation rows.
        saved: how far the run has come.
    """

    model: Model
    optimizer: Optimizer = setting(fixed=True)
    epochs: int
    global_batch_size: int = setting(OPTIONS["global_batch_size"])
    l2: float = setting(OPTIONS["l2"])
    seed: int = setting(OPTIONS["seed"])
    device: Device
    exchange: Exchange
    early: EarlyStopping | None = setting(default=None)
    saved: Saved | None = None
    l1: float = setting(replace(OPTIONS["l1"], fixed=True), default=0.0)
    start: Any = setting(default=None)

    @classmethod
    def of(cls, run: Run) -> TrainState:
        """The state of ``run`` between two steps, as a callback sees it in `on_epoch`; collective.

        Every rank gets whole vectors: it needs room for the parameters and the optimizer's state.
        """
        comm, objective, loader = run.comm, run.objective, run.loader
        parts = [part._replace(array=as_host(part.array)) for part in kept.parts_to_write(run)]
        vectors: dict[tuple[str, int | None], Array] = {}
        for part in (part for rank in comm.allgather_object(parts) for part in rank):
            whole = vectors.setdefault((part.name, part.rank), np.empty(part.size, part.array.dtype))
            put(part.array, part.ranges, whole)
        saved = Saved(kept.identity(run), kept.common(run), comm.allgather_object(kept.own(run)), vectors)
        return cls(
            whole_of(objective.model),
            run.optimizer,
            run.epochs,
            loader.global_batch_size,
            objective.l2,
            loader.seed,
            loader.device,
            objective.asked,
            saved=saved,
            l1=objective.l1,
        )

    def bind(self, comm: Communicator | Mesh, data: ShardedDataset) -> Run:
        """A run on the ranks of ``comm``, each of which has its shard of ``data``, at its beginning; collective.

        On a mesh each rank of the data group has a shard.  `restore` brings the run to where ``saved`` says, once it
        is warm.
        """
        optimizer = self.optimizer
        model, comm, mesh = split(self.model, comm, min(self.global_batch_size, data.rows), optimizer)
        if mesh is not None and self.device is not HOST:
            raise ConfigError(f"{called('mesh')}: models are split on the CPU alone; choose {called('device')} cpu")
        solver = isinstance(optimizer, FullBatchSolver)
        loader = make_loader(model, data, comm, self.global_batch_size, self.seed, self.device)
        if solver:
            loader.hold(memory_left() // (HELD * comm.node.size))
        with (comm if mesh is None else mesh.comm).agreed():
            given = model.init(np.random.default_rng(self.seed)) if self.start is None else part_of(model, self.start)
            start = np.array(given, model.dtype)
        comm.bcast(start)  # a model of another library may start from its own, unseeded numbers
        whole = solver and mesh is None and keeps_whole(model.layout.size, comm, self.exchange)
        objective = Objective(model, loader, comm, mesh=mesh, l2=self.l2, l1=self.l1, asked=self.exchange, whole=whole)
        if isinstance(optimizer, FullBatchSolver):
            check_exchange(optimizer, self.exchange)
            run: Run = bind(objective, optimizer, start)
        else:
            schedule = over(getattr(optimizer, "schedule", Constant()), self.epochs * loader.steps)
            steps = _steps(objective, optimizer, start, schedule, self.exchange)
            run = Run(objective, steps, optimizer, self.epochs, schedule)
        if self.early is not None:
            run.stopping = BestParameters(self.early, run.owned["w"])
        run.fixed = fixed(self)
        return run


def restore(run: Run, saved: Saved) -> None:
    """Bring a run that is warm to where ``saved`` says; collective.

    Raises:
        ConfigError: that is the state of another run, or of ranks whose own parameters these ranks do not have.
    """
    kept.check_identity("state", saved.identity, kept.identity(run))
    body = {"shards": [{"sections": [{"name": name} for name, _ in saved.vectors]}]}
    for part in kept.parts_to_read(run, body):
        whole = saved.vectors[part.name, part.rank]
        array = np.empty(part.array.shape, part.array.dtype)
        take(array, part.ranges, whole)
        device_of(part.array).put(array, part.array)
    kept.restore(run, saved.common, saved.own)


def _steps(
    objective: Objective,
    optimizer: FirstOrder | LocalSGD,
    start: Any,
    schedule: Schedule,
    exchange: Exchange,
) -> Steps:
    clip_norm = getattr(optimizer, "clip_norm", None)
    if isinstance(optimizer, LocalSGD):
        for asked, name in ((exchange.factors, called("factors")), (exchange.overlap, called("overlap", "--early"))):
            if asked:
                raise ConfigError(f"{name}: local SGD exchanges no gradients; leave it out")
        return AveragingSteps(objective, optimizer, start, clip_norm=clip_norm)
    if isinstance(optimizer, FTRL) and optimizer.l1 and exchange.compressed:
        l1 = called("l1 of ftrl", "--l1")
        raise ConfigError(
            f"{called('dtype', '--wire')} {exchange.dtype} rounds parameters, which {l1} makes 0 exactly: leave it out"
        )
    gradients = make_gradients(objective, exchange)
    fused = make_fused(objective, optimizer, gradients, schedule, clip_norm, exchange)
    norm = getattr(optimizer, "tol", None) is not None
    return SynchronousSteps(
        objective, optimizer, start, gradients=gradients, fused=fused, clip_norm=clip_norm, measures_norm=norm
    )
