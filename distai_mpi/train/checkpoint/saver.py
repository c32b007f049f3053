"""A run is saved while it goes on.

At a step on which all ranks agree, each copies its state into memory set aside for it; that is all that training
waits for.  A thread of each rank writes the copy to a file.  When all ranks have told that theirs is on the disk,
rank 0 writes the manifest, which makes a checkpoint of the files, and removes old ones.  Format: `files`.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ...backend import number
from ...errors import ConfigError, DataError, DistaiError
from ...settings import called
from ...signals import Signals, listening
from ...trace import CHECKPOINT, during
from . import files, state
from .resume import clear, resume
from .settings import Checkpoint

if TYPE_CHECKING:
    from ...comm.pending import Pending
    from ..run import Run

CHECK_SECONDS = 0.2  # between two times that the ranks talk of checkpoints


@contextmanager
def saving(settings: Checkpoint | None, run: Run) -> Iterator[Saver | None]:
    """A `Saver` of ``run`` for the block, in which signals are listened to; None where nothing is saved."""
    if settings is None:
        yield None
        return
    with listening() as signals:
        saver = Saver(settings, run, signals)
        try:
            yield saver
        finally:
            saver.close()


class Saver:
    """Saves one run, and takes it up again; all methods are collective, at the same step on all ranks.

    Ranks decide together, by a small sum that travels from one step to the next: whether a signal has come to any
    of them, whether it is time (by the clock of rank 0), and whether files are written.

    Args:
        settings: see `Checkpoint`.
        run: before its first step.
        signals: what was received, on this rank.

    Attributes:
        stopped: seconds that each snapshot has kept this rank from training.
        ending: once a signal has ended the run, its status and the reason, as in `Result`; None before.
    """

    def __init__(self, settings: Checkpoint, run: Run, signals: Signals) -> None:
        self.settings, self.run, self.signals, self.comm = settings, run, signals, run.comm
        self.identity = state.identity(run)
        self.stopped: list[float] = []
        self.ending: tuple[str, str] | None = None
        self._image: files.Image | None = None
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[dict[str, Any]] | None = None  # this rank's file
        self._manifest: Future[None] | None = None  # on rank 0
        self._step = ""
        self._body: dict[str, Any] = {}
        self._failed = False  # whether the last one was not written, as far as this rank knows
        self._wanted = False
        self._saved_at: tuple[int, int] | None = None  # iterations and epoch of the last snapshot
        self._question: Pending | None = None
        self._pause = 1
        self._next = 0  # the iteration at which the ranks talk again
        self._asked = self._last = time.monotonic()
        self._asked_at = 0

    # --- before the first step

    def start(self) -> bool:
        """Go on from the newest checkpoint if that is asked for; return whether there was one."""
        settings, comm = self.settings, self.comm
        resumed = settings.resume and resume(settings, self.run, self.identity)
        if resumed:
            self._saved_at = (self.run.iterations, self.run.epoch)
        with comm.agreed():
            if comm.rank == 0:
                clear(settings, self.run)
        if settings.every is not None:
            with comm.agreed():
                self._prepare()
        self._next = self.run.iterations
        self._asked_at = self.run.iterations
        self._asked = self._last = time.monotonic()
        self.signals.begin()
        return resumed

    def _prepare(self) -> None:
        """Take the memory of a snapshot, and see that files can be written; local."""
        folder = self.settings.folder
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{folder}: cannot be made ({error.strerror}); name a folder of your own") from None
        if not os.access(folder, os.W_OK):
            raise ConfigError(f"{folder}: cannot be written to; name a folder of your own")
        try:
            self._image = files.Image(state.parts_to_write(self.run))
        except OSError:
            raise ConfigError("no memory for a copy of the state: leave checkpoints out, or use more nodes") from None

    def rows_moved(self) -> None:
        """Rows belong to other ranks from now on, as the next checkpoints are to say."""
        self.identity = state.identity(self.run)

    # --- while it trains

    def after_step(self) -> bool:
        """Do what is due after a step; return whether all ranks end the run here; `ending` says how."""
        run = self.run
        ends_epoch = run.epoch_steps == run.steps_per_epoch  # which has its own call
        if run.iterations < self._next or ends_epoch:
            return False
        if self._question is None:
            self._ask()
            self._next = run.iterations + 1
            return False
        with during(self.comm.recorder, CHECKPOINT):
            return self._act()

    def after_epoch(self, last: bool) -> bool:
        """As `after_step` at the end of an epoch, ``last`` if training ends with it: then all is written on return."""
        settings, run = self.settings, self.run
        due = settings.epochs is not None and run.epoch % settings.epochs == 0
        self._wanted |= due
        if last:
            self.signals.answered.set()  # the run ends by itself
            self.drain()
            if settings.every is not None or settings.resume:
                self.save(complete=True)
            return False
        if due or run.iterations >= self._next or self._question is not None:
            if self._question is None:
                self._ask()
            return self._act()
        return False

    def save(self, complete: bool = False) -> None:
        """Save the run as it is and wait until that is done; ``complete``: it has come to its end."""
        self._begin(complete)
        self.drain()

    def drain(self) -> None:
        """Wait until nothing is being written on any rank."""
        if self._question is not None:
            self._question.wait()
            self._question = None
        if self._writing is not None:  # on all ranks or on none
            self._writing.exception()
            self._collect()
        if self._manifest is not None:
            self._manifest.result()
        self.comm.barrier()

    def close(self) -> None:
        """Let go of the threads; local."""
        self._pool.shutdown(wait=True)

    def _ask(self) -> None:
        """Begin to sum up what the ranks have to say."""
        signalled, lost = self.signals.look() is not None, not math.isfinite(number(self.run.sums.loss))
        written = self._writing is not None and self._writing.done()
        due, pause, busy = False, 0, False
        if self.comm.rank == 0:
            now, steps = time.monotonic(), self.run.iterations - self._asked_at
            rate = steps / max(now - self._asked, 1e-9)
            pause = max(1, min(int(rate * CHECK_SECONDS), 4 * self._pause))
            due = self.settings.seconds is not None and now - self._last >= self.settings.seconds
            busy = self._manifest is not None and not self._manifest.done()
            self._asked, self._asked_at = now, self.run.iterations
        self._question = self.comm.pending([signalled, lost, written, due, pause, busy])

    def _act(self) -> bool:
        """Do what the answer to the question asks for; return whether the run ends."""
        assert self._question is not None
        signalled, lost, written, due, pause, busy = self._question.wait().tolist()
        self._question, self._pause = None, int(pause)
        self._next = self.run.iterations + self._pause
        self._wanted |= due > 0
        self.signals.look()
        if signalled:
            self.signals.answered.set()
        if written == self.comm.size:
            self._collect()
        elif self._writing is None and not (busy or lost) and self._wanted:
            self._begin()
        if signalled:
            self._save_last(lost > 0)
        return signalled > 0

    def _save_last(self, lost: bool) -> None:
        """Save the run because of a signal, unless its loss is ``lost``: not finite."""
        self.drain()
        if not lost:
            self.save()
        saved = not (lost or any(self.comm.allgather_object(self._failed)))
        step = files.step_folder(self.settings.folder, self.run.iterations)
        told = f"saved in {step}" if saved else f"not saved: {called('resume')} goes on from an older checkpoint"
        where = f"after epoch {self.run.epoch} and {self.run.epoch_steps} steps"
        self._tell(f"stopped by a signal {where}; {told}", warning=True)
        self.ending = ("interrupted", "signal" if saved else "signal, and the run could not be saved")
        if lost:
            self.ending = ("diverged", "loss is not finite")

    def _begin(self, complete: bool = False) -> None:
        """Take a snapshot and let it be written."""
        run, began = self.run, time.perf_counter()
        self._wanted, self._last = False, time.monotonic()
        now = (run.iterations, run.epoch)
        if now == self._saved_at and not complete:
            return
        parts = state.parts_to_write(run)
        if self._image is None:
            try:
                with self.comm.agreed():
                    self._image = files.Image(parts)
            except DistaiError as error:
                self._failed = True
                self._tell(f"no checkpoint: no memory for a copy of the state ({error})", warning=True)
                return
        image = self._image
        image.copy(parts)
        own = state.own(run)
        self._body = {
            "complete": complete,
            "ranks": self.comm.size,
            "identity": self.identity,
            "variable": state.variable(run),
            "common": state.common(run),
        }
        self._saved_at, self._failed = now, False
        self._step = files.step_folder(self.settings.folder, run.iterations)
        self._writing = self._pool.submit(_write, self._step, self.comm.rank, image, own)
        self.stopped.append(time.perf_counter() - began)

    def _collect(self) -> None:
        """All ranks' files are written, or have failed to be: let rank 0 make a checkpoint of them, or remove them."""
        assert self._writing is not None
        try:
            report: dict[str, Any] | str = self._writing.result()
        except (OSError, MemoryError, DataError) as error:
            report = _reason(error, self._step)
        self._writing = None
        reports = self.comm.allgather_object(report)
        failures = [report for report in reports if isinstance(report, str)]
        if failures:
            self._saved_at, self._failed = None, True
            self._tell(f"no checkpoint: {failures[0]}; older ones stay", warning=True)
        if self.comm.rank == 0:
            work = _discard if failures else self._finish
            self._manifest = self._pool.submit(work, self._step, {**self._body, "reports": reports})

    def _finish(self, step: str, body: dict[str, Any]) -> None:
        """Make a checkpoint of the files in ``step``; in rank 0's thread."""
        shards = body.pop("reports")
        own = [shard.pop("own") for shard in shards]
        try:
            files.commit(step, {**body, "own": own, "shards": shards})
        except (OSError, DistaiError) as error:
            self._tell(f"no checkpoint: {error}; older ones stay", warning=True)
            self._failed = True
            _discard(step, body)
            return
        files.prune(self.settings.folder, self.settings.keep)

    def _tell(self, message: str, warning: bool = False) -> None:
        if self.comm.rank == 0:
            self.settings.tell(message, warning)


def _reason(error: Exception, step: str) -> str:
    if isinstance(error, MemoryError):
        return f"{step}: no memory left"
    if not isinstance(error, OSError):
        return str(error)
    return f"{error.filename or step}: {error.strerror or error}"


def _write(step: str, rank: int, image: files.Image, own: dict[str, Any]) -> dict[str, Any]:
    return {**files.write_shard(step, rank, image), "own": own}


def _discard(step: str, body: dict[str, Any]) -> None:
    """Remove the files of a checkpoint that did not come to be, as far as that goes."""
    try:
        files.remove(step)
    except OSError:
        return  # what is left has no manifest
