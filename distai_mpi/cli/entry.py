"""Where the program ``distai-mpi`` begins: with the signals, before all that takes time to import."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from ..comm import edges
from ..comm.launch import launcher
from ..signals import listening

LISTENS = ("train",)  # commands that save what they have done


def main() -> int:
    """Run the process's command line and return the exit status; see `main.main`."""
    listens = sys.argv[1:2] and sys.argv[1] in LISTENS
    block: contextlib.AbstractContextManager[Any] = listening() if listens else contextlib.nullcontext()
    with block:
        if listens:
            started = launcher()
            edges.begin(started.rank, started.size)
        from .main import main as run

        return run()
