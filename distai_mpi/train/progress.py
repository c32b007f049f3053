"""Progress of a run: a bar on a terminal, plain lines elsewhere; on rank 0."""

from __future__ import annotations

import time
from typing import Any

from ..backend import number
from ..comm import Exchange
from ..comm.exchange.choice import resolve
from .callbacks import Callback
from .gradient.factors import FactorGradients
from .run import Run

REFRESH = 0.1  # seconds between two looks of the bar


def figure(value: float) -> str:
    """``value`` with four decimals, and with an exponent where these would show next to nothing, or too much."""
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e7 else f"{value:.4g}"


def epoch_line(record: dict[str, Any], epochs: int) -> str:
    """One epoch in words."""
    parts = [f"epoch {record['epoch']}/{epochs}", f"loss {figure(record['running_loss'])}"]
    if record.get("test_loss") is not None:
        parts.append(f"test loss {figure(record['test_loss'])}")
    if record.get("test_accuracy") is not None:
        parts.append(f"accuracy {100 * record['test_accuracy']:.2f} %")
    parts.append(f"{record['samples_per_second']:,.0f} samples/s")
    return "  ".join(parts)


def digits(value: float) -> str:
    """``value`` with eight significant digits, of which iterations near an optimum change the last ones."""
    return f"{value:#.8g}"


def iteration_line(record: dict[str, Any], most: int, first_norm: float | None) -> str:
    """One iteration of a full-batch solver in words; ``first_norm`` is the gradient's norm at the start."""
    parts = [f"iteration {record['iterations']}/{most}", f"loss {digits(record['running_loss'])}"]
    parts.append(distance(record, first_norm))
    parts.append(counted(record["evaluations"], "evaluation"))
    if record["products"]:
        parts.append(counted(record["products"], "product"))
    if record.get("test_accuracy") is not None:
        parts.append(f"accuracy {100 * record['test_accuracy']:.2f} %")
    elif record.get("test_loss") is not None:
        parts.append(f"test loss {figure(record['test_loss'])}")
    return "  ".join(parts)


def distance(record: dict[str, Any], first_norm: float | None) -> str:
    """How far an iteration is from the optimum: the estimated gap, or where there is none the gradient's norm."""
    gap = record.get("relative_gap")
    return relative(record["gradient_norm"], first_norm) if gap is None else f"gap about {gap:.1e}"


def relative(norm: float, first: float | None) -> str:
    """The gradient's norm beside the first one, which a tolerance is a fraction of."""
    return f"gradient {norm / first:.1e} of the first" if first else f"gradient {norm:.1e}"


def counted(number: int, what: str) -> str:
    """``number`` things, such as 1 round or 1,024 rounds."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def line(run: Run, record: dict[str, Any]) -> str:
    """The line of what ``record`` is of: an epoch, or an iteration of a full-batch solver."""
    if run.searches:
        return iteration_line(record, run.epochs, run.first_norm)
    return epoch_line(record, run.epochs)


class ExchangeLine(Callback):
    """A line on how gradients travel, and why where that was left to ``auto``."""

    def __init__(self, auto: bool) -> None:
        self.auto = auto

    def on_start(self, run: Run) -> None:
        """Print it."""
        objective, exchange, model = run.objective, run.objective.exchange, run.objective.model
        chosen = resolve(run.objective.comm, Exchange("auto"), model.layout.size, model.dtype, run.loader.device)
        known = self.auto and not objective.whole and chosen.name == exchange.name  # a resumed run may keep another
        gradients = getattr(run.training, "gradients", None)
        parts = [str(chosen) if known else exchange.name]
        parts += ["factors of rows in place of gradients"] * isinstance(gradients, FactorGradients)
        parts += ["many steps in one compiled loop"] * run.fuses
        parts += ["overlapped with the backward pass"] * getattr(gradients, "overlaps", False)
        parts += ["float16 between nodes"] * (exchange.dtype is not None)
        print(f"exchange {', '.join(parts)}", flush=True)


class Chosen(Callback):
    """A line on the method that ``--optimizer auto`` came to."""

    def on_start(self, run: Run) -> None:
        """Print it."""
        print(f"optimizer auto: {run.optimizer.name}", flush=True)


class Lines(Callback):
    """A line an epoch, or iteration, on standard output."""

    def on_epoch(self, run: Run, record: dict[str, Any]) -> None:
        """Print the epoch."""
        print(line(run, record), flush=True)


class Bar(Callback):
    """A bar with rate, loss and time left under the lines of the epochs that are done.

    The loss shown between two epochs is that of rank 0's rows: a mean over all ranks would
    cost a message a step.  Of full-batch solvers it moves by iterations, and shows no time left: they end where
    they have come far enough, mostly long before the last iteration that they may make.
    """

    _progress: Any = None

    def on_start(self, run: Run) -> None:
        """Draw the empty bar."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        searches = run.searches
        columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rate]}")]
        columns += [] if searches else [TimeRemainingColumn()]
        console = Console()
        # a launcher may end the process at any moment: a hidden cursor would then stay hidden
        console.show_cursor = lambda show=True: False  # type: ignore[method-assign]
        self._progress = Progress(*columns, console=console, transient=True)
        self._progress.start()
        if searches:
            start = f"iteration {run.epoch + 1}/{run.epochs}"
            self._task = self._progress.add_task(start, total=run.epochs, completed=run.epoch, rate="")
        else:
            total = run.epochs * run.loader.shard.rows
            self._task = self._progress.add_task("epoch 1", total=total, rate="")
        self._looked, self._rows = time.perf_counter(), run.rows

    def on_step(self, run: Run) -> None:
        """Move the bar, at most ten times a second."""
        now = time.perf_counter()
        if run.searches or now - self._looked < REFRESH:
            return
        rate = (run.rows - self._rows) / (now - self._looked)
        loss, weight = number(run.sums.loss), number(run.sums.weight)
        loss = loss / weight if weight else float("nan")
        self._looked, self._rows = now, run.rows
        self._progress.update(
            self._task,
            completed=run.rows,
            description=f"epoch {run.epoch + 1}/{run.epochs}  loss {figure(loss)}",
            rate=f"{rate:,.0f} samples/s",
        )

    def on_epoch(self, run: Run, record: dict[str, Any]) -> None:
        """Print the epoch above the bar."""
        self._progress.console.print(line(run, record), highlight=False)
        if run.searches:
            self._progress.update(
                self._task,
                completed=run.epoch,
                description=f"iteration {min(run.epoch + 1, run.epochs)}/{run.epochs}"
                f"  loss {digits(record['running_loss'])}",
                rate=distance(record, run.first_norm),
            )
        self._looked, self._rows = time.perf_counter(), run.rows

    def on_close(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()


def progress(terminal: bool) -> Callback:
    """The callback that fits standard output: a bar where a person watches on a terminal."""
    return Bar() if terminal else Lines()
