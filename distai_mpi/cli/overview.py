"""The commands, and what ``distai-mpi --help`` prints of them, without click: it takes longer to load than Python."""

from __future__ import annotations

import sys

from .. import __version__
from ..comm import launch

ABOUT = "Train models on N ranks of MPI: mpiexec -n N distai-mpi train."
COMMANDS = {
    "train": "Train a model; without flags, the MNIST MLP.",
    "evaluate": "Loss and accuracy of a trained model on a data set.",
    "predict": "Write a trained model's predictions.",
    "plan": "How many ranks and nodes a training needs, from a short probe.",
    "plot": "Draw the training losses of several runs side by side.",
    "bench": "Measure training on this machine, beside other programs.",
    "info": "Show MPI, ranks, CPUs, BLAS and GPU, and warn of what will hurt.",
}
HELP = {"-h", "--help"}
VERSION = f"distai-mpi {__version__}"


def overview() -> str:
    """The help of the command: its commands, one a line."""
    lines = ["Usage: distai-mpi [OPTIONS] COMMAND [ARGS]...", "", f"  {ABOUT}", "", "Options:"]
    lines += ["  --version   Show the version and exit.", "  -h, --help  Show this message and exit.", "", "Commands:"]
    return "\n".join([*lines, *(f"  {name:8}  {told}" for name, told in COMMANDS.items())])


def answer(argv: list[str]) -> bool:
    """Print what ``argv``, the words behind the command's name, ask for: help or the version; False: something else."""
    told = overview() if not argv or argv[0] in HELP else VERSION if argv[0] == "--version" else None
    if told is not None and launch.launcher().rank == 0:
        print(told, file=sys.stdout, flush=True)
    return told is not None
