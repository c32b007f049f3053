"""``distai-mpi bench probe``: what ``plan`` asks of a machine, measured where the ranks are."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from typing import Any

import click

from ...comm import launch
from ...errors import ConfigError
from ..build import batch_size, fit_options, load_data, make_model
from ..train_flags import settings_of


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--seconds", type=click.FloatRange(min=1), default=30, show_default=True, help="What it may take, about.")
@click.option("--json", "json_file", metavar="FILE", help="Write what was found here, for 'plan --probe FILE'.")
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
def command(seconds: float, json_file: str | None, flags: tuple[str, ...]) -> None:
    """Steps of a training on one rank, on a node's and on several nodes, and the speeds of the machine.

    FLAGS are those of 'distai-mpi train'.  Runs under a launcher, on one node or several: mpiexec -n N distai-mpi bench
    probe.  Data is read anew for each arrangement of ranks, which counts too.
    """
    began = time.perf_counter()
    settings = settings_of(flags)
    check_planned(settings)
    from ...comm import Communicator
    from ...files import check_writable, write_json
    from ...plan import Job, probe

    def options(shard: Any, ranks: int) -> dict[str, Any]:
        return fit_options(settings, shard, batch_size(settings, ranks))

    job = Job(
        lambda part: load_data(settings | {"quiet": True}, part).train,
        lambda shard: make_model(settings, shard.labels),
        options,
    )
    world = launch.world()
    with Communicator(world) as comm:
        with comm.agreed():
            if comm.rank == 0 and json_file:
                check_writable(json_file)
        left = seconds - comm.bcast_object(time.perf_counter() - began)
        found = asdict(replace(probe(comm, world, job, max(0.5, left)), flags=flags))
        with comm.agreed():
            if comm.rank == 0:
                if json_file:
                    write_json(json_file, found)
                print(json.dumps(found), flush=True)


def check_planned(settings: dict[str, Any]) -> None:
    """Refuse what a probe does not measure."""
    if settings["device"] != "cpu":
        raise ConfigError(f"--device {settings['device']}: a plan is for CPUs; leave it out")
    if settings["l1_path"] is not None:
        raise ConfigError("--l1-path trains many models, of which a plan knows nothing: plan one of them by --l1")
