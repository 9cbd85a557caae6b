"""Picture of `headline`: a pair of panels per task, the way there and where it ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks._common import Interval
from benchmarks.headline_tasks import Metric

OURS: dict[str, dict[str, Any]] = {
    "AdaptiveWarmup": {"color": "#d7191c", "linewidth": 3.2},
    "AdaptiveWarmup, short climb": {"color": "#d7191c", "linewidth": 2.4, "linestyle": (0, (4, 1.5))},
    "AdaptiveWarmup + BatchSizeRamp": {"color": "#f07f09", "linewidth": 2.2},
    "AdaptiveWarmup + HypergradientDescent": {"color": "#b5179e", "linewidth": 2.2},
    "HypergradientDescent from 1e-5": {"color": "#5a189a", "linewidth": 2.2},
}
SEARCHED: dict[str, dict[str, Any]] = {
    "AdamW, tuned": {"color": "black", "linewidth": 3.2},
    "SGD, tuned": {"color": "0.45", "linewidth": 2.4},
}
OTHERS: dict[str, dict[str, Any]] = {
    "Prodigy": {"color": "#4f8fc0", "marker": "o"},
    "DAdaptAdam": {"color": "#63b3a4", "marker": "s"},
    "ScheduleFreeAdamW": {"color": "#8aa84f", "marker": "^"},
    "AdamW at 1e-3": {"color": "0.6", "marker": "D"},
    "LearningRateFinder": {"color": "#b8a07e", "marker": "v"},
    "LearningRateFinder, per step": {"color": "#8c5a2b", "marker": "*", "markersize": 8, "linewidth": 1.8},
}
STYLES = {**OURS, **SEARCHED, **{arm: {"linewidth": 1.4, "markersize": 5, **style} for arm, style in OTHERS.items()}}
GROUPS = (
    ("one run, ours", OURS),
    ("searched, the best of five rates", SEARCHED),
    ("one run, others", OTHERS),
)
SIZE = 11.5
"""Points; the picture is 11 inches wide and shown at 800 pixels, so that a point is a pixel."""


@dataclass(frozen=True)
class Line:
    """One arm: samples with the search, the mean of the metric there, and its interval at the end."""

    arm: str
    samples: Sequence[float]
    values: Sequence[float]
    final: Interval


@dataclass(frozen=True)
class Panel:
    """One task: its metric, the value to reach and its arms."""

    title: str
    metric: Metric
    target: float
    lines: Sequence[Line]


def draw(panels: Sequence[Panel], title: str, path: Path) -> None:
    """Draw the tasks two by two.

    Args:
        panels: in order.
        title: above all.
        path: of the picture.
    """
    rows = (len(panels) + 1) // 2
    columns = min(2, len(panels))
    figure = Figure(figsize=(11, 1.6 + 3.5 * rows), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06)  # type: ignore[union-attr]
    axes = figure.subplots(rows, 2 * columns, squeeze=False, width_ratios=[3, 1.35] * columns)
    for index, panel in enumerate(panels):
        way, end = axes[index // 2][2 * (index % 2) :][:2]
        _draw_way(way, panel)
        _draw_end(end, panel)
        way.sharey(end)
        _limit(end, panel)
    for spare in axes.flat[2 * len(panels) :]:
        spare.set_axis_off()
    figure.suptitle(title, fontsize=SIZE, fontweight="bold")
    _legend(figure)
    figure.savefig(path, dpi=130)


def _draw_way(way: Axes, panel: Panel) -> None:
    scale = panel.metric.scale
    for line in sorted(panel.lines, key=lambda line: list(STYLES).index(line.arm), reverse=True):
        way.plot(line.samples, [scale * value for value in line.values], **STYLES[line.arm])
    way.axhline(scale * panel.target, color="black", linewidth=1, linestyle=(0, (1, 2)))
    way.annotate(
        "target", (0.01, scale * panel.target), xycoords=("axes fraction", "data"), va="bottom", fontsize=SIZE - 2
    )
    way.set_xscale("log")
    way.set_title(panel.title, fontsize=SIZE + 1, loc="left", fontweight="bold")
    way.set_xlabel("samples, search included", fontsize=SIZE)
    way.set_ylabel(f"{panel.metric.heading}{'' if panel.metric.higher else ', lower is better'}", fontsize=SIZE)
    way.xaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}".replace(",", " ")))
    way.xaxis.set_minor_formatter(NullFormatter())
    way.tick_params(labelsize=SIZE - 1)
    way.grid(alpha=0.25)


def _draw_end(end: Axes, panel: Panel) -> None:
    scale, order = panel.metric.scale, list(STYLES)
    for line in panel.lines:
        style = STYLES[line.arm]
        half = 0.0 if math.isnan(line.final.half_width) else line.final.half_width
        end.errorbar(
            order.index(line.arm), scale * line.final.mean, scale * half,
            color=style["color"], elinewidth=1.4, capsize=2, marker=style.get("marker", "o"),
            markersize=style.get("markersize", 7),
            markerfacecolor="white" if "linestyle" in style else style["color"],
        )  # fmt: skip
    end.axhline(scale * panel.target, color="black", linewidth=1, linestyle=(0, (1, 2)))
    end.set_xlim(-0.8, len(order) - 0.2)
    end.set_xticks([])
    end.set_xlabel("end, ± 95 %", fontsize=SIZE)
    end.tick_params(labelleft=False, length=0)
    end.grid(alpha=0.25, axis="y")


def _limit(end: Axes, panel: Panel) -> None:
    """The picture ends a window below the target; an arm that is lower has an arrow."""
    metric = panel.metric
    target = metric.scale * panel.target
    best = max(panel.lines, key=lambda line: metric.key(line.final.mean)).final
    room = abs(metric.scale * best.mean - target) + 0.12 * metric.window
    low, high = target - metric.window, target + room
    if not metric.higher:
        low, high = target - room, target + metric.window
    end.set_ylim(low, high)
    for line in panel.lines:
        if abs(metric.scale * line.final.mean - target) > metric.window and not metric.better(
            line.final.mean, panel.target
        ):
            edge, off = (low, 0.06) if metric.higher else (high, -0.06)
            place = list(STYLES).index(line.arm)
            end.annotate(
                "", (place, edge), (place, edge + off * (high - low)),
                arrowprops={"arrowstyle": "-|>", "color": STYLES[line.arm]["color"], "linewidth": 1.6},
            )  # fmt: skip


def _legend(figure: Figure) -> None:
    """Groups side by side, below everything."""
    handles: list[Line2D] = []
    height = max(len(styles) for _, styles in GROUPS) + 1
    for heading, styles in GROUPS:
        handles.append(Line2D([], [], linestyle="none", label=heading))
        handles += [Line2D([], [], label=arm, **STYLES[arm]) for arm in styles]
        handles += [Line2D([], [], linestyle="none", label="")] * (height - 1 - len(styles))
    legend = figure.legend(
        handles=handles, loc="outside lower center", ncols=len(GROUPS), frameon=False, fontsize=SIZE - 1,
        handlelength=2.2, columnspacing=1.4, borderaxespad=0.2,
    )  # fmt: skip
    headings = {heading for heading, _ in GROUPS}
    for text in legend.get_texts():
        if text.get_text() in headings:
            text.set_fontweight("bold")
