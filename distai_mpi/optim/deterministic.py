"""What the methods that see all rows in every iteration have in common."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ..errors import ConfigError


@dataclass(frozen=True)
class Deterministic:
    """A method that sees all rows in every iteration, and finds the length of its steps.

    Attributes:
        sample: linear models of few parameters begin at the solution of so many rows, over all ranks, and their
            Hessian preconditions: an iteration then gains as much as several.  None: as many as serve; 0: none.
    """

    sample: int | None = field(default=None, kw_only=True)
    name: ClassVar[str]
    full_batch: ClassVar[bool] = True
    lr: ClassVar[None] = None

    def __post_init__(self) -> None:
        if self.sample is not None and self.sample < 0:
            raise ConfigError(f"a sample needs 0 rows (none) or more, got {self.sample}")
