"""Where and when a run is saved, and whether it goes on from there, as the user says it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError, DataError
from ...messages import tell
from ...options import OPTIONS
from ...settings import called, setting, settings
from . import files

if TYPE_CHECKING:
    from ...comm import Communicator

UNITS = {"s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}


@settings
class Checkpoint:
    """Where and when `fit` saves a run, and whether it goes on from what is there.

    SIGUSR1 and SIGTERM, on any rank, save the run at the next step on which all ranks agree, some 0.2 s or three steps
    later, and end it with the status ``interrupted``, also in the middle of an epoch and without ``every``.  Where the
    ranks cannot agree within 30 s of a SIGTERM, as where one of them has died, they end with status 143.

    Attributes:
        folder: of checkpoints, each a folder of its own; all ranks see the same files in it.
        every: epochs (2 or "2") or time ("30s", "10min", "1h") between two; None: only when a signal comes.
        resume: go on from the newest checkpoint that is whole; without one, from the beginning.  The model, the
            data, seed, global batch size, kind of optimizer, l2 and shuffle must be the same (see `state.identity`).
            Under the global shuffle the number of ranks may be another one: the batches are the same, the result is
            to rounding.
        keep: checkpoints that are kept; with two, one is left when the newest turns out to be damaged.
        tell: takes what rank 0 has to say, and whether it is a warning; default: to standard error.

    Raises:
        ConfigError: a value that cannot work.
    """

    folder: str = setting(kind="str")
    every: int | str | None = setting(default=None)
    resume: bool = setting(default=False)
    keep: int = setting(OPTIONS["keep_checkpoints"], default=2)
    tell: Callable[[str, bool], None] = setting(default=tell, repr=False)

    def check(self) -> None:
        """Refuse what is no time and no number of epochs."""
        _ = self.epochs, self.seconds

    @property
    def epochs(self) -> int | None:
        """Epochs between two checkpoints; None where time counts, or nothing."""
        return None if self.every is None else _parse(str(self.every))[0]

    @property
    def seconds(self) -> float | None:
        """Seconds between two checkpoints; None where epochs count, or nothing."""
        return None if self.every is None else _parse(str(self.every))[1]


def _parse(every: str) -> tuple[int | None, float | None]:
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([a-z]*)\s*", every)
    if match and match[2] == "" and match[1].isdigit() and int(match[1]) > 0:
        return int(match[1]), None
    if match and match[2] in UNITS and float(match[1]) > 0:
        return None, float(match[1]) * UNITS[match[2]]
    name = called("every", "--checkpoint-every")
    raise ConfigError(f"{name} {every!r}: give epochs between two checkpoints, such as 2, or time: 30s, 10min, 1h")


def stored_settings(folder: str, comm: Communicator) -> dict[str, Any] | None:
    """What the newest checkpoint in ``folder`` that can be read says of its run; None without one.

    ``ranks``, how they exchange gradients (``allreduce``), ``global_batch_size``, the ``shards`` as weights (None:
    even), the ``optimizer``, and ``rows_of_ranks``, None where rows belong to no rank.  Collective.
    """
    found = None
    if comm.rank == 0:
        for _, step in files.found(folder):
            try:
                body = files.Stored(step).body
            except DataError:
                continue
            found = {name: body["identity"].get(name) for name in ("global_batch_size", "rows_of_ranks", "optimizer")}
            found |= {name: body["variable"][name] for name in ("ranks", "allreduce", "shards")}
            break
    return comm.bcast_object(found)
