"""How a run exchanges gradients and parameters, as the user says it."""

from __future__ import annotations

from ..errors import ConfigError
from ..settings import called, setting, settings

ALGORITHMS = ("auto", "native", "ring", "tree", "recursive_doubling", "rabenseifner", "shared", "hierarchical")


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

    algorithm: str | None = setting(
        default=None,
        choices=ALGORITHMS,
        flag="--allreduce",
        topic="exchange",
        help="How gradients are exchanged; auto measures what is fastest here, once for each kind of job.  "
        "[default: auto]",
    )
    dtype: str = setting(
        default="float32",
        choices=("float32", "float16"),
        flag="--wire",
        topic="exchange",
        shown=False,
        help="How numbers travel between nodes: float16 halves the bytes, and rounds gradients and updates.",
    )
    overlap: bool | None = setting(
        default=None,
        flag="--early",
        topic="exchange",
        shown=False,
        help="Send layers' gradients to other nodes during the backward pass already.  [default: where that is faster]",
    )
    factors: bool | None = setting(
        default=None,
        topic="exchange",
        shown=False,
        help="Exchange the factors that gradients of dense layers are made of.  [default: where they are shorter]",
    )

    def check(self) -> None:
        """Refuse what excludes each other."""
        if self.factors and self.overlap:
            raise ConfigError(
                f"{called('factors')} and {called('overlap', '--early')} exclude each other: factors travel whole,"
                " after the backward pass; give one"
            )
