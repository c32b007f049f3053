"""How a run exchanges gradients and parameters, as the user says it."""

from __future__ import annotations

from ..errors import ConfigError
from ..options import OPTIONS
from ..settings import called, setting, settings


@settings
class Exchange:
    """How gradients and parameters travel between ranks.

    Attributes:
        algorithm: by name; None: the communicator's own.
        dtype: of numbers that travel between nodes, under ``hierarchical`` or ``auto``: ``float32``, or ``float16`` in
            half the bytes.  Gradients are rounded, and summed in float32; of parameters the change is, and what
            rounding takes from it is added to the next one.  On one node nothing travels and nothing is rounded.
        overlap: whether under ``hierarchical`` or ``auto`` gradients of layers start to travel between nodes as soon as
            they are made, while the backward pass goes on; None: where a few trials before the first step find that
            faster.  Never on one node.
        factors: whether ranks exchange the factors of their rows (inputs of layers, and gradients by their outputs) in
            place of the gradient, to the same result; None: where these are shorter, as in small batches.

    Raises:
        ConfigError: a value that cannot work, or ``factors`` together with ``overlap``.
    """

    algorithm: str | None = setting(OPTIONS["allreduce"], default=None)
    dtype: str = setting(OPTIONS["wire"], default="float32")
    overlap: bool | None = setting(OPTIONS["early"], default=None)
    factors: bool | None = setting(OPTIONS["factors"], default=None)

    def check(self) -> None:
        """Refuse what excludes each other."""
        if self.factors and self.overlap:
            raise ConfigError(
                f"{called('factors')} and {called('overlap', '--early')} exclude each other: factors travel whole,"
                " after the backward pass; give one"
            )
