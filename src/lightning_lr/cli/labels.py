"""Labels next to the ends of lines and above points, so that a panel needs no legend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

LABEL_INCHES = 0.15  # a line of text next to the end of a line


@dataclass(frozen=True)
class EndLabel:
    """The label next to the end of a line.

    Args:
        x: where the line ends.
        y: its last value.
        text: one line of text or two.
        color: that of the line.
    """

    x: float
    y: float
    text: str
    color: str


def label_point(ax: Axes, x: float, y: float, text: str, color: str) -> None:
    """Write a value above the point that it belongs to, on a light ground so that it stays readable."""
    box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}
    place: dict[str, Any] = {"xytext": (4, 5), "textcoords": "offset points", "ha": "left", "va": "bottom"}
    ax.annotate(text, (x, y), color=color, fontsize=8.5, bbox=box, **place)


def label_ends(ax: Axes, labels: Sequence[EndLabel]) -> None:
    """Write what a line came to next to its end; labels that would overlap are moved apart.

    They stand right of the panel, or inside it where the lines end early (a run that is still going).

    Args:
        ax: the panel, its limits and scale already set.
        labels: one for each line.
    """
    spec = ax.get_subplotspec()
    heights: Any = [2.0] if spec is None else spec.get_gridspec().get_height_ratios()
    inches = float(heights[0 if spec is None else spec.rowspan.start])
    line_height = LABEL_INCHES / inches
    ax.autoscale_view()  # else limits that nobody has read are computed later, and the heights below are not true
    to_share = ax.transData + ax.transAxes.inverted()
    ends = [float(to_share.transform((label.x, label.y))[0]) for label in labels]
    x = 1.0 if not ends or max(ends) > 0.9 else max(ends)
    labels = sorted((label for label in labels if math.isfinite(label.y)), key=lambda label: label.y)
    halves = [line_height * (1 + label.text.count("\n")) / 2 for label in labels]
    centres = [float(to_share.transform((0.0, label.y))[1]) for label in labels]
    for i, half in enumerate(halves):  # upwards from the lowest, then down again from the top
        centres[i] = max(centres[i], centres[i - 1] + halves[i - 1] + half if i else half)
    for i, half in reversed(list(enumerate(halves))):
        centres[i] = min(centres[i], centres[i + 1] - halves[i + 1] - half if i + 1 < len(halves) else 1.0 - half)
    place: dict[str, Any] = {"xycoords": "axes fraction", "xytext": (6, 0), "textcoords": "offset points"}
    for label, centre in zip(labels, centres, strict=True):
        ax.annotate(
            label.text, (x, centre), color=label.color, fontsize=8.5, va="center", annotation_clip=False, **place
        )
