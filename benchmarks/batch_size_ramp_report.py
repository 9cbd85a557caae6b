"""Table and pictures of `batch_size_ramp`: test accuracy with intervals over seeds, differences to "decay" paired by
seed and whether they are small enough to call the schedules equivalent. Nothing is trained here.

Equivalence by an interval inside fixed margins: Schuirmann 1987, J. Pharmacokinetics and Biopharmaceutics 15.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator
from rich.console import Console
from rich.table import Table

from benchmarks._common import Interval, clock, markdown_table, paired_interval, t_interval, write_keeping_findings

Record = dict[str, Any]
MARGIN = 0.005
"""Largest difference in test accuracy, as a share, that still counts as the same."""
CONFIDENCE = 0.90
"""Of the interval of a difference: both ends inside the margin is a test at 5 %."""


class Setting(NamedTuple):
    """What runs that differ in the seed only have in common."""

    optimizer: str
    mode: str
    lr: float
    momentum: float
    batch_size: int


@dataclass(frozen=True)
class Row:
    """One setting over its seeds; accuracies as shares, the difference to "decay" of the same optimizer."""

    setting: Setting
    accuracy: Interval
    difference: Interval | None
    train_loss: float | None
    updates: int
    seconds: float
    cpu_seconds: float
    diverged: int

    @property
    def verdict(self) -> str:
        """Whether the difference has been shown to be within the margin, or beyond it, or neither."""
        if self.difference is None:
            return "reference"
        if self.difference.count == 1:
            return "one seed"
        low = self.difference.mean - self.difference.half_width
        high = self.difference.mean + self.difference.half_width
        if low > -MARGIN and high < MARGIN:
            return "inside"
        return "outside" if high < -MARGIN or low > MARGIN else "not shown"


def last_val_accuracy(record: Record) -> float:
    """Validation accuracy after the last epoch, 0 for a run that diverged."""
    return 0.0 if record["diverged"] else float(record["epochs"][-1]["val_accuracy"])


def last_epoch_train_loss(record: Record) -> float:
    """Mean training loss over the last epoch, of batches as they were trained on."""
    config, curve = record["config"], record["train_curve"]
    begin = (config["epochs"] - 1) * config["train_size"]
    return fmean(loss for x, loss in zip(curve["samples"], curve["loss"], strict=True) if x > begin)


def by_setting(records: Sequence[Record]) -> dict[Setting, dict[int, Record]]:
    """Records by setting and seed, in the order given."""
    groups: dict[Setting, dict[int, Record]] = {}
    for record in records:
        config = record["config"]
        setting = Setting(*(config[field] for field in Setting._fields))
        groups.setdefault(setting, {})[config["seed"]] = record
    return groups


def rows(records: Sequence[Record]) -> list[Row]:
    """A row for each setting; the difference takes the seeds that both have."""
    groups = by_setting(records)
    reference = {setting.optimizer: runs for setting, runs in groups.items() if setting.mode == "decay"}
    return [
        Row(
            setting,
            t_interval(list(_accuracies(runs).values())),
            None
            if setting.mode == "decay"
            else paired_interval(_accuracies(runs), _accuracies(reference[setting.optimizer]), CONFIDENCE),
            _mean([last_epoch_train_loss(run) for run in runs.values() if not run["diverged"]]),
            max(run["updates"] for run in runs.values()),
            fmean(run["seconds"] for run in runs.values()),
            fmean(run["cpu_seconds"] for run in runs.values()),
            sum(run["diverged"] for run in runs.values()),
        )
        for setting, runs in groups.items()
    ]


def schedules(records: Sequence[Record], optimizer: str) -> dict[str, dict[int, Record]]:
    """By schedule and seed, the runs that start as "decay" does."""
    groups = by_setting(records)
    start = next(setting for setting in groups if setting.optimizer == optimizer and setting.mode == "decay")
    return {setting.mode: runs for setting, runs in groups.items() if setting._replace(mode="decay") == start}


def same_until_first_milestone(records: Sequence[Record], optimizer: str) -> bool:
    """Whether the schedules of a seed have the same losses as long as they do the same: same weights, same order."""
    compared = schedules(records, optimizer)
    beginnings: dict[int, set[tuple[float, ...]]] = {}
    for seed, record in itertools.chain.from_iterable(runs.items() for runs in compared.values()):
        config, curve = record["config"], record["train_curve"]
        end = config["milestones"][0] * config["train_size"]
        losses = tuple(loss for x, loss in zip(curve["samples"], curve["loss"], strict=True) if x < end)
        beginnings.setdefault(seed, set()).add(losses)
    return all(len(different) == 1 for different in beginnings.values())


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _accuracies(runs: dict[int, Record]) -> dict[int, float]:
    return {seed: run["test_accuracy"] for seed, run in runs.items()}


# ---------------------------------------------------------------------- tables
HEADINGS = (
    "optimizer",
    "schedule",
    "first lr",
    "momentum",
    "first batch (samples)",
    "updates",
    "test accuracy (%)",
    "difference to decay, 90 % (points)",
    "within ±0.5?",
    "training loss, last epoch",
    "time (s)",
    "CPU time (s)",
    "seeds",
    "diverged",
)
SHORT_HEADINGS = (
    "optimizer",
    "schedule",
    "lr",
    "m",
    "batch",
    "updates",
    "accuracy (%)",
    "diff. (points)",
    "±0.5?",
    "loss",
    "s",
    "CPU s",
)


def cells(row: Row) -> list[str]:
    """A row in words, in the order of the headings."""
    setting = row.setting
    return [
        setting.optimizer,
        setting.mode,
        f"{setting.lr:g}",
        f"{setting.momentum:g}",
        str(setting.batch_size),
        f"{row.updates:,}",
        row.accuracy.text(100),
        "-" if row.difference is None else row.difference.text(100, sign=True),
        row.verdict,
        "-" if row.train_loss is None else f"{row.train_loss:.3f}",
        f"{row.seconds:.0f}",
        f"{row.cpu_seconds:.0f}",
        str(row.accuracy.count),
        str(row.diverged),
    ]


def tuning_cells(tuned: Sequence[Record]) -> list[list[str]]:
    """Validation and test accuracy of "decay" over the grid; the best validation mean of an optimizer is marked."""
    groups = by_setting(tuned)
    means = {setting: fmean(map(last_val_accuracy, runs.values())) for setting, runs in groups.items()}
    best = {setting.optimizer: setting for setting in sorted(means, key=means.__getitem__)}
    return [
        [
            setting.optimizer,
            f"{setting.lr:g}",
            f"{100 * means[setting]:.2f}",
            f"{100 * fmean(_accuracies(runs).values()):.2f}",
            str(len(runs)),
            "taken" if best[setting.optimizer] == setting else "",
        ]
        for setting, runs in groups.items()
    ]


def statement(row: Row) -> str:
    """What the interval of a difference says, plainly."""
    assert row.difference is not None
    zero_left_out = abs(row.difference.mean) > row.difference.half_width
    what = {
        "inside": "inside ±0.5 points: equivalent" + (", though 0 is outside the interval" if zero_left_out else ""),
        "outside": "outside ±0.5 points: different",
        "not shown": "it reaches past ±0.5 points: equivalence is **not** shown",
        "one seed": "without an interval nothing is shown",
    }[row.verdict]
    setting = row.setting
    start = f"lr {setting.lr:g}, momentum {setting.momentum:g}, batch {setting.batch_size}"
    return (
        f"- {setting.optimizer}, {setting.mode} ({start}) minus decay, {_counted(row.difference.count)}: "
        f"{row.difference.text(100, sign=True)} points; {what}."
    )


def _counted(seeds: int) -> str:
    return f"{seeds} seed{'' if seeds == 1 else 's'}"


SWEEP_HEADINGS = (
    "first lr",
    "first batch (samples)",
    "updates",
    "test accuracy (%)",
    "training loss, last epoch",
    "seeds",
    "diverged",
)


def sweep_cells(swept: Sequence[Record]) -> list[list[str]]:
    """Test accuracy over initial learning rates, those with the batch in proportion first."""
    ordered = sorted(by_setting(swept).items(), key=lambda item: (_in_place(item[0], swept), item[0].lr))
    table = []
    for setting, runs in ordered:
        losses = [last_epoch_train_loss(run) for run in runs.values() if not run["diverged"]]
        table.append(
            [
                f"{setting.lr:g}",
                str(setting.batch_size),
                f"{max(run['updates'] for run in runs.values()):,}",
                t_interval(list(_accuracies(runs).values())).text(100),
                f"{fmean(losses):.3f}" if losses else "-",
                str(len(runs)),
                str(sum(run["diverged"] for run in runs.values())),
            ]
        )
    return table


def _in_place(setting: Setting, swept: Sequence[Record]) -> bool:
    """Whether a row of the sweep keeps the batch of the first at another learning rate."""
    first = min(by_setting(swept), key=lambda setting: (setting.lr, setting.batch_size))
    return setting.batch_size == first.batch_size and setting.lr > first.lr


def _left_out(configs: Sequence[Record]) -> str:
    """What the protocol has and was not run, a line per setting."""
    seeds: dict[str, list[int]] = {}
    for c in configs:
        row = f"{c['optimizer']}, {c['mode']}, lr {c['lr']:g}, momentum {c['momentum']:g}, batch {c['batch_size']}"
        seeds.setdefault(row, []).append(c["seed"])
    lines = [f"- {row}: seed{'' if len(s) == 1 else 's'} {', '.join(map(str, s))}" for row, s in seeds.items()]
    return "".join(f"{line}{chr(10)}" for line in lines)


def _markdown(
    pictures: dict[str, str],
    tuned: Sequence[Record],
    records: Sequence[Record],
    swept: Sequence[Record],
    left_out: Sequence[Record],
) -> str:
    everything = {str(record["config"]): record for record in [*tuned, *records, *swept]}.values()
    config = records[0]["config"]
    table = rows(records)
    milestones = ", ".join(map(str, config["milestones"]))
    machines = dict.fromkeys(", ".join(f"{k} {v}" for k, v in record["environment"].items()) for record in everything)
    paired = all(same_until_first_milestone(records, optimizer) for optimizer in pictures)
    tuning_headings = ("optimizer", "lr", "validation accuracy (%)", "test accuracy (%)", "seeds", "")
    full = " --full" if config["train_size"] > 50_000 else ""
    of_sweep = f"""
