"""Charts of measurements, by matplotlib, which is optional."""

from __future__ import annotations

import io
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from ..errors import ConfigError
from .scaling import Curve


def check_matplotlib() -> None:
    """Raise `ConfigError` where there is no matplotlib: to be asked before the measurement, not after it."""
    if find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib: pip install 'distai-mpi[plot]', or leave --plot out")


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
    """A figure that Agg draws, and its axes: two rows, the upper one higher."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * columns, 6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    return figure, figure.subplots(2, columns, squeeze=False, sharex="col", height_ratios=[2, 1])


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
