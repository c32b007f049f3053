"""``distai-mpi bench``: measurements that anyone can repeat."""

from __future__ import annotations

import click

from ..lazy import lazy_group

COMMANDS = {
    "read": "How fast data files are loaded, beside other programs.",
    "checkpoint": "Write speed of checkpoints, beside the disk's own.",
    "train": "Training rate in samples/s, beside other programs.",
    "scaling": "Speed-up on 1, 2, ..., N ranks beside the laws of Amdahl and Gustafson.",
    "probe": "What 'plan' asks of a machine: steps of a training on 1, 2, ... ranks, and its speeds.",
    "allreduce": "Seconds of sums over ranks, beside the MPI library's and the memory's own speed.",
    "gradient": "Seconds of loss and gradient of linear models, beside a single reading of the rows.",
    "step": "Seconds from gradients to updated parameters, beside Allreduce and update.",
    "gpu": "Results of a GPU beside the CPU's, and its speed.",
    "shards": "Step time with even shards and with shards by speed, one rank being slow.",
    "pipeline": "Step time of a pipeline as it cuts itself, beside every other cut, one rank being slow.",
    "graph": "Encoder embedding of a random graph, beside reading its edges and writing its rows.",
}


@click.command(name="bench", cls=lazy_group(__package__, COMMANDS))
def command() -> None:
    """Measure training on this machine.

    Scaling, probe, allreduce, gradient and step run under mpiexec; others start their own ranks.
    """
