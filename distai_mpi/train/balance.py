"""Rows follow the ranks' speeds while a run goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend import HOST
from ..data import ShardedDataset, repartition
from ..data.loader import steps_per_epoch
from ..errors import ConfigError
from ..messages import tell
from ..perf.machine import memory_left
from ..settings import called, setting, settings
from .gradient.base import most_rows
from .gradient.factors import FactorGradients
from .speeds import FIGURES, Change, LookPolicy, SpeedWindow, better
from .steps import SynchronousSteps

if TYPE_CHECKING:
    from ..comm.pending import Pending
    from .run import Run

Array = Any
FREE_PART = 2  # rows of a step may take this part of a rank's share of the free memory
ACTIVATIONS = 3  # numbers that a unit of a layer keeps for a row: its output, slope and gradient
MOVE_RATE = 100e6  # bytes a second by which rows move, until they have moved once
SPARSE_FEATURES = 1 << 10  # that a sparse row has at most, as far as its size is guessed
PAYOFF = 2.0  # times the seconds that rows take to move, which they must save


@settings
class Balance:
    """Lets the rows of each rank follow its speed, watched in every step.

    Under the global shuffle the ranks' parts of the global batch change between two steps: no rows move, the batches
    stay what they are, and so does the result, to rounding.  Under the local shuffle rows move after an epoch, where
    the epochs left repay it; what batches hold then depends on it.

    Attributes:
        memory: bytes that the rows of a step may take on a rank; None: half of its part of the free memory.
        row_bytes: bytes that a row of a step takes, with what the model keeps of it; None: by the widths of its
            layers, where it tells them.
        tell: takes what rank 0 has to say, and whether it is a warning; default: to standard error.
    """

    memory: int | None = setting(default=None)
    row_bytes: int | None = setting(default=None)
    tell: Callable[[str, bool], None] = setting(default=tell, repr=False)

    def check(self) -> None:
        """Refuse what is no number of bytes."""
        for name, value in (("memory", self.memory), ("row_bytes", self.row_bytes)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ConfigError(f"{called(name)} must be a whole number of bytes from 1 up, got {value!r}")


class Balancer:
    """Watches the speeds of one run, and changes the partition of its rows; all methods are collective.

    Ranks tell each other their speeds by a small sum that travels from one step to the next, so that no step waits for
    it, and decide alike: all from the same numbers.

    Args:
        settings: None: nothing is watched.
        run: before it is warm.
    """

    def __init__(self, settings: Balance | None, run: Run) -> None:
        self.settings, self.run, self.comm = settings, run, run.comm
        self.speeds, self.policy = SpeedWindow(), LookPolicy()
        self._question: Pending | None = None
        self._follows = False
        self._move_rate = MOVE_RATE
        self._rows = 0
        gradients = None if settings is None else getattr(run.training, "gradients", None)
        if isinstance(gradients, FactorGradients) and gradients.shared:
            # room for what a rank may come to: pages that nobody writes to take no memory
            run.training.gradients = FactorGradients(run.objective, self._most_of_factors())

    def start(self) -> None:
        """Begin to watch, before the first step."""
        run = self.run
        if self.settings is None:
            return
        obstacle = find_obstacle(run)
        if obstacle is not None:
            if self.comm.size > 1 and self.comm.rank == 0:
                self.settings.tell(f"rows do not follow the ranks' speeds: {obstacle}", False)
            return
        self._follows = True
        run.training.timed = True
        self._rows = run.rows
        self._local = run.loader.shard.shuffle == "local"
        self._full = 0 if self._local else min(run.loader.global_batch_size, run.loader.shard.rows)
        self._own = self._own_rows()
        step = max(run.loader.rows_of_step(rank) for rank in range(run.objective.comm.size))
        self._caps = self._of_data_ranks(max(self._most_rows(), 0), min)
        if not self._local and sum(self._caps) < run.loader.global_batch_size:
            self._caps = tuple(max(cap, step) for cap in self._caps)  # what the run began with has to do

    def _of_data_ranks(self, own: Any, over: Callable[[list[Any]], Any]) -> tuple[Any, ...]:
        """``own`` of each rank that shares rows; ``over`` those that are of one copy of the model."""
        rank, ranks = self.run.objective.comm.rank, self.run.objective.comm.size
        told = self.comm.allgather_object((rank, own))
        return tuple(over([value for other, value in told if other == each]) for each in range(ranks))

    def _most_rows(self) -> int:
        """Rows of a step that this rank has room for; local."""
        loader, model, asked = self.run.loader, self.run.objective.model, self.settings
        assert asked is not None
        most = loader.shard.rows
        if loader.device is HOST or asked.memory is not None:
            free = asked.memory or memory_left() // (FREE_PART * self.comm.node.size)
            most = rows_that_fit(free, asked.row_bytes or bytes_of_row(model, loader), loader.block_rows, most)
        gradients = self.run.training.gradients
        held = self._most_of_factors() if isinstance(gradients, FactorGradients) else gradients.most_rows
        return most if held is None else min(most, held)

    def _most_of_factors(self) -> int:
        """Most rows of a rank in a step whose gradients are exchanged as factors: they are one Batch."""
        return min(self.run.loader.block_rows, self.run.loader.global_batch_size)

    # --- steps

    def after_step(self) -> None:
        """Take in the step that is done, and change the partition for the next where the ranks agreed to."""
        run = self.run
        rows, self._rows = run.rows - self._rows, run.rows
        if not self._follows or rows < self._full:
            return
        loader = run.loader
        self.speeds.add(run.training.local_seconds, self._own)
        if self._local:
            return
        due = self.policy.step()
        if self._question is not None:
            change = self.policy.decide(*self._better(self._counts(), self._caps))
            if change is not None:
                loader.repartition(change.partition)
                self._changed(change, self._counts())
                self.speeds.clear()
                self.policy.reset()
        elif due:
            self._ask()

    def _own_rows(self) -> float:
        """Rows of this rank in a step; under the local shuffle on average."""
        loader = self.run.loader
        if self._local:
            return loader.shard.counts[loader.rank] / max(1, loader.steps)
        return loader.rows_of_step(loader.rank)

    def _counts(self) -> tuple[int, ...]:
        loader = self.run.loader
        return tuple(loader.rows_of_step(rank) for rank in range(loader.ranks))

    def _ask(self) -> None:
        """Begin to tell all ranks of this one's speed: the mean over the ranks of its copy of the model."""
        group = self.run.objective.comm
        told = np.zeros((group.size, FIGURES))
        told[group.rank] = self.speeds.summary()
        self._question = self.comm.pending((told * (group.size / self.comm.size)).reshape(-1))

    def _answer(self) -> Array:
        """All ranks' summaries, float64, shape (ranks that share rows, 4)."""
        assert self._question is not None
        told = self._question.wait().reshape(-1, FIGURES)
        self._question = None
        return told

    def _better(self, counts: tuple[int, ...], caps: tuple[int, ...]) -> tuple[Change | None, float]:
        """What the answer to the question asks for, and what the slowest rank computes, in seconds."""
        told, what = self._answer(), "rank" if self.run.objective.mesh is None else "copy"
        return better(told, counts, caps, what), float((told[:, 0] * counts).max())

    def stop(self) -> list[dict[str, Any]] | None:
        """Watch no more; what `Result.rebalanced` says."""
        if self._question is not None:
            self._answer()
        return None if self.settings is None else self.run.rebalanced

    # --- epochs

    def before_epoch(self) -> bool:
        """Under the local shuffle: move rows to other ranks where the epochs left repay it; whether any have moved."""
        run = self.run
        if not self._follows or not self._local or run.epoch == 0 or run.epoch_steps:
            return False
        self._ask()
        shard, steps = run.loader.shard, max(1, run.loader.steps)
        room = memory_left() // (FREE_PART * self.comm.node.size) // _held_bytes(shard)
        caps = self._of_data_ranks(min(shard.rows, room), min)
        caps = tuple(max(shard.counts[r], min(cap, self._caps[r] * steps)) for r, cap in enumerate(caps))
        change, _ = self._better(shard.counts, caps)
        if change is None:
            return False
        counts = change.partition.counts(shard.rows)
        nbytes = max(_arriving(shard.counts, counts)) * _held_bytes(shard)
        now, then = change.seconds
        saved, cost = (now - then) * (run.epochs - run.epoch), nbytes / self._move_rate
        after = replace(shard, counts=counts, partition=change.partition)
        if saved < PAYOFF * cost or steps_per_epoch(after, run.loader.global_batch_size) != run.loader.steps:
            return False
        self._move(change, nbytes)
        return True

    def _move(self, change: Change, nbytes: int) -> None:
        run, began = self.run, time.perf_counter()
        run.loader.move(repartition(run.loader.shard, change.partition, run.objective.comm))
        seconds = max(self.comm.allgather_object(time.perf_counter() - began))
        if nbytes:
            self._move_rate = nbytes / max(seconds, 1e-9)
        self._changed(change, run.loader.shard.counts, seconds)
        self.speeds.clear()

    def _changed(self, change: Change, counts: tuple[int, ...], seconds: float | None = None) -> None:
        """Make room for the new numbers of rows, keep what has changed for the result and the trace, and say it."""
        run = self.run
        gradients = run.training.gradients
        if isinstance(gradients, FactorGradients) and not gradients.shared:  # messages are as long as they have to be
            run.training.gradients = FactorGradients(run.objective, most_rows(run.objective))
        self._own = self._own_rows()
        entry: dict[str, Any] = {"step": run.iterations, "weights": list(change.partition.weights), "why": change.why}
        if seconds is not None:
            entry["seconds"] = seconds
        run.rebalanced.append(entry)
        run.rebalanced_at.append(time.perf_counter_ns())
        if self.comm.rank == 0 and self.settings is not None:
            rows = ", ".join(f"{count:,}" for count in counts[:16]) + (", ..." if len(counts) > 16 else "")
            moved = "" if seconds is None else f" (moved in {seconds:.2g} s)"
            self.settings.tell(f"step {run.iterations}: rows by rank now {rows}{moved}: {change.why}", False)


