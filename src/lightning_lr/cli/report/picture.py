"""The picture of a report: loss, scores, learning rate and batch over the samples seen, phases named above.

Of what a callback logs, its class declares the panels (``MethodCallback.panels``); they follow those that every run
has, which are in :data:`PANELS`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from lightning_lr.cli.envelope import draw_envelope
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
from lightning_lr.cli.labels import EndLabel, label_ends
from lightning_lr.cli.lines import stepped, told_apart
from lightning_lr.cli.report.metric_panels import declared_panels
from lightning_lr.cli.report.record import BATCH, NOISE_SCALES, SAMPLES, RunRecord
from lightning_lr.cli.report.search_panels import draw_search, has_search
from lightning_lr.cli.report.summary import (
    RESULT,
    batch_varies,
    best,
    constant_learning_rate,
    full_batches,
    is_loss,
    is_score,
    model_metrics,
    progress_of,
    run_lines,
    stage_of,
    varies,
    warnings_of,
)
from lightning_lr.cli.report.warmup_panels import draw_warmup, has_warmup, warmup_rates
from lightning_lr.cli.smoothing import DENSE, running_mean, smoothing_window
from lightning_lr.curves import Phase

FEW = 6
"""Batches of a run that steps; one that follows a curve has more."""


def _losses(record: RunRecord) -> list[str]:
    return [name for name in model_metrics(record) if is_loss(name) and stage_of(name) != "test"]


def _scores(record: RunRecord) -> list[str]:
    return [name for name in model_metrics(record) if is_score(name) and stage_of(name) != "test"]


def draw_loss(ax: Axes, record: RunRecord) -> None:
    """Training and validation losses; logarithmic where they fall far."""
    _draw_metrics(ax, record, _losses(record))
    every = [value for name in _losses(record) for _, value in record.metrics[name].finite]
    if spans_decades(every):
        ax.set_yscale("log")
    elif every and min(every) >= 0:
        ax.set_ylim(bottom=0, top=min(1.06 * max(every), 3 * float(np.quantile(every, 0.98))) or 1.0)
    _label_metrics(ax, record, _losses(record))


def draw_scores(ax: Axes, record: RunRecord) -> None:
    """What is better when it is higher."""
    _draw_metrics(ax, record, _scores(record))
    _label_metrics(ax, record, _scores(record))


def draw_scores_by_updates(ax: Axes, record: RunRecord) -> None:
    """The scores once more, over what a growing batch saves."""
    metrics = {name: series for name, series in record.metrics.items() if name != SAMPLES}
    by_updates = replace(record, metrics=metrics, journals={})  # which counts in updates, not knowing of samples
    draw_scores(ax, by_updates)
    ax.set_xlim(0, by_updates.end)
    ax.set_xlabel("updates")


def draw_learning_rate(ax: Axes, record: RunRecord) -> None:
    """The learning rate of each group, or the envelope of many."""
    lines = {group: _with_warmup(record, name) for group, name in record.learning_rates.items()}
    labels = []
    if len(lines) > MAX_LINES:
        labels = draw_envelope(ax, record, lines)
    else:
        styles = told_apart(list(lines.values()))
        for color, style, (group, (at, values)) in zip(COLORS, styles, lines.items(), strict=False):
            # where every update was logged, its lr is known to hold since the one before it, and a jump is a jump
            every_update = len(at) == record.metrics[record.learning_rates[group]].steps[-1] + 1
            if every_update:
                ax.step([0.0, *at], [values[0], *values], where="pre", color=color, label=group, **style)
            else:
                ax.plot(*stepped(at, values, record.edges), color=color, label=group, **style)
            name = f"{group}  " if len(lines) > 1 else ""
            labels.append(EndLabel(record.now, values[-1], f"{name}{values[-1]:.2g}", color))
    every = [value for _, values in lines.values() for value in values]
    if spans_decades(every):
        ax.set_yscale("log")
    else:
        ax.set_ylim(0, 1.12 * max(every) or 1.0)
    label_ends(ax, labels)


def _with_warmup(record: RunRecord, name: str) -> tuple[list[float], list[float]]:
    """A learning rate as it was logged and, where there is one group, at every update of an adaptive warm-up's tests:
    its highest lies between two logged updates."""
    series = record.metrics[name]
    read = warmup_rates(record) if len(record.learning_rates) == 1 else {}
    if not read:
        return record.points(name)
    by_step = {**read, **dict(zip(series.steps, series.values, strict=True))}
    steps = sorted(by_step)
    return record.positions(steps), [by_step[step] for step in steps]


def draw_batch_size(ax: Axes, record: RunRecord) -> None:
    """Samples in a full update: what is left over at the end of an epoch is no change of the batch."""
    at, values = record.points(BATCH)[0], full_batches(record)
    every_update = len(at) == record.metrics[BATCH].steps[-1] + 1
    if every_update or len(set(values)) <= FEW:
        ax.step([0.0, *at], [values[0], *values], where="pre", color=COLORS[2], label="batch size")
    else:  # a curve's: between the logged updates it was something between
        x, y = stepped([0.0, *at], [values[0], *values], record.edges)
        ax.plot(x, y, color=COLORS[2], marker="o" if len(at) < 40 else "", markersize=3, label="batch size")
    ax.set_ylim(0, 1.2 * max(values))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
    label_ends(ax, [EndLabel(record.now, values[-1], f"{values[-1]:g}", COLORS[2])])


def _noise_scales(record: RunRecord) -> list[str]:
    return [name for name in NOISE_SCALES if name in record.metrics and record.metrics[name].finite]


def draw_noise_scale(ax: Axes, record: RunRecord) -> None:
    """That of the update, lr / (1 - m) (N / B - 1), and the gradient's as it was measured, where it was."""
    labels = []
    for name, color in zip(_noise_scales(record), (COLORS[3], COLORS[4]), strict=False):
        at, values = record.points(name)
        batches = full_batches(record) if BATCH in record.metrics else []
        of_update = name == "noise/scale" and len(batches) == len(values)  # which jumps with the batch
        x, y = stepped(at, values, record.edges, batches if of_update else ())
        ax.plot(x, y, color=color, label=NOISE_SCALES[name])
        last = record.metrics[name].finite[-1][1]
        labels.append(EndLabel(record.now, last, f"{NOISE_SCALES[name]}  {last:.3g}", color))
    if spans_decades([value for name in _noise_scales(record) for _, value in record.metrics[name].finite]):
        ax.set_yscale("log")
    label_ends(ax, labels)