## The initial learning rate

"increase" with momentum: first with the batch in proportion to the learning rate, then with the batch as it is.

{markdown_table(SWEEP_HEADINGS, sweep_cells(swept))}"""
    of_rest = f"""
## What was not run

Of the protocol (`python -m benchmarks.batch_size_ramp{full}` makes what is missing):

{_left_out(left_out)}"""
    sweep = of_sweep if len(by_setting(swept)) > 1 else ""
    not_run = of_rest if left_out else ""
    return f"""# Growing the batch against decaying the learning rate

Made by `python -m benchmarks.batch_size_ramp{full}`. Fashion-MNIST,
{config["train_size"]} training images, {config["epochs"]} epochs, ResNet of depth 8 ({config["parameters"]} parameters)
with ghost batch norm over {config["ghost_batch_size"]}, L2 coefficient 5e-4. At epochs {milestones} the noise scale
falls by {config["factor"]}: by the learning rate (decay), by the batch once and then the learning rate (hybrid), or by
the batch up to {config["max_batch_size"]} samples, a tenth of the training set, and then the learning rate (increase).
Micro-batches grow to {config["max_micro_batch_size"]} samples; beyond, gradients are accumulated. Adam has the
square-root rule: lr / sqrt(batch) falls by {config["factor"]}. Text is in `batch_size_ramp_text.md`.

