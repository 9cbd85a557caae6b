"""Picture of `learning_rate_search`: distance to the tuned result against the price of finding the rate."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

SIZE = 11
BANDS = (
    (0.0, 0.005, "free"),
    (0.005, 0.16, "a tenth of a run"),
    (0.16, 0.45, "0.2 to 0.4 runs"),
    (0.45, 0.7, "half a run"),
    (0.7, 9.0, "four runs"),
)
"""Prices from, below, and what the picture calls them."""
LOW, HIGH = -10.0, 300.0
"""Of the axis."""


@dataclass(frozen=True)
class Dot:
    """A method: its price in runs, on top of the run that is kept, and its distance on each task."""

    method: str
    price: float
    distances: Sequence[float]
    ours: bool


def draw(panels: Sequence[tuple[str, Sequence[Dot]]], title: str, path: Path) -> None:
    """Draw a panel for each group of tasks: a row for each method, sorted into bands by what finding the rate costs.

    Args:
        panels: heading, methods.
        title: above all.
        path: of the picture.
    """
    rows = max(sum(1 for _ in dots) + len(_bands(dots)) for _, dots in panels)
    figure = Figure(figsize=(12.5, 1.3 + 0.3 * rows), layout="constrained")
    for axes, (heading, dots) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _panel(axes, heading, dots)
    figure.supxlabel(
        "points behind the tuned rate (0.1 bits per byte = 1 point); further left is better", fontsize=SIZE
    )
    figure.suptitle(title, fontsize=SIZE + 3, fontweight="bold")
    figure.savefig(path, dpi=110)


def _bands(dots: Sequence[Dot]) -> list[tuple[str, list[Dot]]]:
    """The methods of each band that has any, the best first."""
    bands = []
    for low, high, band in BANDS:
        inside = [dot for dot in dots if low <= dot.price < high]
        if inside:
            bands.append((band, sorted(inside, key=lambda dot: statistics.fmean(dot.distances))))
    return bands


def _panel(axes: Axes, heading: str, dots: Sequence[Dot]) -> None:
    axes.set_xscale("symlog", linthresh=1.0, linscale=0.8)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
    axes.set_xticks([-3, -1, 0, 1, 3, 10, 30, 100])
    axes.set_xlim(LOW, HIGH)
    axes.axvspan(LOW, 0, color="#2c7fb8", alpha=0.06, linewidth=0)
    axes.axvline(0, color="black", linewidth=1.2)
    row, places, names, ours = 0.0, [], [], []
    for band, inside in _bands(dots):
        axes.axhline(row - 0.5, color="0.8", linewidth=0.8)
        axes.text(LOW * 0.93, row, band, fontsize=SIZE - 1, style="italic", color="0.35", va="center")
        row += 1.0
        for dot in inside:
            color = "#d7191c" if dot.ours else "0.35"
            ends = [min(dot.distances), max(dot.distances)]
            axes.plot(ends, [row, row], color=color, linewidth=2.5, alpha=0.55, solid_capstyle="round")
            axes.plot([statistics.fmean(dot.distances)], [row], "o", color=color, markersize=8)
            places.append(row)
            names.append(dot.method)
            ours.append(dot.ours)
            row += 1.0
    axes.set_ylim(row - 0.5, -0.6)
    axes.set_yticks(places, names, fontsize=SIZE)
    for label, is_ours in zip(axes.get_yticklabels(), ours, strict=True):
        label.set(color="#d7191c" if is_ours else "0.2", fontweight="bold" if is_ours else "normal")
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=SIZE - 1)
    axes.grid(axis="x", alpha=0.25)
    axes.set_title(heading, fontsize=SIZE, loc="left")
    axes.spines[["top", "right", "left"]].set_visible(False)
