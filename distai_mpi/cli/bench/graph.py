"""``distai-mpi bench graph``: encoder embedding of a random graph, beside reading its edges and writing its rows."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import click

from ...comm import launch
from ...errors import ConfigError
from ..flags import Counts
from .checkpoint import Count
from .ranks import ranks_command

CHUNK = 1 << 20  # edges that one key of the generator makes


@click.command()
@click.option("--edges", type=Count(), default="1e7", show_default=True, help="In random order.")
@click.option("--nodes", type=Count(), default="1e6", show_default=True)
@click.option("--classes", type=click.IntRange(min=1), default=50, show_default=True, help="Every node has one.")
@click.option("--ranks", type=Counts(), default="1,2", show_default=True, help="Numbers of ranks, taken in turn.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the graph.")
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Turns; medians are shown.")
@click.option("--timeout", type=click.FloatRange(min=1), default=600, show_default=True, help="Seconds for one run.")
@click.option("--launcher", metavar="COMMAND", help="As in bench shards.  [default: this environment's mpiexec]")
@click.option("--json", "json_file", metavar="FILE", help="Write all figures here.")
@click.option("--as-rank", is_flag=True, hidden=True, help="Be one of the ranks.")
def command(
    ranks: tuple[int, ...],
    repeats: int,
    timeout: float,
    launcher: str | None,
    json_file: str | None,
    as_rank: bool,
    **graph: int,
) -> None:
    """Seconds of the encoder embedding of a random graph, beside one reading of its edges and one writing of its rows.

    The graph depends on the seed alone.  Reading and writing are done by all ranks at once, each its part.  What is
    written is kept until the embedding is done: both are into new memory, which costs more than what was just freed.
    """
    if as_rank:
        measure(**graph)
        return
    if launch.launcher().size > 1:
        raise ConfigError("bench graph starts its own ranks: run it without a launcher, with --ranks N,N")
    from ...files import check_writable, write_json
    from ...perf.compare import Contender, run_in_turn

    if json_file:
        check_writable(json_file)
    words = [word for name, value in graph.items() for word in (f"--{name}", str(value))]
    load = os.getloadavg()[0]
    contenders = [
        Contender(
            str(count),
            ranks_command(count, launcher, ["bench", "graph", "--as-rank", *words], count > (os.cpu_count() or 1)),
        )
        for count in ranks
    ]
    run_in_turn(contenders, repeats, timeout, by_seconds=True)
    report = graph | {"repeats": repeats, "load": load, "rows": [row(one, contenders[0]) for one in contenders]}
    show(report)
    if json_file:
        write_json(json_file, report)


def row(contender: Any, first: Any) -> dict[str, Any]:
    """The medians of one number of ranks, and how they compare in the same turns."""
    results = contender.results
    medians = {
        name: statistics.median(result[name] for result in results)
        for name in ("seconds", "read_seconds", "write_seconds")
    }
    floor = statistics.median(each["seconds"] / (each["read_seconds"] + each["write_seconds"]) for each in results)
    return {"ranks": int(contender.name), **medians, "to_floor": floor, "speed_up": contender.ratio(first)} | {
        "turns": results
    }


def measure(edges: int, nodes: int, classes: int, seed: int) -> None:
    """Embed the graph once, kernels compiled, and the floors beside it, and print the times; an SPMD program."""
    import numpy as np

    from ...comm import Communicator
    from ...graphs import edges_from_local, encode_nodes

    with Communicator(launch.world()) as comm:
        labels = np.random.default_rng((seed, 1)).integers(0, classes, nodes)
        few = min(nodes, 1000)  # their rows take no memory that the large ones would get
        small = edges_from_local(*random_edges(few, few, seed, comm.rank, comm.size), comm, nodes=few)
        encode_nodes(small, labels[:few], comm, classes=classes)
        graph = edges_from_local(*random_edges(edges, nodes, seed, comm.rank, comm.size), comm, nodes=nodes)
        read, _ = slowest(comm, lambda: (graph.src.max(initial=0), graph.dst.max(initial=0)))
        write, rows = slowest(comm, lambda: np.full((nodes // comm.size, classes), 1, np.float32))
        seconds, _ = slowest(comm, lambda: encode_nodes(graph, labels, comm, classes=classes))
        del rows  # here, so that the embedding does not get their memory
        if comm.rank == 0:
            print(json.dumps({"seconds": seconds, "read_seconds": read, "write_seconds": write}), flush=True)


def random_edges(edges: int, nodes: int, seed: int, rank: int, ranks: int) -> tuple[Any, Any]:
    """The edges of one rank, uint32: both nodes of each drawn evenly; all ranks' together depend on the seed alone."""
    import numpy as np

    chunks = -(-edges // CHUNK)
    low, high = chunks * rank // ranks, chunks * (rank + 1) // ranks
    ends = np.empty((2, max(0, min(edges, high * CHUNK) - low * CHUNK)), np.uint32)
    for chunk in range(low, high):
        at = (chunk - low) * CHUNK
        part = ends[:, at : at + CHUNK]
        part[:] = np.random.default_rng((seed, 0, chunk)).integers(0, nodes, part.shape, np.uint32)
    return ends[0], ends[1]


def slowest(comm: Any, work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that ``work`` takes on the rank that takes longest, and what it returns here; collective."""
    comm.barrier()
    began = time.perf_counter()
    made = work()
    seconds = time.perf_counter() - began
    return max(comm.allgather_object(seconds)), made


def show(report: dict[str, Any]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("ranks", "embedding", "reading the edges", "writing the rows", "to both", "speed-up")
    for each in report["rows"]:
        table.add_row(
            str(each["ranks"]),
            f"{each['seconds']:.3f} s",
            f"{each['read_seconds']:.3f} s",
            f"{each['write_seconds']:.3f} s",
            f"{each['to_floor']:.2f} ×",
            f"{each['speed_up']:.2f} ×",
        )
    console = Console()
    console.print(table)
    size = f"{report['edges']:,} edges, {report['nodes']:,} nodes, {report['classes']} classes"
    console.print(f"{size}; medians of {report['repeats']} turns; load before the run {report['load']:.1f}")
