"""Learning-rate schedules: factors of the base rate, by the number of steps taken."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

from ..errors import ConfigError


class Schedule(Protocol):
    """A factor of the learning rate for each step, the same on every rank."""

    name: ClassVar[str]

    def __call__(self, step: int) -> float:
        """The factor, from 0 up, for step number ``step`` = 0, 1, ..."""
        ...


@dataclass(frozen=True)
class Constant:
    """Always the base rate."""

    name: ClassVar[str] = "constant"

    def __call__(self, step: int) -> float:
        """See `Schedule`."""
        return 1.0


@dataclass(frozen=True)
class Step:
    """The rate is multiplied by ``gamma`` after every ``every`` steps."""

    every: int
    gamma: float = 0.1
    name: ClassVar[str] = "step"

    def __post_init__(self) -> None:
        if self.every < 1 or not 0 < self.gamma <= 1:
            raise ConfigError(f"a step schedule needs every >= 1 and 0 < gamma <= 1, got {self.every}, {self.gamma}")

    def __call__(self, step: int) -> float:
        """See `Schedule`."""
        return self.gamma ** (step // self.every)


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from the base rate down to ``final_factor`` times it over ``steps`` steps, then constant.

    Loshchilov & Hutter 2017, "SGDR", equation 5, without restarts.
    """

    steps: int
    final_factor: float = 0.0
    name: ClassVar[str] = "cosine"

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.final_factor <= 1:
            raise ConfigError(
                f"a cosine schedule needs steps >= 1 and 0 <= final_factor <= 1, got {self.steps}, {self.final_factor}"
            )

    def __call__(self, step: int) -> float:
        """See `Schedule`."""
        done = min(1.0, step / self.steps)
        return self.final_factor + (1 - self.final_factor) * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class WarmUp:
    """The rate rises linearly over the first ``steps`` steps; then ``after`` takes over, counted from there.

    Goyal et al. 2017, "Accurate, large minibatch SGD", section 2.2.
    """

    steps: int
    after: Schedule = Constant()
    name: ClassVar[str] = "warm-up"

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ConfigError(f"a warm-up takes 0 steps or more, got {self.steps}")

    def __call__(self, step: int) -> float:
        """See `Schedule`."""
        return (step + 1) / self.steps if step < self.steps else self.after(step - self.steps)


SCHEDULES: dict[str, type[Schedule]] = {kind.name: kind for kind in (Constant, Step, Cosine)}
