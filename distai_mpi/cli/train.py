"""``distai-mpi train``: from a data file to result.json."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from ..comm import launch, leaving
from ..errors import ConfigError
from ..exit_codes import EX_ERROR, EX_INTERRUPTED
from ..files import check_writable, claimed
from ..messages import tell
from ..options import FULL_BATCH, SOLVERS, TOPICS
from ..settings import by_flags
from ..signals import Signals, listening
from .build import (
    batch_size,
    checkpoints,
    copies,
    fit_options,
    given,
    load_data,
    make_callbacks,
    make_checkpoint,
    make_model,
    repeat,
    tell_notes,
)
from .config import flags_win
from .finished import finished
from .flags import TopicCommand, flags
from .job import asked_to_end, note, result_folder, what_to_warn_of
from .path import follow
from .settings import EITHER, check_flags

if TYPE_CHECKING:
    from ..comm import Communicator

MOST_SPEEDS = 16  # ranks whose speeds are told one by one


@click.command(cls=TopicCommand)
@flags(*TOPICS.values())
@click.pass_context
def command(ctx: click.Context, **settings: Any) -> int:
    """Train a model on all ranks; without flags, the MNIST MLP 784-128-10."""
    settings = flags_win(ctx, settings, EITHER)
    check_flags(settings)
    with listening() as signals, by_flags():
        return started(settings, signals)


def started(settings: dict[str, Any], signals: Signals) -> int:
    """Start MPI, train, and leave word of how that ended; return the exit status; collective."""
    out = settings["out"]
    if not out:
        signals.save_nothing()
    signals.on_leave = lambda status: note("interrupted", out) if status == EX_INTERRUPTED else None
    if launch.launcher().rank == 0:
        note("starting", out)
    from ..comm import Communicator

    with Communicator(launch.world(), watch=settings["watch"]) as comm:
        if comm.rank == 0:
            note("running", out)
        for warning in what_to_warn_of(comm, settings):
            if comm.rank == 0:
                tell(warning, warning=True)
        with claim(comm, out):
            status = train(comm, settings, signals)
        if comm.rank == 0 and status == 0:
            note("completed", result_folder(settings))
    if status:
        leaving.leave_together()  # a launcher kills the others as soon as one has left with a status
    return status


@contextlib.contextmanager
def claim(comm: Any, folder: str | None) -> Iterator[None]:
    """Hold the output folder, where there is one, against other runs; collective."""
    with contextlib.ExitStack() as held:
        with comm.agreed():
            if comm.rank == 0 and folder:
                held.enter_context(claimed(folder))
        yield


def train(comm: Communicator, settings: dict[str, Any], signals: Signals) -> int:
    """Load, build, fit and report; return the exit status; collective."""
    from .. import backend
    from ..train import fit
    from ..train.checkpoint import refuse_unfinished
    from ..train.checks import agree_on_device
    from ..train.parts import groups

    device = settings["device"]
    if device == "gpu":  # a GPU that is missing shows before data is read
        with comm.agreed():
            device = backend.choose(device, comm.node.rank)
    checkpoint = make_checkpoint(settings)
    with comm.agreed():
        if comm.rank == 0 and settings["trace"]:
            check_writable(settings["trace"])
        if comm.rank == 0 and checkpoint is not None:
            refuse_unfinished(checkpoint)
    if settings["resume"]:
        as_given, settings = settings, as_it_began(comm, settings)
        if done_before(comm, as_given, settings):
            return 0
    if asked_to_end(comm, settings, signals):
        return EX_INTERRUPTED
    with make_ranks(settings, comm) as ranks:
        sharing = groups(ranks)[1]
        sets = load_data(settings, sharing)
        if comm.rank == 0 and not settings["quiet"]:
            tell_notes(*sets)
        model = make_model(settings, sets.train.labels)
        device = agree_on_device(device, model, comm)
        if settings["shards"] == "speed":
            sets = by_speed(sets, model, sharing, settings, device)
        options = fit_options(settings, sets.train, batch_size(settings, sharing.size))
        if settings["verbose"] and comm.rank == 0:
            describe(model, sets.train, settings)
        if asked_to_end(comm, settings, signals):
            return EX_INTERRUPTED
        of_path, figures = follow(sharing, settings, model, sets)
        options |= of_path
        again = repeat(settings, comm.size, command)
        callbacks = make_callbacks(settings, sets, comm.rank, again, checkpoint, figures)
        result = fit(model, sets.train, ranks, test=sets.test, device=device, callbacks=callbacks, **options)
    if comm.rank == 0 and not settings["quiet"] and not settings["as_json"]:
        report(result, comm.size, settings)
    return outcome(comm, result, settings, options["optimizer"].lr)


@contextlib.contextmanager
def make_ranks(settings: dict[str, Any], comm: Communicator) -> Iterator[Any]:
    """``comm`` itself, or the mesh that the flags make of its ranks; collective."""
    if settings["mesh"] is None:
        yield comm
        return
    from ..comm import Mesh, MeshShape, Pipeline

    shape = MeshShape.parse(settings["mesh"], comm.size)
    refused = {
        "--out-of-core": (settings["out_of_core"], "the rows on disk are of ranks that hold the whole model"),
        "--l1-path": (settings["l1_path"], "it is for linear models, which are not split"),
        "--shards speed": (settings["shards"] == "speed", "it times the whole model; give weights, as --shards 3,1"),
    }
    for flag, (given_too, why) in refused.items():
        if shape.copy > 1 and given_too:
            raise ConfigError(f"--mesh {shape} and {flag} exclude each other: {why}; leave one out")
    pipeline = Pipeline(**given(settings, "micro_batches", "recompute", "cuts"))
    with Mesh(comm, **shape._asdict(), parts=settings["parts"], pipeline=pipeline) as mesh:
        yield mesh


def outcome(comm: Communicator, result: Any, settings: dict[str, Any], lr: float | None) -> int:
    """The exit status that ``result`` asks for.

    Raises:
        ConfigError: training diverged.
    """
    if result.status == "interrupted":
        saved = result.stop_reason == "signal"
        if comm.rank == 0:
            note("interrupted" if saved else "unsaved", settings["out"])
            if not saved:
                why = f"training was stopped by a {result.stop_reason}; --resume goes on from an older checkpoint"
                print(f"distai-mpi: error: {why}", file=sys.stderr, flush=True)
        return EX_INTERRUPTED if saved else EX_ERROR
    if result.status != "completed":
        way_out = "" if lr is None else f"lower --lr (now {lr:g}) or "
        raise ConfigError(
            f"training {result.status} in {'epoch' if result.evaluations is None else 'iteration'} {result.epochs}:"
            f" the {result.stop_reason}; {way_out}scale the features"
        )
    return 0


def done_before(comm: Communicator, *settings: dict[str, Any]) -> bool:
    """Whether the run was completed already, of which the last line is then told again; collective.

    ``settings`` are the flags as they were given, and as the run began with them: either may be what it has kept.
    """
    from ..train.run import Result

    done, told = None, ""
    with comm.agreed():
        if comm.rank == 0:
            done, told = finished(settings[0], [repeat(each, comm.size, command) for each in settings])
    if told:
        tell(told)
    done = comm.bcast_object(done)
    if done is None:
        return False
    if comm.rank == 0 and settings[0]["as_json"]:
        print(json.dumps(done), flush=True)
    elif comm.rank == 0 and not settings[0]["quiet"]:
        tell("the run is complete already, and this is its result; to train anew leave --resume out")
        names = {field.name for field in dataclasses.fields(Result)}
        result = Result(None, **{name: value for name, value in done.items() if name in names})
        print(summary(result, done["ranks"], settings[0]), flush=True)
    return True


def as_it_began(comm: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run that goes on, with what ranks or their speed once decided; collective.

    Rows per rank were meant for the ranks that began: the rows of a step stay what they were then.  Where rows belong
    to ranks, shards by speed are not measured again; nor is, on as many ranks, what ``--allreduce auto`` came to.
    """
    from ..train.checkpoint import stored_settings

    stored = stored_settings(checkpoints(settings), comm)
    if stored is None:
        return settings
    kept: dict[str, Any] = {}
    if settings["batch_size"]:
        rows = stored["global_batch_size"]
        kept |= {"batch_size": None, "global_batch_size": rows}
        if comm.rank == 0 and rows != batch_size(settings, copies(settings, comm.size)):
            tell(f"--batch-size {settings['batch_size']} on {comm.size} ranks: a step keeps the {rows:,} rows it had")
    if settings["optimizer_name"] == "auto" and stored["optimizer"] in SOLVERS:
        # on other ranks the choice might be another
        kept |= {"optimizer_name": stored["optimizer"], "auto_began": True}
    held = stored["rows_of_ranks"] is not None and stored["shards"] is not None
    if settings["shards"] == "speed" and held and len(stored["shards"]) == copies(settings, comm.size):
        kept |= {"shards": tuple(stored["shards"]), "follows_speed": True}
    if settings["allreduce"] == "auto" and stored["ranks"] == comm.size:
        if stored["allreduce"] != "shared" or len(comm.leaders) == 1:
            kept["allreduce_began"] = stored["allreduce"]
    return settings | kept


