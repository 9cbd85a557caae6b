"""The picture of a plan: learning rate and batch over the samples of the run, phases named above.

A later method adds what it plans by appending a :class:`~lightning_lr.cli.figure.Panel` to :data:`PANELS`.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from lightning_lr.cli.figure import (
    COLORS,
    MAX_LINES,
    Frame,
    Panel,
    draw_figure,
    save_figure,
    short_number,
    spans_decades,
)
from lightning_lr.cli.labels import EndLabel, label_ends, label_point
from lightning_lr.cli.plan.model import Plan


def draw_learning_rate(ax: Axes, plan: Plan) -> None:
    """The learning rate of each group, or the envelope of many."""
    # an update's learning rate holds until the next one
    units = [*plan.units, plan.shape.total_units]
    lr = [[*values, values[-1]] for values in plan.lr]
    if len(plan.groups) > MAX_LINES:
        lows, highs = ([pick(values) for values in zip(*lr, strict=True)] for pick in (min, max))
        ax.fill_between(units, lows, highs, step="post", color=COLORS[0], alpha=0.2, linewidth=0)
        ax.step(units, highs, where="post", color=COLORS[0], label=f"highest of {len(plan.groups)} groups")
        ax.step(units, lows, where="post", color=COLORS[0], linewidth=1, linestyle="--", label="lowest")
    else:
        for color, group, values in zip(COLORS, plan.groups, lr, strict=False):
            ax.step(units, values, where="post", color=color, label=group)
    every = [value for values in lr for value in values]
    if spans_decades(every):
        ax.set_yscale("log")
    else:
        ax.set_ylim(0, 1.12 * max(every) or 1.0)
    if len(plan.groups) > 1:
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4, fontsize=8.5, borderaxespad=0.2)
    else:
        peak = lr[0].index(max(lr[0]))
        label_point(ax, units[peak], lr[0][peak], f"{lr[0][peak]:.4g}", COLORS[0])
        label_ends(ax, [EndLabel(units[-1], lr[0][-1], f"{lr[0][-1]:.2g}", COLORS[0])])


def draw_batch_size(ax: Axes, plan: Plan) -> None:
    """Samples per update; where they change for good, what they are made of."""
    sizes = [size or 0 for size in plan.batch_sizes]
    units = [*plan.units, plan.shape.total_units]
    ax.step(units, [*sizes, sizes[-1]], where="post", color=COLORS[2], linewidth=2.2, label="batch size")
    if max(sizes) >= MANY_TIMES * min(sizes) > 0:
        ax.set_yscale("log", base=2)
        ax.set_ylim(min(sizes) / 1.5, max(sizes) * 1.7)
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    else:
        ax.set_ylim(0, 1.45 * max(sizes))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
    for before, row in zip([None, *plan.rows], plan.rows, strict=False):
        if before is None or before.batch_size != row.batch_size:
            text = f"{row.batch_size:,} = {row.batch.micro_batch_size} x {row.batch.accumulation} x {row.world_size}"
            # a batch that grows leaves the place before it free, one late in the run has none after it
            late = row.units[0] > 0.3 * plan.shape.total_units and before is not None
            place: tuple[int, int] = (-5, 1) if late else (5, 4)
            ax.annotate(
                text, (row.units[0], row.batch_size or 0), place, textcoords="offset points", fontsize=8.5,
                va="bottom", ha="right" if late else "left",
            )  # fmt: skip


MANY_TIMES = 6
"""From so many times the first batch on, doublings are drawn alike: the axis is logarithmic."""

PANELS: list[Panel[Plan]] = [
    Panel("learning rate", lambda plan: not plan.relative, draw_learning_rate, height=3.2),
    Panel("factor on the learning rate", lambda plan: plan.relative, draw_learning_rate, height=3.2),
    Panel(
        "batch size\n(samples / update)",
        lambda plan: len({row.batch_size for row in plan.rows} - {None}) > 1,
        draw_batch_size,
        height=1.6,
    ),
]
"""What is drawn, from top to bottom. A panel is left out where the plan has nothing for it."""


def save_plan_picture(plan: Plan, title: str, lines: list[str], out: Path) -> None:
    """Write the picture of a plan.

    Args:
        plan: the run.
        title: what is planned.
        lines: what stands below the title.
        out: the file; its ending gives the format.
    """
    save_figure(_frame(plan, title, lines), PANELS, plan, out)


def plan_figure(plan: Plan, title: str, lines: list[str]) -> Figure:
    """The same picture as a figure of matplotlib."""
    return draw_figure(_frame(plan, title, lines), PANELS, plan)[0]


def _frame(plan: Plan, title: str, lines: list[str]) -> Frame:
    per_epoch = plan.shape.epoch.total_units
    return Frame(
        title=title,
        lines=lines,
        xlabel="samples seen" if plan.unit == "samples" else "micro-batches seen (all devices)",
        end=plan.shape.total_units,
        strips={name.replace("_", " "): phases for name, phases in plan.method_phases.items()},
        per_epoch=per_epoch,
    )
