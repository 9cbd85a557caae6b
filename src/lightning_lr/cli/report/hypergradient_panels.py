"""The panels of hypergradient descent: the factor on the learning rate, and the cosine that it follows."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatter

from lightning_lr.cli.envelope import draw_envelope
from lightning_lr.cli.figure import COLORS, MAX_LINES
from lightning_lr.cli.labels import EndLabel, label_ends
from lightning_lr.cli.report.record import RunRecord
from lightning_lr.cli.smoothing import DENSE, running_mean, smoothing_window

HYPERGRADIENT = "hypergradient/"


def hypergradient_metrics(record: RunRecord, what: str) -> dict[str, str]:
    """The metric of each group that holds ``what``, factor or cosine."""
    prefix = f"{HYPERGRADIENT}{what}/"
    return {n.removeprefix(prefix): n for n in record.metrics if n.startswith(prefix) and record.metrics[n].finite}


def draw_hypergradient_factor(ax: Axes, record: RunRecord) -> None:
    """What hypergradient descent has made of the scheduled learning rate; 1 where it has done nothing."""
    ax.axhline(1.0, color="#888888", linewidth=0.8)
    _draw_hypergradient(ax, record, "factor")
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(LogFormatter())
    ax.yaxis.set_minor_formatter(LogFormatter())  # within a decade: 0.5, not 5 x 10^-1


def draw_hypergradient_cosine(ax: Axes, record: RunRecord) -> None:
    """How the gradient lies to the last update: above 0 a longer step would have been better."""
    ax.axhline(0.0, color="#888888", linewidth=0.8)
    _draw_hypergradient(ax, record, "cosine")
    ax.set_ylim(-1.05, 1.05)


def _draw_hypergradient(ax: Axes, record: RunRecord, what: str) -> None:
    series = hypergradient_metrics(record, what)
    if len(series) > MAX_LINES:
        label_ends(ax, draw_envelope(ax, record, {group: record.points(name) for group, name in series.items()}))
        return
    labels = []
    for color, (group, name) in zip(COLORS, series.items(), strict=False):
        at, values = record.points(name)
        if len(at) > DENSE:
            ax.plot(at, values, color=color, alpha=0.28, linewidth=0.8)
            values = running_mean(values, smoothing_window(values))
        ax.plot(at, values, color=color)
        last = next(value for value in reversed(values) if math.isfinite(value))
        labels.append(EndLabel(record.now, last, f"{group}  {last:.2g}" if len(series) > 1 else f"{last:.2g}", color))
    label_ends(ax, labels)
