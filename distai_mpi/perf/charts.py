"""Charts of measurements and of runs, by matplotlib, which is optional."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from ..errors import ConfigError
from .scaling import LAWS, Curve

Records = Sequence[Mapping[str, float]]  # of one run, as in metrics.jsonl; what is not known or not finite is left out
LOSS = "running_loss"
MEASURES = ("iterations", "rounds", "seconds")  # what the loss is drawn against
DECADE = 10.0  # losses that span less are easier to read on a linear scale


def check_matplotlib() -> None:
    """Raise `ConfigError` where there is no matplotlib: to be asked before the measurement, not after it."""
    if find_spec("matplotlib") is None:
        raise ConfigError("charts need matplotlib: pip install 'distai-mpi[plot]'")


def scaling_chart(curves: Sequence[Curve], title: str) -> bytes:
    """Draw speed-up over ranks, measured and by the law, and efficiency below it; a column for each curve.

    Returns the bytes of a PNG file.  Needs no display: the figure is drawn by Agg, and the program's own
    pyplot, if any, is left alone.
    """
    figure, grid = _figure(len(curves), title)
    for column, curve in enumerate(curves):
        _draw_curve(grid[0, column], grid[1, column], curve)
    return _png(figure)


def exchange_chart(rows: Sequence[dict[str, Any]], memory: Sequence[dict[str, Any]], title: str) -> bytes:
    """Draw seconds over bytes for each algorithm and floor, and multiples of native below; a column for each type.

    ``rows`` and ``memory`` are those of `exchange.rows`.  Returns the bytes of a PNG file.
    """
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    figure, grid = _figure(len(dtypes), title)
    for column, dtype in enumerate(dtypes):
        top, bottom = grid[:, column]
        _draw_times(top, bottom, [row for row in rows if row["dtype"] == dtype])
        for out in ("in place", "once"):
            floor = sorted(
                (row["bytes"], row["seconds"]) for row in memory if (row["dtype"], row["out"]) == (dtype, out)
            )
            if floor:
                dashes = "--" if out == "in place" else ":"
                top.plot(*zip(*floor, strict=True), color="0.5", linestyle=dashes, label=f"floor, {out}")
        top.set(title=dtype, ylabel="seconds", xscale="log", yscale="log")
        bottom.set(xlabel="bytes", ylabel="multiple of native")
        top.legend(fontsize="x-small", ncols=2)
    return _png(figure)


def plan_chart(rows: Sequence[Mapping[str, float]], measured: Sequence[tuple[int, float]], title: str) -> bytes:
    """Draw predicted speed-ups, of the same work and of as much a rank, beside the laws fitted to them.

    Args:
        rows: by growing ``ranks``: ``strong`` and ``weak`` speed-up over one rank, and the factor ``bar`` of the error.
        measured: ranks and speed-up of the same work, where runs or a probe tell.
        title: of the chart.

    Returns:
        The bytes of a PNG file.
    """
    figure = _canvas(10, 4.5)
    figure.suptitle(title, parse_math=False)
    counts = [row["ranks"] for row in rows]
    for axes, (kind, law) in zip(figure.subplots(1, 2), LAWS.items(), strict=True):
        speedups = [row[kind] for row in rows]
        axes.plot([1, counts[-1]], [1, counts[-1]], color="0.7", linewidth=1, label="n side by side")
        if len(counts) > 1:
            share, dense = law.fit(counts, speedups), [1 + (counts[-1] - 1) * i / 100 for i in range(101)]
            curve = [law.speedup(n, share) for n in dense]
            axes.plot(dense, curve, linestyle="--", label=f"{law.name}, p = {share:.4f}")
        below = [up - up / row["bar"] for up, row in zip(speedups, rows, strict=True)]
        above = [up * row["bar"] - up for up, row in zip(speedups, rows, strict=True)]
        style = {"marker": "o", "linestyle": "none", "capsize": 3}
        axes.errorbar(counts, speedups, yerr=[below, above], label="predicted", **style)
        if kind == "strong" and measured:
            axes.plot(*zip(*measured, strict=True), marker="x", linestyle="none", color="C3", label="measured")
        axes.set(title=f"{kind} scaling", xlabel="ranks", ylabel="speed-up")
        axes.legend(fontsize="small")
    return _png(figure)


def training_chart(runs: Mapping[str, Records], gap: bool = False) -> bytes:
    """Draw the training loss of ``runs`` (by name) against each of `MEASURES`.  Returns the bytes of a PNG file."""
    return _png(training_figure(runs, gap))


def training_figure(runs: Mapping[str, Records], gap: bool = False) -> Any:
    """The figure of `training_chart`: a panel for each measure, one line a run, one legend.

    Args:
        runs: some record has a loss and a measure.
        gap: draw how far losses are above the smallest loss of all runs, on a log scale, where the smallest itself
            has no place.  Else the losses, on a log scale if they are positive and span a factor of `DECADE`.
    """
    losses = [record[LOSS] for records in runs.values() for record in records if LOSS in record]
    least = min(losses)
    log = gap or (least > 0 and max(losses) >= DECADE * least)
    columns = max(1, min(len(runs), 140 // (6 + max(map(len, runs)))))  # of the legend: so many fit side by side
    figure = _canvas(5 * len(MEASURES), 4.5 + 0.2 * math.ceil(len(runs) / columns))
    drawn: dict[str, Any] = {}
    for axes, measure in zip(figure.subplots(1, len(MEASURES), sharey=True), MEASURES, strict=True):
        drawn |= _draw_losses(axes, measure, runs, least if gap else None)
        axes.set(xlabel=measure, yscale="log" if log else "linear")
        axes.grid(color="0.9")
    figure.axes[0].set_ylabel(f"training loss − {least:.8g}, the smallest" if gap else "training loss")
    lines = [drawn[name] for name in runs if name in drawn]
    legend = figure.legend(lines, ["run"] * len(lines), loc="outside lower center", ncols=columns)
    for text, line in zip(legend.get_texts(), lines, strict=True):  # as labels, names with _ first would be left out
        text.set(text=line.get_label(), parse_math=False)  # and dollars in names are no formulas
    return figure


def _draw_losses(axes: Any, measure: str, runs: Mapping[str, Records], least: float | None) -> dict[str, Any]:
    """Losses, or what is above ``least``, against ``measure``; the lines by name.  The title tells who has none."""
    lines = {}
    for number, (name, records) in enumerate(runs.items()):
        known = [record for record in records if measure in record]
        losses = [record.get(LOSS, math.nan) for record in known]
        if least is not None:
            losses = [loss - least if loss > least else math.nan for loss in losses]
        if all(map(math.isnan, losses)):
            continue
        style = ("-", "--", ":", "-.")[number // 10 % 4]  # there are ten colours
        (lines[name],) = axes.plot(
            [record[measure] for record in known],
            losses,
            color=f"C{number % 10}",
            linestyle=style,
            marker=".",
            markersize=4,
            label=name,
        )
    missing = ", ".join(name for name in runs if name not in lines)
    if missing:
        title = textwrap.shorten(f"no {'loss' if least is None else 'gap'} by {measure}: {missing}", 200)
        axes.set_title(textwrap.fill(title, 65), fontsize="small", color="0.4", parse_math=False)
    return lines


def _draw_times(top: Any, bottom: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Seconds into the axes ``top``, multiples of native into ``bottom``; a line for each algorithm."""
    for name in dict.fromkeys(row["algorithm"] for row in rows):
        own = sorted((row for row in rows if row["algorithm"] == name), key=lambda row: row["bytes"])
        sizes = [row["bytes"] for row in own]
        top.plot(sizes, [row["seconds"] for row in own], marker=".", label=name)
        if own[0]["ratio_to_native"] is not None:
            bottom.plot(sizes, [row["ratio_to_native"] for row in own], marker=".")
            bottom.set_yscale("log")


