"""How a run goes on from the newest checkpoint that is whole, and what becomes of the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...errors import ConfigError, DataError
from ...settings import called, worded
from . import files, state
from .settings import Checkpoint

if TYPE_CHECKING:
    from ..run import Run


def resume(settings: Checkpoint, run: Run, identity: dict[str, Any]) -> bool:
    """Restore the newest checkpoint that is whole; False where there is none; collective.

    Raises:
        DataError: there are checkpoints, and all are damaged.
        ConfigError: the checkpoint is of another run than that of this ``identity``.
    """
    damages: list[str] = []
    for step in run.comm.bcast_object(files.whole(settings.folder)):
        try:
            told = _restore(step, run, identity)
        except DataError as error:
            damages.append(str(error))
            continue
        if run.comm.rank == 0:
            for damage in damages:
                settings.tell(f"{damage}: going on from an older checkpoint", True)
            settings.tell(told, False)
        return True
    if damages:
        raise DataError(
            f"{damages[0]}; no other checkpoint is whole: to train anew leave {called('resume')} out and"
            f" remove {settings.folder}"
        )
    if run.comm.rank == 0:
        settings.tell(f"no checkpoint in {settings.folder} yet: starting from the beginning", False)
    return False


def _restore(step: str, run: Run, identity: dict[str, Any]) -> str:
    """Read the checkpoint in the folder ``step`` into the run; return what to say of it."""
    with run.comm.agreed():
        body = files.Stored(step).body if run.comm.rank == 0 else None
    body = run.comm.bcast_object(body)
    state.check_identity(step, body["identity"], identity)
    with run.comm.agreed():
        files.Stored(step, body).read(state.parts_to_read(run, body))
    state.restore(run, body["common"], body["own"])
    now = state.variable(run)
    changes = [f"{name} {now[name]} (was {was})" for name, was in body["variable"].items() if now.get(name) != was]
    where = f"after epoch {run.epoch}" + (f" and {run.epoch_steps} steps" if run.epoch_steps else "")
    if run.epoch >= run.epochs:
        what, name = ("iterations", "max_iter") if run.optimizer.full_batch else ("epochs", "epochs")
        changes.append(
            f"the run is complete: all {run.epochs} {what} are done already; a higher {called(name)} goes on"
        )
    return "; ".join([f"going on from {step}, {where}", *changes])


def refuse_unfinished(settings: Checkpoint) -> None:
    """Raise `ConfigError` if a run that begins anew would take the place of one that was not completed; local."""
    whole = files.whole(settings.folder)
    if whole and not settings.resume:
        try:
            body = files.Stored(whole[0]).body
        except DataError as error:
            raise ConfigError(f"{error}; to train anew remove {settings.folder}") from None
        if not body["complete"]:
            done = body["common"]
            raise ConfigError(
                f"{whole[0]}: a run stopped here, after epoch {done['epoch']} of {done['epochs']}:"
                f" {worded('resume=True', '--resume')} goes on"
                f" with it; to train anew remove {settings.folder}"
            )


def clear(settings: Checkpoint, run: Run) -> None:
    """Remove what stands in the way of the checkpoints that ``run`` will write; local, for rank 0 before it trains.

    That is all that never became a checkpoint or belongs to steps that will be done again, and for a run that begins
    anew those of an earlier one that was completed.

    Raises:
        ConfigError: an earlier run was not completed, and this one does not go on with it.
    """
    refuse_unfinished(settings)
    whole = files.whole(settings.folder)
    for step, path in files.found(settings.folder):
        if not settings.resume or step > run.iterations or path not in whole:
            files.remove(path)
