"""How pictures of a run are laid out: panels over one axis of samples, and a strip that names the phases above.

A :class:`Panel` knows whether there is something to draw and draws it; ``plan`` and ``report`` each keep a list of
them, and a later method adds its own. matplotlib alone, on its own canvas, so nothing of the user's pyplot is touched.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogFormatter, LogFormatterMathtext

from lightning_lr.curves import Phase

T = TypeVar("T")

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#3d3d3d", "#56b4e9", "#7f3b08")
"""One per line of a panel; the first two also stand for training and validation. Okabe and Ito's, which colour-blind
readers tell apart (a brown for their yellow, which is pale on white)."""


LOWEST, TALL = 1.1, 14.0
"""Inches that the panels of a picture have together, and one at least: many are made lower."""

MAX_LINES = 8
"""Parameter groups that are drawn one by one; of more, the envelope is drawn."""

LOG_RANGE = 30.0
"""A panel has a logarithmic axis where the highest value is more than this many times the usual ones."""

WIDTH, DPI = 10.0, 120  # inches, dots per inch: 1200 px
LETTERS = 135
"""Of a line above the panels, which holds about 140 of them."""

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": "#333333",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "text.parse_math": False,  # a name with $ in it is a name
}


@dataclass(frozen=True)
class Panel(Generic[T]):
    """One part of a picture.

    Args:
        label: the vertical axis, with its unit.
        has: whether the run has what the panel draws.
        draw: draws it.
        height: in inches.
        own_axis: whether the panel has a horizontal axis of its own, which ``draw`` labels; such panels come last.
    """

    label: str
    has: Callable[[T], bool]
    draw: Callable[[Axes, T], None]
    height: float = 2.6
    own_axis: bool = False


@dataclass(frozen=True)
class Frame:
    """What is around the panels.

    Args:
        title: what the picture shows.
        lines: what was decided, a line each.
        xlabel: the common axis, with its unit.
        end: its end.
        strips: the phases of each method, by its name.
        per_epoch: units of the axis in one epoch, for a second axis of epochs on top.
        now: how far a run that is not finished has come.
    """

    title: str
    lines: Sequence[str]
    xlabel: str
    end: float
    strips: dict[str, Sequence[Phase]]
    per_epoch: float | None = None
    now: float | None = None


def save_figure(frame: Frame, panels: Sequence[Panel[T]], data: T, out: Path) -> list[str]:
    """Draw the panels and write the picture; returns a sentence for each panel that could not be drawn.

    Raises:
        OSError: where ``out`` cannot be written.
        ValueError: where the ending of ``out`` is no format of matplotlib's.
    """
    figure, damaged = draw_figure(frame, panels, data)
    out.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figure.savefig(out)
    return damaged


def draw_figure(frame: Frame, panels: Sequence[Panel[T]], data: T) -> tuple[Figure, list[str]]:
    """Draw the panels for which the data has something.

    Returns:
        The figure, and what could not be drawn, a sentence each: the panel shows it in its place, and the rest is there
        all the same.
    """
    panels = sorted((panel for panel in panels if _has(panel, data)), key=lambda panel: panel.own_axis)
    frame = replace(frame, lines=_fitting(frame.lines))
    damaged: list[str] = []
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        head, strip = 0.32 + 0.2 * len(frame.lines), 0.26 * len(frame.strips) + 0.02
        low = min(1.0, TALL / (sum(panel.height for panel in panels) or TALL))
        heights = [strip, *(max(LOWEST, low * panel.height) for panel in panels)]
        figure = Figure(figsize=(WIDTH, head + sum(heights) + 0.35 * len(panels) + 0.6), dpi=DPI, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        top = 1 - head / figure.get_figheight()
        figure.get_layout_engine().set(rect=(0.005, 0, 0.985, top), h_pad=0.06, hspace=0)  # type: ignore[union-attr, call-arg]
        axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
        common = [axes[0], *(ax for ax, panel in zip(axes[1:], panels, strict=True) if not panel.own_axis)]
        for ax in common[1:]:
            ax.sharex(axes[0])
        axes[0].set_xlim(0, frame.end)
        for ax, panel in zip(axes[1:], panels, strict=True):
            damage = _draw(panel, ax, data)
            damaged += [damage] if damage else []
            ax.set_ylabel(panel.label)
            if panel.own_axis:
                continue
            _shade(ax, frame)
            if frame.now is not None and frame.now < frame.end:
                ax.axvline(frame.now, color="#777777", linewidth=1, linestyle=":")
        for ax in common[:-1]:
            ax.tick_params(axis="x", labelbottom=False)
        common[-1].set_xlabel(frame.xlabel)
        common[-1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
        plain_log_labels(figure)
        figure.align_ylabels(axes[1:])
        _write_head(figure, frame)
        _draw_epochs(axes[0], frame)
        _draw_strips(axes[0], frame)
        canvas.draw()  # type: ignore[no-untyped-call]  # places the axes, so that the strips know which names fit
        figure.set_layout_engine("none")
        for row, phases in enumerate(frame.strips.values()):
            _name_blocks(axes[0], row + 0.5, phases, frame.end)
    return figure, damaged


def plain_log_labels(figure: Figure) -> None:
    """Label logarithmic axes in plain text: matplotlib's own labels are mathtext, which is off (see ``STYLE``)."""
    for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)):
        if isinstance(axis.get_major_formatter(), LogFormatterMathtext):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        if isinstance(axis.get_minor_formatter(), LogFormatterMathtext):
            axis.set_minor_formatter(LogFormatter())


