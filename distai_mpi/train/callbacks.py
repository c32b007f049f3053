"""What may watch a training run, and what a program asks of one beside the training itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..options import OPTIONS
from ..settings import called, setting, settings

if TYPE_CHECKING:
    from ..data import ShardedDataset
    from .run import Result, Run


class Callback:
    """Base class of callbacks; override what you need.

    Methods run on every rank, at the same point of the run.  A callback must not change the
    run, must not communicate in `on_step`, and sees parameters as read-only arrays.
    """

    def on_start(self, run: Run) -> None:
        """Before the first step."""

    def on_step(self, run: Run) -> None:
        """After every step, or after several that were taken in one compiled loop; keep it short."""

    def on_epoch(self, run: Run, record: dict[str, Any]) -> None:
        """After every epoch, with the line that `Result.history` gets."""

    def on_end(self, run: Run, result: Result) -> None:
        """After the last epoch."""

    def on_close(self) -> None:
        """However the run ends, last, on an error too; must not communicate."""


@settings
class EarlyStopping(Callback):
    """Keeps the parameters that are best on validation rows, which are the result, and ends training in time.

    Attributes:
        valid: this rank's share of rows that are looked at after every epoch, from `data.load_sets`.
        metric: what is best on them, a name of `options.METRICS`.
        patience: stop after so many epochs in a row without a better value; None: never.
    """

    valid: ShardedDataset = setting(repr=False)
    metric: str = setting(OPTIONS["metric"], default="loss")
    patience: int | None = setting(OPTIONS["patience"], default=None)

    def check(self) -> None:
        """Refuse what holds no rows."""
        if not hasattr(self.valid, "rows"):
            raise ConfigError(f"{called('valid')} must be rows from data.load_sets or data.load, got {self.valid!r}")


@settings
class Trace(Callback):
    """Records what each rank does when, and writes it at the end; `Result.time` has the sums.

    Attributes:
        path: a file, ``.json`` or ``.json.gz``, see `tracing`.  Not written where an error ends the run.
    """

    path: str = setting(OPTIONS["trace"])

    def check(self) -> None:
        """Refuse files of another kind."""
        if not self.path.endswith((".json", ".json.gz")):
            path = called("path", f"--trace {self.path}")
            raise ConfigError(f"{path}: name a file FILE.json, or FILE.json.gz to have it compressed")
