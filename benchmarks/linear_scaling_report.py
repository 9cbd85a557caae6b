"""Table and picture of `linear_scaling`: mean test accuracy with intervals over seeds, differences to the reference
batch paired by seed, and what batch normalisation changes about them. Nothing is trained here."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks._common import Interval, clock, markdown_table, paired_interval, t_interval, write_keeping_findings

Record = dict[str, Any]
RULES = ("none", "sqrt", "linear")
AT_CHANCE = 0.2
"""A test accuracy below this counts as not having learned, beside the runs whose loss became infinite."""


class Setting(NamedTuple):
    """What runs that differ in the seed only have in common."""

    model: str
    batch_size: int
    rule: str
    warmup_epochs: float


@dataclass(frozen=True)
class Row:
    """One setting over its seeds; accuracies as shares, differences to the reference batch of the same model."""

    setting: Setting
    peak_lr: float
    accuracy: Interval
    difference: Interval | None
    train_loss: float | None
    failed: int


def by_setting(records: Sequence[Record]) -> dict[Setting, dict[int, Record]]:
    """Records by setting and seed, settings in the order of the table."""
    groups: dict[Setting, dict[int, Record]] = {}
    for record in records:
        config = record["config"]
        setting = Setting(*(config[field] for field in Setting._fields))
        groups.setdefault(setting, {})[config["seed"]] = record
    return dict(sorted(groups.items(), key=lambda item: (*item[0][:2], RULES.index(item[0].rule), item[0][3])))


def rows(records: Sequence[Record]) -> list[Row]:
    """A row for each setting; the smallest batch of each model is the reference."""
    groups = by_setting(records)
    smallest = min(setting.batch_size for setting in groups)
    reference = {setting.model: runs for setting, runs in groups.items() if setting.batch_size == smallest}
    result = []
    for setting, runs in groups.items():
        k = setting.batch_size / smallest
        factor = {"none": 1.0, "sqrt": math.sqrt(k), "linear": k}[setting.rule]
        is_reference = setting.batch_size == smallest
        losses = [run["final_train_loss"] for run in runs.values() if not run["diverged"]]
        result.append(
            Row(
                setting,
                next(iter(runs.values()))["config"]["lr"] * factor,
                t_interval(list(_accuracies(runs).values())),
                None if is_reference else paired_interval(_accuracies(runs), _accuracies(reference[setting.model])),
                fmean(losses) if losses else None,
                sum(run["diverged"] or run["test_accuracy"] < AT_CHANCE for run in runs.values()),
            )
        )
    return result


def norm_advantages(records: Sequence[Record], with_norm: str, without: str) -> dict[Setting, Interval]:
    """How much less the model with batch norm loses against its own reference batch than the model without, by seed."""
    groups = by_setting(records)
    smallest = min(setting.batch_size for setting in groups)
    losses: dict[Setting, dict[int, float]] = {}
    for setting, runs in groups.items():
        reference = _accuracies(groups[Setting(setting.model, smallest, "none", 0.0)])
        losses[setting] = {seed: accuracy - reference[seed] for seed, accuracy in _accuracies(runs).items()}
    return {
        setting: paired_interval(losses[setting], losses[setting._replace(model=without)])
        for setting in groups
        if setting.model == with_norm and setting.batch_size > smallest and setting._replace(model=without) in groups
    }


def _accuracies(runs: Mapping[int, Record]) -> dict[int, float]:
    return {seed: run["test_accuracy"] for seed, run in runs.items()}


# ---------------------------------------------------------------------- tables
HEADINGS = (
    "model",
    "batch (samples)",
    "rule",
    "warm-up (epochs)",
    "peak lr",
    "test accuracy (%)",
    "difference to the reference batch (points)",
    "train loss, last epoch",
    "failed",
)
SHORT_HEADINGS = ("batch", "rule", "warm-up", "peak lr", "accuracy (%)", "diff. (points)", "loss", "failed")


def cells(row: Row) -> list[str]:
    """A row in words, in the order of the headings."""
    setting = row.setting
    return [
        setting.model,
        str(setting.batch_size),
        setting.rule,
        f"{setting.warmup_epochs:g}" if setting.rule != "none" else "-",
        f"{row.peak_lr:.3g}",
        row.accuracy.text(100),
        "reference" if row.difference is None else row.difference.text(100, sign=True),
        "-" if row.train_loss is None else f"{row.train_loss:.3f}",
        f"{row.failed} of {row.accuracy.count}",
    ]


def tuning_cells(tuned: Sequence[Record]) -> list[list[str]]:
    """Validation and test accuracy of the grid at the reference batch; the best validation mean is marked."""
    result = []
    by_model = itertools.groupby(sorted(tuned, key=_model_and_lr), key=lambda record: record["config"]["model"])
    for model, of_model in by_model:
        runs = {lr: list(of_lr) for lr, of_lr in itertools.groupby(of_model, key=lambda record: record["config"]["lr"])}
        best = max(runs, key=lambda lr: fmean(run["val_accuracy"] for run in runs[lr]))
        for lr, of_lr in runs.items():
            accuracies = [t_interval([run[key] for run in of_lr]) for key in ("val_accuracy", "test_accuracy")]
            failed = sum(run["diverged"] or run["test_accuracy"] < AT_CHANCE for run in of_lr)
            texts = [accuracy.text(100) for accuracy in accuracies]
            result.append([model, f"{lr:g}", *texts, f"{failed} of {len(of_lr)}", "taken" if lr == best else ""])
    return result


def _model_and_lr(record: Record) -> tuple[str, float]:
    return record["config"]["model"], record["config"]["lr"]


def _markdown(picture: str, tuned: Sequence[Record], scaled: Sequence[Record]) -> str:
    everything = {str(record["config"]): record for record in [*tuned, *scaled]}.values()
    config = scaled[0]["config"]
    smallest = min(record["config"]["batch_size"] for record in scaled)
    models = {record["config"]["model"]: record["config"]["parameters"] for record in scaled}
    machines = dict.fromkeys(", ".join(f"{k} {v}" for k, v in record["environment"].items()) for record in everything)
    advantages = [
        [str(setting.batch_size), setting.rule, cells_of_warmup(setting), advantage.text(100, sign=True)]
        for setting, advantage in norm_advantages(scaled, "batch norm", "no norm").items()
    ]
    by_size = {record["config"]["batch_size"]: record["updates"] for record in scaled if not record["diverged"]}
    updates = "updates at batch " + ", ".join(f"{size}: {count}" for size, count in sorted(by_size.items()))
    networks = ", ".join(f"{model}: {count} parameters" for model, count in models.items())
    seeds = len({record["config"]["seed"] for record in scaled})
    tuning_headings = ("model", "lr", "validation accuracy (%)", "test accuracy (%)", "failed", "")
    return f"""# Linear scaling of the learning rate, with and without batch normalisation

