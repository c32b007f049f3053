"""A run's phases on all ranks: their sums, and a file that a trace viewer shows.

The file is in the trace event format of Chrome (JSON), which Perfetto (https://ui.perfetto.dev) and chrome://tracing
open: a process for each node, a thread for each rank, and on it the phases of `trace`, within their steps.
"""

from __future__ import annotations

import gzip
import json
import socket
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ..errors import ConfigError, DistaiError
from ..files import write_whole
from ..messages import tell
from ..options import OPTIONS
from ..settings import called, setting, settings
from ..trace import EXCHANGE, LEFT_OUT, PHASES, STEP, WAIT, Recorder
from .run import Result, Run
from .stalls import find_stalls, longest

if TYPE_CHECKING:
    from ..comm.clocks import Offset

ROWS = 400_000  # of all ranks together: some 35 MB, which viewers still take
FEWEST_ROWS = 200  # of a rank, however many there are
TICK = 125  # nanoseconds; see `_Clock`
UNEVEN = 0.05  # fraction of the time by which a rank's own work must exceed the others' for it to be called slow

Array = Any


@settings
class Trace:
    """Records what each rank does when, and writes it at the end; `Result.time` has the sums.

    Attributes:
        path: a file, ``.json`` or ``.json.gz``, see `tracing`.  Not written where an error ends the run.
    """

    path: str = setting(OPTIONS["trace"])

    def check(self) -> None:
        """Refuse files of another kind."""
        if not self.path.endswith((".json", ".json.gz")):
            path = called("path", f"--trace {self.path}")
            raise ConfigError(f"{path}: name a file FILE.json, or FILE.json.gz to have it compressed")


@contextmanager
def tracing(path: str | None, run: Run) -> Iterator[Tracer]:
    """A `Tracer` of ``run`` for the block, after which nothing more is recorded, however it ends."""
    try:
        yield Tracer(path, run)
    finally:
        _trace(run, None)


