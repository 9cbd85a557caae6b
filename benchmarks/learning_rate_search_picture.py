"""Picture of `learning_rate_search`: distance to the tuned result against the price of finding the rate."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

SIZE = 12
BANDS = (
    (0.0, 0.005, "free"),
    (0.005, 0.16, "0.1 runs"),
    (0.16, 0.45, "0.2 to 0.4 runs"),
    (0.45, 0.7, "half a run"),
    (0.7, 9.0, "4 runs"),
)
"""Prices from, below, and what the axis calls them."""


@dataclass(frozen=True)
class Dot:
    """A method: its price in runs, on top of the run that is kept, and its distance on each task."""

    method: str
    price: float
    distances: Sequence[float]
    ours: bool


def draw(panels: Sequence[tuple[str, Sequence[Dot]]], title: str, path: Path) -> None:
    """Draw a panel for each group of tasks.

    Args:
        panels: heading, methods.
        title: above all.
        path: of the picture.
    """
    widths = [max(2.6, float(len(dots))) for _, dots in panels]
    figure = Figure(figsize=(12.5, 5.6), layout="constrained")
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False, width_ratios=widths)[0]
    for axes, (heading, dots) in zip(row, panels, strict=True):
        _panel(axes, heading, dots)
    row[0].set_ylabel("points behind the tuned rate, lower is better\n(0.1 bits per byte = 1 point)", fontsize=SIZE)
    figure.suptitle(title, fontsize=SIZE + 3, fontweight="bold")
    figure.savefig(path, dpi=110)


def _panel(axes: Axes, heading: str, dots: Sequence[Dot]) -> None:
    axes.set_yscale("symlog", linthresh=1.0, linscale=0.8)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
    axes.set_yticks([-30, -10, -3, -1, 0, 1, 3, 10, 30, 100])
    axes.set_ylim(-60, 400)
    axes.axhspan(-60, 0, color="#2c7fb8", alpha=0.06, linewidth=0)
    axes.axhline(0, color="black", linewidth=1.2)
    place, ticks, names = 0.0, [], []
    for low, high, band in BANDS:
        inside = sorted(
            (dot for dot in dots if low <= dot.price < high), key=lambda dot: statistics.fmean(dot.distances)
        )
        if not inside:
            continue
        if place:
            axes.axvline(place - 0.5, color="0.8", linewidth=0.8)
        first = place
        for dot in inside:
            _dot(axes, place, dot)
            place += 1.0
        ticks.append((first + place - 1.0) / 2)
        names.append(band)
    axes.set_xlim(-0.5, place - 0.5)
    axes.set_xticks(ticks, names, fontsize=SIZE)
    axes.tick_params(axis="x", length=0)
    axes.tick_params(axis="y", labelsize=SIZE - 1)
    axes.set_xlabel("price of finding the rate", fontsize=SIZE)
    axes.set_title(heading, fontsize=SIZE, loc="left")
    axes.spines[["top", "right"]].set_visible(False)


def _dot(axes: Axes, place: float, dot: Dot) -> None:
    color = "#d7191c" if dot.ours else "0.35"
    middle, low, high = statistics.fmean(dot.distances), min(dot.distances), max(dot.distances)
    axes.plot([place, place], [low, high], color=color, linewidth=2.5, alpha=0.55, solid_capstyle="round")
    axes.plot([place], [middle], "o", color=color, markersize=10)
    axes.annotate(
        dot.method,
        (place, max(high, 0.0)),
        xytext=(0, 8),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=SIZE - 1.5,
        color=color,
        fontweight="bold" if dot.ours else "normal",
    )
