"""The picture of several runs: the metric against samples, updates and seconds; small below, what made the difference.

A row of text per run stands above, in its colour. A later method adds a panel by appending it to :data:`SMALL`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lightning_lr.cli.figure import (
    COLORS,
    DPI,
    LETTERS,
    STYLE,
    WIDTH,
    Panel,
    plain_log_labels,
    short_number,
    spans_decades,
)
from lightning_lr.cli.lines import stepped, told_apart
from lightning_lr.cli.report.comparison import AXES, ComparedRun, Comparison, listed
from lightning_lr.cli.report.comparison_summary import row_of
from lightning_lr.cli.report.record import BATCH, RunRecord
from lightning_lr.cli.report.summary import full_batches, is_loss

DASHES = ("-", "--", ":", "-.")
"""One for as many runs as there are colours."""

COLUMNS = {
    "run": 0.045, "best": 0.27, "last": 0.33, "samples": 0.44, "updates": 0.51, "seconds": 0.58, "what differs": 0.605,
}  # fmt: skip
"""Where the text of a row stands, as a share of the width; numbers end there."""

ROW, HEAD = 0.21, 0.88  # inches


def draw_against(axis: str) -> Callable[[Axes, Comparison], None]:
    """A panel of the metric against samples, updates or seconds."""

    def draw(ax: Axes, comparison: Comparison) -> None:
        ax.axhline(comparison.target, color="#555555", linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        missing = []
        for run, style in zip(comparison.runs, _styles(comparison), strict=True):
            points = [(spent, p.value) for p in run.points if (spent := p.spent(axis)) is not None]
            if not points:
                missing += [run.name]
                continue
            x, y = zip(*points, strict=True)
            ax.plot(x, y, label=run.name, marker="." if len(x) < 40 else "", markersize=4, **style)
            reached = run.reached(comparison.target)
            spent = None if reached is None else reached.spent(axis)
            if reached is not None and spent is not None:
                ax.plot([spent], [reached.value], "o", color=style["color"], markersize=8, markerfacecolor="none")
        ax.set_xlim(left=0)
        label = f"{axis} (training)" if axis == "seconds" else axis
        if missing:
            of = "any run" if len(missing) == len(comparison.runs) else listed(missing, 2)
            label += f"\n{_cut(f'not known of {of}', 46)}"
        ax.set_xlabel(label)

    return draw


def draw_learning_rate(ax: Axes, comparison: Comparison) -> None:
    """The highest learning rate of any group."""
    _draw_small(ax, comparison, _highest_learning_rate, "default")


def draw_batch_size(ax: Axes, comparison: Comparison) -> None:
    """Samples in a full update."""
    _draw_small(ax, comparison, _batch_size, "default")
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))


Line = tuple[Sequence[int], Sequence[float]]


def _highest_learning_rate(record: RunRecord) -> Line:
    highest: dict[int, float] = {}
    for name in record.learning_rates.values():
        for step, value in record.metrics[name].finite:
            highest[step] = max(value, highest.get(step, value))
    return list(highest), list(highest.values())


def _batch_size(record: RunRecord) -> Line:
    series = record.metrics.get(BATCH)
    return ([], []) if series is None else (series.steps, full_batches(record))


def _draw_small(
    ax: Axes, comparison: Comparison, line: Callable[[RunRecord], Line], drawstyle: Literal["default", "steps-pre"]
) -> None:
    lines = [line(run.record) for run in comparison.runs]
    by_samples = _by_samples([run for run, (steps, _) in zip(comparison.runs, lines, strict=True) if steps])
    drawn = []
    for run, (steps, values) in zip(comparison.runs, lines, strict=True):
        x = run.record.positions(steps) if by_samples else [step + 1.0 for step in steps]
        drawn.append(stepped(x, values, run.record.edges if by_samples else ()))
    styles = zip(_styles(comparison), told_apart(drawn), strict=True)
    for run, (x, y), (style, apart) in zip(comparison.runs, drawn, styles, strict=True):
        if x:
            ax.plot(x, y, label=run.name, drawstyle=drawstyle, **{**style, **apart})
    every = [value for _, values in lines for value in values]
    if spans_decades(every):
        ax.set_yscale("log")
    else:
        ax.set_ylim(0, 1.12 * max(every) or 1.0)
    ax.set_xlim(left=0)
    ax.set_xlabel("samples" if by_samples else "updates")


def _by_samples(runs: Sequence[ComparedRun]) -> bool:
    return all(run.record.counts_samples for run in runs)


MAIN = [Panel("", lambda comparison: True, draw_against(axis), height=3.6) for axis in AXES]
"""The metric, side by side."""

SMALL: list[Panel[Comparison]] = [
    Panel("learning rate", lambda c: any(run.record.learning_rates for run in c.runs), draw_learning_rate, height=1.7),
    Panel("batch size", lambda c: any(BATCH in run.record.metrics for run in c.runs), draw_batch_size, height=1.7),
]
"""Below, two in a row. A panel is left out where no run has anything for it."""


def comparison_figure(comparison: Comparison) -> Figure:
    """Draw the comparison; nothing is written."""
    small = [panel for panel in SMALL if panel.has(comparison)]
    pairs = [small[i : i + 2] for i in range(0, len(small), 2)]
    notes = comparison.notes
    head = HEAD + ROW * (len(comparison.runs) + len(notes))
    heights = [MAIN[0].height, *(max(panel.height for panel in pair) for pair in pairs)]
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(WIDTH, head + sum(heights) + 0.45 * len(heights)), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        top = 1 - head / figure.get_figheight()
        figure.get_layout_engine().set(rect=(0.005, 0, 0.985, top), h_pad=0.06, hspace=0)  # type: ignore[union-attr, call-arg]
        grid = figure.add_gridspec(len(heights), 6, height_ratios=heights)
        first: Axes | None = None
        for column, panel in enumerate(MAIN):
            ax = figure.add_subplot(grid[0, 2 * column : 2 * column + 2], sharey=first)
            panel.draw(ax, comparison)
            ax.tick_params(labelleft=first is None)
            ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
            ax.xaxis.set_major_locator(MaxNLocator(5))
            first = first or ax
        assert first is not None
        first.set_ylabel(comparison.metric)
        _limit(first, comparison)
        for row, pair in enumerate(pairs, start=1):
            for column, panel in enumerate(pair):
                width = 6 // len(pair)
                ax = figure.add_subplot(grid[row, width * column : width * (column + 1)])
                panel.draw(ax, comparison)
                ax.set_ylabel(panel.label)
                ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
        plain_log_labels(figure)
        _write_head(figure, comparison, notes)
    return figure


def save_comparison_picture(comparison: Comparison, out: Path) -> None:
    """Write the picture of several runs.

    Args:
        comparison: the runs.
        out: the file; its ending gives the format.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        comparison_figure(comparison).savefig(out)


