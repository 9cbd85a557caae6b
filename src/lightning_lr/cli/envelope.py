"""Of many parameter groups the highest and the lowest, where a line each would be too many."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from lightning_lr.cli.figure import COLORS
from lightning_lr.cli.labels import EndLabel
from lightning_lr.cli.report.record import RunRecord


def draw_envelope(ax: Axes, record: RunRecord, lines: Mapping[str, tuple[list[float], list[float]]]) -> list[EndLabel]:
    """The highest and the lowest of many groups; the labels of their ends."""
    at = next(iter(lines.values()))[0]
    stacked = [values for x, values in lines.values() if len(x) == len(at)]
    lows, highs = np.nanmin(stacked, axis=0), np.nanmax(stacked, axis=0)
    ax.fill_between(at, lows, highs, color=COLORS[0], alpha=0.2, linewidth=0)
    labels = []
    for values, word in ((highs, "highest"), (lows, "lowest")):
        ax.plot(at, values, color=COLORS[0])
        text = f"{word} of {len(lines)} groups\n{values[-1]:.2g}"
        labels.append(EndLabel(record.now, float(values[-1]), text, COLORS[0]))
    return labels