PANELS: list[Panel[RunRecord]] = [
    Panel("accuracy, scores", lambda record: bool(_scores(record)), draw_scores, height=2.4),
    Panel("loss", lambda record: bool(_losses(record)), draw_loss, height=2.4),
    Panel(
        "learning rate",
        lambda record: bool(record.learning_rates) and not constant_learning_rate(record),
        draw_learning_rate,
        height=2.2,
    ),
    Panel("batch size\n(samples / update)", batch_varies, draw_batch_size, height=1.4),
    Panel("noise scale", lambda record: bool(_noise_scales(record)), draw_noise_scale, height=1.6),
    Panel(
        "accuracy, scores",
        lambda record: bool(_scores(record)) and record.counts_samples and batch_varies(record),
        draw_scores_by_updates,
        height=2.2,
        own_axis=True,
    ),
    Panel("loss after a\nshort schedule", has_search, draw_search, height=3.4, own_axis=True),
    Panel("loss of the\nadaptive warm-up", has_warmup, draw_warmup, height=3.4, own_axis=True),
]
"""What is drawn of every run, from top to bottom; a panel is left out where the run has nothing for it."""


def save_report_picture(record: RunRecord, title: str, out: Path) -> list[str]:
    """Write the picture of a run; returns a sentence for each panel that could not be drawn.

    Args:
        record: what the run left so far.
        title: stands on top.
        out: the file; its ending gives the format.
    """
    return save_figure(_frame(record, title), [*PANELS, *declared_panels(record)], record, out)


def report_figure(record: RunRecord, title: str) -> tuple[Figure, list[str]]:
    """The same picture as a figure of matplotlib, and a sentence for each panel that could not be drawn."""
    return draw_figure(_frame(record, title), [*PANELS, *declared_panels(record)], record)


def _frame(record: RunRecord, title: str) -> Frame:
    planned = record.planned_samples if record.counts_samples else record.planned_updates
    scale = (planned or record.end) / record.end
    return Frame(
        title=title,
        lines=[*(f"{h}: {fact}" for h, fact in run_lines(record).items() if h != RESULT), *warnings_of(record)],
        xlabel="samples seen" if record.counts_samples else "updates",
        end=record.end,
        strips={
            name.replace("_", " "): [Phase(p.name, p.start * scale, p.end * scale) for p in phases]
            for name, phases in record.phases.items()
        },
        per_epoch=record.per_epoch,
        now=None if progress_of(record).finished else record.now,
    )


# ---------------------------------------------------------------------- the model's metrics
def _colors(names: Sequence[str]) -> dict[str, str]:
    """Training blue and validation red, in every panel; further ones in the colours that are left."""
    rest = iter([*COLORS[2:], *COLORS[2:], *COLORS[2:]])
    used: dict[str, str] = {}
    for name in names:
        color = {"train": COLORS[0], "val": COLORS[1]}.get(stage_of(name), COLORS[2])
        used[name] = next(rest, "#888888") if color in used.values() else color
    return used


def _draw_metrics(ax: Axes, record: RunRecord, names: Sequence[str]) -> None:
    for name, color in _colors(names).items():
        at, values = record.points(name)
        if len(at) > DENSE:
            ax.plot(at, values, color=color, alpha=0.28, linewidth=0.8)
            ax.plot(at, running_mean(values, smoothing_window(values)), color=color, label=name)
        else:
            ax.plot(at, values, color=color, marker="o" if len(at) < 40 else "", markersize=3.5, label=name)
        gaps = [x for x, value in zip(at, values, strict=True) if not math.isfinite(value)]
        ax.plot(gaps, [0.02] * len(gaps), "x", color=color, markersize=5, transform=ax.get_xaxis_transform())


def _label_metrics(ax: Axes, record: RunRecord, names: Sequence[str]) -> None:
    ends = []
    for name, color in _colors(names).items():
        series = record.metrics[name]
        top = best(name, series)
        if top is None:
            continue
        last = series.finite[-1][1]
        text = f"{name}  {last:.3g}"
        if len(series.steps) > DENSE:
            last = next(
                v for v in reversed(running_mean(series.values, smoothing_window(series.values))) if math.isfinite(v)
            )
            text = f"{name}  {last:.3g}\nmean of {smoothing_window(series.values)} logged"
        elif stage_of(name) == "val" and varies(series):
            (x,) = record.positions([top[0]])
            ax.plot([x], [top[1]], "o", color=color, markersize=8, markerfacecolor="none", clip_on=False)
            text += f"\nbest {top[1]:.4g}" if top[1] != last else ", the best"
        ends.append(EndLabel(record.now, last, text, color))
    label_ends(ax, ends)
