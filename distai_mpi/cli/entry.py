"""Where the program ``distai-mpi`` begins: with the signals, before all that takes time to import."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

LISTENS = ("train",)  # commands that save what they have done


def main() -> int:
    """Run the process's command line and return the exit status; see `main.main`."""
    block: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    listens = sys.argv[1:2] and sys.argv[1] in LISTENS
    if listens:
        from ..signals import listening

        block = listening()
    else:
        from .overview import answer

        if answer(sys.argv[1:]):
            return 0
    with block:
        if listens:
            from ..comm import edges, launch

            started = launch.launcher()
            edges.begin(started.rank, started.size)
        from .main import main as run

        return run()
