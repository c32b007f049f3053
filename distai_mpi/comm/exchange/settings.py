"""What a user asks of the exchange of gradients and parameters."""

from __future__ import annotations

from ...errors import ConfigError
from ...options import OPTIONS
from ...settings import called, setting, settings

SHARING = ("shared", "hierarchical")  # what is more than messages
CHOICES = OPTIONS["allreduce"].choices
DTYPES = OPTIONS["wire"].choices


@settings
class Exchange:
    """How gradients and parameters travel among the ranks; see `choice` for what ``auto`` and None become.

    Attributes:
        algorithm: one of `CHOICES`; None: the communicator's own.  ``shared`` is for one node, ``hierarchical`` for
            several; the others are messages.
        dtype: of float32 numbers where they travel between nodes under ``hierarchical``: with ``float16`` in half the
            bytes.  Gradients are rounded, and summed in float32; of parameters the change is, and what rounding
            takes from it is added to the next one.  On one node nothing travels and nothing is rounded.
        overlap: whether under ``hierarchical`` gradients of layers start to travel between nodes as soon as they are
            made, while the backward pass goes on (wait-free backpropagation); None: where a few trials before the first
            step find that faster.  Never on one node.
        factors: whether ranks exchange the factors of their rows (inputs of layers, and gradients by their outputs) in
            place of the gradient, to the same result; None: where these are shorter, as in small batches.

    Raises:
        ConfigError: a value that there is not, or two that exclude each other.
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

    @property
    def compressed(self) -> bool:
        """Whether numbers are rounded where they travel between nodes."""
        return self.dtype == "float16"