def _figure(columns: int, title: str) -> tuple[Any, Any]:
    """A figure and its axes: two rows, the upper one higher."""
    figure = _canvas(5 * columns, 6)
    figure.suptitle(title)
    return figure, figure.subplots(2, columns, squeeze=False, sharex="col", height_ratios=[2, 1])


def _canvas(width: float, height: float) -> Any:
    """An empty figure that Agg draws; inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()


def _draw_curve(top: Any, bottom: Any, curve: Curve) -> None:
    """One curve: speed-ups into the axes ``top``, efficiency into ``bottom``."""
    counts = [point.ranks for point in curve.points]
    dense = [1 + (counts[-1] - 1) * i / 100 for i in range(101)]
    top.plot([1, counts[-1]], [1, counts[-1]], color="0.7", linewidth=1, label="n side by side")
    law = [curve.law.speedup(n, curve.share) for n in dense]
    top.plot(dense, law, linestyle="--", label=f"{curve.law.name}, p = {curve.share:.4f}")
    alone = curve.points[0].rates
    per_turn = [[rate / one for rate, one in zip(point.rates, alone, strict=True)] for point in curve.points]
    below = [point.speedup - min(ratios) for point, ratios in zip(curve.points, per_turn, strict=True)]
    above = [max(ratios) - point.speedup for point, ratios in zip(curve.points, per_turn, strict=True)]
    speedups = [point.speedup for point in curve.points]
    top.errorbar(
        counts, speedups, yerr=[below, above], marker="o", linestyle="none", capsize=3, label="measured, min to max"
    )
    top.set(title=f"{curve.kind} scaling", ylabel="speed-up")
    top.legend()
    bottom.plot(counts, [point.efficiency for point in curve.points], marker="o")
    bottom.axhline(1, color="0.7", linewidth=1)
    bottom.set(xlabel="ranks", ylabel="efficiency", xticks=counts)
    bottom.set_ylim(bottom=0)