class Tracer:
    """Records one run, and writes what was recorded; all methods are collective.

    Args:
        path: of the file, compressed where the name ends in ``.gz``; None: nothing is recorded.
        run: before its first step.
    """

    def __init__(self, path: str | None, run: Run) -> None:
        self.path, self.run, self.comm = path, run, run.comm

    def start(self) -> None:
        """Begin to record."""
        if self.path is None:
            return
        self._clocks = [self.comm.clock_offsets()]
        self._first_step = self.run.iterations
        self.comm.barrier()
        self._began = datetime.now(UTC)
        self._recorder = Recorder(max(FEWEST_ROWS, ROWS // self.comm.size))
        _trace(self.run, self._recorder)

    def stop(self) -> dict[str, list[float]] | None:
        """Record no more; return what `Result.time` says."""
        if self.path is None:
            return None
        self._recorder.close()
        _trace(self.run, None)
        self._clocks.append(self.comm.clock_offsets())
        sums = self.comm.allgather_object(self._recorder.sums.tolist())
        return {name: list(seconds) for name, seconds in zip(PHASES, zip(*sums, strict=True), strict=True)}

    def write(self, result: Result) -> None:
        """Collect what the ranks have recorded, and write the file, whole or not at all.

        Where it cannot be written rank 0 says so: the training that it tells of is done.
        """
        path, comm = self.path, self.comm
        if path is None:
            return
        rows = self._recorder.rows()
        gaps = comm.watch.gaps if comm.watch is not None else []
        facts = comm.allgather_object((len(rows), self._recorder.steps_left_out, socket.gethostname(), gaps))
        counts = [4 * count for count, *_ in facts]  # bounded by ROWS on all ranks together
        collected = np.empty(sum(counts), np.int64) if comm.rank == 0 else None
        comm.gatherv(rows.reshape(-1), counts, collected)
        if collected is not None:
            of_ranks = np.split(collected.reshape(-1, 4), np.cumsum([count for count, *_ in facts])[:-1])
            try:
                write_whole(path, lambda file: self._write(file, of_ranks, facts, result))
            except (DistaiError, OSError) as error:
                tell(f"no trace was written: {error}", warning=True)

    def _write(self, file: BinaryIO, of_ranks: list[Array], facts: list[Any], result: Result) -> None:
        """Write the file from each rank's rows; on rank 0."""
        nodes = self.comm.topology.nodes
        clocks = [_Clock(*ends) for ends in zip(*self._clocks, strict=True)]
        gaps = []
        for node, ranks in enumerate(nodes):
            for rank in ranks:
                of_ranks[rank][:, 2:] = clocks[node].of_rank_0(of_ranks[rank][:, 2:])
        for rank, (*_, times) in enumerate(facts):
            own = clocks[self.comm.topology.node_of(rank)].of_rank_0(np.array(times, np.int64).reshape(-1, 2))
            gaps.append(own.tolist())
        stalls = longest(find_stalls(of_ranks, TICK * 1e-9, gaps))
        for stall in stalls:
            tell(stall.text(TICK * 1e-9))
        zero = min((int(rows[:, 2].min()) for rows in of_ranks if len(rows)), default=0)
        out: Any = gzip.GzipFile(fileobj=file, mode="wb", mtime=0) if str(self.path).endswith(".gz") else file
        about = json.dumps(self._about(facts, result), ensure_ascii=False)
        out.write(f'{{"displayTimeUnit":"ms","otherData":{about},\n"traceEvents":[\n'.encode())
        marks = [(stall.rank, stall.begin, stall.text(TICK * 1e-9)) for stall in stalls]
        marks += [(0, at // TICK, why) for at, why in zip(self.run.rebalanced_at, self._changes(), strict=True)]
        separator = ""
        for node, ranks in enumerate(nodes):
            text = _names(node, ranks, facts[ranks[0]][2])
            text += [_mark(name, node, rank, at - zero) for rank, at, name in marks if rank in ranks]
            for rank in ranks:
                text.extend(_events(of_ranks[rank], node, rank, zero))
                out.write((separator + ",\n".join(text)).encode())
                text, separator = [], ",\n"
        out.write(b"\n]}\n")
        if out is not file:
            out.close()

    def _changes(self) -> list[str]:
        """What is to be said of the changes of rows that this run, and none before a resume, has made."""
        entries = self.run.rebalanced[len(self.run.rebalanced) - len(self.run.rebalanced_at) :]
        return [f"rows by rank changed: {entry['why']}" for entry in entries]

    def _about(self, facts: list[Any], result: Result) -> dict[str, Any]:
        """What the file says of the run and of itself."""
        run, comm = self.run, self.comm
        start, end = self._clocks
        return {
            "program": "distai-mpi",
            "version": _version(),
            "began": self._began.isoformat(timespec="milliseconds"),
            "status": result.status,
            "ranks": comm.size,
            "nodes": len(comm.leaders),
            "device": run.objective.device.name,
            "allreduce": run.objective.exchange.name,
            "global_batch_size": run.loader and run.loader.global_batch_size,
            "parameters": run.objective.layout.size,
            "steps": [self._first_step, run.iterations],
            "steps_left_out": [left_out for _, left_out, *_ in facts],
            "seconds": result.time,
            "clocks": "rank 0; other nodes' were asked for by messages (Cristian 1989) and shifted by these ns",
            "clocks_ahead": {"start": [list(o[:2]) for o in start], "end": [list(o[:2]) for o in end]},
        }


class _Clock:
    """A node's clock, compared with that of rank 0 twice, at the start and at the end.

    It is taken to drift evenly between.  Where the two agree within their errors there is no drift to be seen, and the
    surer one counts.
    """

    def __init__(self, start: Offset, end: Offset) -> None:
        self._from, self._drift = start, 0.0
        more = end.ahead - start.ahead
        if abs(more) > start.error + end.error:
            self._drift = more / (end.at - start.at)
        elif end.error < start.error:
            self._from = end

    def of_rank_0(self, times: Array) -> Array:
        """``times`` of this clock, ns, as times of rank 0 in whole ticks.

        A viewer reads microseconds as floating point and cuts them off to nanoseconds: a phase could then seem to end
        after its step.  Eighths of a microsecond are held exactly.
        """
        shown = times - self._from.ahead
        return (shown - ((shown - self._from.at) * self._drift).astype(np.int64)) // TICK


def _version() -> str | None:
    try:
        return version("distai-mpi")
    except PackageNotFoundError:  # it runs from where its source lies
        return None


def _track(node: int, rank: int) -> str:
    """Process and thread of a rank: numbers from 1, for Perfetto takes 0 for the idle task of an operating system."""
    return f'"pid":{node + 1},"tid":{rank + 1}'


def _names(node: int, ranks: Sequence[int], host: str) -> list[str]:
    """Events that name a node and its ranks, and put them in order."""
    names: list[tuple[str, int, dict[str, Any]]] = [
        ("process_name", ranks[0], {"name": f"node {node} ({host})"}),
        ("process_sort_index", ranks[0], {"sort_index": node}),
    ]
    for rank in ranks:
        names.append(("thread_name", rank, {"name": f"rank {rank}"}))
        names.append(("thread_sort_index", rank, {"sort_index": rank}))
    return [
        f'{{"ph":"M",{_track(node, rank)},"name":"{name}","args":{json.dumps(args, ensure_ascii=False)}}}'
        for name, rank, args in names
    ]


def _mark(name: str, node: int, rank: int, ticks: int) -> str:
    """A mark across the whole picture, such as at a stall's beginning."""
    return f'{{"ph":"i","s":"g",{_track(node, rank)},"name":{json.dumps(name)},"ts":{ticks * (TICK / 1000)}}}'


def _events(rows: Array, node: int, rank: int, zero: int) -> Iterator[str]:
    """Complete events of a rank's rows, whose times are in ticks."""
    heads = [f'{{"ph":"X",{_track(node, rank)},"name":"{name}","ts":' for name in (*PHASES, "step", "steps left out")]
    times = ((rows[:, 2] - zero) * (TICK / 1000)).tolist()
    lengths = ((rows[:, 3] - rows[:, 2]) * (TICK / 1000)).tolist()
    for kind, value, ts, dur in zip(rows[:, 0].tolist(), rows[:, 1].tolist(), times, lengths, strict=True):
        args = f',"args":{{"{"number" if kind == STEP else "count"}":{value}}}' if kind in (STEP, LEFT_OUT) else ""
        yield f'{heads[kind]}{ts},"dur":{dur}{args}}}'


def balance(time: dict[str, list[float]]) -> str:
    """`Result.time` in a line: what the ranks spend their time on, and which of them keeps the others waiting.

    That is the one whose own work, all but waiting and messages, takes longest; none where it is no more than 5 % of
    the time beyond the others' (their median).
    """
    table = np.array([time[name] for name in PHASES])  # (phases, ranks)
    total = table.sum(axis=0)
    fractions = table.sum(axis=1) / total.sum()
    parts = [f"{name} {fraction:.0%}" for name, fraction in zip(PHASES, fractions, strict=True) if fraction >= 0.005]
    text = "time: " + ", ".join(parts).replace("%", " %")
    if len(total) == 1:
        return text
    own = total - table[WAIT] - table[EXCHANGE]
    slow = int(own.argmax())
    others = np.array([statistics.median(row) for row in np.delete(table, slow, axis=1)])
    more = table[:, slow] - others
    more[[WAIT, EXCHANGE]] = 0
    if own[slow] - statistics.median(np.delete(own, slow)) < UNEVEN * total[slow]:
        return text + "; no rank is slower than the others"
    cause = int(more.argmax())
    return f"{text}; rank {slow} is slow: {PHASES[cause]} {table[cause, slow]:.2f} s, the others {others[cause]:.2f} s"


def _trace(run: Run, recorder: Recorder | None) -> None:
    """Let ``recorder`` hear of all that this rank exchanges in ``run``; None: nobody hears of it."""
    for comm in run.objective.comms:
        comm.trace(recorder)