def by_speed(sets: Any, model: Any, comm: Any, settings: dict[str, Any], device: Any) -> Any:
    """The sets, shared out by the ranks' speeds on ``model`` in steps of the size asked for; collective."""
    from .. import data
    from ..train import calibrate

    rows = sets.train.rows if settings["optimizer_name"] in FULL_BATCH else batch_size(settings, comm.size)
    partition = calibrate(model, sets.train, comm, rows, seed=settings["seed"], device=device)
    if comm.rank == 0 and not settings["quiet"]:
        print(speeds(partition), flush=True)
    return data.Sets(*(shard and data.repartition(shard, partition, comm) for shard in sets))


def speeds(partition: Any) -> str:
    """The ranks' speeds in a line; of many ranks the extremes."""
    rates = partition.weights
    if len(rates) > MOST_SPEEDS:
        slow, fast = min(rates), max(rates)
        ends = ((rates.index(slow), slow), (rates.index(fast), fast))
        told = " to ".join(f"rank {rank} {rate:,.0f}" for rank, rate in ends)
    else:
        told = ", ".join(f"rank {rank} {rate:,.0f}" for rank, rate in enumerate(rates))
    fractions = ", ".join(f"{rate / sum(rates):.1%}" for rate in rates[:MOST_SPEEDS])
    return f"speed: {told} rows/s, shards {fractions}{', ...' if len(rates) > MOST_SPEEDS else ''}"


