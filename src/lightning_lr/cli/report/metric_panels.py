"""The panels that a callback's class declares: its metrics over the run, a line per metric or per parameter group."""

from __future__ import annotations

import math
from functools import partial
from itertools import zip_longest

from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatter

from lightning_lr.cli.envelope import draw_envelope
from lightning_lr.cli.figure import COLORS, MAX_LINES, Panel
from lightning_lr.cli.labels import EndLabel, label_ends
from lightning_lr.cli.report.record import RunRecord
from lightning_lr.cli.smoothing import DENSE, running_mean, smoothing_window
from lightning_lr.panels import MetricPanel


def declared_panels(record: RunRecord) -> list[Panel[RunRecord]]:
    """The panels that the callbacks of a run declare."""
    declared = record.panels
    if declared is None:  # the journals are of an older version, or lost: the classes of the package declare them
        from lightning_lr import callbacks

        kinds = [getattr(callbacks, name) for name in callbacks.__all__]
        declared = [panel for kind in kinds for panel in getattr(kind, "panels", ())]
    return [as_panel(panel) for panel in dict.fromkeys(declared)]


def as_panel(declared: MetricPanel) -> Panel[RunRecord]:
    """A declared panel as the figure takes it."""
    return Panel(
        declared.label,
        lambda record: bool(metrics_of(declared, record)),
        partial(draw_metrics, declared),
        height=declared.height,
    )


def metrics_of(declared: MetricPanel, record: RunRecord) -> dict[str, tuple[str, str]]:
    """Each line of a panel, by its metric: the name of its group and its unit; empty unless every metric was logged."""
    lines: dict[str, tuple[str, str]] = {}
    for name, unit in zip_longest(declared.metrics, declared.units[: len(declared.metrics)], fillvalue=""):
        of_groups = name.endswith("/")
        logged = [
            metric
            for metric, series in record.metrics.items()
            if (metric.startswith(name) if of_groups else metric == name) and series.finite
        ]
        if not logged:
            return {}
        lines |= {metric: (metric.removeprefix(name) if of_groups else "", unit) for metric in logged}
    return lines


def draw_metrics(declared: MetricPanel, ax: Axes, record: RunRecord) -> None:
    """Draw the metrics: smoothed where they are dense, the highest and lowest of many groups."""
    if declared.reference is not None:
        ax.axhline(declared.reference, color="#888888", linewidth=0.8)
    lines = metrics_of(declared, record)
    if len(lines) > MAX_LINES:
        ends = draw_envelope(ax, record, {group or name: record.points(name) for name, (group, _) in lines.items()})
    else:
        several = sum(bool(group) for group, _ in lines.values()) > 1
        ends = [
            _draw_line(ax, record, name, color, f"{group}  " if several else "", unit)
            for color, (name, (group, unit)) in zip(COLORS, lines.items(), strict=False)
        ]
    if declared.log_scale:
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(LogFormatter())
        ax.yaxis.set_minor_formatter(LogFormatter())  # within a decade: 0.5, not 5 x 10^-1
    if declared.limits is not None:
        ax.set_ylim(*declared.limits)
    label_ends(ax, ends)


def _draw_line(ax: Axes, record: RunRecord, name: str, color: str, prefix: str, unit: str) -> EndLabel:
    at, values = record.points(name)
    if len(at) > DENSE:
        ax.plot(at, values, color=color, alpha=0.28, linewidth=0.8)
        values = running_mean(values, smoothing_window(values))
    ax.plot(at, values, color=color, label=prefix.strip() or name)
    last = next(value for value in reversed(values) if math.isfinite(value))
    return EndLabel(record.now, last, f"{prefix}{last:.3g}{unit}", color)
