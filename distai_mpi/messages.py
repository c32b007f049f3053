"""What a program says beside its results, on standard error."""

from __future__ import annotations

import sys


def tell(message: str, warning: bool = False) -> None:
    """Print a message, on the rank that calls."""
    print(f"distai-mpi: {'warning: ' if warning else ''}{message}", file=sys.stderr, flush=True)
