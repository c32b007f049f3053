"""Where the program ``distai-mpi`` begins: with the signals, before all that takes time to import."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

LISTENS = ("train",)  # commands that save what they have done


def main() -> int:
    """Run the process's command line and return the exit status; see `main.main`."""
    block: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if sys.argv[1:2] and sys.argv[1] in LISTENS:
        from ..signals import listening

        block = listening()
    with block:
        from .main import main as run

        return run()