Made by `python -m benchmarks.linear_scaling`. Fashion-MNIST, {config["train_size"]} training images,
{config["epochs"]} epochs for every batch size ({updates}).
`SmallCNN` ({networks}), SGD with Nesterov momentum 0.9,
weight decay 5e-4, cosine decay; the batch is a true one, without accumulation.

± is a 95 % interval of the mean by Student's distribution over {seeds} seeds (initialisation and sample order);
differences are paired by seed. With so few seeds, and where some fail and others do not, an interval is a rough guide.
*Failed*: the loss became infinite or NaN (counted as 10 % accuracy, that of guessing), or the test accuracy stayed
below {AT_CHANCE:.0%}.

![accuracy against batch size]({picture})

## Test accuracy

{markdown_table(HEADINGS, [cells(row) for row in rows(scaled)])}
## Batch norm against no norm

How many points less the model with batch norm loses, against its own result at batch {smallest}, than the model
without. Where both fail, nothing is left to compare.

{markdown_table(("batch (samples)", "rule", "warm-up (epochs)", "advantage of batch norm (points)"), advantages)}
## The learning rate at batch {smallest}

Taken is the rate with the best mean accuracy on {config["val_size"]} validation images.

{markdown_table(tuning_headings, tuning_cells(tuned))}
{len(everything)} runs, {clock(sum(record["cpu_seconds"] for record in everything))} of CPU time on one thread,
{clock(sum(record["seconds"] for record in everything))} on the clock of a shared machine. Made with:

