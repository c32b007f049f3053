"""What a user asks of the exchange of gradients and parameters."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import ConfigError

SHARING = ("shared", "hierarchical")  # what is more than messages
CHOICES = ("auto", "native", "ring", "tree", "recursive_doubling", "rabenseifner", *SHARING)
DTYPES = ("float32", "float16")


@dataclass(frozen=True)
class Exchange:
    """How gradients and parameters travel among the ranks; see `choice.choose` for what ``auto`` and None become.

    Attributes:
        algorithm: one of `CHOICES`.  ``shared`` is for one node, ``hierarchical`` for several; the others are messages.
        dtype: of the numbers that travel between nodes under ``hierarchical``; None: that of the parameters.  With
            ``float16`` gradients are rounded, and summed in float32; of parameters the change is, and what rounding
            takes from it is added to the next one.  On one node nothing travels and nothing is rounded.
        overlap: whether under ``hierarchical`` gradients of layers start to travel between nodes as soon as they are
            made, while the backward pass goes on (wait-free backpropagation); None: where a few trials before the first
            step find that faster.  Never on one node.
        factors: whether ranks exchange the factors of their rows (inputs of layers, and gradients by their outputs) in
            place of the gradient, to the same result; None: where these are shorter, as in small batches.

    Raises:
        ConfigError: a value that there is not, or two that exclude each other.
    """

    algorithm: str = "auto"
    dtype: str | None = None
    overlap: bool | None = None
    factors: bool | None = None

    def __post_init__(self) -> None:
        if self.algorithm not in CHOICES:
            raise ConfigError(f"unknown allreduce algorithm {self.algorithm!r}: choose one of {', '.join(CHOICES)}")
        if self.dtype not in (None, *DTYPES):
            raise ConfigError(f"unknown wire {self.dtype!r}: choose one of {', '.join(DTYPES)}")
        if self.factors and self.overlap:
            raise ConfigError("--factors and --early exclude each other: give one")

    @property
    def compressed(self) -> bool:
        """Whether numbers are rounded where they travel between nodes."""
        return self.dtype == "float16"
