"""``distai-mpi plan``: how many ranks and nodes a training needs."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from ..comm import launch
from ..errors import ConfigError, DataError, DistaiError
from .bench.probe import check_planned
from .bench.ranks import ranks_command
from .train_flags import settings_of

if TYPE_CHECKING:
    from ..plan import Planner, Prediction, Probe

LARGER = (2, 4, 8)  # batches so many times larger are shown where the user has chosen none
START_SECONDS = 35.0  # for which a probe may take longer than it was told, to start its ranks on a crowded machine


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--max-nodes", type=click.IntRange(min=1), default=1, show_default=True, help="Nodes that there are.")
@click.option("--deadline", metavar="TIME", help="What training may take, as 90s, 30min or 2h: the cheapest that does.")
@click.option("--budget", type=click.FloatRange(min=0, min_open=True), metavar="NODE_HOURS", help="What it may cost.")
@click.option("--machine", "machine_file", metavar="FILE.toml", help="The machine to plan for.  [default: this one]")
@click.option(
    "--probe", "probe_file", metavar="FILE", help="What 'bench probe --json FILE' found; nothing is measured."
)
@click.option("--probe-seconds", type=click.FloatRange(2, 600), default=25, show_default=True, help="Of a probe.")
@click.option("--learn", "learn_folder", metavar="DIR", help="Runs of 'train --out' in DIR, to correct predictions by.")
@click.option("--launcher", metavar="COMMAND", help="Starts the probe's ranks.  [default: this environment's mpiexec]")
@click.option("--save-machine", metavar="FILE.toml", help="Write what is known of the machine here.")
@click.option("--json", "json_file", metavar="FILE", help="Write all predictions here.")
@click.option("--plot", "plot_file", metavar="FILE.png", help="Draw speed-ups beside both laws; needs matplotlib.")
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
def command(flags: tuple[str, ...], **given: Any) -> None:
    """Seconds, memory and efficiency of a training for each number of ranks and nodes, and the best of them.

    FLAGS are those of 'distai-mpi train'.  Started alone, without mpiexec: a probe of at most half a minute starts
    ranks of its own and takes steps of the very training; closed forms of its exchange give the rest.
    """
    if launch.launcher().size > 1 and not given["probe_file"]:
        raise ConfigError("plan starts its own ranks: run it without a launcher, or give it what a --probe has found")
    if launch.launcher().rank == 0:
        plan(flags, given)


def plan(flags: tuple[str, ...], given: dict[str, Any]) -> None:
    """Probe, predict, choose and report; starts no MPI in this process."""
    found = read_probe(given["probe_file"]) if given["probe_file"] else None
    if found is not None:
        flags = same_flags(given["probe_file"], found, flags)
    settings = settings_of(flags)
    check_planned(settings)
    deadline = None if given["deadline"] is None else parse_time(given["deadline"])
    check_files(given["json_file"], given["plot_file"], given["save_machine"])
    from ..plan import Machine, Planner, check_memory, check_mesh, check_split, choose, learn, read_machine
    from ..plan import candidates as all_candidates
    from .plan_report import show

    machine = None if given["machine_file"] is None else read_machine(given["machine_file"])
    if settings["mesh"] is not None:
        known = machine or (None if found is None else Machine.from_dict(found.machine))
        check_mesh(settings["mesh"], own_cores() if known is None else known.cores, given["max_nodes"])
    if given["learn_folder"] is not None and not os.path.isdir(given["learn_folder"]):
        raise DataError(f"--learn {given['learn_folder']}: there is no such folder")
    found = found or run_probe(given, flags)
    here = Machine.from_dict(found.machine)
    if given["save_machine"]:
        save_machine(given["save_machine"], machine or here)
    planner = Planner(found, machine or here)
    if given["learn_folder"] is not None:
        planner = Planner(found, planner.machine, learn(planner, given["learn_folder"]))
    if given["max_nodes"] > 1:
        _ = planner.measured.link  # refused where nothing is known of it
    if settings["mesh"] is not None:
        check_split(found.workload, settings["mesh"])
    batches, asked = planned_batches(settings, found)
    made = check_memory(planner, list(all_candidates(planner, given["max_nodes"], settings["mesh"], batches)))
    predictions = [planner.predict(candidate) for candidate in made]
    chosen = choose(predictions, deadline, given["budget"], asked)
    show(planner, predictions, chosen, flags, asked)
    write_files(planner, predictions, chosen.best, flags, given)


def parse_time(text: str) -> float:
    """Seconds of a text such as 2h."""
    from ..train.checkpoint.settings import UNITS

    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([a-z]+)\s*", text)
    if found is None or found[2] not in UNITS or float(found[1]) <= 0:
        raise ConfigError(f"--deadline {text!r}: give a time such as 90s, 30min or 2h")
    return float(found[1]) * UNITS[found[2]]


def check_files(json_file: str | None, plot_file: str | None, machine_file: str | None) -> None:
    """Raise `ConfigError` unless all can be written; before the probe, not after it."""
    from ..files import check_writable
    from ..perf.charts import check_matplotlib

    if plot_file:
        if not plot_file.endswith(".png"):
            raise ConfigError(f"--plot {plot_file}: the chart is a PNG file; name it FILE.png")
        check_matplotlib()
    for name in filter(None, (json_file, plot_file, machine_file)):
        check_writable(name)


def own_cores() -> int:
    """Cores that ranks may have here."""
    from ..perf.machine import affinity, cpu_quota, physical_cores

    return max(1, int(min(physical_cores(), len(affinity()), cpu_quota())))


def run_probe(given: dict[str, Any], flags: Sequence[str]) -> Probe:
    """Start a job of as many ranks as there are cores, and return what it has found."""
    from ..messages import tell
    from ..perf.compare import run

    ranks = own_cores()
    seconds = given["probe_seconds"]
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "probe.json")
        words = ["bench", "probe", "--seconds", f"{seconds:g}", "--json", path, "--", *flags]
        line = ranks_command(ranks, given["launcher"], words)
        tell(f"probe: {ranks} rank{'s' if ranks > 1 else ''} for about {seconds:g} s")
        try:
            run(line, seconds + START_SECONDS, by_seconds=True)
        except DistaiError as error:
            raise DistaiError(probe_error(str(error), seconds)) from None
        return read_probe(path)


def probe_error(message: str, seconds: float) -> str:
    """What went wrong in a probe, as the job itself has said it, or that it took too long."""
    if "not done after" in message:
        return (
            f"the probe was not done after {seconds + START_SECONDS:g} s: give it more with --probe-seconds, or a part"
            " of the data"
        )
    own = re.search(r"distai-mpi: error: (.+?)(\n-{20,}|$)", message, re.DOTALL)
    return own[1].strip() if own else f"the probe failed: {message}"


def read_probe(path: str) -> Probe:
    """What ``bench probe --json`` wrote to ``path``."""
    from ..plan import Machine, Probe

    try:
        with open(path, encoding="utf-8") as file:
            found = Probe.from_dict(json.load(file))
        machine = Machine.from_dict(found.machine)
    except OSError as error:
        raise DataError(f"--probe {path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"--probe {path}: was not written by 'bench probe --json' of this version ({error})") from None
    machine.check(f"--probe {path}")
    found.check(f"--probe {path}")
    return found


def same_flags(path: str, found: Probe, flags: tuple[str, ...]) -> tuple[str, ...]:
    """The flags that a probe was measured with, which those of the command, if any, must be."""
    if flags and flags != found.flags:
        raise ConfigError(
            f"--probe {path} was measured with {' '.join(found.flags) or 'no flags'}, and not with {' '.join(flags)}:"
            " leave the flags of train out, or probe anew"
        )
    return found.flags


def planned_batches(settings: dict[str, Any], found: Probe) -> tuple[Any, int | None]:
    """Rows of a step by the number of ranks, and those that train as was asked for; None: each of them does."""
    work = found.workload
    if work.batch == work.rows or settings["global_batch_size"]:
        return (lambda ranks: [work.batch]), work.batch
    if settings["batch_size"]:
        return (lambda ranks: [settings["batch_size"] * ranks]), None
    larger = [times * work.batch for times in LARGER if times * work.batch <= work.rows]
    return (lambda ranks: [work.batch, *larger]), work.batch


def save_machine(path: str, machine: Any) -> None:
    """Write the machine's description as a TOML file."""
    from ..files import write_whole

    write_whole(path, lambda file: file.write(machine.to_toml().encode()))


def write_files(
    planner: Planner, predictions: Sequence[Prediction], best: Prediction, flags: Sequence[str], given: dict[str, Any]
) -> None:
    """Write what was asked for."""
    from ..files import write_json, write_whole
    from .plan_report import as_json, chart

    if given["json_file"]:
        write_json(given["json_file"], as_json(planner, predictions, best, flags))
    if given["plot_file"]:
        drawn = chart(planner, predictions, best)
        write_whole(given["plot_file"], lambda file: file.write(drawn))
