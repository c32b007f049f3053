"""``distai-mpi bench read``: how fast data is loaded, beside other programs and the mere reading of the bytes."""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import sys
import time
from typing import Any

import click

from ...comm import launch
from ...errors import ConfigError, DataError, DistaiError
from ..flags import Counts

# What peers are asked to do: they load once to warm up, as we do, and time the second load, imports left out.
TIMED = """
import json, os, sys, time
{imports}
for _ in range(2):
    began = time.perf_counter()
    {load}
    seconds = time.perf_counter() - began
print(json.dumps({{"seconds": seconds, "bytes_per_second": os.path.getsize(sys.argv[1]) / seconds}}))
"""
PEERS = {
    "sklearn": ("from sklearn.datasets import load_svmlight_file", "load_svmlight_file(sys.argv[1])"),
    "numpy": ("import numpy", "numpy.loadtxt(sys.argv[1], delimiter={delimiter!r}, skiprows={header})"),
}
FLOOR = ("buffer = bytearray(4 << 20)", "file = open(sys.argv[1], 'rb', 0)\n    while file.readinto(buffer): pass")
LIBSVM_NAMES = (".svm", ".libsvm", ".svmlight")
ROWS_AT_ONCE = 10_000


@click.command()
@click.argument("file")
@click.option("--ranks", type=Counts(), default="1,2", show_default=True, help="Numbers of ranks to load with.")
@click.option(
    "--make",
    type=Counts(),
    metavar="ROWS,FEATURES",
    help="Write FILE first, with so many random rows: libsvm if its name ends in .svm, else CSV.",
)
@click.option(
    "--against",
    type=click.Choice(list(PEERS)),
    multiple=True,
    help="scikit-learn's load_svmlight_file, or numpy.loadtxt for CSV; may be given several times.",
)
@click.option("--python", metavar="PATH", help="The Python that has these.  [default: this one]")
@click.option(
    "--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Turns; the medians are shown."
)
@click.option("--timeout", type=click.FloatRange(min=1), default=300, show_default=True, help="Seconds for one run.")
@click.option("--launcher", metavar="COMMAND", help="As in bench train.  [default: this environment's mpiexec]")
@click.option("--json", "json_file", metavar="JSON_FILE", help="Write all rates here.")
def command(
    file: str, ranks: tuple[int, ...], make: tuple[int, ...] | None, json_file: str | None, **options: Any
) -> None:
    """Seconds and MB/s of loading FILE into the memory of the ranks, without imports and compilation."""
    if launch.launcher().size > 1:
        raise ConfigError("bench read starts its own ranks: run it without a launcher, with --ranks N,N")
    from ...files import check_writable, write_json
    from ...perf.compare import Contender, run_in_turn

    if json_file:
        check_writable(json_file)
    if make:
        make_file(file, make)
    if not os.path.isfile(file):
        raise DataError(f"{file}: there is no such file; let --make ROWS,FEATURES write one")
    ours = [
        Contender(f"distai-mpi, {n} rank{'s' * (n > 1)}", ours_command(file, n, options["launcher"])) for n in ranks
    ]
    for name in options["against"]:
        if not options["python"] and importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"--against {name}: it is not installed beside this Python; name one that has it, --python"
            )
    python = options["python"] or sys.executable
    peers = [Contender(name, [python, "-c", peer_program(name, file), file]) for name in options["against"]]
    floor = Contender("reading the bytes", [sys.executable, "-c", TIMED.format(imports=FLOOR[0], load=FLOOR[1]), file])
    load = os.getloadavg()[0]
    contenders = [*ours, *peers, floor]
    run_in_turn(contenders, options["repeats"], options["timeout"])
    report = {
        "file": file,
        "bytes": os.path.getsize(file),
        "repeats": options["repeats"],
        "load": load,
        "rows": [
            {
                "command": contender.name,
                "seconds": statistics.median(result["seconds"] for result in contender.results),
                "bytes_per_second": contender.median,
                "rates": contender.rates,
                "to_first": contender.ratio(ours[0]),
            }
            for contender in contenders
        ],
    }
    show(report)
    if json_file:
        write_json(json_file, report)


def make_file(path: str, shape: tuple[int, ...]) -> None:
    """Write normal random numbers of six digits, and labels 0 and 1."""
    if len(shape) != 2:
        raise ConfigError("--make needs two numbers: ROWS,FEATURES")
    if os.path.exists(path):
        raise ConfigError(f"--make: {path} is there already; name a new file, or leave --make out")
    import numpy as np

    from ...files import write_whole

    def write(out: Any) -> None:
        rng, (rows, features) = np.random.default_rng(0), shape
        if path.endswith(LIBSVM_NAMES):
            line = "%d " + " ".join(f"{j}:%.6g" for j in range(1, features + 1)) + "\n"
        else:
            line = ",".join(["%.6g"] * features) + ",%d\n"
        for start in range(0, rows, ROWS_AT_ONCE):
            x = rng.normal(size=(min(ROWS_AT_ONCE, rows - start), features))
            y = (x[:, :1] > 0).astype(float)
            table = np.hstack((y, x) if path.endswith(LIBSVM_NAMES) else (x, y))
            out.write("".join(line % tuple(row) for row in table.tolist()).encode())

    write_whole(path, write)


def ours_command(file: str, ranks: int, launcher: str | None) -> list[str]:
    """The command that loads the file on ``ranks`` ranks and prints its rate as JSON."""
    from .train import ours_command as train_command

    started = train_command(ranks, launcher, ())
    return [*started[: started.index("-m")], "-c", "from distai_mpi.cli.bench.read import measure; measure()", file]


def measure() -> None:
    """Load the file that the last argument names twice, and print how long the second time took; collective."""
    from ... import data
    from ...comm import Communicator

    path = sys.argv[-1]
    with Communicator(launch.world()) as comm:
        for _ in range(2):
            comm.barrier()
            began = time.perf_counter()
            try:
                data.load(path, comm, shuffle="global", test_fraction=0)
            except DistaiError as error:  # the same on all ranks
                sys.exit(str(error) if comm.rank == 0 else 1)
            comm.barrier()
            seconds = time.perf_counter() - began
        if comm.rank == 0:
            print(json.dumps({"seconds": seconds, "bytes_per_second": os.path.getsize(path) / seconds}), flush=True)


def peer_program(name: str, file: str) -> str:
    """The program by which a peer loads ``file``, with its shape."""
    from ...data.formats import find
    from ...data.readers.csv_text import CsvFile

    imports, load = PEERS[name]
    if name == "numpy":
        found, _ = find(file)
        if not isinstance(found, CsvFile):
            raise ConfigError(f"--against numpy: {file} is no CSV file")
        load = load.format(
            delimiter=None if found.delimiter == ord(" ") else chr(found.delimiter), header=int(found.names is not None)
        )
    return TIMED.format(imports=imports, load=load)


def show(report: dict[str, Any]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("command", "seconds, median", "MB/s, median", "min – max", f"to {report['rows'][0]['command']}")
    for row in report["rows"]:
        rates = [rate / 1e6 for rate in row["rates"]]
        table.add_row(
            row["command"],
            f"{row['seconds']:.3f}",
            f"{row['bytes_per_second'] / 1e6:,.0f}",
            f"{min(rates):,.0f} – {max(rates):,.0f}",
            f"{row['to_first']:.3g} ×",
        )
    console = Console()
    console.print(table)
    console.print(f"{report['file']}: {report['bytes'] / 1e6:,.1f} MB; load before the run {report['load']:.1f}")