def describe(model: Any, training: Any, settings: dict[str, Any]) -> None:
    """Print what is about to happen and what each rank holds."""
    print(f"model {settings['model_name']}: {' → '.join(map(str, model.widths))}, {model.layout.size:,} parameters")
    print(f"data {settings['data']}: {training.rows:,} rows × {training.features:,} features, {training.transfer}")
    print(f"shuffle {training.shuffle}, rows by rank: {', '.join(f'{count:,}' for count in training.counts)}")


def _size(count: int) -> str:
    """``count`` bytes in the largest unit of which there is one, GiB at most."""
    power = min(3, max(0, count.bit_length() - 1) // 10)
    return f"{count / 1024**power:,.{0 if power == 0 else 1}f} {('bytes', 'KiB', 'MiB', 'GiB')[power]}"


def report(result: Any, ranks: int, settings: dict[str, Any]) -> None:
    """Print where the time of a traced run went, and what a completed one came to."""
    from ..train.tracing import balance

    if result.time is not None:
        print(f"{balance(result.time)}  → {settings['trace']}", flush=True)
    if result.bytes_read is not None:
        told = f"memory of a rank at most {_size(result.peak_memory)} with Python and code"
        print(f"rows on disk: read {_size(result.bytes_read)}; {told}", flush=True)
    if result.status == "completed":
        print(summary(result, ranks, settings), flush=True)


def summary(result: Any, ranks: int, settings: dict[str, Any]) -> str:
    """The last line of a run."""
    from ..train.progress import counted, digits, figure

    searches = result.evaluations is not None
    parts = [f"train loss {digits(result.train_loss) if searches else figure(result.train_loss)}"]
    if result.test_accuracy is not None:
        parts.append(f"test accuracy {100 * result.test_accuracy:.2f} %")
    elif result.test_loss is not None:
        parts.append(f"test loss {figure(result.test_loss)}")
    parts.append(f"{result.seconds:.2f} s on {ranks} rank{'s' if ranks > 1 else ''}")
    if searches:
        parts += [counted(result.iterations, "iteration"), counted(result.rounds, "round")]
        if result.relative_gap is not None:
            parts.append(f"gap about {result.relative_gap:.1e} of the loss")
        parts.append(ending(result, settings))
    else:
        parts.append(f"{result.samples_per_second:,.0f} samples/s")
    return "  ".join(parts) + (f"  → {settings['out']}" if settings["out"] else "")


def ending(result: Any, settings: dict[str, Any]) -> str:
    """Why a searching method ended, and what to try where numbers may have kept it from its tolerance."""
    if result.converged is not False:
        return f"ended by {result.stop_reason}"
    told = f"not at the optimum: ended by {result.stop_reason}"
    by_rounding = ("no further decrease", "iterations", "rounding of the parameters")
    rounded = settings["dtype"] == "float32" and result.stop_reason in by_rounding
    if not rounded or result.without_optimum is not None:  # of separable classes a warning has told already
        return told
    ways = ["a larger --max-iter"] * (result.stop_reason == "iterations")
    ways += ["--standardize"] * (not settings["standardize"])
    return f"{told} (try {', '.join([*ways, 'or --dtype float64']) if ways else '--dtype float64'})"
