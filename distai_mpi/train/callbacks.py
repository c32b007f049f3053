"""What may watch a training run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