# ---------------------------------------------------------------------- around the panels
def _styles(comparison: Comparison) -> list[dict[str, Any]]:
    count = len(COLORS)
    return [
        {"color": COLORS[i % count], "linestyle": DASHES[i // count % len(DASHES)]} for i in range(len(comparison.runs))
    ]


def _limit(ax: Axes, comparison: Comparison) -> None:
    """Logarithmic where a loss falls far; else the bad first values may leave the panel."""
    values = [point.value for run in comparison.runs for point in run.finite]
    if is_loss(comparison.metric) and spans_decades(values):
        ax.set_yscale("log")
        return
    low, high = min(values), max(values)
    if len(values) >= 20:  # the earliest may be far off
        low, high = (
            (float(np.quantile(values, 0.03)), high) if comparison.higher else (low, float(np.quantile(values, 0.97)))
        )
    low, high = min(low, comparison.target), max(high, comparison.target)
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    ax.set_ylim(low - room, high + room)


def _write_head(figure: Figure, comparison: Comparison, notes: Sequence[str]) -> None:
    height = figure.get_figheight()

    def write(x: float, down: float, text: str, **style: object) -> None:
        given = {"va": "top", "fontsize": 9, "color": "#555555", **style}
        figure.text(x, 1 - down / height, text, **given)  # type: ignore[arg-type]

    write(0.012, 0.1, _cut(comparison.headline, 104), fontsize=13, fontweight="bold", color="#222222")
    write(0.012, 0.38, _cut(comparison.target_line, LETTERS))
    for heading, x in COLUMNS.items():
        write(
            x,
            0.62,
            "to target: samples" if heading == AXES[0] else heading,
            ha=_side(heading),
            fontsize=8,
            color="#888888",
        )
    for number, (run, style) in enumerate(zip(comparison.runs, _styles(comparison), strict=True)):
        down = 0.82 + ROW * number
        y = 1 - (down + 0.07) / height
        figure.add_artist(Line2D([0.012, 0.037], [y, y], linewidth=2.4, **style))
        row = row_of(run, comparison)
        for heading, x in COLUMNS.items():
            longest = {"run": 21, "what differs": 54}.get(heading, 20)
            cut = _cut_inside if heading == "run" else _cut  # names often differ at their end alone
            write(x, down, cut(row[heading], longest), ha=_side(heading), color="#222222")
    for number, note in enumerate(notes):
        write(0.012, 0.86 + ROW * (len(comparison.runs) + number), f"note: {_cut(note, 150)}", fontsize=8)


def _side(heading: str) -> str:
    return "left" if heading in ("run", "what differs") else "right"


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}\u2026"


def _cut_inside(text: str, longest: int) -> str:
    begin = longest // 3
    return text if len(text) <= longest else f"{text[:begin]}\u2026{text[begin + 1 - longest :]}"