{"".join(f"- {machine}{chr(10)}" for machine in machines)}"""


def cells_of_warmup(setting: Setting) -> str:
    """The warm-up as the tables write it."""
    return f"{setting.warmup_epochs:g}" if setting.rule != "none" else "-"


# ---------------------------------------------------------------------- picture
COLOURS = {"linear": "C0", "sqrt": "C1", "none": "C2"}
NAMES = {"linear": "lr times k", "sqrt": "lr times √k", "none": "lr unchanged"}


def draw(records: Sequence[Record], path: Path) -> None:
    """Accuracy against batch size, a panel for each model and a line for each rule; dashed without warm-up."""
    groups, table = by_setting(records), rows(records)
    models = list(dict.fromkeys(row.setting.model for row in table))
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for panel, model in zip(panels, models, strict=True):
        _draw_panel(panel, [row for row in table if row.setting.model == model], groups)
        panel.set_title(model)
    panels[0].set_ylabel("test accuracy (%): mean, 95 % interval, single seeds")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels) // 2 + 1, frameon=False)
    figure.savefig(path, dpi=130)


def _draw_panel(panel: Axes, table: Sequence[Row], groups: Mapping[Setting, Mapping[int, Record]]) -> None:
    reference = next(row for row in table if row.difference is None)
    sizes = sorted({row.setting.batch_size for row in table})
    lines = sorted(
        {(row.setting.rule, row.setting.warmup_epochs) for row in table if row.difference is not None},
        key=lambda line: (-RULES.index(line[0]), line[1]),
    )
    panel.axhline(100 * reference.accuracy.mean, color="0.6", linewidth=0.8, linestyle=":")
    for place, (rule, warmup_epochs) in enumerate(lines):
        points = [
            row
            for row in table
            if row is reference or (row.setting.rule, row.setting.warmup_epochs) == (rule, warmup_epochs)
        ]
        shift = 2 ** (0.12 * (place - (len(lines) - 1) / 2))  # side by side, so that no bar hides another
        places = [row.setting.batch_size * (1 if row is reference else shift) for row in points]
        means = [100 * row.accuracy.mean for row in points]
        widths = [100 * row.accuracy.half_width for row in points]
        epochs = "epoch" if warmup_epochs == 1 else "epochs"
        panel.errorbar(
            places,
            means,
            # an accuracy lies between 0 and 100 %, whatever Student's distribution says
            [
                [min(width, mean) for mean, width in zip(means, widths, strict=True)],
                [min(width, 100 - mean) for mean, width in zip(means, widths, strict=True)],
            ],
            color=COLOURS[rule],
            linestyle="-" if warmup_epochs else "--",
            marker="o" if warmup_epochs else "s",
            markerfacecolor=COLOURS[rule] if warmup_epochs else "white",
            markersize=6,
            linewidth=1.4,
            elinewidth=1.0,
            capsize=2.5,
            label=NAMES[rule] + (f", warm-up {warmup_epochs:g} {epochs}" if warmup_epochs else ", no warm-up"),
        )
        for row, x in zip(points, places, strict=True):
            singles = [100 * accuracy for accuracy in _accuracies(groups[row.setting]).values()]
            panel.plot([x] * len(singles), singles, ".", color=COLOURS[rule], markersize=5, zorder=3)
    panel.set_xscale("log", base=2)
    panel.set_xticks(sizes, [str(size) for size in sizes])
    panel.minorticks_off()
    panel.set_xlabel("batch size (samples per update)")
    panel.set_ylim(0, 100)
    panel.set_yticks(range(0, 101, 10))
    panel.grid(alpha=0.25)


# ---------------------------------------------------------------------- everything
def write(target: Path, tuned: Sequence[Record], scaled: Sequence[Record]) -> None:
    """Write ``target``.md and .png and print the table; findings below the tables, written by hand, are kept."""
    picture = target.with_suffix(".png")
    draw(scaled, picture)
    text = _markdown(picture.name, tuned, scaled)
    path = target.with_suffix(".md")
    write_keeping_findings(path, text)
    for model, of_model in itertools.groupby(rows(scaled), key=lambda row: row.setting.model):
        table = Table(*SHORT_HEADINGS, title=model, title_justify="left", box=None, padding=(0, 2, 0, 0))
        for row in of_model:
            table.add_row(*cells(row)[1:])
        Console().print(table, "")
    print(f"written: {path.name}, {picture.name}")
