"""Learning-rate schedules: factors of the base rate, by the number of steps taken."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar, Protocol

import numpy as np

from ..options import OPTIONS
from ..settings import setting, settings


class Schedule(Protocol):
    """A factor of the learning rate for each step, the same on every rank."""

    name: ClassVar[str]

    def __call__(self, step: int) -> float:
        """The factor, from 0 up, for step number ``step`` = 0, 1, ..."""
        ...


@settings
class Constant:
    """Always the base rate."""

    name: ClassVar[str] = "constant"

    def __call__(self, step: int) -> float:
        """See `Schedule`."""
        return 1.0


@settings
class Step:
    """The rate is multiplied by ``gamma`` after every ``every`` steps."""

    every: int = setting(kind="int", low=1)
    gamma: float = setting(OPTIONS["decay_factor"], default=0.1)
    name: ClassVar[str] = "step"

    def __call__(self, step: int) -> float:
        """See `Schedule`."""
        return self.gamma ** (step // self.every)


@settings
class Cosine:
    """Half a cosine from the base rate down to ``final_factor`` times it over ``steps`` steps, then constant.

    ``steps`` None: as many as the run that it is given to makes.

    Loshchilov & Hutter 2017, "SGDR", equation 5, without restarts.
    """

    steps: int | None = setting(kind="int", default=None, low=1)
    final_factor: float = setting(OPTIONS["lr_floor"], default=0.0)
    name: ClassVar[str] = "cosine"

    def __call__(self, step: int) -> float:
        """See `Schedule`."""
        assert self.steps is not None, "a schedule over all steps of a run is bound to them first: see `over`"
        done = min(1.0, step / self.steps)
        return self.final_factor + (1 - self.final_factor) * 0.5 * (1 + math.cos(math.pi * done))


@settings
class WarmUp:
    """The rate rises linearly over the first ``steps`` steps; then ``after`` takes over, counted from there.

    Goyal et al. 2017, "Accurate, large minibatch SGD", section 2.2.
    """

    steps: int = setting(OPTIONS["warmup"])
    after: Schedule = setting(default=Constant())
    name: ClassVar[str] = "warm-up"

    def __call__(self, step: int) -> float:
        """See `Schedule`."""
        return (step + 1) / self.steps if step < self.steps else self.after(step - self.steps)


def over(schedule: Schedule, steps: int) -> Schedule:
    """``schedule`` for a run of ``steps`` steps: its length where it has none of its own."""
    if isinstance(schedule, Cosine) and schedule.steps is None:
        return replace(schedule, steps=max(1, steps))
    if isinstance(schedule, WarmUp):
        return replace(schedule, after=over(schedule.after, steps - schedule.steps))
    return schedule


def factors(schedule: Schedule, first: int, steps: int) -> Any:
    """The factors of so many steps from number ``first`` on, float64, shape (steps,)."""
    if type(schedule) is Constant:
        return np.ones(steps)
    return np.array([schedule(step) for step in range(first, first + steps)], np.float64)


SCHEDULES: dict[str, type[Schedule]] = {kind.name: kind for kind in (Constant, Step, Cosine)}