±: of an accuracy, the 95 % interval of the mean by Student's distribution; of a difference, paired by seed, the
{100 * CONFIDENCE:g} % interval. *Inside*: the whole interval lies inside ±{100 * MARGIN:g} points. *Not shown*: it
does not, and the difference may or may not be small. Time is a run's, on one thread of a shared machine,
with the validation after each epoch. Until the first milestone the three schedules of a seed
{"have the same training losses to the last digit kept" if paired else "do NOT have the same training losses"}.

{"".join(f"![{optimizer}: loss and accuracy]({name}){chr(10)}" for optimizer, name in pictures.items())}
## Test accuracy

{markdown_table(HEADINGS, [cells(row) for row in table])}
{chr(10).join(statement(row) for row in table if row.difference is not None)}

## The learning rate of decay

Taken is the rate with the best mean accuracy on {config["val_size"]} validation images; the other schedules use it too.

{markdown_table(tuning_headings, tuning_cells(tuned))}{sweep}{not_run}
{len(everything)} runs, {clock(sum(record["cpu_seconds"] for record in everything))} of CPU time on one thread,
{clock(sum(record["seconds"] for record in everything))} on the clock of a shared machine. Made with:

{"".join(f"- {machine}{chr(10)}" for machine in machines)}"""


# ---------------------------------------------------------------------- picture
STYLES: dict[str, dict[str, Any]] = {
    "decay": {"color": "C0", "linestyle": "-", "linewidth": 2.4},
    "hybrid": {"color": "C1", "linestyle": "-", "linewidth": 1.4},
    "increase": {"color": "C2", "linestyle": (0, (4, 2)), "linewidth": 1.8},
}
NAMES = {"decay": "decaying learning rate", "hybrid": "hybrid", "increase": "increasing batch size"}


def draw(records: Sequence[Record], optimizer: str, path: Path) -> None:
    """Training loss and validation accuracy of the three schedules, against samples and against updates."""
    compared = schedules(records, optimizer)
    seeds = set.intersection(*(set(runs) for runs in compared.values()))  # each band has the same seeds
    config = records[0]["config"]
    figure = Figure(figsize=(11, 7), layout="constrained")
    panels = figure.subplots(2, 2, sharey="row", sharex="col")
    for mode, runs in compared.items():
        finished = [runs[seed] for seed in sorted(seeds) if not runs[seed]["diverged"]]
        for column, unit in enumerate(("samples", "updates")):
            scale = 1000 if unit == "samples" else 1
            curves = [run["train_curve"] for run in finished]
            _band(panels[0, column], [x / scale for x in curves[0][unit]], [curve["loss"] for curve in curves], mode)
            epochs = [run["epochs"] for run in finished]
            accuracies = [[100 * epoch["val_accuracy"] for epoch in run] for run in epochs]
            _band(panels[1, column], [epoch[unit] / scale for epoch in epochs[0]], accuracies, mode, marker="o")
    for panel in panels[:, 0]:
        for milestone in config["milestones"]:
            panel.axvline(milestone * config["train_size"] / 1000, color="0.6", linewidth=0.8, linestyle=":")
    _label(panels, config)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    title = (
        f"mean and standard deviation over {_counted(len(seeds))}; dotted: the noise scale falls by {config['factor']}"
    )
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, title=title)
    figure.savefig(path, dpi=130)


def _band(panel: Axes, x: Sequence[float], curves: Sequence[Sequence[float]], mode: str, marker: str = "") -> None:
    points = list(zip(*curves, strict=True))
    means = [fmean(point) for point in points]
    spreads = [stdev(point) if len(point) > 1 else 0.0 for point in points]
    low = [mean - spread for mean, spread in zip(means, spreads, strict=True)]
    high = [mean + spread for mean, spread in zip(means, spreads, strict=True)]
    panel.fill_between(x, low, high, color=STYLES[mode]["color"], alpha=0.15, linewidth=0)
    panel.plot(x, means, **STYLES[mode], marker=marker, markersize=3.5, label=NAMES[mode])


def _label(panels: Any, config: dict[str, Any]) -> None:
    panels[0, 0].set_title("sample for sample")
    panels[0, 1].set_title("update for update")
    panels[0, 0].set_yscale("log")
    panels[0, 0].yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)))
    panels[0, 0].yaxis.set_major_formatter("{x:g}")
    panels[0, 0].yaxis.set_minor_locator(NullLocator())
    panels[1, 0].set_yscale("function", functions=(_wider_near_100, _wider_near_100_inverse))
    panels[1, 0].yaxis.set_major_locator(FixedLocator([*range(0, 70, 10), 70, 75, *range(80, 88, 2), *range(88, 100)]))
    panels[0, 0].set_ylabel("training loss (nats)")
    panels[1, 0].set_ylabel("validation accuracy (%)\nlogarithmic in the error")
    panels[1, 0].set_xlabel(f"training samples seen (thousands; an epoch has {config['train_size'] / 1000:g})")
    panels[1, 1].set_xlabel("updates")
    for panel in panels.flat:
        panel.grid(alpha=0.25, which="both")


def _wider_near_100(accuracy: Any) -> Any:
    return -np.log(np.maximum(100.0 - accuracy, 0.1))


def _wider_near_100_inverse(place: Any) -> Any:
    return 100.0 - np.exp(-place)


# ---------------------------------------------------------------------- everything
def write(
    target: Path,
    tuned: Sequence[Record],
    records: Sequence[Record],
    swept: Sequence[Record] = (),
    left_out: Sequence[Record] = (),
) -> None:
    """Write ``target``.md and its pictures and print the table; findings written by hand below the tables are kept.

    Args:
        target: path without an ending.
        tuned: runs of "decay" over the grids.
        records: runs of the schedules at the rates taken, and of the rows with another start.
        swept: runs of the sweep of the learning rate.
        left_out: the configurations of the protocol that were not run.
    """
    optimizers = list(dict.fromkeys(record["config"]["optimizer"] for record in records))
    pictures = {
        optimizer: f"{target.name}.png" if optimizer == optimizers[0] else f"{target.name}_{optimizer}.png"
        for optimizer in optimizers
    }
    for optimizer, name in pictures.items():
        draw(records, optimizer, target.parent / name)
    path = target.with_suffix(".md")
    write_keeping_findings(path, _markdown(pictures, tuned, records, swept, left_out))
    table = Table(*SHORT_HEADINGS, box=None, padding=(0, 2, 0, 0))
    for row in rows(records):
        table.add_row(*cells(row)[: len(SHORT_HEADINGS)])
    Console(width=130).print(table, "")
    print("\n".join(statement(row) for row in rows(records) if row.difference is not None))
    print(f"written: {', '.join([path.name, *pictures.values()])}")
