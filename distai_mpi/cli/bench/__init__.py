"""``distai-mpi bench``: measurements that anyone can repeat."""

from __future__ import annotations

import click

from ..lazy import lazy_group

COMMANDS = {
    "checkpoint": "Write speed of checkpoints, beside the disk's own.",
    "train": "Training rate in samples/s, beside other programs.",
}


@click.command(name="bench", cls=lazy_group(__package__, COMMANDS))
def command() -> None:
    """Measure training on this machine; every benchmark starts its own ranks."""