def find_obstacle(run: Run) -> str | None:
    """Why rows cannot follow speeds in ``run``; None where they can, the same on all ranks."""
    if run.objective.comm.size == 1:
        return "one rank has all rows"
    if not isinstance(run.training, SynchronousSteps):
        return "full-batch solvers and averaging keep the shards that they began with"
    if run.fuses:
        return "steps of few rows are taken many at a time"
    if run.loader.stored is not None:
        return "rows on disk stay with their rank"
    return None


def rows_that_fit(free: int, row_bytes: int, block_rows: int, most: int) -> int:
    """Rows of a step, up to ``most``, of which a rank holds ``row_bytes`` each in ``free`` bytes; local.

    More than ``block_rows`` are worked through block by block in the memory of one: where that is there, any number.
    """
    return most if block_rows * row_bytes <= free else min(most, free // row_bytes)


def bytes_of_row(model: Any, loader: Any) -> int:
    """What a row of a batch takes, with what ``model`` keeps of it until its gradient is made; an estimate."""
    units = sum(getattr(model, "widths", ())[1:])
    return loader.dtype.itemsize * (loader.shard.features + ACTIVATIONS * units)


def _held_bytes(shard: ShardedDataset) -> int:
    """Bytes of a row at most, but of a sparse one a guess: alike on all ranks, whatever types they hold."""
    return 8 * (2 + (min(shard.features, SPARSE_FEATURES) if shard.dataset.is_sparse else shard.features))


def _arriving(old: tuple[int, ...], new: tuple[int, ...]) -> list[int]:
    """Rows that come to each rank when ranges of ``old`` lengths become ranges of ``new`` ones."""
    found, before, after = [], 0, 0
    for was, now in zip(old, new, strict=True):
        common = max(0, min(before + was, after + now) - max(before, after))
        found.append(now - common)
        before, after = before + was, after + now
    return found