DAMAGED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What a panel raises where what it reads was damaged on disk."""


def _has(panel: Panel[T], data: T) -> bool:
    try:
        return panel.has(data)
    except DAMAGED:
        return True  # drawing it gives the reason


def _draw(panel: Panel[T], ax: Axes, data: T) -> str:
    """Draw a panel; where that fails, return a message about it."""
    try:
        panel.draw(ax, data)
        return ""
    except DAMAGED as error:
        ax.cla()
        text = f"not drawn: {type(error).__name__}: {error}"[:120]
        ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", fontsize=8.5, color="#b03a2e")
        heading = " ".join(panel.label.split())
        return f"the panel {heading!r} was not drawn ({type(error).__name__}: {error}); what it reads may be damaged"


def short_number(value: float) -> str:
    """A count for an axis: 950, 1.5k, 60k, 1.2M."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{suffix}"
    return f"{value:.4g}"


def spans_decades(values: Sequence[float]) -> bool:
    """Whether values span so much that the axis should be logarithmic.

    The lowest fifth does not count: a cosine that ends near zero is read best on a linear axis, steps of a tenth not.
    """
    ordered = sorted(value for value in values if math.isfinite(value))
    return bool(ordered) and 0 < ordered[len(ordered) // 5] * LOG_RANGE < ordered[-1]


# ---------------------------------------------------------------------- around the panels
def _fitting(lines: Sequence[str]) -> list[str]:
    """Lines that are too long, broken; of a table only the first line, the rest is for the terminal."""
    firsts = [line.partition("\n")[0] for line in lines]
    return [piece for line in firsts for piece in textwrap.wrap(line, LETTERS, subsequent_indent="      ")]


def _write_head(figure: Figure, frame: Frame) -> None:
    height = figure.get_figheight()
    figure.text(0.012, 1 - 0.1 / height, frame.title, fontsize=13, fontweight="bold", va="top", color="#222222")
    for number, line in enumerate(frame.lines):
        figure.text(0.012, 1 - (0.36 + 0.2 * number) / height, line, fontsize=9, va="top", color="#555555")


def _draw_epochs(ax: Axes, frame: Frame) -> None:
    ax.grid(False)
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.tick_params(axis="x", bottom=False)
    per_epoch = frame.per_epoch
    if per_epoch:
        top = ax.secondary_xaxis("top", functions=(_times(1 / per_epoch), _times(per_epoch)))
        top.set_xlabel("epochs", labelpad=3)
        top.spines["top"].set_visible(False)
        top.tick_params(length=3, pad=1)
        top.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _times(factor: float) -> Callable[[Any], Any]:
    return lambda x: x * factor


def _shade(ax: Axes, frame: Frame) -> None:
    edges = {edge * frame.end for phases in frame.strips.values() for p in phases for edge in (p.start, p.end)}
    inner = sorted(edge for edge in edges if 0 < edge < frame.end)
    for number, (left, right) in enumerate(zip([0.0, *inner], [*inner, frame.end], strict=True)):
        if number % 2 == 0 and inner:
            ax.axvspan(left, right, color="#f5f6f8", zorder=-2, linewidth=0)
    if len(inner) <= 40:
        for edge in inner:
            ax.axvline(edge, color="#c9cdd3", linewidth=0.8, zorder=-1)


def _draw_strips(ax: Axes, frame: Frame) -> None:
    """One row per method: its phases as blocks, each with its name where that fits."""
    count = max(1, len(frame.strips))
    ax.set_ylim(count, 0)
    for row, (method, phases) in enumerate(frame.strips.items()):
        ax.text(-0.008, row + 0.5, method, transform=ax.get_yaxis_transform(), ha="right", va="center", fontsize=8)
        for number, phase in enumerate(phases):
            left, width = phase.start * frame.end, (phase.end - phase.start) * frame.end
            face = ("#dbe7f3", "#eef3f8")[number % 2]
            ax.barh(row + 0.5, width, left=left, height=0.78, color=face, edgecolor="white", linewidth=0.6)


def _name_blocks(ax: Axes, y: float, phases: Sequence[Phase], end: float) -> None:
    """The name in each block where it fits, else next to it in the next block, else its last word (``cycle 7``: 7).

    Else nothing: the table in the terminal names every phase.
    """
    scale = ax.bbox.width / ax.get_xlim()[1] * end
    free = 0.0  # pixels from the left that an earlier name has taken

    def write(text: str, left: float, right: float, ha: str) -> float | None:
        x = {"center": (left + right) / 2, "left": left + 3}[ha]
        label = ax.text(x / scale * end, y, text, ha=ha, va="center", fontsize=8, color="#34495e")
        box = label.get_window_extent()
        start = x - box.width / 2 if ha == "center" else x
        if start < max(left, free) or start + box.width + 3 > right:
            label.remove()
            return None
        return float(start + box.width + 6)

    for number, phase in enumerate(phases):
        left, right = phase.start * scale, phase.end * scale
        after = phases[number + 1].end * scale if number + 1 < len(phases) else right
        taken = write(phase.name, left, right, "center")
        if taken is None and after > right and after - right > 4 * (right - left):
            taken = write(f"\u25c2 {phase.name}", right, right + (after - right) * 0.4, "left")
        if taken is None:
            taken = write(phase.name.rsplit(" ", 1)[-1], left, right, "center")
        free = max(free, taken or 0.0)
