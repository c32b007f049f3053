"""What ``plan`` prints, writes and draws."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ..comm import launch
from ..plan import Choice, Planner, Prediction, told, words

ROWS = 30  # of the table: more are in --json
SPARE, START_MINUTES = 1.5, 5  # of a job's time limit: factor, and minutes to start and to read data


def show(
    planner: Planner, predictions: Sequence[Prediction], chosen: Choice, flags: Sequence[str], asked: int | None
) -> None:
    """Print what was assumed, the table, the best plan and how to start it."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    work = planner.probe.workload
    unit = "iteration" if work.kind == "solver" else "epoch"
    table = Table(box=SIMPLE)
    titles = ("nodes", "ranks", "mesh", "batch", "exchange", f"s/{unit}", "run", "low – high", "exchange", "efficiency")
    for title in (*titles, "GiB/rank", "node h"):
        table.add_column(title, justify="right")
    for each in listed(predictions, chosen.best, asked):
        table.add_row(*row(each), style="bold" if each is chosen.best else None)
    console = Console(force_terminal=launch.on_terminal(), width=None if launch.on_terminal() else 130)
    for line in assumptions(planner):
        console.print(line, highlight=False)
    console.print(table)
    best = chosen.best
    console.print(f"best: {words(best)}: {chosen.reason}", highlight=False)
    console.print(f"  {told(best.seconds)} ({told(best.low)} to {told(best.high)})", highlight=False)
    for line in [*law_lines(predictions, best), *start_lines(planner, best, flags)]:
        console.print(f"  {line}", highlight=False, soft_wrap=True)


def listed(predictions: Sequence[Prediction], best: Prediction, asked: int | None) -> list[Prediction]:
    """Those for the table, the best among them: first those of the batch that was asked for, without a mesh."""

    def order(each: Prediction) -> tuple[bool, bool, bool]:
        candidate = each.candidate
        return asked not in (None, candidate.batch), candidate.mesh.copy > 1, candidate.wire != "float32"

    first = sorted(predictions, key=order)[:ROWS]
    first = first if best in first else [*first[:-1], best]
    return sorted(first, key=lambda each: (order(each)[0], each.candidate))


def row(each: Prediction) -> list[str]:
    """The cells of the table."""
    candidate = each.candidate
    mesh = "" if candidate.mesh.copy == 1 else f"{candidate.mesh.data}×{candidate.mesh.tensor}"
    way = " ".join([candidate.wire] * (candidate.wire != "float32") + ["early"] * each.early) or "auto"
    return [
        str(candidate.nodes),
        str(candidate.ranks),
        mesh,
        f"{candidate.batch:,}",
        way,
        f"{each.epoch_seconds:.3g}",
        told(each.seconds),
        f"{told(each.low)} – {told(each.high)}",
        f"{100 * each.communication:.0f} %",
        f"{100 * each.efficiency:.0f} %",
        f"{each.memory / 2**30:.3g}",
        f"{each.node_hours:.3g}",
    ]


def assumptions(planner: Planner) -> list[str]:
    """What predictions rest on, in sentences."""
    found, work, machine = planner.probe, planner.probe.workload, planner.machine
    shapes = ", ".join(
        f"{shape.ranks} rank{'s' if shape.ranks > 1 else ''}"
        + (f" as {shape.nodes} nodes" if shape.local else f" on {shape.nodes} nodes" if shape.nodes > 1 else "")
        + (f" with tensor={shape.tensor}" if shape.tensor > 1 else "")
        for shape in found.shapes
    )
    lines = [
        f"{work.model} of {work.parameters:,} parameters on {work.data}, {work.rows:,} rows, by {work.optimizer}",
        f"measured in {found.seconds:.0f} s: {shapes}; load before it {found.load:.1f}",
        f"machine {machine.name}: {machine.cores} cores a node, {machine.memory / 2**30:.3g} GiB",
    ]
    if not math.isclose(planner.measured.factor, 1.0):
        by = "matrix products" if work.dense else "the memory's speed"
        lines.append(f"compute times are those measured here times {planner.measured.factor:.3g}, by {by}")
    if work.kind == "solver":
        passes, iterations, how = planner.solver_counts()
        several = planner.measured.several or planner.measured.full
        rounds = "" if several is None else f", and on several ranks {several.calls * passes:.3g} rounds"
        lines.append(f"{iterations:g} iterations ({how}) of {passes:.3g} gradients or products each{rounds}")
    if planner.learned.runs:
        ratio, off = math.exp(planner.learned.shift), math.expm1(planner.learned.error)
        runs = f"{planner.learned.runs} earlier run{'s' if planner.learned.runs > 1 else ''}"
        lines.append(f"{runs}: predictions are multiplied by {ratio:.3g}, and off by {100 * off:.0f} %")
    return [*lines, *found.notes]


