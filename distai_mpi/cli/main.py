"""The command ``distai-mpi``: one SPMD program under a launcher, one rank alone.

All ranks parse the same arguments before MPI starts.  Commands are loaded when they are called for;
`distai_mpi.cli.NAME.command` is the command NAME.
"""

from __future__ import annotations

import contextlib
import io
import sys
import time
from typing import Any

import click

from .. import __version__
from ..comm import launch, leaving
from ..errors import DistaiError
from ..exit_codes import EX_ERROR
from ..perf import machine
from ..settings import by_flags
from .lazy import lazy_group
from .overview import ABOUT, COMMANDS, HELP, answer

INTERRUPTED = 130


@click.command(
    cls=lazy_group(__package__, COMMANDS),
    help=ABOUT,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__)  # for hints of misspelt flags; `answer` has printed it
def cli() -> None:
    """One of `COMMANDS`."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's) and return the exit status.

    0: done.  2: an error the user can mend, printed once.  Anything else that goes wrong is a bug and
    propagates, to be shown with its traceback by the hook that `launch.world` installs.
    """
    argv = sys.argv[1:] if argv is None else argv
    if answer(argv):
        return 0
    started = launch.launcher()
    machine.set_blas_threads(started.local_size)
    if started.rank == 0 and not {"-q", "--quiet", *HELP} & set(argv):
        from ..compiling import Progress, compiling

        compiling.told = Progress()
    result = None
    try:
        with _quiet_help(argv, started.rank), by_flags():
            result = cli.main(argv, prog_name="distai-mpi", standalone_mode=False)
    except DistaiError as error:
        return _report(str(error), started.rank)
    except click.exceptions.NoArgsIsHelpError as asked:
        if started.rank == 0:
            click.echo(asked.format_message())
    except click.ClickException as error:
        return _report(_usage(error), started.rank)
    except (click.Abort, KeyboardInterrupt):
        if not leaving.leave_together():
            leaving.abort(INTERRUPTED)
        return INTERRUPTED
    return result if isinstance(result, int) else 0


def _quiet_help(argv: list[str], rank: int) -> contextlib.AbstractContextManager[Any]:
    """Let the first rank alone print help."""
    if rank > 0 and HELP & set(argv):
        return contextlib.redirect_stdout(io.StringIO())
    return contextlib.nullcontext()


def _usage(error: click.ClickException) -> str:
    """Click's message, with the way to the command's help."""
    message = error.format_message()
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "distai-mpi"
    return f"{message[0].lower()}{message[1:].rstrip('.')} (see '{path} --help')"


def _report(message: str, rank: int) -> int:
    """Print an error that all ranks share once, and return the exit status when all may go.

    A launcher kills the other ranks as soon as one has left with an error, so rank 0 prints before the rest
    leave.  If some ranks don't come, the error was this rank's alone: it says so and aborts the job.
    """
    if rank == 0:
        from .job import note

        note("refused", None)
        print(f"distai-mpi: error: {message}", file=sys.stderr, flush=True)
    elif not leaving.connected():
        time.sleep(1.0)  # there is nothing else to wait on
    if not leaving.leave_together():
        if rank > 0:
            print(f"distai-mpi: error: rank {rank}: {message}", file=sys.stderr, flush=True)
        leaving.abort(EX_ERROR)
    return EX_ERROR