def of_batch(predictions: Sequence[Prediction], best: Prediction) -> list[Prediction]:
    """By growing number of ranks those of the best plan's batch, without a mesh, on the fewest nodes."""
    batch, found = best.candidate.batch, {}
    for each in sorted(predictions, key=lambda each: -each.candidate.nodes):
        candidate = each.candidate
        if (candidate.batch, candidate.mesh.copy, candidate.wire) == (batch, 1, "float32"):
            found[candidate.ranks] = each
    return [found[ranks] for ranks in sorted(found)]


def laws(predictions: Sequence[Prediction], best: Prediction) -> dict[str, float]:
    """The parallel fractions that fit the predicted speed-ups, by the name of the law; none for one number of ranks."""
    from ..perf.scaling import LAWS

    points = of_batch(predictions, best)
    counts = [each.candidate.ranks for each in points]
    if len(counts) < 2:
        return {}
    speedups = {"strong": [each.speedup for each in points], "weak": [each.weak_speedup for each in points]}
    return {law.name: law.fit(counts, speedups[kind]) for kind, law in LAWS.items()}


def law_lines(predictions: Sequence[Prediction], best: Prediction) -> list[str]:
    """The fractions in words."""
    found = laws(predictions, best)
    return [", ".join(f"{name}: parallel fraction p = {p:.4f}" for name, p in found.items())] if found else []


def start_lines(planner: Planner, best: Prediction, flags: Sequence[str]) -> list[str]:
    """The commands that start a plan: by Slurm, and on one node by mpiexec."""
    candidate, work = best.candidate, planner.probe.workload
    rest = list(flags)
    if work.kind != "solver" and candidate.batch not in (work.batch, work.rows) and "--batch-size" not in flags:
        rest += ["--global-batch-size", str(candidate.batch)]
    if candidate.mesh.copy > 1 and not any(flag.startswith("--mesh") for flag in flags):
        rest += ["--mesh", str(candidate.mesh)]
    rest += ["--early"] * (best.early and not {"--early", "--no-early"} & set(flags))
    minutes = math.ceil(best.high * SPARE / 60) + START_MINUTES
    limit = f"{minutes // 60:02d}:{minutes % 60:02d}:00"
    per_node = f"--ntasks-per-node={candidate.per_node}"
    script = shlex.join(["slurm/train_cpu.sbatch", *rest])
    lines = [f"sbatch --nodes={candidate.nodes} {per_node} --cpus-per-task=1 --time={limit} {script}"]
    if candidate.nodes == 1:
        lines.append(f"mpiexec -n {candidate.ranks} {shlex.join(['distai-mpi', 'train', *rest])}")
    return lines


def as_json(
    planner: Planner, predictions: Sequence[Prediction], best: Prediction, flags: Sequence[str]
) -> dict[str, Any]:
    """All predictions as plain values."""

    def plain(each: Prediction) -> dict[str, Any]:
        candidate = each.candidate
        fields = {name: value for name, value in asdict(each).items() if name != "candidate"}
        place = {"nodes": candidate.nodes, "ranks": candidate.ranks, "mesh": str(candidate.mesh)}
        return place | {"batch": candidate.batch, "wire": candidate.wire} | fields | {"node_hours": each.node_hours}

    return {
        "flags": list(flags),
        "machine": asdict(planner.machine),
        "probe": asdict(planner.probe),
        "learned": asdict(planner.learned),
        "laws": laws(predictions, best),
        "best": plain(best) | {"commands": start_lines(planner, best, flags)},
        "plans": [plain(each) for each in predictions],
    }


def chart(planner: Planner, predictions: Sequence[Prediction], best: Prediction) -> bytes:
    """Speed-ups of the best plan's batch by ranks, with both laws, and those that were measured."""
    from ..perf.charts import plan_chart

    batch = best.candidate.batch
    rows = [
        {
            "ranks": each.candidate.ranks,
            "strong": each.speedup,
            "weak": each.weak_speedup,
            "bar": each.high / each.seconds,
        }
        for each in of_batch(predictions, best)
    ]
    return plan_chart(rows, planner.measured_speedups(), f"{planner.probe.workload.model}, batch {batch:,}")
